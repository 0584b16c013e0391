package uplink

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/internal/netlab"
	"touchline/wire"
)

// aRealCloud is a touchline-cloud with SQLite; it ends with the test.
func aRealCloud(t *testing.T) *cloud.Server {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	store, err := sqlite.Open(t.Context(), t.TempDir(), logger)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.AddGateway(t.Context(), "venue-1", sha256.Sum256([]byte("secret-token"))); err != nil {
		t.Fatal(err)
	}
	c, _, err := cloud.LoadConfig("", nil, map[string]string{"listen": "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	server, err := cloud.New(c.Options(), store, logger)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// A proxy that lets no WebSocket through, and a slow line: the largest block
// goes in parts, in one request each, and new samples go between them.
func TestParts_GoOverRequestsToo(t *testing.T) {
	const perSecond = 32 << 10
	server := aRealCloud(t)
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: server.Addr().String()})
	transport := &http.Transport{}
	forward.Transport, forward.FlushInterval = transport, -1
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close(); transport.CloseIdleConnections() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := netlab.NewRelay(l, netlab.RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(proxy.URL, "http://"))
	}})
	t.Cleanup(func() { line.Close() })
	line.Set(netlab.Faults{Up: netlab.Flow{BytesPerSecond: perSecond}})

	w := newWorld(t)
	w.source.mayAck = nil
	epoch := touchline.NewEpoch()
	w.source.add(blocks(epoch, 1, 1, 1000, wire.MaxBlockBytes)...)
	o := w.options()
	o.URLs = []string{"ws://" + line.Addr()}
	u := w.uplink(o)
	stop := w.start(u)
	awaitStats(t, u, "by requests", func(st Stats) bool { return st.State == Connected && st.Requests })

	var ways []time.Duration
	beside := 0 // new blocks that were stored before the large one
	next := uint64(1001)
	for len(ways) < 5 || w.source.left() > 0 {
		began := time.Now()
		w.source.add(blocks(epoch, next, 1, 10, 200)...)
		next += 10
		want := uint64(len(ways) + 1)
		w.bell.await(t, "a new block", func() bool {
			st := server.Stats()
			return st.KeptAside >= want || w.source.left() == 0
		})
		ways = append(ways, time.Since(began))
		if w.source.left() > 0 {
			beside++
		}
	}
	st, total := server.Stats(), uint64(len(ways)+1)
	slices.Sort(ways)
	t.Logf("MEASURED beside a block of 192 KiB over requests and %d KiB/s: %d new blocks before it, p50 %s, worst %s",
		perSecond>>10, beside, ways[len(ways)/2].Round(time.Millisecond), ways[len(ways)-1].Round(time.Millisecond))
	if beside == 0 {
		t.Error("no new block went before the large one")
	}
	if st.KeptAside != total { // what is no block of samples is kept as it is, once
		t.Errorf("%d blocks are stored, want %d", st.KeptAside, total)
	}
	if got := u.Stats(); got.Sessions != 1 || !got.Requests {
		t.Errorf("%d sessions, by requests: %v: %s", got.Sessions, got.Requests, got.LastError)
	}
	stop()
}
