package seen

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"touchline"
)

// A windowModel is a window as a list.
type windowModel struct {
	span  int64
	now   int64
	list  []modelSample // committed
	fresh []touchline.Sample
}

type modelSample struct {
	touchline.Sample
	at int64
}

func (m *windowModel) has(s touchline.Sample) bool {
	for i := range m.list {
		if m.list[i].Sample == s && m.list[i].at >= m.now-m.span {
			return true
		}
	}
	for i := range m.fresh {
		if m.fresh[i] == s {
			return true
		}
	}
	return false
}

// drawSample draws from few, so that repeats are frequent: also samples that
// differ in just one thing.
func drawSample(t *rapid.T) touchline.Sample {
	values := []touchline.Value{
		touchline.NumberValue(0), touchline.NumberValue(math.Copysign(0, -1)), touchline.NumberValue(1),
		touchline.NumberValue(math.NaN()), touchline.BoolValue(false), touchline.BoolValue(true),
		touchline.TextValue(""), touchline.BytesValue(""), touchline.TextValue("a"), touchline.BytesValue("a"),
		touchline.TextValue(strings.Repeat("x", 31)), touchline.TextValue(strings.Repeat("x", 32)),
		touchline.TextValue(strings.Repeat("x", 33)), touchline.TextValue(strings.Repeat("x", 32) + "y"),
	}
	return touchline.Sample{
		Sensor: rapid.SampledFrom([]string{"a", "ab", "b"}).Draw(t, "sensor"),
		Metric: rapid.SampledFrom([]string{"b", "c"}).Draw(t, "metric"),
		Unit:   rapid.SampledFrom([]string{"", "b"}).Draw(t, "unit"),
		Time:   rapid.Int64Range(1, 12).Draw(t, "time"),
		Value:  rapid.SampledFrom(values).Draw(t, "value"),
	}
}

// The window says what a list would, whatever commits and fails.
func TestWindow_IsAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &windowModel{span: 100}
		w := NewWindow(100*time.Millisecond, 16<<20)
		w.tail, w.head, w.committed, w.indexed = math.MaxUint32-700, math.MaxUint32-700, math.MaxUint32-700, math.MaxUint32-700 // the numbers wrap
		check := func(s touchline.Sample) {
			want := !m.has(s)
			if got := w.Fresh(&s); got != want {
				t.Fatalf("%+v is fresh: %t, want %t", s, got, want)
			}
			if want {
				m.fresh = append(m.fresh, s)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				for range rapid.IntRange(1, 20).Draw(t, "samples") {
					check(drawSample(t))
				}
			},
			"add many": func(t *rapid.T) {
				first := rapid.Int64Range(100, 200_000).Draw(t, "first")
				for i := range int64(rapid.IntRange(1, 1200).Draw(t, "samples")) {
					w.Fresh(&touchline.Sample{Sensor: "many", Metric: "m", Time: first + i, Value: touchline.NumberValue(1)})
				}
			},
			"commit": func(t *rapid.T) {
				w.Commit(m.now)
				for _, s := range m.fresh {
					m.list = append(m.list, modelSample{s, m.now})
				}
				m.fresh = nil
			},
			"take back": func(t *rapid.T) {
				w.TakeBack()
				m.fresh = nil
			},
			"advance": func(t *rapid.T) {
				if len(m.fresh) > 0 {
					return // time is asked for once in a commit
				}
				m.now += rapid.Int64Range(0, 60).Draw(t, "ms")
				w.Advance(m.now)
			},
			"": func(t *rapid.T) { checkWindow(t, w) },
		})
		w.TakeBack()
		m.now += 1000
		w.Advance(m.now)
		checkWindow(t, w)
		if w.Len() != 0 || w.bytes != 0 || len(w.byKey) != 0 || len(w.marks) != 0 || len(w.texts) != 0 || len(w.chunks) > 1 || len(w.buckets) != minBuckets {
			t.Fatalf("an empty window has %d samples, %d bytes, %d series, %d marks, %d texts, %d chunks, %d buckets",
				w.Len(), w.bytes, len(w.byKey), len(w.marks), len(w.texts), len(w.chunks), len(w.buckets))
		}
	})
}

func checkWindow(t *rapid.T, w *Window) {
	if w.Bytes() > w.maxBytes {
		t.Fatalf("the window takes %d bytes of %d", w.Bytes(), w.maxBytes)
	}
	if len(w.byKey)+len(w.free) != len(w.series) {
		t.Fatalf("%d series are known, %d places are free of %d", len(w.byKey), len(w.free), len(w.series))
	}
}

// What does not fit leaves early, the oldest first, and is counted; what
// stays is known, and the limit holds whatever comes.
func TestWindow_ForgetsTheOldestWhereThereIsNoRoom(t *testing.T) {
	for _, value := range []func(int) touchline.Value{
		func(i int) touchline.Value { return touchline.NumberValue(float64(i)) },
		func(i int) touchline.Value { return touchline.TextValue(fmt.Sprintf("%040d", i)) },
	} {
		w := NewWindow(time.Hour, 256<<10)
		const n = 40_000
		sample := func(i int) *touchline.Sample {
			return &touchline.Sample{Sensor: fmt.Sprintf("s%d", i%50), Metric: "m", Time: int64(i), Value: value(i)}
		}
		for i := range n {
			if !w.Fresh(sample(i)) {
				t.Fatalf("sample %d was never there", i)
			}
			if w.Bytes() > 256<<10 {
				t.Fatalf("%d bytes are taken of %d", w.Bytes(), 256<<10)
			}
			if i%100 == 99 {
				w.Commit(int64(i))
			}
		}
		if w.Len() < 2000 || w.Shortened() != uint64(n-w.Len()) {
			t.Fatalf("%d samples of %d are in the window, %d left it early", w.Len(), n, w.Shortened())
		}
		for i := n - w.Len(); i < n; i++ {
			if w.Fresh(sample(i)) {
				t.Fatalf("sample %d is not known, %d are in the window", i, w.Len())
			}
		}
		t.Logf("MEASURED window of 256 KiB: %d samples, %.1f bytes each", w.Len(), float64(w.Bytes())/float64(w.Len()))
	}
}

// Whoever chooses the samples can't make looking them up slow: the longest
// chain stays short where sensor, metric and time are all the same.
func TestWindow_ChainsStayShort(t *testing.T) {
	w := NewWindow(time.Hour, 8<<20)
	for i := range 60_000 {
		w.Fresh(&touchline.Sample{Sensor: "s", Metric: "m", Time: 1, Value: touchline.NumberValue(float64(i))})
	}
	w.index()
	longest := 0
	for _, n := range w.buckets {
		length := 0
		for n-w.tail < w.head-w.tail {
			length++
			e := w.entry(n)
			if e.older-w.tail >= n-w.tail {
				break
			}
			n = e.older
		}
		longest = max(longest, length)
	}
	if longest > 30 {
		t.Errorf("%d samples in %d buckets, %d in one", w.Len(), len(w.buckets), longest)
	}
}

// BenchmarkFresh measures what the window costs where nothing is a repeat:
// 2,000 sensors, five metrics, a commit for each 1,000 messages.
func BenchmarkFresh(b *testing.B) {
	metrics := []string{"heart_rate", "x", "y", "speed", "acceleration"}
	var sensors []string
	for i := range 2000 {
		sensors = append(sensors, fmt.Sprintf("bench-%05d", i))
	}
	w := NewWindow(10*time.Second, 8<<20)
	var samples []touchline.Sample
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; {
		b.StopTimer()
		samples = samples[:0]
		at := int64(i) * 10_000
		for j := range 1000 {
			sensor := sensors[(i/5+j*7)%len(sensors)]
			for k, metric := range metrics {
				samples = append(samples, touchline.Sample{Sensor: sensor, Metric: metric, Time: at, Value: touchline.NumberValue(float64(i + j*k))})
			}
		}
		b.StartTimer()
		w.Advance(int64(i) / 500)
		for j := range samples {
			w.Fresh(&samples[j])
		}
		w.Commit(int64(i) / 500) // 500,000 samples/s
		i += len(samples)
	}
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(max(w.Len(), 1)), "B/entry")
	b.ReportMetric(float64(w.Len()), "entries")
}
