//go:build unix

package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// lockName is the file by whose lock those who have the store open know of
// one another.
const lockName = "cloud.lock"

// A presence says whether somebody else has the store open. SQLite takes a log
// for committed when it is opened by the first one and by nobody else (its
// index dies with the last one), so that is who must make sure of the log (see
// rewriteLog); and rewriting it while another writes to it would destroy it.
//
// There are two locks, of open files (flock) and not of the process (fcntl),
// so that two stores in one process count as two. Whoever opens or closes the
// store holds the door, which is the folder's: who is here can't change
// meanwhile but by a process that dies. Whoever has it open holds here, shared.
type presence struct {
	door, here *os.File
	left       sync.Once
}

// enterFolder makes dir if it is missing, and waits for the door.
func enterFolder(ctx context.Context, dir string) (_ *presence, err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	p := &presence{}
	if p.door, err = os.Open(dir); err != nil {
		return nil, err
	}
	// It is opened before SQLite's files, so it is closed before they are when
	// a process is killed: where the lock is held, SQLite's are, too.
	if p.here, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, errors.Join(err, p.door.Close())
	}
	if err := p.lockDoor(ctx); err != nil {
		return nil, errors.Join(err, p.door.Close(), p.here.Close())
	}
	return p, nil
}

// lockDoor waits for who opens or closes the store now: milliseconds, unless
// it waits for a writer itself.
func (p *presence) lockDoor(ctx context.Context) error {
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for end := time.Now().Add(2 * busyTimeout); ; {
		taken, err := flock(p.door, syscall.LOCK_EX)
		if err != nil || taken {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("another process has been opening the store for %s: end it", 2*busyTimeout)
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// alone says whether nobody else has the store open. The door must be held.
func (p *presence) alone() (bool, error) { return flock(p.here, syscall.LOCK_EX) }

// enter says that the store is open here, and lets go of the door.
func (p *presence) enter() error {
	// Nobody is in the way of a shared lock: an exclusive one needs the door.
	if taken, err := flock(p.here, syscall.LOCK_SH); err != nil || !taken {
		return errors.Join(errors.New("another program holds the lock file"), err)
	}
	_, err := flock(p.door, syscall.LOCK_UN)
	return err
}

// leave closes the store with the door held, so that nobody takes it for open
// when it is half closed. Where the door stays shut it goes on without. A
// second call does nothing.
func (p *presence) leave(closeStore func() error) (err error) {
	p.left.Do(func() {
		_ = p.lockDoor(context.Background())
		err = errors.Join(closeStore(), p.here.Close(), p.door.Close())
	})
	return err
}

// flock takes a lock if it is free. (A lock that is changed and can't be is lost.)
func flock(f *os.File, how int) (taken bool, err error) {
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// lockDatabase takes SQLite's own locks on a database, so that nobody can open
// it, and says whether it could: programs that know nothing of our lock file,
// such as the sqlite3 shell, may have it open. Closing the file gives the
// locks back, and must not meet a connection of this process (fcntl(2)).
func lockDatabase(f *os.File) (taken bool, err error) {
	const pendingByte, lockBytes = 0x40000000, 512 // sqlite3.h: PENDING_BYTE; the reserved byte and 510 shared ones follow
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: pendingByte, Len: lockBytes}
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &lock)
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock database: %w", err)
	}
	return true, nil
}
