package export_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
)

// liveHeap returns what is in use. A pool gives up what it holds with the
// second collection.
func liveHeap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peaks returns how much of the heap a table held at its highest while each of
// the groups was added.
func peaks(t *testing.T, groups int, format string, next func() *cloud.Record, looks, each int) (list []uint64) {
	t.Helper()
	before := liveHeap()
	table := export.New(io.Discard, export.Options{Format: format, Time: export.RFC3339})
	for range groups {
		peak := uint64(0)
		for range looks {
			for range each {
				if err := table.Add(next()); err != nil {
					t.Fatal(err)
				}
			}
			now := liveHeap()
			peak = max(peak, now-min(before, now))
		}
		list = append(list, peak)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestTable_MemoryDoesNotGrow: 50 MB of texts need what the first 17 need, and
// in the long form 42 million numbers what the first million needs.
func TestTable_MemoryDoesNotGrow(t *testing.T) {
	const slack = 4 << 20
	bounded := func(what string, list []uint64) {
		t.Helper()
		t.Logf("MEASURED %s: bytes of live heap at the highest, group by group: %d", what, list)
		if first, last := list[0], list[len(list)-1]; last > first+slack || first > 64<<20 {
			t.Errorf("%s: %d bytes in the first group and %d in the last", what, first, last)
		}
	}
	r := cloud.Record{Gateway: "arena-1", Epoch: touchline.NewEpoch()}
	n := 0
	const size = 8 << 10
	noise := randomText(4 << 20) // such that no page has anything twice
	texts := func() *cloud.Record {
		r.Time, r.Seq, n = r.Time+1_000_003, r.Seq+1, n+1
		at := n * size % (len(noise) - size)
		r.Value = touchline.BytesValue(noise[at : at+size])
		return &r
	}
	numbers := func() *cloud.Record {
		r.Time, r.Seq, n = r.Time+1_000_003, r.Seq+1, n+1
		r.Sensor = sensorNames[n%len(sensorNames)]
		r.Value = touchline.NumberValue(float64(n*7919%1_000_003) / 100)
		return &r
	}
	for _, format := range []string{export.CSV, export.Parquet} {
		bounded(format+" of texts", peaks(t, 3, format, texts, 3, 700))
		if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
			bounded(format+" of numbers", peaks(t, 40, format, numbers, 16, 1<<16))
		}
	}
}

func randomText(size int) string {
	random := rand.NewChaCha8([32]byte{1})
	text := make([]byte, size)
	_, _ = random.Read(text)
	return string(text)
}

var sensorNames = func() (names []string) {
	for i := range 22 {
		names = append(names, fmt.Sprintf("player-%02d", i))
	}
	return names
}()
