package uplink

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

const (
	// pollWait is how long the cloud may keep a request that asks for what it
	// has to say; half a minute is where proxies begin to give up.
	pollWait = 25 * time.Second
	// maxPostBytes bounds what waits for a request and what one carries: a
	// frame of the least max_frame, and 64 KiB of other messages. A larger
	// frame is never made (frameTarget, wire.MaxBlockBytes).
	maxPostBytes = wire.MinFrameBytes + 64<<10
	// maxAnswerBytes bounds an answer: a welcome, and acks.
	maxAnswerBytes = 4 * wire.MaxMessageBytes
	// retryFirst and retryMost bound the pause before a request that got no
	// answer is sent again, with the same number: it is done once.
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
	// inboxMessages bounds what was heard and is not read yet; requests wait
	// beyond that.
	inboxMessages = 64
)

// requests is a link over HTTP, where no WebSocket gets through: POSTs carry
// messages to the cloud, their answers and a long poll what it says. It has two
// goroutines, which end with Cut.
type requests struct {
	u    *Uplink
	to   *url.URL
	id   string
	http *http.Client

	ctx  context.Context
	cut  context.CancelCauseFunc
	wg   sync.WaitGroup
	free func()

	begun chan struct{} // closed when the first POST is answered
	inbox chan heard
	wake  chan struct{} // 1 slot: there is something to post
	room  chan struct{} // 1 slot: the body that waits was taken
	moved chan struct{} // 1 slot: the deadline of Next was changed
	on    handlers

	mu       sync.Mutex // covers what follows
	body     []byte     // what waits to be posted
	ping     []byte     // the payload of a ping that waits; nil for none
	closing  bool       // body ends with a close
	deadline time.Time  // of Next
}

// heard is a message from the cloud, a pong, or that something moves.
type heard struct {
	kind    int
	data    []byte
	pong    bool
	payload []byte
	moving  bool
}

// openRequests begins a session over requests. It does not wait for the network.
func (u *Uplink) openRequests(ctx context.Context, to *url.URL) (link, error) {
	if err := u.checkRoute(to); err != nil { // what is wrong with files is said at once
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:]) // never fails
	transport := u.route.Transport()
	transport.MaxConnsPerHost, transport.DisableCompression = 2, true
	transport.IdleConnTimeout = 0 // the session ends it
	client := u.route.Client()
	client.Transport, client.Jar = transport, &cookies{}
	r := &requests{
		u: u, to: overHTTP(to), id: hex.EncodeToString(id[:]),
		http: client, free: transport.CloseIdleConnections,
		begun: make(chan struct{}),
		inbox: make(chan heard, inboxMessages),
		wake:  make(chan struct{}, 1), room: make(chan struct{}, 1), moved: make(chan struct{}, 1),
	}
	// The session ends it: a stop has to be told to the cloud first.
	r.ctx, r.cut = context.WithCancelCause(context.WithoutCancel(ctx))
	r.wg.Go(func() { r.end(r.post()) })
	r.wg.Go(func() { r.end(r.poll()) })
	return r, nil
}

// end ends the link with the first error of its goroutines.
func (r *requests) end(err error) {
	if err != nil {
		r.cut(err)
	}
}

func (r *requests) Begin(on handlers) { r.on = on }

func (r *requests) Next() (int, io.Reader, error) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		r.mu.Lock()
		timer.Reset(time.Until(r.deadline))
		r.mu.Unlock()
		select {
		case h := <-r.inbox:
			if kind, data, ok, err := r.take(h); ok || err != nil {
				return kind, data, err
			}
			continue
		default:
		}
		select {
		case h := <-r.inbox:
			if kind, data, ok, err := r.take(h); ok || err != nil {
				return kind, data, err
			}
		case <-r.moved:
		case <-timer.C:
			return 0, nil, timeoutError{}
		case <-r.ctx.Done():
			return 0, nil, context.Cause(r.ctx)
		}
	}
}

// timeoutError says that Next's deadline has passed.
type timeoutError struct{}

func (timeoutError) Error() string   { return "nothing came in time" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// take makes a message of what was heard, if it is one.
func (r *requests) take(h heard) (kind int, data io.Reader, ok bool, err error) {
	switch {
	case h.moving:
		r.on.moving()
		return 0, nil, false, nil
	case h.pong:
		return 0, nil, false, r.on.pong(string(h.payload))
	case h.kind == wire.OpText:
		return websocket.TextMessage, bytes.NewReader(h.data), true, nil
	case h.kind == wire.OpBinary:
		return websocket.BinaryMessage, bytes.NewReader(h.data), true, nil
	}
	code, reason, err := wire.ParseClose(h.data)
	if err != nil {
		return 0, nil, false, err
	}
	return 0, nil, false, &websocket.CloseError{Code: code, Text: reason}
}

func (r *requests) Deadline(t time.Time) {
	r.mu.Lock()
	r.deadline = t
	r.mu.Unlock()
	wake(r.moved)
}

func (r *requests) Write(kind int, data []byte, between func() error, by func() time.Time) error {
	op := byte(wire.OpText)
	if kind == websocket.BinaryMessage {
		op = wire.OpBinary
	}
	timer := time.NewTimer(time.Until(by()))
	defer timer.Stop()
	for {
		r.mu.Lock()
		if len(r.body) == 0 || len(r.body)+wire.MessageHeaderBytes+len(data) <= maxPostBytes {
			r.body = wire.AppendMessage(r.body, op, data)
			r.mu.Unlock()
			wake(r.wake)
			return between()
		}
		r.mu.Unlock()
		select {
		case <-r.room:
		case <-timer.C:
			return errors.New("no request gets through")
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
}

// Ping has a request sent even if there is nothing to say; its answer is the
// pong.
func (r *requests) Ping(payload []byte, _ time.Time) error {
	r.mu.Lock()
	r.ping = payload
	r.mu.Unlock()
	wake(r.wake)
	return nil
}

// Pong answers what can't come: the cloud has no pings here.
func (r *requests) Pong([]byte, time.Time) error { return nil }

func (r *requests) SayClose(code int, text string, _ time.Time) error {
	r.mu.Lock()
	r.body = wire.AppendClose(r.body, code, text)
	r.closing = true
	r.mu.Unlock()
	wake(r.wake)
	return nil
}

func (r *requests) Cut() { r.cut(errors.New("connection was cut")) }

func (r *requests) Close() {
	r.Cut()
	r.wg.Wait()
	r.free()
}

// post sends what waits, one request at a time, until the link ends.
func (r *requests) post() error {
	for n := uint64(1); ; n++ {
		r.mu.Lock()
		for len(r.body) == 0 && r.ping == nil {
			r.mu.Unlock()
			select {
			case <-r.wake:
			case <-r.ctx.Done():
				return nil
			}
			r.mu.Lock()
		}
		body, ping, closing := r.body, r.ping, r.closing
		r.body, r.ping = nil, nil
		r.mu.Unlock()
		wake(r.room)
		if err := r.postOne(n, body); err != nil {
			return err
		}
		if n == 1 {
			close(r.begun)
		}
		if closing {
			return &websocket.CloseError{Code: websocket.CloseNormalClosure}
		}
		if ping != nil && !r.hear(heard{pong: true, payload: ping}) {
			return nil
		}
	}
}

// postOne sends one request until it is answered.
func (r *requests) postOne(n uint64, body []byte) error {
	return r.until(func() error {
		return r.once(http.MethodPost, wire.FramesPath, func(req *http.Request) {
			req.Body, req.ContentLength = io.NopCloser(&moving{r: bytes.NewReader(body), l: r}), int64(len(body))
			req.Header.Set("Content-Type", wire.MessagesType)
			req.Header.Set(wire.HeaderSequence, strconv.FormatUint(n, 10))
		}, nil)
	})
}

// A moving body tells the reader of the link that the network takes it: on a
// slow one a request may take longer than a heartbeat.
type moving struct {
	r io.Reader
	l *requests
}

func (m *moving) Read(p []byte) (int, error) {
	n, err := m.r.Read(p[:min(len(p), 16<<10)])
	if n > 0 {
		select {
		case m.l.inbox <- heard{moving: true}:
		default: // the reader has enough to do
		}
	}
	return n, err
}

// poll asks for what the cloud has to say, until the link ends.
func (r *requests) poll() error {
	select {
	case <-r.begun:
	case <-r.ctx.Done():
		return nil
	}
	var received uint64
	for {
		err := r.until(func() error {
			return r.once(http.MethodGet, wire.ListenPath, func(req *http.Request) {
				req.URL.RawQuery = "wait=" + pollWait.String()
				if received > 0 {
					req.Header.Set(wire.HeaderReceived, strconv.FormatUint(received, 10))
				}
			}, func(h http.Header) bool {
				number, err := strconv.ParseUint(h.Get(wire.HeaderNumber), 10, 64)
				if err == nil && number <= received {
					return false // it was heard before, but the cloud did not know
				}
				received = max(received, number)
				return true
			})
		})
		if err != nil {
			return err
		}
		if r.ctx.Err() != nil {
			return nil
		}
	}
}

// until tries until there is an answer, good or bad, or the link ends: the
// session's heartbeat says when that is too late.
func (r *requests) until(try func() error) error {
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		err := try()
		var broken *lostRequest
		if r.ctx.Err() != nil {
			return nil
		}
		if err == nil || !errors.As(err, &broken) {
			return err
		}
		r.u.log.Debug("a request is sent again", "error", err)
		sleep(r.ctx, pause)
	}
}

// lostRequest is one of which no answer came.
type lostRequest struct{ err error }

func (l *lostRequest) Error() string { return l.err.Error() }
func (l *lostRequest) Unwrap() error { return l.err }

// once sends one request and hears its answer, where fresh says that it is not
// a repeat.
func (r *requests) once(method, path string, prepare func(*http.Request), fresh func(http.Header) bool) error {
	// Who we are is shown once; after that the session's id says so.
	head, err := http.Header{wire.HeaderGateway: {r.u.opts.Gateway}, "User-Agent": {r.u.opts.Software}}, error(nil)
	if !r.known() {
		head, err = r.u.head(r.ctx, r.to)
	}
	if err != nil && r.u.opts.Credential != nil {
		return &lostRequest{err} // a nonce is asked for over the same network
	}
	if err != nil {
		return err
	}
	// A request that the network swallows must not be waited for for longer
	// than a heartbeat allows.
	ctx, cancel := context.WithTimeout(r.ctx, pollWait+2*r.u.opts.Heartbeat)
	defer cancel()
	at := *r.to
	at.Path += path[len(wire.UplinkPath):]
	req, err := http.NewRequestWithContext(ctx, method, at.String(), nil)
	if err != nil {
		return err
	}
	req.Header = head
	req.Header.Set(wire.HeaderSession, r.id)
	prepare(req)
	resp, err := r.http.Do(req)
	if err != nil {
		return &lostRequest{fmt.Errorf("%s %s: %w", method, shown(&at), errors.Unwrap(err))}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNoContent:
		return nil
	case http.StatusConflict:
		return dead(fmt.Errorf("%s %s: the cloud has no such session (any more)", method, shown(&at)))
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return &lostRequest{r.u.refusal(&at, resp)} // of a proxy before it
	default:
		return r.u.refusal(&at, resp)
	}
	if got := resp.Header.Get("Content-Type"); got != wire.MessagesType && resp.ContentLength != 0 {
		return &failure{err: fmt.Errorf("%s %s: answered %.80q: is this address a touchline cloud?", method, shown(&at), got), floor: r.u.opts.refusedFor()}
	}
	// The whole answer, before any of it counts: cut off, it is repeated.
	var list []heard
	for body := io.LimitReader(resp.Body, maxAnswerBytes); ; {
		op, data, err := wire.ReadMessage(body, wire.MaxMessageBytes)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &lostRequest{fmt.Errorf("%s %s: read answer: %w", method, shown(&at), err)}
		}
		list = append(list, heard{kind: int(op), data: data})
	}
	if fresh != nil && !fresh(resp.Header) {
		return nil
	}
	for _, h := range list {
		if !r.hear(h) {
			break
		}
	}
	return nil
}

// known says whether the cloud has answered for this session.
func (r *requests) known() bool {
	select {
	case <-r.begun:
		return true
	default:
		return false
	}
}

// hear hands on what was heard; it returns false when the link has ended.
func (r *requests) hear(h heard) bool {
	select {
	case r.inbox <- h:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// cookies is a jar of one site for the time of a session: a load balancer's, so
// that all requests of it go to one node.
type cookies struct {
	mu   sync.Mutex
	list []*http.Cookie
}

// maxCookies bounds what a server can make us carry.
const maxCookies = 8

func (c *cookies) SetCookies(_ *url.URL, list []*http.Cookie) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range list {
		if len(n.Value) > 1<<10 {
			continue
		}
		kept := c.list[:0:0]
		for _, old := range c.list {
			if old.Name != n.Name {
				kept = append(kept, old)
			}
		}
		c.list = append(kept, n)
	}
	c.list = c.list[max(0, len(c.list)-maxCookies):]
}

func (c *cookies) Cookies(*url.URL) []*http.Cookie {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list
}
