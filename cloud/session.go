package cloud

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// A session is one uplink, from its upgrade to its close. Two goroutines live
// for it: one reads (receive.go), one writes, and the end of each ends the other.
type session struct {
	in        *ingest
	link      link
	gateway   string // authenticated
	remote    string
	connected time.Time
	log       *slog.Logger
	out       *outbox

	// ctx ends when the writer does or the session is cut: whatever the reader
	// waits for, the queue or the store, it waits for no longer.
	ctx    context.Context
	cancel context.CancelFunc

	pass     pass
	revision atomic.Uint64 // of who may speak, at which the pass was good
	passEnds atomic.Int64  // ns since the Unix epoch; 0: not known yet. See sentry.go

	number   uint64       // from the store; set before the roster has the session
	lastSeen atomic.Int64 // ns since the Unix epoch
	rtt      atomic.Int64 // ns; 0 is not known yet
	blocks   atomic.Uint64

	// Used by the writer only.
	expires time.Time // when the gateway is to connect anew, and then when it must; zero is never
	expired bool      // the first of these has passed

	// Used by the reader only.
	greeted bool
	parts   wire.Assembly // of a frame on a slow link; at most MaxFrameBytes
	damaged int           // blocks that arrived damaged

	due     accepted // what is accepted and not known to be stored
	silence func()   // ends the notices of what is stored; nil where there is no queue, and before hello

	mu     sync.Mutex // covers hungUp, and orders it with the read deadline
	hungUp bool
}

// newSession returns a session that still needs a link.
func newSession(in *ingest, p pass, remote string) *session {
	s := &session{in: in, pass: p, gateway: p.gateway, remote: remote, connected: time.Now(), out: newOutbox(),
		log: in.log.With("gateway", p.gateway, "remote", remote)}
	s.revision.Store(p.revision)
	s.passEnds.Store(unixNano(p.keyEnds))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.lastSeen.Store(s.connected.UnixNano())
	return s
}

// run returns when both goroutines have ended and the connection is closed.
func (s *session) run() {
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write()
	}()
	s.out.end(s.read())
	<-written
	if s.silence != nil {
		s.silence()
	}
	f := s.out.parting()
	if f.code != 0 {
		s.link.part(s.in.timing.linger)
	}
	s.link.cut()
	s.in.stats.sessionClosed(f.code)
	s.log.Info("gateway disconnected", "reason", f.reason, "code", f.code,
		"blocks", s.blocks.Load(), "after", time.Since(s.connected).Round(time.Millisecond))
}

// write is the only goroutine that writes messages, pings included. It returns
// after the farewell, or when a write fails.
func (s *session) write() {
	defer s.hangUp()
	s.expires = s.in.expiry(s.connected)
	timer := time.NewTimer(s.untilPing())
	defer timer.Stop()
	for {
		ping := false
		select {
		case <-s.out.wake:
		case <-timer.C:
			ping = true
			s.age(time.Now())
			timer.Reset(s.untilPing())
		}
		l := s.out.take()
		if err := s.send(&l, ping); err != nil {
			s.out.end(farewell{reason: "write: " + err.Error()})
			return
		}
		if l.farewell != nil {
			return
		}
	}
}

// untilPing spreads the pings of gateways that came together, after a restart
// say. It is never more than the interval, so that two intervals hold a pong.
func (s *session) untilPing() time.Duration {
	return s.in.opts.Heartbeat*4/5 + rand.N(s.in.opts.Heartbeat/5)
}

func (s *session) send(l *letters, ping bool) error {
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
	}
	deadline := time.Now().Add(s.in.opts.Timeouts.Write)
	if l.pong != nil {
		if err := s.link.write(websocket.PongMessage, l.pong, deadline); err != nil {
			return err
		}
	}
	if ping {
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

// hangUp ends the reader, wherever it waits.
func (s *session) hangUp() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hungUp = true
	s.link.allow(time.Unix(1, 0))
}

// cut closes the link under both goroutines.
func (s *session) cut() {
	s.cancel()
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
