package cloud_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/wire"
)

// A slowStore is the record store as a node sees it that is slow: what it is
// about to record waits for release, or is recorded and seems to have failed.
type slowStore struct {
	*sqlite.Store

	mu      sync.Mutex // covers what follows
	held    chan struct{}
	forgets bool
	waiting int
}

func (s *slowStore) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = make(chan struct{})
	}
}

func (s *slowStore) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		close(s.held)
		s.held = nil
	}
}

func (s *slowStore) blocksWaiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

var errForgotten = errors.New("the answer of the record store got lost")

func (s *slowStore) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	s.mu.Lock()
	held := s.held
	s.waiting += len(batch)
	s.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	outcomes, err := s.Store.Record(ctx, batch)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting -= len(batch)
	if err == nil && s.forgets {
		s.forgets = false
		return nil, errForgotten
	}
	return outcomes, err
}

// TestNodes_ABlockInTheOldNodesQueueIsNoSecondOne has a gateway that moves to
// another node while its old one has its blocks and is slow. Both record them,
// in either order.
func TestNodes_ABlockInTheOldNodesQueueIsNoSecondOne(t *testing.T) {
	for _, first := range []string{"old", "new"} {
		t.Run(first+" records first", func(t *testing.T) {
			dir := t.TempDir()
			stores := []*slowStore{{Store: openSQLite(t, dir, "arena")}, {Store: openSQLite(t, dir)}} // as two processes have it
			old, moved := startHasty(t, stores[0]), startHasty(t, stores[1])
			list := blocks(t, 5)
			stores[0].hold()
			stores[1].hold()
			g, _ := old.join("arena")
			g.send(list...)
			eventually(t, "the old node has the blocks", func() bool { return old.server.Stats().QueueBlocks == len(list) && stores[0].blocksWaiting() > 0 })
			held := wire.Held{Epoch: list[0].Epoch, Oldest: 1, Next: 51}
			g2, welcome := moved.join("arena", held)
			if len(welcome.Stored) != 0 {
				t.Errorf("welcome names %v, and nothing is stored", welcome.Stored)
			}
			more := block(t, list[0].Epoch, 51, readings(10, time.Now().UnixNano()))
			g2.send(append(slices.Clone(list), more)...)
			eventually(t, "the new node has them too", func() bool {
				return moved.server.Stats().QueueBlocks == len(list)+1 && stores[1].blocksWaiting() > 0
			})
			switch first {
			case "old":
				stores[0].release()
				eventually(t, "the old node has recorded them", func() bool { return old.server.Stats().QueueBlocks == 0 })
				stores[1].release()
				g2.stored(append(slices.Clone(list), more)...)
			case "new":
				stores[1].release()
				g2.stored(append(slices.Clone(list), more)...)
				stores[0].release()
				eventually(t, "the old node has recorded them", func() bool { return old.server.Stats().QueueBlocks == 0 })
			}
			auditNodes(t, dir, []*node{old, moved}, "arena", 60)
		})
	}
}

// auditNodes demands that the store has samples 1 to n of one epoch once each,
// nothing aside, and that the nodes together counted them once.
func auditNodes(t testing.TB, dir string, nodes []*node, gateway string, n uint64) {
	t.Helper()
	var counted, aside uint64
	for _, node := range nodes {
		node.end()
		st := node.server.Stats()
		counted, aside = counted+st.SamplesStored, aside+st.KeptAside
	}
	store := openSQLite(t, dir)
	audited, err := store.Audit(t.Context())
	if err != nil || audited.Samples != n || audited.KeptAside != 0 || aside != 0 {
		t.Errorf("the store has %d samples and %d blocks aside, %v: want %d and none", audited.Samples, audited.KeptAside, err, n)
	}
	if counted > n {
		t.Errorf("the nodes counted %d samples, and there are %d", counted, n)
	}
	seen := map[uint64]bool{}
	err = store.Samples(t.Context(), cloud.Query{Gateway: gateway}, func(r cloud.Record) error {
		if seen[r.Seq] {
			return fmt.Errorf("number %d is there twice", r.Seq)
		}
		seen[r.Seq] = true
		return nil
	})
	if err != nil || uint64(len(seen)) != n {
		t.Errorf("%d numbers of %d are there: %v", len(seen), n, err)
	}
}

// TestNodes_AGatewayThatWandersIsStoredOnce is the same with whatever can come
// between: three nodes, of which each may be slow, or told that a commit failed
// that did not, and a gateway that goes from one to the next without an end of its
// sessions, and sends again what it was not told to be stored, in any order.
func TestNodes_AGatewayThatWandersIsStoredOnce(t *testing.T) {
	checks := "6" // each half a second
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		checks = "200"
	}
	was := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
	began := time.Now()
	defer func() { t.Logf("MEASURED %s runs in %s", checks, time.Since(began).Round(time.Millisecond)) }()
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		var stores []*slowStore
		var nodes []*node
		for i := range 3 {
			s := &slowStore{}
			if i == 0 {
				s.Store = openSQLite(t, dir, "arena")
			} else {
				s.Store = openSQLite(t, dir)
			}
			stores = append(stores, s)
			nodes = append(nodes, startHasty(t, s))
		}
		epoch := touchline.NewEpoch()
		var list []wire.Block
		var told touchline.Ranges // what was called stored
		var g *gateway
		var conns []io.Closer
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		grow := func() {
			n := rapid.IntRange(1, 5).Draw(rt, "blocks")
			for range min(n, 200-len(list)) { // a session's window is 256
				list = append(list, block(t, epoch, uint64(1+10*len(list)), readings(10, int64(1+len(list))*1e9)))
			}
		}
		move := func() {
			to := rapid.IntRange(0, 2).Draw(rt, "node")
			var welcome *wire.Welcome
			g, welcome = nodes[to].join("arena", wire.Held{Epoch: epoch, Oldest: 1, Next: uint64(1 + 10*len(list))})
			conns = append(conns, g.conn)
			for _, er := range welcome.Stored {
				told.AddAll(er.Ranges)
			}
		}
		send := func() {
			var unsent []wire.Block
			for _, b := range list {
				if !told.Contains(b.Range()) {
					unsent = append(unsent, b)
				}
			}
			if len(unsent) == 0 {
				return
			}
			if rapid.Bool().Draw(rt, "any order") {
				random := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "order"), 0))
				random.Shuffle(len(unsent), func(i, j int) { unsent[i], unsent[j] = unsent[j], unsent[i] })
			}
			g.send(unsent[:rapid.IntRange(1, len(unsent)).Draw(rt, "of them")]...)
		}
		grow()
		move()
		rt.Repeat(map[string]func(*rapid.T){
			"grow":    func(*rapid.T) { grow() },
			"move":    func(*rapid.T) { move(); send() },
			"hold":    func(rt *rapid.T) { stores[rapid.IntRange(0, 2).Draw(rt, "slow")].hold() },
			"release": func(rt *rapid.T) { stores[rapid.IntRange(0, 2).Draw(rt, "quick")].release() },
			"forget": func(rt *rapid.T) {
				s := stores[rapid.IntRange(0, 2).Draw(rt, "forgets")]
				s.mu.Lock()
				s.forgets = true
				s.mu.Unlock()
			},
		})
		for _, s := range stores {
			s.release()
		}
		move()
		var left []wire.Block
		for _, b := range list {
			if !told.Contains(b.Range()) {
				left = append(left, b)
			}
		}
		if len(left) > 0 {
			g.send(left...)
			g.stored(left...)
		}
		for _, n := range nodes {
			eventually(t, "the queues to be empty", func() bool { return n.server.Stats().QueueBlocks == 0 })
		}
		auditNodes(t, dir, nodes, "arena", uint64(10*len(list)))
	})
}
