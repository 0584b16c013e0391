package recordertest

import (
	"math/rand/v2"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A world is a store to which things happen in random order, and what it must
// have then.
type world struct {
	f      *fixture
	r      *rand.Rand
	all    batch
	masks  []cloud.Mask
	known  map[bootOf]touchline.Clock
	epochs map[string][]touchline.Epoch
	next   map[touchline.Epoch]uint64
	clocks int
}

type bootOf struct {
	gateway string
	boot    touchline.Boot
}

func newWorld(f *fixture, r *rand.Rand) *world {
	f.Helper()
	f.addGateways("pitch", "dock")
	w := &world{f: f, r: r, known: make(map[bootOf]touchline.Clock), epochs: make(map[string][]touchline.Epoch), next: make(map[touchline.Epoch]uint64)}
	for _, gateway := range []string{"pitch", "dock"} {
		for range 3 {
			e := touchline.NewEpoch()
			w.epochs[gateway] = append(w.epochs[gateway], e)
			w.next[e] = 1
		}
	}
	return w
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// step lets one thing happen: a block, one that comes again, a clock, a mask,
// or the end of one.
func (w *world) step() {
	w.f.Helper()
	gateway := pick(w.r, []string{"pitch", "dock"})
	clock := touchline.Clock{Boot: touchline.Boot{byte(w.r.IntN(2))}, State: touchline.ClockState(w.r.IntN(3)), Offset: w.r.Int64N(300) * 1e9}
	switch n := w.r.IntN(20); {
	case n < 11 || len(w.all) == 0:
		w.f.record(batch{w.block(gateway, clock)}, fresh)
	case n < 13:
		w.f.record(batch{pick(w.r, w.all)}, repeat)
	case n < 15 && clock.State > touchline.ClockUnset:
		w.f.clock(gateway, clock)
		w.clocks++
		if at := (bootOf{gateway, clock.Boot}); clock.State >= w.known[at].State {
			w.known[at] = clock
		}
	case n == 15 && len(w.masks) > 0:
		m := pick(w.r, w.masks)
		for i := range w.masks {
			if w.masks[i].Revokes == m.Number {
				return
			}
		}
		if m.Revokes == 0 {
			w.masks = append(w.masks, w.f.addMask(cloud.Mask{Revokes: m.Number}))
		}
	default:
		w.masks = append(w.masks, w.f.addMask(w.mask()))
	}
}

func (w *world) block(gateway string, clock touchline.Clock) cloud.Delivery {
	epoch := pick(w.r, w.epochs[gateway])
	var samples []touchline.Sample
	for range 1 + w.r.IntN(3) {
		metric, unit := pick(w.r, []string{"heart_rate", "x"}), pick(w.r, []string{"", "m"})
		stamped := w.r.IntN(4) == 0
		for i, s := range Series(pick(w.r, []string{"belt", "vest"}), w.r.Int64N(500_000)*1e6-50e9, 1+w.r.Int64N(3e9), 1+w.r.IntN(40)) {
			s.Metric, s.Unit, s.Stamped = metric, unit, stamped
			s.Value = touchline.NumberValue(float64(w.r.IntN(200)-100) / 4)
			if i == 0 && w.r.IntN(3) == 0 {
				s.Value = pick(w.r, oddValues)
			}
			samples = append(samples, s)
		}
	}
	d := NewDelivery(w.f, gateway, epoch, w.next[epoch], samples)
	if w.r.IntN(2) == 0 {
		d = Clocked(w.f, d, clock)
	}
	w.next[epoch] += uint64(len(samples))
	w.all = append(w.all, d)
	return d
}

func (w *world) mask() cloud.Mask {
	m := cloud.Mask{Gateways: [][]string{{"pitch"}, {"dock"}, {"pitch", "dock"}}[w.r.IntN(3)], Sensor: pick(w.r, []string{"belt", "vest"}),
		Metric: pick(w.r, []string{"", "", "x"}), From: w.r.Int64N(500_000) * 1e6}
	m.To = m.From + 1 + w.r.Int64N(200e9)
	for _, e := range append(w.epochs["pitch"], w.epochs["dock"]...) {
		switch w.r.IntN(4) {
		case 0:
			m.Keep = append(m.Keep, cloud.WholeEpoch(e))
		case 1:
			first := 1 + w.r.Uint64N(w.next[e]+5)
			m.Keep = append(m.Keep, keep(e, touchline.Range{First: first, Last: first + w.r.Uint64N(30)}))
		}
	}
	if m.Keep == nil {
		m.Keep = []wire.EpochRanges{cloud.WholeEpoch(w.epochs["dock"][0])}
	}
	return m
}

// records are what the store has, as it is corrected.
func (w *world) records() []cloud.Record {
	var lists [][]cloud.Record
	for _, d := range w.all {
		known := none
		if d.Clock != nil {
			known = w.known[bootOf{d.Gateway, d.Clock.Boot}]
		}
		lists = append(lists, by(d, known))
	}
	return sorted(lists...)
}
