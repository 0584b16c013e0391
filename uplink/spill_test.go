package uplink

import (
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"touchline"
	"touchline/wire"
)

// A cloud that pauses, or a line that stands still, in the middle of a session
// makes a backlog as an outage does: what is new afterwards does not wait for it.
func TestLive_DoesNotWaitForWhatAStallHasLeft(t *testing.T) {
	for _, newest := range []bool{false, true} {
		inBubble(t, func(t *testing.T, w *world) {
			const perSecond = 1_250_000
			w.logs = nil
			w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, perSecond, 4<<20, 20*time.Millisecond) }
			w.cloud.window, w.cloud.heartbeat = wire.Window{Bytes: 8 << 20, Blocks: 4096}, time.Minute
			sessions := make(chan *cloudSession, 1)
			w.cloud.session = func(s *cloudSession) bool { sessions <- s; return false }
			var mu sync.Mutex
			added := make(map[uint64]time.Time)
			var got waits
			w.cloud.block = func(_ *cloudSession, b *wire.FrameBlock) verdict {
				mu.Lock()
				defer mu.Unlock()
				if at, ok := added[b.First]; ok {
					got.live = append(got.live, time.Since(at))
				}
				return store
			}
			o := w.options()
			o.Heartbeat, o.AcceptTimeout = time.Minute, time.Minute
			o.Limits.NewestFirst = newest
			u := w.uplink(o)
			w.start(u)
			s := <-sessions
			time.Sleep(time.Second)
			s.send(&wire.NewWindow{})
			epoch, next := touchline.NewEpoch(), uint64(1)
			var stalled []wire.Block
			for range 600 { // 9.6 MB in a minute
				list := blocks(epoch, next, 1, 1000, 16<<10)
				stalled = append(stalled, list...)
				w.source.add(list...)
				next += 1000
				time.Sleep(100 * time.Millisecond)
			}
			s.send(&wire.NewWindow{Window: w.cloud.window})
			synctest.Wait()
			for !w.cloud.has(stalled) {
				time.Sleep(100 * time.Millisecond)
				mu.Lock()
				added[next] = time.Now()
				mu.Unlock()
				w.source.add(blocks(epoch, next, 1, 10, 200)...)
				next += 10
			}
			w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
			st := u.Stats()
			if st.Sessions != 1 || len(got.live) < 50 {
				t.Fatalf("%d new samples in %d sessions: %s", len(got.live), st.Sessions, st.LastError)
			}
			t.Logf("MEASURED after a pause of a minute, newest first %v, over 10 Mbit/s: new samples p50 %v, p99 %v", newest, got.at(0.5).Round(time.Millisecond), got.at(0.99).Round(time.Millisecond))
			if got.at(0.99) > 700*time.Millisecond {
				t.Errorf("p99 of new samples is %v", got.at(0.99))
			}
			if twice := st.Blocks - uint64(len(stalled)+len(got.live)); twice > 20 {
				t.Errorf("%d blocks were sent twice", twice)
			}
		})
	}
}
