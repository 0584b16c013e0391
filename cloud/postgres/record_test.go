package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/identity"
	"touchline/internal/pgtest"
)

var allSamples cloud.Query

func run(t testing.TB, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
}

// blocks are n blocks of an epoch, in order.
func blocks(t testing.TB, gateway string, n int) (all []cloud.Delivery) {
	epoch := touchline.NewEpoch()
	for i := range n {
		all = append(all, recordertest.NewDelivery(t, gateway, epoch, uint64(1+10*i), recordertest.Series("belt", int64(i)*100, 10, 10)))
	}
	return all
}

// The commit is done, and nobody heard of it: an error means unknown.
func TestRecord_CommitWhoseAnswerIsLostIsThere(t *testing.T) {
	c := &cutter{}
	s := openCut(t, pgtest.Database(t), c)
	defer s.Close()
	addGateways(t, s, "north")
	work := blocks(t, "north", 3)
	record(t, s, work[0]) // the partition is there
	c.after.Store(true)
	if outcomes, err := s.Record(t.Context(), work); !errors.Is(err, cloud.ErrUnavailable) {
		t.Fatalf("Record = %v, %v: want ErrUnavailable", outcomes, err)
	}
	for i, outcome := range record(t, s, work...) {
		if !outcome.Repeat {
			t.Errorf("block %d is %+v, want a repeat", i, outcome)
		}
	}
	audit(t, s)
}

// Gateways that move between nodes and send again what they have no answer
// for: each block is recorded by one node only.
func TestRecord_NodesThatHaveTheSameBlocksRecordThemOnce(t *testing.T) {
	url := pgtest.Database(t)
	const nodes, epochs, each = 3, 4, 25
	var stores []*Store
	for range nodes {
		s := open(t, url)
		defer s.Close()
		stores = append(stores, s)
	}
	addGateways(t, stores[0], "north", "south")
	var all []cloud.Delivery
	for e := range epochs {
		all = append(all, blocks(t, []string{"north", "south"}[e%2], each)...)
	}
	var mu sync.Mutex
	fresh := make(map[string]int)
	var group errgroup.Group
	for _, s := range stores {
		group.Go(func() error {
			mine := append([]cloud.Delivery(nil), all...)
			rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
			for len(mine) > 0 {
				n := min(len(mine), 1+rand.IntN(12))
				outcomes, err := s.Record(t.Context(), mine[:n])
				if err != nil {
					return err
				}
				mu.Lock()
				for i, o := range outcomes {
					if o.KeptAside {
						err = fmt.Errorf("a block is kept aside: %s", o.Reason)
					}
					if !o.Repeat {
						fresh[fmt.Sprint(mine[i].Block.Epoch, mine[i].Block.First)]++
					}
				}
				mu.Unlock()
				if err != nil {
					return err
				}
				mine = mine[n:]
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for block, n := range fresh {
		if n != 1 {
			t.Errorf("block %s was new %d times", block, n)
		}
	}
	if found := audit(t, stores[0]); len(fresh) != len(all) || found.Blocks != uint64(len(all)) {
		t.Errorf("%d blocks were new and %d are stored, want %d", len(fresh), found.Blocks, len(all))
	}
}

// A server that is gone is nobody's block's fault; what it said was stored is
// there when it is back, and the same Store goes on.
func TestRecord_SurvivesACrashOfTheServer(t *testing.T) {
	server := pgtest.Shared(t)
	s := open(t, server.Database(t))
	defer s.Close()
	addGateways(t, s, "north")
	work := blocks(t, "north", 20)
	record(t, s, work[:10]...)
	server.Crash(t)
	if _, err := s.Record(t.Context(), work[10:]); !errors.Is(err, cloud.ErrUnavailable) {
		t.Errorf("Record without a server: %v, want ErrUnavailable", err)
	}
	server.Resume(t)
	for i, o := range record(t, s, work...) {
		if o.Repeat != (i < 10) {
			t.Errorf("block %d is %+v", i, o)
		}
	}
	audit(t, s)
}

// A node that is stopped in the middle of a transaction has the cursors of
// gateways that another one serves by now.
func TestRecord_NodeThatStandsStillLosesItsLocks(t *testing.T) {
	url := pgtest.Database(t)
	opts := Options{URL: url}
	config, err := poolConfig(opts)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "300"
	still, err := openOn(t.Context(), config, opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer still.Close()
	other := open(t, url)
	defer other.Close()
	addGateways(t, other, "north")
	work := blocks(t, "north", 2)
	record(t, other, work[0])
	err = still.change(t.Context(), func(tx pgx.Tx) error {
		r := recording{tx: tx, store: still, batch: work}
		if err := r.lock(t.Context()); err != nil {
			return err
		}
		record(t, other, work...) // waits for the locks
		_, err := tx.Exec(t.Context(), `SELECT 1`)
		return err
	})
	if err == nil {
		t.Error("the transaction that stood still went on")
	}
	audit(t, other)
}

func TestRecord_EndsWithItsContextWhileItWaits(t *testing.T) {
	url := pgtest.Database(t)
	holder, s := open(t, url), open(t, url)
	defer holder.Close()
	defer s.Close()
	addGateways(t, s, "north")
	work := blocks(t, "north", 1)
	record(t, s, work...)
	err := holder.change(t.Context(), func(tx pgx.Tx) error {
		r := recording{tx: tx, store: holder, batch: work}
		if err := r.lock(t.Context()); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.Record(ctx, work)
			done <- err
		}()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, cloud.ErrUnavailable) {
			t.Errorf("Record: %v, want context.Canceled alone", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The server takes no NUL and no broken UTF-8 for text; a block must not fail
// for what is said of it.
func TestRecord_TextsFromOutsideAreCleaned(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	d := recordertest.Undecodable("north", touchline.NewEpoch(), 1, 5, "\x00")
	d.Problem = "bad\x00 \xff" + strings.Repeat("ö", 1000)
	o := record(t, s, d)[0]
	if !o.KeptAside || !strings.HasPrefix(o.Reason, "bad ö") || len(o.Reason) > 1000 {
		t.Fatalf("outcome %+v", o)
	}
	for _, id := range []string{"a\x00", "\xff"} {
		if _, err := s.APIKey(t.Context(), id); !errors.Is(err, cloud.ErrUnknownKey) {
			t.Errorf("APIKey(%q): %v", id, err)
		}
		if keys, err := s.HandshakeKeys(t.Context(), id); err != nil || keys != nil {
			t.Errorf("HandshakeKeys(%q) = %v, %v", id, keys, err)
		}
	}
}

// A code is good for one, whatever node each of those who try it is at.
func TestEnrol_OneOfThoseWhoUseACodeAtOnce(t *testing.T) {
	url := pgtest.Database(t)
	a, b := open(t, url), open(t, url)
	defer a.Close()
	defer b.Close()
	claim := cloud.Claim{Hash: [32]byte{1}, Venue: "arena", Expires: time.Now().Add(time.Hour)}
	if err := a.AddClaim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	const boxes = 8
	errs := make([]error, boxes)
	var group errgroup.Group
	for i := range boxes {
		group.Go(func() error {
			_, errs[i] = []*Store{a, b}[i%2].Enrol(t.Context(), cloud.Enrolment{Claim: claim.Hash, Key: identity.PublicKey{byte(i + 1)}})
			return nil
		})
	}
	_ = group.Wait()
	enrolled := 0
	for _, err := range errs {
		if err == nil {
			enrolled++
		} else if !errors.Is(err, cloud.ErrClaim) {
			t.Error(err)
		}
	}
	if enrolled != 1 {
		t.Errorf("%d boxes enrolled with one code", enrolled)
	}
}
