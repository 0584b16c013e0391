package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"touchline/internal/pgtest"
)

func TestCloudSettings_SayAllThatIsWrong(t *testing.T) {
	if s, err := parseCloudSettings(nil); err != nil || s.connections != 18_000 || len(s.parts) != 3 || len(s.stores) != 2 {
		t.Errorf("defaults are %+v (%v)", s, err)
	}
	_, err := parseCloudSettings([]string{"-run", "nothing", "-stores", "sqlite,mysql", "-connections", "1", "-collections", "-1", "-gateways", "0", "-duration", "1ms", "more"})
	for _, want := range []string{`-run "nothing"`, `-stores "mysql"`, "-connections", "-collections", "-gateways", "-duration", `"more"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v: want %q", err, want)
		}
	}
}

func TestCompression_BlocksAreTheSmallest(t *testing.T) {
	names := []string{"pitch_positions"}
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		names = recordings
	}
	for _, name := range names {
		c, err := measureCompression("../testdata", name)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("MEASURED %+v", c)
		if c.Block <= 0 || c.Block >= c.Deflate/2 || c.Deflate > c.DeflateAlone || c.DeflateAlone >= c.JSON || c.Gzip >= c.JSON {
			t.Errorf("%+v: want a block below half of permessage-deflate, and that below JSON", c)
		}
	}
}

// TestCloud_IsMeasured is the whole of `bench cloud` in its short form, with the real program.
func TestCloud_IsMeasured(t *testing.T) {
	program := filepath.Join(t.TempDir(), "touchline-cloud")
	if out, err := exec.Command("go", "build", "-o", program, "touchline/cmd/touchline-cloud").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	s := &cloudSettings{cloud: program, testdata: "../testdata", parts: []string{recordPart}, stores: []string{sqliteName},
		connections: 300, gateways: 3, duration: 300 * time.Millisecond}
	dir, err := makeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if pgtest.Installed() {
		s.stores = append(s.stores, postgresName)
	} else {
		t.Log("PostgreSQL is not here and not measured; .ci/setup test installs it")
	}
	r := &cloudReport{}
	err = s.measure(t.Context(), dir, r)
	stores := len(s.stores)
	s.parts, s.stores = []string{idlePart}, []string{sqliteName} // which store it is makes no difference to it
	if err = errors.Join(err, s.measure(t.Context(), dir, r)); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Record {
		t.Logf("MEASURED %+v", f)
		for i, p := range append(slices.Clone(f.Paced), f.FlatOut) {
			if !(p.Stored > 0 && p.NodeCPU > 0 && p.Batch >= 1 && p.P50 > 0 && p.P50 <= p.P99 && p.P99 <= p.Max) {
				t.Errorf("%s, phase %d has gaps: %+v", f.Store, i, p)
			}
		}
		if len(f.Paced) != len(paces) || f.Samples == 0 || !(f.Disk > 0) || f.Store == postgresName && !(f.CopyBlocks > 0 && f.CopySamples > 0) {
			t.Errorf("%s has gaps: %+v", f.Store, f)
		}
	}
	for _, f := range r.Idle {
		t.Logf("MEASURED %+v", f)
		if f.Connections != s.connections || f.Goroutines < 0.9 || f.Goroutines > 2 || f.Lost != 0 || f.Heap+f.Stacks < 1_000 || f.Heap+f.Stacks > 64_000 {
			t.Errorf("%s: %+v: want a goroutine for each, and some kilobytes", f.Store, f)
		}
	}
	if len(r.Record) != stores || len(r.Idle) != 1 {
		t.Errorf("the report has %d and %d stores: want %d and 1", len(r.Record), len(r.Idle), stores)
	}
	var out strings.Builder
	r.print(&out)
	for _, want := range []string{"samples/s stored", "flat out by the disk", "resident, most, bytes", "with sqlite"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, &out)
		}
	}
	if text, err := json.Marshal(r); err != nil || !strings.Contains(string(text), `"offered_samples_per_s":null`) {
		t.Errorf("the report as JSON: %v %.300s", err, text)
	}
}
