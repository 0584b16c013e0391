package cloud_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline/cloud"
	"touchline/wire"
)

// maxDrainDelay is longer than any test.
const maxDrainDelay = 10 * time.Minute

// draining are the options of a node behind a load balancer.
func draining() cloud.Options {
	o := options()
	o.DrainDelay, o.Drain, o.AgentListen = 50*time.Millisecond, 100*time.Millisecond, "127.0.0.1:0"
	return o
}

// away reads until goaway comes, and returns it and what came before.
func (g *gateway) away() (*wire.Goaway, []wire.Message) {
	g.t.Helper()
	for before := []wire.Message(nil); ; {
		m, err := g.hear()
		if err != nil {
			g.t.Fatalf("gateway %s heard %+v and then %v, want goaway", g.id, before, err)
		}
		if away, ok := m.(*wire.Goaway); ok {
			return away, before
		}
		before = append(before, m)
	}
}

// leave closes as a gateway does that was sent away.
func (g *gateway) leave() {
	g.t.Helper()
	if err := g.conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")); err != nil {
		g.t.Fatal(err)
	}
	g.closed(websocket.CloseNormalClosure)
}

func TestDrain_WhatIsInFlightIsStoredBeforeASessionEnds(t *testing.T) {
	store, hold := newMemory("arena", "field"), make(gate)
	store.beforeRecord = hold.wait
	n := start(t, draining(), store)
	g, _ := n.join("arena")
	c := newCourier(n, "field")
	c.join()
	mine, theirs := blocks(t, 3), blocks(t, 2)
	g.send(mine...)
	c.send(frame(t, theirs...))
	eventually(t, "blocks wait for the store", func() bool { return n.server.Stats().QueueBlocks == 5 })
	n.stop()

	if away, before := g.away(); away.Reason != "drain" || away.ReconnectAfter != 0 || len(before) != 0 {
		t.Errorf("heard %+v and then %+v: want to be sent away, at once, and nothing stored before", before, away)
	}
	for told := false; !told; {
		for _, m := range c.hear().messages {
			_, told = m.(*wire.Goaway)
		}
	}
	close(hold)
	g.stored(mine...)
	c.stored(theirs...)
	g.leave()
	c.send(envelope(nil, websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")))
	n.end()
	if st := n.server.Stats(); st.Closed[websocket.CloseNormalClosure] != 2 || st.Connections != 0 {
		t.Errorf("sessions ended with %v, and %d are open: want two that left by themselves", st.Closed, st.Connections)
	}
}

func TestDrain_ServesAsBeforeUntilBalancersHaveNoticed(t *testing.T) {
	o := draining()
	o.DrainDelay = maxDrainDelay // until the test breaks the listener
	n := start(t, o, newMemory("arena", "late"))
	if status, _, body := n.get("/readyz"); status != http.StatusOK {
		t.Fatalf("/readyz is %d %s", status, body)
	}
	before := n.agent()
	g, _ := n.join("arena")
	n.stop()
	eventually(t, "the node says that it is not ready", func() bool {
		status, _, _ := n.get("/readyz")
		return status == http.StatusServiceUnavailable
	})
	if during := n.agent(); !strings.HasPrefix(before, "up ready ") || during != "up drain\n" {
		t.Errorf("the agent said %q before and %q while the node drains", before, during)
	}
	late, _ := n.join("late") // by a load balancer that has not noticed
	for _, g := range []*gateway{g, late} {
		list := blocks(t, 2)
		g.send(list...)
		g.stored(list...)
	}
	if err := n.server.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-n.ended:
		n.ended <- nil
		if err == nil {
			t.Error("Run says nothing of its listener's end")
		}
	case <-time.After(patience):
		t.Fatal("a node that drains does not notice that its listener broke")
	}
}

func TestDrain_RefusesNewGatewaysAndEndsWithTheLastOne(t *testing.T) {
	o := draining()
	o.DrainDelay, o.Drain = 0, 24*time.Hour
	n := start(t, o, newMemory("arena", "refused"))
	g, _ := n.join("arena")
	n.stop()
	eventually(t, "a gateway is sent elsewhere", func() bool {
		conn, resp, err := dial(n, header("refused"), wire.Subprotocol)
		if err == nil {
			conn.Close() // it was faster than the drain
			return false
		}
		return resp != nil && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != ""
	})
	list := blocks(t, 2)
	g.send(list...)
	g.stored(list...)
	g.leave()
	n.end()
	if _, err := net.DialTimeout("tcp", n.server.AgentAddr().String(), patience); err == nil {
		t.Error("the agent's address is still open")
	}
}

func TestDrain_IsSpread(t *testing.T) {
	o := draining()
	o.DrainDelay, o.Drain = 0, time.Second
	ids := make([]string, 20)
	for i := range ids {
		ids[i] = fmt.Sprintf("venue-%d", i)
	}
	n := start(t, o, newMemory(ids...))
	gone := make(chan time.Time, len(ids))
	for _, id := range ids {
		g, _ := n.join(id)
		go func() { // ends with the test: the node closes what stays
			g.hear()
			gone <- time.Now()
			g.conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
			g.hear()
		}()
	}
	began := time.Now()
	n.stop()
	var times []time.Duration
	for range ids {
		select {
		case at := <-gone:
			times = append(times, at.Sub(began))
		case <-time.After(patience):
			t.Fatalf("%d of %d gateways were sent away", len(times), len(ids))
		}
	}
	n.end()
	// The last one can't be told before its time has come; a busy machine makes it later.
	if last := times[len(times)-1]; last < o.Drain {
		t.Errorf("all were sent away after %v, want a spread over %v: %v", last, o.Drain, times)
	}
}

func TestDrain_GatewaysThatStayAreClosed(t *testing.T) {
	server := prepare(t, draining(), newMemory("arena", "field"))
	server.SetLeave(100 * time.Millisecond)
	n := run(t, server)
	g, _ := n.join("arena")
	c := newCourier(n, "field")
	c.join()
	n.stop()
	g.away()
	g.closed(websocket.CloseServiceRestart)
	c.closed(websocket.CloseServiceRestart)
	n.end()
}

func TestDrain_EndsAtOnceWhereNobodyIs(t *testing.T) {
	o := draining()
	o.Drain = 24 * time.Hour
	n := start(t, o, newMemory())
	n.end() // or it would not return within patience
}

// aging are the options of a node whose sessions are old at their first ping.
func aging() cloud.Options {
	o := options()
	o.Heartbeat, o.MaxAge = 2*time.Second, 300*time.Millisecond
	return o
}

func TestMaxAge_AnOldSessionIsSentAwayAndLeavesWhenAllIsStored(t *testing.T) {
	t.Parallel()
	n := start(t, aging(), newMemory("arena"))
	g, _ := n.join("arena")
	if away, before := g.away(); away.Reason != "rebalance" || away.ReconnectAfter != 0 || len(before) != 0 {
		t.Errorf("heard %+v and then %+v", before, away)
	}
	sent := blocks(t, 2)
	g.send(sent...) // crossed on the way
	g.stored(sent...)
	g.leave()
	n.join("arena")
}

func TestMaxAge_AGatewayThatStaysIsClosed(t *testing.T) {
	t.Parallel()
	server := prepare(t, aging(), newMemory("arena", "field"))
	server.SetLeave(100 * time.Millisecond)
	n := run(t, server)
	g, _ := n.join("arena")
	c := newCourier(n, "field")
	c.join()
	g.away()
	g.closed(websocket.CloseServiceRestart)
	c.closed(websocket.CloseServiceRestart)
}

// agent returns what the node says to an agent-check.
func (n *node) agent() string {
	n.t.Helper()
	conn, err := net.DialTimeout("tcp", n.server.AgentAddr().String(), patience)
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(conn)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(answer)
}

func TestAgent_WeighsBySessionsQueueAndLag(t *testing.T) {
	store, hold := newMemory("arena", "field"), make(gate)
	store.beforeRecord = hold.wait
	o := draining()
	o.DrainDelay, o.Drain, o.MaxGateways = 0, 0, 10
	n := start(t, o, store)
	if got := n.agent(); got != "up ready 100%\n" {
		t.Errorf("a node without load says %q", got)
	}
	g, _ := n.join("arena")
	n.join("field")
	if got := n.agent(); got != "up ready 80%\n" {
		t.Errorf("a node with two gateways of ten says %q", got)
	}
	_, _, metrics := n.get("/metrics")
	for _, want := range []string{"touchline_cloud_connections_max 10\n", "touchline_cloud_load_ratio 0.2\n", "touchline_cloud_draining 0\n",
		"touchline_cloud_record_lag_seconds 0\n", "touchline_cloud_queue_max_bytes 6.7108864e+07\n"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %q", want)
		}
	}
	g.send(blocks(t, 1)...)
	eventually(t, "the store's lag weighs more than the sessions", func() bool {
		st := n.server.Stats()
		return st.Lag > 3*time.Second && st.Load() > 0.2
	})
	var percent int
	if _, err := fmt.Sscanf(n.agent(), "up ready %d%%\n", &percent); err != nil || percent < 1 || percent > 70 {
		t.Errorf("a node whose store lags has a weight of %d%%, %v", percent, err)
	}
	close(hold)
	eventually(t, "nothing waits", func() bool { return n.server.Stats().Lag == 0 })
}

// A store that is away is away for all nodes at once: the agent, whose word
// counts at once, would have HAProxy let nobody in.
func TestAgent_LeavesAStoreThatIsAwayToTheHealthCheck(t *testing.T) {
	o := draining()
	n := start(t, o, &unreachable{memory: newMemory()})
	if got, want := n.agent(), "up ready 1%\n"; got != want {
		t.Errorf("the agent says %q, want %q", got, want)
	}
	if err := n.server.Ready(t.Context()); err == nil {
		t.Error("/readyz says that all is well")
	}
}

func TestAgent_PortInUseSaysWhichSetting(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	o := draining()
	o.AgentListen = taken.Addr().String()
	server := prepare(t, o, newMemory())
	if err := server.Listen(); err == nil || !strings.Contains(err.Error(), "balancer.agent_listen") {
		t.Errorf("%v", err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}
