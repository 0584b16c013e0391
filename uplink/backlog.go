package uplink

import (
	"context"
	"time"

	"touchline"
	"touchline/wire"
)

const (
	// runSamples is how many numbers of an epoch are one run of the backlog
	// where the newest go first: a few blocks. It doubles over a stretch of
	// which nothing is held.
	runSamples = 8192
	// runPatience bounds the wait for a run behind which nothing follows.
	runPatience = 2 * time.Second
)

// A backlog says what of the blocks that were held at hello is read next. Only
// the goroutine of feedBacklog has it, but for done and patience, which the
// session's mutex covers.
type backlog struct {
	done     bool          // all of it was read
	patience time.Duration // of one read; 0 is none

	after touchline.Position // what was read last, where the oldest go first
	swept bool               // the newest went first, and all is looked at once more
	runs  []span             // where the newest go first: what is left, oldest first
	run   span               // that is being read
	width uint64
}

// A span is the numbers from to below end of an epoch.
type span struct {
	epoch     touchline.Epoch
	from, end uint64
}

func newBacklog(held []wire.Held, newestFirst bool) backlog {
	b := backlog{width: runSamples}
	if newestFirst {
		for _, h := range held {
			b.runs = append(b.runs, span{h.Epoch, max(h.Oldest, 1), h.Next})
		}
		b.nextRun()
	}
	return b
}

// add takes over what the live lane gave up. Where the backlog is still being
// read it comes to that by itself.
func (b *backlog) add(h *handover) {
	if h.spilled == nil {
		return
	}
	at := *h.spilled
	h.spilled = nil
	if b.byRuns() {
		b.runs = append(b.runs, span{at.Epoch, at.Seq + 1, h.liveFrom[at.Epoch]})
	} else if b.done {
		b.done, b.after = false, at
	}
}

// byRuns says whether the newest go first now. After the last run all is gone
// through once more from the oldest on, so that what a run has missed, because
// it was changed under it, is found.
func (b *backlog) byRuns() bool { return b.run.end > 0 }

// nextRun cuts a run off the newest end.
func (b *backlog) nextRun() {
	b.run, b.patience = span{}, 0
	for n := len(b.runs); n > 0; n = len(b.runs) {
		last := &b.runs[n-1]
		if last.end <= last.from {
			b.runs = b.runs[:n-1]
			continue
		}
		b.run = span{last.epoch, max(last.from, last.end-min(last.end, b.width)), last.end}
		b.patience = runPatience
		last.end = b.run.from
		return
	}
	b.swept = true
}

// laneOf says whether a block was there at hello. The caller holds s.mu.
func (s *session) laneOf(b *wire.Block) wire.Lane {
	if b.First >= s.handover.liveFrom[b.Epoch] {
		return wire.Live
	}
	return wire.Backlog
}

// readBacklog reads what comes next of the backlog into the hand-over.
func (s *session) readBacklog(ctx context.Context, maxBytes int) error {
	b := &s.backlog
	after := b.after
	if b.byRuns() {
		after = touchline.Position{Epoch: b.run.epoch, Seq: b.run.from - 1}
	}
	blocks, err := s.source.Next(ctx, after, maxBytes)
	if err == nil && len(blocks) == 0 {
		err = errNoBlock
	}
	if b.byRuns() {
		return s.readRun(ctx, blocks, err)
	}
	if err != nil {
		return err
	}
	b.after = behind(after, blocks)
	for i := range blocks {
		s.mu.Lock()
		lane := s.laneOf(&blocks[i])
		s.mu.Unlock()
		if lane == wire.Live && !s.u.opts.Limits.Plain {
			s.mu.Lock()
			b.done = true // the other lane has what follows
			s.mu.Unlock()
			return nil
		}
		s.queue(&blocks[i], lane)
	}
	return nil
}

// readRun queues those of blocks that are of the current run.
func (s *session) readRun(ctx context.Context, blocks []wire.Block, err error) error {
	b := &s.backlog
	if err != nil && ctx.Err() == context.DeadlineExceeded {
		err, blocks = nil, nil // nothing is behind the run's beginning
	}
	if err != nil {
		return err
	}
	over := len(blocks) == 0
	found := false
	for i := range blocks {
		if blocks[i].Epoch != b.run.epoch || blocks[i].First >= b.run.end {
			over = true
			break
		}
		s.queue(&blocks[i], wire.Backlog)
		b.run.from = blocks[i].Last() + 1
		found = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case over && !found:
		b.width = min(2*b.width, touchline.MaxSeq/4)
	case over || b.run.from >= b.run.end:
		b.width = runSamples
	}
	if over || b.run.from >= b.run.end {
		b.nextRun()
	}
	return nil
}
