//go:build unix

package credential

import (
	"os"
	"path/filepath"
	"syscall"
)

// giveToFolder gives a file that root made to whom its folder belongs: the
// gateway runs as a user of its own, and its commands are used by root.
func giveToFolder(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 {
		return f.Chown(int(s.Uid), int(s.Gid))
	}
	return nil
}
