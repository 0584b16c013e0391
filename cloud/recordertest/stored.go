package recordertest

import (
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

var storedTests = map[string]func(*fixture){
	"Stored_NamesOnlyTheGatewaysOwnEpochs": func(f *fixture) {
		f.addGateways("north", "south")
		mine, theirs, unknown := touchline.NewEpoch(), touchline.NewEpoch(), touchline.NewEpoch()
		f.record(batch{
			NewDelivery(f, "north", mine, 1, Series("belt", 0, 10, 5)),
			NewDelivery(f, "south", theirs, 1, Series("belt", 0, 10, 5)),
		})
		got, err := f.store.Stored(f.Context(), "north", []touchline.Epoch{unknown, theirs, mine})
		if err != nil {
			f.Fatalf("Stored: %v", err)
		}
		if len(got) != 1 || got[0].Epoch != mine || got[0].Ranges.Count() != 5 {
			f.Fatalf("Stored returned %+v, want the 5 numbers of %s", got, mine)
		}
		if got, err := f.store.Stored(f.Context(), "nobody", []touchline.Epoch{mine}); err != nil || len(got) != 0 {
			f.Fatalf("Stored of an unknown gateway returned %+v, %v: want nothing", got, err)
		}
		if got, err := f.store.Stored(f.Context(), "north", nil); err != nil || len(got) != 0 {
			f.Fatalf("Stored of no epochs returned %+v, %v: want nothing", got, err)
		}
	},

	// A gateway that was renamed, or runs from a copy of another's card, was told
	// that these are stored.
	"Stored_NamesWhatIsKeptAsideForAnother": func(f *fixture) {
		f.addGateways("north", "south")
		epoch := touchline.NewEpoch()
		first := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 5))
		f.record(batch{first}, fresh)
		copied, later := first, NewDelivery(f, "south", epoch, 11, Series("belt", 100, 10, 5))
		copied.Gateway = "south"
		for i, outcome := range f.record(batch{copied, later}) {
			if !outcome.KeptAside {
				f.Fatalf("block %d is recorded as %+v: want it kept aside", i, outcome)
			}
		}
		f.stored("south", epoch, touchline.Range{First: 1, Last: 5}, touchline.Range{First: 11, Last: 15})
		f.stored("north", epoch, touchline.Range{First: 1, Last: 5})
		f.reopen()
		f.stored("south", epoch, touchline.Range{First: 1, Last: 5}, touchline.Range{First: 11, Last: 15})
	},

	"Stored_SurvivesReopen": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 5))
		c := NewDelivery(f, "north", epoch, 100, Series("belt", 100, 10, 5))
		f.record(batch{a, c}, fresh, fresh)
		f.reopen()
		f.stored("north", epoch, touchline.Range{First: 1, Last: 5}, touchline.Range{First: 100, Last: 104})
		f.has(a, c)
	},

	// The largest numbers there are, and so many holes that the cursor is large.
	"Stored_HoldsManyAndLargeRanges": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		var want touchline.Ranges
		var work batch
		add := func(first uint64) {
			d := NewDelivery(f, "north", epoch, first, Series("belt", int64(first), 1, 2))
			work = append(work, d)
			want.Add(d.Block.Range())
		}
		add(touchline.MaxSeq - 1)
		for i := range uint64(3000) {
			add(1 + 4*(2999-i)) // from the last to the first
		}
		add(1 << 40)
		f.record(work)
		f.stored("north", epoch, want...)
		// The holes are filled, and everything becomes one.
		var fill batch
		for i := range uint64(2999) {
			fill = append(fill, NewDelivery(f, "north", epoch, 3+4*i, Series("belt", 0, 1, 2)))
		}
		f.record(fill)
		f.reopen()
		f.stored("north", epoch, touchline.Range{First: 1, Last: 11998}, touchline.Range{First: 1 << 40, Last: 1<<40 + 1},
			touchline.Range{First: touchline.MaxSeq - 1, Last: touchline.MaxSeq})
		f.counts("north", 2*6001, 6001, 0, 0)
	},

	// The store may keep cursors in memory: more epochs than that changes
	// nothing.
	"Stored_HoldsManyEpochs": func(f *fixture) {
		if testing.Short() {
			f.Skip("short: ten thousand epochs are left out")
		}
		f.addGateways("north")
		const epochs = 10_000
		samples := NewDelivery(f, "north", touchline.NewEpoch(), 1, Series("belt", 0, 1, 1))
		var work batch
		for range epochs {
			d := samples
			d.Block.Epoch = touchline.NewEpoch()
			d.Block.CRC = d.Block.Sum()
			work = append(work, d)
		}
		f.record(work[:epochs/2])
		f.record(work[epochs/2:])
		for i, outcome := range f.record(work) {
			if outcome != repeat {
				f.Fatalf("block %d sent again: %+v, want a repeat", i, outcome)
			}
		}
		f.counts("north", epochs, epochs, 0, 0)
	},
}

var lostTests = map[string]func(*fixture){
	"Lost_RepeatChangesNothing": func(f *fixture) {
		f.addGateways("north", "south")
		lost := wire.Lost{
			ID: 7, Epoch: touchline.NewEpoch(), Cause: "max_bytes", MinTime: -5, MaxTime: 1 << 62,
			Ranges: touchline.Ranges{{First: 1, Last: 100}, {First: 201, Last: 250}},
		}
		announce := func(gateway string, lost wire.Lost) {
			f.Helper()
			if err := f.store.Lost(f.Context(), gateway, 0, lost); err != nil {
				f.Fatalf("Lost: %v", err)
			}
		}
		announce("north", lost)
		announce("north", lost)
		f.reopen()
		announce("north", lost)
		f.counts("north", 0, 0, 0, 150)

		// The same id of another gateway, and of a buffer that began anew.
		announce("south", lost)
		lost.Epoch = touchline.NewEpoch()
		announce("north", lost)
		f.counts("north", 0, 0, 0, 300)
		f.counts("south", 0, 0, 0, 150)

		if err := f.store.Lost(f.Context(), "nobody", 0, lost); err == nil {
			f.Fatal("Lost of an unknown gateway returned nil, want an error")
		}
	},

	// Stored wins: a loss that was announced too early makes no sample go.
	"Lost_LeavesTheSamplesAlone": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		a := NewDelivery(f, "north", epoch, 1, Series("belt", 0, 10, 5))
		b := NewDelivery(f, "north", epoch, 6, Series("belt", 50, 10, 5))
		f.record(batch{a}, fresh)
		err := f.store.Lost(f.Context(), "north", 0, wire.Lost{ID: 1, Epoch: epoch, Ranges: touchline.Ranges{{First: 1, Last: 10}}, Cause: "damage"})
		if err != nil {
			f.Fatalf("Lost: %v", err)
		}
		f.record(batch{a, b}, repeat, fresh)
		f.has(a, b)
	},

	// What a gateway claims can't break the list of gateways.
	"Lost_AbsurdCountsStayReadable": func(f *fixture) {
		f.addGateways("north")
		for id := range uint64(1100) { // 1,024 times 2^53 is beyond int64
			err := f.store.Lost(f.Context(), "north", 0, wire.Lost{
				ID: id, Epoch: touchline.NewEpoch(), Cause: "damage", Ranges: touchline.Ranges{{First: 1, Last: touchline.MaxSeq}},
			})
			if err != nil {
				f.Fatalf("Lost: %v", err)
			}
		}
		if lost := f.gateway("north").Lost; lost < touchline.MaxSeq {
			f.Fatalf("lost is %d, want at least %d", lost, uint64(touchline.MaxSeq))
		}
	},
}

var registryTests = map[string]func(*fixture){
	"GatewayByToken_FindsWhatWasAdded": func(f *fixture) {
		if _, err := f.store.GatewayByToken(f.Context(), token("north")); !isUnknownToken(err) {
			f.Fatalf("GatewayByToken before AddGateway: %v, want ErrUnknownToken", err)
		}
		f.addGateways("north", "south")
		for range 2 {
			if id, err := f.store.GatewayByToken(f.Context(), token("north")); err != nil || id != "north" {
				f.Fatalf("GatewayByToken = %q, %v: want north", id, err)
			}
			if _, err := f.store.GatewayByToken(f.Context(), token("east")); !isUnknownToken(err) {
				f.Fatalf("GatewayByToken of no gateway: %v, want ErrUnknownToken", err)
			}
			f.reopen()
		}
	},

	"AddGateway_RefusesWhatIsThere": func(f *fixture) {
		f.addGateways("north")
		if err := f.store.AddGateway(f.Context(), "north", token("new")); err == nil {
			f.Fatal("AddGateway with an id that is there returned nil")
		}
		if err := f.store.AddGateway(f.Context(), "south", token("north")); err == nil {
			f.Fatal("AddGateway with a token that is there returned nil")
		}
		for _, id := range []string{"", "a/b", "nörd", "a b", "a\x00", string(make([]byte, 129))} {
			if err := f.store.AddGateway(f.Context(), id, token(id)); err == nil {
				f.Fatalf("AddGateway(%q) returned nil, want an error", id)
			}
		}
		if id, err := f.store.GatewayByToken(f.Context(), token("north")); err != nil || id != "north" {
			f.Fatalf("GatewayByToken = %q, %v: want north", id, err)
		}
		if gateways, err := f.store.Gateways(f.Context()); err != nil || len(gateways) != 1 {
			f.Fatalf("Gateways = %+v, %v: want one", gateways, err)
		}
	},

	"NewSession_RisesAcrossReopen": func(f *fixture) {
		f.addGateways("north", "south")
		var store string
		highest := map[string]uint64{}
		for range 3 {
			for _, gateway := range []string{"north", "north", "south"} {
				id, session, err := f.store.NewSession(f.Context(), gateway)
				if err != nil {
					f.Fatalf("NewSession: %v", err)
				}
				if session <= highest[gateway] {
					f.Fatalf("session %d of %s follows %d: want it above", session, gateway, highest[gateway])
				}
				highest[gateway] = session
				if id == "" || store != "" && id != store {
					f.Fatalf("store id is %q after %q: want the same, not empty", id, store)
				}
				if f.store.ID() != id {
					f.Fatalf("the store is %q, and tells a session %q", f.store.ID(), id)
				}
				store = id
			}
			f.reopen()
		}
		if _, _, err := f.store.NewSession(f.Context(), "nobody"); err == nil {
			f.Fatal("NewSession of an unknown gateway returned nil, want an error")
		}
	},

	"Gateways_ListsAllByID": func(f *fixture) {
		before := time.Now()
		f.addGateways("south", "north", "east")
		f.record(batch{NewDelivery(f, "north", touchline.NewEpoch(), 1, Series("belt", 0, 1, 3))})
		f.reopen()
		gateways, err := f.store.Gateways(f.Context())
		if err != nil {
			f.Fatalf("Gateways: %v", err)
		}
		for i, want := range []string{"east", "north", "south"} {
			if len(gateways) != 3 || gateways[i].ID != want {
				f.Fatalf("Gateways = %+v: want east, north, south", gateways)
			}
			if added := gateways[i].Added; added.Before(before.Add(-time.Second)) || added.After(time.Now().Add(time.Second)) {
				f.Fatalf("gateway %s was added at %s, want about now", want, added)
			}
		}
		if stored := gateways[1].LastStored; stored == nil || !stored.Equal(Received) {
			f.Fatalf("last stored of north is %v, want %s", stored, Received)
		}
		if stored := gateways[0].LastStored; stored != nil {
			f.Fatalf("last stored of east is %s, want none", stored)
		}
	},
}
