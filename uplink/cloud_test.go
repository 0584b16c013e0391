package uplink

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// A testCloud speaks the cloud's side of touchline.v1 over a real WebSocket,
// records what it gets and audits it, and misbehaves as a test wants.
type testCloud struct {
	t     testing.TB
	bell  *bell
	http  *http.Server
	addr  string
	pipes *pipes // instead of TCP, if set
	wg    sync.WaitGroup

	mu       sync.Mutex
	stored   map[touchline.Epoch]touchline.Ranges
	crcs     map[touchline.Position]uint32 // of the blocks stored, by first number
	accepted map[touchline.Epoch]touchline.Ranges
	lost     map[uint64]wire.Lost
	clocks   []wire.Clock // each that was told
	lanes    map[touchline.Position]wire.Lane
	conns    map[*cloudSession]bool
	ended    bool
	tally    tally

	// How it behaves; set before use or under mu.
	window    wire.Window
	heartbeat time.Duration
	maxFrame  int
	refuse    func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
	upgrader  websocket.Upgrader
	// session replaces the whole session, if set and if it returns true.
	session func(s *cloudSession) bool
	// message is called for each message before it is handled; false drops
	// the connection there.
	message func(s *cloudSession, kind, n int) bool
	// block is called for each block that arrived whole; what it returns
	// goes into the ack.
	block func(s *cloudSession, b *wire.FrameBlock) verdict
	// forgetful says whether a welcome names nothing as stored, if set.
	forgetful func() bool
	// confirmClocks says whether it records the gateway's clocks.
	confirmClocks bool
	// noPong makes it deaf for pings.
	noPong bool
	// wholeFrames makes it one that takes no parts.
	wholeFrames bool
}

// tally is what the cloud has seen.
type tally struct {
	requests int
	sessions uint64
	repeats  int // blocks that were there before
	lostSaid int // lost messages
	pings    int
	parts    int
	hellos   []wire.Hello
	closes   []websocket.CloseError // close frames of the gateway
}

// saw returns what the cloud has seen until now.
func (c *testCloud) saw() tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tally
}

// verdict is what the cloud does with a block.
type verdict uint8

const (
	store      verdict = iota // record it and say accepted and stored
	acceptOnly                // say accepted
	silent                    // say nothing
	silentlyDo                // record it and say nothing
	damaged                   // ask for it again
)

func newTestCloud(t testing.TB, b *bell) *testCloud {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := makeTestCloud(t, b, l)
	c.addr = l.Addr().String()
	return c
}

func newPipeCloud(t testing.TB, b *bell) *testCloud {
	p := newPipes()
	c := makeTestCloud(t, b, p)
	c.pipes, c.addr = p, "cloud.test"
	return c
}

func makeTestCloud(t testing.TB, b *bell, l net.Listener) *testCloud {
	c := &testCloud{
		t: t, bell: b,
		stored:    make(map[touchline.Epoch]touchline.Ranges),
		accepted:  make(map[touchline.Epoch]touchline.Ranges),
		crcs:      make(map[touchline.Position]uint32),
		lanes:     make(map[touchline.Position]wire.Lane),
		lost:      make(map[uint64]wire.Lost),
		conns:     make(map[*cloudSession]bool),
		window:    wire.Window{Bytes: 1 << 20, Blocks: 256},
		heartbeat: 10 * time.Second,
		maxFrame:  wire.MinFrameBytes,
		upgrader:  websocket.Upgrader{Subprotocols: []string{wire.Subprotocol}},
	}
	c.http = &http.Server{Handler: c, ReadHeaderTimeout: long}
	c.wg.Go(func() { c.http.Serve(l) })
	t.Cleanup(c.close)
	return c
}

func (c *testCloud) url() string { return "ws://" + c.addr }

// close ends all connections and waits for their goroutines.
func (c *testCloud) close() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.http.Close()
	c.dropAll()
	c.wg.Wait()
}

// dropAll cuts all connections that are up.
func (c *testCloud) dropAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.conns {
		s.conn.Close()
	}
}

func (c *testCloud) set(f func()) {
	c.mu.Lock()
	f()
	c.mu.Unlock()
	c.bell.ring()
}

func (c *testCloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.tally.requests++
	refuse := c.refuse
	upgrader := c.upgrader
	c.mu.Unlock()
	defer c.bell.ring()
	if r.URL.Path != wire.UplinkPath {
		http.NotFound(w, r)
		return
	}
	if refuse != nil && refuse(w, r) {
		return
	}
	if got := r.Header.Get("Authorization"); got != "Bearer secret-token" {
		http.Error(w, "unknown token", http.StatusUnauthorized)
		return
	}
	if r.Header.Get(wire.HeaderGateway) != "venue-1" {
		http.Error(w, "unknown gateway", http.StatusForbidden)
		return
	}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	s := &cloudSession{cloud: c, conn: conn, unaccepted: make(map[touchline.Position]int)}
	c.mu.Lock()
	ended := c.ended
	c.conns[s] = true
	c.tally.sessions++
	s.number = c.tally.sessions
	c.wg.Add(1)
	c.mu.Unlock()
	go func() {
		defer c.wg.Done()
		defer c.bell.ring()
		defer func() {
			conn.Close()
			c.set(func() { delete(c.conns, s) })
		}()
		if !ended {
			s.run()
		}
	}()
}

func (c *testCloud) hasStored(e touchline.Epoch, r touchline.Range) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stored[e].Contains(r)
}

// has says whether every one of list is stored.
func (c *testCloud) has(list []wire.Block) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		if !c.stored[list[i].Epoch].Contains(list[i].Range()) {
			return false
		}
	}
	return true
}

// A cloudSession is one connection as the cloud sees it.
type cloudSession struct {
	cloud  *testCloud
	conn   *websocket.Conn
	number uint64
	parts  wire.Assembly

	mu         sync.Mutex // covers writes, and what follows
	unaccepted map[touchline.Position]int
	bytes      int
	maxBytes   int // most ever unaccepted
	maxBlocks  int
}

// run is a whole session: hello, welcome, and then acks.
func (s *cloudSession) run() {
	c := s.cloud
	ping := s.conn.PingHandler()
	s.conn.SetPingHandler(func(data string) error {
		c.mu.Lock()
		c.tally.pings++
		deaf := c.noPong
		c.mu.Unlock()
		c.bell.ring()
		if deaf {
			return nil
		}
		return ping(data)
	})
	if f := c.session; f != nil && f(s) {
		return
	}
	hello, ok := s.hello()
	if !ok {
		return
	}
	if !s.welcome(hello) {
		return
	}
	s.serve()
}

// hello reads the first message.
func (s *cloudSession) hello() (*wire.Hello, bool) {
	kind, data, err := s.conn.ReadMessage()
	if err != nil || !s.let(kind, 0) {
		return nil, false
	}
	m, err := wire.ParseMessage(data)
	hello, ok := m.(*wire.Hello)
	if kind != websocket.TextMessage || !ok {
		s.cloud.t.Errorf("first message is %T (%v), want hello", m, err)
		return nil, false
	}
	s.cloud.set(func() { s.cloud.tally.hellos = append(s.cloud.tally.hellos, *hello) })
	return hello, true
}

// welcome answers hello with what is stored.
func (s *cloudSession) welcome(hello *wire.Hello) bool {
	c := s.cloud
	c.mu.Lock()
	w := &wire.Welcome{
		Store: "store-1", Session: s.number, Window: c.window, MaxFrame: c.maxFrame,
		Heartbeat: int(c.heartbeat / time.Millisecond), Time: time.Now(),
	}
	if !c.wholeFrames {
		w.Capabilities = []string{wire.CapabilityParts}
	}
	named := hello.Epochs
	if c.forgetful != nil && c.forgetful() {
		named = nil
	}
	for _, h := range named {
		if set := c.stored[h.Epoch]; len(set) > 0 {
			w.Stored = append(w.Stored, wire.EpochRanges{Epoch: h.Epoch, Ranges: set.Clone()})
		}
	}
	c.mu.Unlock()
	return s.send(w) == nil
}

// serve handles messages until the connection ends.
func (s *cloudSession) serve() {
	for n := 1; ; n++ {
		kind, data, err := s.conn.ReadMessage()
		if err != nil {
			if e, ok := err.(*websocket.CloseError); ok && e.Code != websocket.CloseAbnormalClosure {
				s.cloud.set(func() { s.cloud.tally.closes = append(s.cloud.tally.closes, *e) })
			}
			return
		}
		if !s.let(kind, n) {
			return
		}
		if kind == websocket.BinaryMessage {
			err = s.takeFrame(data)
		} else {
			err = s.takeText(data)
		}
		if err != nil {
			return
		}
	}
}

func (s *cloudSession) let(kind, n int) bool {
	f := s.cloud.message
	return f == nil || f(s, kind, n)
}

func (s *cloudSession) takeText(data []byte) error {
	m, err := wire.ParseMessage(data)
	if err != nil {
		s.cloud.t.Errorf("message from the gateway: %v", err)
		return err
	}
	if clock, ok := m.(*wire.Clock); ok {
		return s.takeClock(clock)
	}
	lost, ok := m.(*wire.Lost)
	if !ok {
		s.cloud.t.Errorf("unexpected %T from the gateway", m)
		return fmt.Errorf("unexpected %T", m)
	}
	c := s.cloud
	c.mu.Lock()
	c.tally.lostSaid++
	confirm := c.lost != nil
	if confirm {
		c.lost[lost.ID] = *lost
	}
	c.mu.Unlock()
	c.bell.ring()
	if !confirm {
		return nil
	}
	return s.send(&wire.Ack{Lost: []uint64{lost.ID}, Time: time.Now()})
}

// takeClock records a clock and confirms it, unless the cloud is deaf for them.
func (s *cloudSession) takeClock(m *wire.Clock) error {
	c := s.cloud
	c.mu.Lock()
	c.clocks = append(c.clocks, *m)
	confirm := c.confirmClocks
	c.mu.Unlock()
	c.bell.ring()
	if !confirm {
		return nil
	}
	return s.send(&wire.Ack{Clock: []wire.ClockOffset{m.ClockOffset}, Time: time.Now()})
}

// takeFrame checks and records the blocks of a frame and acknowledges them.
func (s *cloudSession) takeFrame(data []byte) error {
	c := s.cloud
	if len(data) > c.maxFrame {
		c.t.Errorf("frame of %d bytes, and %d were allowed", len(data), c.maxFrame)
	}
	if wire.IsPart(data) {
		whole, err := s.parts.Add(data, c.maxFrame)
		if err != nil || c.wholeFrames {
			c.t.Errorf("part from the gateway, to a cloud that takes whole frames alone (%v): %v", c.wholeFrames, err)
			return fmt.Errorf("part: %w", err)
		}
		c.set(func() { c.tally.parts++ })
		if data = whole; whole == nil {
			return nil
		}
	}
	list, err := wire.ParseFrame(nil, data)
	if err != nil {
		c.t.Errorf("frame from the gateway: %v", err)
		return err
	}
	ack := &wire.Ack{Time: time.Now()}
	var resend []*wire.Resend
	for i := range list {
		b := &list[i]
		if err := b.Check(); err != nil {
			c.t.Errorf("block from the gateway: %v", err)
			return err
		}
		s.arrived(b)
		v := store
		if c.block != nil {
			v = c.block(s, b)
		}
		one := []wire.EpochRanges{{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}}}
		switch v {
		case store:
			c.record(b)
			s.accept(b)
			ack.Accepted = append(ack.Accepted, one...)
			ack.Stored = append(ack.Stored, one...)
		case acceptOnly:
			s.accept(b)
			ack.Accepted = append(ack.Accepted, one...)
		case silentlyDo:
			c.record(b)
		case damaged:
			s.accept(b)
			resend = append(resend, &wire.Resend{Epoch: b.Epoch, Ranges: touchline.Ranges{b.Range()}})
		}
	}
	c.bell.ring()
	for _, r := range resend {
		if err := s.send(r); err != nil {
			return err
		}
	}
	if len(ack.Accepted) == 0 && len(ack.Stored) == 0 {
		return nil
	}
	return s.send(ack)
}

// arrived counts what the gateway has sent and we have not accepted. That is
// never more than it believes itself, so it must be within the window.
func (s *cloudSession) arrived(b *wire.FrameBlock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := touchline.Position{Epoch: b.Epoch, Seq: b.First}
	if _, ok := s.unaccepted[p]; !ok {
		s.unaccepted[p] = len(b.Data)
		s.bytes += len(b.Data)
	}
	s.maxBytes = max(s.maxBytes, s.bytes)
	s.maxBlocks = max(s.maxBlocks, len(s.unaccepted))
	s.cloud.mu.Lock()
	s.cloud.lanes[p] = b.Lane
	s.cloud.mu.Unlock()
}

// most returns how much was ever unaccepted.
func (s *cloudSession) most() (bytes, blocks int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maxBytes, s.maxBlocks
}

func (s *cloudSession) accept(b *wire.FrameBlock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := touchline.Position{Epoch: b.Epoch, Seq: b.First}
	s.bytes -= s.unaccepted[p]
	delete(s.unaccepted, p)
}

// record stores b, once; a repeat must be the same.
func (c *testCloud) record(b *wire.FrameBlock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := touchline.Position{Epoch: b.Epoch, Seq: b.First}
	set := c.stored[b.Epoch]
	if set.Overlaps(b.Range()) {
		if crc, ok := c.crcs[p]; !ok || crc != b.CRC {
			c.t.Errorf("block %s %v overlaps what is stored, and is not a repeat of it", b.Epoch, b.Range())
		}
		c.tally.repeats++
		return
	}
	c.crcs[p] = b.CRC
	set.Add(b.Range())
	c.stored[b.Epoch] = set
}

// send writes a message; safe for concurrent use.
func (s *cloudSession) send(m wire.Message) error {
	data, err := wire.MarshalMessage(m)
	if err != nil {
		return err
	}
	return s.write(websocket.TextMessage, data)
}

func (s *cloudSession) write(kind int, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.WriteMessage(kind, data)
}
