package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// maxDamaged is how many blocks may arrive damaged in one session. A link
// that damages more, behind TCP's own checksum, is no link; a gateway whose
// disk does would send the same bytes for ever.
const maxDamaged = 64

// scratch is what reading one frame needs. It is borrowed when a frame begins
// to arrive, so an idle connection has none.
type scratch struct {
	buf    bytes.Buffer
	blocks []wire.FrameBlock
}

// maxScratch keeps a rare large frame from occupying memory for good: twice
// the smallest largest frame, since a buffer grows by doubling.
const maxScratch = 2 * wire.MinFrameBytes

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// read takes what the gateway sends until the session ends, and returns why.
func (s *session) read() farewell {
	if err := s.allow(s.in.opts.Timeouts.Hello); err != nil {
		return s.parting(err)
	}
	for {
		kind, r, err := s.link.read()
		if err == nil {
			err = s.message(kind, r)
		}
		if err != nil {
			return s.parting(err)
		}
	}
}

// heard notes that the gateway lives. Before its hello it has one deadline,
// whatever it sends.
func (s *session) heard() error {
	s.lastSeen.Store(time.Now().UnixNano())
	if !s.greeted {
		return nil
	}
	return s.allow(2 * s.in.opts.Heartbeat)
}

// A hearing reader notes each piece that arrives: a large frame on a slow link
// is no silence.
type hearing struct {
	s *session
	r io.Reader
}

func (h hearing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if n > 0 {
		if hearErr := h.s.heard(); err == nil {
			err = hearErr
		}
	}
	return n, err
}

func (s *session) message(kind int, r io.Reader) error {
	sc := scratches.Get().(*scratch)
	defer func() {
		sc.buf.Reset()
		clear(sc.blocks)
		if sc.buf.Cap() <= maxScratch {
			scratches.Put(sc)
		}
	}()
	if _, err := sc.buf.ReadFrom(hearing{s, r}); err != nil {
		return err
	}
	var err error
	switch kind {
	case websocket.BinaryMessage:
		err = s.frame(sc)
	case websocket.TextMessage:
		err = s.control(sc.buf.Bytes())
	}
	if err != nil {
		return err
	}
	return s.heard() // the deadline may have passed while the queue or the store was waited for
}

// frame takes the blocks of a frame: it asks again for those that are damaged
// and queues the others. It waits while the queue is full.
func (s *session) frame(sc *scratch) error {
	if !s.greeted {
		return breach("a block frame came before hello")
	}
	s.in.stats.frameBytes.Add(uint64(sc.buf.Len()))
	data := sc.buf.Bytes()
	var err error
	if wire.IsPart(data) {
		if data, err = s.parts.Add(data, s.in.opts.MaxFrameBytes); err != nil {
			return breach(err.Error())
		}
		if data == nil {
			return nil
		}
	}
	s.in.stats.frames.Add(1)
	if sc.blocks, err = wire.ParseFrame(sc.blocks[:0], data); err != nil {
		return breach(err.Error())
	}
	received := time.Now()
	for i := range sc.blocks {
		if err := s.block(&sc.blocks[i], received); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) block(from *wire.FrameBlock, received time.Time) error {
	b := &from.Block
	s.in.stats.blocks.Add(1)
	s.in.stats.samplesReceived.Add(uint64(b.Count))
	s.blocks.Add(1)
	var damage *wire.CRCError
	if err := b.Check(); errors.As(err, &damage) {
		s.in.stats.resends.Add(1)
		if s.damaged++; s.damaged > maxDamaged {
			return breach(fmt.Sprintf("more than %d blocks arrived damaged, the last one: %v", maxDamaged, damage))
		}
		s.log.Debug("a block arrived damaged and is asked for again", "error", damage)
		s.out.addResend(b)
		return nil
	} else if err != nil {
		return breach(err.Error())
	}
	ctx, cancel := s.within(s.in.opts.Heartbeat)
	defer cancel()
	if !s.arrived(ctx, b) {
		return breach(fmt.Sprintf("the window of %d bytes and %d blocks was overrun by more than one block",
			s.in.roster.full.Bytes, s.in.roster.full.Blocks))
	}
	if s.in.queue != nil && s.absorbed(b) {
		s.out.addAccepted(b)
		return nil
	}
	own := *b
	own.Data = bytes.Clone(b.Data) // exactly its size, so that the queue's account is the truth
	d := Delivery{Gateway: s.gateway, Session: s.number, Block: own, Lane: from.Lane, Received: received}
	if s.in.opts.Tracer.Sample() {
		d.Trace = s.begin(&d)
	}
	if s.in.queue != nil {
		s.due.await(b)
	}
	if err := s.in.batcher.submit(ctx, d, s); err != nil {
		d.Trace.End(time.Now(), "no room")
		return overload("the record store does not keep up")
	}
	return nil
}

// arrived counts a block against the window. Behind a queue a gateway may be
// told that a block is stored while a copy that it had sent again is under way,
// and fill its place: what is above the window waits on the wire then.
func (s *session) arrived(ctx context.Context, b *wire.Block) bool {
	for {
		room, ok := s.out.arrived(b, s.in.roster.full)
		if ok || s.in.queue == nil {
			return ok
		}
		select {
		case <-room:
		case <-ctx.Done():
			return false
		}
	}
}

// control takes the payload of a text frame.
func (s *session) control(data []byte) error {
	if !utf8.Valid(data) {
		return farewell{code: websocket.CloseInvalidFramePayloadData, reason: "a text frame is not valid UTF-8"}
	}
	m, err := wire.ParseMessage(data)
	if errors.Is(err, wire.ErrUnknownMessage) {
		s.log.Debug("a message is unknown and ignored", "error", err)
		return nil
	}
	if err != nil {
		return breach(err.Error())
	}
	if _, ok := m.(*wire.Hello); !ok && !s.greeted {
		return breach("the first message is not a hello")
	}
	switch m := m.(type) {
	case *wire.Hello:
		return s.hello(m)
	case *wire.Lost:
		return s.lost(m)
	case *wire.Clock:
		return s.clock(m)
	}
	return breach(fmt.Sprintf("a message came that only the cloud sends: %.40s", data))
}

// hello answers with welcome. The session before this one ends here.
func (s *session) hello(m *wire.Hello) error {
	switch {
	case s.greeted:
		return breach("a second hello came")
	case m.Gateway != s.gateway:
		return breach(fmt.Sprintf("hello names the gateway %.128q, but the credential is of %q", m.Gateway, s.gateway))
	}
	began := time.Now()
	ctx, cancel := s.within(s.in.timing.ask)
	defer cancel()
	store, number, stored, err := s.introduce(ctx, m)
	if err != nil {
		if !s.without(err) {
			return s.noStore(err)
		}
		store, number, stored = s.in.store.ID(), 0, nil
	}
	if s.in.queue != nil {
		if s.silence, err = s.in.queue.Hear(s.gateway, s.hearStored); err != nil {
			s.log.Error("the queue does not answer", "error", err)
			return overload("the queue does not answer")
		}
	}
	window, ok := s.in.roster.greet(s)
	if !ok {
		return overtaken
	}
	s.greeted = true
	s.in.stats.hello.observe(time.Since(began).Seconds())
	stored, complete := trimStored(stored, m.Epochs)
	complete = complete && number != 0 // who was not asked has left everything out
	s.out.setWelcome(&wire.Welcome{
		Store: store, Session: number, Stored: stored, Complete: complete, Window: window,
		MaxFrame: s.in.opts.MaxFrameBytes, Heartbeat: int(s.in.opts.Heartbeat.Milliseconds()), Time: time.Now(),
		Capabilities: []string{wire.CapabilityParts},
	})
	s.log.Info("gateway connected", "software", m.Software, "clock", m.Clock, "epochs", len(m.Epochs))
	return nil
}

// opened notes which opening of the buffer the gateway is at. A gateway never
// goes back to an older one, so where that happens there are two with one
// identity. Both are served, in turns; their epochs differ, so nothing that
// they send is taken for the other's.
func (s *session) opened(ctx context.Context, epoch touchline.Epoch) error {
	if epoch == (touchline.Epoch{}) {
		return nil // it does not say
	}
	cloned, err := s.in.store.Opened(ctx, s.gateway, s.number, epoch)
	if cloned {
		s.in.stats.cloned.Add(1)
		s.log.Warn("two boxes have this gateway's identity; nothing is lost, but give one of them a key of its own: "+
			"move its gateway.key away and enrol it with a claim code for a new gateway", "epoch", epoch)
	}
	return err
}

// trimStored leaves of stored what the gateway still holds, and of that what
// a message can carry: an epoch takes at most 70 bytes and a range 36, and 4 KiB
// are for the rest. What is left out is sent and acknowledged again; complete
// says that nothing was.
func trimStored(stored []wire.EpochRanges, held []wire.Held) (out []wire.EpochRanges, complete bool) {
	const perEpoch, perRange = 70, 36
	have := make(map[touchline.Epoch]touchline.Ranges, len(stored))
	for _, er := range stored {
		have[er.Epoch] = er.Ranges
	}
	room := wire.MaxMessageBytes - 4<<10
	out = make([]wire.EpochRanges, 0, len(stored))
	complete = true
	for _, h := range held {
		if room -= perEpoch; room < perRange {
			return out, false
		}
		var keep touchline.Ranges
		for _, r := range have[h.Epoch] {
			r.First, r.Last = max(r.First, h.Oldest), min(r.Last, max(h.Next, 1)-1)
			if r.First > r.Last {
				continue
			}
			if complete = room >= perRange; !complete {
				break
			}
			room -= perRange
			keep = append(keep, r)
		}
		if len(keep) > 0 {
			out = append(out, wire.EpochRanges{Epoch: h.Epoch, Ranges: keep})
		}
	}
	return out, complete
}

// lost records an announcement and confirms it. It tries for one heartbeat.
func (s *session) lost(m *wire.Lost) error {
	if m.ID > touchline.MaxSeq {
		return breach(fmt.Sprintf("the id %d of a lost message is above %d", m.ID, uint64(touchline.MaxSeq)))
	}
	err := s.untilRecorded(func(ctx context.Context) error { return s.in.store.Lost(ctx, s.gateway, s.number, *m) })
	if err != nil {
		if s.without(err) {
			return nil // and it is said again
		}
		return s.noStore(fmt.Errorf("record lost samples: %w", err))
	}
	s.in.stats.lostSamples.Add(m.Ranges.Count())
	s.log.Warn("gateway lost samples", "samples", m.Ranges.Count(), "cause", m.Cause, "epoch", m.Epoch,
		"from", time.Unix(0, m.MinTime).UTC(), "to", time.Unix(0, m.MaxTime).UTC())
	if !s.out.addLost(m.ID) {
		return breach(fmt.Sprintf("%d confirmations wait and are not read", maxUnconfirmed))
	}
	return nil
}

// clock records what the gateway's clock was in truth, and confirms it. It
// tries for one heartbeat.
func (s *session) clock(m *wire.Clock) error {
	clock, err := m.Says()
	if err != nil {
		return breach(err.Error())
	}
	err = s.untilRecorded(func(ctx context.Context) error { return s.in.store.Clock(ctx, s.gateway, s.number, clock) })
	if err != nil {
		if s.without(err) {
			return nil
		}
		return s.noStore(fmt.Errorf("record clock: %w", err))
	}
	s.log.Info("gateway knows its clock", "boot", clock.Boot, "state", clock.State.String(), "switched_on", time.Unix(0, clock.Offset).UTC())
	if !s.out.addClock(m.ClockOffset) {
		return breach(fmt.Sprintf("%d confirmations wait and are not read", maxUnconfirmed))
	}
	return nil
}

// untilRecorded calls record until it succeeds, for one heartbeat, and returns
// its last error.
func (s *session) untilRecorded(record func(context.Context) error) error {
	ctx, cancel := s.within(s.in.opts.Heartbeat)
	defer cancel()
	for wait := s.in.timing.retryMin; ; wait = min(2*wait, s.in.timing.retryMax) {
		if s.in.outage.away.Load() || s.number == 0 { // without a number the store can't tell which message is the newer
			return errAway
		}
		err := record(ctx)
		if err == nil || errors.Is(err, ErrOvertaken) {
			return err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return err
		}
	}
}

// breach ends a session whose gateway broke the protocol.
func breach(reason string) farewell { return farewell{code: wire.CloseProtocol, reason: reason} }

// overload ends a session that this node has no room for. Gateways come back
// spread over 15 s, so that a thousand of them are 70 handshakes a second.
func overload(reason string) farewell {
	after := 5*time.Second + rand.N(15*time.Second)
	return farewell{code: websocket.CloseTryAgainLater, reason: reason,
		goaway: &wire.Goaway{Reason: "overload", ReconnectAfter: int(after.Milliseconds())}}
}

// noStore ends a session for which the record store did not do what it had to:
// it does not answer, or knows a newer session.
func (s *session) noStore(err error) farewell {
	if errors.Is(err, ErrOvertaken) {
		return overtaken
	}
	if !s.hasHungUp() {
		s.log.Error("the record store does not answer", "error", err)
	}
	return overload("the record store does not answer")
}

// parting says how the session ends after err of the reader.
func (s *session) parting(err error) farewell {
	var f farewell
	var closed *websocket.CloseError
	var network net.Error
	silent := errors.As(err, &network) && network.Timeout()
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, websocket.ErrReadLimit):
		return farewell{code: websocket.CloseMessageTooBig, reason: fmt.Sprintf("a message is larger than %d bytes", s.in.opts.MaxFrameBytes)}
	case silent && !s.greeted:
		return farewell{code: wire.CloseTimeout, reason: fmt.Sprintf("no hello within %s", s.in.opts.Timeouts.Hello)}
	case silent:
		return farewell{reason: fmt.Sprintf("silent for two heartbeats of %s", s.in.opts.Heartbeat)}
	case errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure:
		return farewell{code: closed.Code, reason: "closed by the gateway " + closed.Text}
	case closed != nil, network != nil, errors.Is(err, io.EOF):
		return farewell{reason: "connection lost: " + err.Error()}
	}
	return farewell{code: websocket.CloseProtocolError, reason: err.Error()}
}
