package cloud_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
)

// BenchmarkLive is BenchmarkIngest of one gateway, with viewers of everything on the
// same processors, who read all that they are sent: what ingest loses to them
// is the processors' time that they take, and cpu-µs/block is that of all
// together, which others on a busy machine don't change much.
func BenchmarkLive(b *testing.B) {
	for _, viewers := range []int{0, 1, 100} {
		b.Run(fmt.Sprintf("memory/viewers=%d", viewers), func(b *testing.B) {
			benchmarkLive(b, &sink{memory: newMemory("arena")}, viewers)
		})
		b.Run(fmt.Sprintf("sqlite/viewers=%d", viewers), func(b *testing.B) {
			benchmarkLive(b, openSQLite(b, b.TempDir(), "arena"), viewers)
		})
	}
}

func benchmarkLive(b *testing.B, store cloud.Store, viewers int) {
	opts := options()
	opts.MaxViewers, opts.LiveLookback = 100, 0 // viewers are there before the first sample
	n := start(b, opts, store)
	for range viewers {
		conn, _, err := websocket.DefaultDialer.Dial("ws://"+n.addr+"/v1/live", nil)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { conn.Close() })
		go func() {
			for {
				if _, _, err := conn.NextReader(); err != nil {
					return
				}
			}
		}()
	}
	eventually(b, "the viewers are there", func() bool { return n.server.Stats().Viewers == viewers })
	const perBlock, series = 1000, 10
	samples := make([]touchline.Sample, 0, perBlock)
	for i := range series {
		samples = append(samples, of(perBlock/series, time.Now().UnixNano(), fmt.Sprintf("belt-%d", i))...)
	}
	template := block(b, touchline.NewEpoch(), 1, samples)
	g, _ := n.join("arena")
	before := cpuSeconds(b)
	b.ResetTimer()
	pump(g, template, b.N)
	took := b.Elapsed().Seconds()
	b.StopTimer()
	b.ReportMetric((cpuSeconds(b)-before)/float64(b.N)*1e6, "cpu-µs/block")
	st := n.server.Stats()
	b.ReportMetric(float64(b.N)/took, "blocks/s")
	b.ReportMetric(float64(b.N)*perBlock/took, "samples/s")
	b.ReportMetric(float64(st.LiveSent)/took, "sent/s")
	b.ReportMetric(float64(st.LiveDropped)/float64(b.N), "dropped/block")
	if st.SamplesStored != uint64(b.N)*perBlock {
		b.Errorf("%d samples stored, want %d", st.SamplesStored, b.N*perBlock)
	}
}

func cpuSeconds(b *testing.B) float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}
