package uplink

import (
	"context"
	"time"

	"touchline"
	"touchline/wire"
)

// handoverBytes bounds the block data of each lane in memory that waits to be
// sent, however large the window: two frames, so that one is read while one is
// written. With one block in each lane that was larger than asked for (192
// KiB), the frame (192 KiB at most), one more that goes in parts and gorilla's
// buffers it is 1.4 MiB a session.
const handoverBytes = 2 * frameTarget

// A handover holds blocks on their way from the feeders to the writer. The
// session's mutex covers it.
type handover struct {
	lines [3][]queued // as they leave: live, resend, backlog
	bytes [2]int      // of each lane; resends count as backlog
	again []*flight   // to be read and sent once more, in state again
	// liveFrom has the first number of each epoch that was committed after
	// hello; an epoch that is not in it began after hello. Those blocks are of
	// the live lane.
	liveFrom map[touchline.Epoch]uint64
	// spilled is what was of the live lane and is of the backlog now: what
	// follows it. feedBacklog takes it from here; nil is none.
	spilled *touchline.Position
	// cancel ends the Next of the backlog that is running, because something
	// more urgent came up; nil if none is.
	cancel context.CancelFunc
}

// The lines of a handover.
const (
	lineLive = iota
	lineResend
	lineBacklog
)

// A queued block is one that was read and waits for the writer.
type queued struct {
	block  wire.FrameBlock
	resend bool
	at     time.Time // when it was queued
}

func newHandover() handover {
	return handover{liveFrom: make(map[touchline.Epoch]uint64)}
}

func (h *handover) push(b wire.Block, lane wire.Lane, resend bool) {
	line := lineLive
	switch {
	case resend:
		line = lineResend
	case lane == wire.Backlog:
		line = lineBacklog
	}
	h.lines[line] = append(h.lines[line], queued{wire.FrameBlock{Block: b, Lane: lane}, resend, time.Now()})
	h.bytes[laneOfLine(line)] += len(b.Data)
}

// laneOfLine returns in which lane a line counts: what is sent again may be
// much, and goes at the pace of the backlog.
func laneOfLine(line int) wire.Lane {
	if line == lineLive {
		return wire.Live
	}
	return wire.Backlog
}

// pop takes the first block of a line.
func (h *handover) pop(line int) queued {
	q := &h.lines[line]
	taken := (*q)[0]
	(*q)[0] = queued{} // or the array would hold on to its data
	*q = (*q)[1:]
	h.bytes[laneOfLine(line)] -= len(taken.block.Data)
	return taken
}

// waiting returns how many blocks were read and are not sent.
func (h *handover) waiting() int { return h.lane(wire.Live) + h.lane(wire.Backlog) }

func (h *handover) lane(lane wire.Lane) int {
	if lane == wire.Live {
		return len(h.lines[lineLive])
	}
	return len(h.lines[lineResend]) + len(h.lines[lineBacklog])
}

// interrupt ends the Next of the backlog that is running, if one is.
func (h *handover) interrupt() {
	if h.cancel != nil {
		h.cancel()
		h.cancel = nil
	}
}

// dropLive empties the live line, and returns the position before it.
func (h *handover) dropLive() (before touchline.Position, any bool) {
	line := h.lines[lineLive]
	if len(line) == 0 {
		return before, false
	}
	h.lines[lineLive], h.bytes[wire.Live] = nil, 0
	b := &line[0].block
	return touchline.Position{Epoch: b.Epoch, Seq: b.First - 1}, true
}
