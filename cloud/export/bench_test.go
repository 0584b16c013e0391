package export_test

import (
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"syscall"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
	"touchline/cloud/recordertest"
	"touchline/cloud/sqlite"
)

// counter is where an export goes that is only to be counted.
type counter struct{ bytes int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.bytes += int64(len(p))
	return len(p), nil
}

// match is a store of n samples of a match: 22 players with heart rate, place
// and steps, ten times a second, in blocks of 4,000.
func match(b *testing.B, n int) *sqlite.Store {
	b.Helper()
	s, err := sqlite.Open(b.Context(), b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	if err := s.AddGateway(b.Context(), "arena-1", [32]byte{1}); err != nil {
		b.Fatal(err)
	}
	const size = 4000
	random := rand.New(rand.NewPCG(1, 2))
	type player struct{ rate, x, y float64 }
	players := make([]player, len(sensorNames))
	epoch, tick := touchline.NewEpoch(), 0
	for first := 1; first <= n; first += size {
		samples := make([]touchline.Sample, 0, size)
		for len(samples) < size {
			i, round := tick%len(players), tick/len(players)
			tick++
			p := &players[i]
			p.rate, p.x, p.y = p.rate+random.NormFloat64()*0.6, p.x+random.NormFloat64()*0.4, p.y+random.NormFloat64()*0.4
			add := func(metric, unit string, v float64) {
				samples = append(samples, touchline.Sample{Sensor: sensorNames[i], Metric: metric, Unit: unit,
					Time: 1_780_000_000_000_000_000 + int64(round)*100_000_000 + int64(i)*1_000_003, Value: touchline.NumberValue(v)})
			}
			add("heart_rate", "beat/min", math.Round(120+p.rate))
			add("x", "m", math.Round(p.x*100)/100)
			add("y", "m", math.Round(p.y*100)/100)
			add("steps", "", float64(round/10))
		}
		if _, err := s.Record(b.Context(), []cloud.Delivery{recordertest.NewDelivery(b, "arena-1", epoch, uint64(first), samples)}); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// nothing is a table that is not written: what reading alone costs.
type nothing struct{}

func (nothing) Add(*cloud.Record) error { return nil }
func (nothing) Close() error            { return nil }

// cpuSeconds is what this process has used: on a busy machine a better measure
// than its clock.
func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func BenchmarkExport(b *testing.B) {
	const n = 2_000_000
	store := match(b, n)
	reading := 0.0 // CPU seconds a million samples
	for _, c := range []struct {
		name    string
		options *export.Options
	}{
		{"nothing", nil},
		{"csv", &export.Options{Format: export.CSV, Time: export.RFC3339}},
		{"csv-ns", &export.Options{Format: export.CSV, Time: export.Nanoseconds}},
		{"csv-gzip", &export.Options{Format: export.CSV, Time: export.RFC3339, Compress: true}},
		{"parquet", &export.Options{Format: export.Parquet, Time: export.RFC3339}},
	} {
		b.Run(c.name, func(b *testing.B) {
			var to counter
			before := cpuSeconds(b)
			for b.Loop() {
				to = counter{}
				var table export.Table = nothing{}
				if c.options != nil {
					table = export.New(io.Writer(&to), *c.options)
				}
				if sum, err := export.Copy(b.Context(), store, cloud.Query{}, table); err != nil || sum.Samples != n {
					b.Fatalf("%d samples: %v", sum.Samples, err)
				}
			}
			rate := float64(n) * float64(b.N) / b.Elapsed().Seconds()
			cpu := (cpuSeconds(b) - before) / (float64(n) * float64(b.N) / 1e6)
			if c.options == nil {
				reading = cpu
			}
			b.ReportMetric(rate, "samples/s")
			b.ReportMetric(cpu, "CPU-s/Msample")
			b.ReportMetric(float64(to.bytes)/n, "B/sample")
			b.Logf("MEASURED export %s: %.0f samples/s on this machine as it was, %.2f CPU seconds a million samples, %.1f times what reading alone takes, %.2f bytes a sample",
				c.name, rate, cpu, cpu/reading, float64(to.bytes)/n)
		})
	}
}
