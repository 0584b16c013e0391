package uplink

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

func TestRun_DeliversEachBlockOnce(t *testing.T) {
	w := newWorld(t)
	a, b := touchline.NewEpoch(), touchline.NewEpoch()
	all := append(blocks(a, 1, 300, 100, 2000), blocks(b, 1, 2000, 7, 150)...)
	w.source.add(all...)
	u := w.uplink(w.options())
	stop := w.start(u)
	w.bell.await(t, "all delivered", func() bool { return w.source.left() == 0 })
	more := blocks(b, 1+2000*7, 5, 3, 100)
	w.source.add(more...)
	w.bell.await(t, "new ones delivered", func() bool { return w.source.left() == 0 })
	stop()
	w.cloud.close()

	if !w.cloud.has(all) || !w.cloud.has(more) {
		t.Error("the source forgot blocks that the cloud does not have")
	}
	if w.cloud.saw().repeats != 0 || w.cloud.saw().sessions != 1 {
		t.Errorf("%d repeats in %d sessions, want 0 in 1", w.cloud.saw().repeats, w.cloud.saw().sessions)
	}
	st := u.Stats()
	samples := uint64(300*100 + 2000*7 + 5*3)
	if st.Blocks != uint64(len(all)+len(more)) || st.Samples != samples || st.Stored != samples || st.Resent != 0 {
		t.Errorf("stats %+v, want %d blocks and %d samples sent and stored", st, len(all)+len(more), samples)
	}
	if st.State != Stopped || st.Sessions != 1 || st.Dials != 1 || st.Session != 1 || st.Store != "store-1" {
		t.Errorf("stats %+v, want one session of store-1, stopped", st)
	}
	if got := len(w.cloud.saw().closes); got != 1 || w.cloud.saw().closes[0].Code != 1001 {
		t.Errorf("the cloud got close frames %v, want one with 1001", w.cloud.saw().closes)
	}
	lane := func(b wire.Block) wire.Lane { return w.cloud.lanes[touchline.Position{Epoch: b.Epoch, Seq: b.First}] }
	if lane(all[0]) != wire.Backlog || lane(all[len(all)-1]) != wire.Backlog || lane(more[0]) != wire.Live {
		t.Errorf("lanes %v, %v, %v: want backlog for what was there at hello, live for what came after",
			lane(all[0]), lane(all[len(all)-1]), lane(more[0]))
	}
}

// The invariant of the whole uplink: whatever breaks, each block gets there,
// and the source forgets none that did not.
func TestRun_DeliversThroughRandomDisconnects(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TOUCHLINE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TOUCHLINE_SEED=%d", seed)
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(seed, 1))
	chance := func(of int) bool {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(of) == 0
	}

	const disconnects = 60
	w := newWorld(t)
	drops := 0
	w.cloud.forgetful = func() bool { return chance(2) }
	calm := func() bool { // the caller holds cloud.mu
		return drops >= disconnects
	}
	w.cloud.window = wire.Window{Bytes: 64 << 10, Blocks: 32}
	w.cloud.message = func(_ *cloudSession, kind, n int) bool {
		w.cloud.mu.Lock()
		defer w.cloud.mu.Unlock()
		if calm() || !chance(6) {
			return true
		}
		drops++
		return false
	}
	w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
		w.cloud.mu.Lock()
		defer w.cloud.mu.Unlock()
		switch {
		case calm():
			return store
		case chance(40):
			drops++
			s.conn.Close()
			return silentlyDo // recorded, and the ack is lost
		case chance(30):
			return acceptOnly
		case chance(30):
			return damaged
		}
		return store
	}
	o := w.options()
	o.StoreTimeout = 50 * time.Millisecond
	var all []wire.Block
	for range 3 {
		epoch := touchline.NewEpoch()
		next := uint64(1)
		for range 400 {
			b := blocks(epoch, next, 1, 1+rnd.IntN(50), 1+rnd.IntN(6000))
			next = b[0].Last() + 1
			all = append(all, b...)
		}
	}
	w.source.add(all[:600]...)
	u := w.uplink(o)
	stop := w.start(u)
	w.bell.await(t, "half delivered", func() bool { return w.source.left() < 300 })
	w.source.add(all[600:]...)
	w.bell.await(t, "all delivered and enough disconnects", func() bool {
		w.source.mu.Lock() // before the cloud's, as Ack does
		defer w.source.mu.Unlock()
		w.cloud.mu.Lock()
		defer w.cloud.mu.Unlock()
		if len(w.source.blocks) == 0 && !calm() { // more of everything
			last := &all[len(all)-1]
			b := blocks(last.Epoch, last.Last()+1, 20, 3, 500)
			all = append(all, b...)
			w.source.blocks = append(w.source.blocks, b...)
			go w.bell.ring()
		}
		return len(w.source.blocks) == 0
	})
	stop()
	if !w.cloud.has(all) {
		t.Error("the source forgot blocks that the cloud does not have")
	}
	var samples uint64
	for i := range all {
		samples += uint64(all[i].Count)
	}
	st := u.Stats()
	if st.Stored != samples {
		t.Errorf("stats count %d samples stored, want %d", st.Stored, samples)
	}
	t.Logf("%d blocks in %d sessions, %d dropped connections; %d sent again, %d repeats in the cloud",
		len(all), st.Sessions, drops, st.Resent, w.cloud.saw().repeats)
}

func TestAck_OnlyWhatTheCloudCallsStored(t *testing.T) {
	w := newWorld(t)
	w.cloud.block = func(*cloudSession, *wire.FrameBlock) verdict { return acceptOnly }
	w.source.add(blocks(touchline.NewEpoch(), 1, 50, 10, 1000)...)
	u := w.uplink(w.options())
	w.start(u)
	awaitStats(t, u, "all accepted", func(st Stats) bool { return st.Unstored == 50 && st.InFlight.Blocks == 0 })
	if got := w.source.left(); got != 50 {
		t.Errorf("the source holds %d blocks, want all 50: none is stored", got)
	}
	if st := u.Stats(); st.Stored != 0 {
		t.Errorf("stats count %d samples as stored", st.Stored)
	}
}

func TestAck_BeyondWhatTheCloudCanHaveIsIgnored(t *testing.T) {
	w := newWorld(t)
	w.source.mayAck = nil
	epoch, strange := touchline.NewEpoch(), touchline.NewEpoch()
	w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
		s.send(&wire.Ack{Stored: []wire.EpochRanges{
			{Epoch: epoch, Ranges: touchline.Ranges{{First: 1, Last: touchline.MaxSeq}}},
			{Epoch: strange, Ranges: touchline.Ranges{{First: 1, Last: 9}}},
		}})
		return silent
	}
	list := blocks(epoch, 1, 1, 10, 100)
	w.source.add(list...)
	w.start(w.uplink(w.options()))
	w.bell.await(t, "acknowledged", func() bool { return w.source.left() == 0 })
	w.source.get(func() {
		if got := w.source.acked[epoch]; len(got) != 1 || got[0] != (touchline.Range{First: 1, Last: 10}) {
			t.Errorf("the source was told to forget %v, and the cloud was sent 1 to 10", got)
		}
		if got := w.source.acked[strange]; got != nil {
			t.Errorf("the source was told to forget %v of an epoch that it never had", got)
		}
	})
}

func TestResume_SkipsWhatWelcomeNames(t *testing.T) {
	w := newWorld(t)
	list := blocks(touchline.NewEpoch(), 1, 100, 10, 1000)
	for i := range list {
		if i != 17 && i < 90 {
			w.cloud.record(&wire.FrameBlock{Block: list[i]})
		}
	}
	w.source.add(list...)
	u := w.uplink(w.options())
	stop := w.start(u)
	w.bell.await(t, "the source forgot all", func() bool { return w.source.left() == 0 })
	stop()
	if !w.cloud.has(list) {
		t.Error("the cloud does not have all")
	}
	if st := u.Stats(); st.Blocks != 11 || w.cloud.saw().repeats != 0 {
		t.Errorf("%d blocks were sent, %d of them repeats: want the 11 that were missing", st.Blocks, w.cloud.saw().repeats)
	}
}

func TestResend_SendsTheBlockAgain(t *testing.T) {
	w := newWorld(t)
	seen := make(map[uint64]int)
	w.cloud.block = func(_ *cloudSession, b *wire.FrameBlock) verdict {
		seen[b.First]++ // one session, one goroutine
		if b.First%3 == 1 && seen[b.First] <= 2 {
			return damaged
		}
		return store
	}
	list := blocks(touchline.NewEpoch(), 1, 30, 1, 5000)
	w.source.add(list...)
	u := w.uplink(w.options())
	stop := w.start(u)
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	stop()
	if w.cloud.saw().sessions != 1 {
		t.Errorf("%d sessions, want 1", w.cloud.saw().sessions)
	}
	if st := u.Stats(); st.Resent != 20 {
		t.Errorf("%d blocks were sent again, want 10 twice", st.Resent)
	}
}

func TestResend_EndlessDamageEndsTheSession(t *testing.T) {
	w := newWorld(t)
	w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
		if s.number == 1 {
			return damaged
		}
		return store
	}
	w.source.add(blocks(touchline.NewEpoch(), 1, 1, 1, 100)...)
	u := w.uplink(w.options())
	w.start(u)
	w.bell.await(t, "delivered by another session", func() bool { return w.source.left() == 0 })
	if got := u.Stats().Sessions; got != 2 {
		t.Errorf("%d sessions, want 2", got)
	}
}

func TestResend_OfABlockThatIsGoneHoldsUpNothing(t *testing.T) {
	w := newWorld(t)
	list := blocks(touchline.NewEpoch(), 1, 2, 1, 100)
	w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
		if b.First == 1 {
			w.source.get(func() { w.source.blocks = nil }) // evicted
			return damaged
		}
		return store
	}
	w.source.add(list[0])
	u := w.uplink(w.options())
	w.start(u)
	awaitStats(t, u, "the first one sent", func(st Stats) bool { return st.Blocks == 1 && st.InFlight.Blocks == 0 })
	w.source.add(list[1])
	w.bell.await(t, "the second one delivered", func() bool { return w.cloud.has(list[1:]) })
	awaitStats(t, u, "nothing is waited for", func(st Stats) bool { return st.Unstored == 0 })
}

func TestSource_DamagedBlockIsNotSentAndHoldsUpNothing(t *testing.T) {
	w := newWorld(t)
	list := blocks(touchline.NewEpoch(), 1, 3, 10, 500)
	list[1].Data[7] ^= 1
	w.source.add(list...)
	u := w.uplink(w.options())
	stop := w.start(u)
	w.bell.await(t, "the others are delivered", func() bool { return w.source.left() == 1 })
	stop()
	if st := u.Stats(); st.Damaged != 1 || st.Blocks != 2 {
		t.Errorf("stats %+v, want 1 damaged and 2 sent", st)
	}
}

func TestSource_ErrorsAreRetriedInANewSession(t *testing.T) {
	for name, fail := range map[string]func(*memSource){
		"next": func(s *memSource) { s.nextErr = errors.New("disk is on fire") },
		"ack":  func(s *memSource) { s.ackErr = errors.New("disk is on fire") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fail(w.source)
			w.source.add(blocks(touchline.NewEpoch(), 1, 3, 10, 500)...)
			u := w.uplink(w.options())
			stop := w.start(u)
			w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
			awaitStats(t, u, "a new session after the error", func(st Stats) bool { return st.Sessions >= 2 })
			stop()
			if !contains(w.logs.String(), "disk is on fire") {
				t.Error("the log lacks the error")
			}
		})
	}
}
