package uplink

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"touchline"
	"touchline/wire"
)

// A line is a connection whose way to the cloud has a speed, a delay, and a
// queue before it that takes megabytes, as routers and modems have.
type line struct {
	net.Conn
	perSecond int
	delay     time.Duration
	queue     int

	mu     sync.Mutex
	busy   time.Time // when all that is queued has left
	queued int
	room   chan struct{}
	out    chan packet
	once   sync.Once
	done   chan struct{}
}

type packet struct {
	data []byte
	at   time.Time
}

func newLine(c net.Conn, perSecond, queue int, delay time.Duration) *line {
	l := &line{Conn: c, perSecond: perSecond, delay: delay, queue: queue, room: make(chan struct{}, 1), out: make(chan packet, 1<<16), done: make(chan struct{})}
	go func() {
		for {
			select {
			case p := <-l.out:
				select {
				case <-time.After(time.Until(p.at)):
				case <-l.done:
					return
				}
				if _, err := c.Write(p.data); err != nil {
					l.Close()
					return
				}
				l.mu.Lock()
				l.queued -= len(p.data)
				l.mu.Unlock()
				wake(l.room)
			case <-l.done:
				return
			}
		}
	}()
	return l
}

func (l *line) Write(b []byte) (int, error) {
	const part = 1400
	for n := 0; n < len(b); {
		size := min(part, len(b)-n)
		l.mu.Lock()
		if l.queued+size > l.queue {
			l.mu.Unlock()
			select {
			case <-l.room:
			case <-l.done:
				return n, net.ErrClosed
			}
			continue
		}
		now := time.Now()
		if l.busy.Before(now) {
			l.busy = now
		}
		l.busy = l.busy.Add(time.Duration(size) * time.Second / time.Duration(l.perSecond))
		l.queued += size
		p := packet{slices.Clone(b[n : n+size]), l.busy.Add(l.delay)}
		l.mu.Unlock()
		select {
		case l.out <- p:
		case <-l.done:
			return n, net.ErrClosed
		}
		n += size
	}
	return len(b), nil
}

func (l *line) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Conn.Close()
}

// waits are how long new samples took while a backlog was under way, and how
// long that took.
type waits struct {
	live    []time.Duration
	backlog time.Duration
}

func (w waits) at(part float64) time.Duration {
	slices.Sort(w.live)
	return w.live[int(part*float64(len(w.live)-1))]
}

// besideBacklog sends 20 MB of backlog over a line, and ten small blocks a
// second beside it.
func besideBacklog(t *testing.T, limits Limits, perSecond int, delay time.Duration) waits {
	var got waits
	inBubble(t, func(t *testing.T, w *world) {
		w.logs = nil
		w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, perSecond, 4<<20, delay) }
		w.cloud.window = wire.Window{Bytes: 8 << 20, Blocks: 4096}
		w.cloud.heartbeat = time.Minute
		epoch := touchline.NewEpoch()
		const held = 16 * perBlock
		backlog := blocks(epoch, 1, perSecond*16/held, 1000, held)
		w.source.add(backlog...)
		added := make(map[uint64]time.Time)
		var mu sync.Mutex
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
		o.Limits = limits
		u := w.uplink(o)
		began := time.Now()
		w.start(u)
		w.bell.await(t, "the first block", func() bool { return w.source.left() < len(backlog) })
		next := backlog[len(backlog)-1].Last() + 1
		for !w.cloud.has(backlog) {
			time.Sleep(100 * time.Millisecond)
			mu.Lock()
			added[next] = time.Now()
			mu.Unlock()
			w.source.add(blocks(epoch, next, 1, 10, 200)...)
			next += 10
		}
		got.backlog = time.Since(began)
		w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions: %s", st.Sessions, st.LastError)
		}
	})
	return got
}

const perBlock = 1 << 10

// The clock is the test's own, so what is asserted does not depend on the
// machine.
func TestLive_DoesNotWaitForTheBacklog(t *testing.T) {
	for _, link := range []struct {
		kbit  int
		delay time.Duration
		most  time.Duration // that p99 may be beyond the delay
	}{
		{256, 20 * time.Millisecond, time.Second}, // a block of 16 KiB takes 0.5 s
		{2_000, 300 * time.Millisecond, time.Second},
		{10_000, 20 * time.Millisecond, 200 * time.Millisecond},
		{50_000, 5 * time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%d kbit", link.kbit), func(t *testing.T) {
			perSecond := link.kbit * 1000 / 8
			first := besideBacklog(t, Defaults().Limits, perSecond, link.delay)
			plain := besideBacklog(t, Limits{Plain: true, BacklogShare: 1}, perSecond, link.delay)
			t.Logf("MEASURED over %d kbit/s, %v, a backlog of 16 s: live first p50 %v, p99 %v, backlog in %v; in order p50 %v, p99 %v, backlog in %v", link.kbit, link.delay,
				first.at(0.5).Round(time.Millisecond), first.at(0.99).Round(time.Millisecond), first.backlog.Round(time.Millisecond),
				plain.at(0.5).Round(time.Millisecond), plain.at(0.99).Round(time.Millisecond), plain.backlog.Round(time.Millisecond))
			if p99 := first.at(0.99) - link.delay; p99 > link.most {
				t.Errorf("p99 of new samples is %v beyond the delay, want at most %v", p99, link.most)
			}
			if first.backlog > 16*time.Second*13/10 {
				t.Errorf("the backlog took %v: the link is not used", first.backlog)
			}
			if plain.at(0.5) < first.at(0.99) {
				t.Errorf("in order: p50 %v: this test shows no difference", plain.at(0.5))
			}
		})
	}
}

// Whatever the order, the window, disconnects, new epochs, evictions, and what
// the cloud does not hear or asks for again: all that is held gets there.
func TestLive_SkipsNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limits := Defaults().Limits
		limits.NewestFirst = rapid.Bool().Draw(rt, "newest")
		limits.Plain = rapid.IntRange(0, 4).Draw(rt, "plain") == 0
		wholeFrames := rapid.IntRange(0, 4).Draw(rt, "whole frames") == 0
		perSecond := rapid.SampledFrom([]int{0, 8_000, 100_000}).Draw(rt, "bytes a second") // 0 is no bound
		script := rapid.SliceOfN(rapid.IntRange(0, 6), 5, 40).Draw(rt, "script")
		verdicts := rapid.SliceOfN(rapid.SampledFrom([]verdict{store, store, store, acceptOnly, silent, silentlyDo, damaged}), 1, 50).Draw(rt, "verdicts")
		size := rapid.IntRange(1, 60_000).Draw(rt, "size")
		window := wire.Window{Bytes: rapid.IntRange(1, 1<<20).Draw(rt, "window"), Blocks: rapid.IntRange(1, 300).Draw(rt, "blocks")}
		inBubble(t, func(t *testing.T, w *world) {
			w.cloud.window, w.cloud.wholeFrames = window, wholeFrames
			if perSecond > 0 {
				w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, perSecond, 1<<20, 10*time.Millisecond) }
			}
			n := 0
			w.cloud.block = func(_ *cloudSession, b *wire.FrameBlock) verdict {
				n++
				if n >= 4*len(verdicts) {
					return store // it comes to its senses
				}
				return verdicts[n%len(verdicts)]
			}
			epoch, next := touchline.NewEpoch(), uint64(1)
			add := func(count int) {
				w.source.add(blocks(epoch, next, count, 2500, size)...)
				next += uint64(count) * 2500
			}
			add(12)
			o := w.options()
			o.Limits = limits
			o.AcceptTimeout, o.StoreTimeout = 20*time.Second, 30*time.Second
			u := w.uplink(o)
			w.start(u)
			for _, step := range script {
				switch step {
				case 0:
					add(3)
				case 1:
					add(1)
					synctest.Wait()
				case 2:
					w.cloud.dropAll()
				case 3:
					epoch, next = touchline.NewEpoch(), 1
					add(2)
				case 4: // evicted: the oldest, or one in the middle
					w.source.evict(len(script) % 3)
				case 5:
					time.Sleep(3 * time.Second)
				case 6:
					add(1)
					time.Sleep(10 * time.Millisecond)
				}
			}
			w.bell.await(t, "all that is held", func() bool { return w.source.left() == 0 })
		})
	})
}

func TestBacklog_NewestFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var order []uint64
		w.cloud.block = func(_ *cloudSession, b *wire.FrameBlock) verdict {
			order = append(order, b.First)
			return store
		}
		epoch := touchline.NewEpoch()
		list := blocks(epoch, 1, 40, runSamples/2, 100)
		w.source.add(list...)
		o := w.options()
		o.Limits.NewestFirst = true
		w.start(w.uplink(o))
		w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
		if len(order) != len(list) {
			t.Errorf("%d blocks were sent, want each of %d once", len(order), len(list))
		}
		for i := 2; i < len(order); i += 2 {
			if order[i] > order[i-2] {
				t.Fatalf("blocks were sent in the order %v, want the newest runs first", order)
			}
		}
	})
}

func TestLimits_RateShareAndHours(t *testing.T) {
	send := func(limits Limits) (took time.Duration, live time.Duration) {
		inBubble(t, func(t *testing.T, w *world) {
			epoch := touchline.NewEpoch()
			list := blocks(epoch, 1, 100, 10, 10_000)
			fresh := blocks(epoch, 1001, 1, 10, 100)
			w.source.add(list...)
			o := w.options()
			o.Limits = limits
			began := time.Now()
			w.start(w.uplink(o))
			time.Sleep(500 * time.Millisecond)
			w.source.add(fresh...)
			w.bell.await(t, "the new one", func() bool { return w.cloud.has(fresh) })
			live = time.Since(began) - 500*time.Millisecond
			w.bell.await(t, "the backlog", func() bool { return w.cloud.has(list) })
			took = time.Since(began)
		})
		return took, live
	}
	for name, c := range map[string]struct {
		change      func(*Limits)
		least, most time.Duration
	}{
		"rate":  {func(l *Limits) { l.MaxRate = 50_000 }, 18 * time.Second, 22 * time.Second}, // 1 MB, less what a second has saved
		"hours": {func(l *Limits) { l.BacklogFrom = fromIn(time.Hour) }, time.Hour, time.Hour + time.Second},
		"none":  {func(*Limits) {}, 0, time.Second},
	} {
		l := Defaults().Limits
		c.change(&l)
		took, live := send(l)
		if took < c.least || took > c.most || live > 300*time.Millisecond {
			t.Errorf("%s: the backlog took %v, want %v to %v; a new sample %v", name, took, c.least, c.most, live)
		}
	}
}

// fromIn lets the backlog through at d from the first question on.
func fromIn(d time.Duration) func(time.Time) time.Time {
	var at time.Time
	return func(now time.Time) time.Time {
		if at.IsZero() {
			at = now.Add(d)
		}
		return at
	}
}

func TestBacklog_TakesItsShareOfTheTime(t *testing.T) {
	l := Defaults().Limits
	l.BacklogShare = 0.25
	got := besideBacklog(t, l, 1_250_000, 10*time.Millisecond)
	if got.backlog < 32*time.Second || got.backlog > 80*time.Second {
		t.Errorf("a backlog of 16 s took %v with a quarter of the time", got.backlog)
	}
}
