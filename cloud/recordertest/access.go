package recordertest

import (
	"bytes"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
)

var accessTests = map[string]func(*fixture){
	// A command takes a gateway away while a cloud runs.
	"RevokeGateway_IsSeenByAnotherProcessAtOnce": func(f *fixture) {
		f.addGateways("north", "south")
		f.addKey("north", 1)
		f.addKey("south", 2)
		other := f.second()
		before := f.accessRevision()
		for range 2 { // twice is no error
			if err := other.RevokeGateway(f.Context(), "north"); err != nil {
				f.Fatalf("RevokeGateway: %v", err)
			}
		}
		if err := other.RevokeGateway(f.Context(), "nobody"); err == nil {
			f.Error("nobody was revoked")
		}
		for range 2 {
			if after := f.accessRevision(); after <= before {
				f.Errorf("the revision of access went from %d to %d", before, after)
			}
			f.knows("north", false)
			f.handshakes("north")
			f.hasKeys("north")
			f.knows("south", true)
			f.handshakes("south", 2)
			if g := f.gateway("north"); g.Revoked == nil {
				f.Errorf("the gateway is %+v", g)
			}
			f.reopen()
		}
	},

	"Credentials_AreAllThatLetAGatewayIn": func(f *fixture) {
		f.addGateways("north", "south", "east", "west")
		f.addKey("north", 1)
		f.addKey("north", 2)
		f.addKey("east", 3)
		if err := f.second().RevokeGateway(f.Context(), "west"); err != nil {
			f.Fatal(err)
		}
		for range 2 {
			list, err := f.store.Credentials(f.Context())
			if err != nil || len(list) != 3 {
				f.Fatalf("Credentials: %v %v, want those of three gateways", list, err)
			}
			keys := map[string]int{}
			for _, g := range list {
				if named, err := f.store.GatewayByToken(f.Context(), g.Token); err != nil || named != g.Gateway {
					f.Errorf("the token of %s is of %q: %v", g.Gateway, named, err)
				}
				want, err := f.store.HandshakeKeys(f.Context(), g.Gateway)
				if err != nil || !reflect.DeepEqual(g.Keys, want) {
					f.Errorf("%s has the keys %v: %v, want %v", g.Gateway, g.Keys, err, want)
				}
				keys[g.Gateway] = len(g.Keys)
			}
			if keys["north"] != 2 || keys["south"] != 0 || keys["east"] != 1 {
				f.Errorf("the keys are %v", keys)
			}
			f.reopen()
		}
	},

	"Redeem_LetsATokenInOnce": func(f *fixture) {
		until := time.Now().Add(time.Minute)
		h := redeemable(1, until)
		f.redeems(f.store, h, true)
		f.redeems(f.store, h, false)
		f.redeems(f.second(), h, false)
		f.redeems(f.store, redeemable(2, until), true)
		later := redeemable(1, until.Add(time.Second)) // another token, then
		f.redeems(f.store, later, true)
		f.reopen()
		for _, used := range []credential.Handshake{h, redeemable(2, until), later} {
			f.redeems(f.store, used, false)
		}
	},

	"Redeem_ManyAtOnceAtTwoProcesses": func(f *fixture) {
		stores := []Store{f.store, f.second()}
		const tokens, each = 30, 2
		until := time.Now().Add(time.Minute)
		var in [tokens]atomic.Int32
		var wg sync.WaitGroup
		for i := range tokens {
			for _, store := range stores {
				for range each {
					wg.Go(func() {
						err := store.Redeem(f.Context(), redeemable(byte(i), until))
						if err == nil {
							in[i].Add(1)
						} else if !errors.Is(err, credential.ErrReplayed) {
							f.Errorf("Redeem: %v", err)
						}
					})
				}
			}
		}
		wg.Wait()
		for i := range in {
			if n := in[i].Load(); n != 1 {
				f.Errorf("token %d was let in %d times", i, n)
			}
		}
	},

	"NonceSecret_IsTheSameForEveryProcess": func(f *fixture) {
		secret := f.store.NonceSecret()
		if len(secret) != credential.MinNonceSecret || bytes.Count(secret, secret[:1]) == len(secret) {
			f.Fatalf("the secret is % x: want %d random bytes", secret, credential.MinNonceSecret)
		}
		if other := f.second().NonceSecret(); !bytes.Equal(other, secret) {
			f.Errorf("the secrets are % x and % x", secret, other)
		}
		f.reopen()
		if again := f.store.NonceSecret(); !bytes.Equal(again, secret) {
			f.Errorf("the secret was % x and is % x", secret, again)
		}
	},

	// A gateway never goes back to an older opening of its buffer.
	"Opened_NoticesTwoBoxes": func(f *fixture) {
		f.addGateways("north", "south")
		stores := []Store{f.store, f.second()}
		one, two, three := touchline.NewEpoch(), touchline.NewEpoch(), touchline.NewEpoch()
		for i, c := range []struct {
			gateway string
			epoch   touchline.Epoch
			cloned  bool
		}{
			{"north", one, false}, {"north", one, false}, // it lost its connection, no more
			{"north", two, false}, {"north", two, false}, // it was started again
			{"south", one, false}, // whose epoch that is says nothing here
			{"north", one, true}, {"north", one, false}, {"north", two, true},
			{"north", three, false}, {"north", three, false}, {"south", one, false},
		} {
			if cloned, err := stores[i%2].Opened(f.Context(), c.gateway, 0, c.epoch); err != nil || cloned != c.cloned {
				f.Fatalf("step %d: Opened said %t %v, want %t", i, cloned, err, c.cloned)
			}
		}
		if f.gateway("north").Cloned == nil || f.gateway("south").Cloned != nil {
			f.Errorf("cloned: %+v %+v, want north alone", f.gateway("north"), f.gateway("south"))
		}
		f.reopen()
		if cloned, err := f.store.Opened(f.Context(), "north", 0, two); err != nil || !cloned {
			f.Errorf("after a restart: %t %v", cloned, err)
		}
		if _, err := f.store.Opened(f.Context(), "nobody", 0, one); err == nil {
			f.Error("an opening of nobody was noted")
		}
	},

	"APIKey_IsWhatWasAdded": func(f *fixture) {
		// Whole seconds, which every store keeps.
		now := time.Now().Truncate(time.Second).UTC()
		keys := []cloud.APIKey{
			{ID: "AAAAAAAAAA", Hash: [32]byte{1, 2}, Name: "press", Scopes: credential.ReadSamples | credential.ReadLive, Created: now},
			{ID: "BBBBBBBBBB", Hash: [32]byte{3, 4}, Name: "physio", Scopes: credential.Admin, Created: now, Expires: now.Add(time.Hour)},
		}
		for _, k := range keys {
			if err := f.store.AddAPIKey(f.Context(), k); err != nil {
				f.Fatalf("AddAPIKey: %v", err)
			}
		}
		for _, k := range []cloud.APIKey{{ID: "AAAAAAAAAA", Name: "another", Created: now, Scopes: credential.ReadSamples}, {ID: "CCCCCCCCCC", Name: "press", Created: now, Scopes: credential.ReadSamples}} {
			if err := f.store.AddAPIKey(f.Context(), k); err == nil {
				f.Errorf("a second key %s named %s was added", k.ID, k.Name)
			}
		}
		for range 2 {
			for _, k := range keys {
				f.hasAPIKey(k)
			}
			f.reopen()
		}
		if _, err := f.store.APIKey(f.Context(), "CCCCCCCCCC"); !errors.Is(err, cloud.ErrUnknownKey) {
			f.Errorf("an unknown key: %v, want %q", err, cloud.ErrUnknownKey)
		}
		keys[0].LastUsed = now.Add(time.Minute)
		if err := f.store.APIKeyUsed(f.Context(), keys[0].ID, keys[0].LastUsed); err != nil {
			f.Fatalf("APIKeyUsed: %v", err)
		}
		other := f.second()
		keys[0].Revoked, keys[1].Revoked = true, true
		for _, name := range []string{"press", "BBBBBBBBBB", "press"} { // by name, by id, and again
			if err := other.RevokeAPIKey(f.Context(), name); err != nil {
				f.Fatalf("RevokeAPIKey(%s): %v", name, err)
			}
		}
		if err := other.RevokeAPIKey(f.Context(), "nobody"); !errors.Is(err, cloud.ErrUnknownKey) {
			f.Errorf("an unknown key was revoked: %v", err)
		}
		for _, k := range keys {
			f.hasAPIKey(k)
			if k.Counts(now) {
				f.Errorf("key %s counts", k.Name)
			}
		}
	},
}

func redeemable(n byte, until time.Time) credential.Handshake {
	return credential.Handshake{Gateway: "north", Mark: [32]byte{0: n, 31: 1}, Until: until}
}

func (f *fixture) redeems(store Store, h credential.Handshake, want bool) {
	f.Helper()
	if err := store.Redeem(f.Context(), h); (err == nil) != want || err != nil && !errors.Is(err, credential.ErrReplayed) {
		f.Fatalf("Redeem of %d until %s: %v, want it let in: %t", h.Mark[0], h.Until, err, want)
	}
}

func (f *fixture) hasAPIKey(want cloud.APIKey) {
	f.Helper()
	got, err := f.store.APIKey(f.Context(), want.ID)
	if err != nil {
		f.Fatalf("APIKey(%s): %v", want.ID, err)
	}
	times := got.Created.Equal(want.Created) && got.Expires.Equal(want.Expires) && got.LastUsed.Equal(want.LastUsed)
	got.Created, got.Expires, got.LastUsed = want.Created, want.Expires, want.LastUsed
	if got != want || !times {
		f.Fatalf("APIKey(%s) is %+v, want %+v, and its times: %t", want.ID, got, want, times)
	}
}
