package uplink

import (
	"context"
	"io"
	"sync"
	"testing"

	"touchline"
	"touchline/wire"
)

func BenchmarkUplink(b *testing.B) {
	for _, c := range []struct {
		name  string
		bytes int
	}{{"blocks_of_2KiB", 2 << 10}, {"blocks_of_20KiB", 20 << 10}, {"blocks_of_190KiB", 190 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			w := newWorld(b)
			w.source.mayAck = nil
			w.cloud.window = wire.Window{Bytes: 4 << 20, Blocks: 2048}
			w.cloud.session = serveFast
			w.logs = nil
			u := w.uplink(w.options())
			list := blocks(touchline.NewEpoch(), 1, b.N, 1000, c.bytes)
			src := &ringSource{blocks: list, done: make(chan struct{})}
			u.source = src
			b.SetBytes(int64(c.bytes))
			b.ReportAllocs()
			b.ResetTimer()
			stop := w.start(u)
			<-src.done
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "blocks/s")
			stop()
		})
	}
}

// serveFast checks and acknowledges at once, and records nothing.
func serveFast(s *cloudSession) bool {
	hello, ok := s.hello()
	if !ok || !s.welcome(hello) {
		return true
	}
	var list []wire.FrameBlock
	buf := make([]byte, 0, wire.MinFrameBytes)
	for {
		_, r, err := s.conn.NextReader()
		if err != nil {
			return true
		}
		if buf, err = readAll(buf[:0], r); err != nil {
			return true
		}
		frame := buf
		if wire.IsPart(buf) {
			if frame, err = s.parts.Add(buf, s.cloud.maxFrame); frame == nil && err == nil {
				continue
			}
		}
		if err == nil {
			list, err = wire.ParseFrame(list[:0], frame)
		}
		if err != nil {
			s.cloud.t.Error(err)
			return true
		}
		var set touchline.Ranges
		for i := range list {
			if err := list[i].Check(); err != nil {
				s.cloud.t.Error(err)
			}
			set.Add(list[i].Range())
		}
		er := []wire.EpochRanges{{Epoch: list[0].Epoch, Ranges: set}}
		if s.send(&wire.Ack{Accepted: er, Stored: er}) != nil {
			return true
		}
	}
}

func readAll(buf []byte, r io.Reader) ([]byte, error) {
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return buf, err
		}
	}
}

// A ringSource hands out a list of blocks of one epoch, for the benchmark: it
// costs next to nothing.
type ringSource struct {
	blocks []wire.Block
	done   chan struct{}
	once   sync.Once
}

func (r *ringSource) Next(ctx context.Context, after touchline.Position, maxBytes int) ([]wire.Block, error) {
	i := 0
	if after.Seq > 0 {
		i = int(after.Seq / uint64(r.blocks[0].Count))
	}
	if i == len(r.blocks) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n := min(max(1, maxBytes/len(r.blocks[0].Data)), len(r.blocks)-i)
	return r.blocks[i : i+n], nil
}

func (r *ringSource) Ack(stored []wire.EpochRanges, _ []uint64) error {
	last := r.blocks[len(r.blocks)-1].Last()
	if stored[0].Ranges[len(stored[0].Ranges)-1].Last == last {
		r.once.Do(func() { close(r.done) })
	}
	return nil
}

func (r *ringSource) Reconcile([]wire.EpochRanges) error { return nil }

func (r *ringSource) Held() ([]wire.Held, []wire.Lost) { return nil, nil }
