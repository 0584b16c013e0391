package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A machineTime is CPU time, in ticks, of all that runs and of ours: this process
// and all that it started, and they.
type machineTime struct{ total, busy, ours uint64 }

// readMachine returns what was used until now; zeros where there is no /proc.
func readMachine() (m machineTime) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil || i > 7 { // guest time is in user time
			continue
		}
		m.total += n
		if i != 3 && i != 4 { // idle, iowait
			m.busy += n
		}
	}
	type process struct{ parent, ticks uint64 }
	all := map[uint64]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		// proc(5): pid (comm) state ppid …; the 14th to 17th are times, those of children that ended included.
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 15 {
			continue
		}
		pid, _ := strconv.ParseUint(filepath.Base(filepath.Dir(name)), 10, 64)
		p := process{}
		p.parent, _ = strconv.ParseUint(fields[1], 10, 64)
		for _, field := range fields[11:15] {
			n, _ := strconv.ParseUint(field, 10, 64)
			p.ticks += n
		}
		all[pid] = p
	}
	for pid, p := range all {
		for up, depth := pid, 0; up > 1 && depth < 64; up, depth = all[up].parent, depth+1 {
			if up == uint64(os.Getpid()) {
				m.ours += p.ticks
				break
			}
		}
	}
	return m
}

// others returns which share of the machine others had since then: 0 to 0.95.
func (then machineTime) others() float64 {
	now := readMachine()
	total, busy := float64(now.total-then.total), float64(now.busy-then.busy)
	if total == 0 {
		return 0
	}
	ours := float64(now.ours) - float64(then.ours) // less where one of ours was left by its parent
	return min(max((busy-max(ours, 0))/total, 0), 0.95)
}
