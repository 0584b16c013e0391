package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"

	"touchline/cloud"
	"touchline/wire"
)

var errStore = errors.New("the disk is on holiday")

// poisoned says whether a batch has the block that fails it.
func poisoned(batch []cloud.Delivery, poison ...wire.Block) bool {
	return slices.ContainsFunc(batch, func(d cloud.Delivery) bool {
		return slices.ContainsFunc(poison, func(b wire.Block) bool { return b.Epoch == d.Block.Epoch && b.First == d.Block.First })
	})
}

func TestRecord_NothingIsAcknowledgedWhileTheStoreFails(t *testing.T) {
	store := newMemory("arena")
	var failing atomic.Bool
	failing.Store(true)
	var attempts atomic.Int64
	store.beforeRecord = func(context.Context, []cloud.Delivery) error {
		attempts.Add(1)
		if failing.Load() {
			return errStore
		}
		return nil
	}
	n := start(t, options(), store)
	g, _ := n.join("arena")
	sent := blocks(t, 30)
	g.send(sent...)
	eventually(t, "recording is tried many times", func() bool { return attempts.Load() > 50 })
	if status, _, body := n.get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, errStore.Error()) {
		t.Errorf("readyz: %d %s", status, body)
	}
	if status, _, _ := n.get("/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d: the process lives", status)
	}
	if st := n.server.Stats(); st.BlocksStored != 0 || st.KeptAside != 0 || st.QueueBlocks != 30 {
		t.Errorf("stats are %+v", st)
	}
	failing.Store(false)
	g.stored(sent...) // the first message since welcome is an ack of now
	eventually(t, "the node is ready again", func() bool { status, _, _ := n.get("/readyz"); return status == http.StatusOK })
	if st := n.server.Stats(); st.SamplesStored != 300 || st.KeptAside != 0 || st.QueueBlocks != 0 || st.QueueBytes != 0 {
		t.Errorf("stats are %+v", st)
	}
}

func TestRecord_BlocksThatWaitGoIntoOneTransaction(t *testing.T) {
	store := newMemory("a", "b")
	hold := make(gate)
	store.beforeRecord = hold.wait
	n := start(t, options(), store)
	a, _ := n.join("a")
	b, _ := n.join("b")
	of := map[*gateway][]wire.Block{a: blocks(t, 40), b: blocks(t, 40)}
	for g, list := range of {
		g.send(list...)
	}
	eventually(t, "all blocks wait", func() bool { return n.server.Stats().QueueBlocks == 80 })
	close(hold)
	for g, list := range of {
		g.stored(list...)
	}
	if got := len(store.batches); got > 2 {
		t.Errorf("%d transactions for 80 blocks of which 79 or fewer waited: %v", got, store.batches)
	}
}

func TestRecord_HalvingIsolatesThePoisonBlock(t *testing.T) {
	for _, count := range []int{1, 2, 100} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			store := newMemory("arena", "other")
			sent := blocks(t, 200)
			poison := sent[50 : 50+count]
			store.beforeRecord = func(_ context.Context, batch []cloud.Delivery) error {
				if poisoned(slices.DeleteFunc(slices.Clone(batch), func(d cloud.Delivery) bool { return d.Problem != "" }), poison...) {
					return errStore
				}
				return nil
			}
			n := start(t, options(), store)
			g, _ := n.join("arena")
			g.send(sent...)
			g.stored(sent...)
			if st := n.server.Stats(); st.KeptAside != uint64(count) || st.SamplesStored != uint64(10*(200-count)) {
				t.Errorf("%d blocks kept aside, %d samples stored", st.KeptAside, st.SamplesStored)
			}
			for _, d := range store.aside {
				if !strings.Contains(d.Problem, errStore.Error()) {
					t.Errorf("kept aside for %q", d.Problem)
				}
			}
		})
	}
}

// A full disk takes small blocks and refuses large ones, and takes those that
// have no samples beside them. That is no ground to keep one aside.
func TestRecord_NoBlockIsBlamedForAFullDisk(t *testing.T) {
	store := newMemory("arena")
	sent := blocks(t, 40)
	var full atomic.Bool
	full.Store(true)
	store.beforeRecord = func(_ context.Context, batch []cloud.Delivery) error {
		if full.Load() && (len(batch) > 1 || len(batch[0].Samples) > 0 && batch[0].Block.First > sent[9].First) {
			return fmt.Errorf("%w: no space", cloud.ErrUnavailable)
		}
		return nil
	}
	n := start(t, options(), store)
	g, _ := n.join("arena")
	g.send(sent...)
	eventually(t, "recording failed", func() bool { return n.server.Stats().RecordErrors > 8 })
	full.Store(false)
	g.stored(sent...)
	if st := n.server.Stats(); st.KeptAside != 0 || st.SamplesStored != uint64(10*len(sent)) {
		t.Errorf("%d blocks kept aside, %d samples stored", st.KeptAside, st.SamplesStored)
	}
}

func TestRecord_BlockThatCantBeKeptAsideHoldsUpNobody(t *testing.T) {
	store := newMemory("arena", "other")
	sent := blocks(t, 10)
	store.beforeRecord = func(_ context.Context, batch []cloud.Delivery) error {
		if poisoned(batch, sent[4]) {
			return errStore
		}
		return nil
	}
	n := start(t, options(), store)
	g, _ := n.join("arena")
	other, _ := n.join("other")
	g.send(sent[4]) // alone it could be the store's fault
	eventually(t, "recording failed", func() bool { return n.server.Stats().RecordErrors > 5 })
	theirs := blocks(t, 10)
	other.send(theirs...)
	other.stored(theirs...)
	g.closed(websocket.CloseInternalServerErr)
	if st := n.server.Stats(); st.KeptAside != 0 || st.QueueBlocks != 0 || st.QueueBytes != 0 {
		t.Errorf("stats are %+v", st)
	}
}

func TestRecord_RepeatTakesThePlaceOfTheBlockThatWaits(t *testing.T) {
	store := newMemory("arena")
	hold := make(gate)
	store.beforeRecord = hold.wait
	opts := options()
	opts.WindowBlocks = 8
	n := start(t, opts, store)
	sent := blocks(t, 8)
	var g *gateway
	for i := range uint64(5) { // a gateway that loses patience
		g, _ = n.join("arena")
		g.send(sent...)
		g.send(sent[0]) // and repeats itself
		g.say(&wire.Lost{ID: i + 1, Epoch: sent[0].Epoch, Cause: "max_age"})
		if ack := next[*wire.Ack](g); len(ack.Lost) != 1 { // so what came before it is queued
			t.Fatalf("heard %+v", ack)
		}
	}
	if st := n.server.Stats(); st.QueueBlocks != 8 {
		t.Errorf("%d blocks wait, want 8", st.QueueBlocks)
	}
	close(hold)
	g.stored(sent...)
	if st := n.server.Stats(); st.Repeats != 0 || st.SamplesStored != 80 || st.QueueBytes != 0 {
		t.Errorf("stats are %+v", st)
	}
	for range 3 { // the window is whole again
		g.send(sent...)
		g.stored(sent...)
	}
}

func TestRecord_WrongNumberOfOutcomesIsAnError(t *testing.T) {
	store := &forgetful{memory: newMemory("arena")}
	n := start(t, options(), store)
	g, _ := n.join("arena")
	b := blocks(t, 1)[0]
	g.send(b)
	g.stored(b)
	if n.server.Stats().RecordErrors != 1 {
		t.Error("the answer without outcomes was no error")
	}
}

// A forgetful store gives no outcomes the first time.
type forgetful struct {
	*memory
	once sync.Once
}

func (f *forgetful) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	first := false
	f.once.Do(func() { first = true })
	if first {
		return nil, nil
	}
	return f.memory.Record(ctx, batch)
}
