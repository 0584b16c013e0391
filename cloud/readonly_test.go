package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"touchline/cloud"
	"touchline/wire"
)

// A readOnly store answers and takes nothing: its disk is full, or it became a standby.
type readOnly struct {
	*memory
	on atomic.Bool
}

func (r *readOnly) NewSession(ctx context.Context, gateway string) (string, uint64, error) {
	if r.on.Load() {
		return "", 0, errors.New("cannot execute INSERT in a read-only transaction")
	}
	return r.memory.NewSession(ctx, gateway)
}

// Sessions that began without a number are not asked to begin anew again and again
// while that is in vain.
func TestOutage_StoreThatTakesNothingMovesNobodyInVain(t *testing.T) {
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("gateway-%d", i))
	}
	store := &readOnly{memory: newMemory(ids...)}
	store.on.Store(true)
	s := prepareQueued(t, options(), cloud.Store(store), openQueue(t, 64<<20))
	s.SetReask(50*time.Millisecond, 2*time.Second)
	n := run(t, s)
	var gateways []*gateway
	for _, id := range ids {
		g, welcome := n.join(id)
		if welcome.Session != 0 {
			t.Fatalf("welcome is %+v", welcome)
		}
		gateways = append(gateways, g)
	}
	asked := func() uint64 { return n.server.Stats().SentAway["outage"] }
	eventually(t, "one session is asked to begin anew", func() bool { return asked() > 0 })
	if n := asked(); n > 5 {
		t.Errorf("%d sessions were asked to begin anew, which a store that takes nothing lets nobody do", n)
	}

	store.on.Store(false)
	for _, g := range gateways {
		next[*wire.Goaway](g)
		g.conn.Close()
		if _, welcome := n.join(g.id); welcome.Session == 0 {
			t.Errorf("gateway %s has no number, and the store is well", g.id)
		}
	}
}
