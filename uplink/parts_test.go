package uplink

import (
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// besideLargeBlocks sends three of the largest blocks over 32 kbit/s, of which
// each takes longer than a block may wait to be accepted, and a small one
// every other second beside them. It returns how long these took, in order, and
// how many of the large ones were stored after ten minutes.
func besideLargeBlocks(t *testing.T, wholeFrames bool) (live []time.Duration, stored int, st Stats) {
	inBubble(t, func(t *testing.T, w *world) {
		w.logs = nil
		const perSecond = 32_000 / 8
		w.cloud.wholeFrames = wholeFrames
		w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, perSecond, 4<<20, 100*time.Millisecond) }
		epoch := touchline.NewEpoch()
		large := blocks(epoch, 1, 3, 1000, wire.MaxBlockBytes)
		w.source.add(large...)
		added := make(map[uint64]time.Time)
		var mu sync.Mutex
		w.cloud.block = func(_ *cloudSession, b *wire.FrameBlock) verdict {
			mu.Lock()
			defer mu.Unlock()
			if at, ok := added[b.First]; ok {
				live = append(live, time.Since(at))
				delete(added, b.First)
			} else if b.First <= large[2].First {
				stored++
			}
			return store
		}
		w.cloud.heartbeat = 15 * time.Second
		o := w.options()
		o.Heartbeat, o.AcceptTimeout = 15*time.Second, Defaults().AcceptTimeout
		u := w.uplink(o)
		w.start(u)
		awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
		next := large[2].Last() + 1
		for begun := time.Now(); time.Since(begun) < 10*time.Minute && !w.cloud.has(large); next += 10 {
			time.Sleep(2 * time.Second)
			mu.Lock()
			added[next] = time.Now()
			mu.Unlock()
			w.source.add(blocks(epoch, next, 1, 10, 200)...)
		}
		st = u.Stats()
	})
	slices.Sort(live)
	return live, stored, st
}

// The clock is the test's own. A cloud that takes no parts is the control: with
// it the same line gets nowhere.
func TestParts_ABlockThatTakesAMinuteHoldsUpNobody(t *testing.T) {
	live, stored, st := besideLargeBlocks(t, false)
	if len(live) < 50 {
		t.Fatalf("%d new blocks arrived", len(live))
	}
	p99 := live[len(live)*99/100]
	t.Logf("MEASURED beside blocks of 192 KiB over 32 kbit/s: new samples p50 %v, p99 %v, worst round trip %.1f s", live[len(live)/2], p99, st.RTTWorst)
	if stored != 3 || st.Sessions != 1 {
		t.Errorf("%d of 3 blocks arrived in %d sessions: %s", stored, st.Sessions, st.LastError)
	}
	if p99 > 2*time.Second {
		t.Errorf("p99 of new samples is %v", p99)
	}
	if _, stored, st := besideLargeBlocks(t, true); stored > 0 || st.Sessions == 1 {
		t.Errorf("whole frames: %d blocks arrived in %d sessions: this test shows no difference", stored, st.Sessions)
	}
}

// A part of a frame that the network lost is the frame's loss: the next session
// begins it anew.
func TestParts_AConnectionThatEndsBetweenThemLosesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, 32_000, 4<<20, 10*time.Millisecond) }
		list := blocks(touchline.NewEpoch(), 1, 3, 1000, wire.MaxBlockBytes)
		w.source.add(list...)
		u := w.uplink(w.options())
		w.start(u)
		for n := range 5 {
			w.bell.await(t, "some parts", func() bool { return w.cloud.saw().parts > 10*(n+1) })
			w.cloud.dropAll()
		}
		w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
		if st := u.Stats(); st.Sessions < 4 {
			t.Errorf("%d sessions only: nothing was cut", st.Sessions)
		}
	})
}

// The cloud stores a block by another way while its parts are under way, asks
// for it again, or pauses: the frame that was begun is finished, and what
// counts for the pace comes out even.
func TestParts_WhateverBecomesOfTheBlockMeanwhile(t *testing.T) {
	for name, meanwhile := range map[string]func(s *cloudSession, b *wire.Block) wire.Message{
		"it is stored": func(s *cloudSession, b *wire.Block) wire.Message {
			s.cloud.record(&wire.FrameBlock{Block: *b})
			er := []wire.EpochRanges{{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}}
			return &wire.Ack{Accepted: er, Stored: er}
		},
		"it is asked for again": func(_ *cloudSession, b *wire.Block) wire.Message {
			return &wire.Resend{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}
		},
		"a pause": func(*cloudSession, *wire.Block) wire.Message { return &wire.NewWindow{} },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.cloud.pipes.wrap = func(c net.Conn) net.Conn { return newLine(c, 32_000, 4<<20, 10*time.Millisecond) }
				list := blocks(touchline.NewEpoch(), 1, 3, 1000, wire.MaxBlockBytes)
				w.source.add(list...)
				binary := 0
				w.cloud.message = func(s *cloudSession, kind, n int) bool {
					if kind != 2 {
						return true
					}
					if binary++; binary == 20 {
						s.send(meanwhile(s, &list[0]))
					}
					return true
				}
				u := w.uplink(w.options())
				w.start(u)
				if name == "a pause" {
					w.bell.await(t, "the frame that was begun", func() bool { return w.source.left() == 2 })
					time.Sleep(time.Minute)
					if n := w.source.left(); n != 2 {
						t.Errorf("%d blocks are left after a pause", n)
					}
					return
				}
				w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
				if st := u.Stats(); st.Sessions != 1 || st.InFlight.Blocks != 0 || st.InFlight.Bytes != 0 {
					t.Errorf("stats %+v", st)
				}
				w.bell.await(t, "an even account", func() bool {
					u.mu.Lock()
					s := u.session
					u.mu.Unlock()
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.flights.pace.inFlight == [2]int{} && len(s.flights.pace.milestones) == 0
				})
			})
		})
	}
}
