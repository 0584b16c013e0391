package recordertest

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"sync"
	"time"

	"touchline/cloud"
	"touchline/credential"
)

// keyList is what RollKeys hands over and takes.
type keyList = []credential.GatewayKey

var errNotNow = errors.New("not now")

var rollTests = map[string]func(*fixture){
	"RollKeys_ReplacesThemAsAWhole": func(f *fixture) {
		f.addGateways("north", "south")
		f.addKey("north", 1)
		f.addKey("south", 9)
		from, ends := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(24*time.Hour).Truncate(time.Second)
		before := f.accessRevision()
		f.rolls("north", func(known keyList) keyList {
			known[0].NotAfter = ends
			return append(known, credential.GatewayKey{Public: public(2), NotBefore: from})
		}, 1)
		if after := f.accessRevision(); after <= before {
			f.Errorf("the revision of access went from %d to %d: sessions would not be looked at", before, after)
		}
		f.reopen()
		keys, err := f.store.HandshakeKeys(f.Context(), "north")
		if err != nil || len(keys) != 2 || keys[0].Public[0] != 1 || keys[1].Public[0] != 2 ||
			!keys[0].NotBefore.IsZero() || !keys[0].NotAfter.Equal(ends) || !keys[1].NotBefore.Equal(from) || !keys[1].NotAfter.IsZero() {
			f.Fatalf("the keys are %+v %v", keys, err)
		}
		// What is left out counts no more, and is not handed over again; what it
		// signed is still the gateway's.
		f.rolls("north", func(keyList) keyList { return keyList{{Public: public(3)}} }, 1, 2)
		f.rolls("north", func(known keyList) keyList { return known }, 3)
		f.handshakes("north", 3)
		f.hasKeys("north", 1, 2, 3)
		f.handshakes("south", 9)
	},

	"RollKeys_AnErrorChangesNothing": func(f *fixture) {
		f.addGateways("north", "south")
		f.addKey("north", 1)
		f.addKey("south", 9)
		before := f.accessRevision()
		err := f.store.RollKeys(f.Context(), "north", func(keyList) (keyList, error) { return keyList{{Public: public(2)}}, errNotNow })
		if !errors.Is(err, errNotNow) {
			f.Errorf("an error of roll: %v", err)
		}
		err = f.store.RollKeys(f.Context(), "north", func(keyList) (keyList, error) { return keyList{{Public: public(2)}, {Public: public(9)}}, nil })
		if !errors.Is(err, cloud.ErrTaken) {
			f.Errorf("another's key: %v, want %q", err, cloud.ErrTaken)
		}
		if err := f.store.RollKeys(f.Context(), "nobody", func(known keyList) (keyList, error) { return known, nil }); err == nil {
			f.Error("the keys of nobody were rolled")
		}
		f.handshakes("north", 1)
		f.hasKeys("north", 1)
		f.handshakes("south", 9)
		if after := f.accessRevision(); after != before {
			f.Errorf("the revision of access went from %d to %d", before, after)
		}
		if err := f.store.RevokeGateway(f.Context(), "north"); err != nil {
			f.Fatal(err)
		}
		if err := f.store.RollKeys(f.Context(), "north", func(known keyList) (keyList, error) { return known, nil }); err == nil {
			f.Error("the keys of a revoked gateway were rolled")
		}
	},

	// Each roll sees what the one before it made, at whichever process: the
	// keys are a chain, of which each was the newest once.
	"RollKeys_ManyAtOnceAtTwoProcesses": func(f *fixture) {
		f.addGateways("north")
		f.addKey("north", 1)
		stores := []Store{f.store, f.second()}
		const rolls = 10
		var mu sync.Mutex // covers after
		after := map[byte]byte{}
		var wg sync.WaitGroup
		for i := range byte(rolls) {
			wg.Go(func() {
				mine := 2 + i
				var newest byte
				err := stores[i%2].RollKeys(f.Context(), "north", func(known keyList) (keyList, error) {
					newest = known[len(known)-1].Public[0]
					return keyList{known[len(known)-1], {Public: public(mine)}}, nil
				})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					f.Errorf("RollKeys: %v", err)
				}
				if other, taken := after[newest]; taken {
					f.Errorf("keys %d and %d both came after %d", other, mine, newest)
				}
				after[newest] = mine
			})
		}
		wg.Wait()
		last, before := byte(1), byte(0)
		for range rolls {
			before, last = last, after[last]
		}
		f.handshakes("north", before, last)
	},

	"RemoveGatewayKey_TakesOneAwayForGood": func(f *fixture) {
		f.addGateways("north", "south")
		f.addKey("north", 1)
		f.addKey("north", 2)
		f.addKey("south", 9)
		f.rolls("north", func(known keyList) keyList {
			return append(known, credential.GatewayKey{Public: public(3), NotBefore: time.Now().Add(time.Hour)})
		}, 1, 2)
		other := f.second()
		before := f.accessRevision()
		remove := func(n byte) error {
			return other.RemoveGatewayKey(f.Context(), "north", credential.Thumbprint(public(n)))
		}
		for _, n := range []byte{4, 9} {
			if err := remove(n); !errors.Is(err, cloud.ErrUnknownKey) {
				f.Errorf("key %d: %v, want %q", n, err, cloud.ErrUnknownKey)
			}
		}
		if err := remove(1); err != nil {
			f.Fatalf("RemoveGatewayKey: %v", err)
		}
		if after := f.accessRevision(); after <= before {
			f.Errorf("the revision of access went from %d to %d: its session would not end", before, after)
		}
		f.handshakes("north", 2)
		f.hasKeys("north", 2, 3)
		if err := remove(2); !errors.Is(err, cloud.ErrLastKey) { // the third counts in an hour
			f.Errorf("the last key that counts: %v, want %q", err, cloud.ErrLastKey)
		}
		if err := remove(3); err != nil {
			f.Errorf("one that does not count: %v", err)
		}
		f.handshakes("north", 2)
		f.handshakes("south", 9)

		// The one before it, which still counts, can't bring it back: a thief may
		// have both, and the gateway itself says again which key took over.
		err := f.store.RollKeys(f.Context(), "north", func(known keyList) (keyList, error) {
			return append(slices.Clone(known), credential.GatewayKey{Public: public(3)}), nil
		})
		if !errors.Is(err, cloud.ErrRemovedKey) {
			f.Errorf("a roll to a key that was removed: %v, want %q", err, cloud.ErrRemovedKey)
		}
		f.reopen()
		f.handshakes("north", 2)
		f.hasKeys("north", 2)
		f.addKey("north", 3) // a person may
		f.handshakes("north", 2, 3)
		f.hasKeys("north", 2, 3)
	},
}

func public(n byte) ed25519.PublicKey {
	k := key(n)
	return k[:]
}

// rolls wants RollKeys to hand these keys over, oldest first, and to take what
// roll makes of them.
func (f *fixture) rolls(gateway string, roll func(keyList) keyList, want ...byte) {
	f.Helper()
	var got []byte
	err := f.store.RollKeys(f.Context(), gateway, func(known keyList) (keyList, error) {
		got = nil
		for _, k := range known {
			got = append(got, k.Public[0])
		}
		return roll(slices.Clone(known)), nil
	})
	if err != nil || !slices.Equal(got, want) {
		f.Fatalf("RollKeys(%s) handed over %v, want %v: %v", gateway, got, want, err)
	}
}
