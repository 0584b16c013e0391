package uplink

import (
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// cable is a connection that can be cut without anybody being told: what is
// written vanishes, and nothing comes any more.
type cable struct {
	net.Conn
	cut *atomic.Bool
}

func (c cable) Write(p []byte) (int, error) {
	if c.cut.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c cable) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if err != nil || !c.cut.Load() {
			return n, err
		}
	}
}

func TestHeartbeat_FindsAHalfOpenLinkWithinTwoIntervals(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var cut atomic.Bool
		w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return cable{c, &cut} }
		w.cloud.heartbeat = 20 * time.Second
		o := w.options()
		o.Heartbeat = time.Hour // the cloud's counts
		o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
		u := w.uplink(o)
		w.start(u)
		time.Sleep(5*time.Minute + time.Second)
		if st := u.Stats(); st.State != Connected || st.Heartbeat != 20 {
			t.Fatalf("stats %+v, want a session with a heartbeat of 20 s", st)
		}
		cut.Store(true)
		began := time.Now()
		time.Sleep(40 * time.Second)
		synctest.Wait()
		st := u.Stats()
		if st.State != Waiting {
			t.Fatalf("the link is dead for two heartbeats, and the uplink is %s", st.State)
		}
		if took := st.Since.Sub(began); took < 10*time.Second {
			t.Errorf("given up after %v: too early", took)
		}
		if !contains(st.LastError, "two heartbeats") {
			t.Errorf("last error %q", st.LastError)
		}
	})
}

// A large block is in the middle of being written as the cloud stops to read.
func TestHeartbeat_FindsADeadLinkWhileWriting(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		t.Cleanup(func() { close(release) })
		w.cloud.session = func(s *cloudSession) bool {
			if hello, ok := s.hello(); ok && s.welcome(hello) {
				s.conn.NextReader() // the first ping and the block's begin, and no further
				<-release
			}
			return true
		}
		o := w.options()
		o.Heartbeat = 10 * time.Second
		o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
		w.source.add(blocks(touchline.NewEpoch(), 1, 1, 1, wire.MaxBlockBytes)...)
		u := w.uplink(o)
		w.start(u)
		synctest.Wait()
		if st := u.Stats(); st.InFlight.Blocks != 1 {
			t.Fatalf("stats %+v, want a block being written", st)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if st := u.Stats(); st.State != Waiting {
			t.Errorf("the link is dead for two heartbeats, and the uplink is %s", st.State)
		}
	})
}

func TestHeartbeat_WantsPongsAndNotJustNoise(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.noPong = true
		w.cloud.session = func(s *cloudSession) bool {
			hello, ok := s.hello()
			if !ok || !s.welcome(hello) {
				return true
			}
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Second):
						s.conn.WriteControl(websocket.PingMessage, []byte("x"), time.Time{})
					}
				}
			}()
			s.serve()
			return true
		}
		o := w.options()
		o.Heartbeat = 10 * time.Second
		o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
		u := w.uplink(o)
		w.start(u)
		time.Sleep(21 * time.Second)
		synctest.Wait()
		if st := u.Stats(); st.State != Waiting || !contains(st.LastError, "not answered a ping") {
			t.Errorf("a cloud that never answers pings is trusted: %s, %q", st.State, st.LastError)
		}
	})
}

// On a slow link pings queue behind blocks; blocks that are accepted are proof
// enough.
func TestHeartbeat_AcceptedBlocksAreProofOfLife(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.noPong = true
		o := w.options()
		o.Heartbeat = 10 * time.Second
		u := w.uplink(o)
		w.start(u)
		epoch := touchline.NewEpoch()
		for i := range uint64(60) {
			w.source.add(blocks(epoch, i+1, 1, 1, 100)...)
			time.Sleep(5 * time.Second)
		}
		if st := u.Stats(); st.State != Connected || st.Sessions != 1 {
			t.Errorf("%s in session %d (%s), want one session", st.State, st.Sessions, st.LastError)
		}
	})
}

// slow is a connection that takes its time for each kilobyte.
type slow struct{ net.Conn }

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.Conn.Read(p[:min(len(p), 1<<10)])
}

// 10 KiB/s: a block of 190 KiB takes 19 s, and the heartbeat is 4 s.
func TestHeartbeat_GoesOnBetweenTheFragmentsOfALargeBlock(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.pipes.server = func(c net.Conn) net.Conn { return slow{c} }
		o := w.options()
		o.Heartbeat = 4 * time.Second
		list := blocks(touchline.NewEpoch(), 1, 3, 1, 190<<10)
		w.source.add(list...)
		u := w.uplink(o)
		w.start(u)
		w.bell.await(t, "delivered over a slow link", func() bool { return w.source.left() == 0 })
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions (%s), want 1", st.Sessions, st.LastError)
		}
		if w.cloud.saw().pings < 6 {
			t.Errorf("%d pings in a minute, want one each fragment", w.cloud.saw().pings)
		}
	})
}

func TestHeartbeat_MeasuresRoundTrips(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var delay atomic.Int64
		w.cloud.session = func(s *cloudSession) bool {
			pong := s.conn.PingHandler()
			s.conn.SetPingHandler(func(data string) error {
				time.Sleep(time.Duration(delay.Load()))
				return pong(data)
			})
			return false
		}
		delay.Store(int64(100 * time.Millisecond))
		o := w.options()
		o.Heartbeat = 10 * time.Second
		u := w.uplink(o)
		w.start(u)
		time.Sleep(25 * time.Second)
		if st := u.Stats(); st.RTT != 0.1 || st.RTTWorst != 0.1 {
			t.Errorf("RTT %v, worst %v: want 0.1 s", st.RTT, st.RTTWorst)
		}
		delay.Store(int64(900 * time.Millisecond))
		time.Sleep(10 * time.Second)
		if st := u.Stats(); st.RTT != 0.2 || st.RTTWorst != 0.9 {
			t.Errorf("RTT %v, worst %v: want 0.1 + 0.8/8 s and 0.9 s", st.RTT, st.RTTWorst)
		}
	})
}

func TestWindow_PauseStopsBlocksWhilePingsGoOn(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		sessions := make(chan *cloudSession, 1)
		w.cloud.session = func(s *cloudSession) bool { sessions <- s; return false }
		w.cloud.window = wire.Window{}
		o := w.options()
		o.Heartbeat = 10 * time.Second
		epoch := touchline.NewEpoch()
		w.source.add(blocks(epoch, 1, 10, 1, 1000)...)
		u := w.uplink(o)
		w.start(u)
		s := <-sessions
		time.Sleep(time.Hour + time.Second)
		if st := u.Stats(); st.State != Connected || st.Blocks != 0 {
			t.Fatalf("%s, %d blocks sent in a pause (%s)", st.State, st.Blocks, st.LastError)
		}
		if pings := w.cloud.saw().pings; pings < 360 {
			t.Errorf("%d pings in an hour of pause, want 360", pings)
		}

		s.send(&wire.NewWindow{Window: wire.Window{Bytes: 2500, Blocks: 100}})
		w.bell.await(t, "the pause is over", func() bool { return w.source.left() == 0 })
		if bytes, _ := s.most(); bytes > 2500 {
			t.Errorf("%d bytes unaccepted, and the window is 2500", bytes)
		}

		// A pause while blocks are in flight: they keep their patience.
		w.cloud.block = func(*cloudSession, *wire.FrameBlock) verdict { return silent }
		w.source.add(blocks(epoch, 11, 4, 1, 1000)...)
		synctest.Wait()
		s.send(&wire.NewWindow{Window: wire.Window{Bytes: 2500}})
		time.Sleep(time.Hour)
		if st := u.Stats(); st.State != Connected || st.InFlight.Blocks != 2 || st.Blocks != 12 {
			t.Errorf("after an hour's pause: %s, %d in flight, %d sent (%s)", st.State, st.InFlight.Blocks, st.Blocks, st.LastError)
		}
		s.send(&wire.NewWindow{Window: wire.Window{Bytes: 2500, Blocks: 100}})
		time.Sleep(o.AcceptTimeout - time.Second)
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("patience ran out in the pause (%s)", st.LastError)
		}
		time.Sleep(2 * time.Second)
		if st := u.Stats(); st.Sessions != 2 {
			t.Errorf("%d sessions: the patience did not run on after the pause", st.Sessions)
		}
	})
}

func TestAcceptTimeout_MeansANewConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
			if s.number == 1 && b.First == 3 {
				return silent
			}
			return store
		}
		w.source.add(blocks(touchline.NewEpoch(), 1, 5, 1, 1000)...)
		u := w.uplink(w.options())
		w.start(u)
		time.Sleep(u.opts.AcceptTimeout - time.Second)
		if st := u.Stats(); st.Sessions != 1 || w.source.left() != 1 {
			t.Fatalf("%d sessions, %d blocks left: want 1 and 1", st.Sessions, w.source.left())
		}
		time.Sleep(2 * time.Second)
		if st := u.Stats(); st.Sessions != 2 || w.source.left() != 0 {
			t.Errorf("%d sessions, %d blocks left: want 2 and none", st.Sessions, w.source.left())
		}
		if !contains(w.logs.String(), "has not accepted block") {
			t.Errorf("the log does not say why: %s", w.logs)
		}
	})
}

// A link so slow that the window takes many times AcceptTimeout is no reason
// to give up, as long as one block after the other arrives.
func TestAcceptTimeout_IsForTheOldestBlockOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.block = func(*cloudSession, *wire.FrameBlock) verdict {
			time.Sleep(20 * time.Second)
			return store
		}
		o := w.options()
		o.Heartbeat, w.cloud.heartbeat = time.Hour, time.Hour
		w.source.add(blocks(touchline.NewEpoch(), 1, 20, 1, 120<<10)...) // each in a frame of its own
		u := w.uplink(o)
		w.start(u)
		w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions (%s), want 1", st.Sessions, st.LastError)
		}
	})
}

func TestStoreTimeout_SendsAgainEverMoreRarely(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var sends []time.Duration
		began := time.Now()
		w.cloud.block = func(*cloudSession, *wire.FrameBlock) verdict {
			sends = append(sends, time.Since(began))
			return acceptOnly
		}
		o := w.options()
		o.StoreTimeout = time.Minute
		w.source.add(blocks(touchline.NewEpoch(), 1, 1, 1, 1000)...)
		u := w.uplink(o)
		w.start(u)
		time.Sleep(8 * time.Minute)
		synctest.Wait()
		if len(sends) != 4 {
			t.Fatalf("sent at %v, want 4 times: after 1, 2 and 4 minutes", sends)
		}
		for i, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
			if gap := sends[i+1] - sends[i]; gap < want || gap > want+time.Minute/4 {
				t.Errorf("sending %d came %v after the one before, want %v and at most a quarter minute more", i+2, gap, want)
			}
		}
		if st := u.Stats(); st.Sessions != 1 || st.Resent != 3 || st.Stored != 0 || w.source.left() != 1 {
			t.Errorf("stats %+v, want one session, 3 resent, none stored", st)
		}
	})
}

// A disk that hangs for a while is no reason to forget a block that the cloud
// asked for.
func TestResend_OutlivesASourceThatHangs(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		asked := false
		w.cloud.block = func(*cloudSession, *wire.FrameBlock) verdict {
			if !asked {
				asked = true
				w.source.get(func() { w.source.stalls = 3 })
				return damaged
			}
			return store
		}
		w.source.add(blocks(touchline.NewEpoch(), 1, 1, 1, 100)...)
		u := w.uplink(w.options())
		w.start(u)
		time.Sleep(4 * rereadPatience)
		if st := u.Stats(); w.source.left() != 0 || st.Sessions != 1 {
			t.Errorf("%d blocks left in session %d, want none in the first", w.source.left(), st.Sessions)
		}
	})
}

// The cloud stops to read: what the uplink holds is bounded by handoverBytes,
// whatever window it was given.
func TestMemory_IsBoundedWhenTheCloudStopsReading(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		w.cloud.window = wire.Window{Bytes: 1 << 30, Blocks: 1 << 30}
		w.cloud.session = func(s *cloudSession) bool {
			if hello, ok := s.hello(); ok && s.welcome(hello) {
				<-release
			}
			return true
		}
		t.Cleanup(func() { close(release) })
		o := w.options()
		o.Heartbeat, w.cloud.heartbeat = time.Hour, time.Hour
		w.source.add(blocks(touchline.NewEpoch(), 1, 1000, 1, 20<<10)...)
		w.start(w.uplink(o))
		synctest.Wait()
		w.source.get(func() {
			if most := handoverBytes + 2*frameTarget; w.source.handed > most || w.source.handed == 0 {
				t.Errorf("%d bytes were read ahead, want at most %d", w.source.handed, most)
			}
		})
	})
}

func TestRun_BacksOffWithFullJitterAndResets(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var dials []time.Time
		up := time.Duration(0)
		w.cloud.session = func(s *cloudSession) bool {
			dials = append(dials, time.Now())
			if up == 0 {
				return true // cut before welcome
			}
			if hello, ok := s.hello(); ok && s.welcome(hello) {
				time.AfterFunc(up, func() { s.conn.Close() })
				s.serve()
			}
			return true
		}
		o := w.options()
		o.BackoffBase, o.BackoffCap = time.Second, 16*time.Second
		u := w.uplink(o)
		stop := w.start(u)
		time.Sleep(2 * time.Hour)
		stop()
		synctest.Wait()
		worst, sum := time.Duration(0), time.Duration(0)
		for i := 1; i < len(dials); i++ {
			gap := dials[i].Sub(dials[i-1])
			if limit := min(o.BackoffCap, o.BackoffBase<<min(i-1, 10)); gap >= limit {
				t.Errorf("wait %d was %v, want less than %v", i, gap, limit)
			}
			worst = max(worst, gap)
			sum += gap
		}
		mean := sum / time.Duration(len(dials)-1)
		if mean < 6*time.Second || mean > 10*time.Second || worst < 15*time.Second {
			t.Errorf("%d waits with a mean of %v and a worst of %v: want uniform in 0 to 16 s", len(dials)-1, mean, worst)
		}

		// Sessions that stay up begin anew.
		dials, up = nil, o.StableAfter+time.Second // nothing runs that looks at them
		stop = w.start(u)
		time.Sleep(2 * time.Hour)
		stop()
		synctest.Wait()
		for i := 2; i < len(dials); i++ {
			if gap := dials[i].Sub(dials[i-1]) - up; gap >= o.BackoffBase {
				t.Errorf("wait %d was %v after a stable session, want less than %v", i, gap, o.BackoffBase)
			}
		}
		// And those that don't, don't.
		dials, up = nil, o.StableAfter-time.Second
		stop = w.start(u)
		time.Sleep(2 * time.Hour)
		stop()
		synctest.Wait()
		long := 0
		for i := 1; i < len(dials); i++ {
			if dials[i].Sub(dials[i-1])-up >= o.BackoffBase {
				long++
			}
		}
		if long < len(dials)/2 {
			t.Errorf("%d of %d waits were longer than a second: a flapping session counts as stable", long, len(dials))
		}
	})
}

func TestLost_IsAnnouncedUntilConfirmed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		const records = 3 * maxLostOpen
		record := func(id uint64) wire.Lost {
			return wire.Lost{ID: id, Epoch: touchline.NewEpoch(), Ranges: touchline.Ranges{{First: 1, Last: 5}}, Cause: "max_age"}
		}
		for id := range uint64(records) {
			w.source.lost = append(w.source.lost, record(id+1))
		}
		open := func() (n int) {
			w.source.get(func() { n = len(w.source.lost) })
			return n
		}
		w.cloud.lost = nil // it records nothing, so it confirms nothing
		o := w.options()
		o.Heartbeat, o.StoreTimeout = 10*time.Second, time.Minute
		u := w.uplink(o)
		w.start(u)
		time.Sleep(2*time.Minute + 15*time.Second)
		synctest.Wait()
		if saw := w.cloud.saw(); saw.lostSaid != 3*maxLostOpen || saw.sessions != 1 || open() != records {
			t.Fatalf("%d announcements in %d sessions, %d records open: want the oldest %d once a minute",
				saw.lostSaid, saw.sessions, open(), maxLostOpen)
		}
		w.cloud.set(func() { w.cloud.lost = make(map[uint64]wire.Lost) })
		w.cloud.dropAll()
		time.Sleep(o.Heartbeat / 2)
		synctest.Wait()
		if got := open(); got != 0 || len(w.cloud.lost) != records || u.Stats().LostHeard != records {
			t.Errorf("%d records are open half a heartbeat after the cloud began to confirm, want none", got)
		}
		// And one that comes up while the session lives.
		w.source.get(func() { w.source.lost = append(w.source.lost, record(1000)) })
		time.Sleep(o.Heartbeat + time.Second)
		if got := open(); got != 0 {
			t.Errorf("%d records are open, want none", got)
		}
	})
}
