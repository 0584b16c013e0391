package uplink

import (
	"net"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// What is new takes all of max_rate for minutes while a large block is under
// way in parts: that the block waits is our own doing, and no reason to give
// the session up.
func TestParts_ABlockHeldUpByOurOwnLimitIsNotOverdue(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.logs = nil
		w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, 64_000, 4<<20, 20*time.Millisecond) }
		w.cloud.heartbeat = 15 * time.Second
		epoch := touchline.NewEpoch()
		large := blocks(epoch, 1, 3, 1000, wire.MaxBlockBytes)
		w.source.add(large...)
		o := w.options()
		o.Heartbeat, o.AcceptTimeout = 15*time.Second, Defaults().AcceptTimeout
		o.Limits.MaxRate = 16 << 10
		u := w.uplink(o)
		w.start(u)
		awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
		next := large[2].Last() + 1
		for begun := time.Now(); time.Since(begun) < 5*time.Minute; next += 10 {
			time.Sleep(100 * time.Millisecond)
			w.source.add(blocks(epoch, next, 1, 10, 2000)...)
		}
		w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions: %s", st.Sessions, st.LastError)
		}
	})
}
