package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/wire"
)

// startCrowded starts a node that announces itself often and sends gateways away
// when the test says so.
func startCrowded(t testing.TB, store cloud.Store, above int) *node {
	opts := options()
	opts.ShedAbove = above
	server := prepare(t, opts, store)
	server.SetShutdown(50 * time.Millisecond)
	server.SetAnnounce(5 * time.Millisecond)
	server.SetShed(time.Hour) // two clocks would contradict one another
	return run(t, server)
}

func TestNodes_KnowOneAnotherUntilTheyEnd(t *testing.T) {
	dir := t.TempDir()
	store := openSQLite(t, dir, "arena")
	a, b := startCrowded(t, store, 0), startCrowded(t, openSQLite(t, dir), 0)
	eventually(t, "both know both", func() bool { return a.server.Stats().Nodes == 2 && b.server.Stats().Nodes == 2 })
	g, _ := b.join("arena")
	list := blocks(t, 2)
	g.send(list...)
	g.stored(list...)
	eventually(t, "the store says what the other one has", func() bool {
		nodes, err := store.Nodes(t.Context())
		if err != nil || len(nodes) != 2 {
			t.Fatalf("%+v %v", nodes, err)
		}
		for _, n := range nodes {
			if strings.HasSuffix(n.Name, b.addr) {
				return n.Sessions == 1 && n.MaxSessions == options().MaxGateways && !n.Lost()
			}
		}
		return false
	})
	if _, _, body := a.get("/metrics"); !strings.Contains(body, "\ntouchline_cloud_nodes 2\n") {
		t.Error("/metrics does not say that there are two nodes")
	}
	b.end()
	nodes, err := store.Nodes(t.Context())
	if err != nil || len(nodes) != 1 || !strings.HasSuffix(nodes[0].Name, a.addr) {
		t.Errorf("a node that ended in order is still there: %+v %v", nodes, err)
	}
	eventually(t, "the other one knows", func() bool { return a.server.Stats().Nodes == 1 })
}

// A muteStore does not take what nodes say of themselves: it fails, or hangs.
type muteStore struct {
	*sqlite.Store
	hangs bool
	asked atomic.Int64
}

func (s *muteStore) Announce(ctx context.Context, _ cloud.Node) ([]cloud.Sighting, error) {
	s.asked.Add(1)
	if s.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, errors.New("this store is away")
}

func (s *muteStore) Withdraw(ctx context.Context, _ string) error {
	_, err := s.Announce(ctx, cloud.Node{})
	return err
}

func TestNodes_AStoreThatTakesNoRowHoldsUpNothing(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs %t", hangs), func(t *testing.T) {
			store := &muteStore{Store: openSQLite(t, t.TempDir(), "arena"), hangs: hangs}
			n := startCrowded(t, store, 20)
			g, _ := n.join("arena")
			eventually(t, "it was tried again", func() bool { return store.asked.Load() > 3 })
			list := blocks(t, 1)
			g.send(list...)
			g.stored(list...)
			if st := n.server.Stats(); st.Nodes != 1 {
				t.Errorf("the node knows of %d", st.Nodes)
			}
			n.end()
		})
	}
}

// TestShed_GatewaysGoWhereThereIsRoom has all gateways at one node when another
// one joins, and the clock of its balance run fast.
func TestShed_GatewaysGoWhereThereIsRoom(t *testing.T) {
	const gateways = 20
	dir := t.TempDir()
	var ids []string
	for i := range gateways {
		ids = append(ids, fmt.Sprintf("venue-%d", i))
	}
	full := startCrowded(t, openSQLite(t, dir, ids...), 20)
	at := map[string]*gateway{}
	for _, id := range ids {
		at[id], _ = full.join(id)
	}
	now := time.Now()
	full.server.Shed(now)
	if n := full.server.Stats().SentAway["imbalance"]; n != 0 {
		t.Fatalf("%d gateways were sent away by a node that is alone", n)
	}
	empty := startCrowded(t, openSQLite(t, dir), 20)
	eventually(t, "they know one another", func() bool { return full.server.Stats().Nodes == 2 && empty.server.Stats().Nodes == 2 })

	heard := make(chan string, gateways)
	for id, g := range at {
		go func() {
			for {
				m, err := g.hear()
				if err != nil {
					return
				}
				if goaway, ok := m.(*wire.Goaway); ok && goaway.Reason == "rebalance" && goaway.ReconnectAfter == 0 {
					heard <- id
				}
			}
		}()
	}
	moved := 0
	// Each second of the balance is a step here; 15 s pass until those who went are
	// counted once.
	for step := range 300 {
		now = now.Add(time.Second)
		was := full.server.Stats().SentAway["imbalance"]
		full.server.Shed(now)
		empty.server.Shed(now)
		for range full.server.Stats().SentAway["imbalance"] - was {
			id := <-heard
			at[id].conn.Close()
			at[id], _ = empty.join(id) // leastconn
			moved++
			eventually(t, "both nodes see where it is", func() bool {
				nodes, err := sightings(t, dir)
				return err == nil && nodes[full.addr] == gateways-moved && nodes[empty.addr] == moved
			})
		}
		if step == 0 && moved != 0 {
			t.Fatal("it began before it had listened for others")
		}
	}
	if moved != gateways/2 {
		t.Errorf("%d of %d gateways moved, want half", moved, gateways)
	}
	if n := empty.server.Stats().SentAway["imbalance"]; n != 0 {
		t.Errorf("the node that got them sent %d back", n)
	}
	if _, _, body := full.get("/metrics"); !strings.Contains(body, fmt.Sprintf("\ntouchline_cloud_sessions_sent_away_total{cause=\"imbalance\"} %d\n", gateways/2)) {
		t.Error("/metrics does not say how many were sent away for balance")
	}
	for _, g := range at {
		g.conn.Close()
	}
}

// sightings returns the sessions of each node, by its address.
func sightings(t testing.TB, dir string) (map[string]int, error) {
	store := openSQLite(t, dir)
	list, err := store.Nodes(t.Context())
	nodes := map[string]int{}
	for _, n := range list {
		nodes[n.Name[strings.LastIndex(n.Name, " ")+1:]] = n.Sessions
	}
	return nodes, err
}

// TestShed_AGatewayThatStaysIsClosed asks gateways to leave that don't hear it.
func TestShed_AGatewayThatStaysIsClosed(t *testing.T) {
	dir := t.TempDir()
	var ids []string
	for i := range 6 {
		ids = append(ids, fmt.Sprintf("venue-%d", i))
	}
	opts := options()
	opts.ShedAbove = 20
	server := prepare(t, opts, openSQLite(t, dir, ids...))
	server.SetShutdown(50 * time.Millisecond)
	server.SetAnnounce(5 * time.Millisecond)
	server.SetLeave(10 * time.Second)
	full := run(t, server)
	for _, id := range ids {
		full.join(id)
	}
	startCrowded(t, openSQLite(t, dir), 20)
	eventually(t, "it knows of the other", func() bool { return full.server.Stats().Nodes == 2 })
	now := time.Now()
	for full.server.Stats().SentAway["imbalance"] == 0 {
		now = now.Add(time.Second)
		full.server.Shed(now)
	}
	if n := full.server.Stats().Connections; n != len(ids) {
		t.Fatalf("%d of %d are connected", n, len(ids))
	}
	full.server.Shed(now.Add(10 * time.Second))
	eventually(t, "the one that stayed was closed", func() bool { return full.server.Stats().Connections < len(ids) })
	if n := full.server.Stats().Closed[1012]; n == 0 {
		t.Errorf("closed: %v, want 1012", full.server.Stats().Closed)
	}
}
