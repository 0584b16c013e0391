package recordertest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// Clocked returns a block as ingest hands it over that was stamped by this
// clock.
func Clocked(t testing.TB, d cloud.Delivery, clock touchline.Clock) cloud.Delivery {
	t.Helper()
	encoded, err := wire.NewEncoder().EncodeWith(nil, d.Samples, wire.Attributes{Clock: &wire.BlockClock{Clock: clock, Uptime: time.Minute}})
	if err != nil || encoded.Count != len(d.Samples) {
		t.Fatalf("encode block: %d of %d samples, %v", encoded.Count, len(d.Samples), err)
	}
	d.Block.Data = encoded.Data
	d.Block.CRC = d.Block.Sum()
	decoder := wire.NewDecoder()
	if d.Samples, err = decoder.Decode(nil, d.Block.Data); err != nil {
		t.Fatalf("decode block: %v", err)
	}
	d.Clock = decoder.Attributes().Clock
	return d
}

// Stamped returns n samples that a gateway stamped, each step after the one
// before, and between them as many with times of the sensor.
func Stamped(start, own, step int64, n int) []touchline.Sample {
	var samples []touchline.Sample
	for i, s := range Series("belt", start, step, n) {
		s.Stamped = true
		samples = append(samples, s, Series("vest", own+int64(i)*step, 0, 1)[0])
	}
	return samples
}

// by corrects the records of a delivery as its gateway's clock is known, in
// the plainest way: this is what stores are measured against.
func by(d cloud.Delivery, known touchline.Clock) []cloud.Record {
	records := Records(d)
	for i := range records {
		r := &records[i]
		if d.Clock == nil || d.Clock.State == touchline.ClockSynchronised {
			continue
		}
		applies := known.State > touchline.ClockUnset && known.State >= d.Clock.State
		switch {
		case r.Stamped && applies && known.Offset != d.Clock.Offset:
			r.Time += known.Offset - d.Clock.Offset
			r.Clock = cloud.NoteCorrected
		case r.Stamped && applies && known.State == touchline.ClockSynchronised:
		case d.Clock.State == touchline.ClockUnset:
			r.Clock = cloud.NoteUnset
		case r.Stamped:
			r.Clock = cloud.NoteSet
		}
	}
	return records
}

func sorted(lists ...[]cloud.Record) []cloud.Record {
	records := slices.Concat(lists...)
	slices.SortFunc(records, Compare)
	return records
}

func (f *fixture) clock(gateway string, clock touchline.Clock) {
	f.Helper()
	if err := f.store.Clock(f.Context(), gateway, 0, clock); err != nil {
		f.Fatalf("Clock: %v", err)
	}
}

// The clocks of these tests: of a boot that began at 1970 and was in truth in
// May 2026.
const (
	day  = int64(24 * time.Hour)
	boot = int64(1_780_000_000e9)
)

var (
	unset = touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockUnset, Offset: 5e9}
	badly = touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockSet, Offset: boot - 3600e9}
	right = touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockSynchronised, Offset: boot}
	none  = touchline.Clock{}
)

var clockTests = map[string]func(*fixture){
	"Clock_CorrectsStampsWhateverCameFirst": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		first := Clocked(f, NewDelivery(f, "north", epoch, 1, Stamped(20e9, boot+10e9, 1e9, 50)), unset)
		second := Clocked(f, NewDelivery(f, "north", epoch, 101, Stamped(80e9, boot-day, 1e9, 50)), unset)
		plain := NewDelivery(f, "north", epoch, 201, Series("belt", 30e9, 1e9, 50)) // of an older gateway
		f.record(batch{first, plain}, fresh, fresh)
		f.selects(cloud.Query{}, sorted(by(first, none), by(plain, none)))
		f.clock("north", right)
		f.record(batch{second}, fresh)
		want := sorted(by(first, right), by(second, right), by(plain, none))
		f.selects(cloud.Query{}, want)
		for _, edge := range []int64{0, 20e9, 30e9, 100e9, boot - day, boot, boot + 15e9, boot + 40e9, boot + 75e9} {
			for _, q := range []cloud.Query{{From: ns(edge)}, {To: ns(edge)}, {From: ns(edge), To: ns(edge + 10e9)}, {From: ns(edge), Sensor: "belt"}} {
				f.selects(q, matching(want, q))
			}
		}
		f.reopen()
		f.selects(cloud.Query{}, want)
		f.record(batch{first, second}, repeat, repeat)
		f.selects(cloud.Query{}, want)
	},

	"Clock_BetterStateReplacesWorseAndOfEqualOnesTheLatestCounts": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		byUnset := Clocked(f, NewDelivery(f, "north", epoch, 1, Stamped(20e9, boot, 1e9, 50)), unset)
		bySet := Clocked(f, NewDelivery(f, "north", epoch, 101, Stamped(boot, boot, 1e9, 50)), badly)
		byRight := Clocked(f, NewDelivery(f, "north", epoch, 201, Stamped(boot, boot, 1e9, 50)), right)
		f.record(batch{byUnset, bySet, byRight}, fresh, fresh, fresh)
		later := right
		later.Offset += 7e9
		worse := badly
		worse.Offset -= day
		for _, step := range []struct{ say, counts touchline.Clock }{
			{badly, badly}, {badly, badly}, {worse, worse}, {badly, badly},
			{right, right}, {badly, right}, {right, right}, {later, later}, {right, right},
		} {
			f.clock("north", step.say)
			f.selects(cloud.Query{}, sorted(by(byUnset, step.counts), by(bySet, step.counts), by(byRight, step.counts)))
		}
	},

	"Clock_IsOfOneBootOfOneGateway": func(f *fixture) {
		f.addGateways("north", "south")
		other := unset
		other.Boot[0]++
		north := Clocked(f, NewDelivery(f, "north", touchline.NewEpoch(), 1, Stamped(20e9, boot, 1e9, 50)), unset)
		again := Clocked(f, NewDelivery(f, "north", touchline.NewEpoch(), 1, Stamped(20e9, boot, 1e9, 50)), other)
		south := Clocked(f, NewDelivery(f, "south", touchline.NewEpoch(), 1, Stamped(20e9, boot, 1e9, 50)), unset)
		f.record(batch{north, again, south}, fresh, fresh, fresh)
		f.clock("north", right)
		f.selects(cloud.Query{}, sorted(by(north, right), by(again, none), by(south, none)))
		next := right
		next.Boot, next.Offset = other.Boot, boot+day
		f.clock("north", next)
		f.selects(cloud.Query{}, sorted(by(north, right), by(again, next), by(south, none)))
		f.selects(cloud.Query{Gateway: "south"}, sorted(by(south, none)))
	},

	"Clock_IsRefusedWhereItCorrectsNothing": func(f *fixture) {
		f.addGateways("north")
		for name, c := range map[string]struct {
			gateway string
			clock   touchline.Clock
		}{"unset": {"north", unset}, "unknown state": {"north", touchline.Clock{State: 3}}, "unknown gateway": {"nobody", right}} {
			if err := f.store.Clock(f.Context(), c.gateway, 0, c.clock); err == nil {
				f.Errorf("%s: Clock returned nil", name)
			}
		}
		ctx, cancel := context.WithCancel(f.Context())
		cancel()
		if err := f.store.Clock(ctx, "north", 0, right); err == nil {
			f.Error("Clock returned nil with a context that had ended")
		}
	},

	// However far it is off: times stay in order, and within 64 bits.
	"Clock_OfAnEnemyBreaksNothing": func(f *fixture) {
		f.addGateways("north")
		var all batch
		epoch := touchline.NewEpoch()
		offsets := []int64{math.MinInt64, -1, 0, 1, math.MaxInt64}
		for i, offset := range offsets {
			clock := touchline.Clock{Boot: touchline.Boot{1}, Offset: offset}
			for j, start := range []int64{math.MinInt64, -50, math.MaxInt64 - 50} {
				d := NewDelivery(f, "north", epoch, uint64(1+1000*i+100*j), Stamped(start, 5, 1, 20))
				all = append(all, Clocked(f, d, clock))
			}
		}
		f.record(all)
		for _, offset := range offsets {
			f.clock("north", touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockSynchronised, Offset: offset})
			got := f.query(cloud.Query{})
			if len(got) != 40*len(all) || !slices.IsSortedFunc(got, Compare) {
				f.Errorf("offset %d: %d samples, in order: %v", offset, len(got), slices.IsSortedFunc(got, Compare))
			}
		}
	},

	// A correction while a query runs moves nothing in or out of its result.
	"Clock_QueryReadsWhatWasKnownWhenItWasCalled": func(f *fixture) {
		f.addGateways("north")
		const blocks, size = 150, 200
		epoch := touchline.NewEpoch()
		var lists [][]cloud.Record
		var after [][]cloud.Record
		var all batch
		last := right
		for i := range blocks {
			d := NewDelivery(f, "north", epoch, uint64(1+i*2*size), Stamped(int64(i)*size*1e9, int64(i)*size*1e9, 1e9, size))
			all = append(all, Clocked(f, d, unset))
			lists = append(lists, by(all[i], none))
		}
		f.record(all)
		want := sorted(lists...)
		n := 0
		err := f.store.Samples(f.Context(), cloud.Query{}, func(r cloud.Record) error {
			if r != want[n] {
				return fmt.Errorf("record %d is\n%+v, want\n%+v", n, r, want[n])
			}
			if n++; n%5000 == 1 {
				last.Offset += 1000e9
				return f.store.Clock(f.Context(), "north", 0, last)
			}
			return nil
		})
		if err != nil || n != len(want) {
			f.Fatalf("Samples yielded %d of %d records: %v", n, len(want), err)
		}
		for i := range all {
			after = append(after, by(all[i], last))
		}
		f.selects(cloud.Query{}, sorted(after...))
	},

	// Nor does one that is being committed while a query begins.
	"Clock_NoQueryFailsForACorrection": func(f *fixture) {
		f.addGateways("north")
		const blocks, size, times = 20, 10, 100
		epoch := touchline.NewEpoch()
		var all batch
		for i := range blocks {
			d := NewDelivery(f, "north", epoch, uint64(1+i*2*size), Stamped(int64(i)*size*1e9, int64(i)*size*1e9, 1e9, size))
			all = append(all, Clocked(f, d, unset))
		}
		f.record(all)
		corrected := make(chan error, 1)
		go func() {
			c := right
			for range times {
				c.Offset += 1000e9
				if err := f.store.Clock(f.Context(), "north", 0, c); err != nil {
					corrected <- err
					return
				}
			}
			corrected <- nil
		}()
		for queries := 0; ; queries++ {
			if got := f.query(cloud.Query{}); len(got) != 2*blocks*size {
				f.Fatalf("query %d found %d samples of %d", queries, len(got), 2*blocks*size)
			}
			select {
			case err := <-corrected:
				if err != nil {
					f.Errorf("Clock: %v", err)
				}
				f.Logf("%d queries while %d corrections were recorded", queries, times)
				return
			default:
			}
		}
	},

	"Clock_RandomOrdersOfBlocksAndClocks": func(f *fixture) {
		seed := rand.Uint64()
		f.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 1))
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		known := map[touchline.Boot]touchline.Clock{}
		var all batch
		corrections := 0
		for step := range 120 {
			c := touchline.Clock{Boot: touchline.Boot{byte(r.IntN(3))}, State: touchline.ClockState(r.IntN(3)), Offset: r.Int64N(1000) * 1e9}
			if r.IntN(3) == 0 && c.State > touchline.ClockUnset {
				f.clock("north", c)
				if corrections++; c.State >= known[c.Boot].State {
					known[c.Boot] = c
				}
			} else {
				samples := Stamped(r.Int64N(2000)*1e9, r.Int64N(2000)*1e9, r.Int64N(3)*1e9, 1+r.IntN(20))
				if r.IntN(3) == 0 { // all of them, or none
					for i := range samples {
						samples[i].Stamped = samples[0].Sensor == "belt" && r.IntN(2) == 0
					}
				}
				all = append(all, Clocked(f, NewDelivery(f, "north", epoch, uint64(1+100*step), samples), c))
				f.record(all[len(all)-1:], fresh)
			}
			if step%10 == 9 {
				var lists [][]cloud.Record
				for _, d := range all {
					lists = append(lists, by(d, known[d.Clock.Boot]))
				}
				want := sorted(lists...)
				f.selects(cloud.Query{}, want)
				for range 5 {
					q := cloud.Query{From: ns(r.Int64N(3000) * 1e9), To: ns(r.Int64N(4000) * 1e9)}
					f.selects(q, matching(want, q))
				}
			}
		}
		f.Logf("MEASURED clock corrections: %d blocks and %d clocks in random order, every sample at its time", len(all), corrections)
	},
}
