package buffer

import (
	"sync/atomic"
	"time"
)

// A pulse is how the loop of Run shows that it turns. Its zero value has not
// turned yet.
type pulse struct {
	turns atomic.Uint64
	disk  atomic.Int64 // ns since began at which the loop went to the disk; 0: it is not there
	began time.Time
}

func (p *pulse) turn() { p.turns.Add(1) }

// atDisk notes that the loop waits for the disk from now on; it returns what
// notes that it is back, which is a turn: what it waited was not its own time.
func (p *pulse) atDisk() (back func()) {
	p.disk.Store(int64(max(time.Since(p.began), 1)))
	return func() {
		p.turn()
		p.disk.Store(0)
	}
}

// Pulse says how often the loop of Run has turned, and for how long the disk
// has not answered it, 0 where it is not at the disk. While Run runs, the loop
// turns at least every ten seconds (MaxCommitInterval) unless the disk keeps
// it. Any goroutine may call it.
func (b *Buffer) Pulse() (turns uint64, disk time.Duration) {
	if since := b.pulse.disk.Load(); since != 0 {
		disk = time.Since(b.pulse.began) - time.Duration(since)
	}
	return b.pulse.turns.Load(), disk
}
