package buffer

import (
	"context"
	"fmt"
	"math"
	"slices"

	"touchline"
)

// A cause says why samples were lost: the limit that blocks were evicted for,
// or damage.
type cause int

const (
	maxBytes cause = iota
	maxAge
	freeReserve
	causes // how many limits there are
	damage = causes
)

var causeNames = [...]string{"max_bytes", "max_age", "free_reserve", "damage"}

func knownCause(name string) bool { return slices.Contains(causeNames[:], name) }

// String returns the cause as lost messages and counters name it.
func (c cause) String() string {
	return causeNames[c]
}

const (
	// Evicting at each commit just what it needs would write a lost record
	// each time. A 64th of the limit more, 4 MiB at most, makes it rare.
	slackShare = 64
	slackMost  = 4 << 20

	// pressedBytes are evicted when SQLite found the disk full: more than a
	// commit usually needs (16 MiB of samples are well below 1 MiB of
	// blocks), little of what is held.
	pressedBytes = 2 << 20
)

// chores says whether the next transaction has more to do than to insert.
// Acknowledgements and ages wait for the tick; limits do not.
func (b *Buffer) chores(upkeep bool) bool {
	incoming := b.incomingBytes()
	b.w.incoming = incoming
	if b.kept.blocks > 0 || b.opts.WhenFull == EvictOldest && b.held.blocks > 0 {
		if b.w.pressed || b.held.bytes+incoming > b.opts.MaxBytes {
			return true
		}
	}
	if b.spaceIsShort() {
		return true
	}
	b.mu.Lock()
	acked := b.acks.ranges()
	waiting := acked > 0 || len(b.acks.confirmed) > 0 || len(b.unreported) > 0 || len(b.unstored) > 0
	full := b.status.state() == StateFull
	clock := b.boots.due()
	waiting = waiting || len(b.boots.heard) > 0
	b.mu.Unlock()
	if acked >= maxAckRanges || full && waiting || clock {
		return true
	}
	if !upkeep {
		b.w.more = false
		return false
	}
	aged := b.opts.MaxAge > 0 && b.backlog().blocks > 0 && b.oldest < b.cutoff()
	due := waiting || aged || b.forgetDue() || b.probeDue() || b.tallyDue()
	if !due {
		b.w.more = false
	}
	return due
}

// cutoff is the running time before which blocks are too old.
func (b *Buffer) cutoff() int64 { return b.clock.now() - b.opts.MaxAge.Milliseconds() }

// evict deletes the oldest blocks that are not stored as the limits demand,
// whether they are in flight or not: where the cloud has them after all, stored
// wins. What is stored goes first; only when all of that is gone is anything
// lost, but for its age.
func (t *txn) evict(budget *deleteBudget) error {
	b := t.b
	if b.backlog().blocks == 0 {
		return nil
	}
	if len(t.ackedLeft) > 0 {
		return nil // the next transaction knows more
	}
	if b.opts.MaxAge > 0 && b.oldest < b.cutoff() {
		cutoff := b.cutoff()
		if err := t.evictOldest(maxAge, budget, func(v *victim) bool { return v.committed < cutoff }); err != nil {
			return err
		}
	}
	if b.opts.WhenFull != EvictOldest {
		return nil
	}
	excess := t.excess()
	if len(t.marks) > 0 {
		t.more = t.more || excess > 0
		return nil
	}
	if excess > 0 {
		if err := t.evictBytes(maxBytes, budget, excess); err != nil {
			return err
		}
	}
	short, err := b.shortage()
	if err != nil {
		return err
	}
	if short = max(short, t.pressing()); short > 0 {
		return t.evictBytes(freeReserve, budget, short)
	}
	return nil
}

func (t *txn) evictBytes(why cause, budget *deleteBudget, bytes int64) error {
	return t.evictOldest(why, budget, func(v *victim) bool {
		take := bytes > 0
		bytes -= v.bytes
		return take
	})
}

// An eviction deletes blocks from the oldest on while take says so.
type eviction struct {
	why    cause
	budget *deleteBudget
	take   func(*victim) bool
	losses []*loss // one for each epoch
	ended  bool    // take or the budget said so
}

// evictOldest deletes blocks from the oldest on while take says so, and
// records them as lost in the same transaction. It passes over what is stored.
func (t *txn) evictOldest(why cause, budget *deleteBudget, take func(*victim) bool) (err error) {
	e := eviction{why: why, budget: budget, take: take}
	t.marks.gaps(0, math.MaxInt64-1, func(from, to int64) bool {
		err = t.evictRun(&e, from, to)
		return err == nil && !e.ended
	})
	if err != nil {
		return err
	}
	for _, l := range e.losses {
		if err := t.lose(why, l); err != nil {
			return fmt.Errorf("record loss: %w", err)
		}
	}
	if t.evicted[why].blocks == 0 {
		return nil
	}
	_, err = t.b.store.sweepEpochs.ExecContext(context.Background(), t.b.known.base())
	return err
}

// evictRun does so within keys of which none is marked.
func (t *txn) evictRun(e *eviction, from, to int64) error {
	if e.budget.spent() {
		t.more, e.ended = true, true
		return nil
	}
	lastKey := int64(-1)
	_, err := t.victims(t.b.store.victimsIn, []any{from, to, e.budget.blocks}, func(v *victim) bool {
		if e.ended = !e.take(v); e.ended {
			return false
		}
		if e.budget.spent() {
			t.more, e.ended = true, true
			return false
		}
		e.budget.take(v)
		t.probeDelete(v)
		t.evicted[e.why].add(v.totals())
		lastKey = v.key
		switch n := len(e.losses); {
		case v.reported || !v.valid(): // of the first the cloud heard, of the second nothing is known
		case n == 0 || e.losses[n-1].epoch != v.epoch:
			e.losses = append(e.losses, newLoss(v))
		default:
			e.losses[n-1].add(v)
		}
		return true
	})
	if err != nil || lastKey < 0 {
		return err
	}
	if e.budget.blocks <= 0 {
		t.more, e.ended = true, true // the query ended there
	}
	_, err = t.b.store.deleteBlocks.ExecContext(context.Background(), from, lastKey)
	return err
}

// A loss is what one transaction evicts of an epoch.
type loss struct {
	epoch            int // index
	ranges           touchline.Ranges
	minTime, maxTime int64
}

func newLoss(v *victim) *loss {
	l := &loss{epoch: v.epoch, minTime: v.minTime, maxTime: v.maxTime}
	l.add(v)
	return l
}

func (l *loss) add(v *victim) {
	l.ranges.Add(touchline.Range{First: v.first, Last: v.last()})
	l.minTime, l.maxTime = min(l.minTime, v.minTime), max(l.maxTime, v.maxTime)
}
