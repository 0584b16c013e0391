//go:build unix

package clock

import (
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestWatch_NobodyWaitsForTheDisk: a pipe that nobody reads stands for a disk
// that does not answer as the latest time is written down. Who asks for the
// state of the clock then, as the watchdog's loop does, is told.
func TestWatch_NobodyWaitsForTheDisk(t *testing.T) {
	b := switchOn(t, match)
	b.synced = true
	dir := t.TempDir()
	w := open(dir, b.sources(), slog.New(slog.DiscardHandler))
	stuck := fileIn(dir) + ".part"
	if err := syscall.Mkfifo(stuck, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.keepLatest(0)
	}()
	begun := func() bool {
		if !w.mu.TryLock() {
			return false
		}
		defer w.mu.Unlock()
		return w.kept != 0
	}
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for waits := true; waits && !begun(); {
		select {
		case <-look.C:
		case <-deadline.C:
			t.Error("the state of the clock is not told while a disk does not answer")
			waits = false
		}
	}
	answer, err := os.Open(stuck) // now it does
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Close()
	<-written
	if got := w.Status().State.String(); got != "synchronised" {
		t.Errorf("the clock is %s", got)
	}
}
