package recordertest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"touchline"
	"touchline/cloud"
)

func isUnknownToken(err error) bool { return errors.Is(err, cloud.ErrUnknownToken) }

func ns(t int64) *int64 { return &t }

var queryTests = map[string]func(*fixture){
	"Samples_OfAnEmptyStoreAreNone": func(f *fixture) {
		f.has()
		f.selects(cloud.Query{Gateway: "north", From: ns(0), To: ns(10)}, nil)
	},

	"Samples_TiesAreInOrderOfGatewayEpochSeq": func(f *fixture) {
		f.addGateways("b", "a", "a.b", "B")
		var all batch
		for _, gateway := range []string{"b", "a", "a.b", "B"} {
			for range 3 {
				epoch := touchline.NewEpoch()
				for i := range uint64(3) {
					all = append(all, NewDelivery(f, gateway, epoch, 1+10*(2-i), Series("belt", 1000, 0, 10)))
				}
			}
		}
		f.record(all)
		f.has(all...)
	},

	"Samples_SayWhenTheyWereReceivedFirst": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		var all batch
		for i := range 5 { // all at the same times, so that they come mixed
			d := NewDelivery(f, "north", epoch, uint64(1+10*i), Series("belt", 1000, 10, 10))
			d.Received = Received.Add(time.Duration(i) * time.Millisecond)
			all = append(all, d)
		}
		f.record(all)
		repeat := all[2]
		repeat.Received = Received.Add(time.Hour)
		if _, err := f.store.Record(f.Context(), batch{repeat}); err != nil {
			f.Fatal(err)
		}
		f.has(all...)
	},

	"Samples_FromIsInclusiveAndToExclusive": func(f *fixture) {
		f.addGateways("north")
		epoch := touchline.NewEpoch()
		var all batch
		for i, start := range []int64{math.MinInt64, -100, -1, 0, 50, 1 << 40, 1<<60 - 3, math.MaxInt64 - 9} {
			all = append(all, NewDelivery(f, "north", epoch, uint64(1+10*i), Series("belt", start, 1, 10)))
		}
		// One block that lasts from the first time to the last.
		all = append(all, NewDelivery(f, "north", epoch, 1000, []touchline.Sample{
			{Sensor: "belt", Metric: "m", Time: math.MinInt64}, {Sensor: "belt", Metric: "m", Time: 3}, {Sensor: "belt", Metric: "m", Time: math.MaxInt64},
		}))
		f.record(all)
		records := Records(all...)
		edges := []*int64{nil}
		for _, r := range records {
			for _, edge := range []int64{r.Time - 1, r.Time, r.Time + 1} {
				edges = append(edges, ns(edge))
			}
		}
		random := rand.New(rand.NewPCG(1, 2))
		for range 400 {
			q := cloud.Query{From: edges[random.IntN(len(edges))], To: edges[random.IntN(len(edges))]}
			f.selects(q, matching(records, q))
		}
	},

	"Samples_SelectsByGatewaySensorAndMetric": func(f *fixture) {
		f.addGateways("north", "south", "idle")
		var all batch
		epochs := map[string]touchline.Epoch{"north": touchline.NewEpoch(), "south": touchline.NewEpoch()}
		next := map[string]uint64{"north": 1, "south": 1}
		for i := range 60 {
			gateway := []string{"north", "south"}[i%2]
			var samples []touchline.Sample
			for j := range 30 {
				samples = append(samples, touchline.Sample{
					Sensor: fmt.Sprintf("s%d", (i/4+j/6)%9), Metric: fmt.Sprintf("m%d", j%5),
					Time: int64(i*25 + j), Value: touchline.NumberValue(float64(i)),
				})
			}
			all = append(all, NewDelivery(f, gateway, epochs[gateway], next[gateway], samples))
			next[gateway] += 30
		}
		f.record(all)
		records := Records(all...)
		for _, gateway := range []string{"", "north", "south", "idle", "nobody"} {
			for _, sensor := range []string{"", "s0", "s8", "m1", "none"} {
				for _, metric := range []string{"", "m0", "m4", "s1", "none"} {
					for _, from := range []*int64{nil, ns(300)} {
						q := cloud.Query{Gateway: gateway, Sensor: sensor, Metric: metric, From: from}
						f.selects(q, matching(records, q))
					}
				}
			}
		}
	},

	"Samples_AreExact": func(f *fixture) {
		f.addGateways("north")
		var samples []touchline.Sample
		for i, v := range []touchline.Value{
			touchline.NumberValue(0), touchline.NumberValue(math.Copysign(0, -1)), touchline.NumberValue(0.1), touchline.NumberValue(-273.15),
			touchline.NumberValue(math.Inf(1)), touchline.NumberValue(math.Inf(-1)), touchline.NumberValue(math.NaN()),
			touchline.NumberValue(math.Float64frombits(0x7ff0000000000001)), touchline.NumberValue(math.Float64frombits(0xffffffffffffffff)),
			touchline.NumberValue(math.MaxFloat64), touchline.NumberValue(math.SmallestNonzeroFloat64), touchline.NumberValue(1<<53 + 2),
			touchline.TextValue(""), touchline.TextValue("Spielstand 2:1 ⚽"), touchline.TextValue(strings.Repeat("long ", 5000)),
			touchline.BoolValue(true), touchline.BoolValue(false),
			touchline.BytesValue(""), touchline.BytesValue("\x00\xff\xfe"),
		} {
			samples = append(samples, touchline.Sample{Sensor: "Gerät №1", Metric: "a/b/c", Unit: "m/s²", Time: int64(i), Value: v})
		}
		samples = append(samples, touchline.Sample{Sensor: "x", Metric: touchline.MetricRaw, Time: -1, Value: touchline.BytesValue("{")})
		d := NewDelivery(f, "north", touchline.NewEpoch(), 1, samples)
		f.record(batch{d}, fresh)
		f.reopen()
		f.has(d)
	},

	// Blocks in any order, short and long, apart and across one another.
	"Samples_AreInOrderWhateverTheBlocks": func(f *fixture) {
		f.addGateways("g0", "g1", "g2")
		random := rand.New(rand.NewPCG(3, 4))
		var all batch
		for g := range 3 {
			epoch := touchline.NewEpoch()
			first := uint64(1)
			for range 70 {
				step := int64(1) << random.IntN(30)
				var samples []touchline.Sample
				for s := range 1 + random.IntN(3) {
					samples = append(samples, Series(fmt.Sprint("s", s), random.Int64N(1<<34), random.Int64N(step), 1+random.IntN(60))...)
				}
				all = append(all, NewDelivery(f, fmt.Sprint("g", g), epoch, first, samples))
				first += uint64(len(samples))
			}
		}
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for part := range slices.Chunk(all, 16) {
			f.record(part)
		}
		records := Records(all...)
		f.selects(cloud.Query{}, records)
		for range 100 {
			q := cloud.Query{From: ns(random.Int64N(1 << 34)), To: ns(random.Int64N(1 << 34))}
			if random.IntN(2) == 0 {
				q.Gateway = "g1"
			}
			if random.IntN(2) == 0 {
				q.Sensor = "s2"
			}
			f.selects(q, matching(records, q))
		}
	},

	"Samples_EndsWithTheErrorOfYield": func(f *fixture) {
		f.addGateways("north")
		f.record(batch{NewDelivery(f, "north", touchline.NewEpoch(), 1, Series("belt", 0, 1, 100))})
		stop := errors.New("client went away")
		n := 0
		err := f.store.Samples(f.Context(), cloud.Query{}, func(cloud.Record) error {
			if n++; n == 3 {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) || n != 3 {
			f.Fatalf("Samples returned %v after %d records, want the error of the third", err, n)
		}
	},

	"Samples_EndsWithItsContext": func(f *fixture) {
		f.addGateways("north")
		f.record(batch{NewDelivery(f, "north", touchline.NewEpoch(), 1, Series("belt", 0, 1, 100))})
		ctx, cancel := context.WithCancel(f.Context())
		cancel()
		err := f.store.Samples(ctx, cloud.Query{}, func(cloud.Record) error { return nil })
		if !errors.Is(err, context.Canceled) {
			f.Fatalf("Samples returned %v, want context.Canceled", err)
		}
	},

	// What is recorded while a query runs is not in it, and a yield that
	// records is not in its own way.
	"Samples_ReadsWhatWasStoredWhenItWasCalled": func(f *fixture) {
		f.addGateways("north")
		const blocks, size, every = 120, 300, 500
		epoch := touchline.NewEpoch()
		var there batch
		for i := range blocks {
			there = append(there, NewDelivery(f, "north", epoch, uint64(1+i*size), Series("belt", int64(i*size), 1, size)))
		}
		f.record(there)
		n := 0
		err := f.store.Samples(f.Context(), cloud.Query{}, func(r cloud.Record) error {
			if n++; r.Seq != uint64(n) {
				return fmt.Errorf("record %d has number %d", n, r.Seq)
			}
			if n%every == 0 { // times behind all that was there
				next := (blocks + n/every - 1) * size
				f.record(batch{NewDelivery(f, "north", epoch, uint64(1+next), Series("belt", int64(next), 1, size))}, fresh)
			}
			return nil
		})
		if err != nil {
			f.Fatalf("Samples: %v", err)
		}
		if n != blocks*size {
			f.Fatalf("Samples yielded %d records, want the %d that were there", n, blocks*size)
		}
		f.stored("north", epoch, touchline.Range{First: 1, Last: blocks*size + blocks*size/every*size})
	},
}

// matching returns the records that q selects.
func matching(records []cloud.Record, q cloud.Query) []cloud.Record {
	var selected []cloud.Record
	for _, r := range records {
		if (q.Gateway == "" || r.Gateway == q.Gateway) && (q.Sensor == "" || r.Sensor == q.Sensor) && (q.Metric == "" || r.Metric == q.Metric) &&
			(q.From == nil || r.Time >= *q.From) && (q.To == nil || r.Time < *q.To) {
			selected = append(selected, r)
		}
	}
	return selected
}
