//go:build unix

package buffer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"touchline/internal/folder"
)

// makeFolder makes dir and syncs its parent, so that it survives a power cut
// together with what is synced inside. Other users have no business with what
// athletes' sensors say: 0700.
func makeFolder(dir string) error {
	switch info, err := os.Stat(dir); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a folder", dir)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("look at folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return folder.Sync(filepath.Dir(dir))
}

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
