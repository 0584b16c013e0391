package buffer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"touchline"
)

// A txn is one transaction, and what it changes in memory once it is in the
// file. Memory follows the file, never the other way round.
type txn struct {
	b *Buffer

	inserted, forgot totals
	evicted          [causes]totals
	merged, became   totals // small blocks, and those in their place
	marks            marks  // of what is stored
	marksChanged     bool
	acked            int64                     // samples, newly stored
	ackedLeft        map[int]*touchline.Ranges // acknowledged, but beyond this transaction's budget
	lost             []lostChange
	reported         []damagedBlock
	clocks           []bootClock // rows as they are now
	nextSeq          uint64
	epochSaved       bool
	clock            int64 // running ms
	tallied          bool
	named            bool // keys of messages are in it
	oldest           int64
	more             bool

	// After a COMMIT that failed, the file is asked for the block with this
	// key: it was inserted by this transaction, or deleted by it.
	probeKey  int64 // 0 for none
	probeWant int   // rows there if the transaction took place
}

// changed says whether the transaction changes the file.
func (t *txn) changed() bool {
	return t.inserted.blocks > 0 || t.forgot.blocks > 0 || t.evicted != [causes]totals{} || t.marksChanged || len(t.lost) > 0 || len(t.reported) > 0 || len(t.clocks) > 0 || t.tallied || t.named
}

// totals of blocks. bytes is data and blockOverheadBytes for each.
type totals struct {
	blocks, samples, bytes int64
}

// blockOverheadBytes is what a block takes in the file besides its data, so
// that many small blocks are not counted as nothing: eight integers (30),
// cell and record heads (14), its share of the page's unused end (20).
const blockOverheadBytes = 64

func (t *totals) add(o totals) {
	t.blocks += o.blocks
	t.samples += o.samples
	t.bytes += o.bytes
}

func (t *totals) subtract(o totals) {
	t.blocks -= o.blocks
	t.samples -= o.samples
	t.bytes -= o.bytes
}

// begin starts a transaction. database/sql is used without a context that
// can end: a commit is short, and one that is interrupted helps nobody.
func (b *Buffer) begin() (*txn, error) {
	_, err := b.store.begin.ExecContext(context.Background())
	if err = b.inject("begin", err); err != nil {
		// Were one open, no other could ever begin.
		_, _ = b.store.rollback.ExecContext(context.Background())
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	return &txn{
		b:          b,
		nextSeq:    b.w.nextSeq,
		epochSaved: b.w.epochSaved,
		clock:      b.clock.now(),
		oldest:     b.oldest,
		marks:      b.marks,
	}, nil
}

// fill does everything that the transaction is for. Deleting comes before
// inserting: the pages that it frees are the ones that are filled.
func (t *txn) fill(chores bool) error {
	if chores {
		budget := deleteBudget{blocks: maxDeleteBlocks, bytes: maxDeleteBytes}
		t.marks = slices.Clone(t.marks)
		if err := t.unstore(); err != nil {
			return fmt.Errorf("compare stored blocks: %w", err)
		}
		if err := t.applyAcks(); err != nil {
			return fmt.Errorf("mark stored blocks: %w", err)
		}
		if err := t.confirmLost(); err != nil {
			return fmt.Errorf("forget lost records: %w", err)
		}
		if err := t.correct(); err != nil {
			return fmt.Errorf("record clock: %w", err)
		}
		if err := t.reportDamaged(); err != nil {
			return fmt.Errorf("record damaged blocks: %w", err)
		}
		if err := t.forget(&budget); err != nil {
			return fmt.Errorf("forget stored blocks: %w", err)
		}
		if err := t.evict(&budget); err != nil {
			return fmt.Errorf("evict blocks: %w", err)
		}
	}
	if err := t.insert(); err != nil {
		return fmt.Errorf("insert block: %w", err)
	}
	if err := t.saveKeys(); err != nil {
		return fmt.Errorf("save keys: %w", err)
	}
	if t.marksChanged {
		if err := t.saveMarks(t.b.w.savedMarks); err != nil {
			return fmt.Errorf("save marks: %w", err)
		}
	}
	if err := t.tally(); err != nil {
		return fmt.Errorf("tally blocks: %w", err)
	}
	if err := t.findOldest(); err != nil {
		return fmt.Errorf("find oldest block: %w", err)
	}
	return nil
}

// insert adds the batch's blocks.
func (t *txn) insert() error {
	b, s, ctx := t.b, t.b.store, context.Background()
	if len(b.w.blocks) == 0 {
		return nil
	}
	base := b.known.base()
	if !t.epochSaved {
		if _, err := s.sweepEpochs.ExecContext(ctx, base); err != nil {
			return err
		}
		if _, err := s.insertEpoch.ExecContext(ctx, base, b.epoch[:]); err != nil {
			return err
		}
		t.epochSaved = true
	}
	t.probeKey, t.probeWant = base+int64(b.w.blocks[0].First), 1
	for i := range b.w.blocks {
		block := &b.w.blocks[i]
		_, err := s.insertBlock.ExecContext(ctx, base+int64(block.First), int64(block.Count),
			block.minTime, block.maxTime, int64(block.CRC), t.clock, block.Data)
		if err = b.inject("insert", err); err != nil {
			return err
		}
		if block.doubted != nil {
			if err := t.doubt(block.doubted); err != nil {
				return err
			}
		}
		t.inserted.add(totals{blocks: 1, samples: int64(block.Count), bytes: int64(len(block.Data)) + blockOverheadBytes})
		t.nextSeq = block.Last() + 1
	}
	return nil
}

// tally keeps what the file holds as of this transaction, and the running
// time. It must be right, so each transaction that deletes writes it.
func (t *txn) tally() error {
	b := t.b
	// A failing disk is asked to take this when nothing else is there to be
	// written, to find out when it is back.
	if !t.deletes() && !b.tallyDue() && !b.probeDue() {
		return nil
	}
	held := t.held()
	last := b.known.base() + int64(t.nextSeq) - 1
	_, err := b.store.saveTally.ExecContext(context.Background(), last,
		held.blocks, held.samples, held.bytes-held.blocks*blockOverheadBytes, t.clock)
	t.tallied = true
	return err
}

// probeDue says whether to try if the disk takes something again: a full one
// when it has room, since appends may be refused until then. After a merge that
// failed it is tried whatever is free: readers wait for it, and a full disk may
// have no other way to get room than that they go on.
func (b *Buffer) probeDue() bool {
	return b.unsure.Load() != 0 || b.w.failed > 0 && (!b.w.pressed || !b.spaceIsShort())
}

// tallyDue is false without blocks: then there are no ages either.
func (b *Buffer) tallyDue() bool {
	return b.held.blocks > 0 && b.clock.now()-b.w.talliedAt >= tallyInterval.Milliseconds()
}

func (t *txn) deletes() bool {
	return t.forgot.blocks > 0 || t.merged.blocks > 0 || t.evicted != [causes]totals{}
}

// held returns what the file holds with this transaction.
func (t *txn) held() totals {
	held := t.b.held
	held.add(t.inserted)
	held.subtract(t.forgot)
	held.subtract(t.merged)
	held.add(t.became)
	for _, n := range t.evicted {
		held.subtract(n)
	}
	return held
}

// findOldest looks for the age of the oldest block, where it may have changed.
func (t *txn) findOldest() error {
	if !t.deletes() && !t.marksChanged {
		if t.b.backlog().blocks == 0 {
			t.oldest = t.clock
		}
		return nil
	}
	if t.held().blocks == t.marks.sum().blocks { // without a look at each mark
		t.oldest = t.clock
		return nil
	}
	var err error
	t.oldest, err = t.b.store.oldestOutside(t.marks, t.clock)
	return err
}

// rollback ends a transaction that failed before its COMMIT: nothing of it is
// in the file.
func (t *txn) rollback() {
	// SQLite rolls back by itself after some errors, and then refuses this.
	_, _ = t.b.store.rollback.ExecContext(context.Background())
	t.undo()
}

// commit ends the transaction. If COMMIT fails, the file decides what
// happened: SQLite makes a transaction visible after it is synced, so one
// that is visible took place and its numbers are taken, and of one that is
// not the numbers are free, since the next transaction overwrites its place
// in the log. (After a power cut in between it may reappear, in an epoch that
// is closed by then.) Either way the error is returned: a sync that failed
// once is no ground for telling a sensor that its samples are safe.
func (t *txn) commit() error {
	b := t.b
	_, err := b.store.commit.ExecContext(context.Background())
	if err = b.inject("commit", err); err == nil {
		t.apply()
		return b.files.inPlace()
	}
	_, _ = b.store.rollback.ExecContext(context.Background())
	b.w.unsettled = t
	if later := b.settle(); later != nil {
		b.log.Warn("fate of a failed commit is open until the file can be read", "error", later)
	}
	return fmt.Errorf("commit: %w", err)
}

// settle finds out whether the transaction whose COMMIT failed took place.
// Nothing is written before that is known.
func (b *Buffer) settle() error {
	t := b.w.unsettled
	if t == nil {
		return nil
	}
	took := false // without blocks in it, doing it again does no harm
	if t.probeKey != 0 {
		var rows int
		err := b.store.probe.QueryRowContext(context.Background(), t.probeKey).Scan(&rows)
		if err = b.inject("probe", err); err != nil {
			return fmt.Errorf("look for the blocks of a failed commit: %w", err)
		}
		took = rows == t.probeWant
	}
	b.w.unsettled = nil
	if !took && t.marksChanged {
		b.w.savedMarks = nil // without a block that tells, they may be there
	}
	if took {
		t.apply()
	} else {
		t.undo()
	}
	return nil
}

// apply makes memory what the file is now.
func (t *txn) apply() {
	b := t.b
	b.w.nextSeq, b.w.epochSaved = t.nextSeq, t.epochSaved
	b.w.more = t.more
	if t.tallied {
		b.w.talliedAt = t.clock
	}
	if t.marksChanged {
		b.w.savedMarks = &t.marks
	}
	b.w.logPages += t.pages()
	b.w.repeats.commit(t.clock)
	b.w.written += int64(t.pages()) * pageBytes
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acks.applied(t.ackedLeft)
	b.acks.drop(b.unstored)
	b.unstoring = nil
	b.marks, b.kept = t.marks, t.marks.sum()
	b.applyLost(t.lost)
	b.applyReported(t.reported)
	b.applyClocks(t.clocks)
	b.held = t.held()
	b.status.appended += uint64(t.inserted.samples)
	b.status.acked += uint64(t.acked)
	b.status.merged += uint64(t.merged.blocks)
	if t.inserted.blocks > 0 {
		b.status.commits++
		b.status.lastCommit = time.Since(b.w.started)
	}
	for cause, n := range t.evicted {
		b.status.evicted[cause] += uint64(n.samples)
	}
	b.oldest = t.oldest
	if t.inserted.blocks > 0 {
		close(b.arrived)
		b.arrived = make(chan struct{})
	}
}

// undo leaves memory as it was.
func (t *txn) undo() {
	t.b.w.repeats.takeBack()
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	t.b.acks.failed()
	t.b.acks.drop(t.b.unstored)
	for epoch, set := range t.b.unstoring {
		for _, r := range *set {
			add(t.b.unstored, epoch, r)
		}
	}
	t.b.unstoring = nil
	t.b.undoLost(t.lost)
}

// pages estimates how many pages the transaction wrote into the log: those of
// the data, and about six of trees and lists for each transaction that
// inserts or deletes.
func (t *txn) pages() int {
	deleted := t.forgot
	deleted.add(t.merged)
	for _, n := range t.evicted {
		deleted.add(n)
	}
	return 6 + int((t.inserted.bytes+t.became.bytes)/pageBytes) + int(2*t.inserted.blocks+deleted.blocks/2)
}

func (b *Buffer) inject(stage string, err error) error {
	if b.opts.fault == nil {
		return err
	}
	return b.opts.fault(stage, err)
}

// note keeps what Stats says of commits, and when to try again.
func (b *Buffer) note(err error) {
	w := &b.w
	if err != nil && isFull(err) {
		b.giveBallast()
	}
	b.mu.Lock()
	before := b.status.state()
	if err == nil {
		w.failed, w.pressed = 0, false
		if b.unsure.Swap(0) != 0 { // its place in the log is overwritten
			close(b.arrived)
			b.arrived = make(chan struct{})
		}
		b.status.failing, b.status.diskFull = false, false
		w.retryAt = time.Time{}
	} else {
		wait := min(retryFirst<<min(w.failed, 10), retryMost)
		w.failed++
		w.pressed = isFull(err)
		w.more = true // upkeep may be what gets the disk out of it
		w.retryAt = time.Now().Add(wait)
		b.status.failing, b.status.diskFull = true, w.pressed
		b.status.lastError = err.Error()
		b.status.commitErrors++
	}
	b.status.retryAt = w.retryAt
	after := b.status.state()
	b.mu.Unlock()
	b.logState(before, after, err)
}

func (b *Buffer) logState(before, after State, err error) {
	switch {
	case before == after:
	case after == StateOK:
		b.log.Info("buffer accepts samples again", "state", string(after), "before", string(before))
	case err != nil:
		b.log.Error("buffer can't commit", "state", string(after), "error", err)
	default:
		b.log.Warn("buffer is full", "state", string(after))
	}
}
