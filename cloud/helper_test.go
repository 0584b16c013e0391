package cloud_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

func options() cloud.Options {
	return cloud.Options{
		Listen: "127.0.0.1:0", MaxGateways: 1000, WindowBytes: 1 << 20, WindowBlocks: 256,
		MaxFrameBytes: wire.MinFrameBytes, QueueBytes: 64 << 20, Heartbeat: 15 * time.Second, MaxQueries: 4,
		Handshakes: 10_000, GatewayHandshakes: 10_000, AddressConnections: 10_000, SpareConnections: 256, MaxHeaderBytes: 8 << 10,
		Timeouts: cloud.Timeouts{Login: 5 * time.Second, Hello: 10 * time.Second, Frames: time.Minute, Archive: time.Minute,
			Write: 10 * time.Second, Answer: time.Minute, Idle: time.Minute},
		AccessFor: time.Hour, MaxViewers: 100, ViewerSeries: 4096, LiveLookback: time.Minute,
	}
}

// token is the token of a gateway in these tests.
func token(gateway string) string { return "token-of-" + gateway }

// A memory is a record store that lives as long as its test, and fails when
// told to. Its gateways are all those that have a token by the rule of token.
type memory struct {
	mu       sync.Mutex
	gateways []string
	sessions uint64
	keys     map[string][]identity.PublicKey
	blocks   map[string]*cloud.Delivery // by gateway, epoch and first number
	aside    []cloud.Delivery
	lost     []wire.Lost
	clocks   []touchline.Clock
	records  []cloud.Record
	batches  []int

	beforeRecord func(ctx context.Context, batch []cloud.Delivery) error
	beforeLost   func() error
	samples      func(ctx context.Context, q cloud.Query, yield func(cloud.Record) error) error
}

func newMemory(gateways ...string) *memory {
	return &memory{gateways: gateways, keys: map[string][]identity.PublicKey{}, blocks: map[string]*cloud.Delivery{}}
}

func (m *memory) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	if m.beforeRecord != nil {
		if err := m.beforeRecord(ctx, batch); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.batches = append(m.batches, len(batch))
	outcomes := make([]cloud.Outcome, len(batch))
	for i, d := range batch {
		key := fmt.Sprint(d.Gateway, d.Block.Epoch, d.Block.First)
		switch old := m.blocks[key]; {
		case old != nil && old.Block.CRC == d.Block.CRC:
			outcomes[i].Repeat = true
		case old != nil || d.Problem != "":
			outcomes[i] = cloud.Outcome{KeptAside: true, Reason: d.Problem}
			m.aside = append(m.aside, cloud.Delivery{Gateway: d.Gateway, Block: d.Block, Problem: d.Problem})
			if old == nil {
				m.blocks[key] = &m.aside[len(m.aside)-1]
			}
		default:
			kept := d
			kept.Samples = nil // they are the caller's
			m.blocks[key] = &kept
			for n, s := range d.Samples {
				m.records = append(m.records, cloud.Record{Sample: s, Gateway: d.Gateway, Epoch: d.Block.Epoch, Seq: d.Block.First + uint64(n)})
			}
		}
	}
	return outcomes, nil
}

func (m *memory) Stored(_ context.Context, gateway string, epochs []touchline.Epoch) ([]wire.EpochRanges, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []wire.EpochRanges
	for _, e := range epochs {
		var ranges touchline.Ranges
		for _, d := range m.blocks {
			if d.Gateway == gateway && d.Block.Epoch == e {
				ranges.Add(d.Block.Range())
			}
		}
		list = append(list, wire.EpochRanges{Epoch: e, Ranges: ranges})
	}
	return list, nil
}

func (m *memory) Lost(_ context.Context, _ string, _ uint64, lost wire.Lost) error {
	if m.beforeLost != nil {
		if err := m.beforeLost(); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = append(m.lost, lost)
	return nil
}

func (m *memory) Clock(_ context.Context, _ string, _ uint64, clock touchline.Clock) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clocks = append(m.clocks, clock)
	return nil
}

func (m *memory) Samples(ctx context.Context, q cloud.Query, yield func(cloud.Record) error) error {
	if m.samples != nil {
		return m.samples(ctx, q, yield)
	}
	m.mu.Lock()
	records := slices.Clone(m.records)
	m.mu.Unlock()
	slices.SortStableFunc(records, func(a, b cloud.Record) int { return int(a.Time - b.Time) })
	for _, r := range records {
		if q.Gateway != "" && q.Gateway != r.Gateway || q.Sensor != "" && q.Sensor != r.Sensor || q.Metric != "" && q.Metric != r.Metric ||
			q.From != nil && r.Time < *q.From || q.To != nil && r.Time >= *q.To {
			continue
		}
		if err := yield(r); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Gateways(context.Context) ([]cloud.Gateway, error) {
	var list []cloud.Gateway
	for _, id := range m.gateways {
		list = append(list, cloud.Gateway{ID: id})
	}
	return list, nil
}

func (m *memory) GatewayByToken(_ context.Context, hash [32]byte) (string, error) {
	for _, id := range m.gateways {
		if sha256.Sum256([]byte(token(id))) == hash {
			return id, nil
		}
	}
	return "", cloud.ErrUnknownToken
}

func (m *memory) GatewayKeys(_ context.Context, gateway string) ([]identity.PublicKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.keys[gateway]), nil
}

func (m *memory) HandshakeKeys(ctx context.Context, gateway string) (keys []credential.GatewayKey, err error) {
	public, err := m.GatewayKeys(ctx, gateway)
	for _, k := range public {
		keys = append(keys, credential.GatewayKey{Public: k[:]})
	}
	return keys, err
}

func (m *memory) Credentials(ctx context.Context) (list []cloud.GatewayCredentials, err error) {
	for _, id := range m.gateways {
		keys, _ := m.HandshakeKeys(ctx, id)
		list = append(list, cloud.GatewayCredentials{Gateway: id, Token: sha256.Sum256([]byte(token(id))), Keys: keys})
	}
	return list, nil
}

var errNotHere = errors.New("this store of a test has no claim codes, rolls and API keys; SQLite has")

func (m *memory) Enrol(context.Context, cloud.Enrolment) (cloud.Enrolled, error) {
	return cloud.Enrolled{}, errNotHere
}

func (m *memory) RollKeys(context.Context, string, func([]credential.GatewayKey) ([]credential.GatewayKey, error)) error {
	return errNotHere
}

func (m *memory) Redeem(context.Context, credential.Handshake) error { return nil } // what one process remembers is enough
func (m *memory) NonceSecret() []byte                                { return make([]byte, 32) }
func (m *memory) AccessRevision(context.Context) (uint64, error)     { return 0, nil }
func (m *memory) Opened(context.Context, string, uint64, touchline.Epoch) (bool, error) {
	return false, nil
}
func (m *memory) Overtaken(context.Context, map[string]uint64) ([]string, error) {
	return nil, nil // there is one node
}
func (m *memory) APIKey(context.Context, string) (cloud.APIKey, error) {
	return cloud.APIKey{}, errNotHere
}
func (m *memory) APIKeyUsed(context.Context, string, time.Time) error { return errNotHere }

func (m *memory) Announce(_ context.Context, n cloud.Node) ([]cloud.Sighting, error) {
	return []cloud.Sighting{{Node: n}}, nil
}
func (m *memory) Nodes(context.Context) ([]cloud.Sighting, error) { return nil, nil }
func (m *memory) Withdraw(context.Context, string) error          { return nil }

func (m *memory) AddGatewayKey(_ context.Context, gateway string, key identity.PublicKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[gateway] = append(m.keys[gateway], key)
	return nil
}

func (m *memory) ID() string { return "memory" }

func (m *memory) NewSession(context.Context, string) (string, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions++
	return "memory", m.sessions, nil
}

// eachStore runs a test on the store of this package's tests and on SQLite.
func eachStore(t *testing.T, test func(t *testing.T, store cloud.Store), gateways ...string) {
	t.Run("memory", func(t *testing.T) { test(t, newMemory(gateways...)) })
	t.Run("sqlite", func(t *testing.T) { test(t, openSQLite(t, t.TempDir(), gateways...)) })
}

func openSQLite(t testing.TB, dir string, gateways ...string) *sqlite.Store {
	t.Helper()
	store, err := sqlite.Open(context.Background(), dir, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, id := range gateways {
		if err := store.AddGateway(context.Background(), id, sha256.Sum256([]byte(token(id)))); err != nil {
			t.Fatal(err)
		}
	}
	return store
}

func logger(testing.TB) *slog.Logger { return slog.New(slog.DiscardHandler) }

// A node is a running server.
type node struct {
	t      testing.TB
	server *cloud.Server
	addr   string
	stop   context.CancelFunc
	ended  chan error
}

func prepare(t testing.TB, opts cloud.Options, store cloud.Store) *cloud.Server {
	t.Helper()
	server, err := cloud.New(opts, store, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	server.SetRetry(time.Millisecond, 20*time.Millisecond)
	return server
}

func start(t testing.TB, opts cloud.Options, store cloud.Store) *node {
	t.Helper()
	return run(t, prepare(t, opts, store))
}

func run(t testing.TB, server *cloud.Server) *node {
	t.Helper()
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{t: t, server: server, addr: server.Addr().String(), stop: cancel, ended: make(chan error, 1)}
	go func() { n.ended <- server.Run(ctx) }()
	t.Cleanup(n.end)
	return n
}

// end stops the node and waits; it may be called twice.
func (n *node) end() {
	n.t.Helper()
	n.stop()
	select {
	case err := <-n.ended:
		if err != nil {
			n.t.Errorf("Run: %v", err)
		}
		n.ended <- nil
	case <-time.After(patience):
		n.t.Fatal("Run does not return")
	}
}

// get returns status, header and body of a GET.
func (n *node) get(path string) (int, http.Header, string) {
	n.t.Helper()
	resp, err := http.Get("http://" + n.addr + path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatalf("GET %s: %v after %d bytes", path, err, len(body))
	}
	return resp.StatusCode, resp.Header, string(body)
}

// eventually waits for what has no signal.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// A gateway speaks touchline.v1 by hand.
type gateway struct {
	t    testing.TB
	conn *websocket.Conn
	id   string
}

func header(id string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token(id)}, wire.HeaderGateway: {id}}
}

func dial(n *node, h http.Header, subprotocols ...string) (*websocket.Conn, *http.Response, error) {
	d := websocket.Dialer{Subprotocols: subprotocols, HandshakeTimeout: patience, WriteBufferSize: 64 << 10}
	return d.Dial("ws://"+n.addr+wire.UplinkPath, h)
}

// connect makes the upgrade only.
func (n *node) connect(id string) *gateway {
	n.t.Helper()
	conn, resp, err := dial(n, header(id), wire.Subprotocol)
	if err != nil {
		status := ""
		if resp != nil {
			status = resp.Status
		}
		n.t.Fatalf("dial as %s: %v %s", id, err, status)
	}
	n.t.Cleanup(func() { conn.Close() })
	return &gateway{t: n.t, conn: conn, id: id}
}

// join says hello too, and returns the welcome.
func (n *node) join(id string, held ...wire.Held) (*gateway, *wire.Welcome) {
	n.t.Helper()
	g := n.connect(id)
	g.say(&wire.Hello{Gateway: id, Software: "test/1", Epochs: held, Clock: "set"})
	return g, next[*wire.Welcome](g)
}

func (g *gateway) say(m wire.Message) {
	g.t.Helper()
	data, err := wire.MarshalMessage(m)
	if err != nil {
		g.t.Fatal(err)
	}
	g.text(string(data))
}

func (g *gateway) text(data string) {
	g.t.Helper()
	if err := g.conn.WriteMessage(websocket.TextMessage, []byte(data)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) send(blocks ...wire.Block) {
	g.t.Helper()
	list := make([]wire.FrameBlock, len(blocks))
	for i := range blocks {
		list[i].Block = blocks[i]
	}
	data, err := wire.AppendFrame(nil, list)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.conn.WriteMessage(websocket.BinaryMessage, data); err != nil {
		g.t.Fatal(err)
	}
}

// A gate is a record store's transaction that does not end while it is shut.
type gate chan struct{}

func (g gate) wait(ctx context.Context, _ []cloud.Delivery) error {
	select {
	case <-g:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hear returns the next message, or the error that ended the session.
func (g *gateway) hear() (wire.Message, error) {
	g.conn.SetReadDeadline(time.Now().Add(patience))
	kind, data, err := g.conn.ReadMessage()
	if err != nil {
		return nil, err
	}
	if kind != websocket.TextMessage {
		return nil, fmt.Errorf("a binary message came from the cloud")
	}
	return wire.ParseMessage(data)
}

// next returns the next message, which must be an M. A window is passed over
// where another message is wanted: a busy machine may have the store lag.
func next[M wire.Message](g *gateway) M {
	g.t.Helper()
	m, err := g.hear()
	if _, ok := m.(M); !ok {
		if _, window := m.(*wire.NewWindow); window {
			return next[M](g)
		}
	}
	if err != nil {
		g.t.Fatalf("gateway %s: %v", g.id, err)
	}
	want, ok := m.(M)
	if !ok {
		g.t.Fatalf("gateway %s heard %T %+v", g.id, m, m)
	}
	return want
}

// stored reads acks until all of blocks are stored.
func (g *gateway) stored(blocks ...wire.Block) {
	g.t.Helper()
	have := map[touchline.Epoch]*touchline.Ranges{}
	for {
		missing := slices.ContainsFunc(blocks, func(b wire.Block) bool {
			return have[b.Epoch] == nil || !have[b.Epoch].Contains(b.Range())
		})
		if !missing {
			return
		}
		for _, er := range next[*wire.Ack](g).Stored {
			if have[er.Epoch] == nil {
				have[er.Epoch] = new(touchline.Ranges)
			}
			have[er.Epoch].AddAll(er.Ranges)
		}
	}
}

// closed reads until the session's end and checks its code. It returns the
// messages before it.
func (g *gateway) closed(code int) (before []wire.Message) {
	g.t.Helper()
	for {
		m, err := g.hear()
		if err == nil {
			before = append(before, m)
			continue
		}
		var closed *websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != code {
			g.t.Fatalf("gateway %s: the session ended with %v, want close code %d", g.id, err, code)
		}
		g.conn.Close()
		return before
	}
}

// readings are n samples, a millisecond apart.
func readings(n int, from int64) []touchline.Sample {
	samples := make([]touchline.Sample, n)
	for i := range samples {
		samples[i] = touchline.Sample{Sensor: "belt-7", Metric: "heart_rate", Unit: "/min",
			Time: from + int64(i)*1e6, Value: touchline.NumberValue(float64(120 + i%40))}
	}
	return samples
}

func block(t testing.TB, epoch touchline.Epoch, first uint64, samples []touchline.Sample) wire.Block {
	t.Helper()
	encoded, err := wire.NewEncoder().Encode(nil, samples)
	if err != nil {
		t.Fatal(err)
	}
	if encoded.Count != len(samples) {
		t.Fatalf("%d of %d samples fit", encoded.Count, len(samples))
	}
	return sealed(wire.Block{Epoch: epoch, First: first, Count: uint32(len(samples)), Data: encoded.Data})
}

// undecodable is a block that is whole and says nothing.
func undecodable(epoch touchline.Epoch, first uint64, data string) wire.Block {
	return sealed(wire.Block{Epoch: epoch, First: first, Count: 1, Data: []byte(data)})
}

func sealed(b wire.Block) wire.Block {
	b.CRC = b.Sum()
	return b
}

// blocks are n blocks of ten samples of one epoch.
func blocks(t testing.TB, n int) []wire.Block {
	epoch := touchline.NewEpoch()
	list := make([]wire.Block, n)
	for i := range list {
		list[i] = block(t, epoch, uint64(1+10*i), readings(10, time.Now().UnixNano()+int64(i)*1e9))
	}
	return list
}

func unmarshal[T any](t testing.TB, data string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(data), &v); err != nil {
		t.Fatalf("%v: %.300s", err, data)
	}
	return v
}

// A lockedWriter makes a writer safe for the goroutines of a server.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
