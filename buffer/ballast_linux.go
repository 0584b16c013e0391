package buffer

import (
	"errors"
	"os"
	"syscall"
)

// allocate gives f size bytes of the disk. ErrUnsupported says that this file
// system has no call for that.
func allocate(f *os.File, size int64) error {
	err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return errors.ErrUnsupported
	}
	return err
}
