package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/cloud/sqlite"
	"touchline/internal/pgtest"
)

// match makes the blocks of a match: in each, size samples of players that all
// measure the same three metrics, 10 times a second.
func match(t testing.TB, gateway string, size, blocks int) []cloud.Delivery {
	const players, metrics = 22, 3
	var deliveries []cloud.Delivery
	epoch, first := touchline.NewEpoch(), uint64(1)
	for b := range blocks {
		samples := make([]touchline.Sample, 0, size)
		for i := range size {
			n := b*size + i
			samples = append(samples, touchline.Sample{
				Sensor: fmt.Sprintf("player-%02d", n/metrics%players), Metric: []string{"heart_rate", "x", "y"}[n%metrics],
				Time:  1_780_000_000_000_000_000 + int64(n/(players*metrics))*100_000_000 + int64(n%players)*1_000_000,
				Value: touchline.NumberValue(float64((n*7919)%5000) / 100),
			})
		}
		deliveries = append(deliveries, recordertest.NewDelivery(t, gateway, epoch, first, samples))
		first += uint64(size)
	}
	return deliveries
}

// A bencher is a record store as the comparison needs it.
type bencher interface {
	cloud.Recorder
	AddGateway(ctx context.Context, id string, tokenHash [32]byte) error
	Close() error
}

// BenchmarkRecord_AgainstCOPY records the same blocks in SQLite, in
// PostgreSQL, and, as the least that the server can do, by psql's COPY of the
// same rows into a table without indexes; all on the disk of the temporary
// folder, in batches of 128 blocks with a sync each. Rates are of samples.
func BenchmarkRecord_AgainstCOPY(b *testing.B) {
	const total, batch = 4096, 128
	server := pgtest.Start(b, os.TempDir())
	for _, size := range []int{100, 1000} {
		work := match(b, "north", size, total)
		rates := make(map[string]float64)
		rate := func(name string, record func() time.Duration) {
			b.Run(fmt.Sprintf("block=%d/%s", size, name), func(b *testing.B) {
				var took time.Duration
				for range b.N {
					took += record()
				}
				rates[name] = float64(b.N*total*size) / took.Seconds()
				b.ReportMetric(rates[name], "samples/s")
				b.ReportMetric(0, "ns/op")
			})
		}
		recordAll := func(s bencher) time.Duration {
			if err := s.AddGateway(b.Context(), "north", [32]byte{1}); err != nil {
				b.Fatal(err)
			}
			begun := time.Now()
			for i := 0; i < total; i += batch {
				if _, err := s.Record(b.Context(), work[i:i+batch]); err != nil {
					b.Fatal(err)
				}
			}
			took := time.Since(begun)
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			return took
		}
		rate("sqlite", func() time.Duration {
			s, err := sqlite.Open(b.Context(), b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			return recordAll(s)
		})
		rate("postgres", func() time.Duration { return recordAll(open(b, server.Database(b))) })
		rate("psql-copy", func() time.Duration { return psqlCopy(b, server, work, batch) })
		if rates["psql-copy"] > 0 {
			b.Logf("MEASURED record %d blocks of %d samples, %d in a batch: SQLite %.0f, PostgreSQL %.0f, COPY with psql %.0f samples/s: PostgreSQL is %.2f of COPY, %.2f of SQLite",
				total, size, batch, rates["sqlite"], rates["postgres"], rates["psql-copy"], rates["postgres"]/rates["psql-copy"], rates["postgres"]/rates["sqlite"])
		}
	}
}

// psqlCopy lets psql copy the rows of table block in as many transactions as
// Record has. What it costs to make them text is not counted.
func psqlCopy(b *testing.B, server *pgtest.Server, work []cloud.Delivery, batch int) time.Duration {
	url := server.Database(b)
	pgtest.Exec(b, url, `CREATE TABLE block (day date, id bigint, cursor bigint, first bigint, count integer, crc bigint, received bigint, data bytea);
		ALTER TABLE block ALTER data SET STORAGE EXTERNAL`)
	script := filepath.Join(b.TempDir(), "script")
	f, err := os.Create(script)
	if err != nil {
		b.Fatal(err)
	}
	for i, d := range work {
		if i%batch == 0 {
			_, err = fmt.Fprintf(f, "COPY block FROM stdin;\n")
		}
		if err == nil {
			_, err = fmt.Fprintf(f, "2026-05-30\t%d\t1\t%d\t%d\t%d\t%d\t\\\\x%x\n", i, d.Block.First, d.Block.Count, d.Block.CRC, d.Received.UnixNano(), d.Block.Data)
		}
		if err == nil && i%batch == batch-1 {
			_, err = fmt.Fprintf(f, "\\.\n")
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), server.Program("psql"), "--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "--file", script, url)
	begun := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("psql: %v: %s", err, out)
	}
	return time.Since(begun)
}
