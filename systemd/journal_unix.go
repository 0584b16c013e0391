//go:build unix

package systemd

import (
	"fmt"
	"os"
	"syscall"
)

// streamOf names a file as JOURNAL_STREAM does, "" where it can't.
func streamOf(file *os.File) string {
	info, err := file.Stat()
	if err != nil {
		return ""
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}
