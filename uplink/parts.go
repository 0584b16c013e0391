package uplink

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// A parting is a frame of one block that goes in parts, because at the pace of
// the link it would hold up what is new: a block of 192 KiB takes 6 s of
// 256 kbit/s. There is one at a time, and live frames go between its parts. A
// ping follows each part but the last, which the block's ack answers: so no
// more is under way than the pace allows, and the block does not run out of
// patience while its parts arrive. The session's mutex covers it, but for the
// frame, which is the writer's own.
type parting struct {
	flight *flight // nil while there is none
	launch uint64  // of flight; it may be called back meanwhile, or stored
	begun  bool    // frame and what follows are set
	frame  []byte  // used again; 192 KiB for a session that needs it
	offset int
	bytes  int // of the next part
}

// inParts says whether a block that takes n bytes of a frame goes in parts: not
// where the link takes a frame of frameTarget in a quarter of queueTarget. The
// caller holds s.mu.
func (s *session) inParts(n int) bool {
	size := s.flights.pace.frameBytes()
	return n > size && size < frameTarget &&
		slices.Contains(s.welcome.Capabilities, wire.CapabilityParts)
}

// part makes the block that was launched last go in parts, which count in pace
// one by one. The caller holds s.mu.
func (s *session) part(b *wire.Block) {
	f := s.flights.find(b.Epoch, b.First)
	s.flights.pace.left(f.lane, f.paced)
	f.paced = 0
	s.parting.flight, s.parting.launch, s.parting.begun = f, f.sent, false
}

// beginParts makes a frame of s.frame, to be written by writePart.
func (s *session) beginParts() error {
	frame, err := wire.AppendFrame(s.parting.frame[:0], s.frame)
	if err != nil {
		return &failure{err: err, code: websocket.CloseInternalServerErr}
	}
	s.sending(s.frame)
	clear(s.frame)
	s.mu.Lock()
	s.parting.frame, s.parting.offset, s.parting.begun = frame, 0, true
	s.mu.Unlock()
	return nil
}

// partDue says whether the next part may be written now, else s.paced has when.
// What was begun is not held up by the window, a pause or a goaway: the cloud
// has half of it. The caller holds s.mu.
func (s *session) partDue(now time.Time) bool {
	p, pace := &s.parting, &s.flights.pace
	if p.flight == nil {
		return false
	}
	p.bytes = min(pace.frameBytes(), len(p.frame)-p.offset)
	if at := pace.part(p.flight.lane, p.bytes, now); at.After(now) {
		if at.Before(s.paced) {
			s.paced = at
		}
		return false
	}
	pace.spend(p.bytes)
	return true
}

// holdingParts keeps the patience of a block in parts of which nothing is under
// way: what came so far was answered, and the next part waits for max_rate, of
// which live frames may take all there is. The caller holds s.mu.
func (s *session) holdingParts(now time.Time) {
	if f := s.parting.flight; f != nil && len(s.flights.pace.milestones) == 0 {
		s.flights.progress(f, now)
	}
}

// writePart writes the next part, and its ping.
func (s *session) writePart() error {
	p := &s.parting
	now := time.Now()
	data := p.frame[p.offset : p.offset+p.bytes]
	s.frameBuf = wire.AppendPart(s.frameBuf[:0], wire.Part{Offset: p.offset, Total: len(p.frame), Data: data})
	p.offset += len(data)
	last := p.offset == len(p.frame)
	lane := p.flight.lane
	if last {
		s.mu.Lock()
		s.flights.lastPart(p.flight, p.launch, len(data), now)
		p.flight, p.begun = nil, false
		s.mu.Unlock()
	}
	if err := s.writeMessage(websocket.BinaryMessage, s.frameBuf); err != nil {
		return err
	}
	s.u.count.bytes.Add(uint64(len(s.frameBuf)))
	if last {
		return nil
	}
	stamp := s.stamp()
	s.mu.Lock()
	s.flights.pace.departed(milestone{binary.BigEndian.Uint64(stamp), lane, len(data), now})
	s.mu.Unlock()
	if err := s.link.Ping(stamp, now.Add(s.patience())); err != nil {
		return dead(fmt.Errorf("write ping: %w", err))
	}
	return nil
}

// passed takes a pong, which may be that of a part. The caller holds s.mu.
func (s *session) passed(stamp uint64, now time.Time) {
	if !s.flights.pace.passed(stamp, now) {
		return
	}
	if f := s.parting.flight; f != nil {
		s.flights.progress(f, now)
	}
	wake(s.wakeWriter)
}

// lastPart notes that the last n bytes of a block are on their way: from here
// on it is as one that went whole.
func (fs *flights) lastPart(f *flight, launch uint64, n int, now time.Time) {
	if f.state != inFlight || f.sent != launch {
		return // it was stored meanwhile, or called back
	}
	f.paced, f.at = n, now
	fs.pace.launched(f.lane, n)
	fs.progress(f, now)
}

// progress gives a block that is the oldest, and of which something arrived,
// its whole patience again.
func (fs *flights) progress(f *flight, now time.Time) {
	if len(fs.order) > 0 && fs.order[0].f == f {
		fs.oldestSince = now
	}
}
