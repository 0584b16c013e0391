package uplink

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// A bridge speaks the cloud's side of the fallback, as docs/protocol.md has it,
// before a testCloud: what comes in requests goes on over a WebSocket. It
// refuses upgrades as a middlebox does, and loses answers as a test wants.
type bridge struct {
	cloud *testCloud
	http  *httptest.Server

	mu       sync.Mutex
	sessions map[string]*bridged
	refuse   func(w http.ResponseWriter) bool // an upgrade; false lets it through
	lose     func() bool                      // the answer to a request that was done
	upgrades int
	requests int
	lost     int
	tokens   map[string]int
	t        testing.TB
}

type bridged struct {
	conn *websocket.Conn
	wg   sync.WaitGroup

	mu       sync.Mutex
	sequence uint64
	answer   []byte   // to that
	waiting  [][]byte // messages of the cloud, ready for a body
	number   uint64   // of control
	control  []byte   // the answer with that number, until it is confirmed
	polls    int
	arrived  chan struct{} // closed when there is more
}

func newBridge(t testing.TB, c *testCloud) *bridge {
	b := &bridge{
		t: t, cloud: c, sessions: make(map[string]*bridged), tokens: make(map[string]int),
		refuse: func(w http.ResponseWriter) bool {
			http.Error(w, "upgrades are not allowed here", http.StatusForbidden)
			return true
		},
	}
	b.http = httptest.NewServer(b)
	t.Cleanup(b.close)
	return b
}

func (b *bridge) url() string { return "ws" + strings.TrimPrefix(b.http.URL, "http") }

func (b *bridge) close() {
	b.mu.Lock()
	for _, s := range b.sessions {
		s.conn.Close()
	}
	list := b.sessions
	b.mu.Unlock()
	b.http.CloseClientConnections()
	b.http.Close()
	for _, s := range list {
		s.wg.Wait()
	}
}

func (b *bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	b.requests++
	refuse, lose := b.refuse, b.lose
	if auth := r.Header.Get("Authorization"); auth != "" {
		b.tokens[auth]++
	}
	b.mu.Unlock()
	rec := httptest.NewRecorder()
	switch {
	case websocket.IsWebSocketUpgrade(r):
		b.mu.Lock()
		b.upgrades++
		b.mu.Unlock()
		if !refuse(w) {
			b.cloud.ServeHTTP(w, r)
		}
		return
	case r.URL.Path == wire.FramesPath && r.Method == http.MethodPost:
		b.frames(rec, r)
	case r.URL.Path == wire.ListenPath && r.Method == http.MethodGet:
		b.listen(rec, r)
	default:
		http.NotFound(rec, r)
	}
	if lose != nil && lose() {
		b.mu.Lock()
		b.lost++
		b.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes())
}

func (b *bridge) frames(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(wire.HeaderSession)
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 || r.Header.Get("Content-Type") != wire.MessagesType {
		b.t.Errorf("request with session %q and type %q", id, r.Header.Get("Content-Type"))
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	n, err := strconv.ParseUint(r.Header.Get(wire.HeaderSequence), 10, 64)
	if err != nil {
		b.t.Errorf("sequence %q", r.Header.Get(wire.HeaderSequence))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxPostBytes+1))
	if err != nil {
		return
	}
	if len(body) > maxPostBytes {
		b.t.Errorf("a body of more than %d bytes", maxPostBytes)
	}
	s, err := b.session(id, n, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case n == s.sequence:
	case n != s.sequence+1:
		http.Error(w, "a gap", http.StatusConflict)
		return
	default:
		if err := s.pass(body); err != nil {
			b.t.Errorf("body: %v", err)
		}
		s.sequence, s.answer = n, s.take()
	}
	w.Header().Set("Content-Type", wire.MessagesType)
	w.Write(s.answer)
}

// session finds or, for the first request, makes one.
func (b *bridge) session(id string, n uint64, r *http.Request) (*bridged, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sessions[id]; s != nil {
		return s, nil
	}
	if n != 1 {
		return nil, fmt.Errorf("session unknown")
	}
	head := http.Header{"Authorization": r.Header["Authorization"], wire.HeaderGateway: r.Header[http.CanonicalHeaderKey(wire.HeaderGateway)]}
	dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, NetDial: net.Dial}
	conn, _, err := dialer.Dial(b.cloud.url()+wire.UplinkPath, head)
	if err != nil {
		return nil, err
	}
	s := &bridged{conn: conn, arrived: make(chan struct{})}
	b.sessions[id] = s
	s.wg.Go(s.read)
	return s, nil
}

// pass sends the messages of a body on.
func (s *bridged) pass(body []byte) error {
	for r := strings.NewReader(string(body)); ; {
		op, data, err := wire.ReadMessage(r, wire.MinFrameBytes)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if op == wire.OpClose {
			s.conn.WriteControl(websocket.CloseMessage, data, time.Now().Add(time.Second))
		} else {
			s.conn.WriteMessage(int(op), data)
		}
	}
}

// read takes what the cloud says.
func (s *bridged) read() {
	for {
		kind, data, err := s.conn.ReadMessage()
		s.mu.Lock()
		if e, ok := err.(*websocket.CloseError); ok {
			s.waiting = append(s.waiting, wire.AppendClose(nil, e.Code, e.Text))
		} else if err == nil {
			s.waiting = append(s.waiting, wire.AppendMessage(nil, byte(kind), data))
		}
		close(s.arrived)
		s.arrived = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *bridged) take() (body []byte) {
	for _, m := range s.waiting {
		body = append(body, m...)
	}
	s.waiting = nil
	return body
}

func (b *bridge) listen(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	s := b.sessions[r.Header.Get(wire.HeaderSession)]
	b.mu.Unlock()
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if s == nil || err != nil || wait > 30*time.Second {
		http.Error(w, "session unknown", http.StatusConflict)
		return
	}
	received, _ := strconv.ParseUint(r.Header.Get(wire.HeaderReceived), 10, 64)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polls++
	for mine := s.polls; s.control == nil || received >= s.number; {
		if body := s.take(); len(body) > 0 {
			s.number++
			s.control = body
			break
		}
		s.control = nil
		arrived := s.arrived
		s.mu.Unlock()
		over := false
		select {
		case <-arrived:
		case <-timer.C:
			over = true
		case <-r.Context().Done():
			over = true
		}
		s.mu.Lock()
		if over || s.polls != mine {
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	w.Header().Set("Content-Type", wire.MessagesType)
	w.Header().Set(wire.HeaderNumber, strconv.FormatUint(s.number, 10))
	w.Write(s.control)
}
