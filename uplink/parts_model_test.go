package uplink

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// Whatever happens between parts, in any order: blocks that are stored by
// another way, or asked for again, pauses, windows of any size, connections
// that end, a rate that is bounded. All arrives, the account comes out even, and
// no session is left waiting for what never comes.
func TestParts_WhateverHappensInAnyOrder(t *testing.T) {
	worlds := uint64(30)
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		worlds = 2000
	}
	for seed := range worlds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) { anythingBetweenParts(t, w, rand.New(rand.NewPCG(seed, 7))) })
		})
	}
}

func anythingBetweenParts(t *testing.T, w *world, rnd *rand.Rand) {
	w.logs = nil
	var mu sync.Mutex // covers rnd
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	speed := 2000 << draw(6)
	w.cloud.pipes.wrap = func(c net.Conn) net.Conn {
		return newLine(c, speed, 64<<10<<draw(5), time.Duration(1+draw(300))*time.Millisecond)
	}
	w.cloud.heartbeat = 15 * time.Second
	epoch, next := touchline.NewEpoch(), uint64(1)
	add := func(count, size int) wire.Block {
		b := blocks(epoch, next, 1, count, size)
		next += uint64(count)
		w.source.add(b...)
		return b[0]
	}
	var list []wire.Block
	var quiet atomic.Bool
	for range 6 {
		list = append(list, add(100, []int{300, 3000, 40_000, wire.MaxBlockBytes}[draw(4)]))
	}
	w.cloud.message = func(s *cloudSession, kind, _ int) bool {
		return quiet.Load() || kind != 2 || draw(15) > 0 || happens(s, &list[draw(len(list))], draw)
	}
	o := w.options()
	o.Heartbeat, o.AcceptTimeout = 15*time.Second, Defaults().AcceptTimeout
	o.BackoffBase, o.BackoffCap = time.Second, 5*time.Second
	if draw(3) == 0 {
		o.Limits.MaxRate = leastRate << draw(4)
	}
	u := w.uplink(o)
	w.start(u)
	for range 50 {
		time.Sleep(time.Duration(draw(4000)) * time.Millisecond)
		add(10, 200+draw(3000))
	}
	w.bell.await(t, "all", func() bool { return w.source.left() == 0 })
	quiet.Store(true)
	w.bell.await(t, "an even account", func() bool {
		u.mu.Lock()
		s := u.session
		u.mu.Unlock()
		if s == nil {
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		fs := s.flights
		return fs.pace.inFlight == [2]int{} && len(fs.pace.milestones) == 0 && fs.bytes == 0 && fs.blocks == 0 && s.parting.flight == nil
	})
}

// happens is one of the things that may; false ends the connection.
func happens(s *cloudSession, b *wire.Block, draw func(int) int) bool {
	ranges := []wire.EpochRanges{{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}}
	window := &wire.NewWindow{Window: wire.Window{Bytes: 1 << (10 + draw(11)), Blocks: 1 + draw(100)}}
	switch draw(6) {
	case 0:
		s.cloud.record(&wire.FrameBlock{Block: *b})
		s.send(&wire.Ack{Accepted: ranges, Stored: ranges})
	case 1, 2:
		s.send(&wire.Resend{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}})
	case 3:
		s.send(&wire.NewWindow{})
		pause := time.Duration(draw(90)) * time.Second
		s.cloud.wg.Go(func() {
			time.Sleep(pause)
			s.send(window)
		})
	case 4:
		s.send(window)
	case 5:
		return draw(3) > 0
	}
	return true
}
