package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/jetstream"
	"touchline/uplink"
	"touchline/wire"
)

// openQueue opens an embedded queue in a folder of its own.
func openQueue(t testing.TB, maxBytes int64) *jetstream.Queue {
	t.Helper()
	q, err := jetstream.Open(context.Background(), jetstream.Options{
		Folder: t.TempDir(), Store: "memory", Shards: 2, Replicas: 1, MaxBytes: maxBytes, MaxAge: time.Hour,
		Duplicates: 2 * time.Minute, AckWait: 2 * time.Second,
	}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	during(t, "the queue", q.Run)
	return q
}

// during has something run until the test or end is called.
func during(t testing.TB, name string, run func(context.Context) error) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	end = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(end)
	return end
}

func prepareQueued(t testing.TB, opts cloud.Options, store cloud.Store, q cloud.Queue) *cloud.Server {
	t.Helper()
	server, err := cloud.NewQueued(opts, store, q, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	server.SetRetry(time.Millisecond, 20*time.Millisecond)
	return server
}

// record has a process record what a queue holds.
func record(t testing.TB, store cloud.Recorder, source cloud.Source) (r *cloud.Recording, end func()) {
	t.Helper()
	r = cloud.NewRecording(store, source, cloud.RecordingOptions{QueueBytes: 64 << 20}, logger(t))
	r.SetRetry(time.Millisecond, 20*time.Millisecond)
	return r, during(t, "a recording", r.Run)
}

// acceptedOnly reads acks until all of blocks are accepted. None may be stored.
func (g *gateway) acceptedOnly(blocks ...wire.Block) {
	g.t.Helper()
	have := map[touchline.Epoch]*touchline.Ranges{}
	for slices.ContainsFunc(blocks, func(b wire.Block) bool { return have[b.Epoch] == nil || !have[b.Epoch].Contains(b.Range()) }) {
		ack := next[*wire.Ack](g)
		if len(ack.Stored) > 0 {
			g.t.Fatalf("stored came before anything was recorded: %+v", ack)
		}
		for _, er := range ack.Accepted {
			if have[er.Epoch] == nil {
				have[er.Epoch] = new(touchline.Ranges)
			}
			have[er.Epoch].AddAll(er.Ranges)
		}
	}
}

func TestQueue_AcceptedWhenHeldAndStoredWhenCommitted(t *testing.T) {
	store := newMemory("arena.7", "other")
	q := openQueue(t, 64<<20)
	a := run(t, prepareQueued(t, options(), store, q))
	b := run(t, prepareQueued(t, options(), store, q))
	g, welcome := a.join("arena.7")
	h, _ := b.join("other")
	of := map[*gateway][]wire.Block{g: blocks(t, 300), h: blocks(t, 20)}
	of[g] = append(of[g], undecodable(touchline.NewEpoch(), 1, "?"))
	for gateway, sent := range of {
		for part := range slices.Chunk(sent, welcome.Window.Blocks) {
			gateway.send(part...)
			gateway.acceptedOnly(part...)
		}
	}
	if len(store.blocks) != 0 {
		t.Fatalf("%d blocks are stored, and nobody records", len(store.blocks))
	}
	if waits, _, err := q.Waiting(t.Context()); err != nil || waits != 321 {
		t.Errorf("the queue holds %d blocks, %v: want 321", waits, err)
	}

	// Another process, which holds no session, records.
	r, _ := record(t, store, q)
	for gateway, sent := range of {
		gateway.stored(sent...)
	}
	eventually(t, "the queue is empty", func() bool {
		waits, _, err := q.Waiting(t.Context())
		return err == nil && waits == 0
	})
	if st := r.Stats(); st.SamplesStored != 3200 || st.KeptAside != 1 { // how often a queue gives a block out is its own affair
		t.Errorf("recorded %+v", st)
	}
	if st := a.server.Stats(); st.BlocksAccepted != 301 || st.BlocksStored != 0 || st.QueueBlocks != 0 {
		t.Errorf("the node counts %+v", st)
	}
}

// A gateway that was told stored while it sent a block again has more under way
// than its node thinks.
func TestQueue_MoreThanTheWindowWaitsAndIsNoBreach(t *testing.T) {
	store := newMemory("arena")
	q := openQueue(t, 64<<20)
	opts := options()
	opts.WindowBlocks = 8
	n := run(t, prepareQueued(t, opts, store, q))
	record(t, store, q)
	g, _ := n.join("arena")
	sent := blocks(t, 120)
	g.send(sent...)
	g.stored(sent...)
	if st := n.server.Stats(); st.BlocksAccepted != 120 || len(st.Closed) != 0 {
		t.Errorf("stats are %+v", st)
	}
}

// A deaf queue loses every notice.
type deaf struct{ *jetstream.Queue }

func (deaf) Tell(string, []wire.EpochRanges) error { return errors.New("nobody hears this") }

func TestQueue_LostNoticeIsMadeUpFor(t *testing.T) {
	store := newMemory("arena")
	q := openQueue(t, 64<<20)
	server := prepareQueued(t, options(), store, q)
	server.SetReask(20*time.Millisecond, 100*time.Millisecond)
	n := run(t, server)
	g, _ := n.join("arena")
	sent := blocks(t, 30)
	g.send(sent...)
	g.acceptedOnly(sent...)
	g.acceptedOnly(sent...) // said again while nothing is stored
	record(t, store, deaf{q})
	g.stored(sent...)
	if n.server.Stats().NoticesLost == 0 {
		t.Error("no lost notice is counted")
	}
}

// What was accepted in another session, at another node, is stored for this one.
func TestQueue_GatewayThatMovedHearsOfWhatItLeft(t *testing.T) {
	store := newMemory("arena")
	q := openQueue(t, 64<<20)
	a := run(t, prepareQueued(t, options(), store, q))
	server := prepareQueued(t, options(), store, q)
	server.SetReask(20*time.Millisecond, 100*time.Millisecond)
	b := run(t, server)
	sent := blocks(t, 30)
	g, _ := a.join("arena")
	g.send(sent...)
	g.acceptedOnly(sent...)
	g.conn.Close()

	g, _ = b.join("arena")
	g.send(sent...) // as a gateway does that does not find them in welcome
	g.acceptedOnly(sent...)
	_, end := record(t, store, q)
	g.stored(sent...)
	end()

	// Again, when the queue knows them still and holds them no more.
	g.conn.Close()
	g, _ = b.join("arena")
	g.send(sent...)
	g.stored(sent...)
	for key, d := range store.blocks {
		if d == nil || len(store.blocks) != 30 {
			t.Fatalf("%s: %v; %d blocks are stored", key, d, len(store.blocks))
		}
	}
}

// A damned block fails each transaction that it is in.
func TestQueue_BlockThatCannotBeRecordedHoldsUpNothing(t *testing.T) {
	store := newMemory("arena")
	sent := blocks(t, 100)
	damned := sent[40]
	store.beforeRecord = func(_ context.Context, batch []cloud.Delivery) error {
		if poisoned(batch, damned) {
			return errStore
		}
		return nil
	}
	q := openQueue(t, 64<<20)
	n := run(t, prepareQueued(t, options(), store, q))
	r, _ := record(t, store, q)
	g, _ := n.join("arena")
	g.send(sent...)
	g.stored(slices.Delete(slices.Clone(sent), 40, 41)...)
	eventually(t, "the queue is empty", func() bool {
		waits, _, err := q.Waiting(t.Context())
		return err == nil && waits == 0
	})
	if st := r.Stats(); st.QueueRefused != 1 {
		t.Errorf("%d blocks were refused", st.QueueRefused)
	}
	if list, _ := store.Stored(t.Context(), "arena", []touchline.Epoch{damned.Epoch}); list[0].Ranges.Overlaps(damned.Range()) {
		t.Error("the block is stored")
	}
}

// The record store is away: nodes accept until the queue is full, gateways
// pause then, and when it is back all is stored, once, and all go on.
func TestQueue_StoreThatIsAwayStopsNobodyForGood(t *testing.T) {
	ids := []string{"a", "b"}
	store := newMemory(ids...)
	var away atomic.Bool
	away.Store(true)
	store.beforeRecord = func(context.Context, []cloud.Delivery) error {
		if away.Load() {
			return fmt.Errorf("%w: it is away", cloud.ErrUnavailable)
		}
		return nil
	}
	opts := options()
	opts.WindowBytes, opts.WindowBlocks, opts.QueueBytes = 256<<10, 16, 1<<20 // two windows fit half the queue in memory
	q := openQueue(t, 2<<20)
	server := prepareQueued(t, opts, store, q)
	server.SetReask(50*time.Millisecond, time.Second)
	n := run(t, server)
	record(t, store, q)

	var shelves []*shelf
	var uplinks []*uplink.Uplink
	for _, id := range ids {
		s := &shelf{blocks: noise(150, 20_000)} // 3 MB each
		o := uplink.Defaults()
		o.URLs, o.Gateway, o.Software = []string{"ws://" + n.addr}, id, "test/1"
		o.Token = func() (string, error) { return token(id), nil }
		o.BackoffBase, o.BackoffCap = time.Millisecond, 10*time.Millisecond
		u, err := uplink.New(o, s, logger(t))
		if err != nil {
			t.Fatal(err)
		}
		shelves, uplinks = append(shelves, s), append(uplinks, u)
		during(t, "uplink "+id, u.Run)
	}
	eventually(t, "the queue is full and the gateways wait", func() bool { return server.Stats().Window < opts.WindowBytes/2 })
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" { // gateways lose their patience and send again what is accepted
		select {
		case <-time.After(10 * time.Minute):
		case <-t.Context().Done():
		}
	}
	held := server.Stats().BlocksAccepted
	if held == 0 || len(store.blocks) > 0 {
		t.Errorf("%d blocks are accepted and %d stored", held, len(store.blocks))
	}
	away.Store(false)
	eventually(t, "all is stored, and all windows are back", func() bool {
		return !slices.ContainsFunc(shelves, func(s *shelf) bool { return !s.empty() }) && server.Stats().Window == opts.WindowBytes
	})
	if len(store.blocks) != 300 {
		t.Errorf("%d blocks are stored: want 300", len(store.blocks))
	}
	for _, u := range uplinks {
		if st := u.Stats(); st.Sessions != 1 {
			t.Errorf("%d sessions: %s", st.Sessions, st.LastError)
		}
	}
	t.Logf("MEASURED a queue of 2 MiB accepted %d blocks of 20,000 bytes while the store was away", held)
}
