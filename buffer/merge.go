package buffer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"touchline"
	"touchline/wire"
)

const (
	// mergeSamples is how many samples a block is to have. A low-rate site
	// commits a few at a time, and a block of ten takes some 20 bytes for each
	// of them; one of thousands takes 1 to 3. Each block is merged once.
	mergeSamples = 8192
	// mergeSpan bounds the running time that one block covers, and
	// mergeAgeShare makes it a 16th of MaxAge where that is less: a block has
	// the age of its youngest sample, so that none is given up before its time,
	// and none later than by that.
	mergeSpan     = time.Hour
	mergeAgeShare = 16
	// mergeBlocks bounds what one merge reads.
	mergeBlocks = mergeSamples
	// mergesATick bounds what a tick may do while nothing waits: 130,000
	// samples, some 100 ms.
	mergesATick = 16
)

// A storedBlock is a row of the table of blocks.
type storedBlock struct {
	wire.Block
	key       int64
	committed int64 // running ms; negative where it was reported as damaged
}

// handOut notes that readers have blocks up to a key: they are frozen. It is
// called with b.readers held shared, under which they were read: merging holds
// it exclusively. The goroutine that merges needs no lock.
func (b *Buffer) handOut(last int64) {
	for {
		was := b.frozen.Load()
		if was >= last || b.frozen.CompareAndSwap(was, last) {
			return
		}
	}
}

// merge makes large blocks of small ones that nobody has seen: those of this
// opening, behind the last that was handed out. The numbers of their samples
// change within the numbers that they have together, which is why nobody may
// have seen them.
func (b *Buffer) merge() error {
	for done := 0; done < mergesATick && (done == 0 || len(b.work) == 0) && b.life.Err() == nil; done++ {
		merged, err := b.mergeOnce()
		if err != nil || !merged {
			return err
		}
	}
	return nil
}

// mergeSpanMS is the running time that one block may cover.
func (b *Buffer) mergeSpanMS() int64 {
	span := mergeSpan
	if b.opts.MaxAge > 0 {
		span = min(span, b.opts.MaxAge/mergeAgeShare)
	}
	return span.Milliseconds()
}

// mergeOnce makes one block, or a few where one could not hold them, of the
// next small ones, and says whether there may be more to do.
func (b *Buffer) mergeOnce() (bool, error) {
	last := b.known.base() + int64(b.w.nextSeq) - 1
	from := max(b.w.mergedTo, b.frozen.Load(), b.known.base()) + 1
	waited := b.clock.now() - b.w.mergeFrom
	if from > last || last-from+1 < mergeSamples && waited < b.mergeSpanMS() {
		if from > last {
			b.w.mergeFrom = b.clock.now()
		}
		return false, nil
	}
	// Readers wait while blocks change under their numbers; where one reads
	// now, there is another tick.
	if b.spaceIsShort() || !b.readers.TryLock() {
		return false, nil
	}
	defer b.readers.Unlock()
	from = max(from, b.frozen.Load()+1) // now nobody reads
	blocks, err := b.mergeCandidates(from)
	if err != nil || len(blocks) == 0 {
		return false, err
	}
	run, err := b.decodeRun(blocks)
	if err != nil {
		return false, fmt.Errorf("merge blocks: %w", err)
	}
	blocks = run.blocks
	end := blocks[len(blocks)-1].key + int64(blocks[len(blocks)-1].Count) - 1
	if len(blocks) > 1 {
		if err := b.mergeBlocks(&run); err != nil {
			return false, fmt.Errorf("merge blocks: %w", err)
		}
	}
	b.w.mergedTo, b.w.mergeFrom = end, b.clock.now()
	return true, nil
}

// mergeCandidates reads the run of blocks that become one. One that is large
// already is a run of its own.
func (b *Buffer) mergeCandidates(from int64) (run []storedBlock, err error) {
	rows, err := b.store.readRun.QueryContext(context.Background(), from, mergeBlocks)
	if err != nil {
		return nil, fmt.Errorf("read blocks to merge: %w", err)
	}
	defer rows.Close()
	samples, bytes := 0, 0
	for rows.Next() {
		var r storedBlock
		if err := rows.Scan(&r.key, &r.Count, &r.CRC, &r.Data, &r.committed); err != nil {
			return nil, fmt.Errorf("read blocks to merge: %w", contentError(err))
		}
		i, first, known := b.known.of(r.key)
		if !known || i != b.known.current() {
			return run, nil
		}
		r.Epoch, r.First = b.known.uuids[i], first
		if r.committed < 0 || r.Check() != nil {
			// A reader will report it. It stays as it is, and so does what is
			// before it.
			if len(run) == 0 {
				run = append(run, r)
			}
			return run, nil
		}
		if n := len(run); n > 0 {
			before := &run[n-1]
			if before.Last()+1 != r.First || samples+int(r.Count) > 2*mergeSamples ||
				bytes+len(r.Data) > wire.MaxBlockBytes || r.committed-run[0].committed > b.mergeSpanMS() {
				return run, nil
			}
		}
		run = append(run, r)
		samples, bytes = samples+int(r.Count), bytes+len(r.Data)
		if samples >= mergeSamples {
			return run, nil
		}
	}
	return run, rows.Err()
}

// A mergeRun is neighbours that become one block.
type mergeRun struct {
	blocks     []storedBlock
	samples    []touchline.Sample
	attributes wire.Attributes // of the last, which has the latest time of commit
}

// decodeRun reads neighbours, up to the first that was stamped by another
// setting of the clock: what is said of a block is said of all its samples.
func (b *Buffer) decodeRun(blocks []storedBlock) (mergeRun, error) {
	run := mergeRun{blocks: blocks[:1]}
	if len(blocks) == 1 {
		return run, nil
	}
	for i := range blocks {
		samples, err := b.w.decoder.Decode(run.samples, blocks[i].Data)
		if err != nil {
			return run, err
		}
		attributes := b.w.decoder.Attributes()
		if i > 0 && !attributes.SameClock(run.attributes) {
			break
		}
		if n := len(samples) - len(run.samples); n != int(blocks[i].Count) {
			return run, fmt.Errorf("%w: block %d has %d samples, and says %d", errDamaged, blocks[i].key, n, blocks[i].Count)
		}
		run.samples, run.attributes, run.blocks = samples, attributes, blocks[:i+1]
	}
	return run, nil
}

// mergeBlocks puts blocks of the same samples in the place of a run. b.readers
// is held.
func (b *Buffer) mergeBlocks(merge *mergeRun) error {
	run, old := merge.blocks, totals{}
	for i := range run {
		old.add(totals{1, int64(run[i].Count), int64(len(run[i].Data)) + blockOverheadBytes})
	}
	b.w.blocks, b.w.arena = b.w.blocks[:0], b.w.arena[:0]
	if err := b.encodeRun(run[0].First, merge.samples, merge.attributes); err != nil {
		return err
	}
	blocks := b.w.blocks
	t, err := b.begin()
	if err != nil {
		return err
	}
	lastKey := run[len(run)-1].key
	if err := t.replace(run[0].key, lastKey, blocks, run[len(run)-1].committed); err != nil {
		t.rollback()
		return err
	}
	t.merged = old
	t.probeKey, t.probeWant = lastKey, 0
	if blocks[len(blocks)-1].First == run[len(run)-1].First {
		t.probeKey = run[1].key // there are as many as before at the end
	}
	if err := errors.Join(t.tally(), t.findOldest()); err != nil {
		t.rollback()
		return err
	}
	if err = t.commit(); err != nil {
		// The log may hold it whole, so that a power cut brings it about, until
		// the next commit overwrites it: what it would change is not to be read
		// before that. That commit is not left to the next sample.
		b.unsure.Store(run[0].key)
		signal(b.work)
	}
	b.note(err)
	b.w.pressed = false // a merge that finds no room is no ground to give anything up
	b.noticeDamage(err)
	return err
}

// replace deletes blocks and inserts those that take their place.
func (t *txn) replace(first, last int64, blocks []encoded, committed int64) error {
	if _, err := t.b.store.deleteBlocks.ExecContext(context.Background(), first, last); err != nil {
		return err
	}
	for i := range blocks {
		block := &blocks[i]
		_, err := t.b.store.insertBlock.ExecContext(context.Background(), t.b.known.base()+int64(block.First), int64(block.Count),
			block.minTime, block.maxTime, int64(block.CRC), committed, block.Data)
		if err != nil {
			return err
		}
		t.became.add(totals{1, int64(block.Count), int64(len(block.Data)) + blockOverheadBytes})
	}
	return nil
}
