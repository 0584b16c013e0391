package recordertest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
)

// untrimmed is a store in which nothing can be dropped.
type untrimmed struct {
	Store
	committed chan struct{}
}

func (u *untrimmed) RollupTrim(context.Context, int64, int64) error { return errors.New("no") }

func (u *untrimmed) RollupCommit(ctx context.Context, r rollup.Result) error {
	err := u.Store.RollupCommit(ctx, r)
	select {
	case u.committed <- struct{}{}:
	default:
	}
	return err
}

var rollupTrimTests = map[string]func(*fixture){
	// Less is to be kept than before: rows of years, of clocks that were wrong, and
	// of hours with nothing between them go, in many transactions, and no other.
	"Rollup_AnyNumberOfRowsIsDropped": func(f *fixture) {
		f.addGateways("north", "south")
		var all batch
		for _, gateway := range []string{"north", "south"} {
			epoch := touchline.NewEpoch()
			for i, step := range []int64{1e9, 1700e9, 86_400e9} {
				all = append(all, NewDelivery(f, gateway, epoch, uint64(1+1000*i), Series("belt", today-int64(i)*40*86_400e9, step, 30)))
			}
			all = append(all, NewDelivery(f, gateway, epoch, 9001, Series("odd", -5e9, 1e9, 20)))
		}
		f.record(all)
		f.rollUp(f.roller(f.store, rollup.Options{Enabled: true}))
		records := Records(all...)
		f.hasRollups(records)
		for _, cut := range [][2]int64{{rollup.MinSecond, rollup.MinSecond}, {0, rollup.MinSecond}, {1, 60},
			{today/1e9 - 80*86_400 + 1, today/1e9 - 79*86_400}, {today/1e9 + 7, today / 1e9}, {today/1e9 + 86_400, today/1e9 + 86_400}} {
			if err := f.store.RollupTrim(f.Context(), cut[0], cut[1]); err != nil {
				f.Fatal(err)
			}
			for minutes, before := range cut {
				want := slices.DeleteFunc(rolled(records, []int64{1, 60}[minutes]), func(r cloud.Rollup) bool { return r.Time < before })
				if got := f.rollups(cloud.Query{}, minutes == 1); !slices.EqualFunc(got, want, sameRollup) {
					f.Fatalf("minutes %d: %d rows are left of those before %d, want %d", minutes, len(got), before, len(want))
				}
			}
		}
	},

	// A node whose clock is ahead by years drops what it takes for old. Once that is
	// known, rows are there again, of what came meanwhile too; and so they are where
	// more is to be kept than before.
	"Rollup_AClockThatWasAheadTakesNothingForGood": func(f *fixture) {
		const day, hour = int64(86_400), today / 3600e9 * 3600
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		all := batch{NewDelivery(f, "north", epoch, 1, Series("belt", (hour-20*day)*1e9, 700e9, 2600))} // 21 days
		f.record(all)
		roller := f.roller(f.store, rollup.Options{Enabled: true})
		f.rollUp(roller)
		trim := func(seconds, minutes int64) {
			f.Helper()
			if err := f.store.RollupTrim(f.Context(), seconds, minutes); err != nil {
				f.Fatal(err)
			}
		}
		trim(hour+3650*day, hour+3650*day)
		f.hasRollups(nil)
		all = append(all, NewDelivery(f, "north", epoch, 10_001, Series("vest", hour*1e9, 1e9, 300)))
		f.record(all[1:])
		f.rollUp(roller)
		trim(hour-30*day, hour-30*day)
		f.rollUp(roller)
		f.hasRollups(Records(all...))

		trim(hour-7*day, rollup.MinSecond)
		f.rollUp(roller)
		kept := slices.DeleteFunc(rolled(Records(all...), 1), func(r cloud.Rollup) bool { return r.Time < hour-7*day })
		if got := f.rollups(cloud.Query{}, false); !slices.EqualFunc(got, kept, sameRollup) {
			f.Fatalf("%d rows of seconds are kept, want %d", len(got), len(kept))
		}
		trim(rollup.MinSecond, rollup.MinSecond)
		f.rollUp(roller)
		f.hasRollups(Records(all...))
	},

	"Rollup_WhatCanNotBeDroppedHoldsUpNoRows": func(f *fixture) {
		f.addGateways("north")
		d := NewDelivery(f, "north", touchline.NewEpoch(), 1, Series("belt", today, 1e9, 20))
		f.record(batch{d})
		store := &untrimmed{f.store, make(chan struct{}, 1)}
		r, err := rollup.New(rollup.Options{Enabled: true, SecondRows: 72 * time.Hour, Limits: rollup.DefaultLimits}, store, slog.New(slog.DiscardHandler))
		if err != nil {
			f.Fatal(err)
		}
		ctx, stop := context.WithTimeout(f.Context(), time.Minute)
		defer stop()
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		select {
		case <-store.committed:
		case <-ctx.Done():
			f.Error("no turn in a minute")
		}
		stop()
		if err := <-ended; err != nil {
			f.Errorf("Run: %v", err)
		}
		f.hasRollups(Records(d))
	},
}
