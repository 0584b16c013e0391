package cloud_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
	"touchline/wire"
)

// A scene is a message to a viewer.
type scene struct {
	Type     string
	Samples  []shownSample
	Last     bool
	Complete *bool
	Thinned  uint64
	Late     uint64
	LeftOut  uint64 `json:"left_out"`
}

type shownSample struct {
	Time                                             time.Time
	Gateway, Sensor, Metric, Unit, Kind, Clock, Lane string
	Value                                            any
}

// A spectator views over a WebSocket or an event stream.
type spectator struct {
	t    testing.TB
	conn *websocket.Conn
	body io.ReadCloser
	read *bufio.Reader
	said string // the last comment
}

func (n *node) watch(query string) *spectator {
	n.t.Helper()
	d := websocket.Dialer{HandshakeTimeout: patience}
	conn, resp, err := d.Dial("ws://"+n.addr+"/v1/live"+query, nil)
	if err != nil {
		status := ""
		if resp != nil {
			status = resp.Status
		}
		n.t.Fatalf("watch %s: %v %s", query, err, status)
	}
	n.t.Cleanup(func() { conn.Close() })
	return &spectator{t: n.t, conn: conn}
}

func (n *node) watchEvents(query string, key ...string) *spectator {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(cancel)
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.addr+"/v1/live"+query, nil)
	req.Header.Set("Accept", "text/event-stream")
	for _, k := range key {
		req.Header.Set("Authorization", "Bearer "+k)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { resp.Body.Close(); http.DefaultClient.CloseIdleConnections() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		n.t.Fatalf("watch %s: %s %v", query, resp.Status, resp.Header)
	}
	return &spectator{t: n.t, body: resp.Body, read: bufio.NewReader(resp.Body)}
}

// hear returns the next message, or the error that ended the stream.
func (s *spectator) hear() (scene, error) {
	if s.conn != nil {
		s.conn.SetReadDeadline(time.Now().Add(patience))
		kind, data, err := s.conn.ReadMessage()
		if err != nil {
			return scene{}, err
		}
		if kind != websocket.TextMessage {
			return scene{}, fmt.Errorf("a message of kind %d came", kind)
		}
		return unmarshal[scene](s.t, string(data)), nil
	}
	for event := ""; ; {
		line, err := s.read.ReadString('\n')
		if err != nil {
			return scene{}, err
		}
		line = strings.TrimSuffix(line, "\n")
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			m := unmarshal[scene](s.t, data)
			if m.Type != event {
				s.t.Errorf("the event %q is of type %q", event, m.Type)
			}
			return m, nil
		}
		if rest, ok := strings.CutPrefix(line, "event: "); ok {
			event = rest
		} else if rest, ok := strings.CutPrefix(line, ": "); ok {
			s.said = rest
		} else if line != "" && line != "retry: 2000" {
			s.t.Errorf("the line %q is in the stream", line)
		}
	}
}

func (s *spectator) next() scene {
	s.t.Helper()
	m, err := s.hear()
	if err != nil {
		s.t.Fatal(err)
	}
	return m
}

// snapshot returns what is known at first.
func (s *spectator) snapshot() (samples []shownSample, complete bool) {
	s.t.Helper()
	for {
		m := s.next()
		if m.Type != "snapshot" || m.Last != (m.Complete != nil) {
			s.t.Fatalf("a snapshot is %+v", m)
		}
		samples = append(samples, m.Samples...)
		if m.Last {
			return samples, *m.Complete
		}
	}
}

// until reads samples until there is one of that sensor and time.
func (s *spectator) until(sensor string, at int64) (samples []shownSample) {
	s.t.Helper()
	for {
		m := s.next()
		if m.Type != "samples" {
			s.t.Fatalf("a message is %+v", m)
		}
		samples = append(samples, m.Samples...)
		if slices.ContainsFunc(m.Samples, func(x shownSample) bool { return x.Sensor == sensor && x.Time.UnixNano() == at }) {
			return samples
		}
	}
}

// of are n samples of each sensor, the last at the time at.
func of(n int, at int64, sensors ...string) (samples []touchline.Sample) {
	for _, sensor := range sensors {
		for i := range n {
			samples = append(samples, touchline.Sample{Sensor: sensor, Metric: "heart_rate", Unit: "/min",
				Time: at - int64(n-1-i)*1e6, Value: touchline.NumberValue(float64(120 + i%40))})
		}
	}
	return samples
}

// A sender sends blocks of one epoch and waits until each is stored.
type sender struct {
	*gateway
	epoch touchline.Epoch
	at    uint64
}

func (n *node) sender(id string) *sender {
	g, _ := n.join(id)
	return &sender{g, touchline.NewEpoch(), 1}
}

func (s *sender) store(lane wire.Lane, samples []touchline.Sample) wire.Block {
	s.t.Helper()
	b := block(s.t, s.epoch, s.at, samples)
	s.at += uint64(len(samples))
	data, err := wire.AppendFrame(nil, []wire.FrameBlock{{Block: b, Lane: lane}})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.conn.WriteMessage(websocket.BinaryMessage, data); err != nil {
		s.t.Fatal(err)
	}
	s.stored(b)
	return b
}

func TestLive_TheLatestThatIsKnownAndThenWhatComes(t *testing.T) {
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), store)
		s := n.sender("arena")
		now := time.Now().Truncate(time.Millisecond).UnixNano()
		s.store(wire.Live, of(10, now-time.Hour.Nanoseconds(), "gone"))
		s.store(wire.Live, of(10, now, "belt-1", "belt-2"))
		viewers := map[string]*spectator{"socket": n.watch(""), "events": n.watchEvents("")}
		for name, v := range viewers {
			known, complete := v.snapshot()
			slices.SortFunc(known, func(a, b shownSample) int { return strings.Compare(a.Sensor, b.Sensor) })
			if len(known) != 2 || !complete || known[0].Sensor != "belt-1" || known[1].Sensor != "belt-2" || known[1].Time.UnixNano() != now {
				t.Fatalf("%s: known are %+v, complete %v", name, known, complete)
			}
		}
		now += time.Second.Nanoseconds()
		want := of(20, now, "belt-2", "belt-3")
		s.store(wire.Live, want)
		for name, v := range viewers {
			have := v.until("belt-3", now)
			if len(have) != len(want) {
				t.Fatalf("%s: %d samples came, want %d", name, len(have), len(want))
			}
			for i, h := range have {
				w := want[i]
				if h.Gateway != "arena" || h.Sensor != w.Sensor || h.Metric != w.Metric || h.Unit != w.Unit || h.Time.UnixNano() != w.Time ||
					h.Kind != "number" || h.Value != w.Value.Float() || h.Lane != "" {
					t.Fatalf("%s: sample %d is %+v, want %+v", name, i, h, w)
				}
			}
		}
	}, "arena")
}

func TestLive_ShowsWhatIsAskedForAndDecodesNoOtherGateways(t *testing.T) {
	store := &venues{newMemory("arena", "gym", "field"), map[string]string{"arena": "north", "gym": "north", "field": "south"}}
	n := start(t, options(), store)
	senders := map[string]*sender{}
	for _, id := range store.gateways {
		senders[id] = n.sender(id)
	}
	now := time.Now().UnixNano()
	for _, s := range senders {
		s.store(wire.Live, of(3, now, "belt-1"))
	}
	if st := n.server.Stats(); st.LiveDecoded != 0 || st.Viewers != 0 {
		t.Errorf("without viewers %d blocks are decoded", st.LiveDecoded)
	}
	for i, c := range []struct {
		query string
		want  string
	}{
		{"?gateway=gym", "gym/belt-1/heart_rate gym/belt-2/heart_rate"},
		{"?venue=north&sensor=belt-2", "arena/belt-2/heart_rate gym/belt-2/heart_rate"},
		{"?venue=north&gateway=arena&sensor=belt-1&metric=heart_rate", "arena/belt-1/heart_rate"},
		{"?venue=south&metric=&sensor=belt-2", "field/belt-2/heart_rate"},
	} {
		before := n.server.Stats().LiveDecoded
		v := n.watch(c.query)
		v.snapshot()
		at := now + int64(i+1)*1e9
		gateways := map[string]bool{}
		for _, w := range strings.Fields(c.want) {
			gateways[strings.Split(w, "/")[0]] = true
		}
		for _, id := range []string{"arena", "gym", "field"} {
			senders[id].store(wire.Live, of(1, at, "belt-1", "belt-2"))
		}
		var have []string
		for want := len(strings.Fields(c.want)); len(have) < want; {
			for _, x := range v.next().Samples {
				have = append(have, x.Gateway+"/"+x.Sensor+"/"+x.Metric)
			}
		}
		slices.Sort(have)
		if strings.Join(have, " ") != c.want {
			t.Errorf("%s: shown are %v, want %s", c.query, have, c.want)
		}
		if decoded := n.server.Stats().LiveDecoded - before; decoded != uint64(len(gateways)) {
			t.Errorf("%s: %d blocks are decoded for %d gateways", c.query, decoded, len(gateways))
		}
		v.conn.Close()
		eventually(t, "the viewer has left", func() bool { return n.server.Stats().Viewers == 0 })
	}
}

func TestLive_EachViewerSeesItsOwnGatewaysAndThoseThatJoinItsVenue(t *testing.T) {
	store := &venues{newMemory("arena", "gym", "field"), map[string]string{"arena": "north", "gym": "west", "field": "south"}}
	var moved atomic.Bool
	opts := options()
	opts.Bus = cloud.NewLocalBus()
	opts.Heartbeat = 100 * time.Millisecond // event streams have no pongs to miss
	n := start(t, opts, &growing{store, &moved})
	north, south := n.watchEvents("?venue=north"), n.watchEvents("?gateway=field")
	north.snapshot()
	south.snapshot()
	now := time.Now().UnixNano()
	show := func(id string, at int64) {
		b := block(t, touchline.NewEpoch(), 1, of(1, at, id))
		opts.Bus.Publish([]cloud.Recorded{{Gateway: id, Received: time.Now(), Block: b}})
	}
	show("field", now)
	show("arena", now)
	show("gym", now)
	if have := north.until("arena", now); len(have) != 1 {
		t.Errorf("north sees %+v", have)
	}
	if have := south.until("field", now); len(have) != 1 {
		t.Errorf("south sees %+v", have)
	}
	moved.Store(true)
	at := now
	eventually(t, "the gateway that joined is seen", func() bool {
		before := n.server.Stats().LiveDecoded
		at++
		show("gym", at)
		return n.server.Stats().LiveDecoded > before
	})
	if m := north.next(); m.Samples[0].Sensor != "gym" {
		t.Errorf("north sees %+v", m)
	}
}

// growing is a store whose gym joins the north.
type growing struct {
	*venues
	moved *atomic.Bool
}

func (s *growing) Gateways(ctx context.Context) ([]cloud.Gateway, error) {
	list, err := s.venues.Gateways(ctx)
	for i := range list {
		if list[i].ID == "gym" && s.moved.Load() {
			list[i].Venue = "north"
		}
	}
	return list, err
}

// venues is a store that knows of which venue a gateway is.
type venues struct {
	*memory
	of map[string]string
}

func (s *venues) Gateways(context.Context) (list []cloud.Gateway, err error) {
	for id, venue := range s.of {
		list = append(list, cloud.Gateway{ID: id, Venue: venue})
	}
	return list, nil
}

// What is shown is stored: not what waits, and not what is kept aside.
func TestLive_ShowsNothingThatIsNotStored(t *testing.T) {
	store := newMemory("arena")
	hold := make(gate)
	store.beforeRecord = hold.wait
	n := start(t, options(), store)
	v := n.watch("")
	v.snapshot()
	g, _ := n.join("arena")
	epoch, now := touchline.NewEpoch(), time.Now().UnixNano()
	first := block(t, epoch, 1, of(10, now, "belt-1"))
	g.send(first, undecodable(epoch, 100, "nothing"))
	eventually(t, "the blocks wait", func() bool { return n.server.Stats().QueueBlocks == 2 })
	if st := n.server.Stats(); st.LiveDecoded != 0 || st.LiveSent != 0 {
		t.Errorf("%d blocks are decoded and %d samples shown of what is not stored", st.LiveDecoded, st.LiveSent)
	}
	close(hold)
	if have := v.until("belt-1", now); len(have) != 10 {
		t.Errorf("%d samples are shown", len(have))
	}
	contradicts := block(t, epoch, 1, of(10, now+1e9, "belt-1"))
	last := block(t, epoch, 200, of(1, now+2e9, "belt-1"))
	g.send(contradicts, last)
	if have := v.until("belt-1", now+2e9); len(have) != 1 {
		t.Errorf("shown are %+v", have)
	}
}

func TestLive_ABacklogIsMarkedAndReplacesNothingNewer(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	v := n.watch("")
	v.snapshot()
	s := n.sender("arena")
	now := time.Now().UnixNano()
	s.store(wire.Live, of(1, now, "belt-1"))
	v.until("belt-1", now)
	old := now - time.Hour.Nanoseconds()
	s.store(wire.Backlog, append(of(50, old, "belt-1"), of(1, old, "belt-2")...))
	have := v.until("belt-2", old)
	if len(have) != 1 || have[0].Lane != "backlog" {
		t.Errorf("shown are %+v", have)
	}
	s.store(wire.Live, of(1, now+1e9, "belt-1"))
	if have := v.until("belt-1", now+1e9); len(have) != 1 || have[0].Lane != "" {
		t.Errorf("shown are %+v", have)
	}
	if st := n.server.Stats(); st.LiveLate != 50 {
		t.Errorf("%d samples count as late", st.LiveLate)
	}
}

// A viewer who does not read costs what it may, and ingest nothing; when it
// reads again it has the latest of each series.
func TestLive_ASlowViewerIsThinnedAndHoldsUpNobody(t *testing.T) {
	opts := options()
	opts.ViewerSeries = 12
	n := start(t, opts, newMemory("arena"))
	v := n.watch("")
	v.snapshot()
	s := n.sender("arena")
	sensors := make([]string, 10)
	for i := range sensors {
		sensors[i] = fmt.Sprintf("belt-%d", i)
	}
	const blocks, each = 300, 100
	now := time.Now().UnixNano()
	for i := range blocks {
		s.store(wire.Live, of(each, now+int64(i)*1e8, sensors...))
		if series, rows, weight := n.server.LiveHeld(); series > 12 || rows > 4*12 || weight > 4*12 {
			t.Fatalf("a viewer holds %d series and %d rows of the weight %d", series, rows, weight)
		}
	}
	if st := n.server.Stats(); st.SamplesStored != blocks*each*10 || st.Viewers != 1 {
		t.Errorf("%d samples are stored; there are %d viewers", st.SamplesStored, st.Viewers)
	}
	last := now + (blocks-1)*1e8
	at := map[string]int64{}
	shown, thinned := uint64(0), uint64(0)
	for done := 0; done < len(sensors); {
		m := v.next()
		thinned += m.Thinned
		for _, x := range m.Samples {
			shown++
			if was := at[x.Sensor]; x.Time.UnixNano() <= was {
				t.Fatalf("%s goes back from %d to %d", x.Sensor, was, x.Time.UnixNano())
			}
			if at[x.Sensor] = x.Time.UnixNano(); at[x.Sensor] == last {
				done++
			}
		}
	}
	if thinned == 0 || shown+thinned != blocks*each*10 {
		t.Errorf("%d samples were shown and %d thinned of %d", shown, thinned, blocks*each*10)
	}
	t.Logf("MEASURED %d of %d samples shown to a viewer who did not read", shown, blocks*each*10)
}

func TestLive_AViewerWhoStandsStillIsCutOff(t *testing.T) {
	opts := options()
	opts.Timeouts.Answer = 50 * time.Millisecond
	n := start(t, opts, newMemory("arena"))
	d := websocket.Dialer{NetDial: func(network, address string) (net.Conn, error) {
		conn, err := net.Dial(network, address)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return conn, err
	}}
	conn, _, err := d.Dial("ws://"+n.addr+"/v1/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, "the viewer is there", func() bool { return n.server.Stats().Viewers == 1 })
	s := n.sender("arena")
	now := time.Now().UnixNano()
	var samples []touchline.Sample
	for i := range 512 { // half a megabyte fills what the system takes soon
		samples = append(samples, touchline.Sample{Sensor: fmt.Sprint(i), Metric: "m", Value: touchline.TextValue(strings.Repeat("x", 1000))})
	}
	for i := 0; n.server.Stats().Viewers > 0; i++ {
		for k := range samples {
			samples[k].Time = now + int64(i)
		}
		s.store(wire.Live, samples)
	}
	if n.server.Stats().Connections != 1 {
		t.Error("the gateway is gone too")
	}
}

func TestLive_ThereAreNoMoreViewersThanThereMay(t *testing.T) {
	opts := options()
	opts.MaxViewers = 2
	n := start(t, opts, newMemory("arena"))
	first := n.watch("")
	n.watchEvents("").snapshot()
	status, h, body := n.get("/v1/live")
	if status != http.StatusServiceUnavailable || h.Get("Retry-After") == "" || !strings.Contains(body, "live.viewers") {
		t.Errorf("%d %v %s", status, h, body)
	}
	if _, resp, err := websocket.DefaultDialer.Dial("ws://"+n.addr+"/v1/live", nil); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%v", err)
	}
	first.conn.Close()
	eventually(t, "there is room", func() bool { return n.server.Stats().Viewers == 1 })
	n.watch("").snapshot()
	if st := n.server.Stats(); st.ViewersRefused != 2 {
		t.Errorf("%d viewers are refused", st.ViewersRefused)
	}
}

// A dashboard on one node sees gateways on all, and a node that nobody views at
// decodes nothing.
func TestLive_OneNodeShowsWhatAnotherRecords(t *testing.T) {
	store := newMemory("arena")
	opts := options()
	opts.Bus = cloud.NewLocalBus()
	near, far := start(t, opts, store), start(t, opts, store)
	v := near.watch("?gateway=arena")
	v.snapshot()
	now := time.Now().UnixNano()
	far.sender("arena").store(wire.Live, of(10, now, "belt-1"))
	if have := v.until("belt-1", now); len(have) != 10 {
		t.Errorf("shown are %+v", have)
	}
	if a, b := near.server.Stats(), far.server.Stats(); a.LiveDecoded != 1 || b.LiveDecoded != 0 || a.BlocksStored != 0 {
		t.Errorf("decoded are %d and %d blocks", a.LiveDecoded, b.LiveDecoded)
	}
}

func TestLive_ANodeThatStopsSaysSo(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	socket, events := n.watch(""), n.watchEvents("")
	socket.snapshot()
	events.snapshot()
	n.stop()
	if _, err := socket.hear(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the socket ended with %v", err)
	}
	if _, err := events.hear(); err != io.EOF || events.said != "this node stops" {
		t.Errorf("the events ended with %v, %q", err, events.said)
	}
	n.end()
}

func TestLive_LastsAsLongAsItsKey(t *testing.T) {
	store := openSQLite(t, t.TempDir(), "arena")
	opts := options()
	opts.Listen = "0.0.0.0:0"
	opts.Heartbeat = 100 * time.Millisecond
	n := start(t, opts, store)
	n.addr = strings.Replace(n.addr, "[::]", "127.0.0.1", 1)
	key := addAPIKey(t, store, "dashboard", credential.ReadLive, time.Time{})
	other := addAPIKey(t, store, "export", credential.ReadSamples, time.Time{})
	for authorization, want := range map[string]int{"": 401, "Bearer " + other.Reveal(): 403} {
		h := http.Header{}
		if authorization != "" {
			h.Set("Authorization", authorization)
		}
		if _, resp, err := websocket.DefaultDialer.Dial("ws://"+n.addr+"/v1/live", h); err == nil || resp.StatusCode != want {
			t.Errorf("%v, want %d", err, want)
		}
	}
	v := n.watchEvents("", key.Reveal())
	v.snapshot()
	if err := store.RevokeAPIKey(t.Context(), "dashboard"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.hear(); err != io.EOF || v.said != "the API key is revoked or over" {
		t.Errorf("it ended with %v, %q", err, v.said)
	}
}

func TestLive_RefusesWhatItDoesNotUnderstand(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	for path, want := range map[string]int{
		"?from=2026-01-01T00:00:00Z": 400, "?format=csv": 400, "?sensors=a": 400, "?sensor=%23": 400, "?gateway=a&gateway=b": 400, "?venue=nowhere": 404,
	} {
		status, h, body := n.get("/v1/live" + path)
		if status != want || h.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %v %s", path, status, h, body)
		}
	}
	req, _ := http.NewRequest(http.MethodGet, "http://"+n.addr+"/v1/live", nil)
	req.Header.Set("Accept", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("as JSON: %d", resp.StatusCode)
	}
	if _, resp, err := websocket.DefaultDialer.Dial("ws://"+n.addr+"/v1/live", http.Header{"Origin": {"https://evil.example"}}); err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site: %v", err)
	}
	eventually(t, "nobody is left", func() bool { return n.server.Stats().Viewers == 0 })
}
