package cloud_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

func TestNew_NamesAllBadOptionsAtOnce(t *testing.T) {
	_, err := cloud.New(cloud.Options{Listen: "nowhere"}, newMemory(), logger(t))
	for _, want := range []string{"Listen", "MaxGateways", "WindowBytes", "WindowBlocks", "MaxFrameBytes", "QueueBytes", "Heartbeat", "MaxQueries",
		"SpareConnections", "MaxHeaderBytes", "Timeouts.Login", "Timeouts.Hello", "Timeouts.Frames", "Timeouts.Archive", "Timeouts.Write", "Timeouts.Answer", "Timeouts.Idle"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestListen_PortInUseSaysWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	opts := options()
	opts.Listen = taken.Addr().String()
	server := prepare(t, opts, newMemory())
	err = server.Listen()
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), opts.Listen) || !strings.Contains(err.Error(), "set listen") {
		t.Errorf("error is %v", err)
	}
	if server.Addr() != nil {
		t.Errorf("the address is %s", server.Addr())
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

func TestClose_GivesTheAddressBackAndMayBeCalledTwice(t *testing.T) {
	server := prepare(t, options(), newMemory())
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	addr := server.Addr().String()
	for range 2 {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestRun_WithoutListenIsAnError(t *testing.T) {
	if err := prepare(t, options(), newMemory()).Run(context.Background()); err == nil {
		t.Error("no error")
	}
}

func TestRun_EndsWithAnErrorWhenItsListenerFails(t *testing.T) {
	server := prepare(t, options(), newMemory("arena"))
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- server.Run(context.Background()) }()
	server.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(patience):
		t.Fatal("Run does not return")
	}
}

func TestRun_ShutdownSaysGoawayClosesAndWaits(t *testing.T) {
	server := prepare(t, options(), newMemory("arena", "mute"))
	server.SetShutdown(5 * time.Second)
	n := run(t, server)
	g, _ := n.join("arena")
	mute := n.connect("mute") // never said hello
	sent := blocks(t, 3)
	g.send(sent...)
	g.stored(sent...)
	n.stop()
	before := g.closed(websocket.CloseGoingAway)
	if len(before) != 1 {
		t.Fatalf("heard %+v before the close", before)
	}
	if away, ok := before[0].(*wire.Goaway); !ok || away.Reason != "drain" || away.ReconnectAfter <= 0 {
		t.Errorf("heard %+v before the close", before[0])
	}
	mute.closed(websocket.CloseGoingAway)
	n.end()
	if _, err := net.DialTimeout("tcp", n.addr, patience); err == nil {
		t.Error("the address is still open")
	}
}

func TestRun_ShutdownIsNotHeldUpByGatewaysThatDontRead(t *testing.T) {
	store := newMemory("arena")
	hold := make(gate)
	defer close(hold)
	store.beforeRecord = hold.wait
	server := prepare(t, options(), store)
	server.SetShutdown(50 * time.Millisecond)
	n := run(t, server)
	g, _ := n.join("arena") // which reads no more
	g.send(blocks(t, 3)...)
	eventually(t, "a transaction runs", func() bool { return n.server.Stats().QueueBlocks == 3 })
	n.end()
	if len(store.blocks) != 0 {
		t.Error("a transaction that was cut short is stored")
	}
}

func TestRead_IsOpenOnLoopbackOnly(t *testing.T) {
	for _, c := range []struct {
		listen   string
		insecure bool
		host     string
		status   int
	}{
		{"127.0.0.1:0", false, "", http.StatusOK},
		{"127.0.0.1:0", false, "localhost:1", http.StatusOK},
		{"127.0.0.1:0", false, "[::1]:80", http.StatusOK},
		{"127.0.0.1:0", false, "rebound.example", http.StatusForbidden},
		{"127.0.0.1:0", true, "cloud.example", http.StatusOK},
		{"0.0.0.0:0", false, "", http.StatusUnauthorized},
		{"0.0.0.0:0", true, "", http.StatusOK},
	} {
		t.Run(fmt.Sprint(c.listen, c.insecure, c.host), func(t *testing.T) {
			opts := options()
			opts.Listen, opts.InsecureRead = c.listen, c.insecure
			n := start(t, opts, newMemory("arena"))
			_, port, _ := net.SplitHostPort(n.addr)
			n.addr = "127.0.0.1:" + port
			g, _ := n.join("arena") // the uplink works on any
			g.conn.Close()
			for path, status := range map[string]int{"/v1/samples": c.status, "/v1/gateways": c.status, "/metrics": c.status, "/healthz": 200, "/readyz": 200} {
				req, err := http.NewRequest("GET", "http://"+n.addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Host = c.host
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != status {
					t.Errorf("%s: %d, want %d", path, resp.StatusCode, status)
				}
				if status >= 400 && (!strings.Contains(string(body), "insecure_read") || resp.Header.Get("Content-Type") != "application/problem+json") {
					t.Errorf("%s: %s", path, body)
				}
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}

func TestHTTP_ErrorsAreProblems(t *testing.T) {
	n := start(t, options(), newMemory())
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/nothing", "", http.StatusNotFound, "/v1/samples"},
		{"POST", "/v1/samples", "", http.StatusMethodNotAllowed, "GET"},
		{"POST", "/v1/samples", "x", http.StatusRequestEntityTooLarge, "body"},
	} {
		req, err := http.NewRequest(c.method, "http://"+n.addr+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(body), c.want) {
			t.Errorf("%s %s: %d %s %s", c.method, c.path, resp.StatusCode, resp.Header, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestHTTP_HeadersHaveALimit(t *testing.T) {
	n := start(t, options(), newMemory())
	req, _ := http.NewRequest("GET", "http://"+n.addr+"/healthz", nil)
	req.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status is %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestReady_AsksTheStore(t *testing.T) {
	store := &unreachable{memory: newMemory()}
	n := start(t, options(), store)
	if status, _, body := n.get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, errStore.Error()) {
		t.Errorf("%d %s", status, body)
	}
}

type unreachable struct{ *memory }

func (*unreachable) GatewayByToken(context.Context, [32]byte) (string, error) { return "", errStore }

func TestUplink_WithoutItsStoreAsksToComeBack(t *testing.T) {
	n := start(t, options(), &unreachable{memory: newMemory()})
	_, resp, err := dial(n, header("arena"), wire.Subprotocol)
	if err == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("%v %+v", err, resp)
	}
}

func TestGateways_ShowsWhoIsConnected(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		g, welcome := n.join("arena")
		b := blocks(t, 1)[0]
		g.send(b)
		g.stored(b)
		_, _, body := n.get("/v1/gateways")
		list := unmarshal[struct {
			Gateways []struct {
				ID        string
				Connected bool
				Session   *struct {
					Number    uint64
					Remote    string
					Since     time.Time
					Last_seen time.Time
					Blocks    uint64
				}
			}
		}](t, body).Gateways
		if len(list) != 2 || list[0].ID != "arena" || list[1].ID != "gym" {
			t.Fatalf("gateways are %s", body)
		}
		s := list[0].Session
		if !list[0].Connected || s == nil || s.Number != welcome.Session || s.Remote != g.conn.LocalAddr().String() || s.Blocks != 1 || s.Last_seen.Before(s.Since) {
			t.Errorf("arena is %+v", s)
		}
		if list[1].Connected || list[1].Session != nil {
			t.Errorf("gym is %+v", list[1])
		}
	}, "arena", "gym")
}

func TestMetrics_AgreeWithStats(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	g, _ := n.join("arena")
	now := time.Now().UnixNano()
	samples := readings(4, now)
	for i, age := range []time.Duration{-time.Hour, 0, 3 * time.Second, 10 * time.Minute} {
		samples[i].Time = now - int64(age)
	}
	b := block(t, touchline.NewEpoch(), 1, samples)
	g.send(b)
	g.stored(b)
	g.send(b)
	g.stored(b) // a repeat is not observed again
	_, _, body := n.get("/metrics")
	for _, want := range []string{
		"touchline_cloud_samples_stored_total 4\n",
		"touchline_cloud_block_repeats_total 1\n",
		"touchline_cloud_connections 1\n",
		`touchline_cloud_handshakes_total{result="accepted"} 1` + "\n",
		"touchline_cloud_sample_age_seconds_count 4\n",
		`touchline_cloud_sample_age_seconds_bucket{le="0.001"} `,
		`touchline_cloud_sample_age_seconds_bucket{le="+Inf"} 4` + "\n",
		"touchline_cloud_record_duration_seconds_count 2\n",
		"touchline_cloud_batch_blocks_sum 2\n",
		"go_goroutines ", "process_cpu_seconds_total ",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
	age := n.server.Stats().SampleAge
	if age.Counts[0] < 1 || age.Counts[len(age.Counts)-1] != 1 {
		t.Errorf("ages are %v: want the one ahead in the first bucket, the old one above the last", age.Counts)
	}
	if p50 := age.Quantile(0.75); p50 < 3 || p50 > 60 {
		t.Errorf("the third of four ages is at most %v s, want a little above 3", p50)
	}
}

func TestUplink_MemoryOfIdleConnections(t *testing.T) {
	const gateways = 200
	ids := make([]string, gateways)
	for i := range ids {
		ids[i] = fmt.Sprintf("gateway-%d", i)
	}
	n := start(t, options(), newMemory(ids...))
	join := func(ids []string) {
		for _, id := range ids {
			g := rawJoin(t, n, id)
			t.Cleanup(func() { g.Close() })
		}
	}
	join(ids[:10]) // what is made once
	heap0, stack0 := memoryInUse()
	join(ids[10:])
	heap1, stack1 := memoryInUse()
	heap, stack := (heap1-heap0)/(gateways-10), (stack1-stack0)/(gateways-10)
	t.Logf("%d idle uplinks: %d bytes of heap and %d of stack each, both ends of the socket", gateways, heap, stack)
	if heap+stack > 32<<10 {
		t.Errorf("an idle uplink costs %d bytes", heap+stack)
	}
}

// rawJoin joins with as little memory on this side as can be.
func rawJoin(t *testing.T, n *node, id string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	hello := fmt.Sprintf(`{"type":"hello","gateway":%q,"clock":"set"}`, id)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n%s: %s\r\n\r\n",
		wire.UplinkPath, wire.Subprotocol, token(id), wire.HeaderGateway, id)
	frame := append([]byte{0x81, 0x80 | byte(len(hello)), 0, 0, 0, 0}, hello...) // masked with zeros
	if len(hello) > 125 {
		t.Fatal("the hello is too long for a short frame")
	}
	var got []byte
	buf := make([]byte, 4096)
	conn.SetReadDeadline(time.Now().Add(patience))
	for said := false; !bytes.Contains(got, []byte(`"welcome"`)); {
		m, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		if got = append(got, buf[:m]...); !said && bytes.Contains(got, []byte("\r\n\r\n")) {
			said = true
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
	}
	return conn
}

func memoryInUse() (heap, stack int) {
	for range 4 { // a stack shrinks by half in each
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc), int(m.StackInuse)
}

func TestLog_NeverHasAToken(t *testing.T) {
	var log bytes.Buffer
	server, err := cloud.New(options(), newMemory("arena"), slog.New(slog.NewTextHandler(&lockedWriter{w: &log}, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	n := run(t, server)
	h := header("arena")
	h.Set("Authorization", "Bearer hunter2-wrong")
	dial(n, h, wire.Subprotocol)
	g, _ := n.join("arena")
	g.conn.Close()
	n.end()
	if s := log.String(); !strings.Contains(s, "gateway connected") || strings.Contains(s, "hunter2") || strings.Contains(s, token("arena")) {
		t.Errorf("the log is %s", s)
	}
}
