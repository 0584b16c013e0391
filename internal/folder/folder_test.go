//go:build unix

package folder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func content(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestReplace_LeavesOneFileOfTheModeAsked(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a")
	for _, want := range []string{"first", "second, and longer", ""} {
		if err := Replace(file, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		if got := content(t, file); got != want {
			t.Errorf("%q is there, want %q", got, want)
		}
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v (%v)", info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v is left", left)
	}
	if err := Replace(filepath.Join(dir, "missing", "a"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is missing: %v", err)
	}
}

func TestCreate_ReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a")
	if err := Create(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(file, []byte("yours"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	if got := content(t, file); got != "mine" {
		t.Errorf("%q is there", got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v is left", left)
	}
}

// What root writes can be read by whom the folder belongs to.
func TestReplace_GivesRootsFileToTheFoldersOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: folders can't be given to anybody else")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "a")
	if err := Replace(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 12345 || s.Gid != 12346 {
		t.Errorf("it belongs to %d:%d", s.Uid, s.Gid)
	}
}
