package sensors

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/payload"
)

// A stream's rules. The client's text and binary messages are payloads, and
// are numbered from 1 in the order of sending. The gateway answers in text:
//
//	{"acked":n}
//	  Messages 1 to n are dealt with: each is durable, except those that an
//	  error has named before this answer. n rises; one answer may cover many.
//	{"error":{"message":k,"detail":"…"}}
//	  Message k can't be read and nothing of it is stored. It is not to be
//	  sent again. The stream goes on, and an acked of at least k follows.
//	{"error":{"message":k,"detail":"…"},"retry_after_s":s}
//	  The gateway is full (close code 1013 follows) or a commit failed (1011).
//	  Messages up to the last acked are dealt with; of those from k on it is
//	  unknown which are stored, since a later commit may have succeeded. Connect
//	  again after s seconds and send all from k on.
//
// So a client that keeps its messages until they are acked loses none.

// reply is what is due for one message.
type reply struct {
	number uint64
	detail string // why it can't be read, or ""
}

// stream is one WebSocket. One goroutine reads, another one writes.
type stream struct {
	h    *HTTP
	conn *websocket.Conn
	src  payload.Source // but its time
	who  *guest
	flow flow[reply]
	wake chan struct{}

	readDone chan struct{}
	revoked  bool // covered by h.mu
	failed   bool // of the goroutine that writes: nothing is acknowledged any more

	mu      sync.Mutex // covers closing, and the read deadline with it
	closing *closeReason
}

type closeReason struct {
	code int
	text string
}

// upgrade opens a stream. It returns a problem where there is no WebSocket
// yet; then nothing was written.
func (h *HTTP) upgrade(w http.ResponseWriter, r *http.Request) *problem {
	g, p := h.enter(r)
	if p != nil {
		return p
	}
	src, p := source(r, 0)
	if p != nil {
		h.intake.reject(CauseProtocol)
		return p
	}
	if p := h.ownSource(r, g, &src); p != nil {
		return p
	}
	if !websocket.IsWebSocketUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		return newProblem(http.StatusUpgradeRequired, "upgrade", "This is a WebSocket", "connect with a WebSocket client, or POST to "+SamplesPath)
	}
	s := &stream{h: h, src: src, who: g, wake: make(chan struct{}, 1), readDone: make(chan struct{})}
	s.flow.init(h.intake.store, h.opts.Window, max(maxInflightBytes, h.opts.MessageBytes), s.signal)
	h.mu.Lock()
	if h.closed || len(h.streams) >= h.opts.MaxStreams {
		closed := h.closed
		h.mu.Unlock()
		if closed {
			return unavailable("closing", "The gateway is ending", "connect again later", retryFailed)
		}
		h.intake.reject(CauseLimit)
		h.trouble.warn("stream refused: too many are open", slog.String("remote", r.RemoteAddr), slog.Int("max_streams", h.opts.MaxStreams))
		return unavailable("busy", "Too many streams are open", fmt.Sprintf("%d are allowed", h.opts.MaxStreams), 10*time.Second)
	}
	h.streams[s] = struct{}{}
	h.wg.Add(1)
	h.mu.Unlock()
	if no := h.intake.access.stay(g, s.revoke); no != nil {
		h.remove(s)
		return h.refuse(r, no)
	}
	conn, err := h.upgrader.Upgrade(w, r, nil)
	if err != nil { // answered by upgrader.Error
		h.remove(s)
		return nil
	}
	h.mu.Lock()
	s.conn = conn
	closed, revoked := h.closed, s.revoked
	h.mu.Unlock()
	if revoked {
		s.end(websocket.ClosePolicyViolation, errRevoked.Error())
	}
	if closed {
		s.end(websocket.CloseGoingAway, "the gateway is ending")
	}
	h.intake.counters[TransportStream].connections.Add(1)
	// The handler returns, and with it go the server's buffers for it.
	go s.run()
	return nil
}

func (h *HTTP) remove(s *stream) {
	h.intake.access.gone(s.who)
	h.mu.Lock()
	delete(h.streams, s)
	h.mu.Unlock()
	h.wg.Done()
}

// run lives as long as the stream.
func (s *stream) run() {
	defer s.h.remove(s)
	go func() {
		defer close(s.readDone)
		s.readAll()
	}()
	s.writeAll()
	_ = s.conn.Close()
	<-s.readDone
	s.h.intake.counters[TransportStream].connections.Add(-1)
}

// shutDown is called with h.mu held, by Close.
func (s *stream) shutDown() {
	if s.conn != nil { // or else upgrade will see that it is over
		s.end(websocket.CloseGoingAway, "the gateway is ending")
	}
}

// revoke ends the stream of a sensor that may not stay. It is called by
// Access.
func (s *stream) revoke(err error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.revoked = true
	if s.conn != nil { // or else upgrade will see it
		s.end(websocket.ClosePolicyViolation, err.Error())
	}
}

// end makes both goroutines end, and says why with the first call. What was
// taken is still answered before.
func (s *stream) end(code int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing == nil {
		s.closing = &closeReason{code, text}
	}
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
}

func (s *stream) why() *closeReason {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// alive grants the peer another while of silence.
func (s *stream) alive() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing != nil {
		return net.ErrClosed
	}
	return s.conn.SetReadDeadline(time.Now().Add(2 * s.h.opts.PingInterval))
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// readAll takes messages until the connection ends.
func (s *stream) readAll() {
	s.conn.SetReadLimit(int64(s.h.opts.MessageBytes)) // gorilla answers a larger one with 1009
	s.conn.SetPongHandler(func(string) error { return s.alive() })
	for number := uint64(1); s.alive() == nil; number++ {
		kind, data, err := s.conn.ReadMessage()
		if err != nil {
			s.readFailed(err)
			break
		}
		if kind == websocket.TextMessage && !utf8.Valid(data) {
			s.h.intake.reject(CauseProtocol)
			s.end(websocket.CloseInvalidFramePayloadData, fmt.Sprintf("message %d is not valid UTF-8", number))
			break
		}
		if !s.take(number, data) {
			return // fail will say why
		}
	}
	s.end(websocket.CloseNormalClosure, "")
}

func (s *stream) readFailed(err error) {
	if s.why() != nil {
		return
	}
	var closed *websocket.CloseError
	switch {
	case errors.Is(err, websocket.ErrReadLimit):
		s.h.intake.reject(CauseTooLarge)
		s.h.trouble.warn("stream closed: message is too large", slog.String("remote", s.conn.RemoteAddr().String()), slog.Int("max_bytes", s.h.opts.MessageBytes))
		s.end(websocket.CloseMessageTooBig, fmt.Sprintf("at most %d bytes are taken", s.h.opts.MessageBytes))
	case errors.As(err, &closed): // gorilla has answered a close frame already
		s.h.logger.Debug("stream closed by its client", "remote", s.conn.RemoteAddr().String(), "code", closed.Code)
	default:
		s.h.logger.Debug("stream lost", "remote", s.conn.RemoteAddr().String(), "error", err)
	}
}

// take hands a message over, waiting for the window and the store. It says
// whether the stream goes on.
func (s *stream) take(number uint64, data []byte) bool {
	s.flow.admit()
	in := s.h.intake
	b := s.h.batches.get(&s.flow)
	src := s.src
	src.Now, b.clock = in.stamp()
	in.counters[TransportStream].messages.Add(1)
	b.count(len(data), src.Now)
	answer := reply{number: number}
	decoder := decoders.Get().(*payload.Decoder)
	if err := b.decode(decoder, payload.Auto, src, data); err != nil {
		in.reject(CausePayload)
		answer.detail = err.Error()
	} else if name, found := s.foreign(b.samples); found { // of this message: a batch has one
		in.reject(CauseAccess)
		clear(b.samples)
		b.samples = b.samples[:0]
		answer.detail = s.who.notAllowed(name).Error()
	}
	decoders.Put(decoder)
	b.answers = append(b.answers, answer)
	s.flow.push(b)
	if err := s.flow.submit(s.h.ctx, b); err != nil {
		s.flow.settle(b, err)
		return false
	}
	return true
}

// foreign asks again whether the stream's own sensor is the guest's still.
func (s *stream) foreign(samples []touchline.Sample) (name string, found bool) {
	own := ""
	if s.who.mayPublish(s.src.Sensor) {
		own = s.src.Sensor
	}
	return s.who.foreign(samples, own)
}

// writeAll is the one goroutine that writes.
func (s *stream) writeAll() {
	ping := time.NewTicker(s.h.opts.PingInterval)
	defer ping.Stop()
	for {
		select {
		case <-s.wake:
			s.answerAll()
		case <-ping.C:
			s.write(websocket.PingMessage, nil)
		case <-s.readDone:
			s.drain()
			s.sayWhy()
			return
		}
	}
}

// drain answers what is still on its way; nothing more comes in.
func (s *stream) drain() {
	for {
		s.answerAll()
		if s.flow.idle() {
			return
		}
		<-s.wake
	}
}

// answerAll passes the store's answers on: errors first, then one acked for
// all of them.
func (s *stream) answerAll() {
	var taken []*batch[reply]
	var cache seenCache
	for {
		taken = s.flow.take(taken[:0])
		if len(taken) == 0 {
			return
		}
		acked := uint64(0)
		for _, b := range taken {
			s.h.intake.account(TransportStream, &cache, &b.load, b.err) // before anybody is told
			for _, a := range b.answers {
				switch {
				case s.failed:
				case b.err != nil:
					s.ackUpTo(acked)
					acked = 0
					s.fail(a.number, b.err)
				case a.detail != "":
					s.sendError(a.number, a.detail, 0)
					acked = a.number
				default:
					acked = a.number
				}
			}
		}
		s.ackUpTo(acked)
		s.flow.release(taken)
		for _, b := range taken {
			s.h.batches.put(b)
		}
	}
}

func (s *stream) ackUpTo(n uint64) {
	if n > 0 {
		s.write(websocket.TextMessage, fmt.Appendf(nil, `{"acked":%d}`, n))
	}
}

// fail says that message number is not stored, and ends the stream.
func (s *stream) fail(number uint64, err error) {
	s.failed = true
	if wait := retryAfter(err); wait > 0 {
		s.sendError(number, "the gateway's buffer is full", wholeSeconds(wait))
		s.end(websocket.CloseTryAgainLater, "the gateway's buffer is full")
		return
	}
	if s.h.ctx.Err() != nil {
		s.end(websocket.CloseGoingAway, "the gateway is ending")
		return
	}
	s.h.trouble.warn("samples of a stream are not stored: it was closed, so that its client sends them again",
		slog.String("remote", s.conn.RemoteAddr().String()), slog.Any("error", err))
	s.sendError(number, fmt.Sprintf("the commit failed: %v", err), wholeSeconds(retryFailed))
	s.end(websocket.CloseInternalServerErr, "a commit failed")
}

func (s *stream) sendError(number uint64, detail string, retryAfter int) {
	var answer struct {
		Error struct {
			Message uint64 `json:"message"`
			Detail  string `json:"detail"`
		} `json:"error"`
		RetryAfter int `json:"retry_after_s,omitempty"`
	}
	answer.Error.Message, answer.Error.Detail, answer.RetryAfter = number, detail, retryAfter
	text, err := json.Marshal(answer)
	if err != nil {
		panic("BUG: an answer has only strings and numbers: " + err.Error())
	}
	s.write(websocket.TextMessage, text)
}

// write sends one message. A client that does not read for Limits.Write loses
// its stream; after an error gorilla refuses all further writes.
func (s *stream) write(kind int, data []byte) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.h.limits().Write))
	if err := s.conn.WriteMessage(kind, data); err != nil {
		_ = s.conn.Close() // unblocks the reader
	}
}

// sayWhy sends the close frame, where it was this side that closed.
func (s *stream) sayWhy() {
	why := s.why()
	if why.code == websocket.CloseNormalClosure {
		return // the client closed, or is gone
	}
	text := why.text
	for len(text) > 123 { // what a control frame has room for (RFC 6455, section 5.5)
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	s.write(websocket.CloseMessage, websocket.FormatCloseMessage(why.code, text))
	linger(s.conn.NetConn())
}
