package cloud_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

func TestUplink_StoresAndAcknowledgesBlocks(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		g, welcome := n.join("arena")
		if welcome.Store == "" || welcome.Session == 0 || welcome.MaxFrame != wire.MinFrameBytes || welcome.Heartbeat != 15000 ||
			welcome.Window != (wire.Window{Bytes: 1 << 20, Blocks: 256}) || time.Since(welcome.Time).Abs() > time.Hour {
			t.Errorf("welcome is %+v", welcome)
		}
		sent := blocks(t, 20)
		g.send(sent[:5]...)
		for _, b := range sent[5:] {
			g.send(b)
		}
		g.stored(sent...)
		if _, _, body := n.get("/v1/samples?format=csv"); strings.Count(body, "\n") != 201 {
			t.Errorf("%d lines of CSV, want 201: %.300s", strings.Count(body, "\n"), body)
		}
		if st := n.server.Stats(); st.SamplesStored != 200 || st.BlocksStored != 20 || st.Blocks != 20 || st.Frames != 16 || st.SampleAge.Count() != 200 {
			t.Errorf("stats are %+v", st)
		}
	}, "arena")
}

func TestUplink_AcceptedComesWithStored(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	b := blocks(t, 1)[0]
	g.send(b)
	ack := next[*wire.Ack](g)
	if len(ack.Accepted) != 1 || !ack.Accepted[0].Ranges.Contains(b.Range()) || len(ack.Stored) != 1 || ack.Stored[0].Epoch != b.Epoch {
		t.Errorf("ack is %+v", ack)
	}
}

func TestUplink_WelcomeNamesWhatIsStored(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		sent := blocks(t, 4) // 1-40
		g, _ := n.join("arena")
		g.send(sent[0], sent[1], sent[3])
		g.stored(sent[0], sent[1], sent[3])
		_, welcome := n.join("arena", wire.Held{Epoch: touchline.NewEpoch(), Oldest: 1, Next: 9},
			wire.Held{Epoch: sent[0].Epoch, Oldest: 11, Next: 41})
		if len(welcome.Stored) != 1 || welcome.Stored[0].Epoch != sent[0].Epoch {
			t.Fatalf("stored is %+v", welcome.Stored)
		}
		got := fmt.Sprint(welcome.Stored[0].Ranges)
		if want := fmt.Sprint(touchline.Ranges{{First: 11, Last: 20}, {First: 31, Last: 40}}); got != want {
			t.Errorf("stored is %s, want %s: cut to what the gateway holds", got, want)
		}
	}, "arena")
}

func TestUplink_WelcomeIsCutToOneMessage(t *testing.T) {
	store := newMemory("arena")
	epoch := touchline.NewEpoch()
	for i := range 10_000 { // each second number: 10,000 ranges of up to 36 bytes
		first := touchline.MaxSeq - 2*uint64(i)
		store.blocks[fmt.Sprint(i)] = &cloud.Delivery{Gateway: "arena", Block: wire.Block{Epoch: epoch, First: first, Count: 1}}
	}
	n := start(t, options(), store)
	_, welcome := n.join("arena", wire.Held{Epoch: epoch, Oldest: 1, Next: touchline.MaxSeq})
	if got := len(welcome.Stored[0].Ranges); got < 5000 || got > 9000 {
		t.Errorf("welcome has %d ranges", got)
	}
}

func TestUplink_RepeatIsAcknowledgedAgain(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		g, _ := n.join("arena")
		sent := blocks(t, 3)
		g.send(sent...)
		g.stored(sent...)
		g.send(sent...)
		g.stored(sent...)
		g, _ = n.join("arena")
		g.send(sent...)
		g.stored(sent...)
		if st := n.server.Stats(); st.SamplesStored != 30 || st.Repeats != 6 {
			t.Errorf("%d samples stored and %d repeats, want 30 and 6", st.SamplesStored, st.Repeats)
		}
	}, "arena")
}

func TestUplink_UndecodableBlockIsKeptAsideAndStored(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		g, _ := n.join("arena")
		good := blocks(t, 2)
		bad := undecodable(good[0].Epoch, 1000, "no block at all")
		short := block(t, good[0].Epoch, 2000, readings(10, 0))
		short.Count = 9
		short = sealed(short)
		g.send(good[0], bad, short, good[1])
		g.stored(good[0], bad, short, good[1])
		if st := n.server.Stats(); st.KeptAside != 2 || st.SamplesStored != 20 {
			t.Errorf("%d blocks kept aside and %d samples stored, want 2 and 20", st.KeptAside, st.SamplesStored)
		}
	}, "arena")
}

func TestUplink_DamagedBlockAloneIsAskedForAgain(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	sent := blocks(t, 3)
	damaged := sent[1]
	damaged.Data = bytes.Clone(damaged.Data)
	damaged.Data[len(damaged.Data)/2] ^= 0x10
	g.send(sent[0], damaged, sent[2])
	asked, acked := false, touchline.Ranges{}
	for !asked || acked.Count() < 20 {
		switch m, err := g.hear(); m := m.(type) {
		case *wire.Resend:
			asked = true
			if m.Epoch != damaged.Epoch || len(m.Ranges) != 1 || m.Ranges[0] != damaged.Range() {
				t.Errorf("resend of %+v, want %v alone", m, damaged.Range())
			}
		case *wire.Ack:
			acked.AddAll(m.Stored[0].Ranges)
		default:
			t.Fatalf("heard %+v, %v", m, err)
		}
	}
	if acked.Overlaps(damaged.Range()) {
		t.Error("the damaged block was acknowledged")
	}
	g.send(sent[1])
	g.stored(sent[1])
}

func TestUplink_EndlessDamageEndsTheSession(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	b := blocks(t, 1)[0]
	b.CRC++
	for range 65 {
		g.send(b)
	}
	g.closed(wire.CloseProtocol)
}

func TestUplink_HandshakeIsRefusedBeforeTheUpgrade(t *testing.T) {
	full := options()
	full.MaxGateways = 1
	with := func(name, value string) http.Header {
		h := header("arena")
		h.Set(name, value)
		return h
	}
	without := func(name string) http.Header {
		h := header("arena")
		h.Del(name)
		return h
	}
	for _, c := range []struct {
		name, subprotocol string
		header            http.Header
		status            int
		wants             []string // in the body
		wantHeader        string
	}{
		{"no token", wire.Subprotocol, without("Authorization"), 401, []string{"Bearer"}, "Www-Authenticate"},
		{"wrong token", wire.Subprotocol, with("Authorization", "Bearer nonsense"), 401, []string{"gateway add"}, "Www-Authenticate"},
		{"basic credentials", wire.Subprotocol, with("Authorization", "Basic YTpi"), 401, nil, "Www-Authenticate"},
		{"another gateway's token", wire.Subprotocol, with(wire.HeaderGateway, "gym"), 403, []string{`gym`, `arena`}, ""},
		{"no gateway", wire.Subprotocol, without(wire.HeaderGateway), 403, []string{wire.HeaderGateway}, ""},
		{"no subprotocol", "", header("arena"), 400, []string{wire.Subprotocol}, ""},
		{"unknown subprotocol", "touchline.v9", header("arena"), 400, []string{"touchline.v9"}, ""},
		{"a browser elsewhere", wire.Subprotocol, with("Origin", "http://evil.example"), 403, []string{"origin"}, ""},
		{"full", wire.Subprotocol, header("arena"), 503, nil, "Retry-After"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := start(t, full, newMemory("arena", "other"))
			if c.status == 503 {
				n.join("other")
			}
			var subprotocols []string
			if c.subprotocol != "" {
				subprotocols = []string{c.subprotocol}
			}
			_, resp, err := dial(n, c.header, subprotocols...)
			if !errors.Is(err, websocket.ErrBadHandshake) || resp.StatusCode != c.status {
				t.Fatalf("dial: %v, %+v, want status %d", err, resp, c.status)
			}
			body, _ := io.ReadAll(resp.Body)
			if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("content type is %q", ct)
			}
			p := unmarshal[struct {
				Status int
				Detail string
			}](t, string(body))
			for _, want := range c.wants {
				if !strings.Contains(p.Detail, want) {
					t.Errorf("detail %q does not name %q", p.Detail, want)
				}
			}
			if c.wantHeader != "" && resp.Header.Get(c.wantHeader) == "" {
				t.Errorf("no header %s in %v", c.wantHeader, resp.Header)
			}
			if p.Status != c.status {
				t.Errorf("status in the problem is %d", p.Status)
			}
		})
	}
}

func TestUplink_PlainGetIsToldToUpgrade(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	status, h, body := n.get(wire.UplinkPath)
	if status != http.StatusUpgradeRequired || h.Get("Upgrade") != "websocket" || !strings.Contains(body, wire.Subprotocol) {
		t.Errorf("%d %v %s", status, h, body)
	}
}

func TestUplink_BreachesCloseWithTheirCode(t *testing.T) {
	frame := func(b ...wire.Block) []byte {
		list := make([]wire.FrameBlock, len(b))
		for i := range b {
			list[i].Block = b[i]
		}
		data, err := wire.AppendFrame(nil, list)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := blocks(t, 1)[0]
	numberless := good
	numberless.First = 0
	numberless = sealed(numberless)
	for _, c := range []struct {
		name   string
		hello  bool
		kind   int
		data   []byte
		code   int
		reason string
	}{
		{"a block before hello", false, websocket.BinaryMessage, frame(good), wire.CloseProtocol, "before hello"},
		{"lost before hello", false, websocket.TextMessage, []byte(`{"type":"lost","id":1}`), wire.CloseProtocol, "not a hello"},
		{"hello of another gateway", false, websocket.TextMessage, []byte(`{"type":"hello","gateway":"gym"}`), wire.CloseProtocol, "gym"},
		{"a second hello", true, websocket.TextMessage, []byte(`{"type":"hello","gateway":"arena"}`), wire.CloseProtocol, "second hello"},
		{"a message of the cloud", true, websocket.TextMessage, []byte(`{"type":"ack"}`), wire.CloseProtocol, "only the cloud"},
		{"malformed JSON", true, websocket.TextMessage, []byte(`{"type":`), wire.CloseProtocol, "message"},
		{"a lost id beyond JSON's numbers", true, websocket.TextMessage, []byte(`{"type":"lost","id":9223372036854775808,"epoch":"00112233445566778899aabbccddeeff","ranges":[[1,2]],"cause":"max_bytes"}`), wire.CloseProtocol, "9223372036854775808"},
		{"a list for a string", true, websocket.TextMessage, []byte(`{"type":"lost","cause":[]}`), wire.CloseProtocol, "lost"},
		{"text that is not UTF-8", true, websocket.TextMessage, []byte("{\"type\":\"x\xff\"}"), websocket.CloseInvalidFramePayloadData, "UTF-8"},
		{"an empty frame", true, websocket.BinaryMessage, nil, wire.CloseProtocol, "frame"},
		{"a frame that is cut off", true, websocket.BinaryMessage, frame(good)[:30], wire.CloseProtocol, "cut off"},
		{"a block number zero", true, websocket.BinaryMessage, frame(numberless), wire.CloseProtocol, "out of bounds"},
		{"a frame too large", true, websocket.BinaryMessage, make([]byte, wire.MinFrameBytes+1), websocket.CloseMessageTooBig, ""},
		{"a message too large", true, websocket.TextMessage, bytes.Repeat([]byte(" "), wire.MaxMessageBytes+1), websocket.CloseMessageTooBig, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := start(t, options(), newMemory("arena", "other"))
			other, _ := n.join("other")
			var g *gateway
			if c.hello {
				g, _ = n.join("arena")
			} else {
				g = n.connect("arena")
			}
			if err := g.conn.WriteMessage(c.kind, c.data); err != nil {
				t.Fatal(err)
			}
			_, err := g.hear()
			var closed *websocket.CloseError
			if !errors.As(err, &closed) || closed.Code != c.code || !strings.Contains(closed.Text, c.reason) {
				t.Fatalf("the session ended with %v, want code %d and a reason with %q", err, c.code, c.reason)
			}
			g.conn.Close()
			other.send(good)
			other.stored(good) // nobody else is closed
			eventually(t, "the close is counted", func() bool { return n.server.Stats().Closed[c.code] == 1 })
		})
	}
}

func TestUplink_UnknownMessagesAreIgnored(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g := n.connect("arena")
	g.text(`{"type":"weather","rain":true}`)
	g.text(`{"type":"hello","gateway":"arena","mood":"good"}`)
	next[*wire.Welcome](g)
	g.text(`{"type":"tide","height":5}`)
	b := blocks(t, 1)[0]
	g.send(b)
	g.stored(b)
}

func TestUplink_ProtocolErrorsOfTheWebSocketAreClosed(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n%s: arena\r\n\r\n",
		wire.UplinkPath, n.addr, wire.Subprotocol, token("arena"), wire.HeaderGateway)
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v, %v", resp, err)
	}
	conn.Write([]byte{0x81, 0x02, '{', '}'}) // a text frame that is not masked
	conn.SetReadDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(br)
	if err != nil || len(answer) < 4 || answer[0] != 0x88 || int(answer[2])<<8|int(answer[3]) != websocket.CloseProtocolError {
		t.Errorf("answer is %x, %v, want a close frame with 1002", answer, err)
	}
}

func TestUplink_WithoutHelloIsClosedByTheDeadline(t *testing.T) {
	opts := options()
	opts.Timeouts.Hello = 50 * time.Millisecond
	n := start(t, opts, newMemory("arena"))
	g := n.connect("arena")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // pings are no hello
		defer close(stopped)
		for g.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(patience)) == nil {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	g.closed(wire.CloseTimeout)
	close(stop)
	<-stopped
}

func TestUplink_NewerSessionTakesOver(t *testing.T) {
	n := start(t, options(), newMemory("arena", "other"))
	other, _ := n.join("other")
	first, one := n.join("arena")
	second, two := n.join("arena")
	if two.Session <= one.Session {
		t.Errorf("session %d came after %d", two.Session, one.Session)
	}
	first.closed(wire.CloseSuperseded)
	b := blocks(t, 2)
	second.send(b[0])
	second.stored(b[0])
	other.send(b[1])
	other.stored(b[1])
}

func TestUplink_SilentGatewayIsDropped(t *testing.T) {
	opts := options()
	opts.Heartbeat = 100 * time.Millisecond
	n := start(t, opts, newMemory("arena", "lively"))
	lively, _ := n.join("lively")
	answers := make(chan error, 1)
	go func() {
		_, err := lively.hear() // reading answers pings
		answers <- err
	}()
	n.join("arena") // and never reads again: half open, as far as the cloud can tell
	eventually(t, "the silent gateway is dropped", func() bool {
		st := n.server.Stats()
		return st.Connections == 1 && st.Closed[0] == 1
	})
	select {
	case err := <-answers:
		t.Errorf("the lively gateway was closed too: %v", err)
	default:
	}
	lively.conn.Close()
	<-answers
}

func TestUplink_AnswersPingsAndMeasuresTheRoundTrip(t *testing.T) {
	opts := options()
	opts.Heartbeat = 100 * time.Millisecond
	n := start(t, opts, newMemory("arena"))
	g, _ := n.join("arena")
	pong := make(chan string, 1)
	g.conn.SetPongHandler(func(data string) error {
		pong <- data
		return nil
	})
	if err := g.conn.WriteControl(websocket.PingMessage, []byte("hi"), time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.hear()
	}()
	select {
	case data := <-pong:
		if data != "hi" {
			t.Errorf("pong has %q", data)
		}
	case <-time.After(patience):
		t.Error("no pong")
	}
	eventually(t, "a round trip is measured", func() bool {
		_, _, body := n.get("/v1/gateways")
		return strings.Contains(body, `"rtt_ms":`)
	})
	g.conn.Close()
	<-ended
}

func TestUplink_LostIsConfirmedWhenRecorded(t *testing.T) {
	store := newMemory("arena")
	fails := 3
	store.beforeLost = func() error {
		if fails--; fails >= 0 {
			return errors.New("disk full")
		}
		return nil
	}
	n := start(t, options(), store)
	g, _ := n.join("arena")
	g.say(&wire.Lost{ID: 7, Epoch: touchline.NewEpoch(), Ranges: touchline.Ranges{{First: 1, Last: 500}}, Cause: "max_age"})
	if ack := next[*wire.Ack](g); len(ack.Lost) != 1 || ack.Lost[0] != 7 || len(ack.Stored) != 0 {
		t.Errorf("ack is %+v", ack)
	}
	if len(store.lost) != 1 || fails >= 0 {
		t.Errorf("%d recorded, %d failures left", len(store.lost), fails)
	}
}

func TestUplink_WindowOverrunEndsTheSession(t *testing.T) {
	store := newMemory("arena", "other")
	hold := make(gate)
	store.beforeRecord = hold.wait
	opts := options()
	opts.WindowBlocks = 4
	n := start(t, opts, store)
	sent := blocks(t, 6)
	obedient, _ := n.join("other")
	obedient.send(sent[:5]...) // one block over is allowed
	g, _ := n.join("arena")
	g.send(sent...)
	g.closed(wire.CloseProtocol)
	close(hold)
	obedient.stored(sent[:5]...)
}

func TestUplink_WindowComesBackWithTheAck(t *testing.T) {
	opts := options()
	opts.WindowBlocks = 2
	n := start(t, opts, newMemory("arena"))
	g, _ := n.join("arena")
	for _, b := range blocks(t, 50) {
		g.send(b)
		g.stored(b)
	}
}

func TestUplink_WindowsOfAllGatewaysFitHalfTheQueue(t *testing.T) {
	opts := options()
	opts.QueueBytes = 4 << 20
	ids := []string{"a", "b", "c", "d", "e"}
	n := start(t, opts, newMemory(ids...))
	first, welcome := n.join("a")
	if welcome.Window.Bytes != 1<<20 {
		t.Errorf("alone, a gateway is offered %d bytes", welcome.Window.Bytes)
	}
	var others []*gateway
	for _, id := range ids[1:] {
		g, _ := n.join(id)
		others = append(others, g)
	}
	for w := (wire.Window{}); w.Bytes != 1<<18; { // 5 × 256 KiB fit 2 MiB, 5 × 512 KiB don't
		w = next[*wire.NewWindow](first).Window
	}
	for _, g := range others {
		g.conn.Close()
	}
	for w := (wire.Window{}); w.Bytes != 1<<20; {
		w = next[*wire.NewWindow](first).Window
	}
}

func TestUplink_WindowNarrowsWhileTheStoreLags(t *testing.T) {
	store := newMemory("busy", "idle")
	hold := make(gate)
	store.beforeRecord = hold.wait
	opts := options()
	opts.QueueBytes, opts.WindowBytes, opts.WindowBlocks = 1<<20, wire.MaxBlockBytes, 1024
	n := start(t, opts, store)
	idle, welcome := n.join("idle")
	busy, _ := n.join("busy")
	sent := make([]wire.Block, 1000) // at 512 bytes of overhead each: half the queue
	epoch := touchline.NewEpoch()
	data := strings.Repeat("x", 100)
	for i := range sent {
		sent[i] = undecodable(epoch, uint64(i+1), data)
	}
	busy.send(sent...)
	narrow := next[*wire.NewWindow](idle).Window
	if narrow.Bytes >= welcome.Window.Bytes || narrow.Blocks >= welcome.Window.Blocks {
		t.Errorf("window is %+v after %+v, want less", narrow, welcome.Window)
	}
	close(hold)
	if wide := next[*wire.NewWindow](idle).Window; wide != welcome.Window {
		t.Errorf("window is %+v, want %+v again", wide, welcome.Window)
	}
}

func TestUplink_FullQueueSendsGatewaysAway(t *testing.T) {
	store := newMemory("arena")
	hold := make(gate)
	defer close(hold)
	store.beforeRecord = hold.wait
	opts := options()
	opts.QueueBytes, opts.WindowBytes, opts.WindowBlocks, opts.Heartbeat = 1<<20, 1<<20, 1024, 200*time.Millisecond
	n := start(t, opts, store)
	g, _ := n.join("arena")
	epoch := touchline.NewEpoch()
	for i := range 9 { // 9 × 128 KiB are over 1 MiB
		g.send(undecodable(epoch, uint64(i+1), strings.Repeat("x", 128<<10)))
	}
	for _, m := range g.closed(websocket.CloseTryAgainLater) {
		if away, ok := m.(*wire.Goaway); ok {
			if away.Reason != "overload" || away.ReconnectAfter < 1000 {
				t.Errorf("goaway is %+v", away)
			}
			return
		}
	}
	t.Error("no goaway before the close")
}
