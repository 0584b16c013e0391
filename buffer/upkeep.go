package buffer

import "fmt"

const (
	// Unused pages up to 16 MiB stay in the file, where the next blocks go;
	// the rest is given back to the file system, 1 MiB at a time while
	// nothing waits, and 16 MiB a tick at most.
	keepFreePages   = 16 << 20 / pageBytes
	vacuumPages     = 1 << 20 / pageBytes
	vacuumMostPages = 16 << 20 / pageBytes
)

// afterRound does what can wait until everybody has their answer.
func (b *Buffer) afterRound(upkeep bool) {
	defer b.pulse.atDisk()()
	if b.w.logPages >= b.logLimit {
		b.tryUpkeep(b.checkpoint())
	}
	if !upkeep {
		return
	}
	if b.w.failed == 0 {
		b.tryUpkeep(b.merge())
		b.tryUpkeep(b.vacuum())
		b.tryUpkeep(b.shorten())
	}
	b.tryUpkeep(b.makeBallast())
}

// tryUpkeep logs an error of what is tried again at the next tick.
func (b *Buffer) tryUpkeep(err error) {
	if err != nil {
		b.trouble(err)
	}
}

// trouble logs what went wrong with upkeep, which is tried again, once.
func (b *Buffer) trouble(err error) {
	if text := err.Error(); text != b.w.chore {
		b.w.chore = text
		b.log.Warn("upkeep of the buffer failed, trying again", "error", err)
	}
}

// checkpoint copies the log into the database if it is as long as was
// estimated. If readers kept that from ending for long, it waits for them
// (they take milliseconds).
func (b *Buffer) checkpoint() error {
	left, err := b.store.checkpoint("NOOP")
	if err == nil && left >= b.logLimit {
		left, err = b.store.checkpoint("PASSIVE")
	}
	if err == nil && left > 2*b.logLimit {
		left, err = b.store.checkpoint("TRUNCATE")
	}
	b.forgetFree()
	if err != nil {
		b.w.logPages = b.logLimit / 2 // not at every commit
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
	needed := b.freeSpace() < b.reserve()
	if needed {
		keep = 0
	}
	// One step where space is needed, however busy it is.
	idle := func(done int) bool { return len(b.work) == 0 || needed && done == 0 }
	for done := 0; unused > keep && done < vacuumMostPages && idle(done) && b.life.Err() == nil; done += vacuumPages {
		n := min(unused-keep, vacuumPages)
		if err := b.store.vacuum(int(n)); err != nil {
			return err
		}
		unused -= n
		b.w.logPages += int(2 * n) // each is filled from the end of the file, and pointed to anew
		b.forgetFree()
		if b.w.logPages >= b.logLimit { // which is what makes the file shorter
			return b.checkpoint()
		}
	}
	return nil
}

// shorten copies and cuts the log while nothing waits, where the database is
// longer than what it holds: only that makes the file shorter, and giving up
// unused pages writes so little that the log alone would not come to it.
func (b *Buffer) shorten() error {
	if len(b.work) > 0 {
		return nil
	}
	database, err := sizeOf(b.store.path)
	if err != nil {
		return fmt.Errorf("look at database: %w", err)
	}
	pages, err := b.store.pragma("page_count")
	if err != nil || database-pages*pageBytes < vacuumPages*pageBytes {
		return err
	}
	if _, err := b.store.checkpoint("TRUNCATE"); err != nil {
		return err
	}
	b.w.logPages = 0
	b.forgetFree()
	return nil
}

// checkLimits decides whether appends are refused from now on. Up to a queue
// of samples (16 MiB, below 1 MiB as blocks) may still go in beyond the limit.
func (b *Buffer) checkLimits() {
	if b.opts.WhenFull != Refuse {
		return
	}
	limit := ""
	b.w.incoming = 0
	if b.backlog().bytes >= b.opts.MaxBytes {
		limit = fmt.Sprintf("it holds max_bytes (%d)", b.opts.MaxBytes)
	} else if short, err := b.shortage(); err != nil {
		b.trouble(err)
		return
	} else if short > 0 && b.kept.blocks == 0 {
		limit = b.spaceLimit()
	}
	b.mu.Lock()
	before := b.status.state()
	b.status.limit = limit
	after := b.status.state()
	b.mu.Unlock()
	b.logState(before, after, nil)
}
