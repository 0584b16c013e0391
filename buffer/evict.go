package buffer

import (
	"context"
	"fmt"
	"slices"
	"time"

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

	// freeInterval is how often the file system is asked for free space.
	freeInterval = time.Second

	// Unused pages up to 16 MiB stay in the file, where the next blocks go;
	// the rest is given back to the file system, 1 MiB at a time while
	// nothing waits, and 16 MiB a tick at most.
	keepFreePages   = 16 << 20 / pageBytes
	vacuumPages     = 1 << 20 / pageBytes
	vacuumMostPages = 16 << 20 / pageBytes
)

// chores says whether the next transaction has more to do than to insert.
// Acknowledgements and ages wait for the tick; limits do not.
func (b *Buffer) chores(upkeep bool) bool {
	var incoming int64
	for i := range b.w.blocks {
		incoming += int64(len(b.w.blocks[i].Data)) + blockOverheadBytes
	}
	b.w.incoming = incoming
	if b.opts.WhenFull == EvictOldest && b.held.blocks > 0 {
		if b.w.pressed || b.held.bytes+incoming > b.opts.MaxBytes {
			return true
		}
	}
	if b.opts.FreeReserve > 0 && b.freeSpace()-incoming < b.opts.FreeReserve {
		return true
	}
	b.mu.Lock()
	acked := b.acks.ranges()
	waiting := acked > 0 || len(b.acks.confirmed) > 0 || len(b.unreported) > 0
	full := b.status.state() == StateFull
	b.mu.Unlock()
	if acked >= maxAckRanges || full && waiting {
		return true
	}
	if !upkeep {
		b.w.more = false
		return false
	}
	aged := b.opts.MaxAge > 0 && b.held.blocks > 0 && b.oldest < b.cutoff()
	due := waiting || aged || b.probeDue() || b.tallyDue()
	if !due {
		b.w.more = false
	}
	return due
}

// cutoff is the running time before which blocks are too old.
func (b *Buffer) cutoff() int64 { return b.clock.now() - b.opts.MaxAge.Milliseconds() }

// evict deletes the oldest blocks as the limits demand, whether they are in
// flight or not: where the cloud has them after all, stored wins. What is
// acknowledged goes first; only when all of that is gone is anything lost.
func (t *txn) evict(budget *deleteBudget) error {
	b := t.b
	if b.held.blocks == 0 {
		return nil
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
	if excess := t.held().bytes + b.w.incoming - b.opts.MaxBytes; excess > 0 {
		excess += min(b.opts.MaxBytes/slackShare, slackMost)
		if err := t.evictBytes(maxBytes, budget, excess); err != nil {
			return err
		}
	}
	short, err := b.shortage()
	if err != nil {
		return err
	}
	if b.w.pressed {
		short = max(short, 2*b.w.incoming, pressedBytes)
	}
	if short > 0 {
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

// evictOldest deletes blocks from the oldest on while take says so, and
// records them as lost in the same transaction.
func (t *txn) evictOldest(why cause, budget *deleteBudget, take func(*victim) bool) error {
	if budget.spent() {
		t.more = true
		return nil
	}
	var losses []*loss // one for each epoch
	var lastKey int64
	_, err := t.victims(t.b.store.oldVictims, []any{budget.blocks}, func(v *victim) bool {
		if !take(v) {
			return false
		}
		if budget.spent() {
			t.more = true
			return false
		}
		budget.take(v)
		t.probeDelete(v)
		t.evicted[why].add(v.totals())
		lastKey = v.key
		switch n := len(losses); {
		case v.reported || !v.valid(): // of the first the cloud heard, of the second nothing is known
		case n == 0 || losses[n-1].epoch != v.epoch:
			losses = append(losses, newLoss(v))
		default:
			losses[n-1].add(v)
		}
		return true
	})
	if err != nil {
		return err
	}
	if budget.blocks <= 0 {
		t.more = true // the query ended there
	}
	if lastKey == 0 {
		return nil
	}
	// Nothing older is left, so this is all from the start.
	if _, err := t.b.store.deleteBlocks.ExecContext(context.Background(), 0, lastKey); err != nil {
		return err
	}
	for _, l := range losses {
		if err := t.lose(why, l); err != nil {
			return fmt.Errorf("record loss: %w", err)
		}
	}
	_, err = t.b.store.sweepEpochs.ExecContext(context.Background(), t.b.known.base())
	return err
}

// shortage returns how many bytes are missing from FreeReserve, counting the
// pages of the file that are unused, since the next blocks go there.
func (b *Buffer) shortage() (int64, error) {
	if b.opts.FreeReserve == 0 {
		return 0, nil
	}
	short := b.opts.FreeReserve - b.freeSpace() + b.w.incoming
	if short <= 0 {
		return 0, nil
	}
	unused, err := b.store.pragma("freelist_count")
	if err != nil {
		return 0, err
	}
	return short - unused*pageBytes, nil
}

// freeSpace returns the bytes free on the file system, as of a second ago at
// most. Where it can't be known, nothing is evicted for it.
func (b *Buffer) freeSpace() int64 {
	now := b.clock.elapsed()
	if now-b.w.freeAt < freeInterval {
		return b.w.free
	}
	free, err := b.opts.free(b.opts.Dir)
	if err != nil {
		b.trouble(err)
		free = 1 << 62
	}
	b.w.free, b.w.freeAt = free, now
	return free
}

// afterRound does what can wait until everybody has their answer.
func (b *Buffer) afterRound(upkeep bool) {
	if b.w.logPages >= checkpointPages {
		if err := b.checkpoint(); err != nil {
			b.trouble(err)
		}
	}
	if upkeep && b.w.failed == 0 {
		if err := b.vacuum(); err != nil {
			b.trouble(err)
		}
	}
}

// trouble logs what went wrong with upkeep, which is tried again, once.
func (b *Buffer) trouble(err error) {
	if text := err.Error(); text != b.w.chore {
		b.w.chore = text
		b.log.Warn("upkeep of the buffer failed, trying again", "error", err)
	}
}

// checkLimits decides whether appends are refused from now on. Up to a queue
// of samples (16 MiB, below 1 MiB as blocks) may still go in beyond the limit.
func (b *Buffer) checkLimits() {
	if b.opts.WhenFull != Refuse {
		return
	}
	limit := ""
	b.w.incoming = 0
	if b.held.bytes >= b.opts.MaxBytes {
		limit = fmt.Sprintf("it holds max_bytes (%d)", b.opts.MaxBytes)
	} else if short, err := b.shortage(); err != nil {
		b.trouble(err)
		return
	} else if short > 0 {
		limit = fmt.Sprintf("less than free_reserve (%d bytes) is free on the disk", b.opts.FreeReserve)
	}
	b.mu.Lock()
	before := b.status.state()
	b.status.limit = limit
	after := b.status.state()
	b.mu.Unlock()
	b.logState(before, after, nil)
}

// checkpoint copies the log into the database if it is as long as was
// estimated. If readers kept that from ending for long, it waits for them
// (they take milliseconds).
func (b *Buffer) checkpoint() error {
	left, err := b.store.checkpoint("NOOP")
	if err == nil && left >= checkpointPages {
		left, err = b.store.checkpoint("PASSIVE")
	}
	if err == nil && left > 2*checkpointPages {
		left, err = b.store.checkpoint("TRUNCATE")
	}
	if err != nil {
		b.w.logPages = checkpointPages / 2 // not at every commit
		return err
	}
	b.w.logPages = left
	return nil
}

// vacuum gives unused pages back to the file system while nothing waits.
func (b *Buffer) vacuum() error {
	unused, err := b.store.pragma("freelist_count")
	if err != nil {
		return err
	}
	keep := int64(keepFreePages)
	if b.opts.FreeReserve > 0 && b.freeSpace() < b.opts.FreeReserve {
		keep = 0
	}
	for done := 0; unused > keep && done < vacuumMostPages && len(b.work) == 0 && b.life.Err() == nil; done += vacuumPages {
		n := min(unused-keep, vacuumPages)
		if err := b.store.vacuum(int(n)); err != nil {
			return err
		}
		unused -= n
		b.w.logPages += int(2 * n)           // each is filled from the end of the file, and pointed to anew
		b.w.freeAt = -freeInterval           // ask again
		if b.w.logPages >= checkpointPages { // which is what makes the file shorter
			return b.checkpoint()
		}
	}
	return nil
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
