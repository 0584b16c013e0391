//go:build unix

package filelock

import (
	"errors"
	"os"
	"syscall"
)

// Try locks f for this opening alone, without waiting. Its error is ErrLocked
// where another has it.
func Try(f *os.File) error {
	err := syscall.EINTR
	for err == syscall.EINTR {
		err, _ = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB).(syscall.Errno)
	}
	if err == 0 {
		return nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}
