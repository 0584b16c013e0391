package cloud_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// Each timeout, set low, ends what the others would let go on.
func TestLimits_WhoTakesTooLongIsCutOff(t *testing.T) {
	const low = 50 * time.Millisecond
	as := fmt.Sprintf("HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s: arena\r\n", token("arena"), wire.HeaderGateway)
	begun := fmt.Sprintf("%s: %s\r\n%s: 1\r\nContent-Length: 1000\r\n\r\n{", wire.HeaderSession, strings.Repeat("0", 32), wire.HeaderSequence)
	var wg sync.WaitGroup
	for name, c := range map[string]struct {
		set        func(*cloud.Timeouts)
		sent, want string
	}{
		"login":   {func(o *cloud.Timeouts) { o.Login = low }, "GET /healthz HTTP/1.1\r\n", ""},
		"enrol":   {func(o *cloud.Timeouts) { o.Login = low }, "POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", "400"},
		"frames":  {func(o *cloud.Timeouts) { o.Frames = low }, "POST " + wire.FramesPath + " " + as + begun, "400"},
		"archive": {func(o *cloud.Timeouts) { o.Archive = low }, "POST " + wire.ArchivePath + " " + as + begun, "400"},
		"idle":    {func(o *cloud.Timeouts) { o.Idle = low }, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
	} {
		opts := options()
		opts.Timeouts = cloud.Timeouts{Login: time.Minute, Hello: time.Minute, Frames: time.Minute, Archive: time.Minute, Write: time.Minute, Answer: time.Minute, Idle: time.Minute}
		c.set(&opts.Timeouts)
		n := start(t, opts, newMemory("arena"))
		wg.Go(func() {
			conn, err := net.Dial("tcp", n.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			io.WriteString(conn, c.sent)
			said, err := io.ReadAll(conn)
			if line, _, _ := strings.Cut(string(said), "\r\n"); errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(line, c.want) {
				t.Errorf("%s: it said %q, %v: want %q", name, line, err, c.want)
			}
		})
	}
	wg.Wait()
}

// Acks of 100 KB each fill all that lies between, some megabytes, and then the
// writer stands still.
func TestLimits_AGatewayThatDoesNotReadIsCutOff(t *testing.T) {
	opts := options()
	opts.WindowBlocks = 1024
	opts.Heartbeat, opts.Timeouts.Write = 10*time.Minute, 50*time.Millisecond // silence ends nothing here
	n := start(t, opts, newMemory("arena"))
	g, _ := n.join("arena")
	list := make([]wire.FrameBlock, 500)
	for i := range list { // each of its own epoch, and repeated in each round
		list[i].Block = block(t, touchline.NewEpoch(), 1, readings(1, 0))
	}
	frame, err := wire.AppendFrame(nil, list)
	if err != nil {
		t.Fatal(err)
	}
	over := func() bool { return n.server.Stats().Connections == 0 }
	for round := 1; round < 1000 && !over(); round++ {
		if g.conn.WriteMessage(websocket.BinaryMessage, frame) != nil {
			break
		}
		eventually(t, "the round is stored", func() bool {
			st := n.server.Stats()
			// A block that is still in the queue would take the place of its repeat, which then counts for nothing.
			return over() || st.BlocksStored+st.Repeats >= uint64(round*len(list)) && st.QueueBlocks == 0
		})
	}
	eventually(t, "the session has ended", over)
}

func TestLimits_SpareConnectionsAreAllThatStrangersGet(t *testing.T) {
	opts := options()
	opts.MaxGateways, opts.MaxViewers, opts.SpareConnections = 1, 0, 2
	n := start(t, opts, newMemory("arena"))
	answered := make(chan struct{}, 10)
	var open []net.Conn
	for range cap(answered) {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
		io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		go func() {
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				answered <- struct{}{}
			}
		}()
	}
	for range 3 {
		<-answered
	}
	select {
	case <-answered:
		t.Error("a connection beyond the limit was answered while all others were open")
	default:
	}
	for _, conn := range open {
		conn.Close()
	}
	still(t, n, "arena")
}

func TestLimits_AHeaderMayBeAsLargeAsTheSettingSays(t *testing.T) {
	for most, want := range map[int]int{4 << 10: http.StatusRequestHeaderFieldsTooLarge, 64 << 10: http.StatusOK} {
		opts := options()
		opts.MaxHeaderBytes = most
		n := start(t, opts, newMemory())
		r, err := http.NewRequest(http.MethodGet, "http://"+n.addr+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Large", strings.Repeat("x", 20<<10))
		r.Close = true
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("20 KiB with a limit of %d: %s", most, resp.Status)
		}
	}
}
