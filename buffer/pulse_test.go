package buffer

import (
	"testing"
	"time"
)

// TestPulse_BackFromTheDiskIsATurn, noted before the disk is seen to have
// answered: who looks in between does not take the disk's minute for a hang.
func TestPulse_BackFromTheDiskIsATurn(t *testing.T) {
	b := &Buffer{pulse: pulse{began: time.Now().Add(-time.Minute)}}
	b.pulse.turn()
	back := b.pulse.atDisk()
	if turns, disk := b.Pulse(); turns != 1 || disk <= 0 {
		t.Errorf("at the disk it has turned %d times, and waited %s", turns, disk)
	}
	back()
	if turns, disk := b.Pulse(); turns != 2 || disk != 0 {
		t.Errorf("back from the disk it has turned %d times, and waits for %s", turns, disk)
	}
}
