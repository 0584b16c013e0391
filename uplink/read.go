package uplink

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// maxDamaged is how often a block may arrive damaged in one session. TCP's own
// checksum lets one error in some billions of packets through: more than a few
// for one block is broken memory on the way, and another connection may avoid it.
const maxDamaged = 5

// read reads what the cloud says until the connection ends; its error says
// why, and is never nil. It goes on during a polite end, so that the last acks
// are heard.
func (s *session) read(context.Context) error {
	defer close(s.readDone)
	return s.because(s.readAll())
}

func (s *session) readAll() error {
	s.link.Begin(handlers{ping: s.onPing, pong: s.onPong, moving: s.onMoving})
	s.link.Deadline(s.welcomeBy)
	var buf bytes.Buffer
	for {
		kind, r, err := s.link.Next()
		s.hears(err)
		if err != nil {
			return s.readFailed(err)
		}
		buf.Reset()
		if _, err := io.Copy(&buf, lively{s, r}); err != nil {
			return s.readFailed(err)
		}
		if kind != websocket.TextMessage {
			return s.broken(errors.New("a binary message from the cloud"))
		}
		if !utf8.Valid(buf.Bytes()) {
			return &failure{
				err:  errors.New("cloud broke the protocol: text that is not UTF-8"),
				code: websocket.CloseInvalidFramePayloadData, floor: s.u.opts.refusedFor(),
			}
		}
		if err := s.take(buf.Bytes()); err != nil {
			return err
		}
		if buf.Cap() > readBufferBytes {
			buf = bytes.Buffer{} // a large welcome comes once a session
		}
	}
}

// hears notes that the cloud spoke: a message, or a close frame.
func (s *session) hears(err error) {
	var closed *websocket.CloseError
	if err == nil || errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure {
		s.mu.Lock()
		s.heard = true
		s.mu.Unlock()
	}
}

// take acts on one message.
func (s *session) take(data []byte) error {
	m, err := wire.ParseSealed(data)
	if errors.Is(err, wire.ErrUnknownMessage) {
		s.log.Debug("ignored a message", "error", err)
		return nil
	}
	if errors.Is(err, wire.ErrSeal) {
		// What the network broke, another connection heals.
		return &failure{err: err, code: wire.CloseProtocol}
	}
	if err != nil {
		return s.broken(err)
	}
	if w, ok := m.(*wire.Welcome); ok {
		return s.takeWelcome(w)
	}
	if g, ok := m.(*wire.Goaway); ok { // a node may stop, or lack its store, before it has greeted
		s.takeGoaway(g)
		return nil
	}
	select {
	case <-s.welcomed:
	default:
		return s.broken(fmt.Errorf("%T before welcome", m))
	}
	switch m := m.(type) {
	case *wire.Ack:
		return s.takeAck(m)
	case *wire.Resend:
		return s.takeResend(m)
	case *wire.NewWindow:
		s.takeWindow(m.Window)
	default:
		return s.broken(fmt.Errorf("%T from the cloud", m))
	}
	return nil
}

// takeAck gives window back and hands what is stored to the ledger.
func (s *session) takeAck(a *wire.Ack) error {
	now := time.Now()
	landed, samples := 0, uint64(0)
	s.mu.Lock()
	for _, er := range a.Accepted {
		for _, r := range er.Ranges {
			landed += s.flights.accept(er.Epoch, r, now)
		}
	}
	for _, er := range a.Stored {
		for _, r := range er.Ranges {
			n, count := s.flights.store(er.Epoch, r, now)
			landed += n
			_, earlier := s.u.previous.store(er.Epoch, r, now)
			samples += count + earlier
		}
	}
	if landed > 0 {
		s.proof = now // both directions work, even where a ping queues behind blocks
	}
	s.ledger.addStored(a.Stored)
	confirmed := s.ledger.addLost(a.Lost)
	full := s.ledger.full()
	rtt := s.rtt
	s.mu.Unlock()
	s.takeClock(a, rtt)

	s.u.count.stored.Add(samples)
	s.u.count.lostHeard.Add(uint64(confirmed))
	wake(s.wakeWriter)
	s.wakeFeeders()
	wake(s.wakeLedger)
	if full {
		return s.flushLedger() // the source is slow: so are we
	}
	return nil
}

// takeResend calls back the blocks that arrived damaged. One that is not
// between us and the store is none of this session's, or stored by now.
func (s *session) takeResend(m *wire.Resend) error {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range m.Ranges {
		for _, f := range s.flights.within(m.Epoch, r) {
			f.damaged++
			if f.damaged > maxDamaged {
				return &failure{
					code: websocket.ClosePolicyViolation,
					err:  fmt.Errorf("block %s/%d arrived damaged %d times: network or memory changes data on the way", f.epoch, f.nums.First, f.damaged),
				}
			}
			s.log.Warn("a block arrived damaged and is sent again", "epoch", f.epoch, "first", f.nums.First, "last", f.nums.Last)
			s.resend([]*flight{f}, now)
		}
	}
	wake(s.wakeWriter)
	return nil
}

func (s *session) takeWindow(w wire.Window) {
	s.mu.Lock()
	was := s.flights.paused()
	s.flights.setWindow(w, time.Now())
	is := s.flights.paused()
	s.mu.Unlock()
	if was != is {
		s.log.Info("the cloud changed the window", "paused", is, "bytes", w.Bytes, "blocks", w.Blocks)
	}
	wake(s.wakeWriter)
	s.wakeFeeders()
}

// takeGoaway lets what is in flight land, and ends the session then.
func (s *session) takeGoaway(m *wire.Goaway) {
	f := &failure{
		err:   fmt.Errorf("cloud said goaway: %s", clip(m.Reason)),
		code:  websocket.CloseNormalClosure,
		floor: time.Duration(max(m.ReconnectAfter, 0)) * time.Millisecond,
		asked: true,
	}
	address, err := s.otherAddress(m.Address)
	if err != nil {
		s.log.Warn("ignored the address in goaway", "error", err)
	}
	f.address = address
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.goaway == nil {
		s.goaway, s.drainBy = f, time.Now().Add(drainGrace)
		s.handover.interrupt()
	}
	wake(s.wakeWriter)
}

// otherAddress returns where goaway sends us, nil for nowhere. The token never
// moves from TLS to clear text.
func (s *session) otherAddress(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := parseURL(text)
	if err != nil {
		return nil, err
	}
	if s.to.Scheme == "wss" && u.Scheme != "wss" {
		return nil, fmt.Errorf("address %s is not encrypted, and this session is", shown(u))
	}
	return u, nil
}

func (s *session) onPing(payload string) error {
	s.extend()
	s.mu.Lock()
	s.outbox.pong, s.outbox.pongDue = []byte(payload), true
	s.mu.Unlock()
	wake(s.wakeWriter)
	return nil
}

// onPong takes the round trip from our stamp. A pong that answers no ping of
// this session is allowed (RFC 6455, section 5.5.3) and says nothing.
func (s *session) onPong(payload string) error {
	s.extend()
	if len(payload) != 8 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.welcome == nil {
		return nil
	}
	now := time.Now()
	stamp := binary.BigEndian.Uint64([]byte(payload))
	if stamp >= s.nextStamp {
		return nil
	}
	rtt := max(0, now.Sub(s.welcomeAt)-time.Duration(stamp))
	if s.rtt == 0 {
		s.rtt = rtt
	}
	s.rtt += (rtt - s.rtt) / 8 // the smoothing of RFC 6298, section 2
	s.rttWorst = max(s.rttWorst, rtt)
	s.proof = now
	s.passed(stamp, now)
	return nil
}

// onMoving notes that a large request is getting out: the answer to a ping is
// behind it. A link that is dead takes no more than the kernel's queue.
func (s *session) onMoving() {
	s.extend()
	s.mu.Lock()
	s.proof = time.Now()
	s.mu.Unlock()
}

// extend moves the read deadline: something came. Before welcome it stands.
func (s *session) extend() {
	s.mu.Lock()
	welcome, by := s.welcome != nil, time.Now().Add(2*s.interval)
	s.mu.Unlock()
	if welcome {
		s.link.Deadline(by)
	}
}

// lively extends the read deadline with each part of a message: a large one on
// a slow link is no dead link.
type lively struct {
	s *session
	r io.Reader
}

func (l lively) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n > 0 {
		l.s.extend()
	}
	return n, err
}

// readFailed says what an error of the connection means.
func (s *session) readFailed(err error) error {
	var closed *websocket.CloseError
	var timeout net.Error
	var known *failure
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure:
		return s.closedBy(closed)
	case errors.As(err, &timeout) && timeout.Timeout():
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.welcome == nil {
			return noWelcome(s.u.opts.HandshakeTimeout)
		}
		return dead(fmt.Errorf("nothing came from the cloud for %v (two heartbeats)", 2*s.interval))
	}
	return dead(fmt.Errorf("connection lost: %w", err))
}

// closedBy says what the cloud's close code means; the close frame is answered
// with the same code (RFC 6455, section 5.5.1). The table is in
// docs/protocol.md.
func (s *session) closedBy(c *websocket.CloseError) error {
	f := &failure{code: c.Code}
	said := fmt.Sprintf("%d %s", c.Code, clip(c.Text))
	refused := s.u.opts.refusedFor()
	switch c.Code {
	case websocket.CloseGoingAway:
		f.next = true
		f.err = fmt.Errorf("cloud goes away (%s)", said)
	case websocket.CloseServiceRestart:
		f.spread = restartSpread
		f.err = fmt.Errorf("cloud restarts (%s)", said)
	case websocket.ClosePolicyViolation:
		f.err = fmt.Errorf("cloud ended the session (%s)", said)
	case websocket.CloseTryAgainLater:
		f.floor, f.spread = overloadLeast, overloadSpread
		f.err = fmt.Errorf("cloud is overloaded (%s)", said)
	case wire.CloseTooMany:
		f.floor, f.spread = overloadLeast, overloadSpread
		f.err = fmt.Errorf("cloud has seen too many sessions of this gateway (%s)", said)
	case wire.CloseUnauthorized:
		f.floor, f.fresh = refused, true
		f.err = fmt.Errorf("cloud takes this gateway's credential no more (%s): %s", said, s.u.who())
	case wire.CloseForbidden:
		f.floor = refused
		f.err = fmt.Errorf("cloud does not let this gateway in (%s): %s", said, s.u.who())
	case wire.CloseSuperseded:
		f.taken = true
		f.err = fmt.Errorf("a newer session of gateway %q took over (%d): is this id, or a copy of this gateway's disk, used by another box too?", s.u.opts.Gateway, c.Code)
	case wire.CloseProtocol, wire.CloseTooLarge, websocket.CloseProtocolError, websocket.CloseMessageTooBig:
		f.floor = refused
		f.err = fmt.Errorf("cloud says that we broke the protocol (%s)", said)
	case wire.CloseVersion:
		f.floor = versionFloor
		f.err = fmt.Errorf("cloud does not speak this version (%s): one of the two needs an update", said)
	default:
		if c.Code >= 4410 && c.Code < 4500 || c.Code >= 4401 && c.Code < 4408 {
			f.floor = refused
		}
		f.err = fmt.Errorf("cloud closed the session (%s)", said)
	}
	return f
}

// clip bounds a peer's words to what a close frame can carry, in whole
// characters.
func clip(text string) string {
	const most = 120 // of 123; RFC 6455, section 5.5
	if len(text) <= most {
		return text
	}
	text = text[:most]
	for len(text) > 0 && !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text
}
