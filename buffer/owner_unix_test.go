//go:build unix

package buffer

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A gateway's folder belongs to a user of its own. What root starts there once,
// to look for an error, must not keep that user out afterwards.
func TestOpen_AsRootLeavesNothingOfRootsInAnothersFolder(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: folders can't be given to anybody else")
	}
	opts := testOptions(t)
	dir := opts.Dir
	if err := os.Chown(dir, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenToRead(t.Context(), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: %v, want os.ErrNotExist", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("who looked left %v, %v", left, err)
	}
	b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err == nil && info.Sys().(*syscall.Stat_t).Uid != 12345 {
				t.Errorf("%s belongs to %d", path, info.Sys().(*syscall.Stat_t).Uid)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	look() // with its log
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, lockName)); err != nil {
		t.Fatal(err)
	}
	r, err := OpenToRead(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	look()
}
