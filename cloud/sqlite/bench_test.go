package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// match makes the blocks of a match: in each of its blocks, size samples of
// players that all measure the same three metrics, 10 times a second.
func match(t testing.TB, gateway string, size, blocks int) []cloud.Delivery {
	const players, metrics = 22, 3
	var deliveries []cloud.Delivery
	var sensors []string
	for i := range players {
		sensors = append(sensors, fmt.Sprintf("player-%02d", i))
	}
	epoch, first := touchline.NewEpoch(), uint64(1)
	tick := 0
	for range blocks {
		samples := make([]touchline.Sample, 0, size)
		for i := range size {
			n := tick + i
			round := int64(n / (players * metrics))
			samples = append(samples, touchline.Sample{
				Sensor: sensors[n/metrics%players], Metric: []string{"heart_rate", "x", "y"}[n%metrics],
				Time:  1_780_000_000_000_000_000 + round*100_000_000 + int64(n%players)*1_000_000,
				Value: touchline.NumberValue(float64((n*7919)%5000) / 100),
			})
		}
		tick += size
		deliveries = append(deliveries, recordertest.NewDelivery(t, gateway, epoch, first, samples))
		first += uint64(size)
	}
	return deliveries
}

func BenchmarkRecord(b *testing.B) {
	for _, size := range []int{50, 1000} {
		for _, batch := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("block=%d/batch=%d", size, batch), func(b *testing.B) {
				s := openTest(b)
				if err := s.AddGateway(b.Context(), "north", [32]byte{1}); err != nil {
					b.Fatal(err)
				}
				d := match(b, "north", size, 1)[0]
				work := make([]cloud.Delivery, batch)
				first := uint64(1)
				for b.Loop() {
					b.StopTimer()
					for i := range work {
						work[i] = d
						work[i].Block.First = first
						work[i].Block.CRC = work[i].Block.Sum()
						first += uint64(size)
					}
					b.StartTimer()
					if _, err := s.Record(b.Context(), work); err != nil {
						b.Fatal(err)
					}
				}
				blocks := float64(b.N * batch)
				b.ReportMetric(blocks/b.Elapsed().Seconds(), "blocks/s")
				b.ReportMetric(blocks*float64(size)/b.Elapsed().Seconds(), "samples/s")
				b.ReportMetric(fileBytes(b, s)/(blocks*float64(size)), "fileB/sample")
			})
		}
	}
}

func fileBytes(t testing.TB, s *Store) float64 {
	var total int64
	for _, suffix := range []string{"", "-wal"} {
		info, err := os.Stat(filepath.Clean(s.path + suffix))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	return float64(total)
}

func BenchmarkSamples(b *testing.B) {
	const total = 2_000_000
	for _, size := range []int{50, 1000, 10_000} {
		s := openTest(b)
		if err := s.AddGateway(b.Context(), "north", [32]byte{1}); err != nil {
			b.Fatal(err)
		}
		n := total
		if size == 50 {
			n = total / 4
		}
		if _, err := s.Record(b.Context(), match(b, "north", size, n/size)); err != nil {
			b.Fatal(err)
		}
		for _, q := range []struct {
			name  string
			query cloud.Query
		}{
			{"all", cloud.Query{}},
			{"sensor=one", cloud.Query{Sensor: "player-07"}},
			{"sensor=none", cloud.Query{Sensor: "player-99"}},
		} {
			b.Run(fmt.Sprintf("block=%d/%s", size, q.name), func(b *testing.B) {
				yielded := 0
				for b.Loop() {
					yielded = 0
					err := s.Samples(b.Context(), q.query, func(cloud.Record) error { yielded++; return nil })
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/stored-sample")
				b.ReportMetric(float64(yielded), "yielded")
			})
		}
	}
}
