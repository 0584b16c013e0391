package cloud_test

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A courier is a gateway behind a middlebox: it speaks touchline.v1 in POSTs
// and polls, by hand.
type courier struct {
	t        testing.TB
	n        *node
	id       string
	session  string
	sent     int
	received int
}

func newCourier(n *node, id string) *courier {
	var session [16]byte
	rand.Read(session[:])
	return &courier{t: n.t, n: n, id: id, session: hex.EncodeToString(session[:])}
}

func (c *courier) header() http.Header {
	h := header(c.id)
	h[wire.HeaderSession] = []string{c.session}
	return h
}

// post sends a body with a number, and returns the status.
func (c *courier) post(number int, body []byte) (int, string) {
	c.t.Helper()
	h := c.header()
	h[wire.HeaderSequence] = []string{strconv.Itoa(number)}
	status, _, text := c.n.postBytes(wire.FramesPath, body, h)
	return status, text
}

func (c *courier) send(body []byte) {
	c.t.Helper()
	c.sent++
	if status, text := c.post(c.sent, body); status != http.StatusOK {
		c.t.Fatalf("POST %d of %s: %d %s", c.sent, c.id, status, text)
	}
}

// poll returns what the cloud says and its number. It does not confirm it.
func (c *courier) poll(wait string) (status, number int, body []byte) {
	c.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+c.n.addr+wire.ListenPath+"?wait="+wait, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, v := range c.header() {
		req.Header[http.CanonicalHeaderKey(name)] = v
	}
	req.Header.Set(wire.HeaderReceived, strconv.Itoa(c.received))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		c.t.Fatal(err)
	}
	number, _ = strconv.Atoi(resp.Header.Get(wire.HeaderNumber))
	return resp.StatusCode, number, body
}

type said struct {
	messages []wire.Message
	code     int // of the close, 0: none
}

// hear polls until the cloud has something to say, and confirms it.
func (c *courier) hear() said {
	c.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		switch status, number, body := c.poll("25s"); status {
		case http.StatusOK:
			c.received = number
			return parseSaid(c.t, body)
		case http.StatusNoContent:
		default:
			c.t.Fatalf("poll of %s: %d %s", c.id, status, body)
		}
	}
	c.t.Fatalf("the cloud says nothing to %s", c.id)
	return said{}
}

func parseSaid(t testing.TB, body []byte) (s said) {
	t.Helper()
	for len(body) > 0 {
		kind, size := int(body[0]), binary.BigEndian.Uint32(body[1:])
		data := body[5 : 5+size]
		body = body[5+size:]
		switch kind {
		case websocket.TextMessage:
			m, err := wire.ParseMessage(data)
			if err != nil {
				t.Fatal(err)
			}
			s.messages = append(s.messages, m)
		case websocket.CloseMessage:
			s.code = int(binary.BigEndian.Uint16(data))
		default:
			t.Fatalf("opcode %d came from the cloud", kind)
		}
	}
	return s
}

func envelope(out []byte, kind int, data []byte) []byte {
	out = binary.BigEndian.AppendUint32(append(out, byte(kind)), uint32(len(data)))
	return append(out, data...)
}

func text(t testing.TB, m wire.Message) []byte {
	t.Helper()
	data, err := wire.MarshalMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	return envelope(nil, websocket.TextMessage, data)
}

func frame(t testing.TB, blocks ...wire.Block) []byte {
	t.Helper()
	list := make([]wire.FrameBlock, len(blocks))
	for i := range blocks {
		list[i].Block = blocks[i]
	}
	data, err := wire.AppendFrame(nil, list)
	if err != nil {
		t.Fatal(err)
	}
	return envelope(nil, websocket.BinaryMessage, data)
}

func (c *courier) hello() []byte { return text(c.t, &wire.Hello{Gateway: c.id, Clock: "set"}) }

func (c *courier) join() *wire.Welcome {
	c.t.Helper()
	c.send(c.hello())
	s := c.hear()
	if len(s.messages) == 0 {
		c.t.Fatalf("the answer to hello is %+v", s)
	}
	return s.messages[0].(*wire.Welcome)
}

func (c *courier) stored(blocks ...wire.Block) {
	c.t.Helper()
	var have touchline.Ranges
	for _, b := range blocks {
		for !have.Contains(b.Range()) {
			for _, m := range c.hear().messages {
				if ack, ok := m.(*wire.Ack); ok {
					for _, er := range ack.Stored {
						have.AddAll(er.Ranges)
					}
				}
			}
		}
	}
}

// closed reads until the session's end and checks its code.
func (c *courier) closed(code int) (before []wire.Message) {
	c.t.Helper()
	for {
		s := c.hear()
		before = append(before, s.messages...)
		if s.code != 0 && s.code != code {
			c.t.Fatalf("the session ended with %d, want %d", s.code, code)
		}
		if s.code != 0 {
			return before
		}
	}
}

// startHasty starts a node that waits for no poll when it stops.
func startHasty(t testing.TB, store cloud.Store) *node {
	server := prepare(t, options(), store)
	server.SetShutdown(50 * time.Millisecond)
	return run(t, server)
}

func TestFallback_StoresOnceWhatIsPostedTwice(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := startHasty(t, store)
		c := newCourier(n, "arena")
		if welcome := c.join(); welcome.Session == 0 {
			t.Fatalf("welcome is %+v", welcome)
		}
		if st := n.server.Stats(); st.Connections != 1 {
			t.Errorf("%d connections are counted, want 1", st.Connections)
		}
		sent := blocks(t, 4)
		c.send(append(frame(t, sent[0]), frame(t, sent[1], sent[2])...))
		if status, body := c.post(c.sent, frame(t, sent[0])); status != http.StatusOK { // its answer was lost
			t.Errorf("the repeat of a POST: %d %s", status, body)
		}
		if status, _ := c.post(c.sent+2, frame(t, sent[3])); status != http.StatusConflict {
			t.Errorf("a POST behind a gap: %d, want 409", status)
		}
		c.stored(sent[:3]...)
		c.send(frame(t, sent[3]))
		c.stored(sent[3])
		if st := n.server.Stats(); st.BlocksStored != 4 || st.Repeats != 0 {
			t.Errorf("stored %d blocks and %d repeats, want 4 and 0", st.BlocksStored, st.Repeats)
		}
	}, "arena")
}

func TestFallback_NothingSaidIsLostWithAnAnswer(t *testing.T) {
	n := startHasty(t, newMemory("arena"))
	c := newCourier(n, "arena")
	c.send(c.hello())
	_, first, body := c.poll("25s") // which got lost
	_, second, again := c.poll("25s")
	if w, ok := parseSaid(t, again).messages[0].(*wire.Welcome); !ok || string(body) != string(again) || first != second {
		t.Fatalf("the second poll got %+v, number %d, want what the first got, number %d", w, second, first)
	}
	sent := blocks(t, 1)
	c.send(frame(t, sent...))
	eventually(t, "the ack comes behind what was not confirmed", func() bool {
		_, number, body := c.poll("25s")
		list := parseSaid(t, body).messages
		return number == second+1 && len(list) == 2
	})
	c.received = second + 1
	if status, _, body := c.poll("1ms"); status != http.StatusNoContent {
		t.Errorf("with all confirmed: %d %q, want 204", status, body)
	}
}

func TestFallback_ALaterPollEndsTheOneBefore(t *testing.T) {
	n := startHasty(t, newMemory("arena"))
	c := newCourier(n, "arena")
	c.join()
	status := make(chan int)
	go func() {
		s, _, _ := c.poll("30s")
		status <- s
	}()
	eventually(t, "the first poll ends", func() bool {
		c.poll("1ms")
		select {
		case s := <-status:
			if s != http.StatusNoContent {
				t.Errorf("it got %d, want 204", s)
			}
			return true
		default:
			return false
		}
	})
}

func TestFallback_EndsAsAWebSocketDoes(t *testing.T) {
	server := prepare(t, options(), newMemory("arena", "court", "field", "hall"))
	server.SetPoll(-29 * time.Second) // quiet for a second
	n := run(t, server)
	c := newCourier(n, "arena")
	c.join()
	g, _ := n.join("arena") // over a WebSocket
	c.closed(wire.CloseSuperseded)
	back := newCourier(n, "arena")
	back.join()
	g.closed(wire.CloseSuperseded)

	wrong := newCourier(n, "court")
	wrong.join()
	wrong.send(text(t, &wire.Hello{Gateway: "court"}))
	wrong.closed(wire.CloseProtocol)
	eventually(t, "a session that is over is unknown", func() bool {
		status, _, _ := wrong.poll("1ms")
		return status == http.StatusConflict
	})
	if status, _ := wrong.post(3, nil); status != http.StatusConflict {
		t.Errorf("POST to a session that is over: %d", status)
	}

	leaves := newCourier(n, "field")
	leaves.join()
	leaves.send(envelope(nil, websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseGoingAway, "stops")))
	leaves.closed(websocket.CloseGoingAway)

	silent := newCourier(n, "hall")
	silent.join()
	eventually(t, "sessions that are silent end", func() bool { return n.server.Stats().Connections == 0 })
}

func TestFallback_HearsThatTheNodeStops(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	c := newCourier(n, "arena")
	c.join()
	n.stop()
	list := c.closed(websocket.CloseGoingAway)
	if away, ok := list[len(list)-1].(*wire.Goaway); !ok || away.ReconnectAfter <= 0 {
		t.Errorf("heard %+v", list)
	}
	n.end()
}

// TestFallback_ANodeThatStopsLeadsOn: where a load balancer chooses the node by
// the session's id, one that began elsewhere meanwhile is looked for at this
// node first.
func TestFallback_ANodeThatStopsLeadsOn(t *testing.T) {
	o := draining()
	o.DrainDelay, o.Drain = 0, 24*time.Hour
	n := start(t, o, newMemory("arena", "court"))
	stays := newCourier(n, "arena")
	stays.join()
	moved := newCourier(n, "court")
	if status, _ := moved.post(2, nil); status != http.StatusConflict {
		t.Errorf("POST of an unknown session: %d, want 409", status)
	}
	n.stop()
	eventually(t, "the node to stop", func() bool { status, _ := moved.post(2, nil); return status == http.StatusServiceUnavailable })
	if status, _ := moved.post(1, moved.hello()); status != http.StatusServiceUnavailable {
		t.Errorf("POST that begins one: %d, want 503", status)
	}
	if status, _, _ := moved.poll("0s"); status != http.StatusServiceUnavailable {
		t.Errorf("poll of an unknown session: %d, want 503", status)
	}
	list := blocks(t, 2)
	stays.send(frame(t, list...))
	stays.stored(list...)
	stays.send(envelope(nil, websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")))
	n.end()
}

func TestFallback_RefusesWhatIsNotRight(t *testing.T) {
	n := startHasty(t, newMemory("arena", "court"))
	good := newCourier(n, "arena")
	good.join()
	c := newCourier(n, "arena")
	huge := make([]byte, wire.MinFrameBytes+65<<10)
	for name, body := range map[string][]byte{
		"no message": nil, "no hello": frame(t, blocks(t, 1)...), "half a message": c.hello()[:20], "opcode 9": envelope(nil, 9, nil),
		"a length of 4 GiB": {1, 255, 255, 255, 255}, "a body that is too large": huge,
	} {
		if status, _ := c.post(1, body); status != http.StatusBadRequest && status != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d", name, status)
		}
	}
	if status, _ := c.post(2, c.hello()); status != http.StatusConflict {
		t.Errorf("a session that begins with 2: %d", status)
	}
	for _, change := range []func(http.Header){
		func(h http.Header) { h.Del("Authorization") },
		func(h http.Header) { h.Set("Authorization", "Bearer nonsense") },
		func(h http.Header) { h[wire.HeaderGateway] = []string{"court"} },
		func(h http.Header) { h[wire.HeaderSession] = []string{"short"} },
		func(h http.Header) { h[wire.HeaderSequence] = []string{"0"} },
	} {
		h := c.header()
		h[wire.HeaderSequence] = []string{"1"}
		change(h)
		if status, _, body := n.postBytes(wire.FramesPath, c.hello(), h); status < 400 || status >= 500 {
			t.Errorf("%d %s", status, body)
		}
	}
	// Another gateway with the id of this session gets nothing.
	thief := &courier{t: t, n: n, id: "court", session: good.session}
	if status, _, body := thief.poll("1ms"); status != http.StatusConflict || strings.Contains(string(body), "arena") {
		t.Errorf("a session of another gateway: %d %s", status, body)
	}
	if st := n.server.Stats(); st.Connections != 1 {
		t.Errorf("the attacker got: %d sessions beside the good one", st.Connections-1)
	}
	if fmt.Sprint(n.server.Stats().BlocksStored) != "0" {
		t.Error("a block was stored")
	}
}
