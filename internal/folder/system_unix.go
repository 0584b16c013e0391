//go:build unix

package folder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Sync makes the names in dir survive a power cut.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}

// Give gives a file or folder that root made to whom the folder that it is in
// belongs to. A file must not have been opened through a link (see OpenFile);
// one with a second name is not given, since that may be anywhere.
func Give(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	of, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	it, err := f.Stat()
	if err != nil {
		return err
	}
	to, ok := of.Sys().(*syscall.Stat_t)
	is, also := it.Sys().(*syscall.Stat_t)
	if !ok || !also || to.Uid == 0 || is.Uid == to.Uid {
		return nil
	}
	if it.Mode().IsRegular() && is.Nlink > 1 {
		return fmt.Errorf("%s has a second name, and is not given to the owner of its folder: move it away", f.Name())
	}
	return f.Chown(int(to.Uid), int(to.Gid))
}

// Free returns how many bytes an ordinary user can still write to the file
// system of dir.
func Free(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free space of %s: %w", dir, err)
	}
	return int64(min(st.Bavail, 1<<40)) * int64(st.Bsize), nil
}
