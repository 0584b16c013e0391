package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// A row is one sample as the recording and the query API give it, its value
// as float64.
type row struct {
	time                 int64
	sensor, metric, unit string
	value                float64
}

// TestReplay_SurvivesKillsAndOutages replays a recording while the cloud is
// stopped and started five times and the gateway is killed three times. No
// row may be missing, and none may be there twice, though clients send again
// what a kill swallowed the acknowledgement of.
func TestReplay_SurvivesKillsAndOutages(t *testing.T) {
	for _, transport := range transports(t, "mqtt") {
		t.Run(transport, func(t *testing.T) {
			recording, want := cutRecording(t, "gym_imu.csv.gz", 6_000)
			s := newSite(t, "")
			s.startCloud()
			s.startGateway()
			// The rate leaves time for eight events; the long form takes the file at full speed otherwise.
			rate := max(len(want)/20, 300)
			simulate := start(t, "touchline", "simulate", "--json", "--to", s.address(transport),
				"--recording", recording, "--speed", "max", "--max-rate", strconv.Itoa(rate))
			s.disturb(simulate)
			if code := simulate.exit(); code != 0 {
				t.Fatalf("simulate ended with status %d: %s", code, simulate.log)
			}
			result := s.audited(simulate, want)
			if result.twice > 0 {
				t.Errorf("%d rows twice; %d were sent again", result.twice, result.ResentSamples)
			}
			t.Logf("MEASURED replay over %s with 5 outages and 3 kills: %d rows, 0 missing, %d twice (%d were sent again for want of an acknowledgement)",
				transport, len(want), result.twice, result.ResentSamples)
		})
	}
}

// disturb kills the cloud five times and kills the gateway three times, each
// after the replay got further.
func (s *site) disturb(simulate *program) {
	s.t.Helper()
	progress := func(what string, ready func() bool) {
		s.t.Helper()
		waitFor(s.t, what, func() bool {
			if !simulate.running() {
				s.t.Fatalf("the replay ended before: %s\n%s", what, simulate.log)
			}
			return ready()
		})
	}
	took := func() bool { return s.status().Sensors.Samples >= 200 }
	for i := range 5 {
		progress("samples to be taken", took)
		s.cloud.kill() // without a goodbye, which would have the gateway wait for seconds
		progress("a backlog", func() bool { return s.status().Buffer.Samples >= 200 })
		if i%2 == 0 {
			s.gateway.kill()
			s.startGateway()
			progress("samples after the kill", took)
		}
		s.startCloud()
		progress("the uplink to be back", func() bool { return s.status().Uplink.State == "connected" })
	}
}

// TestReplay_EachTransportOnce replays a recording through each transport;
// without kills no row may be missing and none twice.
func TestReplay_EachTransportOnce(t *testing.T) {
	for _, transport := range []string{"mqtt", "ws", "http"} {
		t.Run(transport, func(t *testing.T) {
			recording, want := cutRecording(t, "endurance.csv.gz", 4_000)
			s := newSite(t, "")
			s.startCloud()
			s.startGateway()
			simulate := start(t, "touchline", "simulate", "--json", "--to", s.address(transport), "--recording", recording, "--speed", "max")
			if code := simulate.exit(); code != 0 {
				t.Fatalf("simulate ended with status %d: %s", code, simulate.log)
			}
			result := s.audited(simulate, want)
			if result.twice != 0 {
				t.Errorf("%d rows twice", result.twice)
			}
			t.Logf("MEASURED replay over %s: %d rows, 0 missing, 0 twice", transport, len(want))
		})
	}
}

type replayed struct {
	Samples       uint64 `json:"samples"`
	ResentSamples uint64 `json:"resent_samples"`
	twice         uint64
}

// audited waits until all is stored, and compares what the query API gives
// with the recording. A missing row, a row that was never sent, or one out of
// order fails the test.
func (s *site) audited(simulate *program, want []row) replayed {
	s.t.Helper()
	var result replayed
	if err := json.Unmarshal(lastJSON(simulate.log.String()), &result); err != nil {
		s.t.Fatalf("simulate printed %q: %v", simulate.log, err)
	}
	if result.Samples != uint64(len(want)) {
		s.t.Errorf("%d samples acknowledged, the recording has %d", result.Samples, len(want))
	}
	s.drained()
	got := readRows(s.t, bytes.NewReader(s.get(s.cloudPort, "/v1/samples?format=csv&gateway=venue-1")), true)
	counts := map[row]int{}
	for _, r := range want {
		counts[r]++
	}
	previous := int64(0)
	for _, r := range got {
		if r.time < previous {
			s.t.Fatalf("the query API's rows are out of order at %+v", r)
		}
		previous = r.time
		if _, sent := counts[r]; !sent {
			s.t.Fatalf("the cloud has %+v, which is not in the recording", r)
		}
		counts[r]--
	}
	missing := 0
	for r, n := range counts {
		if n > 0 {
			if missing++; missing <= 3 {
				s.t.Errorf("missing: %+v", r)
			}
		} else {
			result.twice += uint64(-n)
		}
	}
	if missing > 0 {
		s.t.Errorf("%d rows missing of %d", missing, len(want))
	}
	return result
}

// lastJSON returns the last line that begins with a brace.
func lastJSON(out string) []byte {
	var last []byte
	lines := bufio.NewScanner(bytes.NewReader([]byte(out)))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if bytes.HasPrefix(lines.Bytes(), []byte("{")) {
			last = bytes.Clone(lines.Bytes())
		}
	}
	return last
}

func (s *site) address(transport string) string {
	if transport == "mqtt" {
		return fmt.Sprintf("mqtt://127.0.0.1:%d", s.mqtt)
	}
	return fmt.Sprintf("%s://127.0.0.1:%d", transport, s.http)
}

// transports returns all in the long form, else the one named.
func transports(t *testing.T, short string) []string {
	t.Helper()
	if long() {
		return []string{"mqtt", "ws", "http"}
	}
	return []string{short}
}

// cutRecording returns a recording of n rows (all in the long form) as a
// file, and its rows.
func cutRecording(t *testing.T, name string, n int) (file string, rows []row) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if long() {
		whole, err := filepath.Abs(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return whole, readRows(t, unzipped, false)
	}
	var cut bytes.Buffer
	lines := bufio.NewScanner(unzipped)
	for i := 0; i <= n && lines.Scan(); i++ {
		cut.Write(lines.Bytes())
		cut.WriteByte('\n')
	}
	file = filepath.Join(t.TempDir(), "cut.csv")
	writeFile(t, file, cut.String())
	return file, readRows(t, &cut, false)
}

// readRows reads CSV with a header; the query API's has the gateway in its
// second column.
func readRows(t *testing.T, in io.Reader, withGateway bool) []row {
	t.Helper()
	records, err := csv.NewReader(in).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	for i, r := range records[1:] {
		if withGateway {
			r = append(r[:1:1], r[2:]...)
		}
		at, err := strconv.ParseInt(r[0], 10, 64)
		if err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
		value, err := strconv.ParseFloat(r[4], 64)
		if err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
		rows = append(rows, row{at, r[1], r[2], r[3], value})
	}
	return rows
}
