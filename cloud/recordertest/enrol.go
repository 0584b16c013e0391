package recordertest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"touchline/cloud"
	"touchline/credential"
)

var enrolTests = map[string]func(*fixture){
	"Enrol_UsesACodeOnce": func(f *fixture) {
		code := f.claim("north", "")
		want := cloud.Enrolled{Gateway: "north-1", Venue: "north", Store: f.store.ID()}
		f.enrols(cloud.Enrolment{Claim: code, Key: key(1)}, want)
		for range 2 {
			// Its answer was lost.
			f.enrols(cloud.Enrolment{Claim: code, Key: key(1)}, want)
			f.enrols(cloud.Enrolment{Claim: code, Key: key(1), Gateway: "north-1"}, want)
			// But nobody else's.
			f.refuses(cloud.Enrolment{Claim: code, Key: key(2)}, cloud.ErrClaim)
			f.refuses(cloud.Enrolment{Claim: code, Key: key(1), Gateway: "north-2"}, cloud.ErrClaim)
			f.refuses(cloud.Enrolment{Claim: [32]byte{1}, Key: key(1)}, cloud.ErrClaim)
			f.handshakes("north-1", 1)
			f.hasKeys("north-1", 1)
			if g := f.gateway("north-1"); g.Venue != "north" || g.Revoked != nil {
				f.Fatalf("the gateway is %+v", g)
			}
			f.reopen()
		}
	},

	"Enrol_NamesGatewaysAfterTheirVenue": func(f *fixture) {
		f.addGateways("north-2")
		for i, want := range []string{"north-1", "north-3", "north-4"} {
			f.enrols(cloud.Enrolment{Claim: f.claim("north", ""), Key: key(byte(1 + i))}, cloud.Enrolled{Gateway: want, Venue: "north", Store: f.store.ID()})
		}
		f.enrols(cloud.Enrolment{Claim: f.claim("north", ""), Key: key(9), Gateway: "stand"}, cloud.Enrolled{Gateway: "stand", Venue: "north", Store: f.store.ID()})
	},

	"Enrol_RefusesACodeThatIsOver": func(f *fixture) {
		over := f.claimUntil("north", "", time.Now().Add(-time.Second))
		f.refuses(cloud.Enrolment{Claim: over, Key: key(1)}, cloud.ErrClaimExpired)
		// One that was used in its time has the same answer after it.
		for life := 100 * time.Millisecond; ; life *= 2 {
			ends := time.Now().Add(life)
			e := cloud.Enrolment{Claim: f.claimUntil("north", "", ends), Key: key(1)}
			done, err := f.store.Enrol(f.Context(), e)
			if errors.Is(err, cloud.ErrClaimExpired) && !time.Now().Before(ends) {
				continue // this machine is busy
			}
			if err != nil {
				f.Fatalf("Enrol: %v", err)
			}
			<-time.After(time.Until(ends))
			f.enrols(e, done)
			break
		}
		if list, err := f.store.Gateways(f.Context()); err != nil || len(list) != 1 {
			f.Fatalf("gateways are %+v %v, want one", list, err)
		}
	},

	// What is refused changes nothing: no gateway, no key, and the code is good.
	"Enrol_TakesNothingThatIsAnothers": func(f *fixture) {
		f.addGateways("arena", "south")
		f.addKey("south", 5)
		code, forArena := f.claim("north", ""), f.claim("north", "arena")
		before := f.accessRevision()
		f.refuses(cloud.Enrolment{Claim: code, Key: key(1), Gateway: "arena"}, cloud.ErrTaken)
		f.refuses(cloud.Enrolment{Claim: forArena, Key: key(1), Gateway: "north-7"}, cloud.ErrTaken)
		f.refuses(cloud.Enrolment{Claim: code, Key: key(5)}, cloud.ErrTaken)
		f.refuses(cloud.Enrolment{Claim: forArena, Key: key(5)}, cloud.ErrTaken)
		f.handshakes("arena")
		f.handshakes("south", 5)
		f.knows("arena", true)
		if list, err := f.store.Gateways(f.Context()); err != nil || len(list) != 2 {
			f.Fatalf("gateways are %+v %v, want the two that were there", list, err)
		}
		if after := f.accessRevision(); after != before {
			f.Errorf("the revision of access went from %d to %d", before, after)
		}
		f.enrols(cloud.Enrolment{Claim: code, Key: key(1)}, cloud.Enrolled{Gateway: "north-1", Venue: "north", Store: f.store.ID()})
		f.enrols(cloud.Enrolment{Claim: forArena, Key: key(2)}, cloud.Enrolled{Gateway: "arena", Venue: "north", Store: f.store.ID()})
	},

	// A code for a known gateway takes its token and other keys away, and lets
	// one in again that was revoked.
	"Enrol_ReplacesABox": func(f *fixture) {
		f.addGateways("arena")
		f.addKey("arena", 1)
		before := f.accessRevision()
		f.enrols(cloud.Enrolment{Claim: f.claim("north", "arena"), Key: key(2)}, cloud.Enrolled{Gateway: "arena", Venue: "north", Store: f.store.ID()})
		if after := f.accessRevision(); after <= before {
			f.Errorf("the revision of access went from %d to %d: its session would not end", before, after)
		}
		f.knows("arena", false)
		f.handshakes("arena", 2)
		f.hasKeys("arena", 1, 2) // what the first one signed is still its

		if err := f.store.RevokeGateway(f.Context(), "arena"); err != nil {
			f.Fatal(err)
		}
		f.handshakes("arena")
		f.enrols(cloud.Enrolment{Claim: f.claim("south", "arena"), Key: key(3)}, cloud.Enrolled{Gateway: "arena", Venue: "south", Store: f.store.ID()})
		f.handshakes("arena", 3)
		if g := f.gateway("arena"); g.Revoked != nil || g.Venue != "south" {
			f.Fatalf("the gateway is %+v", g)
		}
	},

	"Enrol_ManyAtOnceAtTwoProcesses": func(f *fixture) {
		stores := []Store{f.store, f.second()}
		const boxes = 8
		shared := f.claim("north", "")
		var own [boxes][32]byte
		for i := range own {
			own[i] = f.claim("south", "")
		}
		var mu sync.Mutex // covers what follows
		var winners []byte
		var names []string
		var wg sync.WaitGroup
		for i := range boxes {
			store := stores[i%len(stores)]
			wg.Go(func() {
				k := byte(1 + i)
				done, err := store.Enrol(f.Context(), cloud.Enrolment{Claim: shared, Key: key(k)})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					winners, names = append(winners, k), append(names, done.Gateway)
				} else if !errors.Is(err, cloud.ErrClaim) {
					f.Errorf("one code for many: %v", err)
				}
			})
			wg.Go(func() {
				done, err := store.Enrol(f.Context(), cloud.Enrolment{Claim: own[i], Key: key(byte(100 + i))})
				mu.Lock()
				defer mu.Unlock()
				if names = append(names, done.Gateway); err != nil {
					f.Errorf("a code for each: %v", err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			f.Fatalf("%d boxes enrolled with one code", len(winners))
		}
		f.handshakes("north-1", winners[0])
		slices.Sort(names)
		want := []string{"north-1"}
		for i := range boxes {
			want = append(want, fmt.Sprintf("south-%d", i+1))
		}
		if !slices.Equal(names, want) {
			f.Fatalf("the gateways are %q, want %q", names, want)
		}
	},
}

func (f *fixture) claim(venue, gateway string) [32]byte {
	f.Helper()
	return f.claimUntil(venue, gateway, time.Now().Add(time.Hour))
}

func (f *fixture) claimUntil(venue, gateway string, expires time.Time) [32]byte {
	f.Helper()
	hash := credential.NewClaim().Hash()
	if err := f.store.AddClaim(f.Context(), cloud.Claim{Hash: hash, Venue: venue, Gateway: gateway, Expires: expires}); err != nil {
		f.Fatalf("AddClaim: %v", err)
	}
	return hash
}

func (f *fixture) enrols(e cloud.Enrolment, want cloud.Enrolled) {
	f.Helper()
	if got, err := f.store.Enrol(f.Context(), e); err != nil || got != want {
		f.Fatalf("Enrol: %+v %v, want %+v", got, err, want)
	}
}

func (f *fixture) refuses(e cloud.Enrolment, want error) {
	f.Helper()
	if got, err := f.store.Enrol(f.Context(), e); !errors.Is(err, want) || got != (cloud.Enrolled{}) {
		f.Fatalf("Enrol: %+v %v, want the error %q", got, err, want)
	}
}

// handshakes wants the gateway to have these keys that count now, oldest first.
func (f *fixture) handshakes(gateway string, want ...byte) {
	f.Helper()
	keys, err := f.store.HandshakeKeys(f.Context(), gateway)
	if err != nil {
		f.Fatalf("HandshakeKeys(%s): %v", gateway, err)
	}
	var got []byte
	for _, k := range keys {
		if k.Counts(time.Now()) {
			got = append(got, k.Public[0])
		}
	}
	if !slices.Equal(got, want) {
		f.Fatalf("keys %v of gateway %s count, want %v", got, gateway, want)
	}
}

// knows says whether the gateway's token counts.
func (f *fixture) knows(gateway string, want bool) {
	f.Helper()
	id, err := f.store.GatewayByToken(f.Context(), token(gateway))
	if known := err == nil; known != want || known && id != gateway || !known && !errors.Is(err, cloud.ErrUnknownToken) {
		f.Fatalf("the token of gateway %s: %q %v, want it known: %t", gateway, id, err, want)
	}
}

func (f *fixture) accessRevision() uint64 {
	f.Helper()
	revision, err := f.store.AccessRevision(f.Context())
	if err != nil {
		f.Fatalf("AccessRevision: %v", err)
	}
	return revision
}
