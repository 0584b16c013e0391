package uplink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

const (
	// frameTarget is how large a frame grows by gathering blocks. A larger
	// one saves nothing more, and a new sample would wait behind it.
	frameTarget = 128 << 10
	// maxMessages bounds the outbox: hello, and maxLostOpen and maxClocksOpen
	// announcements.
	maxMessages = maxLostOpen + maxClocksOpen + 1
)

// An outbox holds what is to be written besides blocks. The session's mutex
// covers it.
type outbox struct {
	messages [][]byte // text messages, in order; at most maxMessages
	pong     []byte   // answers the last ping; RFC 6455, section 5.5.3 wants no more
	pongDue  bool
}

// write writes all that goes to the cloud, and keeps the session's time: pings
// and patience. It returns when something is overdue, a write fails, or ctx
// ends; the last thing that it writes is the close frame.
func (s *session) write(ctx context.Context) error {
	defer close(s.writeDone)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		s.u.turns.Add(1)
		next, err := s.writeNext(time.Now())
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			err = s.because(err)
			s.sayClose(err)
			return err
		}
		if next.IsZero() { // something was written, and there may be more
			continue
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
		case <-s.wakeWriter:
		case <-timer.C:
		}
	}
}

// writeNext writes the most urgent thing. It returns the zero time if it wrote
// one, and otherwise when it wants to be called again at the latest.
func (s *session) writeNext(now time.Time) (time.Time, error) {
	s.mu.Lock()
	if err := s.overdue(now); err != nil {
		s.mu.Unlock()
		return time.Time{}, err
	}
	if s.pingDue(now) || s.outbox.pongDue {
		s.mu.Unlock()
		return time.Time{}, s.writeControls(now)
	}
	if len(s.outbox.messages) > 0 {
		message := s.outbox.messages[0]
		s.outbox.messages = s.outbox.messages[1:]
		s.mu.Unlock()
		return time.Time{}, s.writeMessage(websocket.TextMessage, message)
	}
	s.takeFrame(now)
	switch {
	case len(s.frame) > 0 && s.parting.flight != nil && !s.parting.begun:
		s.mu.Unlock()
		return time.Time{}, s.beginParts()
	case len(s.frame) > 0:
		s.mu.Unlock()
		return time.Time{}, s.writeFrame()
	case s.partDue(now):
		s.mu.Unlock()
		return time.Time{}, s.writePart()
	}
	next := s.nextDeadline()
	s.mu.Unlock()
	return next, nil
}

// overdue returns why the session must end now, or nil. It also calls back the
// blocks that were accepted and not stored in time. The caller holds s.mu.
func (s *session) overdue(now time.Time) error {
	switch opts := &s.u.opts; {
	case s.welcome == nil:
		if !now.Before(s.welcomeBy) {
			return noWelcome(opts.HandshakeTimeout)
		}
		return nil
	case now.Sub(s.proof) >= 2*s.interval:
		return dead(fmt.Errorf("cloud has not answered a ping for %v (two heartbeats)", 2*s.interval))
	case s.goaway != nil && (s.flights.blocks == 0 || !now.Before(s.drainBy)):
		return s.goaway
	}
	s.holdingParts(now)
	if f, since, ok := s.flights.oldest(); ok && now.Sub(since) >= s.u.opts.AcceptTimeout {
		return &failure{
			code: websocket.ClosePolicyViolation,
			err:  fmt.Errorf("cloud has not accepted block %s/%d for %v", f.epoch, f.nums.First, s.u.opts.AcceptTimeout),
		}
	}
	if !now.Before(s.nextScan) {
		s.nextScan = now.Add(s.u.opts.StoreTimeout / 4)
		if late := s.flights.late(s.u.opts.StoreTimeout, now); len(late) > 0 {
			s.log.Info("blocks accepted and not stored in time are sent again", "blocks", len(late))
			s.resend(late, now)
		}
	}
	if !s.stable && now.Sub(s.welcomeAt) >= s.u.opts.StableAfter {
		s.stable = true
		s.u.setStable()
	}
	return nil
}

// nextDeadline returns when overdue or a ping has work next. The caller holds
// s.mu.
func (s *session) nextDeadline() time.Time {
	next := s.nextPing
	earlier := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if s.welcome == nil {
		earlier(s.welcomeBy)
		return next
	}
	earlier(s.proof.Add(2 * s.interval))
	earlier(s.nextScan)
	earlier(s.paced)
	if _, since, ok := s.flights.oldest(); ok {
		earlier(since.Add(s.u.opts.AcceptTimeout))
	}
	if s.goaway != nil {
		earlier(s.drainBy)
	}
	if !s.stable {
		earlier(s.welcomeAt.Add(s.u.opts.StableAfter))
	}
	return next
}

// takeFrame moves what may be sent now from the hand-over into s.frame: of one
// line, the most urgent that has something. What has to wait for a time makes
// that s.paced. The caller holds s.mu.
func (s *session) takeFrame(now time.Time) {
	s.frame, s.paced = s.frame[:0], never
	if s.welcome == nil || s.goaway != nil {
		return
	}
	for line := range s.handover.lines {
		if len(s.handover.lines[line]) == 0 {
			continue
		}
		if line == lineLive && !s.fits(line) {
			return // what is behind must not take the window that this waits for
		}
		if line != lineLive && s.parting.flight != nil {
			return // that is before it
		}
		s.takeLine(line, now)
		if len(s.frame) > 0 {
			return
		}
	}
}

// fits says whether the window has room for the first block of a line. The
// caller holds s.mu.
func (s *session) fits(line int) bool {
	q := &s.handover.lines[line][0]
	n := len(q.block.Data)
	return s.flights.fits(n, q.resend) && (line != lineBacklog || s.u.opts.Limits.Plain || s.flights.spare(n))
}

// takeLine gathers a frame of one line. The caller holds s.mu.
func (s *session) takeLine(line int, now time.Time) {
	pace := &s.flights.pace
	limit := min(frameTarget, s.frameBytes)
	if line != lineLive {
		limit = min(limit, pace.frameBytes())
	}
	size := wire.FrameHeaderBytes
	for len(s.frame) < wire.MaxBlocksPerFrame && len(s.handover.lines[line]) > 0 && s.fits(line) {
		n := wire.BlockHeaderBytes + len(s.handover.lines[line][0].block.Data)
		if len(s.frame) > 0 && size+n > limit {
			return // a single block may be larger, never than a frame
		}
		parts := s.inParts(n)
		if parts && (len(s.frame) > 0 || s.parting.flight != nil) {
			return // one at a time, and alone
		}
		at := pace.live(n, now)
		if line != lineLive {
			at = pace.backlog(n, now)
		}
		if at.After(now) {
			if at.Before(s.paced) {
				s.paced = at
			}
			return
		}
		taken := s.handover.pop(line)
		s.wakeFeeders()
		if !s.flights.launch(&taken.block.Block, taken.resend, laneOfLine(line), now) {
			continue
		}
		s.countSent(&taken.block.Block, taken.resend, now)
		s.frame = append(s.frame, taken.block)
		if parts {
			s.part(&taken.block.Block)
			return
		}
		pace.spend(n)
		size += n
	}
}

func (s *session) countSent(b *wire.Block, resend bool, now time.Time) {
	s.u.count.blocks.Add(1)
	s.u.count.samples.Add(uint64(b.Count))
	if f := s.u.previous.find(b.Epoch, b.First); f != nil {
		s.u.previous.forget(f, now) // the flight of this session counts it from here on
		resend = true
	}
	if resend {
		s.u.count.resent.Add(1)
	}
}

// writeFrame sends s.frame and lets go of its blocks.
func (s *session) writeFrame() error {
	var err error
	s.frameBuf, err = wire.AppendFrame(s.frameBuf[:0], s.frame)
	if err != nil {
		return &failure{err: err, code: websocket.CloseInternalServerErr}
	}
	blocks := len(s.frame)
	s.sending(s.frame)
	clear(s.frame)
	if err := s.writeMessage(websocket.BinaryMessage, s.frameBuf); err != nil {
		return err
	}
	s.u.count.bytes.Add(uint64(len(s.frameBuf)))
	s.log.Debug("sent a frame", "blocks", blocks, "bytes", len(s.frameBuf))
	return nil
}

// writeMessage writes data, and lets due pings and pongs go meanwhile.
func (s *session) writeMessage(kind int, data []byte) error {
	var control error
	err := s.link.Write(kind, data, func() error {
		control = s.writeControls(time.Now())
		return control
	}, func() time.Time { return time.Now().Add(s.patience()) })
	if control != nil {
		return control
	}
	if err != nil {
		return dead(fmt.Errorf("write: %w", err))
	}
	return nil
}

// writeControls writes a pong and a ping if they are due.
func (s *session) writeControls(now time.Time) error {
	s.mu.Lock()
	pong, pongDue := s.outbox.pong, s.outbox.pongDue
	s.outbox.pong, s.outbox.pongDue = nil, false
	pingDue := s.pingDue(now)
	if pingDue {
		s.nextPing = now.Add(s.interval)
	}
	s.mu.Unlock()
	by := now.Add(s.patience())
	if pongDue {
		if err := s.link.Pong(pong, by); err != nil {
			return dead(fmt.Errorf("write pong: %w", err))
		}
	}
	if pingDue {
		if err := s.link.Ping(s.stamp(), by); err != nil {
			return dead(fmt.Errorf("write ping: %w", err))
		}
	}
	return nil
}

func (s *session) pingDue(now time.Time) bool { return s.welcome != nil && !now.Before(s.nextPing) }

// patience is how long one write, or the silence of the cloud, may last.
func (s *session) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return 2 * s.interval
}

// sayClose tells the cloud why the session ends, where that is of use.
func (s *session) sayClose(cause error) {
	code := closeCode(cause)
	if code == 0 {
		return
	}
	text := ""
	var f *failure
	switch {
	case errors.As(cause, &f) && code != websocket.CloseNormalClosure:
		text = clip(f.Error())
	case f == nil:
		text = "gateway stops"
	}
	// An error changes nothing any more: the connection is closed next.
	_ = s.link.SayClose(code, text, time.Now().Add(closeGrace))
}

// stamp is a ping's payload: nanoseconds of the session's own monotonic clock,
// and never the same twice, whatever that clock's steps.
func (s *session) stamp() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := max(s.nextStamp, uint64(time.Since(s.welcomeAt)))
	s.nextStamp = stamp + 1
	return binary.BigEndian.AppendUint64(nil, stamp)
}

// dead is the end of a connection on which nobody can be told.
func dead(err error) error { return &failure{err: err} }

func noWelcome(after time.Duration) error {
	return &failure{
		code: websocket.ClosePolicyViolation,
		err:  fmt.Errorf("no welcome within %v of hello", after),
	}
}
