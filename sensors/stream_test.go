package sensors

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func dialStream(t testing.TB, url, query string, header http.Header) *websocket.Conn {
	t.Helper()
	conn, r, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(url, "http")+StreamPath+query, header)
	if err != nil {
		t.Fatalf("dial: %v %+v", err, r)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	return conn
}

func sendText(t testing.TB, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// streamAnswer is what a client reads.
type streamAnswer struct {
	Acked uint64 `json:"acked"`
	Error *struct {
		Message uint64 `json:"message"`
		Detail  string `json:"detail"`
	} `json:"error"`
	RetryAfter int `json:"retry_after_s"`
}

func readAnswer(t testing.TB, conn *websocket.Conn) streamAnswer {
	t.Helper()
	_, data, err := conn.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	var a streamAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	return a
}

// expectAcked reads until n is acknowledged, and fails on an error.
func expectAcked(t testing.TB, conn *websocket.Conn, n uint64) {
	t.Helper()
	for acked := uint64(0); acked < n; {
		a := readAnswer(t, conn)
		if a.Error != nil || a.Acked <= acked || a.Acked > n {
			t.Fatalf("answer %+v after %d, waiting for %d", a, acked, n)
		}
		acked = a.Acked
	}
}

// expectClose reads until the stream ends and returns the close code.
func expectClose(t testing.TB, conn *websocket.Conn) int {
	t.Helper()
	for {
		_, data, err := conn.ReadMessage()
		var closed *websocket.CloseError
		switch {
		case errors.As(err, &closed):
			conn.Close() // as a client does; the gateway waits for it a while
			return closed.Code
		case err != nil:
			t.Fatalf("the stream ended without a close frame: %v", err)
		default:
			t.Fatalf("before the end came %q", data)
		}
	}
}

func TestStream_AcknowledgesAfterTheCommit(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	server := startHTTP(t, in, nil, slog.New(slog.DiscardHandler))
	conn := dialStream(t, server.URL, "?sensor=belt", nil)
	store.hold()
	for i := range 100 {
		sendText(t, conn, fmt.Sprintf(`{"i":%d}`, i))
	}
	store.awaitQueued(t, 100) // many in flight on one connection
	answers := make(chan []byte)
	go func() {
		_, data, _ := conn.ReadMessage()
		answers <- data
	}()
	select {
	case data := <-answers:
		t.Fatalf("answered %q before the commit", data)
	default:
	}
	store.release()
	var a streamAnswer
	if err := json.Unmarshal(<-answers, &a); err != nil || a.Acked == 0 {
		t.Fatalf("answer %+v, %v", a, err)
	}
	for a.Acked < 100 {
		next := readAnswer(t, conn)
		if next.Acked <= a.Acked || next.Error != nil {
			t.Fatalf("answer %+v after %+v", next, a)
		}
		a = next
	}
	for i, s := range store.stored() {
		if s.Sensor != "belt" || s.Metric != "i" || s.Value.Float() != float64(i) {
			t.Fatalf("sample %d is %+v", i, s)
		}
	}
	if err := conn.WriteMessage(websocket.BinaryMessage, []byte("\x81\xa2\x00\x62hr\x02\x18\x8e")); err != nil {
		t.Fatal(err)
	}
	expectAcked(t, conn, 101)
	if s := in.Stats().Transports[TransportStream]; s.Samples != 101 || s.Messages != 101 || s.Connections != 1 {
		t.Errorf("stats are %+v", s)
	}
}

func TestStream_SaysExactlyWhatIsNotStored(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	conn := dialStream(t, server.URL, "?sensor=belt", nil)
	for i := 1; i <= 10; i++ {
		text := fmt.Sprintf(`{"i":%d}`, i)
		if i%5 == 0 { // the last one too
			text = fmt.Sprintf(`{"i":%d`, i)
		}
		sendText(t, conn, text)
	}
	bad := map[uint64]bool{}
	var acked uint64
	for acked < 10 {
		a := readAnswer(t, conn)
		if a.Error == nil {
			acked = a.Acked
			continue
		}
		if a.Error.Message <= acked || a.Error.Detail == "" {
			t.Fatalf("the error %+v comes after %d was acknowledged", a.Error, acked)
		}
		bad[a.Error.Message] = true
	}
	if len(bad) != 2 || !bad[5] || !bad[10] {
		t.Errorf("errors were named for %v, want 5 and 10", bad)
	}
	if got := len(store.stored()); got != 8 {
		t.Errorf("%d samples are stored, want 8", got)
	}
}

func TestStream_FullStoreEndsItWithTryAgainLater(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	conn := dialStream(t, server.URL, "?sensor=belt", nil)
	store.hold()
	sendText(t, conn, `{"i":1}`)
	store.awaitQueued(t, 1)
	store.setRefuse(full{3 * time.Second})
	sendText(t, conn, `{"i":2}`)
	sendText(t, conn, `{"i":3}`)
	store.await(t, "message 2 was refused", func() bool { return store.refused > 0 })
	store.release()
	if a := readAnswer(t, conn); a.Acked != 1 {
		t.Errorf("first answer %+v, want that message 1 is acknowledged", a)
	}
	if a := readAnswer(t, conn); a.Error == nil || a.Error.Message != 2 || a.RetryAfter != 3 {
		t.Errorf("second answer %+v, want an error for message 2 and 3 s", a)
	}
	if code := expectClose(t, conn); code != websocket.CloseTryAgainLater {
		t.Errorf("close code %d, want 1013", code)
	}
}

func TestStream_FailedCommitEndsItUnacknowledged(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	conn := dialStream(t, server.URL, "?sensor=belt", nil)
	store.setFail(errCommit)
	sendText(t, conn, `{"i":1}`)
	if a := readAnswer(t, conn); a.Acked != 0 || a.Error == nil || a.Error.Message != 1 {
		t.Errorf("answer %+v, want an error for message 1", a)
	}
	if code := expectClose(t, conn); code != websocket.CloseInternalServerErr {
		t.Errorf("close code %d, want 1011", code)
	}
}

func TestStream_WindowIsBackpressure(t *testing.T) {
	store := newStore(t)
	server := startHTTP(t, newTestIntake(t, store), func(o *HTTPOptions) { o.Window = 4 }, slog.New(slog.DiscardHandler))
	conn, other := dialStream(t, server.URL, "?sensor=belt", nil), dialStream(t, server.URL, "?sensor=other", nil)
	store.hold()
	for i := range 12 {
		sendText(t, conn, fmt.Sprintf(`{"i":%d}`, i))
	}
	store.awaitQueued(t, 4)
	sendText(t, other, `{"i":1}`)
	store.awaitQueued(t, 5)
	store.mu.Lock()
	n := len(store.queue)
	store.mu.Unlock()
	if n != 5 {
		t.Errorf("%d messages were taken with a window of 4 and one of the other stream", n)
	}
	store.release()
	expectAcked(t, conn, 12)
}

func TestStream_BadInputEndsOnlyItself(t *testing.T) {
	for _, tc := range []struct {
		name string
		kind int
		data string
		code int
	}{
		{"invalid UTF-8", websocket.TextMessage, "\"\xff\"", websocket.CloseInvalidFramePayloadData},
		{"too large", websocket.TextMessage, strings.Repeat("x", 65<<10), websocket.CloseMessageTooBig},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := newStore(t)
			server := startHTTP(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
			good, bad := dialStream(t, server.URL, "?sensor=good", nil), dialStream(t, server.URL, "?sensor=bad", nil)
			sendText(t, bad, `{"i":1}`)
			expectAcked(t, bad, 1)
			if err := bad.WriteMessage(tc.kind, []byte(tc.data)); err != nil {
				t.Fatal(err)
			}
			if code := expectClose(t, bad); code != tc.code {
				t.Errorf("close code %d, want %d", code, tc.code)
			}
			sendText(t, good, `{"i":1}`)
			expectAcked(t, good, 1)
			if got := len(store.stored()); got != 2 {
				t.Errorf("%d samples are stored, want 2", got)
			}
		})
	}
}

func TestStream_LastWordReachesAClientThatGoesOnTalking(t *testing.T) {
	server := startHTTP(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	conn := dialStream(t, server.URL, "?sensor=a", nil)
	sendText(t, conn, "\"\xff\"")
	for range 100 { // left unread, it would reset the connection
		sendText(t, conn, strings.Repeat("x", 1000))
	}
	var closed *websocket.CloseError
	if _, _, err := conn.ReadMessage(); !errors.As(err, &closed) || closed.Code != websocket.CloseInvalidFramePayloadData {
		t.Fatalf("read %v, want close code 1007", err)
	}
	if _, err := conn.NetConn().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("then the connection ended with %v, want EOF", err)
	}
}

func TestStream_RefusesForeignPagesBadNamesAndTooMany(t *testing.T) {
	server := startHTTP(t, newTestIntake(t, newStore(t)), func(o *HTTPOptions) { o.MaxStreams = 1 }, slog.New(slog.DiscardHandler))
	dial := func(query string, header http.Header) int {
		conn, r, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(server.URL, "http")+StreamPath+query, header)
		if err == nil {
			conn.Close()
			return 101
		}
		defer r.Body.Close()
		if got := r.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("refused with content type %q", got)
		}
		return r.StatusCode
	}
	if got := dial("", http.Header{"Origin": {"https://elsewhere.example"}}); got != 403 {
		t.Errorf("a foreign page gets %d, want 403", got)
	}
	if got := dial("?sensor=a/b", nil); got != 400 {
		t.Errorf("a bad name gets %d, want 400", got)
	}
	dialStream(t, server.URL, "", http.Header{"Origin": {server.URL}})
	if got := dial("", nil); got != 503 {
		t.Errorf("one stream too many gets %d, want 503", got)
	}
}

func TestStream_SilentPeerIsFound(t *testing.T) {
	in := newTestIntake(t, newStore(t))
	server := startHTTP(t, in, func(o *HTTPOptions) { o.PingInterval = 20 * time.Millisecond }, slog.New(slog.DiscardHandler))
	silent := dialStream(t, server.URL, "", nil) // reads nothing, so it answers no ping
	eventually(t, "silent peer dropped", func() bool { return in.Stats().Transports[TransportStream].Connections == 0 })
	if _, _, err := silent.ReadMessage(); err == nil {
		t.Error("the silent peer's connection is open")
	}
}

func TestHTTP_CloseEndsStreamsAfterTheirCommits(t *testing.T) {
	store := newStore(t)
	h, err := NewHTTP(HTTPOptions{BodyBytes: 1, MessageBytes: 1000, MaxRequests: 1, MaxStreams: 9, Window: 9, PingInterval: time.Minute},
		newTestIntake(t, store), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: h}
	listener := listenTCP(t)
	go server.Serve(listener)
	defer server.Close()
	conn := dialStream(t, "http://"+listener.Addr().String(), "?sensor=belt", nil)
	store.hold()
	sendText(t, conn, `{"i":1}`)
	store.awaitQueued(t, 1)
	if err := server.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- h.Close() }()
	eventually(t, "Close was called", func() bool { return h.ctx.Err() != nil })
	store.release()
	expectAcked(t, conn, 1)
	if code := expectClose(t, conn); code != websocket.CloseGoingAway {
		t.Errorf("close code %d, want 1001", code)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error("second Close:", err)
	}
}

func BenchmarkStream(b *testing.B) {
	store := newStore(b)
	store.discard = true
	server := startHTTP(b, newTestIntake(b, store), nil, slog.New(slog.DiscardHandler))
	conn := dialStream(b, server.URL, "?sensor=belt", nil)
	msg := []byte(`{"t":1700000000123456789,"heart_rate":142,"x":12.345,"y":-3.21,"speed":4.56,"battery":87,"seq":1234}`)
	b.ResetTimer()
	go func() {
		for range b.N {
			if conn.WriteMessage(websocket.TextMessage, msg) != nil {
				return // the reader sees it
			}
		}
	}()
	for acked := uint64(0); acked < uint64(b.N); {
		acked = readAnswer(b, conn).Acked
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
}
