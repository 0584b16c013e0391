//go:build unix

package daemon

import (
	"errors"
	"syscall"
)

// sameDisk says whether two folders are on one file system.
func sameDisk(a, b string) (bool, error) {
	var here, there syscall.Stat_t
	if err := errors.Join(syscall.Stat(a, &here), syscall.Stat(b, &there)); err != nil {
		return false, err
	}
	return here.Dev == there.Dev, nil
}
