package recordertest

import (
	"cmp"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
	"touchline/wire"
)

func isOvertaken(err error) bool { return errors.Is(err, rollup.ErrOvertaken) }

// wholeKeep keeps all of one epoch.
func wholeKeep(epoch touchline.Epoch) []wire.EpochRanges {
	return []wire.EpochRanges{cloud.WholeEpoch(epoch)}
}

var oddValues = []touchline.Value{
	touchline.TextValue("2:1"), touchline.BoolValue(true), touchline.BytesValue("\x00"), touchline.NumberValue(math.NaN()),
	touchline.NumberValue(math.Inf(1)), touchline.NumberValue(math.MaxFloat64), touchline.NumberValue(-math.MaxFloat64),
	touchline.NumberValue(math.SmallestNonzeroFloat64), touchline.NumberValue(math.Copysign(0, -1)),
}

// rolled returns the rows that must come of these records, in the plainest way:
// this is what stores are measured against.
func rolled(records []cloud.Record, unit int64) []cloud.Rollup {
	type key struct {
		gateway, sensor, metric, unit string
		time                          int64
	}
	var rows []cloud.Rollup
	at := make(map[key]int)
	for i := range records { // in the order of a query
		r := &records[i]
		v := r.Value
		if v.Kind() != touchline.Number || math.IsNaN(v.Float()) || math.IsInf(v.Float(), 0) {
			continue
		}
		t := time.Unix(0, r.Time).Unix()
		t -= (t%unit + unit) % unit
		k := key{r.Gateway, r.Sensor, r.Metric, r.Unit, t}
		n, ok := at[k]
		if !ok {
			n = len(rows)
			at[k] = n
			rows = append(rows, cloud.Rollup{Gateway: r.Gateway, Sensor: r.Sensor, Metric: r.Metric, Unit: r.Unit, Time: t, Min: v.Float(), Max: v.Float()})
		}
		row := &rows[n]
		row.Count++
		row.Min, row.Max, row.Last = min(row.Min, v.Float()), max(row.Max, v.Float()), v.Float()
		row.Sum += v.Float() / 4 // no sum of a test's few samples is too large then
	}
	sortRollups(rows)
	return rows
}

func sortRollups(rows []cloud.Rollup) {
	slices.SortFunc(rows, func(a, b cloud.Rollup) int {
		return cmp.Or(cmp.Compare(a.Gateway, b.Gateway), cmp.Compare(a.Sensor, b.Sensor), cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Time, b.Time))
	})
}

// sameRollup compares all but sums exactly. Sums have an order of adding, and
// are kept within ±1e306.
func sameRollup(got, want cloud.Rollup) bool {
	sum := math.IsInf(want.Sum, 0) || math.Abs(want.Sum) > 1e303
	if sum {
		sum = math.Abs(got.Sum) <= 61e306
	} else {
		// A sum of what cancels out has the error of its parts.
		sum = math.Abs(got.Sum/4-want.Sum) <= 1e-9*(math.Abs(want.Sum)+float64(want.Count)*max(math.Abs(want.Min), math.Abs(want.Max)))
	}
	got.Sum, want.Sum = 0, 0
	return sum && got == want
}

// hasRollups wants the rows of seconds and minutes to be those of the records
// that are shown.
func (f *fixture) hasRollups(records []cloud.Record) {
	f.Helper()
	for _, minutes := range []bool{false, true} {
		unit := int64(1)
		if minutes {
			unit = 60
		}
		want := rolled(records, unit)
		got := f.rollups(cloud.Query{}, minutes)
		for i := range min(len(got), len(want)) {
			if !sameRollup(got[i], want[i]) {
				f.Fatalf("minutes %v: row %d of %d is\n%+v, want of %d (sum by four)\n%+v", minutes, i, len(got), got[i], len(want), want[i])
			}
		}
		if len(got) != len(want) {
			f.Fatalf("minutes %v: there are %d rows, want %d", minutes, len(got), len(want))
		}
	}
}

func (f *fixture) rollups(q cloud.Query, minutes bool) []cloud.Rollup {
	f.Helper()
	var got []cloud.Rollup
	var last cloud.Rollup
	err := f.store.Rollups(f.Context(), q, minutes, func(r cloud.Rollup) error {
		if r.Gateway == last.Gateway && r.Sensor == last.Sensor && r.Metric == last.Metric && r.Unit == last.Unit && r.Time <= last.Time {
			f.Errorf("row %+v came after %+v", r, last)
		}
		last = r
		got = append(got, r)
		return nil
	})
	if err != nil {
		f.Fatalf("Rollups: %v", err)
	}
	sortRollups(got)
	return got
}

func (f *fixture) roller(s Store, opts rollup.Options) *rollup.Roller {
	f.Helper()
	if opts.Limits == (rollup.Limits{}) {
		opts.Limits = rollup.DefaultLimits
	}
	r, err := rollup.New(opts, s, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	if err := s.RollupStart(f.Context(), opts.Enabled); err != nil {
		f.Fatalf("RollupStart: %v", err)
	}
	return r
}

// rollUp does all that there is to do.
func (f *fixture) rollUp(r *rollup.Roller) {
	f.Helper()
	for {
		more, err := r.Turn(f.Context())
		if err != nil {
			f.Fatalf("Turn: %v", err)
		}
		if !more {
			return
		}
	}
}

var rollupTests = map[string]func(*fixture){
	// Blocks in any order, repeats, clocks that are corrected, masks and their
	// end; turns in between, by either of two processes, of which one does little
	// at a time.
	"Rollup_IsWhatTheSamplesAreWhateverHappens": func(f *fixture) {
		seed := rand.Uint64()
		f.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 3))
		w := newWorld(f, r)
		for range 15 { // before rows are kept at all
			w.step()
		}
		few := rollup.Limits{Notes: 5, Samples: 30, Rows: 10}
		rollers := []*rollup.Roller{f.roller(f.store, rollup.Options{Enabled: true}), f.roller(f.second(), rollup.Options{Enabled: true, Limits: few})}
		for range 12 {
			for range 1 + r.IntN(12) {
				w.step()
				if r.IntN(4) == 0 {
					if _, err := pick(r, rollers).Turn(f.Context()); err != nil {
						f.Fatalf("Turn: %v", err)
					}
				}
			}
			f.rollUp(pick(r, rollers))
			f.hasRollups(shown(masked(w.records(), w.masks)))
		}
		f.Logf("MEASURED rollups: %d blocks, %d clocks, %d masks in random order, every row what /v1/samples says", len(w.all), w.clocks, len(w.masks))
	},

	// A turn that ends when another process had one since it began changes
	// nothing: it may not have read what that one has counted.
	"Rollup_AnOldTurnIsRefused": func(f *fixture) {
		f.addGateways("north")
		roller := f.roller(f.store, rollup.Options{Enabled: true})
		f.rollUp(roller)
		first := NewDelivery(f, "north", touchline.NewEpoch(), 1, Series("belt", 0, 1e8, 5))
		f.record(batch{first})
		old, err := f.store.RollupWork(f.Context(), 100)
		if err != nil || len(old.Notes) != 1 {
			f.Fatalf("RollupWork: %+v, %v", old, err)
		}
		f.rollUp(roller)
		stale := rollup.Result{Turn: old.Turn, Notes: old.Notes, Seconds: []rollup.Row{{Series: rollup.Series{Gateway: "north", Sensor: "belt", Metric: "m"}, Figures: rollup.Figures{Count: 1}}}}
		if err := f.store.RollupCommit(f.Context(), stale); !isOvertaken(err) {
			f.Fatalf("RollupCommit of an old turn: %v, want ErrOvertaken", err)
		}
		f.hasRollups(Records(first))
	},

	"Rollup_BeginsWithWhatIsThereAndEndsWithoutTraces": func(f *fixture) {
		f.addGateways("north", "south")
		epoch := touchline.NewEpoch()
		all := batch{NewDelivery(f, "north", epoch, 1, Series("belt", -90e9, 1e9, 200)), NewDelivery(f, "south", touchline.NewEpoch(), 1, Series("belt", 1e18, 7e7, 500))}
		f.record(all)
		f.hasRollups(nil)
		roller := f.roller(f.store, rollup.Options{Enabled: true})
		f.rollUp(roller)
		f.hasRollups(Records(all...))
		f.roller(f.store, rollup.Options{}) // off: what comes now has no row
		all = append(all, NewDelivery(f, "north", epoch, 1001, Series("belt", 500e9, 1e9, 10)))
		f.record(all[2:])
		if err := f.store.RollupStart(f.Context(), false); err != nil {
			f.Fatal(err)
		}
		if w, err := f.store.RollupWork(f.Context(), 100); err != nil || len(w.Notes) != 0 {
			f.Fatalf("there is work though no rows are kept: %+v, %v", w, err)
		}
		f.reopen()
		f.rollUp(f.roller(f.store, rollup.Options{Enabled: true}))
		f.hasRollups(Records(all...))
	},

	// Seconds that were kept long enough go; minutes stay, and are right also
	// where samples come late and masks hide some.
	"Rollup_MinutesOutliveSeconds": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		all := batch{NewDelivery(f, "north", epoch, 1, Series("belt", 0, 5e8, 30_000))} // 15,000 s
		f.record(all)
		roller := f.roller(f.store, rollup.Options{Enabled: true})
		f.rollUp(roller)
		f.hasRollups(Records(all...))
		const cut = 7200
		if err := f.store.RollupTrim(f.Context(), cut, rollup.MinSecond); err != nil {
			f.Fatal(err)
		}
		check := func(records []cloud.Record) {
			f.Helper()
			f.rollUp(roller)
			if got, want := f.rollups(cloud.Query{}, false), rolled(records, 1); len(got) == 0 || got[0].Time < cut ||
				len(got) != len(slices.DeleteFunc(want, func(r cloud.Rollup) bool { return r.Time < cut })) {
				f.Fatalf("there are %d rows of seconds from %d s on", len(got), got[0].Time)
			}
			got, want := f.rollups(cloud.Query{}, true), rolled(records, 60)
			if !slices.EqualFunc(got, want, sameRollup) {
				f.Fatalf("the minutes are not those of the samples: %d rows, want %d", len(got), len(want))
			}
		}
		check(Records(all...))
		all = append(all, NewDelivery(f, "north", epoch, 100_001, Series("belt", 3590e9+1, 7e8, 60)), NewDelivery(f, "north", epoch, 200_001, Series("belt", cut*1e9-3e9+1, 7e8, 20)))
		f.record(all[1:])
		check(Records(all...))
		mask := f.addMask(cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 3600e9, To: 8000e9, Keep: wholeKeep(touchline.NewEpoch())})
		check(shown(masked(Records(all...), []cloud.Mask{mask})))
		revoked := f.addMask(cloud.Mask{Revokes: mask.Number})
		check(shown(masked(Records(all...), []cloud.Mask{mask, revoked})))
		if err := f.store.RollupTrim(f.Context(), cut, 10_800); err != nil {
			f.Fatal(err)
		}
		if got := f.rollups(cloud.Query{}, true); len(got) != (15_000-10_800)/60 || got[0].Time != 10_800 {
			f.Fatalf("%d minutes are left", len(got))
		}
	},

	"Rollup_IsSelectedBySeriesAndTime": func(f *fixture) {
		f.addGateways("north", "south")
		var all batch
		for _, gateway := range []string{"north", "south"} {
			all = append(all, NewDelivery(f, gateway, touchline.NewEpoch(), 1, append(Series("belt", -3e9, 5e8, 2500), Series("vest", 0, 1e9, 5)...)))
		}
		f.record(all)
		f.rollUp(f.roller(f.store, rollup.Options{Enabled: true}))
		want := rolled(Records(all...), 1)
		for _, q := range []cloud.Query{{}, {Gateway: "north"}, {Sensor: "vest"}, {Metric: "heart_rate"}, {Metric: "none"}, {Gateway: "nobody"},
			{From: ns(-1)}, {From: ns(0)}, {From: ns(1)}, {To: ns(-1e9)}, {To: ns(-1e9 + 1)}, {From: ns(1e9), To: ns(3e9)}, {From: ns(3e9), To: ns(1e9)}} {
			selected := slices.DeleteFunc(slices.Clone(want), func(r cloud.Rollup) bool {
				return q.Gateway != "" && r.Gateway != q.Gateway || q.Sensor != "" && r.Sensor != q.Sensor || q.Metric != "" && r.Metric != q.Metric ||
					q.From != nil && r.Time*1e9 < *q.From || q.To != nil && r.Time*1e9 >= *q.To
			})
			if got := f.rollups(q, false); !slices.EqualFunc(got, selected, sameRollup) {
				f.Errorf("%+v selects %d rows, want %d", q, len(got), len(selected))
			}
		}
	},

	// Times and names at the ends of what there is hold nothing up.
	"Rollup_OfAnEnemyBreaksNothing": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		var all batch
		for i, start := range []int64{math.MinInt64, -50, 0, math.MaxInt64 - 50} {
			all = append(all, NewDelivery(f, "north", epoch, uint64(1+1000*i), Series("belt", start, 1, 40)))
		}
		var bad []touchline.Sample
		for i, name := range []string{"a\x00b", "\xff\xfe", "a\nb", "x/y"} {
			bad = append(bad, touchline.Sample{Sensor: name, Metric: "m", Time: int64(i), Value: touchline.NumberValue(1)},
				touchline.Sample{Sensor: "belt", Metric: name + "\x00", Time: int64(i), Value: touchline.NumberValue(1)},
				touchline.Sample{Sensor: "belt", Metric: "m", Unit: name + "\x00", Time: int64(i), Value: touchline.NumberValue(1)})
		}
		f.record(append(all, NewDelivery(f, "north", epoch, 9001, bad)))
		roller := f.roller(f.store, rollup.Options{Enabled: true})
		f.rollUp(roller)
		f.hasRollups(Records(all...))
		if err := f.store.RollupTrim(f.Context(), rollup.MinSecond, rollup.MinSecond); err != nil {
			f.Fatal(err)
		}
		if err := f.store.RollupTrim(f.Context(), 3600, rollup.MinSecond); err != nil {
			f.Fatal(err)
		}
		f.addMask(cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: math.MinInt64, To: math.MaxInt64, Keep: wholeKeep(touchline.NewEpoch())})
		f.rollUp(roller)
		if got := f.rollups(cloud.Query{}, true); len(got) != 0 {
			f.Errorf("%d rows are left of what is hidden: %+v", len(got), got)
		}
	},
}
