package daemon

import (
	"bytes"
	"os"
	"strconv"
	"time"
)

// WearStatus says how much this process had written to the disk, by the
// kernel's count of pages (write_bytes of proc_pid_io(5)): what wears a card
// out. It includes the file system's copies of nothing: a disk writes more
// than it is told to.
type WearStatus struct {
	WrittenBytes   uint64   `json:"written_bytes"` // since the start
	BytesPerDay    float64  `json:"bytes_per_day"` // at the mean rate since the start
	BytesPerSample *float64 `json:"bytes_per_sample,omitempty"`
}

// wear returns what the kernel counted, nil where it does not say.
func (d *Daemon) wear(now time.Time) *WearStatus {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return nil
	}
	written, ok := writeBytes(text)
	if !ok {
		return nil
	}
	w := &WearStatus{WrittenBytes: written}
	// A minute at least, or the making of the files would pass for a rate.
	up := max(now.Sub(d.started), time.Minute)
	w.BytesPerDay = float64(written) / up.Hours() * 24
	if samples := d.total(); samples > 0 {
		each := float64(written) / float64(samples)
		w.BytesPerSample = &each
	}
	return w
}

// writeBytes finds the line of bytes that go to the disk.
func writeBytes(text []byte) (n uint64, ok bool) {
	for line := range bytes.Lines(text) {
		if number, found := bytes.CutPrefix(line, []byte("write_bytes: ")); found {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(number)), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
