package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is one that the bench started, with its output in a file.
type process struct {
	name    string
	log     string
	cmd     *exec.Cmd
	ended   chan struct{}
	pid     int
	peakKiB int64 // of memory, kept when it ended
}

// startProcess starts a program. It ends with the bench, however that ends.
func startProcess(dir, name, path string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own, so that Ctrl-C reaches the bench alone, which then
	// ends its processes in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.pid = p.cmd.Process.Pid
	go func() {
		_ = p.cmd.Wait() // how it ended is seen by its being gone
		close(p.ended)
	}()
	return p, nil
}

// stopTimeout is how long a process may take to end on SIGTERM.
const stopTimeout = 20 * time.Second

// stop ends the process and waits for its end. It may be called twice, and on
// nil.
func (p *process) stop() {
	if p == nil {
		return
	}
	if peak, err := p.memoryPeakKiB(); err == nil {
		p.peakKiB = max(p.peakKiB, peak)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// died returns an error with the end of the log if the process is gone.
func (p *process) died() error {
	select {
	case <-p.ended:
	default:
		return nil
	}
	log, _ := os.ReadFile(p.log)
	const tail = 2000
	return fmt.Errorf("%s has ended: %s", p.name, bytes.TrimSpace(log[max(0, len(log)-tail):]))
}

// ticksPerSecond is the unit of times in /proc (USER_HZ), 100 on every
// architecture that Go runs Linux on.
const ticksPerSecond = 100

// cpuSeconds returns what the process has used, in user and system mode.
func (p *process) cpuSeconds() (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, fmt.Errorf("cpu of %s: %w", p.name, err)
	}
	return parseStat(string(stat))
}

// parseStat reads utime and stime of /proc/PID/stat, fields 14 and 15 (proc(5)).
// The name before them may have blanks and parentheses.
func parseStat(stat string) (float64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat of a process has %d fields behind its name: want 13 or more", len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return 0, fmt.Errorf("stat of a process: %w", err)
	}
	return float64(user+system) / ticksPerSecond, nil
}

// memoryPeakKiB returns the largest resident size that the process had.
func (p *process) memoryPeakKiB() (int64, error) { return p.procNumber("status", "VmHWM") }

// writtenBytes returns what the process caused to be sent to the storage.
func (p *process) writtenBytes() (int64, error) { return p.procNumber("io", "write_bytes") }

func (p *process) procNumber(file, key string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid, file))
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", key, p.name, err)
	}
	return parseKey(string(text), key)
}

// parseKey reads "key: number", a line of /proc/PID/status or /proc/PID/io.
func parseKey(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			return strconv.ParseInt(number, 10, 64)
		}
	}
	return 0, fmt.Errorf("no line %q", key)
}

// diskBytes returns the sizes of the files in a folder, as far as they are
// allocated: preallocated holes do not count. Of the sum, log is what SQLite's
// write-ahead logs have.
func diskBytes(dir string) (sum, log int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file that came and went
		}
		if err != nil {
			return err
		}
		size := info.Size()
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			size = min(size, stat.Blocks*512)
		}
		sum += size
		if strings.HasSuffix(path, "-wal") {
			log += size
		}
		return nil
	})
	return sum, log, err
}

// freeAddress returns an address of the loopback that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// startTimeout is how long a process may take until it answers.
const startTimeout = 20 * time.Second

// until asks every 20 ms until ok, the process has ended, or startTimeout.
func until(ctx context.Context, p *process, what string, ok func() error) error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if died := p.died(); died != nil {
			return died
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %s within %s: %w", p.name, what, startTimeout, err)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// listening is true when somebody accepts connections.
func listening(address string) error {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

// sleep waits for d, or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
