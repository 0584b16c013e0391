package buffer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	sqlite3 "github.com/mattn/go-sqlite3"

	"touchline"
	"touchline/internal/folder"
	"touchline/wire"
)

// maxDamagedKnown bounds how many damaged blocks are remembered as counted.
const maxDamagedKnown = 65536

// A DamageError ends Run: SQLite found the file damaged while it was in use.
// It is set aside by Close, or by the next Open, which begins a new one and
// takes over what holds; so the process ends and is started again. That can't
// become a loop: the next start has another file.
type DamageError struct {
	Path string // of the database as it was
	Err  error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s is damaged, and is set aside: start again (%v)", e.Path, e.Err)
}

// Unwrap returns what SQLite said.
func (e *DamageError) Unwrap() error { return e.Err }

// noticeDamage ends Run if err says that the file is damaged. That the file
// is to be set aside is written down first, for a start may not meet the
// damage: it reads little.
func (b *Buffer) noticeDamage(err error) {
	var e sqlite3.Error
	inserting := errors.As(err, &e) && e.Code == sqlite3.ErrConstraint // keys are new, so something else is old
	if !inserting && !isDamage(err) {
		return
	}
	b.mu.Lock()
	first := b.damage == nil
	if first {
		b.damage = &DamageError{Path: b.store.path, Err: err}
	}
	b.mu.Unlock()
	if !first {
		return
	}
	b.log.Error("buffer is damaged: it is set aside and a new one begun, when this process has ended and is started again",
		"file", b.store.path, "error", err)
	if err := writeDurably(filepath.Join(b.opts.Dir, suspectName), []byte(err.Error()+"\n")); err != nil {
		b.log.Warn("damage can't be written down for the next start", "error", err)
	}
	b.stop()
}

// damageFound returns the error that ends Run, nil if there is none.
func (b *Buffer) damageFound() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone != nil {
		return b.gone
	}
	if b.damage == nil {
		return nil
	}
	return b.damage
}

// abandon answers all that waits, without a commit.
func (b *Buffer) abandon(err error) {
	b.refuse(ErrClosed)
	taken := b.take()
	b.w.evicts = append(b.w.evicts, taken.evicts...)
	b.answer(taken, &CommitError{Err: err})
	b.answerEvicts(err)
}

// putAway moves a damaged file out of the way while it is still open, since
// SQLite writes the log into it when it is closed, unless it was renamed.
func (b *Buffer) putAway() error {
	err := b.damageFound()
	var gone *GoneError
	if err == nil || errors.As(err, &gone) {
		return nil // what lies there now is not ours to move
	}
	a, err := setAside(b.store.path, finding{kind: damaged, why: err.Error()}, nil)
	if err != nil {
		return err // the next Open does it
	}
	b.log.Warn("buffer was set aside", "file", a.path)
	if err := a.writeReport(); err != nil {
		b.log.Warn("report of a file set aside can't be written", "error", err)
	}
	return removeSuspect(b.opts.Dir)
}

// removeSuspect is durable before a new file is begun: it would be set aside
// for what was found in the old one.
func removeSuspect(dir string) error {
	err := os.Remove(filepath.Join(dir, suspectName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("forget damage: %w", err)
	}
	return folder.Sync(dir)
}

// numberOf returns a column of a row that may be damaged as a number of 32
// bits, 0 if it is none.
func numberOf(column any) uint32 {
	n, ok := column.(int64)
	if !ok || n < 0 || n > math.MaxUint32 {
		return 0
	}
	return uint32(n)
}

// A damagedBlock is one whose CRC does not hold, in a file that is sound
// otherwise. It stays where it is, counts for MaxBytes, and goes when it is
// evicted or the cloud says that it has it.
type damagedBlock struct {
	key      int64
	epoch    int // index
	first    uint64
	reported bool  // as lost
	samples  int64 // that were reported
}

// countDamaged counts and logs a damaged block the first time that it is met,
// and leaves it to the next transaction to record the loss.
func (b *Buffer) countDamaged(block damagedBlock, why error) {
	at := touchline.Position{Epoch: b.known.uuids[block.epoch], Seq: block.first}
	b.mu.Lock()
	_, known := b.damaged[at]
	known = known || len(b.damaged) >= maxDamagedKnown
	if !known {
		b.damaged[at] = struct{}{}
		b.status.damaged++
		if !block.reported {
			b.unreported = append(b.unreported, block)
		}
	}
	b.mu.Unlock()
	if !known {
		b.log.Warn("block in the buffer is damaged: it is kept, not sent, and told the cloud as lost",
			"file", b.store.path, "epoch", at.Epoch.String(), "first", block.first, "error", why)
	}
}

// reportDamaged records the blocks that were found damaged as lost, and marks
// them, so that a later opening does not record them again.
func (t *txn) reportDamaged() error {
	b := t.b
	b.mu.Lock()
	blocks := b.unreported[:len(b.unreported):len(b.unreported)]
	b.mu.Unlock()
	for _, block := range blocks {
		marked, err := b.store.markDamaged.ExecContext(context.Background(), block.key)
		if err != nil {
			return err
		}
		if n, err := marked.RowsAffected(); err != nil {
			return err
		} else if n > 0 { // else it was evicted meanwhile, or the cloud has it
			l, err := t.damageOf(block)
			if err != nil {
				return err
			}
			if len(l.ranges) > 0 {
				if err := t.lose(damage, l); err != nil {
					return err
				}
			}
			block.samples = int64(l.ranges.Count())
		}
		t.reported = append(t.reported, block)
	}
	return nil
}

// damageOf says which samples a damaged block had, as far as its row can be
// believed: no more than up to the next block.
func (t *txn) damageOf(block damagedBlock) (*loss, error) {
	v := victim{epoch: block.epoch, first: block.first}
	n, err := t.victims(t.b.store.victimAt, []any{block.key}, func(row *victim) bool {
		v = *row
		return true
	})
	if err != nil || n == 0 || v.count < 1 || v.count > wire.MaxBlockSamples || v.minTime > v.maxTime {
		return &loss{epoch: block.epoch}, err
	}
	next, count, err := seek(t.b.store.firstAfter, block.key)
	if err != nil {
		return nil, err
	}
	if count != 0 {
		v.count = min(v.count, next-block.key)
	}
	if !v.valid() {
		return &loss{epoch: block.epoch}, nil
	}
	return newLoss(&v), nil
}

// applyReported forgets what a transaction recorded. b.mu is held.
func (b *Buffer) applyReported(blocks []damagedBlock) {
	b.unreported = b.unreported[len(blocks):]
	for _, block := range blocks {
		b.status.damagedSamples += uint64(block.samples)
	}
}
