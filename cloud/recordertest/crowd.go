package recordertest

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/cloud"
)

var crowdTests = map[string]func(*fixture){
	// Readers of all kinds while batches are recorded: no call fails, and
	// every query sees whole batches, in order, each sample once.
	"Crowd_ReadersSeeWholeBatchesWhileRecording": func(f *fixture) {
		const batches, blocks, samples = 40, 5, 20
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		var work []batch
		for i := range batches {
			var b batch
			for j := range blocks {
				n := i*blocks + j
				b = append(b, NewDelivery(f, "north", epoch, uint64(1+n*samples), Series("belt", int64(n*samples), 1, samples)))
			}
			work = append(work, b)
		}
		recorded, done := context.WithCancel(f.Context())
		group, ctx := errgroup.WithContext(f.Context())
		group.Go(func() error {
			defer done()
			for _, b := range work {
				if _, err := f.store.Record(ctx, b); err != nil {
					return err
				}
			}
			return nil
		})
		until := func(step func() error) {
			group.Go(func() error {
				for recorded.Err() == nil {
					if err := step(); err != nil {
						return err
					}
				}
				return step()
			})
		}
		for range 3 {
			seen := 0
			until(func() error {
				n := 0
				err := f.store.Samples(ctx, cloud.Query{}, func(r cloud.Record) error {
					if n++; r.Seq != uint64(n) || r.Time != int64(n-1) {
						return fmt.Errorf("record %d has number %d and time %d", n, r.Seq, r.Time)
					}
					return nil
				})
				if err == nil && (n < seen || n%(blocks*samples) != 0) {
					err = fmt.Errorf("a query saw %d samples after %d: want whole batches of %d, and never fewer", n, seen, blocks*samples)
				}
				seen = n
				return err
			})
		}
		until(func() error {
			stored, err := f.store.Stored(ctx, "north", []touchline.Epoch{epoch})
			if err == nil && len(stored) > 0 && (len(stored[0].Ranges) != 1 || stored[0].Ranges.Count()%(blocks*samples) != 0) {
				err = fmt.Errorf("stored is %v: want whole batches of %d", stored[0].Ranges, blocks*samples)
			}
			return err
		})
		until(func() error {
			if _, _, err := f.store.NewSession(ctx, "north"); err != nil {
				return err
			}
			_, err := f.store.GatewayByToken(ctx, token("north"))
			return err
		})
		if err := group.Wait(); err != nil {
			f.Fatal(err)
		}
		done()
		f.counts("north", batches*blocks*samples, batches*blocks, 0, 0)
		var all batch
		for _, b := range work {
			all = append(all, b...)
		}
		f.has(all...)
	},
}
