package recordertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// masked marks the records that masks hide, in the plainest way: this is what
// stores are measured against.
func masked(records []cloud.Record, masks []cloud.Mask) []cloud.Record {
	marked := slices.Clone(records)
	for i := range marked {
		r := &marked[i]
		for n := range masks { // by number: the last that covers it decides
			m := &masks[n]
			if slices.ContainsFunc(masks, func(o cloud.Mask) bool { return o.Revokes == m.Number }) || m.Revokes != 0 {
				continue
			}
			if r.Sensor != m.Sensor || m.Metric != "" && r.Metric != m.Metric || r.Time < m.From || r.Time >= m.To || !slices.Contains(m.Gateways, r.Gateway) {
				continue
			}
			r.ReplacedBy = m.Number
			for _, k := range m.Keep {
				for _, kept := range k.Ranges {
					if k.Epoch == r.Epoch && kept.First <= r.Seq && r.Seq <= kept.Last {
						r.ReplacedBy = 0
					}
				}
			}
		}
	}
	return marked
}

func shown(marked []cloud.Record) []cloud.Record {
	return slices.DeleteFunc(slices.Clone(marked), func(r cloud.Record) bool { return r.ReplacedBy != 0 })
}

// sees wants queries to show what masks leave of the records, and all of them
// where they ask for it.
func (f *fixture) sees(records []cloud.Record, masks ...cloud.Mask) {
	f.Helper()
	marked := masked(records, masks)
	f.selects(cloud.Query{}, shown(marked))
	f.selects(cloud.Query{Replaced: true}, marked)
}

func (f *fixture) addMask(m cloud.Mask) cloud.Mask {
	f.Helper()
	m.By = "the physio"
	added, err := f.store.AddMask(f.Context(), m)
	if err != nil {
		f.Fatalf("AddMask: %v", err)
	}
	return added
}

func keep(epoch touchline.Epoch, ranges ...touchline.Range) wire.EpochRanges {
	return wire.EpochRanges{Epoch: epoch, Ranges: ranges}
}

var maskTests = map[string]func(*fixture){
	// A wearable is docked after the match: whatever comes first, what it
	// recorded stands there, and what was received live is hidden.
	"Mask_ReplacesWhateverCameFirst": func(f *fixture) {
		f.addGateways("pitch", "dock")
		const steps = 4
		orders := 0
		for order := range 24 { // all of 4!
			sensor := fmt.Sprint("vest-", order)
			live, late, docked := touchline.NewEpoch(), touchline.NewEpoch(), touchline.NewEpoch()
			all := batch{
				NewDelivery(f, "pitch", live, 1, Series(sensor, 1000, 10, 50)),
				NewDelivery(f, "pitch", late, 1, Series(sensor, 1005, 10, 50)), // a backlog
				NewDelivery(f, "dock", docked, 1, Series(sensor, 900, 1, 700)),
			}
			mask := cloud.Mask{Gateways: []string{"pitch", "dock"}, Sensor: sensor, From: 1100, To: 1300, Keep: []wire.EpochRanges{cloud.WholeEpoch(docked)}}
			left := []int{0, 1, 2, 3}
			for n, of := order, steps; of > 0; of-- {
				i := left[n%of]
				left = slices.Delete(left, n%of, n%of+1)
				if n /= of; i == 3 {
					mask = f.addMask(mask)
				} else {
					f.record(all[i:i+1], fresh)
				}
			}
			orders++
			want := masked(Records(all...), []cloud.Mask{mask})
			f.selects(cloud.Query{Sensor: sensor}, shown(want))
			f.selects(cloud.Query{Sensor: sensor, Replaced: true}, want)
			if hidden := len(want) - len(shown(want)); hidden != 40 {
				f.Fatalf("order %d: %d samples are hidden, want the 40 live ones of the range", order, hidden)
			}
		}
		f.Logf("MEASURED masks: the same samples in each of %d orders of live, backlog, upload and mask", orders)
	},

	"Mask_CoversItsGatewaysSensorMetricAndRange": func(f *fixture) {
		f.addGateways("a", "b", "c")
		var all batch
		kept := touchline.NewEpoch()
		for _, gateway := range []string{"a", "b", "c"} {
			var samples []touchline.Sample
			for _, sensor := range []string{"belt", "vest"} {
				for _, metric := range []string{"heart_rate", "x"} {
					for t := range int64(20) {
						samples = append(samples, touchline.Sample{Sensor: sensor, Metric: metric, Time: t, Value: touchline.NumberValue(1)})
					}
				}
			}
			all = append(all, NewDelivery(f, gateway, touchline.NewEpoch(), 1, samples))
		}
		f.record(all)
		records := Records(all...)
		var masks []cloud.Mask
		for _, m := range []cloud.Mask{
			{Gateways: []string{"a"}, Sensor: "belt", From: 5, To: 10},
			{Gateways: []string{"b", "c"}, Sensor: "vest", Metric: "x", From: 0, To: 1},
			{Gateways: []string{"a", "b"}, Sensor: "vest", Metric: "heart_rate", From: -5, To: 100},
			{Gateways: []string{"a"}, Sensor: "unknown", From: 0, To: 100},
			{Gateways: []string{"c"}, Sensor: "vest", From: 20, To: 21},
		} {
			m.Keep = []wire.EpochRanges{cloud.WholeEpoch(kept)}
			masks = append(masks, f.addMask(m))
			f.sees(records, masks...)
		}
		marked := masked(records, masks)
		for _, q := range []cloud.Query{{Gateway: "a"}, {Sensor: "belt"}, {Metric: "x"}, {Sensor: "vest", Metric: "heart_rate"},
			{From: ns(5), To: ns(10)}, {From: ns(10)}, {To: ns(5)}, {Gateway: "a", From: ns(9), To: ns(11)}} {
			f.selects(q, matching(shown(marked), q))
			q.Replaced = true
			f.selects(q, matching(marked, q))
		}
		f.reopen()
		f.sees(records, masks...)
	},

	"Mask_TheHighestNumberDecidesUntilItIsRevoked": func(f *fixture) {
		f.addGateways("north")
		first, second := touchline.NewEpoch(), touchline.NewEpoch()
		all := batch{NewDelivery(f, "north", first, 1, Series("belt", 0, 1, 100)), NewDelivery(f, "north", second, 1, Series("belt", 0, 1, 100))}
		f.record(all)
		records := Records(all...)
		var masks []cloud.Mask
		add := func(m cloud.Mask) uint64 {
			f.Helper()
			if m.Revokes == 0 {
				m.Gateways, m.Sensor = []string{"north"}, "belt"
			}
			m = f.addMask(m)
			if m.Number != uint64(len(masks)+1) {
				f.Fatalf("mask %d has the number %d", len(masks)+1, m.Number)
			}
			masks = append(masks, m)
			f.sees(records, masks...)
			return m.Number
		}
		add(cloud.Mask{From: 10, To: 60, Keep: []wire.EpochRanges{cloud.WholeEpoch(first)}})
		over := add(cloud.Mask{From: 40, To: 80, Keep: []wire.EpochRanges{cloud.WholeEpoch(second)}})
		add(cloud.Mask{From: 50, To: 55, Keep: []wire.EpochRanges{keep(first, touchline.Range{First: 51, Last: 52}), keep(second, touchline.Range{First: 54, Last: 54})}})
		add(cloud.Mask{Revokes: over})
		_, err := f.store.AddMask(f.Context(), cloud.Mask{Revokes: over, By: "the physio"})
		if !errors.Is(err, cloud.ErrNoMask) {
			f.Errorf("a second revocation: %v, want ErrNoMask", err)
		}
		for _, number := range []uint64{4, 5, 1 << 63} { // a revocation, and what is not there
			if _, err := f.store.AddMask(f.Context(), cloud.Mask{Revokes: number, By: "the physio"}); !errors.Is(err, cloud.ErrNoMask) {
				f.Errorf("the revocation of %d: %v, want ErrNoMask", number, err)
			}
		}
		f.reopen()
		f.sees(records, masks...)
		f.listsMasks("", masks)
		f.listsMasks("belt", masks)
		f.listsMasks("vest", nil)
	},

	"Mask_ThatIsBadIsRefusedAndChangesNothing": func(f *fixture) {
		f.addGateways("north")
		good := func() cloud.Mask {
			return cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: 10, Keep: []wire.EpochRanges{cloud.WholeEpoch(touchline.NewEpoch())}, By: "the physio"}
		}
		for name, spoil := range map[string]func(*cloud.Mask){
			"no gateway":      func(m *cloud.Mask) { m.Gateways = nil },
			"unknown gateway": func(m *cloud.Mask) { m.Gateways = []string{"north", "nobody"} },
			"gateway twice":   func(m *cloud.Mask) { m.Gateways = []string{"north", "north"} },
			"no sensor":       func(m *cloud.Mask) { m.Sensor = "" },
			"bad metric":      func(m *cloud.Mask) { m.Metric = "a\x00b" },
			"empty range":     func(m *cloud.Mask) { m.To = m.From },
			"keeps nothing":   func(m *cloud.Mask) { m.Keep = nil },
			"epoch twice":     func(m *cloud.Mask) { m.Keep = append(m.Keep, m.Keep[0]) },
			"no numbers":      func(m *cloud.Mask) { m.Keep[0].Ranges = nil },
			"number 0":        func(m *cloud.Mask) { m.Keep[0].Ranges = touchline.Ranges{{First: 0, Last: 5}} },
			"nobody":          func(m *cloud.Mask) { m.By = "" },
			"long reason":     func(m *cloud.Mask) { m.Reason = strings.Repeat("x", 501) },
			"two in one":      func(m *cloud.Mask) { m.Revokes = 1 },
		} {
			m := good()
			spoil(&m)
			if added, err := f.store.AddMask(f.Context(), m); err == nil {
				f.Errorf("%s: the mask was added as %d", name, added.Number)
			}
		}
		ctx, cancel := context.WithCancel(f.Context())
		cancel()
		if _, err := f.store.AddMask(ctx, good()); err == nil {
			f.Error("AddMask returned nil with a context that had ended")
		}
		f.listsMasks("", nil)
		if m := f.addMask(good()); m.Number != 1 {
			f.Errorf("the first mask that is good has the number %d", m.Number)
		}
	},

	// What a mask hides is decided by the time as it is corrected.
	"Mask_GoesByCorrectedTimes": func(f *fixture) {
		f.addGateways("north")
		d := Clocked(f, NewDelivery(f, "north", touchline.NewEpoch(), 1, Stamped(20e9, boot+10e9, 1e9, 50)), unset)
		mask := f.addMask(cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: boot + 20e9, To: boot + 40e9,
			Keep: []wire.EpochRanges{cloud.WholeEpoch(touchline.NewEpoch())}})
		f.record(batch{d}, fresh)
		f.sees(by(d, none), mask)
		f.clock("north", right)
		f.sees(sorted(by(d, right)), mask)
		if got := len(f.query(cloud.Query{})); got >= 100 {
			f.Errorf("%d samples are shown: the correction moved none under the mask", got)
		}
	},

	// A mask while a query runs moves nothing out of its result, and is seen by
	// the next one, in any process.
	"Mask_QueryReadsThoseThatWereThereWhenItWasCalled": func(f *fixture) {
		f.addGateways("north")
		const blocks, size = 120, 300
		var all batch
		epoch := touchline.NewEpoch()
		for i := range blocks {
			all = append(all, NewDelivery(f, "north", epoch, uint64(1+i*size), Series("belt", int64(i*size), 1, size)))
		}
		f.record(all)
		other := f.second()
		n := 0
		err := f.store.Samples(f.Context(), cloud.Query{}, func(cloud.Record) error {
			if n++; n != 10 {
				return nil
			}
			_, err := other.AddMask(f.Context(), cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: blocks * size,
				Keep: []wire.EpochRanges{keep(epoch, touchline.Range{First: 1, Last: 5})}, By: "the physio"})
			return err
		})
		if err != nil || n != blocks*size {
			f.Fatalf("Samples yielded %d of %d records: %v", n, blocks*size, err)
		}
		if got := len(f.query(cloud.Query{})); got != 5 {
			f.Errorf("%d samples are shown behind the mask, want the 5 that it keeps", got)
		}
	},

	"Mask_NumbersRiseWhoeverAddsThem": func(f *fixture) {
		f.addGateways("north")
		const each = 10
		other := f.second()
		numbers := make(chan uint64, 2*each)
		failed := make(chan error, 2)
		for _, s := range []Store{f.store, other} {
			go func() {
				var last uint64
				for range each {
					m, err := s.AddMask(f.Context(), cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: 1,
						Keep: []wire.EpochRanges{cloud.WholeEpoch(touchline.Epoch{1})}, By: "the physio"})
					if err == nil && m.Number <= last {
						err = fmt.Errorf("number %d came after %d", m.Number, last)
					}
					if err != nil {
						failed <- err
						return
					}
					last = m.Number
					numbers <- m.Number
				}
				failed <- nil
			}()
		}
		for range 2 {
			if err := <-failed; err != nil {
				f.Fatal(err)
			}
		}
		close(numbers)
		got := make([]uint64, 0, 2*each)
		for n := range numbers {
			got = append(got, n)
		}
		slices.Sort(got)
		for i, n := range got {
			if n != uint64(i+1) {
				f.Fatalf("the numbers are %v", got)
			}
		}
	},

	"Mask_RandomOrders": func(f *fixture) {
		seed := rand.Uint64()
		f.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 2))
		w := newWorld(f, r)
		for range 12 {
			for range 10 {
				w.step()
			}
			records := w.records()
			f.sees(records, w.masks...)
			marked := masked(records, w.masks)
			for range 4 {
				q := cloud.Query{From: ns(r.Int64N(600) * 1e9), To: ns(r.Int64N(600) * 1e9), Sensor: []string{"", "belt", "vest"}[r.IntN(3)], Replaced: r.IntN(2) == 0}
				want := marked
				if !q.Replaced {
					want = shown(marked)
				}
				f.selects(q, matching(want, q))
			}
		}
		f.Logf("MEASURED masks: %d blocks, %d clocks, %d masks and revocations in random order, every sample shown or hidden as it must be", len(w.all), w.clocks, len(w.masks))
	},
}

// listsMasks wants Masks to list these.
func (f *fixture) listsMasks(sensor string, want []cloud.Mask) {
	f.Helper()
	got, err := f.store.Masks(f.Context(), sensor)
	if err != nil {
		f.Fatalf("Masks: %v", err)
	}
	if len(got) != len(want) {
		f.Fatalf("Masks lists %d masks of %q, want %d", len(got), sensor, len(want))
	}
	for i := range want {
		g, w := got[i], want[i]
		revoked := uint64(0)
		if n := slices.IndexFunc(want, func(o cloud.Mask) bool { return o.Revokes == w.Number }); n >= 0 {
			revoked = want[n].Number
		}
		if !g.Same(&w) || g.Number != w.Number || g.By != w.By || g.Reason != w.Reason || !g.Made.Equal(w.Made) || g.Revoked != revoked {
			f.Errorf("mask %d is listed as\n%+v, want\n%+v, revoked by %d", i, g, w, revoked)
		}
	}
}
