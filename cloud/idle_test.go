package cloud_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"touchline/cloud"
	"touchline/wire"
)

// TestSession_AnIdleOneIsOneGoroutineOf4KiB: both ends are in this process, but
// the gateways' is no more than a socket. Its bound leaves room for the race
// detector, under which stacks have 8 KiB; `make bench-cloud` measures a node by itself.
func TestSession_AnIdleOneIsOneGoroutineOf4KiB(t *testing.T) {
	const n, most = 300, 16 << 10
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("venue-%05d", i)
	}
	server, err := cloud.New(options(), newMemory(ids...), slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	node := run(t, server)
	bareGateway(t, node, ids[0]) // what the first one alone makes is not counted
	stack, heap := held()
	for _, id := range ids[1:] {
		bareGateway(t, node, id)
	}
	eventually(t, "each session is one goroutine", func() bool { return goroutines("touchline/cloud.(*session).") == n })
	stack1, heap1 := held()
	perStack, perHeap := (stack1-stack)/(n-1), (heap1-heap)/(n-1)
	t.Logf("MEASURED an idle session, with a socket as its gateway: %d bytes of heap, %d of stacks", perHeap, perStack)
	if perStack+perHeap > most {
		t.Errorf("an idle session takes %d bytes of heap and %d of stacks: want %d at most", perHeap, perStack, most)
	}
}

// held returns what is in use, without garbage and with stacks that have shrunk,
// which they do by half in each collection.
func held() (stack, heap int) {
	for range 6 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.StackInuse), int(m.HeapAlloc)
}

// goroutines counts those that have a function on their stack.
func goroutines(function string) (n int) {
	text := make([]byte, 8<<20)
	for one := range strings.SplitSeq(string(text[:runtime.Stack(text, true)]), "\n\n") {
		if strings.Contains(one, function) {
			n++
		}
	}
	return n
}

// bareGateway begins a session with no more than a socket: it has neither a
// goroutine nor a buffer.
func bareGateway(t testing.TB, n *node, id string) {
	t.Helper()
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n%s: %s\r\n\r\n",
		wire.UplinkPath, n.addr, base64.StdEncoding.EncodeToString(make([]byte, 16)), wire.Subprotocol, token(id), wire.HeaderGateway, id)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("gateway %s: %v %v", id, resp, err)
	}
	hello, err := wire.MarshalMessage(&wire.Hello{Gateway: id, Software: "test/1", Clock: "set"})
	if err != nil {
		t.Fatal(err)
	}
	if len(hello) >= 126 {
		t.Fatalf("a hello of %d bytes needs a longer header", len(hello))
	}
	frame := append([]byte{0x80 | websocket.TextMessage, 0x80 | byte(len(hello)), 0, 0, 0, 0}, hello...) // masked with zeros (RFC 6455, section 5.2)
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	var header [4]byte // a welcome is longer than 125 bytes and shorter than 64 KiB
	_, err = io.ReadFull(in, header[:])
	welcome := make([]byte, int(header[2])<<8|int(header[3]))
	if err == nil {
		_, err = io.ReadFull(in, welcome)
	}
	if err != nil || header[1] != 126 {
		t.Fatalf("gateway %s heard %x: %v", id, header, err)
	}
	if m, err := wire.ParseMessage(welcome); err != nil {
		t.Fatal(err)
	} else if _, ok := m.(*wire.Welcome); !ok {
		t.Fatalf("gateway %s heard %T", id, m)
	}
}

// What is logged of a session says whose it is, and which.
func TestSession_LogsNameGatewayAndSession(t *testing.T) {
	var lines bytes.Buffer
	server, err := cloud.New(options(), newMemory("arena"), slog.New(slog.NewTextHandler(&lockedWriter{w: &lines}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	n := run(t, server)
	g, welcome := n.join("arena")
	remote := g.conn.LocalAddr()
	g.conn.Close()
	n.end()
	for _, message := range []string{"gateway connected", "gateway disconnected"} {
		found := false
		for line := range strings.Lines(lines.String()) {
			found = found || strings.Contains(line, `msg="`+message+`"`) &&
				strings.Contains(line, fmt.Sprintf(" gateway=arena remote=%s session=%d ", remote, welcome.Session))
		}
		if !found {
			t.Errorf("no %q with gateway, remote and session in\n%s", message, &lines)
		}
	}
}
