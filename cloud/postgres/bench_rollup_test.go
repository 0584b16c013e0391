package postgres

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"touchline/cloud/rollup"
	"touchline/cloud/sqlite"
	"touchline/internal/pgtest"
)

// BenchmarkRecord_WithRollups records the same blocks with no Roller, and with
// one that works at the same time on the same processors and disk; then lets it
// finish. Ten samples of each series are in a second.
func BenchmarkRecord_WithRollups(b *testing.B) {
	const total, batch, size = 2048, 64, 1000
	server := pgtest.Start(b, os.TempDir())
	work := match(b, "north", size, total)
	type store interface {
		bencher
		rollup.Store
	}
	engines := map[string]func() store{
		"sqlite": func() store {
			s, err := sqlite.Open(b.Context(), b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			return s
		},
		"postgres": func() store { return open(b, server.Database(b)) },
	}
	record := func(b *testing.B, s store) time.Duration {
		begun := time.Now()
		for i := 0; i < total; i += batch {
			if _, err := s.Record(b.Context(), work[i:i+batch]); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(begun)
	}
	for name, open := range engines {
		b.Run(name, func(b *testing.B) {
			var alone, beside, behind time.Duration
			var recordCPU, rollCPU float64
			var rows uint64
			for range b.N {
				for _, rolls := range []bool{false, true} {
					s := open()
					if err := s.AddGateway(b.Context(), "north", [32]byte{1}); err != nil {
						b.Fatal(err)
					}
					if !rolls {
						before := cpuSeconds(b)
						alone += record(b, s)
						recordCPU += cpuSeconds(b) - before
						if err := s.Close(); err != nil {
							b.Fatal(err)
						}
						continue
					}
					r, err := rollup.New(rollup.Options{Enabled: true, Limits: rollup.DefaultLimits}, s, slog.New(slog.DiscardHandler))
					if err == nil {
						err = s.RollupStart(b.Context(), true)
					}
					if err != nil {
						b.Fatal(err)
					}
					ctx, cancel := context.WithCancel(b.Context())
					ended := make(chan error, 1)
					go func() { ended <- r.Run(ctx) }()
					beside += record(b, s)
					cancel()
					if err := <-ended; err != nil {
						b.Fatal(err)
					}
					begun, before, used := time.Now(), r.Stats().Samples, cpuSeconds(b)
					for more := true; more; {
						if more, err = r.Turn(b.Context()); err != nil {
							b.Fatal(err)
						}
					}
					if left := r.Stats().Samples - before; left > 0 { // the rate, for all of them
						behind += time.Duration(float64(time.Since(begun)) * total * size / float64(left))
						rollCPU += (cpuSeconds(b) - used) * total * size / float64(left)
					}
					rows += r.Stats().Rows
					if err := s.Close(); err != nil {
						b.Fatal(err)
					}
				}
			}
			rate := func(d time.Duration) float64 { return float64(b.N) * total * size / d.Seconds() }
			b.ReportMetric(rate(alone), "samples/s")
			b.ReportMetric(rate(beside), "samples/s-beside")
			b.ReportMetric(rate(behind), "samples/s-rolled")
			b.ReportMetric(0, "ns/op")
			million := float64(b.N) * total * size / 1e6
			b.Logf("MEASURED rollups on %s: %.0f samples/s recorded without, %.0f with a roller at work (%.2f of it); a roller alone takes %.0f samples/s. "+
				"A million samples take this process %.2f s of processor time to record and %.2f s to roll up (%d rows)",
				name, rate(alone), rate(beside), rate(beside)/rate(alone), rate(behind), recordCPU/million, rollCPU/million, rows)
		})
	}
}

// cpuSeconds is the processor time of this process; a database server's is its
// own.
func cpuSeconds(b *testing.B) float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}
