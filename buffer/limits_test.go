package buffer

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"touchline"
	"touchline/wire"
)

// spacedBlock returns a sample of some 50,000 bytes, and one of a time before
// it: the n-th block covers [100n, 100n+7].
func spacedBlock(n int) []touchline.Sample {
	s := bulky(50_000)[0]
	s.Time = int64(100*n) + 7
	return []touchline.Sample{s, {Sensor: "belt-7", Metric: "heart_rate", Time: int64(100 * n), Value: touchline.NumberValue(150)}}
}

// Whatever the limit: what the cloud stored goes first and is no loss, and of
// what goes then each number is recorded with its cause and the span of its
// times, and is so after a restart.
func TestEvict_EachLimitRecordsJustWhatItTook(t *testing.T) {
	const blocks, stored = 30, 5 // 30 × 50 KB are 1.5 MB; of the oldest, the cloud has every second
	for _, test := range []struct {
		name, cause string
		kept        int64 // a limit of age needs no room
		limit       func(l *limited)
	}{
		{"max_bytes", "max_bytes", 0, func(l *limited) {
			l.b.opts.MaxBytes = 1 << 20
			mustAppend(t, l.b, numbered(0, 1)) // the youngest
		}},
		{"max_age", "max_age", stored, func(l *limited) { l.clock.advance(50 * time.Minute) }},
		{"free_reserve", "free_reserve", 0, func(l *limited) {
			l.free.Store(63 << 20) // 1 MiB is missing
			l.clock.advance(2 * freeInterval)
		}},
		{"a full disk", "free_reserve", 0, func(l *limited) {
			l.full.Store(true)
			if err := l.b.Append(testContext(t), numbered(0, 1)); err == nil {
				t.Error("a full disk took a sample")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLimited(t)
			for i := range blocks {
				mustAppend(t, l.b, spacedBlock(i))
				l.clock.advance(time.Minute)
			}
			before := readAll(t, l.b)
			var claimed []wire.Block
			for i := range stored {
				claimed = append(claimed, before[2*i])
			}
			if err := l.b.Ack(ackOf(claimed...), nil); err != nil {
				t.Fatal(err)
			}
			evict(t, l.b)
			wantKept(t, l.b, blocks-stored, stored)
			test.limit(l)
			evict(t, l.b)

			var want wire.Lost
			left := readAll(t, l.b)
			for i, block := range before {
				there := slices.ContainsFunc(left, func(other wire.Block) bool { return other.First == block.First })
				if there || i < 2*stored && i%2 == 0 {
					continue
				}
				if want.Ranges == nil {
					want.MinTime = int64(100 * i)
				}
				want.Ranges.Add(block.Range())
				want.MaxTime = int64(100*i) + 7
			}
			_, lost := l.b.Held()
			if len(lost) != 1 {
				t.Fatalf("lost %+v, want one record", lost)
			}
			want.ID, want.Epoch, want.Cause = lost[0].ID, l.b.epoch, test.cause
			if len(want.Ranges) < 2 || !equalLost(lost[0], want) {
				t.Errorf("lost %+v, want %+v", lost[0], want)
			}
			s := l.b.Stats()
			if s.Evicted[test.cause] != want.Ranges.Count() || s.KeptBlocks != test.kept || s.LostRecords != 1 {
				t.Errorf("%v evicted, %d blocks kept, %d records: want %d by %s, %d, one", s.Evicted, s.KeptBlocks, s.LostRecords, want.Ranges.Count(), test.cause, test.kept)
			}
			t.Logf("MEASURED limits, %s: %d samples of %d evicted, %d of %d kept blocks given up before, recorded as %v",
				test.name, want.Ranges.Count(), 2*(blocks-stored), stored-test.kept, stored, want.Ranges)
			l.full.Store(false)
			if err := l.b.Close(); err != nil {
				t.Fatal(err)
			}
			l.opts.fault = nil
			if _, lost := openBuffer(t, l.opts).Held(); len(lost) != 1 || !equalLost(lost[0], want) {
				t.Errorf("after a restart lost are %+v, want %+v", lost, want)
			}
		})
	}
}

// limited is a buffer of which each limit can be reached.
type limited struct {
	opts  Options
	clock *testClock
	free  atomic.Int64
	full  atomic.Bool // the next commit of samples finds it so
	b     *Buffer
}

func newLimited(t *testing.T) *limited {
	l := new(limited)
	l.opts, l.clock = keepOptions(t)
	l.opts.KeepStored, l.opts.MaxAge, l.opts.FreeReserve = 12*time.Hour, time.Hour, 64<<20
	l.opts.ballast = -1
	l.free.Store(100 << 20)
	l.opts.free = func(string) (int64, error) { return l.free.Load(), nil }
	l.opts.fault = func(stage string, err error) error {
		if stage == "insert" && l.full.CompareAndSwap(true, false) {
			return sqlite3.Error{Code: sqlite3.ErrFull}
		}
		return err
	}
	l.b = startBuffer(t, l.opts)
	return l
}

// Neither an old recording nor a clock that is set is a reason to evict: ages
// are running time, however often the gateway was opened, and whatever the
// samples, the wall clock and the time since power-on say.
func TestEvict_AgeIsNotThatOfTheSamples(t *testing.T) {
	opts, clock := testOptions(t), new(testClock)
	var uptime atomic.Int64
	opts.MaxAge, opts.clock, opts.tick = time.Hour, clock.elapsed, time.Hour
	opts.Uptime = func() time.Duration { return time.Duration(uptime.Load()) }
	times := []time.Time{
		time.Unix(0, 0), time.Unix(-1, 0), time.Date(1903, 7, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2010, 6, 11, 14, 0, 0, 0, time.UTC), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	b := startBuffer(t, opts)
	boot := touchline.Boot{7}
	now := touchline.Clock{Boot: boot}
	var want []touchline.Sample
	add := func() {
		t.Helper()
		var samples []touchline.Sample
		for i, at := range times {
			s := numbered(len(want)+i, 1)[0]
			s.Time, s.Stamped = at.UnixNano(), i == 0
			samples = append(samples, s)
		}
		done := make(chan error, 1)
		arrival := touchline.Arrival{Samples: samples, Clock: &now}
		if err := b.AppendAsync(context.Background(), arrival, func(err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		want = append(want, samples...)
	}
	check := func(after string) {
		t.Helper()
		evict(t, b)
		onRun(t, b, func() { b.afterRound(true) })
		if s := b.Stats(); s.Samples != int64(len(want)) || s.LostRecords != 0 {
			t.Fatalf("after %s: %d samples are held and %d losses recorded, want %d and none", after, s.Samples, s.LostRecords, len(want))
		}
	}
	add()
	check("samples of other times")
	clock.advance(20 * time.Minute)
	for _, step := range []struct {
		name   string
		clock  touchline.Clock
		uptime time.Duration
	}{
		{"the clock was set, from 1970 to 2026", touchline.Clock{Boot: boot, State: touchline.ClockSet, Offset: int64(56 * 365 * 24 * time.Hour)}, 20 * time.Minute},
		{"it was set back by 26 years", touchline.Clock{Boot: boot, State: touchline.ClockSet, Offset: int64(30 * 365 * 24 * time.Hour)}, 21 * time.Minute},
		{"it was synchronised", touchline.Clock{Boot: boot, State: touchline.ClockSynchronised, Offset: int64(56*365*24*time.Hour + time.Hour)}, 22 * time.Minute},
		{"the machine slept for a month", touchline.Clock{Boot: boot, State: touchline.ClockSynchronised, Offset: int64(56 * 365 * 24 * time.Hour)}, 30 * 24 * time.Hour},
		{"another boot, without a clock", touchline.Clock{Boot: touchline.Boot{8}}, 0},
	} {
		now = step.clock
		uptime.Store(int64(step.uptime))
		b.SetClock(now)
		add()
		check(step.name)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	clock.advance(10 * 365 * 24 * time.Hour) // switched off
	b = startBuffer(t, opts)
	check("ten years without power")
	clock.advance(39 * time.Minute)
	check("59 minutes of running time")
	clock.advance(2 * time.Minute)
	evict(t, b)
	_, lost := b.Held()
	if len(lost) != 1 || lost[0].MinTime != times[2].UnixNano() || lost[0].MaxTime != times[4].UnixNano() || lost[0].Ranges.Count() != uint64(len(times)) {
		t.Errorf("after 61 minutes lost are %+v, want the first block from %s to %s", lost, times[2], times[4])
	}
}
