package sqlite

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// heapPeak runs f and returns how far the live heap rose above what it was,
// looked at each time that f calls look.
func heapPeak(f func(look func())) uint64 {
	live := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC() // once more in live: what a sync.Pool held goes with the second
	before, peak := live(), uint64(0)
	f(func() { peak = max(peak, live()) })
	return peak - min(before, peak)
}

// Two million samples are yielded from a few MB where blocks follow one
// another in time.
func TestSamples_MemoryDoesNotGrowWithTheResult(t *testing.T) {
	const blocks, size = 500, 4000
	s := openTest(t)
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	recordAll(t, s, match(t, "north", size, blocks))
	n := 0
	peak := heapPeak(func(look func()) {
		var last cloud.Record
		err := s.Samples(t.Context(), cloud.Query{}, func(r cloud.Record) error {
			if n > 0 && recordertest.Compare(last, r) >= 0 {
				return fmt.Errorf("record %d is not behind the one before", n)
			}
			last = r
			if n++; n%100_000 == 0 {
				look()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	if n != blocks*size {
		t.Fatalf("Samples yielded %d records, want %d", n, blocks*size)
	}
	t.Logf("heap rose by %.1f MiB for %d samples", float64(peak)/(1<<20), n)
	if limit := uint64(8 << 20); peak > limit {
		t.Fatalf("the heap rose by %d bytes, want at most %d", peak, limit)
	}
}

// The worst case: all blocks begin and end together, and their values are
// text. All of it together is far more than a query may hold.
func TestSamples_MemoryIsBoundedWhereAllBlocksOverlap(t *testing.T) {
	const blocks, size, textBytes = 200, 100, 2500 // 20,000 samples, 50 MB of text
	s := openTest(t)
	s.limits.TextBytes = 2 << 20
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	epoch := touchline.NewEpoch()
	var work []cloud.Delivery
	for i := range blocks {
		samples := make([]touchline.Sample, size)
		for j := range samples {
			text := fmt.Sprintf("%d %d %s", i, j, strings.Repeat("x", textBytes))
			samples[j] = touchline.Sample{Sensor: "board", Metric: "log", Time: int64(j*1000 + i), Value: touchline.TextValue(text)}
		}
		d := recordertest.NewDelivery(t, "north", epoch, uint64(1+i*size), samples)
		work = append(work, d)
		if len(work) == 10 {
			recordAll(t, s, work)
			work = nil
		}
	}
	n := 0
	peak := heapPeak(func(look func()) {
		err := s.Samples(t.Context(), cloud.Query{}, func(r cloud.Record) error {
			i, j := n%blocks, n/blocks
			if r.Time != int64(j*1000+i) || !strings.HasPrefix(r.Value.Text(), fmt.Sprintf("%d %d x", i, j)) {
				return fmt.Errorf("record %d has time %d and text %.20q", n, r.Time, r.Value.Text())
			}
			if n++; n%1000 == 0 {
				look()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	if n != blocks*size {
		t.Fatalf("Samples yielded %d records, want %d", n, blocks*size)
	}
	t.Logf("heap rose by %.1f MiB for %d samples with %d MB of text", float64(peak)/(1<<20), n, n*textBytes/1e6)
	if limit := uint64(16 << 20); peak > limit {
		t.Fatalf("the heap rose by %d bytes, want at most %d", peak, limit)
	}
}

func recordAll(t *testing.T, s *Store, work []cloud.Delivery) {
	t.Helper()
	if _, err := s.Record(t.Context(), work); err != nil {
		t.Fatal(err)
	}
}
