package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A disk is a small file system of its own, and a ballast file that fills it.
type disk struct {
	t       *testing.T
	dir     string
	device  string // what to mount again; "" for tmpfs
	options string
	mounted bool
}

// A diskKind is a way to make one.
type diskKind struct {
	name  string
	mount func(t *testing.T, mib int) *disk
}

var diskKinds = []diskKind{
	{"tmpfs", func(t *testing.T, mib int) *disk {
		return mountDisk(t, &disk{options: fmt.Sprintf("size=%dm", mib)})
	}},
	// With 1 KiB blocks, mke2fs's choice for small disks, a hole in a mapped
	// file kills with SIGBUS where the disk is full.
	{"ext4-1KiB", func(t *testing.T, mib int) *disk {
		return mountDisk(t, &disk{device: ext4(t, mib, 1024), options: "loop"})
	}},
	{"ext4-4KiB", func(t *testing.T, mib int) *disk {
		return mountDisk(t, &disk{device: ext4(t, mib, 4096), options: "loop"})
	}},
}

// ext4 makes a file system in a file; its journal takes 4 MiB of it.
func ext4(t *testing.T, mib, blockBytes int) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.img")
	writeFile(t, image, "")
	if err := os.Truncate(image, int64(mib)<<20); err != nil {
		t.Fatal(err)
	}
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs" // not in everybody's PATH
	}
	if _, err := os.Stat(mke2fs); err != nil {
		t.Skip("mke2fs is not installed: install e2fsprogs")
	}
	tool(t, mke2fs, "-q", "-t", "ext4", "-b", fmt.Sprint(blockBytes), "-m", "0", "-J", "size=4", image)
	return image
}

// mountDisk mounts d, and sees to it that nothing is left of it after the
// test. Where mounting is refused, the test is skipped.
func mountDisk(t *testing.T, d *disk) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a file system of the test's own")
	}
	d.t, d.dir = t, t.TempDir()
	t.Cleanup(d.unmount)
	if out, err := d.mountCommand().CombinedOutput(); err != nil {
		t.Skipf("this machine does not let us mount: %s", strings.TrimSpace(string(out)))
	}
	d.mounted = true
	return d
}

func (d *disk) mountCommand() *exec.Cmd {
	if d.device == "" {
		return exec.Command("mount", "-t", "tmpfs", "-o", d.options, "tmpfs", d.dir)
	}
	return exec.Command("mount", "-t", "ext4", "-o", d.options, d.device, d.dir)
}

// mount mounts again what was unmounted.
func (d *disk) mount() {
	d.t.Helper()
	if out, err := d.mountCommand().CombinedOutput(); err != nil {
		d.t.Fatalf("mount again: %v: %s", err, out)
	}
	d.mounted = true
}

// remount changes an option of the file system.
func (d *disk) remount(option string) {
	d.t.Helper()
	tool(d.t, "mount", "-o", "remount,"+option, d.dir)
}

// unmount waits for nobody: programs that still have files there are dead, or
// keep the file system until they are.
func (d *disk) unmount() {
	if !d.mounted {
		return
	}
	d.mounted = false
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		d.t.Errorf("unmount: %v: %s", err, out)
		_ = exec.Command("umount", "-l", d.dir).Run()
	}
}

// data is the folder of a gateway on the disk.
func (d *disk) data() string { return filepath.Join(d.dir, "data") }

func (d *disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill writes the ballast until not one more byte fits.
func (d *disk) fill() {
	d.t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	piece := make([]byte, 64<<10)
	_, _ = rand.Read(piece)
	for n := len(piece); n > 0; {
		switch _, err := f.Write(piece[:n]); {
		case err == nil:
		case errors.Is(err, syscall.ENOSPC):
			n /= 2
		default:
			d.t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		d.t.Fatal(err)
	}
}

// empty gives the space back.
func (d *disk) empty() {
	d.t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		d.t.Fatal(err)
	}
}
