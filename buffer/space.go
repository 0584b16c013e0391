package buffer

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

const (
	// A log of 16 MiB is copied into the database at once: many commits
	// change the same pages, which are copied once. Where the disk has little
	// room for us the log has a 16th of it, and 1 MiB at least.
	maxLogPages = 16 << 20 / pageBytes
	minLogPages = 1 << 20 / pageBytes
	logShare    = 16

	// freeInterval is how often the file system is asked for free space,
	// unless what was written since could matter.
	freeInterval = time.Second
)

// planSpace decides how long the log may get and how large the ballast is, by
// what the disk has for this buffer: what is free and what its files take.
func (b *Buffer) planSpace(ctx context.Context) error {
	free, err := b.opts.free(b.opts.Dir)
	if err != nil {
		return err
	}
	log, err := sizeOf(b.store.path + "-wal")
	if err != nil {
		return fmt.Errorf("look at log: %w", err)
	}
	database, err := sizeOf(b.store.path)
	if err != nil {
		return fmt.Errorf("look at database: %w", err)
	}
	b.w.ballast = findBallast(filepath.Join(b.opts.Dir, ballastName))
	room := free + log + database + b.w.ballast.there - b.opts.FreeReserve
	b.logLimit = int(min(max(room/logShare/pageBytes, minLogPages), maxLogPages))
	if err := b.store.limitLog(ctx, b.logLimit); err != nil {
		return err
	}
	b.w.ballast.size = b.opts.ballast
	if b.opts.ballast == 0 {
		b.w.ballast.size = ballastFor(b.logLimit)
	}
	b.tryUpkeep(b.makeBallast())
	return nil
}

// reserve is how many bytes are to stay free: those that the operator wants,
// and those of a ballast that was given back.
func (b *Buffer) reserve() int64 { return b.opts.FreeReserve + b.w.ballast.missing() }

// freeSpace returns the bytes free on the file system: at most a second old,
// and less what was written since, or asked anew where that could matter.
// Where it can't be known, nothing is evicted for it.
func (b *Buffer) freeSpace() int64 {
	now := b.clock.elapsed()
	if left := b.w.free - b.w.written; now-b.w.freeAt < freeInterval && (b.w.written == 0 || left-b.owedMost() >= b.reserve()) {
		return left
	}
	free, err := b.opts.free(b.opts.Dir)
	if err != nil {
		b.trouble(err)
		free = 1 << 62
	}
	b.w.free, b.w.freeAt, b.w.written = free, now, 0
	return free
}

// forgetFree makes freeSpace ask again.
func (b *Buffer) forgetFree() { b.w.freeAt = b.clock.elapsed() - freeInterval }

// owedMost is what will be taken of the free space at most: copying the log
// makes the database longer, and what comes in goes through both.
func (b *Buffer) owedMost() int64 { return int64(b.w.logPages)*pageBytes + 2*b.w.incoming }

// spaceIsShort says whether the free space has to be looked at closely.
func (b *Buffer) spaceIsShort() bool { return b.freeSpace()-b.owedMost() < b.reserve() }

// shortage returns how many bytes are missing from the reserve when the log is
// copied and cut, and what comes in has its place. Unused pages of the file
// count as free, since the next blocks go there.
func (b *Buffer) shortage() (int64, error) {
	if !b.spaceIsShort() {
		return 0, nil
	}
	log, owed, err := b.logSpace()
	if err != nil {
		return 0, err
	}
	unused, err := b.store.pragma("freelist_count")
	if err != nil {
		return 0, err
	}
	return b.reserve() + 2*b.w.incoming - (b.freeSpace() + log - owed) - unused*pageBytes, nil
}

// logSpace returns the bytes that the log takes of the disk, and those by which
// copying it makes the database longer.
func (b *Buffer) logSpace() (log, owed int64, err error) {
	if log, err = sizeOf(b.store.path + "-wal"); err != nil {
		return 0, 0, fmt.Errorf("look at log: %w", err)
	}
	database, err := sizeOf(b.store.path)
	if err != nil {
		return 0, 0, fmt.Errorf("look at database: %w", err)
	}
	pages, err := b.store.pragma("page_count")
	return log, max(pages*pageBytes-database, 0), err
}

// makeRoom copies the log and cuts it, where that gives the next commit the
// space that it lacks: before anything is evicted for it, and before the log
// is longer than the disk has room to copy.
func (b *Buffer) makeRoom() {
	b.w.incoming = b.incomingBytes()
	if !b.w.pressed && !b.spaceIsShort() {
		return
	}
	log, owed, err := b.logSpace()
	if err == nil && (b.w.pressed || log-owed > int64(b.logLimit)*pageBytes/4) {
		_, err = b.store.checkpoint("TRUNCATE")
		b.forgetFree()
		if err == nil {
			b.w.logPages = 0
		}
	}
	b.tryUpkeep(err)
}

// incomingBytes is what the blocks at hand add to totals.bytes.
func (b *Buffer) incomingBytes() (n int64) {
	for i := range b.w.blocks {
		n += int64(len(b.w.blocks[i].Data)) + blockOverheadBytes
	}
	return n
}

// spaceLimit says to a person why samples are refused for want of space.
func (b *Buffer) spaceLimit() string {
	if b.w.ballast.missing() > 0 {
		return fmt.Sprintf("the disk was full, and has not again %d bytes free: make space", b.reserve())
	}
	return fmt.Sprintf("less than free_reserve (%d bytes) is free on the disk", b.opts.FreeReserve)
}
