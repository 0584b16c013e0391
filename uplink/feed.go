package uplink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

const (
	// handoverBytes bounds the block data in memory that waits to be sent,
	// however large the window: two frames, so that one is read while one is
	// written. With one block that was larger than asked for (192 KiB), the
	// frame (192 KiB at most) and gorilla's buffers it is 0.7 MiB a session.
	handoverBytes = 2 * frameTarget
	// rereadPatience bounds the wait for a block that is to be sent again
	// and that the buffer no longer has.
	rereadPatience = 5 * time.Second
)

// A handover holds blocks on their way from feeder to writer. The session's
// mutex covers it.
type handover struct {
	resends []queued // go first: the cloud waits for them
	blocks  []queued
	bytes   int       // of both
	again   []*flight // to be read and sent once more, in state again
	// liveFrom has the first number of each epoch that was committed after
	// hello; an epoch that is not in it began after hello. Those blocks are
	// of the live lane. They still go in order here.
	liveFrom map[touchline.Epoch]uint64
	// cancel ends the Next that is running, because something more urgent
	// came up; nil if none is.
	cancel context.CancelFunc
}

// A queued block is one that was read and waits for the writer.
type queued struct {
	block  wire.FrameBlock
	resend bool
}

func newHandover() handover {
	return handover{liveFrom: make(map[touchline.Epoch]uint64)}
}

func (h *handover) push(b wire.Block, resend bool) {
	lane := wire.Backlog
	if b.First >= h.liveFrom[b.Epoch] {
		lane = wire.Live
	}
	q := h.line(resend)
	*q = append(*q, queued{wire.FrameBlock{Block: b, Lane: lane}, resend})
	h.bytes += len(b.Data)
}

// peek returns the next block without taking it, or nil.
func (h *handover) peek() *queued {
	q := *h.line(len(h.resends) > 0)
	if len(q) == 0 {
		return nil
	}
	return &q[0]
}

// pop takes the block that peek returned.
func (h *handover) pop() queued {
	q := h.line(len(h.resends) > 0)
	taken := (*q)[0]
	(*q)[0] = queued{} // or the array would hold on to its data
	*q = (*q)[1:]
	h.bytes -= len(taken.block.Data)
	return taken
}

func (h *handover) line(resend bool) *[]queued {
	if resend {
		return &h.resends
	}
	return &h.blocks
}

// waiting returns how many blocks were read and are not sent.
func (h *handover) waiting() int { return len(h.resends) + len(h.blocks) }

// interrupt ends the Next that is running, if one is.
func (h *handover) interrupt() {
	if h.cancel != nil {
		h.cancel()
		h.cancel = nil
	}
}

// resend calls flights back and tells the feeder. The caller holds s.mu.
func (s *session) resend(list []*flight, now time.Time) {
	for _, f := range list {
		if f.state != again {
			s.flights.recall(f, now)
			s.handover.again = append(s.handover.again, f)
		}
	}
	s.handover.interrupt()
	wake(s.wakeFeeder)
}

// feed reads blocks from the source into the hand-over, from the beginning of
// the buffer, whenever there is room. It returns when ctx ends or the source
// fails.
func (s *session) feed(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.welcomed:
	}
	var after touchline.Position
	for {
		f, maxBytes, call, done := s.nextRead(ctx)
		if f == nil && maxBytes == 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-s.wakeFeeder:
			}
			continue
		}
		var err error
		if f != nil {
			err = s.reread(call, f)
		} else {
			after, err = s.readOn(call, after, maxBytes)
		}
		interrupted := call.Err() != nil
		done()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !interrupted {
			return &failure{err: fmt.Errorf("read buffer: %w", err), code: websocket.CloseInternalServerErr}
		}
		wake(s.wakeWriter)
	}
}

// nextRead says what to read now: a block once more, or up to maxBytes of
// what follows, or nothing. call is the context for that read; interrupt ends
// it, and done must be called after it.
func (s *session) nextRead(ctx context.Context) (f *flight, maxBytes int, call context.Context, done context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.goaway != nil || s.handover.bytes >= handoverBytes/2 {
		return nil, 0, nil, nil
	}
	if h := &s.handover; len(h.again) > 0 {
		f, h.again = h.again[0], h.again[1:]
		call, done = context.WithTimeout(ctx, rereadPatience)
		return f, 0, call, done
	}
	if maxBytes = s.room(); maxBytes == 0 {
		return nil, 0, nil, nil
	}
	call, done = context.WithCancel(ctx)
	s.handover.cancel = done
	return nil, maxBytes, call, done
}

// room returns how many bytes of blocks to ask the source for; 0 is none. The
// caller holds s.mu.
func (s *session) room() int {
	fs, h := s.flights, &s.handover
	blocks := fs.blocks + h.waiting()
	if fs.paused() || blocks >= fs.window.Blocks || fs.unstored+h.waiting() >= maxUnstored {
		return 0
	}
	n := min(fs.window.Bytes-fs.bytes, handoverBytes) - h.bytes
	if n <= 0 && blocks == 0 {
		return 1 // one block may always be in flight
	}
	return max(n, 0)
}

// readOn reads what follows after into the hand-over, and returns the new
// position.
func (s *session) readOn(ctx context.Context, after touchline.Position, maxBytes int) (touchline.Position, error) {
	blocks, err := s.source.Next(ctx, after, maxBytes)
	if err != nil {
		return after, err
	}
	if len(blocks) == 0 {
		return after, errors.New("source returned no block and no error")
	}
	for i := range blocks {
		b := &blocks[i]
		after = touchline.Position{Epoch: b.Epoch, Seq: b.Last()}
		if err := b.Check(); err != nil {
			// The cloud would ask for it again for ever. It stays where it
			// is, and what follows is not held up.
			s.u.count.damaged.Add(1)
			s.log.Error("a block in the buffer is damaged and is not sent", "error", err)
			continue
		}
		s.mu.Lock()
		if !s.ledger.hasStored(b) {
			s.ledger.mayStore(b)
			s.handover.push(*b, false)
		}
		s.mu.Unlock()
	}
	return after, nil
}

// reread reads one block that is to be sent once more. The buffer may have
// dropped it since: then it is forgotten here too. While nothing at all follows
// its place, that can't be known, and it is looked for again.
func (s *session) reread(ctx context.Context, f *flight) error {
	before := touchline.Position{Epoch: f.epoch, Seq: f.nums.First - 1}
	blocks, err := s.source.Next(ctx, before, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		if f.state == again { // else it was stored meanwhile
			s.handover.again = append(s.handover.again, f)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if len(blocks) > 0 && blocks[0].Epoch == f.epoch && blocks[0].Range() == f.nums {
		s.handover.push(blocks[0], true)
		return nil
	}
	s.log.Debug("a block to be sent again is gone from the buffer", "epoch", f.epoch, "first", f.nums.First)
	s.flights.forget(f, time.Now())
	return nil
}
