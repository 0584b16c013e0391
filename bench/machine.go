package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// machine is what the figures depend on beside the programs.
type machine struct {
	CPU        string `json:"cpu"`
	Cores      int    `json:"cores"`
	MemoryGiB  number `json:"memory_gib"`
	Kernel     string `json:"kernel"`
	FileSystem string `json:"file_system"`
	SyncP50    number `json:"fdatasync_p50_s"` // of 4 KiB appended
	Go         string `json:"go"`
}

// describeMachine looks at the machine, and at the disk that dir is on.
func describeMachine(dir string) (machine, error) {
	m := machine{CPU: "unknown CPU", Cores: runtime.NumCPU(), MemoryGiB: unknown, Kernel: "unknown kernel", Go: runtime.Version()}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if kib, err := parseKey(string(text), "MemTotal"); err == nil {
			m.MemoryGiB = number(kib) / (1 << 20)
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return m, fmt.Errorf("look at the file system of %s: %w", dir, err)
	}
	m.FileSystem = fileSystemName(int64(fs.Type))
	var err error
	m.SyncP50, err = measureSync(dir)
	return m, err
}

// fileSystemName names the usual ones by their magic number (statfs(2)).
func fileSystemName(magic int64) string {
	names := map[int64]string{
		0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x794c7630: "overlayfs",
		0x01021994: memoryFileSystem, 0x2fc12fc1: "zfs", 0xf2f52010: "f2fs", 0x6969: "nfs", 0x01021997: "9p",
	}
	if name, ok := names[magic]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", magic)
}

// memoryFileSystem is where a sync costs nothing, and means nothing.
const memoryFileSystem = "tmpfs"

// measureSync returns the median time of appending 4 KiB and syncing them.
func measureSync(dir string) (number, error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return unknown, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []float64
	page := make([]byte, 4<<10)
	for range 50 {
		began := time.Now()
		if _, err := f.Write(page); err != nil {
			return unknown, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return unknown, fmt.Errorf("fdatasync: %w", err)
		}
		took = append(took, time.Since(began).Seconds())
	}
	slices.Sort(took)
	return number(took[len(took)/2]), nil
}
