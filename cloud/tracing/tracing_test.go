package tracing_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"touchline/cloud/tracing"
	"touchline/internal/otlptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func open(t *testing.T, endpoint string, ratio float64, to io.Writer) *tracing.Tracer {
	t.Helper()
	tracer, err := tracing.New(t.Context(), tracing.Options{Endpoint: endpoint, Ratio: ratio, Node: "node-1"}, slog.New(slog.NewJSONHandler(to, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeTracer(t, tracer) })
	return tracer
}

func closeTracer(t *testing.T, tracer *tracing.Tracer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := tracer.Close(ctx); err != nil {
		t.Error(err)
	}
}

// A log collects lines.
type log struct {
	mu  sync.Mutex // covers buf
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) lines() (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.buf.String()), "\n")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

func TestBlock_IsOneTraceInTwoProcesses(t *testing.T) {
	collector := otlptest.New(t)
	node, recorder := open(t, collector.Endpoint(), 1, io.Discard), open(t, collector.Endpoint(), 0, io.Discard)
	at := time.Unix(1_767_225_600, 0)
	b := node.Begin(at, tracing.String("touchline.gateway", "arena"), tracing.Int("touchline.samples", 10))
	b.Passed("receive", at.Add(1*time.Second))
	b.Stage("publish", at.Add(3*time.Second), at.Add(4*time.Second))
	// The recorder follows what the node began to follow, whatever its own ratio.
	far := recorder.Resume(tracing.Remote(b.Parent()), at.Add(5*time.Second))
	far.Stage("commit", at.Add(6*time.Second), at.Add(8*time.Second))
	far.End(at.Add(8*time.Second), "")
	b.Passed("ack", at.Add(9*time.Second))
	b.End(at.Add(9*time.Second), "")
	closeTracer(t, node)
	closeTracer(t, recorder)

	type stage struct {
		from, to int // seconds
		parent   string
	}
	want := map[string][]stage{"block": {{0, 9, ""}}, "receive": {{0, 1, "block"}}, "wait": {{1, 3, "block"}, {5, 6, "record"}}, "publish": {{3, 4, "block"}},
		"record": {{5, 8, "block"}}, "commit": {{6, 8, "record"}}, "ack": {{4, 9, "block"}}}
	spans := collector.Spans()
	names := map[string]string{}
	for _, s := range spans {
		names[string(s.SpanId)] = s.Name
		if string(s.TraceId) != string(spans[0].TraceId) || s.Service != "touchline-cloud" || s.Node != "node-1" {
			t.Errorf("the span %s is of the trace %x, of %s, %s", s.Name, s.TraceId, s.Service, s.Node)
		}
	}
	seconds := func(ns uint64) int { return int((int64(ns) - at.UnixNano()) / 1e9) }
	n := 0
	for name, list := range want {
		for _, w := range list {
			n++
			found := false
			for _, s := range collector.Spans(name) {
				found = found || seconds(s.StartTimeUnixNano) == w.from && seconds(s.EndTimeUnixNano) == w.to && names[string(s.ParentSpanId)] == w.parent
			}
			if !found {
				t.Errorf("no span %s from %d s to %d s below %q", name, w.from, w.to, w.parent)
			}
		}
	}
	if len(spans) != n {
		t.Errorf("%d spans came, want %d", len(spans), n)
	}
	if root := collector.Spans("block"); len(root) != 1 || root[0].Label("touchline.gateway") != "arena" || root[0].Label("touchline.samples") != int64(10) {
		t.Errorf("the block is %v", root)
	}
	if ended, exported := node.Counts(); ended != 5 || exported != 5 || collector.Bad() != 0 {
		t.Errorf("%d spans ended and %d were exported, want 5; %d requests were bad", ended, exported, collector.Bad())
	}
}

// Whatever the collector does, following a block is memory and no more; what
// waits is bounded, and one line each says that it is away and back.
func TestTracer_NeverWaitsForTheCollector(t *testing.T) {
	collector := otlptest.New(t)
	collector.Stop()
	said := new(log)
	tracer := open(t, collector.Endpoint(), 1, said)
	follow := func() {
		b := tracer.Begin(time.Now())
		b.Stage("commit", time.Now(), time.Now())
		b.End(time.Now(), "")
	}
	for range 5000 { // 15,000 spans, and 2,048 may wait
		follow()
	}
	eventually(t, "the log says that the collector is away", func() bool { return strings.Contains(strings.Join(said.lines(), ""), "takes no traces") })
	collector.Start()
	eventually(t, "the collector gets spans again", func() bool {
		follow()
		_, exported := tracer.Counts()
		return exported > 0
	})
	closeTracer(t, tracer)
	if lines := said.lines(); len(lines) != 2 || !strings.Contains(lines[0], `"level":"WARN"`) || !strings.Contains(lines[1], "takes traces again") {
		t.Errorf("the log says %d lines: %s", len(lines), strings.Join(lines, "\n"))
	}
	ended, exported := tracer.Counts()
	if got := uint64(len(collector.Spans())); exported != got || exported >= ended {
		t.Errorf("of %d spans %d are said to be exported, and %d arrived: most were dropped", ended, exported, got)
	}
	t.Logf("MEASURED tracing: of %d spans, most of them ended while the collector was away, %d arrived", ended, exported)
}

func TestTracer_FollowsItsRatio(t *testing.T) {
	collector := otlptest.New(t)
	for _, ratio := range []float64{0, 0.001, 0.25, 1} {
		const n = 200_000
		tracer, followed := open(t, collector.Endpoint(), ratio, io.Discard), 0
		for range n {
			if tracer.Sample() {
				followed++
			}
		}
		// Six deviations of a binomial distribution: wrong once in a thousand million runs.
		if off := float64(followed) - n*ratio; off*off > 36*n*ratio*(1-ratio) {
			t.Errorf("of %d blocks at %v %d are followed", n, ratio, followed)
		}
	}
}

// Blocks that are not followed cost no memory, at any stage.
func TestBlock_NotFollowedIsFree(t *testing.T) {
	collector := otlptest.New(t)
	off := open(t, collector.Endpoint(), 0, io.Discard)
	var none *tracing.Tracer
	now := time.Now()
	for _, tracer := range []*tracing.Tracer{none, off} {
		if allocs := testing.AllocsPerRun(1000, func() {
			var b *tracing.Block
			if tracer.Sample() {
				b = tracer.Begin(now)
			}
			b.Passed("receive", now)
			b.Stage("commit", now, now)
			if b.Parent() != "" || tracer.Resume(tracing.Remote(""), now) != nil {
				t.Error("a block that is not followed has a parent")
			}
			b.End(now, "")
		}); allocs != 0 {
			t.Errorf("a block that is not followed costs %v allocations", allocs)
		}
	}
	for _, damaged := range []string{"x", "00-", "00-00000000000000000000000000000000-0000000000000000-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", strings.Repeat("0", 100_000)} {
		if tracing.Remote(damaged) != nil {
			t.Errorf("%.60q is followed", damaged)
		}
	}
}

func TestCheckEndpoint_ShowsNoSecret(t *testing.T) {
	for _, endpoint := range []string{"", "collector:4318", "ftp://collector/", "http://", "http://user:hunter2-secret@collector:4318/", "https://collector/?key=hunter2-secret", "http://a b:hunter2-secret"} {
		if err := tracing.CheckEndpoint(endpoint); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", endpoint, err)
		}
		if _, err := tracing.New(t.Context(), tracing.Options{Endpoint: endpoint}, slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
	if err := tracing.CheckEndpoint("https://collector.example:4318/v1/traces"); err != nil {
		t.Error(err)
	}
}

func BenchmarkSample(b *testing.B) {
	off, err := tracing.New(b.Context(), tracing.Options{Endpoint: "http://127.0.0.1:1/", Ratio: 0}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer off.Close(context.Background())
	for name, tracer := range map[string]*tracing.Tracer{"off": nil, "ratio 0": off} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if tracer.Sample() {
					b.Fatal("a block is followed")
				}
			}
		})
	}
}
