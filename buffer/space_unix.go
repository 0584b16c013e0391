//go:build unix

package buffer

import (
	"os"
	"syscall"
)

// allocated returns how many bytes of the disk a file takes, at most its
// length: a file with holes takes less.
func allocated(info os.FileInfo) int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size()
	}
	return min(int64(st.Blocks)*512, info.Size())
}
