package buffer

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"
)

var (
	// ErrClosed says that the buffer is closed or was told to end.
	ErrClosed = errors.New("buffer is closed")
	// ErrFull is matched by every error that means no room.
	ErrFull = errors.New("buffer is full")
	// ErrSample is wrapped by the errors for samples that no block can hold;
	// appending them again will fail again.
	ErrSample = errors.New("sample can't be kept")
)

// A FullError refuses samples because a limit is reached. They are surely not
// stored.
type FullError struct {
	Reason string
	After  time.Duration
}

func (e *FullError) Error() string {
	return fmt.Sprintf("buffer is full: %s; try again in %s", e.Reason, e.After)
}

// Is makes a FullError match ErrFull.
func (e *FullError) Is(target error) bool { return target == ErrFull }

// RetryAfter says when it is worth trying again.
func (e *FullError) RetryAfter() time.Duration { return e.After }

// A CommitError says that a commit failed. The samples may be stored or not:
// nothing is known of them until the buffer is opened again. Where the disk
// was full it matches ErrFull.
type CommitError struct {
	Err   error
	After time.Duration
}

func (e *CommitError) Error() string { return fmt.Sprintf("commit samples: %v", e.Err) }

// Unwrap returns what SQLite said.
func (e *CommitError) Unwrap() error { return e.Err }

// Is makes a CommitError match ErrFull where the disk was full.
func (e *CommitError) Is(target error) bool { return target == ErrFull && isFull(e.Err) }

// RetryAfter says when it is worth trying again.
func (e *CommitError) RetryAfter() time.Duration { return e.After }

// A LockedError says that another buffer, in this process or another, has the
// folder.
type LockedError struct {
	Dir string
	PID int // of the holder, 0 where it is not known
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("folder %s is in use by another touchline: end it first, or use another folder", e.Dir)
	}
	return fmt.Sprintf("folder %s is in use by another touchline (process %d): end it first, or use another folder", e.Dir, e.PID)
}

// isFull says whether err means that there was no room on the disk or in the
// file. ENOSPC arrives as SQLITE_FULL from writes, but as an I/O error from
// the calls that make a file longer.
func isFull(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Code == sqlite3.ErrFull ||
		e.Code == sqlite3.ErrIoErr && (e.SystemErrno == syscall.ENOSPC || e.SystemErrno == syscall.EDQUOT)
}
