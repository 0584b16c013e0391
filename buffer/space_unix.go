//go:build unix

package buffer

import (
	"fmt"
	"os"
	"syscall"
)

// freeBytes returns how many bytes an ordinary user can still write to the
// file system of dir.
func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// allocated returns how many bytes of the disk a file takes, at most its
// length: a file with holes takes less.
func allocated(info os.FileInfo) int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size()
	}
	return min(int64(st.Blocks)*512, info.Size())
}
