//go:build linux

// Package uml runs a test's workload in a machine of its own: a kernel of
// user-mode-linux, which is a process of the host, with disks that are files,
// a device mapper and a clock that may be set. A guest sees of the host a
// read-only root made for it and one shared folder; what it writes into that
// is with the host when the write returns, so it outlives a power cut. End a
// guest with Cut, which takes its power, or wait for its workload with Wait.
package uml

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	kernel     = "linux.uml"
	modulesDir = "/usr/lib/uml/modules"

	// The programs under test and their files in tmpfs: some 150 MiB.
	memory = "512M"
)

// Needed are the Debian packages that Missing looks for.
const Needed = "user-mode-linux busybox-static dmsetup e2fsprogs"

// Missing says why this machine can run no guest and what to do about it, or
// "".
func Missing() string {
	for _, program := range []string{kernel, "busybox", "dmsetup", "mke2fs"} {
		if _, err := find(program); err != nil {
			return fmt.Sprintf("%s is not installed: `.ci/setup long` installs it (%s)", program, Needed)
		}
	}
	if _, err := os.Stat(modulesDir); err != nil {
		return fmt.Sprintf("no kernel modules in %s: `.ci/setup long` installs them (%s)", modulesDir, Needed)
	}
	return ""
}

// find looks for a program where an administrator's are, too.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: %w", program, exec.ErrNotFound)
}

// Inside says whether this process runs in a guest.
func Inside() bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && strings.Contains(string(info), "User Mode Linux")
}

// SetClock sets the wall clock of the guest. Outside of one it panics: it
// would be the clock of everything else that runs there.
func SetClock(to time.Time) error {
	if !Inside() {
		panic("BUG: a clock is set outside of a guest")
	}
	tv := syscall.NsecToTimeval(to.UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set clock to %s: %w", to, err)
	}
	return nil
}

// Options describe a guest. All fields but Disks are needed.
type Options struct {
	Root    string        // of NewRoot; guests may share it
	Shared  string        // folder of the host, /shared in the guest; one guest at a time
	Disks   []string      // files, /dev/ubda, /dev/ubdb, …; one guest at a time
	Command string        // for sh; the guest ends with it
	Output  io.Writer     // what command and kernel print
	Limit   time.Duration // the guest ends itself after this, whatever became of its starter
}

// maxDisks are as many as the alphabet's first letters; tests use three.
const maxDisks = 8

// A Guest is a running guest. Its methods are safe for concurrent use.
type Guest struct {
	shared string
	cmd    *exec.Cmd
	done   chan struct{}
	ended  sync.Once
}

// Start boots a guest; it does not wait for anything in it.
func Start(o Options) (*Guest, error) {
	if len(o.Disks) > maxDisks || o.Root == "" || o.Shared == "" || o.Output == nil || o.Limit < time.Second {
		return nil, fmt.Errorf("start guest: %d disks, root %q, shared %q, limit %s", len(o.Disks), o.Root, o.Shared, o.Limit)
	}
	path, err := find(kernel)
	if err != nil {
		return nil, err
	}
	status := filepath.Join(o.Shared, "status")
	if err := os.Remove(status); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.Shared, "command"), []byte(o.Command+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	args := []string{
		"-n", "5", path, "mem=" + memory,
		"root=/dev/root", "rootfstype=hostfs", "rootflags=" + o.Root, "ro", "init=/init",
		"con=null", "con0=null,fd:1", "ssl=null", "quiet", "panic=1",
		"uml_modules=" + modulesDir, "uml_shared=" + o.Shared, "uml_seconds=" + strconv.Itoa(int(o.Limit/time.Second)),
	}
	for i, disk := range o.Disks {
		args = append(args, fmt.Sprintf("ubd%d=%s", i, disk))
	}
	g := &Guest{shared: o.Shared, cmd: exec.Command("nice", args...), done: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = o.Output, o.Output
	// The kernel's threads are processes, which outlive their parent: they
	// are ended as a group.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	go func() {
		defer close(g.done)
		_ = g.cmd.Wait() // what a kernel exits with says nothing of its guest
		g.killGroup()
	}()
	return g, nil
}

func (g *Guest) killGroup() { _ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL) }

// Cut takes the guest's power: what it had not written to its disks is gone.
// It returns when the guest is, and may be called at any time.
func (g *Guest) Cut() {
	g.ended.Do(func() {
		select {
		case <-g.done: // its group's number may be another's by now
		default:
			g.killGroup()
		}
	})
	<-g.done
}

// Done is closed when the guest has ended.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Wait waits for the guest's end and returns the exit status of its command.
func (g *Guest) Wait() (status int, err error) {
	<-g.done
	text, err := os.ReadFile(filepath.Join(g.shared, "status"))
	if err != nil {
		return 0, fmt.Errorf("guest ended without its command: %w", err)
	}
	if status, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		return 0, fmt.Errorf("read status of guest's command: %w", err)
	}
	return status, nil
}
