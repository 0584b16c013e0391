package buffer

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"touchline/internal/folder"
)

const ballastName = "buffer.ballast"

// ballastFor returns the size of the ballast. Deleting from a full disk needs
// space too: a transaction that forgets or evicts writes some hundred pages
// into the log (1,024 blocks of 8 MiB are deleted by writing their lists, not
// their pages), and before the log can be cut, copying it makes the database
// longer by as much as it holds. So it is the longest log, 16 MiB at most, an
// eighth of it for commits that are longer than that, and 1 MiB for the rest.
func ballastFor(logPages int) int64 {
	log := int64(logPages) * pageBytes
	return log + log/8 + 1<<20
}

// A ballast is a file of no use but the space that it takes, which is given
// back when the disk is full, so that the buffer can get out of that by
// itself. It is made again when there is room. A file of no bytes is one that
// was given back, also before a crash. The goroutine of Run owns it.
type ballast struct {
	path  string
	size  int64 // that it should have; not above 0 for none
	there int64 // bytes that it takes
	given bool  // it was given back, and is missing
}

// findBallast looks what an earlier run left.
func findBallast(path string) ballast {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return ballast{path: path}
	}
	return ballast{path: path, there: allocated(info), given: info.Size() == 0}
}

// missing is how many bytes are to be found to make it again.
func (l *ballast) missing() int64 {
	if !l.given {
		return 0
	}
	return max(l.size-l.there, 0)
}

// give empties the file, and waits until the file system has the space.
func (l *ballast) give() error {
	f, err := folder.OpenFile(l.path, os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("give back ballast: %w", err)
	}
	l.there, l.given = 0, true
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("give back ballast: %w", err)
	}
	return nil
}

// make takes the space. What it can't take as a whole it leaves.
func (l *ballast) make() error {
	f, err := folder.OpenFile(l.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make ballast: %w", err)
	}
	err = allocate(f, l.size)
	if errors.Is(err, errors.ErrUnsupported) {
		err = fill(f, l.size)
	}
	if err == nil {
		err = f.Truncate(l.size) // where it was longer
	}
	if err != nil {
		_ = f.Truncate(0) // given back, as before
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("make ballast: %w", err)
	}
	l.there, l.given = l.size, false
	return nil
}

// fill writes what no file system makes smaller.
func fill(f *os.File, size int64) error {
	_, err := io.CopyN(f, rand.NewChaCha8([32]byte{}), size)
	return err
}

// giveBallast is called when the disk was found full.
func (b *Buffer) giveBallast() {
	if b.w.ballast.there == 0 {
		return
	}
	size := b.w.ballast.there
	if err := b.w.ballast.give(); err != nil {
		b.trouble(err)
		return
	}
	b.forgetFree()
	b.noteBallast()
	b.log.Warn("the disk is full: the ballast is given back, so that the buffer gets out of it",
		"file", b.w.ballast.path, "bytes", size)
}

// makeBallast makes the ballast, if there is none and there is room for it.
func (b *Buffer) makeBallast() error {
	l := &b.w.ballast
	if l.size <= 0 || l.there >= l.size {
		b.noteBallast()
		return nil
	}
	log, owed, err := b.logSpace()
	if err != nil {
		return err
	}
	b.forgetFree()
	// A log that is in the way is cut.
	if need := b.opts.FreeReserve + l.size - l.there - (b.freeSpace() - owed); need > 0 && need <= log {
		if _, err := b.store.checkpoint("TRUNCATE"); err != nil {
			return err
		}
		b.w.logPages, owed = 0, 0
		b.forgetFree()
	}
	if b.freeSpace()-owed < b.opts.FreeReserve+l.size-l.there {
		b.noteBallast()
		return nil
	}
	was := l.given
	err = l.make()
	b.forgetFree()
	b.noteBallast()
	if err == nil && was {
		b.log.Info("the ballast is in its place again", "file", l.path, "bytes", l.size)
	}
	return err
}

// noteBallast lets Stats see it.
func (b *Buffer) noteBallast() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.ballast, b.status.ballastGiven = b.w.ballast.there, b.w.ballast.missing() > 0
}
