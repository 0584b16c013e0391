package cloud_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
	"touchline/uplink"
	"touchline/wire"
)

func TestWindow_FollowsHowLongBlocksWaitToBeStored(t *testing.T) {
	store := newMemory("arena", "late")
	hold := make(gate)
	store.beforeRecord = hold.wait
	server := prepare(t, options(), store)
	server.SetLoad(20*time.Millisecond, 200*time.Millisecond)
	n := run(t, server)
	g, welcome := n.join("arena")
	full := welcome.Window
	sent := blocks(t, 3)
	g.send(sent...) // 3 blocks are no full queue: it is the time that counts
	quarter := wire.Window{Bytes: full.Bytes / 4, Blocks: full.Blocks / 4}
	if w := next[*wire.NewWindow](g).Window; w != quarter {
		t.Errorf("the window of a store that lags is %+v, want %+v", w, quarter)
	}
	if w := next[*wire.NewWindow](g).Window; w != (wire.Window{}) {
		t.Errorf("the window of a store that stands is %+v, want a pause", w)
	}
	late, welcome := n.join("late")
	if welcome.Window != (wire.Window{}) {
		t.Errorf("a gateway that comes meanwhile is offered %+v", welcome.Window)
	}
	ponged := false
	g.conn.SetPongHandler(func(string) error { ponged = true; return nil })
	for id := uint64(1); !ponged; id++ { // the session goes on but for blocks
		if err := g.conn.WriteControl(websocket.PingMessage, []byte("alive?"), time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		g.say(&wire.Lost{ID: id, Epoch: sent[0].Epoch, Cause: "max_age"})
		if ack := next[*wire.Ack](g); len(ack.Lost) == 0 || len(ack.Stored) > 0 {
			t.Errorf("heard %+v", ack)
		}
	}
	close(hold)
	for _, g := range []*gateway{g, late} {
		for w := (wire.Window{}); w != full; { // acks come before it or after
			m, err := g.hear()
			if err != nil {
				t.Fatal(err)
			}
			if m, ok := m.(*wire.NewWindow); ok {
				w = m.Window
			}
		}
	}
	g.send(sent...)
	g.stored(sent...)
	if st := n.server.Stats(); st.Window != full.Bytes || st.Connections != 2 {
		t.Errorf("stats are %+v", st)
	}
}

// A shelf is the buffer of a gateway, in memory.
type shelf struct {
	blocks []wire.Block // of one epoch, in order

	mu     sync.Mutex // covers stored
	stored touchline.Ranges
}

func (s *shelf) Next(ctx context.Context, after touchline.Position, maxBytes int) ([]wire.Block, error) {
	i := slices.IndexFunc(s.blocks, func(b wire.Block) bool { return b.First > after.Seq })
	if i < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	n, bytes := i+1, len(s.blocks[i].Data)
	for n < len(s.blocks) && bytes+len(s.blocks[n].Data) <= maxBytes {
		bytes += len(s.blocks[n].Data)
		n++
	}
	return s.blocks[i:n], nil
}

func (s *shelf) Ack(stored []wire.EpochRanges, _ []uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, er := range stored {
		s.stored.AddAll(er.Ranges)
	}
	return nil
}

func (s *shelf) Reconcile([]wire.EpochRanges) error { return nil }

func (s *shelf) Held() ([]wire.Held, []wire.Lost) {
	last := s.blocks[len(s.blocks)-1]
	return []wire.Held{{Epoch: last.Epoch, Oldest: 1, Next: last.Last() + 1}}, nil
}

func (s *shelf) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored.Contains(touchline.Range{First: 1, Last: s.blocks[len(s.blocks)-1].Last()})
}

// A trouble is what a record store does with one transaction.
type trouble struct {
	delay    time.Duration
	fails    bool
	recorded bool // though it says that it failed
}

// A troubled store has a list of troubles, and none after them.
type troubled struct {
	*memory
	mu   sync.Mutex
	list []trouble
}

func (s *troubled) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	s.mu.Lock()
	var now trouble
	if len(s.list) > 0 {
		now, s.list = s.list[0], s.list[1:]
	}
	s.mu.Unlock()
	timer := time.NewTimer(now.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if now.fails && !now.recorded {
		return nil, fmt.Errorf("%w: a test's trouble", cloud.ErrUnavailable)
	}
	outcomes, err := s.memory.Record(ctx, batch)
	if now.fails {
		return nil, fmt.Errorf("%w: a test's trouble, after the commit", cloud.ErrUnavailable)
	}
	return outcomes, err
}

// Whatever the record store does, for as long as it does it: when it is well
// again, every gateway has its window back and every block is stored.
func TestWindow_NoGatewayStarvesForGood(t *testing.T) {
	paused := 0
	rapid.Check(t, func(rt *rapid.T) {
		ids := []string{"a", "b", "c", "d"}[:rapid.IntRange(1, 4).Draw(rt, "gateways")]
		store := &troubled{memory: newMemory(ids...)}
		store.list = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) trouble {
			delay := time.Duration(rapid.IntRange(0, 12).Draw(t, "ms")) * time.Millisecond
			return trouble{delay, rapid.Bool().Draw(t, "fails"), rapid.Bool().Draw(t, "recorded")}
		}), 0, 12).Draw(rt, "troubles")
		opts := options()
		opts.WindowBytes = wire.MaxBlockBytes
		opts.WindowBlocks = rapid.IntRange(1, 16).Draw(rt, "window")
		opts.QueueBytes = 1 << 20
		server := prepare(t, opts, store)
		server.SetRetry(time.Millisecond, 2*time.Millisecond)
		server.SetLoad(2*time.Millisecond, 6*time.Millisecond)
		n := run(t, server)
		defer n.end()

		size := rapid.IntRange(1, 40_000).Draw(rt, "size")
		var shelves []*shelf
		var uplinks []*uplink.Uplink
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for _, id := range ids {
			s := &shelf{blocks: noise(rapid.IntRange(1, 40).Draw(rt, "blocks"), size)}
			o := uplink.Defaults()
			o.URLs, o.Gateway, o.Software = []string{"ws://" + n.addr}, id, "test/1"
			o.Token = func() (string, error) { return token(id), nil }
			o.BackoffBase, o.BackoffCap = time.Millisecond, 10*time.Millisecond
			u, err := uplink.New(o, s, logger(t))
			if err != nil {
				t.Fatal(err)
			}
			shelves, uplinks = append(shelves, s), append(uplinks, u)
			wg.Go(func() {
				if err := u.Run(ctx); err != nil {
					t.Errorf("uplink %s: %v", id, err)
				}
			})
		}
		defer func() {
			if !t.Failed() {
				return
			}
			for i, u := range uplinks {
				t.Logf("%+v %v", u.Stats(), shelves[i].stored)
			}
			t.Logf("%+v", server.Stats())
		}()
		eventually(t, "all is stored, and all windows are back", func() bool {
			window := uplinks[0].Stats().Window
			if server.Stats().Window == 0 {
				paused++
			}
			for i, u := range uplinks {
				if st := u.Stats(); !shelves[i].empty() || st.State != uplink.Connected || st.Window != window ||
					window.Bytes < opts.WindowBytes/4 || window.Blocks < min(opts.WindowBlocks, 4) {
					return false
				}
			}
			return true
		})
		for _, u := range uplinks {
			if st := u.Stats(); st.Sessions != 1 {
				t.Errorf("%d sessions: %s", st.Sessions, st.LastError)
			}
		}
		want := 0
		for _, s := range shelves {
			want += len(s.blocks)
		}
		if st := server.Stats(); len(store.blocks) != want || st.QueueBlocks != 0 || st.QueueBytes != 0 {
			t.Errorf("%d blocks are stored of %d; stats are %+v", len(store.blocks), want, st)
		}
	})
	if paused == 0 {
		t.Error("nothing was ever paused: this test shows nothing")
	}
}

// noise are n blocks of one epoch that can't be decoded, of size bytes: a store
// keeps them aside, which is as good as stored.
func noise(n, size int) []wire.Block {
	epoch := touchline.NewEpoch()
	list := make([]wire.Block, n)
	for i := range list {
		list[i] = sealed(wire.Block{Epoch: epoch, First: uint64(1 + i), Count: 1, Data: make([]byte, size)})
	}
	return list
}
