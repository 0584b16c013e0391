package cloud_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/wire"
)

// An awayStore does not answer whose gateways moved while it is away.
type awayStore struct {
	*sqlite.Store
	away  atomic.Bool
	asked atomic.Int64
}

func (s *awayStore) Overtaken(ctx context.Context, sessions map[string]uint64) ([]string, error) {
	s.asked.Add(1)
	if s.away.Load() {
		return nil, errors.New("this store is away")
	}
	return s.Store.Overtaken(ctx, sessions)
}

// TestOwner_AGatewayThatMovedIsServedAtOneNode leaves the link to the old node
// open, as a half-open one is: nothing comes over it any more.
func TestOwner_AGatewayThatMovedIsServedAtOneNode(t *testing.T) {
	dir := t.TempDir()
	old, moved := startHasty(t, openSQLite(t, dir, "arena", "hall")), startHasty(t, openSQLite(t, dir)) // as two processes have it
	list := blocks(t, 3)
	g, _ := old.join("arena")
	g.send(list...)
	g.stored(list...)
	other, _ := old.join("hall")

	began := time.Now()
	g2, welcome := moved.join("arena", wire.Held{Epoch: list[0].Epoch, Oldest: 1, Next: 31})
	t.Logf("MEASURED a gateway resumed at another node in %s", time.Since(began))
	if len(welcome.Stored) != 1 || welcome.Stored[0].Ranges.Count() != 30 {
		t.Errorf("welcome names %v: want the 30 samples that the other node recorded", welcome.Stored)
	}
	g.closed(wire.CloseSuperseded)
	t.Logf("MEASURED its session at the old node ended after %s", time.Since(began))
	eventually(t, "the old node has forgotten it", func() bool { return old.server.Stats().Connections == 1 })
	if n := old.server.Stats().Overtaken; n != 1 {
		t.Errorf("the old node counts %d sessions that were overtaken, want 1", n)
	}
	more := block(t, list[0].Epoch, 31, readings(10, time.Now().UnixNano()))
	g2.send(more)
	g2.stored(more)
	if n := moved.server.Stats().Overtaken; n != 0 {
		t.Errorf("the new node ended %d sessions", n)
	}
	hall := blocks(t, 1)
	other.send(hall...) // nobody took it for one that moved
	other.stored(hall...)
}

// TestOwner_ClonesAtTwoNodesAreServedInTurns has two boxes that both speak all
// the time: neither is silent, and still one of the sessions ends.
func TestOwner_ClonesAtTwoNodesAreServedInTurns(t *testing.T) {
	dir := t.TempDir()
	opts := options()
	opts.Heartbeat = 300 * time.Millisecond // at which also those that are heard of are looked at
	var nodes []*node
	for i := range 2 {
		store := openSQLite(t, dir)
		if i == 0 {
			store = openSQLite(t, dir, "arena")
		}
		server := prepare(t, opts, store)
		server.SetShutdown(50 * time.Millisecond)
		server.SetOwner(20 * time.Millisecond)
		nodes = append(nodes, run(t, server))
	}
	g, _ := nodes[0].join("arena")
	stop, spoken := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(spoken)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if g.conn.WriteControl(9, nil, time.Now().Add(patience)) != nil {
					return
				}
			}
		}
	}()
	defer func() { <-spoken }()
	defer close(stop)
	nodes[1].join("arena")
	g.closed(wire.CloseSuperseded)
}

// TestOwner_WhatAnOldSessionSaysIsRefused has the old node look at nothing: the
// store alone refuses its clock, which is a newer message of an older session.
func TestOwner_WhatAnOldSessionSaysIsRefused(t *testing.T) {
	boot := touchline.Boot{1}
	says := func(offset int64) *wire.Clock {
		return &wire.Clock{ClockOffset: wire.ClockOffset{Boot: boot, Offset: offset}, State: touchline.ClockSynchronised.String()}
	}
	lost := &wire.Lost{ID: 1, Epoch: touchline.NewEpoch(), Ranges: touchline.Ranges{{First: 1, Last: 5}}, Cause: "age"}
	for name, late := range map[string]wire.Message{"clock": says(2e18), "lost": lost} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := openSQLite(t, dir, "arena")
			server := prepare(t, options(), store)
			server.SetShutdown(50 * time.Millisecond)
			server.SetOwner(time.Hour)
			old, moved := run(t, server), startHasty(t, openSQLite(t, dir))
			g, _ := old.join("arena")
			g2, welcome := moved.join("arena")
			g2.say(says(1e18))
			next[*wire.Ack](g2)
			g.say(late)
			for _, m := range g.closed(wire.CloseSuperseded) {
				if _, ok := m.(*wire.Ack); ok {
					t.Errorf("the old session got %+v", m)
				}
			}
			gateways, err := store.Gateways(t.Context())
			if err != nil || gateways[0].Lost != 0 {
				t.Errorf("%+v, %v: want nothing lost", gateways, err)
			}
			// The same is taken from the session that counts: the message was not the reason.
			g2.say(late)
			next[*wire.Ack](g2)
			if got, err := store.Overtaken(t.Context(), map[string]uint64{"arena": welcome.Session}); err != nil || len(got) != 0 {
				t.Errorf("Overtaken: %v %v", got, err)
			}
		})
	}
}

// TestOwner_AStoreThatIsAwayEndsNoSession, and what moved meanwhile is found
// when it is back.
func TestOwner_AStoreThatIsAwayEndsNoSession(t *testing.T) {
	dir := t.TempDir()
	store := &awayStore{Store: openSQLite(t, dir, "arena", "hall")}
	server := prepare(t, options(), store)
	server.SetShutdown(50 * time.Millisecond)
	server.SetOwner(5 * time.Millisecond)
	store.away.Store(true)
	old, moved := run(t, server), startHasty(t, openSQLite(t, dir))
	g, _ := old.join("arena")
	hall, _ := old.join("hall")
	moved.join("arena")
	asked := store.asked.Load()
	eventually(t, "the store was asked", func() bool { return store.asked.Load() > asked+3 })
	list := blocks(t, 1)
	hall.send(list...)
	hall.stored(list...)
	if st := old.server.Stats(); st.Overtaken != 0 || st.Connections != 2 {
		t.Errorf("%d sessions are open and %d were ended: want 2 and none", st.Connections, st.Overtaken)
	}
	store.away.Store(false)
	g.closed(wire.CloseSuperseded)
}

var _ cloud.Store = (*awayStore)(nil)
