package cloud

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// Where a middlebox lets no WebSocket through, a gateway sends the same
// messages in the bodies of POSTs and fetches what the cloud has to say with a
// long poll. A pipe makes that a link, so the session behind it is the same.
//
// The POST with the number 1 shows the gateway's credential and opens the
// session; for those that follow, the session's id, 128 bits that the gateway
// drew and that travel as the credential does, is it.

const (
	// maxPoll is the longest that a poll waits: proxies cut at 30 s or 60 s.
	maxPoll = 30 * time.Second

	// maxUnsaid bounds what waits for a poll: one message of the largest size,
	// and the next one. A gateway that polls no more costs no more.
	maxUnsaid = 2 * wire.MaxMessageBytes

	// bodySlack is what a body may hold beside one largest frame.
	bodySlack = 64 << 10
)

// pipes has the sessions over HTTP of a node.
type pipes struct {
	in *ingest

	mu   sync.Mutex // covers open
	open map[[32]byte]*pipe
}

func newPipes(in *ingest) *pipes { return &pipes{in: in, open: map[[32]byte]*pipe{}} }

// of returns the pipe that a request is of. Its id is looked up by its hash,
// so the time that takes says nothing about it.
func (ps *pipes) of(r *http.Request) (key [32]byte, p *pipe, ok bool) {
	id, err := hex.DecodeString(r.Header.Get(wire.HeaderSession))
	if err != nil || len(id) != 16 {
		return key, nil, false
	}
	key = sha256.Sum256(append(id, claimed(r)...))
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return key, ps.open[key], true
}

// serveFrames takes the messages of one POST. A repeat of the last one, whose
// answer was lost, does nothing.
func (ps *pipes) serveFrames(w http.ResponseWriter, r *http.Request) {
	key, p, ok := ps.of(r)
	number, err := strconv.ParseUint(r.Header.Get(wire.HeaderSequence), 10, 53)
	if !ok || err != nil || number == 0 {
		problem(w, http.StatusBadRequest, fmt.Sprintf("want the headers %s, 32 hex digits, and %s, a number from 1 on", wire.HeaderSession, wire.HeaderSequence))
		return
	}
	if p == nil {
		if number != 1 {
			ps.elsewhere(w)
			return
		}
		ps.begin(w, r, key)
		return
	}
	p.posting.Lock()
	defer p.posting.Unlock()
	switch {
	case number == p.posted:
	case number != p.posted+1:
		problem(w, http.StatusConflict, fmt.Sprintf("a gap: the last number of this session is %d, this is %d", p.posted, number))
		return
	default:
		list, ok := ps.body(w, r)
		if !ok {
			return
		}
		if !p.deliver(list) {
			unknownSession(w) // and the next poll says why
			return
		}
		p.posted = number
	}
	said(w)
}

// begin opens a session.
func (ps *pipes) begin(w http.ResponseWriter, r *http.Request, key [32]byte) {
	pass, ok := ps.in.authenticate(w, r)
	if !ok {
		return
	}
	list, ok := ps.body(w, r)
	if !ok {
		return
	}
	if len(list) == 0 || list[0].kind != websocket.TextMessage {
		problem(w, http.StatusBadRequest, "the first message of a session is hello")
		return
	}
	if !ps.in.admit(w, pass) {
		return
	}
	s := newSession(ps.in, pass, ps.in.from.shown(r))
	p := newPipe(2*ps.in.opts.Heartbeat+ps.in.timing.poll, func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.open, key)
	})
	s.link = p
	ps.mu.Lock()
	if ps.open[key] != nil { // a repeat overtook its first
		ps.mu.Unlock()
		ps.in.roster.leave(nil)
		unknownSession(w)
		return
	}
	ps.open[key] = p
	p.posting.Lock()
	defer p.posting.Unlock()
	ps.mu.Unlock()
	ps.in.stats.handshake(handshakeAccepted)
	ps.in.begin(s)
	p.posted = 1
	if !p.deliver(list) {
		unknownSession(w)
		return
	}
	said(w)
}

// body reads the messages of a POST, or answers why it can't.
func (ps *pipes) body(w http.ResponseWriter, r *http.Request) (list []posted, ok bool) {
	limits, control := &ps.in.opts.Timeouts, http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(limits.Frames))
	_ = control.SetWriteDeadline(time.Now().Add(limits.Frames + 2*ps.in.opts.Heartbeat + limits.Answer)) // a full queue is waited for between
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(ps.in.opts.MaxFrameBytes+bodySlack)))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", large.Limit))
		return nil, false
	}
	if err == nil {
		list, err = parsePosted(data, ps.in.opts.MaxFrameBytes)
	}
	if err != nil {
		problem(w, http.StatusBadRequest, fmt.Sprintf("read the messages: %.200s", err))
		return nil, false
	}
	return list, true
}

// elsewhere answers a request of a session that is not here. A node that stops
// lets none begin: a load balancer that leads by the session's id has it at the
// next one, and goes there with a 503.
func (ps *pipes) elsewhere(w http.ResponseWriter) {
	if ps.in.roster.stopping() {
		w.Header().Set("Retry-After", "1")
		problem(w, http.StatusServiceUnavailable, errDraining.Error())
		return
	}
	unknownSession(w)
}

func unknownSession(w http.ResponseWriter) {
	problem(w, http.StatusConflict, "session unknown: it is over, or of another node; begin a new one")
}

func said(w http.ResponseWriter) {
	w.Header().Set("Content-Type", wire.MessagesType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
}

// serveControl answers with what the cloud has to say, as soon as it has.
func (ps *pipes) serveControl(w http.ResponseWriter, r *http.Request) {
	_, p, ok := ps.of(r)
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	var received uint64
	if text := r.Header.Get(wire.HeaderReceived); err == nil && text != "" {
		received, err = strconv.ParseUint(text, 10, 53)
	}
	if !ok || err != nil || wait < 0 {
		problem(w, http.StatusBadRequest, fmt.Sprintf("want the header %s, 32 hex digits, and ?wait=25s", wire.HeaderSession))
		return
	}
	if p == nil {
		ps.elsewhere(w)
		return
	}
	wait = min(wait, maxPoll)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + ps.in.opts.Timeouts.Answer))
	number, body, over := p.poll(received, wait)
	switch {
	case over:
		unknownSession(w)
	case body == nil:
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set(wire.HeaderNumber, strconv.FormatUint(number, 10))
		said(w)
		w.Write(body) // where it is lost, the next poll gets it again
	}
}

// A posted is one message in a body. Its opcodes are those of a WebSocket.
type posted struct {
	kind int
	data []byte
}

func parsePosted(data []byte, max int) (list []posted, err error) {
	for r := bytes.NewReader(data); ; {
		kind, payload, err := wire.ReadMessage(r, max)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, posted{int(kind), payload})
	}
}

// A pipe is the link over HTTP.
type pipe struct {
	quiet  time.Duration // without any request, after which the gateway is gone
	forget func()        // takes it out of pipes
	in     chan posted
	ended  chan struct{} // closed by cut
	hungUp chan struct{} // closed by allow
	once   struct{ cut, hang sync.Once }

	posting sync.Mutex // held by the POST that is being taken; covers posted
	posted  uint64     // number of the last POST that was taken

	mu       sync.Mutex    // covers what follows
	unsaid   []byte        // for the next poll
	unheard  []byte        // in answers that are not confirmed
	number   uint64        // of the newest answer
	changed  chan struct{} // closed, and made anew, when one of the above changes
	polls    uint64        // so far; the newest one counts
	requests int           // open now
	seen     time.Time     // end of the last request
}

func newPipe(quiet time.Duration, forget func()) *pipe {
	return &pipe{quiet: quiet, forget: forget, in: make(chan posted), ended: make(chan struct{}), hungUp: make(chan struct{}),
		changed: make(chan struct{}), seen: time.Now()}
}

// change wakes who waits for a change. p.mu is held.
func (p *pipe) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// during counts a request as presence while it lasts.
func (p *pipe) during() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.requests--
		p.seen = time.Now()
	}
}

// deliver hands messages to the reader, one after the other. Once begun it
// does not stop because its request has: half a body would be taken twice.
func (p *pipe) deliver(list []posted) bool {
	defer p.during()()
	for _, m := range list {
		select {
		case p.in <- m:
		case <-p.hungUp:
			return false
		case <-p.ended:
			return false
		}
	}
	return true
}

// read implements link.
func (p *pipe) read() (kind int, r io.Reader, err error) {
	timer := time.NewTimer(p.quiet)
	defer timer.Stop()
	for {
		select {
		case m := <-p.in:
			if m.kind != websocket.CloseMessage {
				return m.kind, bytes.NewReader(m.data), nil
			}
			code, reason, err := wire.ParseClose(m.data)
			if err != nil {
				code = websocket.CloseNoStatusReceived
			}
			return 0, nil, &websocket.CloseError{Code: code, Text: fmt.Sprintf("%.123s", reason)}
		case <-p.hungUp:
			return 0, nil, os.ErrDeadlineExceeded
		case <-p.ended:
			return 0, nil, io.EOF
		case <-timer.C:
			left := p.silence()
			if left <= 0 {
				return 0, nil, os.ErrDeadlineExceeded
			}
			timer.Reset(left)
		}
	}
}

// silence returns how much longer the gateway may be silent.
func (p *pipe) silence() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests > 0 {
		return p.quiet
	}
	return time.Until(p.seen.Add(p.quiet))
}

// write implements link. Requests are the heartbeat here, so pings and pongs
// are left out. It waits while the gateway leaves too much unfetched.
func (p *pipe) write(kind int, data []byte, deadline time.Time) error {
	if kind == websocket.PingMessage || kind == websocket.PongMessage {
		return nil
	}
	timer := time.NewTimer(time.Until(deadline) + p.quiet)
	defer timer.Stop()
	for {
		p.mu.Lock()
		waits := len(p.unsaid) + len(p.unheard)
		if waits == 0 || waits+len(data) <= maxUnsaid || kind == websocket.CloseMessage {
			p.unsaid = wire.AppendMessage(p.unsaid, byte(kind), data)
			p.change()
			p.mu.Unlock()
			return nil
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.ended:
			return io.ErrClosedPipe
		case <-timer.C:
			return os.ErrDeadlineExceeded
		}
	}
}

// poll returns what was said since the answer with the number received; a nil
// body after wait, or when a later poll came. over says that nothing will come.
func (p *pipe) poll(received uint64, wait time.Duration) (number uint64, body []byte, over bool) {
	defer p.during()()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	p.mu.Lock()
	p.polls++
	mine := p.polls
	if received >= p.number {
		p.unheard = nil
	}
	p.change()
	for {
		if p.polls != mine {
			p.mu.Unlock()
			return 0, nil, false
		}
		if len(p.unsaid) > 0 {
			p.unheard = append(p.unheard, p.unsaid...)
			p.unsaid = nil
			p.number++
			p.change()
		}
		if len(p.unheard) > 0 {
			number, body = p.number, bytes.Clone(p.unheard)
			p.mu.Unlock()
			return number, body, false
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			return 0, nil, false
		case <-p.ended:
			return 0, nil, true
		}
		p.mu.Lock()
	}
}

// allow implements link. Silence is counted in requests, so only a deadline
// that is past says something.
func (p *pipe) allow(until time.Time) error {
	if until.Before(time.Now()) {
		p.once.hang.Do(func() { close(p.hungUp) })
	}
	return nil
}

// part implements link: it waits until a poll has fetched the close frame.
func (p *pipe) part(patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		p.mu.Lock()
		fetched, changed := len(p.unsaid) == 0, p.changed
		p.mu.Unlock()
		if fetched {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		}
	}
}

// cut implements link.
func (p *pipe) cut() {
	p.once.cut.Do(func() {
		close(p.ended)
		p.forget()
	})
}
