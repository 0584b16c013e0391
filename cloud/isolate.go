package cloud

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
)

// isolate halves a batch that fails until the blocks that fail it stand
// alone, records the others, and returns what is to be tried again later. A
// block that fails alone, time after time, is offered as one that can't be
// decoded, so that the store keeps it aside. One that fails even so, while others
// succeed, is refused: it was not acknowledged, so its gateway has it and sends it
// again. Nothing here loses a block, and none holds up the rest.
//
// A store that is down fails everything, or says so (ErrUnavailable). Where it
// does not, it is told from a bad block by what succeeds: with nothing done, the first block that fails alone ends the sweep
// (after log2(512) + 4 = 13 transactions at most); with something done, the
// third in a row does. Halves come in random order, so that the sweep after one
// that ended at a bad block begins with another.
func (b *batcher) isolate(stop, work context.Context, g batch) (rest batch) {
	sw := &sweep{
		stopped: func() bool { return stop.Err() != nil },
		pause:   func() { pause(stop, b.timing.retryMin) },
	}
	b.halve(work, g, sw)
	if sw.succeeded {
		b.refuse(sw)
	}
	return sw.rest
}

// loneAttempts is how often a block must fail alone before it is to blame, and
// not a store that failed for a moment.
const loneAttempts = 3

// maxFailedInRow is how many blocks may fail alone, one behind the other, before
// the store counts as down.
const maxFailedInRow = 3

// A sweep is the state of one isolation.
type sweep struct {
	stopped   func() bool
	pause     func()
	succeeded bool  // a transaction of this sweep did
	failed    batch // blocks that failed alone and aside since the last success
	err       error // of the last of them
	down      bool  // the store is: stop
	rest      batch // to be tried again later
}

func (b *batcher) halve(work context.Context, g batch, sw *sweep) {
	if sw.down || sw.stopped() {
		sw.rest = sw.rest.join(g)
		return
	}
	err := b.attempt(work, g)
	if err == nil {
		b.settle(sw)
		return
	}
	if errors.Is(err, ErrUnavailable) {
		sw.giveUp(g)
		return
	}
	if g.len() > 1 {
		middle := g.len() / 2
		one, other := g.slice(0, middle), g.slice(middle, g.len())
		if rand.N(2) == 0 {
			one, other = other, one
		}
		b.halve(work, one, sw)
		b.halve(work, other, sw)
		return
	}

	for tries := 1; tries < loneAttempts; tries++ {
		sw.pause()
		if err = b.attempt(work, g); err == nil {
			b.settle(sw)
			return
		}
		if errors.Is(err, ErrUnavailable) {
			sw.giveUp(g)
			return
		}
	}
	aside := g.deliveries[0]
	aside.Samples = nil
	if aside.Problem == "" {
		aside.Problem = problemText(fmt.Errorf("record block: %w", err))
	}
	if b.attempt(work, batch{g.entries, []Delivery{aside}}) == nil {
		b.settle(sw)
		return
	}
	sw.failed, sw.err = sw.failed.join(g), err
	if !sw.succeeded || sw.failed.len() >= maxFailedInRow || sw.stopped() {
		sw.giveUp(batch{})
	}
}

// giveUp ends the sweep: the store is down, and no block is to blame. On a full
// disk for one, a block is refused and a smaller one, or the same without its
// samples, is taken.
func (sw *sweep) giveUp(g batch) {
	sw.down = true
	sw.rest = sw.rest.join(sw.failed).join(g)
	sw.failed = batch{}
}

// settle: a transaction succeeded, so the blocks that failed before it failed
// for a reason of their own.
func (b *batcher) settle(sw *sweep) {
	sw.succeeded = true
	b.refuse(sw)
}

func (b *batcher) refuse(sw *sweep) {
	if sw.failed.len() == 0 {
		return
	}
	for _, e := range sw.failed.entries {
		b.log.Error("the record store takes a block neither as samples nor aside; its gateway keeps it", "error", sw.err,
			"gateway", e.key.gateway, "epoch", e.key.epoch, "first", e.key.first, "count", e.key.count)
	}
	b.done(sw.failed.entries, func(e *entry, to receiver) { to.refuse(&e.delivery.Block) })
	sw.failed = batch{}
}

// join returns the batch of both; neither is changed.
func (g batch) join(other batch) batch {
	return batch{
		append(g.entries[:g.len():g.len()], other.entries...),
		append(g.deliveries[:g.len():g.len()], other.deliveries...),
	}
}
