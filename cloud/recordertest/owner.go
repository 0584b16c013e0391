package recordertest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// ownerTests are about gateways that begin sessions at several nodes: what
// counts is what the newest session says, whatever node has it.
var ownerTests = map[string]func(*fixture){
	"Overtaken_NamesTheGatewaysThatMoved": func(f *fixture) {
		f.addGateways("north", "south", "west")
		other := f.second()
		sessions := map[string]uint64{"north": f.session(f.store, "north"), "south": f.session(f.store, "south"), "nobody": 1}
		if got, err := f.store.Overtaken(f.Context(), sessions); err != nil || len(got) != 0 {
			f.Fatalf("Overtaken = %v, %v: want none", got, err)
		}
		f.session(other, "south")
		f.session(other, "west") // has no session here
		for _, store := range []Store{f.store, other} {
			if got, err := store.Overtaken(f.Context(), sessions); err != nil || !slices.Equal(got, []string{"south"}) {
				f.Fatalf("Overtaken = %v, %v: want south", got, err)
			}
		}
		if got, err := f.store.Overtaken(f.Context(), nil); err != nil || len(got) != 0 {
			f.Fatalf("Overtaken of none = %v, %v", got, err)
		}
	},

	// Ten thousand gateways at one node, none of which says anything.
	"Overtaken_AsksForManyAtOnce": func(f *fixture) {
		gateways := 1000
		if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
			gateways = 10_000
		}
		sessions := make(map[string]uint64, gateways)
		for i := range gateways {
			id := fmt.Sprintf("gateway-%d", i)
			f.addGateways(id)
			sessions[id] = f.session(f.store, id)
		}
		moved := "gateway-77"
		f.session(f.second(), moved)
		began := time.Now()
		got, err := f.store.Overtaken(f.Context(), sessions)
		f.Logf("MEASURED %d sessions asked about in %s", gateways, time.Since(began))
		if err != nil || !slices.Equal(got, []string{moved}) {
			f.Fatalf("Overtaken = %v, %v: want %s", got, err, moved)
		}
	},

	// The model is one sentence: a session changes something if and only if its
	// gateway has begun no newer one. It is tried at two nodes, in any order.
	"Session_ModelOfWhoIsHeard": func(f *fixture) {
		was := flag.Lookup("rapid.checks").Value.String()
		checks := "10"
		if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
			checks = "300"
		}
		if err := flag.Set("rapid.checks", checks); err != nil {
			f.Fatal(err)
		}
		defer flag.Set("rapid.checks", was)
		stores := []Store{f.store, f.second()}
		gateways := 0
		rapid.Check(f.T, func(t *rapid.T) {
			gateways++
			gateway := fmt.Sprintf("gateway-%d", gateways)
			f.addGateways(gateway)
			newest, lost := uint64(0), uint64(0)
			epochs := []touchline.Epoch{touchline.NewEpoch()}
			cloned := false
			at := func() Store { return stores[rapid.IntRange(0, 1).Draw(t, "node")] }
			any := func() uint64 { return rapid.Uint64Range(1, max(newest, 1)).Draw(t, "session") }
			judge := func(what string, session uint64, err error) (heard bool) {
				heard = session == newest || newest == 0
				if heard && err != nil || !heard && !errors.Is(err, cloud.ErrOvertaken) {
					t.Fatalf("%s of session %d of %d: %v", what, session, newest, err)
				}
				return heard
			}
			begin := func(*rapid.T) {
				session := f.session(at(), gateway)
				if session != newest+1 {
					t.Fatalf("session %d follows %d", session, newest)
				}
				newest = session
			}
			t.Repeat(map[string]func(*rapid.T){
				"begin": begin,
				"clock": func(t *rapid.T) {
					session, clock := any(), right
					clock.Offset += rapid.Int64Range(0, 5).Draw(t, "offset") * 1e9
					judge("clock", session, at().Clock(f.Context(), gateway, session, clock))
				},
				"lost": func(*rapid.T) {
					session := any()
					err := at().Lost(f.Context(), gateway, session, wire.Lost{ID: lost + 1, Epoch: epochs[0], Ranges: touchline.Ranges{{First: lost + 1, Last: lost + 1}}, Cause: "age"})
					if judge("lost", session, err) {
						lost++
					}
				},
				"opened": func(t *rapid.T) {
					session := any()
					epochs = append(epochs, touchline.NewEpoch())
					again, err := at().Opened(f.Context(), gateway, session, epochs[len(epochs)-1])
					if !judge("opened", session, err) {
						epochs = epochs[:len(epochs)-1]
					}
					cloned = cloned || again
				},
				"overtaken": func(*rapid.T) {
					session := any()
					got, err := at().Overtaken(f.Context(), map[string]uint64{gateway: session})
					if err != nil || (len(got) > 0) != (session < newest) {
						t.Fatalf("Overtaken of %d of %d: %v %v", session, newest, got, err)
					}
				},
			})
			if g := f.gateway(gateway); g.Lost != lost || cloned || g.Cloned != nil {
				t.Fatalf("%d samples are lost and clones %v: want %d and none", g.Lost, g.Cloned, lost)
			}
		})
	},

	// A gateway that hurries from node to node, where each says of its clock what
	// it was told, late or not: the newest that was heard is what counts.
	"Session_OfClocksSaidAtOnceTheNewestCounts": func(f *fixture) {
		f.addGateways("north")
		d := Clocked(f, NewDelivery(f, "north", touchline.NewEpoch(), 1, Stamped(0, 0, 1e9, 5)), unset)
		f.record(batch{d})
		stores := []Store{f.store, f.second()}
		rounds := 10
		if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
			rounds = 200
		}
		refused := 0
		for range rounds {
			var mu sync.Mutex // covers heard and refused
			heard := map[uint64]touchline.Clock{}
			var group errgroup.Group
			for i := range 6 {
				store := stores[i%2]
				group.Go(func() error {
					_, session, err := store.NewSession(f.Context(), "north")
					if err != nil {
						return err
					}
					clock := right
					clock.Offset += int64(session) * 1e9
					err = store.Clock(context.WithoutCancel(f.Context()), "north", session, clock)
					mu.Lock()
					defer mu.Unlock()
					if errors.Is(err, cloud.ErrOvertaken) {
						refused++
						return nil
					}
					heard[session] = clock
					return err
				})
			}
			if err := group.Wait(); err != nil {
				f.Fatal(err)
			}
			var newest uint64
			for session := range heard {
				newest = max(newest, session)
			}
			if newest == 0 {
				f.Fatal("no session was heard, and one of them was the newest")
			}
			f.selects(cloud.Query{}, sorted(by(d, heard[newest])))
		}
		f.Logf("MEASURED %d of %d messages came from a session that was overtaken", refused, 6*rounds)
	},
}

// session begins a session of a gateway and returns its number.
func (f *fixture) session(store Store, gateway string) uint64 {
	f.Helper()
	_, session, err := store.NewSession(f.Context(), gateway)
	if err != nil {
		f.Fatalf("NewSession: %v", err)
	}
	return session
}
