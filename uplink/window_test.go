package uplink

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

func TestWindow_IsNeverExceeded(t *testing.T) {
	for _, win := range []wire.Window{{Bytes: 10 << 10, Blocks: 1000}, {Bytes: 1 << 20, Blocks: 3}, {Bytes: 50 << 10, Blocks: 20}} {
		w := newWorld(t)
		w.cloud.window = win
		sessions := make(chan *cloudSession, 1)
		w.cloud.session = func(s *cloudSession) bool { sessions <- s; return false }
		// Acks come late and in any order, from another goroutine.
		var acks sync.WaitGroup
		todo := make(chan wire.FrameBlock, 1<<16)
		w.cloud.block = func(s *cloudSession, b *wire.FrameBlock) verdict {
			c := *b
			c.Data = nil
			w.cloud.record(b)
			todo <- c
			return silent
		}
		list := blocks(touchline.NewEpoch(), 1, 300, 5, 4000)
		w.source.add(list...)
		u := w.uplink(w.options())
		stop := w.start(u)
		s := <-sessions
		acks.Go(func() {
			rnd := rand.New(rand.NewPCG(1, 2))
			var held []wire.FrameBlock
			for done := 0; done < len(list); {
				select {
				case b := <-todo:
					held = append(held, b)
					if len(todo) > 0 || rnd.IntN(2) == 0 && len(held) < win.Blocks && len(held)*4000+4000 <= win.Bytes {
						continue
					}
				case <-time.After(2 * time.Millisecond):
				}
				rnd.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
				n := (len(held) + 1) / 2
				for i := range held[:n] {
					b := &held[i]
					s.accept(b)
					er := []wire.EpochRanges{{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}}
					s.send(&wire.Ack{Accepted: er, Stored: er})
				}
				held = held[n:]
				done += n
			}
		})
		w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
		acks.Wait()
		stop()
		bytes, blocks := s.most()
		if bytes > win.Bytes || blocks > win.Blocks {
			t.Errorf("window %+v, and %d bytes in %d blocks were unaccepted", win, bytes, blocks)
		}
		if bytes < win.Bytes/2 && blocks < win.Blocks/2 {
			t.Errorf("window %+v, and no more than %d bytes in %d blocks of it were used", win, bytes, blocks)
		}
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions (%s), want 1", st.Sessions, st.LastError)
		}
	}
}

func TestWindow_OneBlockMayAlwaysBeInFlight(t *testing.T) {
	w := newWorld(t)
	w.cloud.window = wire.Window{Bytes: 1, Blocks: 5}
	sessions := make(chan *cloudSession, 1)
	w.cloud.session = func(s *cloudSession) bool { sessions <- s; return false }
	w.source.add(blocks(touchline.NewEpoch(), 1, 20, 1, wire.MaxBlockBytes)...)
	w.start(w.uplink(w.options()))
	s := <-sessions
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	if _, blocks := s.most(); blocks != 1 {
		t.Errorf("%d blocks were in flight, want one at a time", blocks)
	}
}

func TestHello_SaysWhatIsHeld(t *testing.T) {
	w := newWorld(t)
	a, b := touchline.NewEpoch(), touchline.NewEpoch()
	w.source.add(blocks(a, 5, 2, 10, 100)...)
	w.source.add(blocks(b, 1, 1, 3, 100)...)
	o := w.options()
	o.Clock = &testClock{state: touchline.ClockUnset}
	w.start(w.uplink(o))
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	h := w.cloud.saw().hellos[0]
	if h.Gateway != "venue-1" || h.Software != "touchline/test" || h.Clock != "unset" {
		t.Errorf("hello %+v", h)
	}
	want := []wire.Held{{Epoch: a, Oldest: 5, Next: 25}, {Epoch: b, Oldest: 1, Next: 4}}
	if len(h.Epochs) != 2 || h.Epochs[0] != want[0] || h.Epochs[1] != want[1] {
		t.Errorf("hello names %v, want %v", h.Epochs, want)
	}
}

func TestHello_WithMoreEpochsThanFitStaysAMessage(t *testing.T) {
	w := newWorld(t)
	const epochs = maxHeldInHello + 500
	var list []wire.Block
	for range epochs {
		list = append(list, blocks(touchline.NewEpoch(), 1, 1, 1, 10)...)
	}
	w.source.mu.Lock()
	for i := range list {
		w.source.epochs = append(w.source.epochs, list[i].Epoch)
	}
	w.source.blocks = list
	w.source.mu.Unlock()
	w.start(w.uplink(w.options()))
	w.bell.await(t, "said", func() bool {
		return len(w.cloud.saw().hellos) == 1
	})
	if got := len(w.cloud.saw().hellos[0].Epochs); got != maxHeldInHello {
		t.Errorf("hello names %d epochs, want the oldest %d", got, maxHeldInHello)
	}
}

// A proxy whose cable can be pulled: it goes on reading, and passes nothing.
type proxy struct {
	listener net.Listener
	to       string
	swallow  atomic.Bool
	wg       sync.WaitGroup
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: to}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	far, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer far.Close()
	var wg sync.WaitGroup
	pipe := func(dst, src net.Conn, swallows bool) {
		defer dst.Close()
		defer src.Close()
		buf := make([]byte, 4096)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			if swallows && p.swallow.Load() {
				continue
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	wg.Go(func() { pipe(far, c, true) })
	wg.Go(func() { pipe(c, far, false) })
	wg.Wait()
}

// The same as in a bubble, over real TCP: one direction goes dead, and what
// was swallowed arrives by the next connection.
func TestHeartbeat_HalfOpenOverRealTCPLosesNothing(t *testing.T) {
	w := newWorld(t)
	p := newProxy(t, w.cloud.addr)
	w.cloud.heartbeat = 100 * time.Millisecond
	o := w.options()
	o.URLs = []string{"ws://" + p.listener.Addr().String()}
	o.HandshakeTimeout = time.Second // a handshake may be swallowed too
	u := w.uplink(o)
	stop := w.start(u)
	epoch := touchline.NewEpoch()
	next := uint64(1)
	for range 3 {
		awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
		p.swallow.Store(true)
		list := blocks(epoch, next, 20, 2, 3000)
		next = list[19].Last() + 1
		w.source.add(list...)
		awaitStats(t, u, "found dead", func(st Stats) bool { return st.State != Connected })
		p.swallow.Store(false)
		w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	}
	stop()
	if !w.cloud.has(blocks(epoch, 1, 1, 120, 1)) {
		t.Error("the cloud lacks samples")
	}
}

// What is stored in one breath is one call of Ack, not one each: each may be a
// transaction.
func TestAck_IsCoalesced(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.start(w.uplink(w.options()))
		epoch := touchline.NewEpoch()
		for i := range uint64(1000) {
			w.source.add(blocks(epoch, i+1, 1, 1, 100)...)
			time.Sleep(time.Millisecond)
		}
		w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
		w.source.get(func() {
			if most := int(time.Second/ackEvery) + 2; w.source.ackCalls > most {
				t.Errorf("%d calls of Ack in a second, want at most %d", w.source.ackCalls, most)
			}
		})
	})
}

// The whole way of real samples: what the cloud decodes is what was encoded.
func TestRun_DeliversSamples(t *testing.T) {
	w := newWorld(t)
	epoch := touchline.NewEpoch()
	encoder, next := wire.NewEncoder(), uint64(1)
	var sent []touchline.Sample
	for len(sent) < 10_000 {
		var some []touchline.Sample
		for range 500 {
			i := len(sent) + len(some)
			some = append(some, touchline.Sample{
				Sensor: "belt-" + strconv.Itoa(i%7), Metric: "heart_rate", Unit: "beat/min",
				Time: 1_700_000_000_000_000_000 + int64(i)*1e6, Value: touchline.NumberValue(float64(60 + i%90)),
			})
		}
		e, err := encoder.Encode(nil, some)
		if err != nil || e.Count != len(some) {
			t.Fatalf("encoded %d samples, %v", e.Count, err)
		}
		b := wire.Block{Epoch: epoch, First: next, Count: uint32(e.Count), Data: e.Data}
		b.CRC = b.Sum()
		next += uint64(e.Count)
		w.source.add(b)
		sent = append(sent, some...)
	}
	got := make(map[touchline.Sample]int)
	decoder := wire.NewDecoder()
	w.cloud.block = func(_ *cloudSession, b *wire.FrameBlock) verdict {
		samples, err := decoder.Decode(nil, b.Data)
		if err != nil || len(samples) != int(b.Count) {
			t.Errorf("decoded %d samples of %d, %v", len(samples), b.Count, err)
		}
		for _, s := range samples {
			got[s]++
		}
		return store
	}
	stop := w.start(w.uplink(w.options()))
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	stop()
	w.cloud.close()
	for _, s := range sent {
		if got[s] != 1 {
			t.Fatalf("the cloud has sample %+v %d times, want once", s, got[s])
		}
	}
	if len(got) != len(sent) {
		t.Errorf("the cloud has %d samples, want %d", len(got), len(sent))
	}
}
