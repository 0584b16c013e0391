package uplink

import (
	"math/rand/v2"
	"net/url"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// flights against a model that looks at everything each time.
func TestFlights_AgreeWithAModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	type block struct {
		wire.Block
		state flightState
		known bool
	}
	for range 200 {
		fs := newFlights()
		now := time.Unix(1000, 0)
		fs.setWindow(wire.Window{Bytes: 1 + rnd.IntN(5000), Blocks: 1 + rnd.IntN(20)}, now)
		epoch := touchline.NewEpoch()
		var model []*block
		next := uint64(1)
		for range 200 {
			now = now.Add(time.Second)
			switch rnd.IntN(5) {
			case 0, 1: // send the next, or one again
				b := &block{Block: wire.Block{Epoch: epoch, First: next, Count: uint32(1 + rnd.IntN(5)), Data: make([]byte, 1+rnd.IntN(800))}}
				resend := false
				for _, m := range model {
					if m.known && m.state == again && rnd.IntN(2) == 0 {
						b, resend = m, true
						break
					}
				}
				bytes, count := 0, 0
				for _, m := range model {
					if m.known && m.state == inFlight {
						bytes += len(m.Data)
						count++
					}
				}
				fits := count == 0 || count < fs.window.Blocks && bytes+len(b.Data) <= fs.window.Bytes
				if got := fs.fits(len(b.Data), resend); got != fits {
					t.Fatalf("fits(%d) = %v with %d bytes in %d blocks and window %+v", len(b.Data), got, bytes, count, fs.window)
				}
				if !fits {
					continue
				}
				if !fs.launch(&b.Block, resend, wire.Live, now) {
					t.Fatalf("launch of %d refused", b.First)
				}
				if !resend {
					model = append(model, b)
					next = b.Last() + 1
				}
				b.known, b.state = true, inFlight
			case 2: // accept a range
				r := someRange(rnd, next)
				for _, m := range model {
					if m.known && m.state == inFlight && r.First <= m.First && m.Last() <= r.Last {
						m.state = accepted
					}
				}
				fs.accept(epoch, r, now)
			case 3: // store a range
				r := someRange(rnd, next)
				var want uint64
				for _, m := range model {
					if m.known && r.First <= m.First && m.Last() <= r.Last {
						m.known = false
						want += uint64(m.Count)
					}
				}
				if _, got := fs.store(epoch, r, now); got != want {
					t.Fatalf("store(%v) = %d samples, want %d", r, got, want)
				}
			case 4: // ask for one again
				r := someRange(rnd, next)
				for _, f := range fs.within(epoch, r) {
					if f.state == again {
						continue
					}
					fs.recall(f, now)
					for _, m := range model {
						if m.First == f.nums.First {
							m.state = again
						}
					}
					break
				}
			}
			bytes, count, known := 0, 0, 0
			for _, m := range model {
				if m.known {
					known++
					if m.state == inFlight {
						bytes += len(m.Data)
						count++
					}
				}
			}
			if fs.bytes != bytes || fs.blocks != count || fs.unstored != known {
				t.Fatalf("flights count %d bytes in %d blocks, %d unstored; the model %d, %d, %d", fs.bytes, fs.blocks, fs.unstored, bytes, count, known)
			}
			if _, _, ok := fs.oldest(); ok != (count > 0) {
				t.Fatalf("oldest says %v with %d blocks in flight", ok, count)
			}
		}
	}
}

func someRange(rnd *rand.Rand, next uint64) touchline.Range {
	first := 1 + rnd.Uint64N(next)
	return touchline.Range{First: first, Last: first + rnd.Uint64N(20)}
}

func TestFullJitter_StaysWithinItsBounds(t *testing.T) {
	for _, c := range []struct {
		base, cap time.Duration
		n         int
		want      time.Duration // the limit
	}{
		{time.Second, time.Minute, 0, time.Second},
		{time.Second, time.Minute, 1, 2 * time.Second},
		{time.Second, time.Minute, 5, 32 * time.Second},
		{time.Second, time.Minute, 6, time.Minute},
		{time.Second, time.Minute, 1 << 30, time.Minute},
		{1, 24 * time.Hour, 46, 1 << 46},
		{1, 24 * time.Hour, 47, 24 * time.Hour},
		{time.Minute, time.Minute, 0, time.Minute},
	} {
		var asked int64
		got := fullJitter(c.base, c.cap, c.n, func(m int64) int64 { asked = m; return m - 1 })
		if time.Duration(asked) != min(c.want, c.cap) || got != time.Duration(asked-1) {
			t.Errorf("fullJitter(%v, %v, %d) draws below %v and returns %v, want below %v", c.base, c.cap, c.n, time.Duration(asked), got, c.want)
		}
	}
}

// TestSchedule_WhoIsGivenATurnTakesIt: a cloud that says when is not waited for
// as one that says nothing.
func TestSchedule_WhoIsGivenATurnTakesIt(t *testing.T) {
	latest := func(m int64) int64 { return m - 1 }
	for _, c := range []struct {
		attempt int
		f       failure
		want    time.Duration // at most, and no less than a moment before
	}{
		{6, failure{floor: 4 * time.Second, told: true}, 5 * time.Second},
		{6, failure{floor: 40 * time.Second, told: true}, 50 * time.Second},
		{0, failure{floor: 40 * time.Second, told: true}, 41 * time.Second},
		{6, failure{floor: 10 * time.Minute, told: true}, 11 * time.Minute}, // the greatest delay still bounds it
		{6, failure{floor: 4 * time.Second}, 64 * time.Second},
		{6, failure{}, time.Minute},
		{6, failure{told: true}, time.Minute},
	} {
		s := &schedule{urls: []*url.URL{{}}, base: time.Second, cap: time.Minute, stableAfter: time.Minute, random: latest, attempt: c.attempt}
		if got := s.wait(s.urls[0], 0, &c.f); got != c.want-1 {
			t.Errorf("attempt %d after %+v: waits below %v, want %v", c.attempt, c.f, got+1, c.want)
		}
	}
}

// TestSchedule_WhoIsAskedToComeAnewHasNotFailed: nodes that even out, or stop,
// keep nobody waiting for having moved before; a cloud that greets and sends
// away, time and again, is not helped in that.
func TestSchedule_WhoIsAskedToComeAnewHasNotFailed(t *testing.T) {
	latest := func(m int64) int64 { return m - 1 }
	for _, c := range []struct {
		up          time.Duration
		f           failure
		want        time.Duration // at most
		nextAttempt int
	}{
		{askedLeast, failure{asked: true}, time.Second, 3},
		{askedLeast, failure{asked: true, floor: 4 * time.Second}, 5 * time.Second, 3},
		{askedLeast - 1, failure{asked: true}, 8 * time.Second, 4},
		{0, failure{asked: true}, 8 * time.Second, 4},
		{askedLeast, failure{}, 8 * time.Second, 4},
	} {
		s := &schedule{urls: []*url.URL{{}}, base: time.Second, cap: time.Minute, stableAfter: time.Minute, random: latest, attempt: 3}
		if got := s.wait(s.urls[0], c.up, &c.f); got != c.want-1 || s.attempt != c.nextAttempt {
			t.Errorf("up for %v, %+v: waits below %v, then attempt %d; want %v, %d", c.up, c.f, got+1, s.attempt, c.want, c.nextAttempt)
		}
	}
}
