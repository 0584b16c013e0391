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

// TestOpenFile_LeadsRootNowhereElse: who has the folder is a service that the
// network talks to, and must not have root give it what is root's.
func TestOpenFile_LeadsRootNowhereElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: folders can't be given to anybody else")
	}
	dir, others := t.TempDir(), t.TempDir()
	if err := os.Chown(dir, 12345, 12346); err != nil {
		t.Fatal(err)
	}
	shadow := filepath.Join(others, "shadow")
	if err := os.WriteFile(shadow, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, lay := range map[string]func(file string) error{
		"a link":              func(file string) error { return os.Symlink(shadow, file) },
		"a relative link":     func(file string) error { return os.Symlink("../"+filepath.Base(others)+"/shadow", file) },
		"a link to nothing":   func(file string) error { return os.Symlink(filepath.Join(others, "new"), file) },
		"a second name of it": func(file string) error { return os.Link(shadow, file) },
	} {
		file := filepath.Join(dir, "lock")
		if err := lay(file); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
			f.Close()
			t.Errorf("%s is opened", what)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if s := owner(t, shadow); s.Uid != 0 {
		t.Errorf("root's file was given to %d", s.Uid)
	}
	if left, err := os.ReadDir(others); err != nil || len(left) != 1 {
		t.Errorf("outside there is %v, %v", left, err)
	}
	file := filepath.Join(dir, "lock")
	for range 2 {
		f, err := OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if s := owner(t, file); s.Uid != 12345 || s.Gid != 12346 {
		t.Errorf("it belongs to %d:%d", s.Uid, s.Gid)
	}
}

func owner(t *testing.T, file string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}
