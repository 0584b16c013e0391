package cloud_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/jetstream"
	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/wire"
)

// A remote store is one that a node reaches over a network, which is cut: each call
// fails at once, or when its time or the outage is over.
type remote struct {
	*sqlite.Store

	mu    sync.Mutex // covers what follows
	cut   bool
	hangs chan struct{} // nil: calls fail at once
}

var errCut = errors.New("the network is cut")

func (r *remote) set(cut, hangs bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hangs != nil {
		close(r.hangs)
		r.hangs = nil
	}
	if r.cut = cut; hangs {
		r.hangs = make(chan struct{})
	}
}

// reach returns an error where the store can't be reached.
func (r *remote) reach(ctx context.Context) error {
	r.mu.Lock()
	cut, hangs := r.cut, r.hangs
	r.mu.Unlock()
	if hangs != nil {
		select {
		case <-ctx.Done():
		case <-hangs:
		}
	}
	if cut {
		return errors.Join(cloud.ErrUnavailable, errCut)
	}
	return nil
}

func reached[T any](r *remote, ctx context.Context, ask func() (T, error)) (answer T, err error) {
	if err := r.reach(ctx); err != nil {
		return answer, err
	}
	return ask()
}

func (r *remote) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	return reached(r, ctx, func() ([]cloud.Outcome, error) { return r.Store.Record(ctx, batch) })
}

func (r *remote) Stored(ctx context.Context, gateway string, epochs []touchline.Epoch) ([]wire.EpochRanges, error) {
	return reached(r, ctx, func() ([]wire.EpochRanges, error) { return r.Store.Stored(ctx, gateway, epochs) })
}

func (r *remote) Lost(ctx context.Context, gateway string, session uint64, lost wire.Lost) error {
	if err := r.reach(ctx); err != nil {
		return err
	}
	return r.Store.Lost(ctx, gateway, session, lost)
}

func (r *remote) Clock(ctx context.Context, gateway string, session uint64, clock touchline.Clock) error {
	if err := r.reach(ctx); err != nil {
		return err
	}
	return r.Store.Clock(ctx, gateway, session, clock)
}

func (r *remote) GatewayByToken(ctx context.Context, hash [32]byte) (string, error) {
	return reached(r, ctx, func() (string, error) { return r.Store.GatewayByToken(ctx, hash) })
}

func (r *remote) HandshakeKeys(ctx context.Context, gateway string) ([]credential.GatewayKey, error) {
	return reached(r, ctx, func() ([]credential.GatewayKey, error) { return r.Store.HandshakeKeys(ctx, gateway) })
}

func (r *remote) Credentials(ctx context.Context) ([]cloud.GatewayCredentials, error) {
	return reached(r, ctx, func() ([]cloud.GatewayCredentials, error) { return r.Store.Credentials(ctx) })
}

func (r *remote) Redeem(ctx context.Context, h credential.Handshake) error {
	if err := r.reach(ctx); err != nil {
		return err
	}
	return r.Store.Redeem(ctx, h)
}

func (r *remote) Opened(ctx context.Context, gateway string, session uint64, epoch touchline.Epoch) (bool, error) {
	return reached(r, ctx, func() (bool, error) { return r.Store.Opened(ctx, gateway, session, epoch) })
}

func (r *remote) AccessRevision(ctx context.Context) (uint64, error) {
	return reached(r, ctx, func() (uint64, error) { return r.Store.AccessRevision(ctx) })
}

func (r *remote) NewSession(ctx context.Context, gateway string) (store string, session uint64, err error) {
	if err := r.reach(ctx); err != nil {
		return "", 0, err
	}
	return r.Store.NewSession(ctx, gateway)
}

// An outpost is two nodes and a recorder, a queue between them, and a store that
// all reach over one network. The queue has no filter of its own.
type outpost struct {
	t     *testing.T
	store *remote
	queue *jetstream.Queue
	nodes [2]*node
}

func newOutpost(t *testing.T, opts cloud.Options, cut bool) *outpost {
	t.Helper()
	o := &outpost{t: t, store: &remote{Store: openSQLite(t, t.TempDir(), "north", "south")}}
	q, err := jetstream.Open(t.Context(), jetstream.Options{Folder: t.TempDir(), Store: o.store.ID(), Shards: 2, Replicas: 1, MaxBytes: 64 << 20,
		MaxAge: time.Hour, AckWait: 2 * time.Second}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	during(t, "the queue", q.Run)
	o.queue = q
	o.store.set(cut, false)
	for i := range o.nodes {
		s := prepareQueued(t, opts, o.store, q)
		s.SetAsk(200*time.Millisecond, 20*time.Millisecond)
		s.SetReask(50*time.Millisecond, 200*time.Millisecond)
		o.nodes[i] = run(t, s)
	}
	record(t, o.store, q)
	o.noticed(cut)
	return o
}

// noticed waits until both nodes know whether the store is there.
func (o *outpost) noticed(away bool) {
	o.t.Helper()
	eventually(o.t, "both nodes notice it", func() bool { return o.nodes[0].server.Away() == away && o.nodes[1].server.Away() == away })
}

func (o *outpost) waiting() int {
	o.t.Helper()
	n, _, err := o.queue.Waiting(o.t.Context())
	if err != nil {
		o.t.Fatal(err)
	}
	return int(n)
}

// The store is away, and fails at once or hangs. Who is connected goes on, who moves
// to another node comes in there, what the store must hear waits at the gateway, and
// when it is back all is stored once and in order.
func TestOutage_GatewaysAreServedBehindAQueue(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(map[bool]string{false: "the store refuses", true: "the store hangs"}[hangs], func(t *testing.T) {
			o := newOutpost(t, options(), false)
			g, _ := o.nodes[0].join("north")
			sent := blocks(t, 40)
			g.send(sent[:10]...)
			g.stored(sent[:10]...)

			o.store.set(true, hangs)
			o.noticed(true)
			g.say(&wire.Lost{ID: 1, Epoch: sent[0].Epoch, Ranges: touchline.Ranges{{First: 900, Last: 910}}, Cause: "max_bytes"})
			g.say(wire.NewClock(touchline.Clock{Boot: touchline.Boot{1}, Offset: 5, State: touchline.ClockSet}))
			g.send(sent[10:20]...)
			g.acceptedOnly(sent[10:20]...)
			if waits := o.waiting(); waits != 10 {
				t.Errorf("%d blocks wait: want 10", waits)
			}
			g.send(sent[10:20]...) // out of patience
			g.acceptedOnly(sent[10:20]...)
			if waits := o.waiting(); waits != 10 {
				t.Errorf("%d blocks wait after they came again: want 10", waits)
			}

			g.conn.Close()
			held := wire.Held{Epoch: sent[0].Epoch, Oldest: 101, Next: 401}
			g, welcome := o.nodes[1].join("north", held)
			if welcome.Session != 0 || len(welcome.Stored) != 0 || welcome.Complete || welcome.Store != o.store.ID() {
				t.Errorf("without the store, welcome is %+v", welcome)
			}
			g.say(&wire.Lost{ID: 1, Epoch: sent[0].Epoch, Ranges: touchline.Ranges{{First: 900, Last: 910}}, Cause: "max_bytes"})
			g.send(sent[10:30]...)
			g.acceptedOnly(sent[10:30]...)
			o.nodes[1].join("south")
			for _, n := range o.nodes {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if err := n.server.Ready(ctx); err != nil {
					t.Errorf("a node that serves gateways is not ready: %v", err)
				}
				cancel()
			}

			o.store.set(false, false)
			o.noticed(false)
			// All is stored, and the gateway is sent away, to begin anew.
			asked := false
			for stored := new(touchline.Ranges); !asked || !stored.Contains(touchline.Range{First: 101, Last: 300}); {
				m, err := g.hear()
				if err != nil {
					t.Fatal(err)
				}
				switch m := m.(type) {
				case *wire.Goaway:
					if asked = true; m.Reason != "rebalance" || m.ReconnectAfter != 0 {
						t.Errorf("goaway is %+v", m)
					}
				case *wire.Ack:
					for _, er := range m.Stored {
						stored.AddAll(er.Ranges)
					}
				}
			}
			g.conn.Close()
			g, welcome = o.nodes[0].join("north", held)
			if welcome.Session < 2 || len(welcome.Stored) != 1 || !slices.Equal(welcome.Stored[0].Ranges, touchline.Ranges{{First: 101, Last: 300}}) {
				t.Errorf("with the store, welcome is %+v", welcome)
			}
			g.say(&wire.Lost{ID: 1, Epoch: sent[0].Epoch, Ranges: touchline.Ranges{{First: 900, Last: 910}}, Cause: "max_bytes"})
			g.send(sent[30:]...)
			confirmed := false
			for stored := new(touchline.Ranges); !confirmed || !stored.Contains(touchline.Range{First: 301, Last: 400}); {
				ack := next[*wire.Ack](g)
				confirmed = confirmed || slices.Contains(ack.Lost, 1)
				for _, er := range ack.Stored {
					stored.AddAll(er.Ranges)
				}
			}
			found, err := o.store.Audit(t.Context())
			if err != nil || found.Blocks != 40 || found.KeptAside > 0 {
				t.Errorf("Audit: %+v, %v: want 40 blocks", found, err)
			}
		})
	}
}

// Who is not known is told to come again, and not that it is unknown: it may have been
// added since. And what nobody ever said is known to nobody.
func TestOutage_WhoIsNotKnownComesLater(t *testing.T) {
	o := newOutpost(t, options(), true)
	later := func(h http.Header) {
		t.Helper()
		if h := o.nodes[0].refused(h, http.StatusServiceUnavailable); h.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	later(header("north")) // the store was away from the start on
	if err := o.nodes[0].server.Ready(t.Context()); err == nil {
		t.Error("a node that can let nobody in is ready")
	}
	o.store.set(false, false)
	o.noticed(false)
	eventually(t, "the nodes know who may speak", func() bool { // and the boxes of them too
		o.store.set(true, false)
		o.noticed(true)
		ready := o.nodes[0].server.Ready(t.Context()) == nil
		o.store.set(ready, false)
		o.noticed(ready)
		return ready
	})
	o.nodes[0].join("north")
	later(header("nobody"))
}

// A gateway with a key comes in, with each token once; and one that was revoked
// meanwhile goes when the store is back.
func TestOutage_KeysAndRevocations(t *testing.T) {
	o := newOutpost(t, options(), false)
	b := newBox(t, o.nodes[0])
	b.enrol(claim(t, o.store.Store, "arena", ""), "")
	if err := o.store.RevokeGateway(t.Context(), "south"); err != nil { // the nodes look again
		t.Fatal(err)
	}
	o.nodes[0].refusedUntilKnown(t, o, b)
	h := b.header()
	conn, _, err := dial(o.nodes[0], h, wire.Subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	o.nodes[0].refused(h, http.StatusUnauthorized)
	stranger := newBox(t, o.nodes[0])
	stranger.id = b.id // with a key that may be a new one
	o.nodes[0].refused(stranger.header(), http.StatusServiceUnavailable)

	g, welcome := b.join(touchline.NewEpoch())
	if welcome.Session != 0 {
		t.Errorf("the session has the number %d without a store", welcome.Session)
	}
	if err := o.store.RevokeGateway(t.Context(), b.id); err != nil {
		t.Fatal(err)
	}
	o.store.set(false, false)
	g.closed(wire.CloseUnauthorized)
}

// refusedUntilKnown has the store go away once the node knows the box.
func (n *node) refusedUntilKnown(t *testing.T, o *outpost, b *box) {
	t.Helper()
	eventually(t, "the node knows the box", func() bool {
		o.store.set(true, false)
		o.noticed(true)
		conn, resp, err := dial(n, b.header(), wire.Subprotocol)
		if err == nil {
			conn.Close()
			return true
		}
		if resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("dial: %v, %+v", err, resp)
		}
		o.store.set(false, false)
		o.noticed(false)
		return false
	})
}

// What the store said counts for AccessFor, and then nobody comes in; who is
// connected stays.
func TestOutage_WhatTheStoreSaidIsBelievedInTime(t *testing.T) {
	opts := options()
	opts.AccessFor = 0
	o := newOutpost(t, opts, false)
	g, _ := o.nodes[0].join("north")
	o.store.set(true, false)
	o.noticed(true)
	o.nodes[0].refused(header("south"), http.StatusServiceUnavailable)
	sent := blocks(t, 5)
	g.send(sent...)
	g.acceptedOnly(sent...)
	o.store.set(false, false)
	g.stored(sent...)
}
