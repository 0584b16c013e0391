package cloud

import (
	"context"
	"time"
)

// A load says how far the record store is behind what arrives. The windows of
// all gateways follow it: an overload is answered by whoever sends less, in
// memory that is set aside already, and no gateway has to lose its session.
type load uint8

const (
	keepsUp load = iota
	lags         // each window is a quarter
	stands       // each window is a pause: gateways wait, with their heartbeats
)

// pausesAfter is how long a block waits to be stored until gateways pause; a
// node where one has waited that long has no capacity left.
const pausesAfter = 10 * time.Second

// judge works out the load from what it was, how full the queue is, and how
// long the oldest block of it waits to be stored. Each step back needs half of
// what the step there took, so that windows don't flutter.
func (t *timing) judge(was load, bytes, capacity int, waits time.Duration) load {
	switch {
	case bytes > capacity/8*7 || waits > t.stands:
		return stands
	case was == stands && (bytes > capacity/2 || waits > t.stands/2):
		return stands
	case bytes > capacity/2 || waits > t.lags:
		return lags
	case was != keepsUp && (bytes >= capacity/8 || waits > t.lags/2):
		return lags
	}
	return keepsUp
}

// weigh brings the load up to date and returns what to call about it once b.mu,
// which is held, is free.
func (b *batcher) weigh(now time.Time) (tell func()) {
	if len(b.pending) == 0 {
		b.oldest, b.waited = time.Time{}, 0
	}
	waits := time.Duration(0)
	if !b.oldest.IsZero() {
		waits = now.Sub(b.oldest)
	}
	was := b.load
	b.load = b.timing.judge(was, b.bytes, b.capacity, waits)
	if b.load == was {
		return func() {}
	}
	if b.onLoad == nil {
		return func() {} // nobody's window follows it
	}
	is, blocks := b.load, len(b.pending)
	return func() {
		switch {
		case is == stands:
			b.log.Warn("the "+b.station()+" does not keep up; all gateways are told to pause", "blocks_waiting", blocks, "oldest_waits", waits.Round(time.Millisecond))
		case was == stands:
			b.log.Info("the "+b.station()+" gets on; gateways may send again", "blocks_waiting", blocks)
		}
		b.onLoad()
	}
}

// behind returns the load.
func (b *batcher) behind() load {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.load
}

// lag returns how long the oldest block had waited to be stored at the last
// look; 0 once none waits.
func (b *batcher) lag() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waited
}

// watch looks how long blocks wait until stop is done: a transaction that
// hangs says nothing itself.
func (b *batcher) watch(stop context.Context) {
	ticker := time.NewTicker(b.timing.look)
	defer ticker.Stop()
	for {
		select {
		case <-stop.Done():
			return
		case now := <-ticker.C:
			b.look(now)
		}
	}
}

func (b *batcher) look(now time.Time) {
	b.mu.Lock()
	b.oldest = time.Time{}
	for _, e := range b.pending { // 131,072 at most: a few milliseconds
		if at := e.delivery.Received; b.oldest.IsZero() || at.Before(b.oldest) {
			b.oldest = at
		}
	}
	b.waited = 0
	if !b.oldest.IsZero() {
		b.waited = max(0, now.Sub(b.oldest))
	}
	tell := b.weigh(now)
	b.mu.Unlock()
	b.noteHealth()
	tell()
}
