package filelock

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// beyond is a byte that no file here has: a range that is locked can't be read
// by others on Windows, and who is refused wants to read who has the lock.
const beyond = 1 << 30

// Try locks f for this opening alone, without waiting. Its error is ErrLocked
// where another has it.
func Try(f *os.File) error {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0,
		&windows.Overlapped{Offset: beyond})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return ErrLocked
	}
	return err
}
