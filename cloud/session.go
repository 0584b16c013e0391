package cloud

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// A session is one uplink, from its upgrade to its close. One goroutine lives
// for it and reads (receive.go). Another one writes; it begins when there is
// something to say and ends when all is said, and there is never a second one.
// The end of each ends the other. So an idle gateway is one goroutine, whose stack is
// most of what it costs.
type session struct {
	in        *ingest
	link      link
	gateway   string // authenticated
	remote    string
	connected time.Time
	log       sessionLog
	out       *outbox

	pass     pass
	revision atomic.Uint64 // of who may speak, at which the pass was good
	passEnds atomic.Int64  // ns since the Unix epoch; 0: not known yet. See sentry.go

	number   uint64       // from the store, 0 where it was away (outage.go); set before the roster has the session
	regular  atomic.Bool  // it has number 0, and was asked to begin anew
	lastSeen atomic.Int64 // ns since the Unix epoch
	rtt      atomic.Int64 // ns; 0 is not known yet
	blocks   atomic.Uint64
	logged   atomic.Uint64 // number, for the log, where any goroutine may ask; 0 before hello

	// Used by beat only.
	expires time.Time // when the gateway is to connect anew, and then when it must; zero is never
	expired bool      // the first of these has passed

	// Used by the reader only.
	greeted bool
	parts   wire.Assembly // of a frame on a slow link; at most MaxFrameBytes
	damaged int           // blocks that arrived damaged

	follows atomic.Pointer[follows] // blocks whose traces wait for their ack; nil while there was none

	due     accepted // what is accepted and not known to be stored
	silence func()   // ends the notices of what is stored; nil where there is no queue, and before hello

	mu        sync.Mutex // covers what follows, and orders hungUp with the read deadline
	hungUp    bool
	pings     *time.Timer        // calls beat
	interrupt context.CancelFunc // of what the reader waits for now, the queue or the store; nil where it does not
}

// newSession returns a session that still needs a link.
func newSession(in *ingest, p pass, remote string) *session {
	s := &session{in: in, pass: p, gateway: p.gateway, remote: remote, connected: time.Now()}
	s.log = sessionLog{s}
	s.revision.Store(p.revision)
	s.passEnds.Store(unixNano(p.keyEnds))
	s.out = newOutbox(s.write)
	s.lastSeen.Store(s.connected.UnixNano())
	return s
}

// run gives the session's place in the roster back when both goroutines have
// ended and the connection is closed. Idle sessions are parked below it: were it to
// need 100 bytes more for variables of its own, their stacks would be 8 KiB and not 4
// (TestSession_AnIdleOneIsOneGoroutineOf4KiB).
func (s *session) run() {
	s.startPings()
	s.out.end(s.read())
	s.over()
}

// over ends a session behind its reader.
func (s *session) over() {
	defer s.in.roster.leave(s)
	s.out.wait()
	if s.silence != nil {
		s.silence()
	}
	f := s.out.parting()
	if f.code != 0 {
		s.link.part(s.in.timing.linger)
	}
	s.link.cut()
	s.following().end(time.Now())
	s.in.stats.sessionClosed(f.code)
	s.log.Info("gateway disconnected", "reason", f.reason, "code", f.code,
		"blocks", s.blocks.Load(), "after", time.Since(s.connected).Round(time.Millisecond))
}

// write writes what is in the outbox until it is empty. It is the only
// function that writes messages, pings included; the outbox sees to it that it
// runs once at a time. After the farewell, or when a write has failed, it does not run again.
func (s *session) write() {
	for {
		stored, accepted := s.follows.Load().take() // before the letters, which have their acks then
		l := s.out.take()
		var err error
		if l != nil {
			err = s.send(l)
		}
		traceAcks(stored, accepted, err)
		if l == nil {
			return
		}
		if err != nil {
			s.out.end(farewell{reason: "write: " + err.Error()})
		}
		if err != nil || l.farewell != nil {
			s.out.stop()
			s.hangUp()
			return
		}
	}
}

func (s *session) startPings() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hungUp {
		return
	}
	s.expires = s.in.expiry(s.connected)
	s.pings = time.AfterFunc(s.untilPing(), s.beat)
}

// beat has a ping sent, and itself called again. It may be under way when the
// session has ended, and changes nothing then.
func (s *session) beat() {
	s.age(time.Now())
	s.out.setPing()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hungUp {
		s.pings.Reset(s.untilPing())
	}
}

// untilPing spreads the pings of gateways that came together, after a restart
// say. It is never more than the interval, so that two intervals hold a pong.
func (s *session) untilPing() time.Duration {
	return s.in.opts.Heartbeat*4/5 + rand.N(s.in.opts.Heartbeat/5)
}

func (s *session) send(l *letters) error {
	if l.farewell != nil && l.farewell.code == 0 {
		return nil
	}
	for _, m := range l.messages(time.Now()) {
		data, err := wire.MarshalMessage(m)
		if err != nil {
			return err
		}
		if err := s.link.write(websocket.TextMessage, data, time.Now().Add(s.in.opts.Timeouts.Write)); err != nil {
			return err
		}
		s.in.stats.messages.Add(1)
		s.in.stats.messageBytes.Add(uint64(len(data)))
	}
	deadline := time.Now().Add(s.in.opts.Timeouts.Write)
	if l.pong != nil {
		if err := s.link.write(websocket.PongMessage, l.pong, deadline); err != nil {
			return err
		}
	}
	if l.ping {
		sent := binary.BigEndian.AppendUint64(nil, uint64(time.Since(s.connected)))
		if err := s.link.write(websocket.PingMessage, sent, deadline); err != nil {
			return err
		}
	}
	if f := l.farewell; f != nil {
		return s.link.write(websocket.CloseMessage, websocket.FormatCloseMessage(f.code, closeReason(f.reason)), deadline)
	}
	return nil
}

// closeReason cuts s to the 123 bytes that a close frame holds, between runes.
func closeReason(s string) string {
	if len(s) <= 123 {
		return s
	}
	n := 120
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n] + "..."
}

// answered takes a pong, whose payload is what the ping had.
func (s *session) answered(payload string) {
	if len(payload) != 8 {
		return // a pong that nobody asked for is allowed (RFC 6455, section 5.5.3)
	}
	sent, now := binary.BigEndian.Uint64([]byte(payload)), uint64(time.Since(s.connected))
	if sent < now {
		s.rtt.Store(int64(now - sent))
		s.in.stats.rtt.observe(float64(now-sent) / 1e9)
	}
}

// allow gives the other side d to be heard of, unless the session hung up.
func (s *session) allow(d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hungUp {
		return nil // and its read deadline has passed
	}
	return s.link.allow(time.Now().Add(d))
}

// within returns a context for what the reader is about to wait for: it ends
// after d, and when the session hangs up or is cut. A session has no context of
// its own, which would take 400 bytes of an idle one.
func (s *session) within(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.interrupt = cancel; s.hungUp {
		cancel()
	}
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.interrupt = nil
		cancel()
	}
}

// hangUp ends the reader, wherever it waits.
func (s *session) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hungUp = true
	if s.pings != nil { // it may not have begun
		s.pings.Stop()
	}
	s.stopWaiting()
	s.link.allow(time.Unix(1, 0))
}

func (s *session) hasHungUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hungUp
}

// stopWaiting ends what the reader waits for. s.mu is held.
func (s *session) stopWaiting() {
	if s.interrupt != nil {
		s.interrupt()
	}
}

// cut closes the link under both goroutines.
func (s *session) cut() {
	s.mu.Lock()
	s.hungUp = true // nothing is to be waited for any more
	s.stopWaiting()
	s.mu.Unlock()
	s.link.cut()
}

// The batcher tells:

func (s *session) accepted(b *wire.Block) {
	if s.due.accept(b, time.Now()) {
		s.out.addStored(b)
	} else {
		s.out.addAccepted(b)
	}
}

func (s *session) stored(b *wire.Block) { s.out.addStored(b) }
func (s *session) forget(b *wire.Block) { s.out.forget(b) }
func (s *session) refuse(*wire.Block) {
	s.out.end(farewell{code: websocket.CloseInternalServerErr, reason: "the record store can't take a block; it stays with the gateway"})
}
