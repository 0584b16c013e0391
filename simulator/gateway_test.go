package simulator

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"touchline"
	"touchline/payload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// verdict is what a testGateway does with a message that arrived.
type verdict int

const (
	accept verdict = iota // acknowledge
	drop                  // end the connection before the acknowledgement
	busy                  // HTTP only: 503 with Retry-After: 0
	reject                // HTTP and WebSocket: an error that will come again
)

// testGateway is a real server of one transport that records what arrives, in
// order, and does as judge says.
type testGateway struct {
	judge func(sensor string, arrival int) verdict // arrival counts all messages, from 1
	url   string

	mu       sync.Mutex
	arrivals int
	all      map[string][]string // bodies by sensor, repeats included
	acked    map[string][]string // those that were acknowledged
}

func newTestGateway(t *testing.T, scheme string, judge func(string, int) verdict) *testGateway {
	t.Helper()
	if judge == nil {
		judge = func(string, int) verdict { return accept }
	}
	g := &testGateway{judge: judge, all: map[string][]string{}, acked: map[string][]string{}}
	if scheme == "mqtt" {
		g.serveMQTT(t)
		return g
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/samples", g.post)
	mux.HandleFunc("/v1/samples/stream", g.stream)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	g.url = scheme + "://" + server.Listener.Addr().String()
	return g
}

func (g *testGateway) arrived(sensor, body string) verdict {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.arrivals++
	g.all[sensor] = append(g.all[sensor], body)
	v := g.judge(sensor, g.arrivals)
	if v == accept {
		g.acked[sensor] = append(g.acked[sensor], body)
	}
	return v
}

func (g *testGateway) post(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	switch g.arrived(r.URL.Query().Get("sensor"), string(body)) {
	case accept:
		w.WriteHeader(http.StatusNoContent)
	case drop:
		panic(http.ErrAbortHandler)
	case busy:
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusServiceUnavailable)
	case reject:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"title":"payload refused","detail":"byte 1: no"}`)
	}
}

func (g *testGateway) stream(w http.ResponseWriter, r *http.Request) {
	sensor := r.URL.Query().Get("sensor")
	if sensor == "" {
		http.Error(w, "no sensor", http.StatusBadRequest)
		return
	}
	conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for handled := 1; ; handled++ {
		_, body, err := conn.ReadMessage()
		if err != nil {
			return
		}
		answer := fmt.Sprintf(`{"acked":%d}`, handled)
		switch g.arrived(sensor, string(body)) {
		case drop:
			return
		case busy:
			answer = fmt.Sprintf(`{"error":{"message":%d,"detail":"full"},"retry_after_s":0.01}`, handled)

		case reject:
			answer = `{"error":{"title":"payload refused"}}`
		}
		if conn.WriteMessage(websocket.TextMessage, []byte(answer)) != nil || strings.Contains(answer, "retry_after") {
			return
		}
	}
}

func (g *testGateway) serveMQTT(t *testing.T) {
	server := mochi.New(&mochi.Options{Logger: quiet})
	if err := server.AddHook(&mqttHook{gateway: g}, nil); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.AddListener(listeners.NewNet("tcp", listener)); err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	g.url = "mqtt://" + listener.Addr().String()
}

type mqttHook struct {
	mochi.HookBase
	gateway *testGateway
}

func (h *mqttHook) ID() string { return "test" }
func (h *mqttHook) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck || b == mochi.OnPublish
}
func (h *mqttHook) OnConnectAuthenticate(_ *mochi.Client, pk packets.Packet) bool {
	return pk.Connect.ClientIdentifier != "banned"
}
func (h *mqttHook) OnACLCheck(*mochi.Client, string, bool) bool { return true }
func (h *mqttHook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if h.gateway.arrived(strings.TrimPrefix(pk.TopicName, "sensors/"), string(pk.Payload)) == drop {
		cl.Stop(packets.ErrProtocolViolation)
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// counts returns how many messages and samples arrived, repeats included.
func (g *testGateway) counts() (messages, samples int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, bodies := range g.all {
		messages += len(bodies)
		for _, body := range bodies {
			samples += len(decode(body))
		}
	}
	return messages, samples
}

// forgetRepeats drops acknowledged messages that are there already, and
// returns how many.
func (g *testGateway) forgetRepeats() (repeats int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for sensor, bodies := range g.acked {
		seen := map[string]bool{}
		g.acked[sensor] = slices.DeleteFunc(bodies, func(body string) bool {
			again := seen[body]
			seen[body] = true
			if again {
				repeats++
			}
			return again
		})
	}
	return repeats
}

// samples returns what a sensor's acknowledged messages have.
func (g *testGateway) samples(sensor string) []touchline.Sample {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []touchline.Sample
	for _, body := range g.acked[sensor] {
		out = append(out, decode(body)...)
	}
	return out
}

func decode(body string) []touchline.Sample {
	samples, err := payload.NewDecoder().Decode(nil, payload.Auto, payload.Source{Sensor: "none"}, []byte(body))
	if err != nil {
		panic(err)
	}
	return samples
}
