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

// rereadPatience bounds the wait for a block that is to be sent again and that
// the buffer no longer has.
const rereadPatience = 5 * time.Second

// spillAfter is how long what is new may wait to be sent before it is a part of
// the backlog.
const spillAfter = 300 * time.Millisecond

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

// feedLive reads what was committed after hello into the hand-over, whenever
// there is room. It returns when ctx ends or the source fails.
func (s *session) feedLive(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.welcomed:
	}
	if s.u.opts.Limits.Plain {
		return nil // feedBacklog reads it all
	}
	after := s.liveAfter
	timer := time.NewTimer(spillAfter)
	defer timer.Stop()
	for ctx.Err() == nil {
		after = s.spill(after, time.Now())
		s.mu.Lock()
		maxBytes := s.room(wire.Live)
		s.mu.Unlock()
		if maxBytes == 0 {
			timer.Reset(spillAfter)
			select {
			case <-ctx.Done():
			case <-s.wakeLive:
			case <-timer.C:
			}
			continue
		}
		blocks, err := s.source.Next(ctx, after, maxBytes)
		if err == nil && len(blocks) == 0 {
			err = errNoBlock
		}
		if err != nil && ctx.Err() == nil {
			return sourceFailed(err)
		}
		for i := range blocks {
			s.queue(&blocks[i], wire.Live)
		}
		after = behind(after, blocks)
		wake(s.wakeWriter)
	}
	return context.Cause(ctx)
}

// A mark is what was the end of the buffer at a time.
type mark struct {
	end touchline.Position
	at  time.Time
}

// spill makes a backlog of the live lane when that does not get through: a
// sample that is taken now must not wait behind what was taken while the link
// stood still or the window was closed, or behind more than the link carries.
// The lane is late when what was the end of the buffer spillAfter ago is not
// read, or waits to be sent. It returns where the live lane goes on; what it
// had read is read again by the other.
func (s *session) spill(after touchline.Position, now time.Time) touchline.Position {
	if now.Sub(s.mark.at) < spillAfter {
		return after
	}
	held, _ := s.source.Held()
	if len(held) == 0 {
		return after
	}
	last := held[len(held)-1]
	was, end := s.mark.end, touchline.Position{Epoch: last.Epoch, Seq: max(last.Next, 1) - 1}
	s.mark = mark{end, now}
	if end.Epoch != after.Epoch {
		return after
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	line := s.handover.lines[lineLive]
	waits := len(line) > 0 && now.Sub(line[0].at) >= spillAfter
	if end.Seq <= after.Seq || !waits && (was.Epoch != after.Epoch || after.Seq >= was.Seq) {
		return after // it keeps up, or there is nothing newer to let pass
	}
	before, any := s.handover.dropLive()
	if !any {
		before = after
	}
	for _, h := range held {
		s.handover.liveFrom[h.Epoch] = max(s.handover.liveFrom[h.Epoch], h.Next)
	}
	if s.handover.spilled == nil { // else that one is before this
		s.handover.spilled = &before
	}
	wake(s.wakeFeeder)
	return end
}

// feedBacklog reads what was there at hello into the hand-over, and what is to
// be sent once more, whenever there is room. It returns when ctx ends or the
// source fails.
func (s *session) feedBacklog(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.welcomed:
	}
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
			err = s.readBacklog(call, maxBytes)
		}
		interrupted := call.Err() != nil && errors.Is(err, call.Err())
		done()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !interrupted {
			return sourceFailed(err)
		}
		wake(s.wakeWriter)
	}
}

var errNoBlock = errors.New("source returned no block and no error")

func sourceFailed(err error) error {
	return &failure{err: fmt.Errorf("read buffer: %w", err), code: websocket.CloseInternalServerErr}
}

// behind returns the position of the last of blocks, or after if there is none.
func behind(after touchline.Position, blocks []wire.Block) touchline.Position {
	if n := len(blocks); n > 0 {
		return touchline.Position{Epoch: blocks[n-1].Epoch, Seq: blocks[n-1].Last()}
	}
	return after
}

// nextRead says what feedBacklog reads now: a block once more, or up to
// maxBytes of what follows, or nothing. call is the context for that read;
// interrupt ends it, and done must be called after it.
func (s *session) nextRead(ctx context.Context) (f *flight, maxBytes int, call context.Context, done context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backlog.add(&s.handover)
	if s.goaway != nil || s.handover.bytes[wire.Backlog] >= handoverBytes/2 {
		return nil, 0, nil, nil
	}
	if h := &s.handover; len(h.again) > 0 {
		f, h.again = h.again[0], h.again[1:]
		call, done = context.WithTimeout(ctx, rereadPatience)
		return f, 0, call, done
	}
	if s.backlog.done || s.backlog.swept && s.handover.lane(wire.Backlog) > 0 {
		return nil, 0, nil, nil // the latter so that nothing is read and queued twice
	}
	if maxBytes = s.room(wire.Backlog); maxBytes == 0 {
		return nil, 0, nil, nil
	}
	call, done = context.WithCancel(ctx)
	if s.backlog.patience > 0 {
		cancel := done
		call, done = context.WithTimeout(call, s.backlog.patience)
		both := done
		done = func() { both(); cancel() }
	}
	s.handover.cancel = done
	return nil, maxBytes, call, done
}

// room returns how many bytes of blocks to ask the source for; 0 is none. The
// caller holds s.mu.
func (s *session) room(lane wire.Lane) int {
	fs, h := s.flights, &s.handover
	blocks := fs.blocks + h.waiting()
	if s.goaway != nil || fs.paused() || blocks >= fs.window.Blocks && h.lane(lane) > 0 || fs.unstored+h.waiting() >= maxUnstored {
		return 0
	}
	waiting := h.bytes[lane]
	if waiting >= handoverBytes/2 {
		return 0
	}
	n := min(fs.window.Bytes-fs.bytes, handoverBytes) - waiting
	if n <= 0 && h.lane(lane) == 0 {
		return 1 // one block may always be in flight, and a lane never waits to be read for the other
	}
	return max(n, 0)
}

// queue puts a block that was read into the hand-over, unless the cloud has it.
func (s *session) queue(b *wire.Block, lane wire.Lane) {
	if err := b.Check(); err != nil {
		// The cloud would ask for it again for ever. It stays where it is, and
		// what follows is not held up.
		s.u.count.damaged.Add(1)
		s.log.Error("a block in the buffer is damaged and is not sent", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ledger.knowsStored(b) || s.flights.find(b.Epoch, b.First) != nil {
		return
	}
	s.ledger.mayStore(b)
	s.handover.push(*b, lane, false)
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
		s.handover.push(blocks[0], s.laneOf(&blocks[0]), true)
		return nil
	}
	s.log.Debug("a block to be sent again is gone from the buffer", "epoch", f.epoch, "first", f.nums.First)
	s.flights.forget(f, time.Now())
	return nil
}
