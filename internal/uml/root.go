//go:build linux

package uml

import (
	"debug/elf"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed init.sh
var initScript []byte

// NewRoot makes dir a root for guests: busybox under the names of all its
// commands, dmsetup, and the given programs in /bin, each with the shared
// libraries that it needs.
func NewRoot(dir string, programs ...string) error {
	for _, sub := range []string{"bin", "dev", "etc", "lib/modules", "mnt/a", "mnt/b", "mnt/c", "proc", "shared", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "init"), initScript, 0o755); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	for _, name := range []string{"busybox", "dmsetup"} {
		path, err := find(name)
		if err != nil {
			return fmt.Errorf("make root: %w", err)
		}
		programs = append(programs, path)
	}
	for _, path := range programs {
		if err := install(dir, path); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	names, err := exec.Command(filepath.Join(dir, "bin/busybox"), "--list").Output()
	if err != nil {
		return fmt.Errorf("ask busybox for its commands: %w", err)
	}
	for _, name := range strings.Fields(string(names)) {
		link := filepath.Join(dir, "bin", name)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		if err := os.Symlink("busybox", link); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	return nil
}

// install copies a program to /bin, and its libraries to where they are here.
func install(dir, path string) error {
	if err := copyFile(filepath.Join(dir, "bin", filepath.Base(path)), path); err != nil {
		return err
	}
	libraries, err := librariesOf(path)
	if err != nil {
		return err
	}
	for _, library := range libraries {
		to := filepath.Join(dir, library)
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if err := copyFile(to, library); err != nil {
			return err
		}
	}
	return nil
}

// librariesOf returns the paths of a program's libraries and of its loader.
func librariesOf(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", path, err)
	}
	defer f.Close()
	if f.Section(".interp") == nil {
		return nil, nil // linked statically
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return nil, fmt.Errorf("ask ldd for the libraries of %s: %w", path, err)
	}
	var libraries []string
	for line := range strings.Lines(string(out)) {
		for field := range strings.FieldsSeq(line) { // "libc.so.6 => /lib/… (0x…)" or "/lib64/ld-… (0x…)"
			if filepath.IsAbs(field) {
				libraries = append(libraries, field)
				break
			}
		}
	}
	return libraries, nil
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() {
		if closed := out.Close(); err == nil {
			err = closed
		}
	}()
	_, err = io.Copy(out, in)
	return err
}
