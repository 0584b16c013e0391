package recordertest

import (
	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
)

// today is far from 1970.
const today = int64(1_780_000_000e9)

// withHistory returns an epoch of which 800 s are stored and have rows, and a
// roller that would need eight turns to read them again.
func (f *fixture) withHistory() (batch, touchline.Epoch, *rollup.Roller) {
	f.Helper()
	f.addGateways("north")
	epoch := touchline.NewEpoch()
	all := batch{NewDelivery(f, "north", epoch, 1, Series("vest", today-1000e9, 1e9, 800))}
	f.record(all)
	f.rollUp(f.roller(f.store, rollup.Options{Enabled: true}))
	return all, epoch, f.roller(f.store, rollup.Options{Enabled: true, Limits: rollup.Limits{Notes: 100, Samples: 100, Rows: 100}})
}

func (f *fixture) turn(r *rollup.Roller) {
	f.Helper()
	if _, err := r.Turn(f.Context()); err != nil {
		f.Fatalf("Turn: %v", err)
	}
}

var rollupClockTests = map[string]func(*fixture){
	// A sensor whose clock was never set says 1970, beside others in one block. Its
	// blocks reach over all that is stored, and what each changes is two seconds.
	"Rollup_ASensorWithoutAClockHoldsUpNobody": func(f *fixture) {
		all, epoch, few := f.withHistory()
		for i := range int64(20) {
			samples := append(Series("odd", i*1e9, 5e8, 2), Series("vest", today+i*1e9, 1e8, 10)...)
			d := NewDelivery(f, "north", epoch, uint64(10_001+100*i), samples)
			all = append(all, d)
			f.record(batch{d})
			f.turn(few)
		}
		f.hasRollups(Records(all...)) // each turn did what there was
	},

	// What a gateway stamps before its clock is set lies in 1970 too, until it is
	// corrected. What stands beside it with a time of its own does not move then.
	"Rollup_AGatewayWithoutAClockHoldsUpNobody": func(f *fixture) {
		all, epoch, few := f.withHistory()
		unset := touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockUnset}
		known := touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockSynchronised, Offset: today}
		var doubted batch
		for i := range int64(20) {
			d := NewDelivery(f, "north", epoch, uint64(10_001+100*i), Stamped(i*1e9, today+i*1e9, 2e8, 5))
			d = Clocked(f, d, unset)
			doubted = append(doubted, d)
			f.record(batch{d})
			f.turn(few)
		}
		f.hasRollups(Records(append(all, doubted...)...))
		f.clock("north", known)
		lists := [][]cloud.Record{Records(all...)}
		for _, d := range doubted {
			lists = append(lists, by(d, known))
		}
		for range 4 { // 200 samples
			f.turn(few)
		}
		f.hasRollups(sorted(lists...))
	},
}
