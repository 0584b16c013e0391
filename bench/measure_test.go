package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == gatewaysCommand { // startHolder started it
		if err := holdGateways(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func TestParseMetrics_ReadsWhatPrometheusClientsWrite(t *testing.T) {
	const text = `# HELP a_total What is counted.
# TYPE a_total counter
a_total 1.5e+06
b{x="y"} 3
age_bucket{le="0.1"} 5
age_bucket{le="+Inf"} 9
age_bucket{le="0.05"} 2
age_sum 1.25
age_count 9
`
	m, err := parseMetrics(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := m.value("a_total"); err != nil || v != 1.5e6 {
		t.Errorf("a_total is %v (%v)", v, err)
	}
	if v, err := m.value(`b{x="y"}`); err != nil || v != 3 {
		t.Errorf("b is %v (%v)", v, err)
	}
	if _, err := m.value("c"); err == nil || !strings.Contains(err.Error(), "have no c") {
		t.Errorf("error %v: want it to name the series", err)
	}
	h, err := m.histogram("age")
	if err != nil || len(h) != 3 || h[0] != (bucket{0.05, 2}) || h[1] != (bucket{0.1, 5}) || !math.IsInf(h[2].seconds, 1) {
		t.Errorf("histogram %v (%v): want three buckets in order", h, err)
	}
	if _, err := m.histogram("b"); err == nil {
		t.Error("a series that is no histogram: want an error")
	}
	for _, bad := range []string{"novalue", "a x", `h_bucket{le="x"} 1`} {
		m, err := parseMetrics(strings.NewReader(bad))
		if err == nil {
			_, err = m.histogram("h")
		}
		if err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

func TestParseStat_SurvivesNamesWithBlanksAndParentheses(t *testing.T) {
	const stat = "4242 (a) b) S 1 4242 4242 0 -1 4194304 1000 0 0 0 1234 66 0 0 20 0 9 0 123456 1000000 2500"
	if got, err := parseStat(stat); err != nil || got != 13 {
		t.Errorf("%v s (%v): want 13", got, err)
	}
	for _, bad := range []string{"", "1 (x) S", "4242 (a) S 1 4242 4242 0 -1 4194304 1000 0 0 0 x 66 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}

func TestParseKey(t *testing.T) {
	const text = "Name:\tx\nVmPeak:\t  200 kB\nVmHWM:\t   12345 kB\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n"
	for key, want := range map[string]int64{"VmHWM": 12345, "write_bytes": 4096} {
		if got, err := parseKey(text, key); err != nil || got != want {
			t.Errorf("%s is %d (%v): want %d", key, got, err, want)
		}
	}
	if _, err := parseKey(text, "bytes"); err == nil {
		t.Error("a key that is only part of another: want an error")
	}
}

func TestParseStrace_AddsUpTheCalls(t *testing.T) {
	const summary = `% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.12    0.123456         271       454           fdatasync
  9.88    0.012345         100       123         2 fsync
------ ----------- ----------- --------- --------- ----------------
100.00    0.135801         235       577         2 total
`
	if got, err := parseStrace(summary); err != nil || got != 577 {
		t.Errorf("%d calls (%v): want 577", got, err)
	}
	if got, err := parseStrace(""); err != nil || got != 0 {
		t.Errorf("%d calls (%v) in an empty summary", got, err)
	}
}

func TestProcess_IsMeasuredAndStopped(t *testing.T) {
	dir := t.TempDir()
	p, err := startProcess(dir, "shell", "/bin/sh", "-c", "echo ready; while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	if err := until(t.Context(), p, "used no CPU", func() error {
		if used, err := p.cpuSeconds(); err != nil || used == 0 {
			return errors.Join(err, errors.New("none yet"))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if kib, err := p.memoryPeakKiB(); err != nil || kib == 0 {
		t.Errorf("peak of %d KiB (%v)", kib, err)
	}
	if _, err := p.writtenBytes(); err != nil {
		t.Error(err)
	}
	p.stop()
	if err := syscall.Kill(p.pid, 0); err == nil {
		t.Error("the process still runs")
	}
	if err := p.died(); err == nil || !strings.Contains(err.Error(), "ready") {
		t.Errorf("error %v: want it to show the end of the log", err)
	}
	p.stop()
	(*process)(nil).stop()
}

func TestDiskBytes_TellsTheLogApart(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"db": 100_000, "sub/db-wal": 8192} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, make([]byte, size), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	hole := filepath.Join(dir, "hole")
	if err := errors.Join(os.WriteFile(hole, nil, 0o600), os.Truncate(hole, 1<<30)); err != nil {
		t.Fatal(err)
	}
	if sum, log, err := diskBytes(dir); err != nil || sum != 108_192 || log != 8192 {
		t.Errorf("%d bytes, %d of them log (%v): want 108192 and 8192", sum, log, err)
	}
}

func TestAudit(t *testing.T) {
	for _, c := range []struct {
		total totals
		want  string
	}{
		{totals{Sent: 10, Acked: 10, Stored: 10}, ""},
		{totals{Sent: 10, Acked: 8, Stored: 9}, ""}, // unacknowledged ones may be stored
		{totals{Sent: 10, Acked: 10, Stored: 9}, "1 are lost"},
		{totals{Sent: 10, Acked: 9, Stored: 12}, "2 are there twice"},
	} {
		err := c.total.audit()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v: want %q", c.total, err, c.want)
		}
	}
}

func TestReport_PrintsEvenWhatIsMissing(t *testing.T) {
	r := &report{Subjects: []subjectReport{
		{Name: touchlineName, Backlog: &backlog{}, Paced: &figures{Acknowledged: 200, Offered: unknown}, FlatOut: &figures{StoredP99: number(math.Inf(1))}, Totals: totals{5, 5, 5}},
		{Name: mosquittoName, Paced: &figures{Acknowledged: 50}, Problem: "it left early"},
	}}
	var out strings.Builder
	r.print(&out)
	for _, want := range []string{"4.00", "in memory only", "PROBLEM with mosquitto: it left early", "touchline: all 5 acknowledged messages have arrived", "aim missed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report does not say %q:\n%s", want, &out)
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"offered_messages_per_s":null`) || !strings.Contains(string(text), `"publish_to_stored_p99_s":null`) {
		t.Errorf("unknown figures are not null: %s", text)
	}
}

func TestSettings_SayAllThatIsWrong(t *testing.T) {
	if s, err := parseSettings(nil); err != nil || s.connections != 300 || len(s.subjects) != 3 {
		t.Errorf("defaults are %+v (%v)", s, err)
	}
	_, err := parseSettings([]string{"-run", "nats", "-connections", "0", "-window", "2000", "-rate", "-1", "-duration", "1ms", "more"})
	for _, want := range []string{`-run "nats"`, "-connections", "-window", "-rate", "-duration", `"more"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v: want %q", err, want)
		}
	}
}

// loadFor runs a load against a broker until each sensor has had so many
// messages acknowledged.
func loadFor(t *testing.T, o loadOptions, each int64) *load {
	t.Helper()
	l, err := connectLoad(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.measure(time.Now(), time.Now().Add(time.Hour))
	l.publish()
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; i < len(l.sensors); {
		if l.sensors[i].acked.Load() >= each {
			i++
		} else if time.Now().After(deadline) {
			t.Fatal("the load stands still")
		} else if err := sleep(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	latency, err := l.finish(ackTimeout)
	if err != nil {
		t.Fatal(err)
	}
	sent, acked := l.counts()
	if sent != acked || int64(latency.n) != acked {
		t.Errorf("%d sent, %d acknowledged, %d latencies: want all equal", sent, acked, latency.n)
	}
	return l
}

func TestLoad_HasEveryMessageAcknowledged(t *testing.T) {
	broker, err := startNullBroker()
	if err != nil {
		t.Fatal(err)
	}
	defer broker.close()
	for _, window := range []int{1, 7, maxLoadWindow} {
		loadFor(t, loadOptions{address: broker.address(), connections: 5, window: window}, 200)
	}
	loadFor(t, loadOptions{address: broker.address(), connections: 2, window: 64}, 70_000) // identifiers begin anew
}

func TestLoad_IsNeverAheadOfItsRate(t *testing.T) {
	broker, err := startNullBroker()
	if err != nil {
		t.Fatal(err)
	}
	defer broker.close()
	began := time.Now()
	l := loadFor(t, loadOptions{address: broker.address(), connections: 4, window: 64, rate: 2000}, 50)
	sent, _ := l.counts()
	if most := int64(time.Since(began).Seconds()*2000) + 4; sent > most {
		t.Errorf("%d messages in %s: at most %d are due at 2000/s", sent, time.Since(began), most)
	}
}

func TestLoad_SaysWhenTheBrokerLeaves(t *testing.T) {
	broker, err := startNullBroker()
	if err != nil {
		t.Fatal(err)
	}
	l, err := connectLoad(t.Context(), loadOptions{address: broker.address(), connections: 2, window: 8, rate: 10})
	if err != nil {
		t.Fatal(err)
	}
	l.publish()
	broker.close()
	l.ended.Wait() // both sensors notice
	if _, err := l.finish(time.Second); err == nil || !strings.Contains(err.Error(), "sensors/bench-0000") {
		t.Errorf("error %v: want it to name a sensor", err)
	}
}

// TestMosquitto_IsMeasured runs all phases against the real broker and bridge.
func TestMosquitto_IsMeasured(t *testing.T) {
	if _, err := newMosquittoSite(t.TempDir()); err != nil {
		t.Skip(err)
	}
	s := settings{connections: 10, window: 16, rate: 500, duration: time.Second}
	out, err := s.measureSubject(t.Context(), mosquittoName, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if out.Totals.Acked == 0 || out.Totals.Stored < out.Totals.Acked || out.Paced.Acknowledged <= 0 || out.FlatOut.Stored <= 0 ||
		out.FlatOut.GatewayCPU <= 0 || out.FlatOut.PeakMiB <= 0 || out.Backlog.Messages == 0 || !(out.Paced.StoredP99 > 0) {
		t.Errorf("report has gaps: %+v, paced %+v, flat out %+v", out, out.Paced, out.FlatOut)
	}
	if _, err := exec.LookPath("strace"); err == nil && out.Syncs.WhyNot == "" && !(out.Syncs.GatewayPerSecond >= 0) {
		t.Errorf("syncs %+v: want a count", out.Syncs)
	}
}

func TestMeasure_EndsItsProcessesWhenInterrupted(t *testing.T) {
	if _, err := newMosquittoSite(t.TempDir()); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	site, err := newMosquittoSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer site.Stop()
	if err := site.Start(ctx); err != nil {
		t.Fatal(err)
	}
	b := &bench{subject: site, load: loadOptions{connections: 3, window: 4}}
	done := make(chan error)
	go func() {
		_, err := b.run(ctx, 0, time.Hour)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v: want context.Canceled", err)
	}
	gateway, cloud := site.Processes()
	site.Stop()
	for _, p := range []*process{gateway, cloud} {
		if syscall.Kill(p.pid, 0) == nil {
			t.Errorf("%s still runs", p.name)
		}
	}
}
