package recordertest

import (
	"slices"

	"touchline/identity"
)

var keyTests = map[string]func(*fixture){
	"GatewayKeys_AreWhatWasAdded": func(f *fixture) {
		f.addGateways("north", "south")
		f.hasKeys("north")
		f.addKey("north", 1)
		f.addKey("north", 2)
		f.addKey("south", 3)
		f.addKey("north", 1) // again is no error
		for range 2 {
			f.hasKeys("north", 1, 2)
			f.hasKeys("south", 3)
			f.hasKeys("nobody")
			f.reopen()
		}
	},

	"AddGatewayKey_RefusesAnothersAndTooMany": func(f *fixture) {
		f.addGateways("north", "south")
		f.addKey("north", 1)
		if err := f.store.AddGatewayKey(f.Context(), "south", key(1)); err == nil {
			f.Fatal("a key of another gateway was added")
		}
		if err := f.store.AddGatewayKey(f.Context(), "nobody", key(9)); err == nil {
			f.Fatal("a key of an unknown gateway was added")
		}
		f.hasKeys("north", 1)
		f.hasKeys("south")
		var err error
		n := byte(2)
		for ; n < 200 && err == nil; n++ {
			err = f.store.AddGatewayKey(f.Context(), "north", key(n))
		}
		if err == nil {
			f.Fatal("200 keys of one gateway were added: want a limit")
		}
		if err := f.store.AddGatewayKey(f.Context(), "north", key(1)); err != nil {
			f.Fatalf("a key that is there, at the limit: %v", err)
		}
	},
}

// key is a key of these tests: its bytes are n.
func key(n byte) (k identity.PublicKey) {
	for i := range k {
		k[i] = n
	}
	return k
}

func (f *fixture) addKey(gateway string, n byte) {
	f.Helper()
	if err := f.store.AddGatewayKey(f.Context(), gateway, key(n)); err != nil {
		f.Fatalf("AddGatewayKey(%s, %d): %v", gateway, n, err)
	}
}

func (f *fixture) hasKeys(gateway string, want ...byte) {
	f.Helper()
	keys, err := f.store.GatewayKeys(f.Context(), gateway)
	if err != nil {
		f.Fatalf("GatewayKeys(%s): %v", gateway, err)
	}
	got := make([]byte, len(keys))
	for i, k := range keys {
		if got[i] = k[0]; k != key(k[0]) {
			f.Fatalf("GatewayKeys(%s) returned %s", gateway, k)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		f.Fatalf("GatewayKeys(%s) = %v, want %v", gateway, got, want)
	}
}
