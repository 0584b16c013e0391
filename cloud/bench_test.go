package cloud_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// BenchmarkIngest sends blocks of 1,000 samples as fast as the window lets it,
// and waits until each is stored. Gateways and cloud share the processors.
func BenchmarkIngest(b *testing.B) {
	for _, sockets := range []int{1, 16} {
		ids := make([]string, sockets)
		for i := range ids {
			ids[i] = fmt.Sprintf("gateway-%d", i)
		}
		b.Run(fmt.Sprintf("memory/%d", sockets), func(b *testing.B) {
			benchmarkIngest(b, &sink{memory: newMemory(ids...)}, ids)
		})
		b.Run(fmt.Sprintf("sqlite/%d", sockets), func(b *testing.B) {
			benchmarkIngest(b, openSQLite(b, b.TempDir(), ids...), ids)
		})
	}
}

// A sink stores nothing and says it has.
type sink struct{ *memory }

func (s *sink) Record(_ context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	return make([]cloud.Outcome, len(batch)), nil
}

func benchmarkIngest(b *testing.B, store cloud.Store, ids []string) {
	n := start(b, options(), store)
	const perBlock = 1000
	template := block(b, touchline.NewEpoch(), 1, readings(perBlock, time.Now().UnixNano()))
	gateways := make([]*gateway, len(ids))
	for i, id := range ids {
		gateways[i], _ = n.join(id)
	}
	b.SetBytes(int64(len(template.Data)))
	b.ReportAllocs()
	b.ResetTimer()
	began := time.Now()
	var wg sync.WaitGroup
	for i, g := range gateways {
		share := b.N / len(gateways)
		if i == 0 {
			share += b.N % len(gateways)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			pump(g, template, share)
		}()
	}
	wg.Wait()
	took := time.Since(began).Seconds()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/took, "blocks/s")
	b.ReportMetric(float64(b.N)*perBlock/took, "samples/s")
	st := n.server.Stats()
	b.ReportMetric(float64(b.N)/float64(max(st.BatchBlocks.Count(), 1)), "blocks/commit")
	if st.SamplesStored != uint64(b.N)*perBlock {
		b.Errorf("%d samples stored, want %d", st.SamplesStored, b.N*perBlock)
	}
}

// pump sends count blocks and keeps the window full.
func pump(g *gateway, b wire.Block, count int) {
	b.Epoch = touchline.NewEpoch()
	var sent, stored uint64
	for stored < uint64(count) {
		for sent < uint64(count) && sent-stored < 128 {
			b.First = 1 + sent*uint64(b.Count)
			b.CRC = b.Sum()
			g.send(b)
			sent++
		}
		m, err := g.hear()
		if err != nil {
			g.t.Error(err)
			return
		}
		if ack, ok := m.(*wire.Ack); ok {
			for _, er := range ack.Stored {
				stored += touchline.Ranges(er.Ranges).Count() / uint64(b.Count)
			}
		}
	}
}

// BenchmarkQuery reads a million samples in each format.
func BenchmarkQuery(b *testing.B) {
	const rows = 1_000_000
	samples := readings(1000, time.Now().UnixNano())
	store := newMemory("arena")
	store.samples = func(_ context.Context, _ cloud.Query, yield func(cloud.Record) error) error {
		for i := range rows {
			if err := yield(cloud.Record{Gateway: "arena", Sample: samples[i%1000]}); err != nil {
				return err
			}
		}
		return nil
	}
	n := start(b, options(), store)
	for _, format := range slices.Sorted(slices.Values([]string{"csv", "json", "senml"})) {
		b.Run(format, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := http.Get("http://" + n.addr + "/v1/samples?format=" + format)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Fatal(err)
				}
				resp.Body.Close()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*rows), "ns/row")
		})
	}
}
