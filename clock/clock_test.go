package clock

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"touchline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// match is when things happen here: the truth, when the machine is switched on.
var match = time.Date(2027, 5, 30, 20, 45, 0, 0, time.UTC)

// A box is a machine with clocks that tests move. What its monotonic clock
// counts is the time of the synctest bubble.
type box struct {
	t     *testing.T
	began time.Time // of the bubble, when it was switched on

	mu     sync.Mutex
	wall   time.Time // what its clock shows when it is switched on
	slept  time.Duration
	synced bool
}

// switchOn makes a box whose clock shows this.
func switchOn(t *testing.T, shows time.Time) *box {
	return &box{t: t, began: time.Now(), wall: shows}
}

func (b *box) get(f func() time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f()
}

func (b *box) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *box) uptime() time.Duration {
	return b.get(func() time.Duration { return time.Since(b.began) + b.slept + 1 })
}

func (b *box) sources() sources {
	return sources{
		boot: touchline.Boot{1}, now: time.Now, uptime: b.uptime,
		wall: func() time.Time {
			up := b.uptime()
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.wall.Add(up)
		},
		synchronised: func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.synced
		},
	}
}

// truth is the right time.
func (b *box) truth() time.Time { return match.Add(b.uptime()) }

// jump sets the box's clock by hand.
func (b *box) jump(by time.Duration) { b.set(func() { b.wall, b.synced = b.wall.Add(by), false }) }

func (b *box) open(dir string) *Watch {
	return open(dir, b.sources(), slog.New(slog.DiscardHandler))
}

// run opens the box's clock and runs it until the test ends.
func (b *box) run(dir string) *Watch {
	w := b.open(dir)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	b.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.t.Error(err)
		}
	})
	return w
}

// wants checks state and error of the time that is stamped by.
func (b *box) wants(w *Watch, state touchline.ClockState, off, within time.Duration) *touchline.Clock {
	b.t.Helper()
	now, clock := w.Now()
	if clock.State != state {
		b.t.Errorf("the clock is %s, want %s", clock.State, state)
	}
	if d := now.Sub(b.truth()) - off; d.Abs() > within {
		b.t.Errorf("the time is off by %v, want %v", now.Sub(b.truth()), off)
	}
	if clock.Boot != (touchline.Boot{1}) || now.UnixNano()-clock.Offset != int64(w.Uptime()) {
		b.t.Errorf("the clock is %+v at %v", clock, now)
	}
	return clock
}

const (
	moment = 2 * interval // after which a change is seen
	ms     = time.Millisecond
)

func TestWatch_StateByWhatIsKnown(t *testing.T) {
	for name, c := range map[string]struct {
		shows  time.Time
		synced bool
		latest string // in the file
		want   touchline.ClockState
	}{
		"1970":                        {time.Unix(0, 0), false, "", touchline.ClockUnset},
		"before this program":         {time.Unix(0, touchline.Released).Add(-time.Hour), false, "", touchline.ClockUnset},
		"right":                       {match, false, "", touchline.ClockSet},
		"right, and known to be":      {match, true, "", touchline.ClockSynchronised},
		"wrong, and said to be right": {time.Unix(0, 0), true, "", touchline.ClockUnset},
		"before the last run":         {match, false, "2027-05-31T00:00:00Z\n", touchline.ClockUnset},
		"after the last run":          {match, false, "2027-05-30T20:44:59Z\n", touchline.ClockSet},
		"a file that is damaged":      {match, false, "2027-05-", touchline.ClockSet},
		"a file from the far future":  {match, false, "2190-01-01T00:00:00Z", touchline.ClockSet},
		"2099":                        {time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), false, "", touchline.ClockUnset},
		"1901":                        {time.Date(1901, 1, 1, 0, 0, 0, 0, time.UTC), false, "", touchline.ClockUnset},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				if c.latest != "" {
					if err := os.WriteFile(fileIn(dir), []byte(c.latest), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				b := switchOn(t, c.shows)
				b.synced = c.synced
				b.wants(b.open(dir), c.want, c.shows.Sub(match), 0)
			})
		})
	}
}

// The story that all this is for: a box without a clock, a cloud that knows.
func TestWatch_CloudsTimeCorrectsAClockThatIsNotSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := switchOn(t, time.Unix(0, 0))
		w := b.run(t.TempDir())
		b.wants(w, touchline.ClockUnset, time.Unix(0, 0).Sub(match), 0)
		if got := w.Latest(); got.UnixNano() != touchline.Released {
			t.Errorf("the latest time known is %v", got)
		}
		time.Sleep(time.Hour)
		_, changed := w.Clock()
		said := b.truth()
		time.Sleep(600 * ms) // the way back takes longer than the way there
		w.Heard(said, time.Second)
		select {
		case <-changed:
		default:
			t.Error("nobody was told of the new clock")
		}
		first := b.wants(w, touchline.ClockSynchronised, 0, 500*ms)
		if s := w.Status(); s.Source != SourceCloud || s.Error != 500*ms || s.Offset < match.Sub(time.Unix(0, 0))-time.Second {
			t.Errorf("status is %+v", s)
		}
		if got := w.Latest(); b.truth().Sub(got).Abs() > 500*ms {
			t.Errorf("the latest time known is %v", got)
		}
		// Better and worse knowledge of the same truth moves nothing.
		for _, trip := range []time.Duration{0, 100 * ms, 3 * time.Second} {
			time.Sleep(time.Minute)
			w.Heard(b.truth().Add(-trip/2), trip)
			if again := b.wants(w, touchline.ClockSynchronised, 0, 500*ms); again != first {
				t.Errorf("the clock was set anew by a round trip of %v", trip)
			}
		}
	})
}

func TestWatch_OwnTimeIsKeptThroughJumpsOfASynchronisedClock(t *testing.T) {
	for _, jump := range []time.Duration{3 * time.Hour, -3 * time.Hour, -57 * 365 * 24 * time.Hour, 40 * 365 * 24 * time.Hour, 500 * ms} {
		synctest.Test(t, func(t *testing.T) {
			b := switchOn(t, match)
			b.synced = true
			w := b.run(t.TempDir())
			clock := b.wants(w, touchline.ClockSynchronised, 0, 0)
			b.jump(jump)
			time.Sleep(holdover - time.Minute)
			if now := b.wants(w, touchline.ClockSynchronised, 0, 0); now != clock {
				t.Errorf("a jump by %v made another clock", jump)
			}
			b.set(func() { b.wall, b.synced = match.Add(200*ms), true }) // the time service is back, and knows better
			time.Sleep(moment)
			b.wants(w, touchline.ClockSynchronised, 200*ms, 0)
		})
	}
}

func TestWatch_JumpsOfAClockThatNobodyVouchesFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := switchOn(t, match.Add(-3*time.Hour))
		w := b.run(t.TempDir())
		b.wants(w, touchline.ClockSet, -3*time.Hour, 0)
		b.jump(3 * time.Hour) // a person sets it
		time.Sleep(moment)
		clock := b.wants(w, touchline.ClockSet, 0, 0)
		b.jump(-50 * 365 * 24 * time.Hour) // a battery dies
		time.Sleep(moment)
		if now := b.wants(w, touchline.ClockSet, 0, 0); now != clock {
			t.Error("a jump to the past made another clock")
		}
		b.jump(50*365*24*time.Hour + 30*ms)
		time.Sleep(moment)
		if now := b.wants(w, touchline.ClockSet, 0, 0); now != clock {
			t.Error("a step of 30 ms made another clock")
		}
	})
}

func TestWatch_TrustEndsADayAfterTheLastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := switchOn(t, time.Unix(0, 0))
		w := b.run(t.TempDir())
		w.Heard(b.truth(), 0)
		time.Sleep(holdover - moment)
		b.wants(w, touchline.ClockSynchronised, 0, 0)
		time.Sleep(2 * moment)
		b.wants(w, touchline.ClockSet, 0, 0) // it is still the best there is: 1970 is no alternative
		b.jump(match.Add(-time.Hour).Sub(time.Unix(0, 0)))
		time.Sleep(moment)
		b.wants(w, touchline.ClockSet, 0, 0) // and so is no time that was over when it was right
		w.Heard(b.truth(), 100*ms)
		b.wants(w, touchline.ClockSynchronised, 0, 50*ms)
	})
}

func TestWatch_TimeGoesOnThroughSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := switchOn(t, match)
		w := b.run(t.TempDir())
		clock := b.wants(w, touchline.ClockSet, 0, 0)
		b.set(func() { b.slept += 8 * time.Hour })
		time.Sleep(moment)
		if now := b.wants(w, touchline.ClockSet, 0, 0); now != clock {
			t.Error("sleep made another clock")
		}
	})
}

func TestWatch_LateWordsOfTheCloudMoveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := switchOn(t, time.Unix(0, 0))
		w := b.run(t.TempDir())
		w.Heard(b.truth(), 100*ms)
		clock := b.wants(w, touchline.ClockSynchronised, 0, 100*ms)
		for i := range 3 * 24 * 60 { // three days of acks, most of them late
			time.Sleep(time.Minute)
			w.Overheard(b.truth().Add(-time.Duration(i%9)*time.Second), 100*ms)
		}
		if now := b.wants(w, touchline.ClockSynchronised, 0, 100*ms); now != clock {
			t.Error("late words made another clock")
		}
		// The cloud was wrong by a minute, and is right now: later words are
		// believed at once, earlier ones when they all say it.
		b.set(func() { b.wall = b.wall.Add(0) })
		for _, step := range []time.Duration{time.Minute, -time.Minute} {
			for range 60 {
				time.Sleep(time.Minute)
				w.Overheard(b.truth().Add(step), 100*ms)
			}
			b.wants(w, touchline.ClockSynchronised, step, 200*ms)
		}
	})
}

func TestWatch_IgnoresWordsThatCanNotBeRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := switchOn(t, time.Unix(0, 0))
		w := b.run(t.TempDir())
		for _, say := range []func(time.Time, time.Duration){w.Heard, w.Overheard} {
			say(time.Time{}, 0)
			say(time.Unix(0, touchline.Released-1), 0)
			say(time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), 0)
			say(match, maxRoundTrip+1)
			say(match, -1)
		}
		b.wants(w, touchline.ClockUnset, time.Unix(0, 0).Sub(match), 0)
	})
}

// What only the last run knew must not be undone by a box that boots in the
// past, and what nobody vouched for must not make the right time implausible.
func TestWatch_LatestTimeIsKeptWhereItIsVouchedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		stop := func(w *Watch) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		}
		stop(switchOn(t, match.AddDate(20, 0, 0)).open(dir)) // set by mistake
		if _, err := os.Stat(fileIn(dir)); err == nil {
			t.Error("a time was kept that nobody vouches for")
		}
		b := switchOn(t, match.Add(-time.Hour))
		w := b.open(dir)
		w.Heard(b.truth(), 0)
		stop(w)
		b = switchOn(t, match.Add(-time.Hour))
		w = b.open(dir)
		b.wants(w, touchline.ClockUnset, -time.Hour, 0)
		if got := w.Latest(); !got.Equal(match) {
			t.Errorf("the latest time known is %v, want %v", got, match)
		}
		w.Heard(match.Add(-30*time.Minute), 0) // the cloud was wrong then, and is right now
		stop(w)
		b.wants(b.open(dir), touchline.ClockUnset, -time.Hour, 0)
		b.jump(31 * time.Minute)
		b.wants(b.open(dir), touchline.ClockSet, -29*time.Minute, 0)
	})
}

func TestWatch_GoesOnWhereNothingCanBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := switchOn(t, match)
		w := open(filepath.Join(t.TempDir(), "gone"), b.sources(), slog.New(slog.NewTextHandler(&log, nil)))
		w.Heard(b.truth(), 0)
		for range 3 {
			w.keepLatest(0)
		}
		if n := bytes.Count(log.Bytes(), []byte("can't be written")); n != 1 {
			t.Errorf("the log says %d times that nothing can be written", n)
		}
		b.wants(w, touchline.ClockSynchronised, 0, 0)
	})
}

// The machine's own clocks: what Open reads of them is one boot, and its time
// is the system's or, where that was set while this ran, close to it.
func TestOpen_ReadsTheMachinesClocks(t *testing.T) {
	w, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a, b := w.Status(), again.Status()
	if a.Boot != b.Boot || a.Boot == (touchline.Boot{}) || a.Uptime <= 0 || b.Uptime < a.Uptime {
		t.Errorf("two readings of one machine: %+v, %+v", a, b)
	}
	before, _ := w.Now()
	for range 1000 {
		now, clock := w.Now()
		if now.Before(before) || clock.Boot != a.Boot {
			t.Fatalf("%v after %v by %+v", now, before, clock)
		}
		before = now
	}
	t.Logf("MEASURED clock of this machine: %s by %s, up %v, %v ahead of the system's", a.State, a.Source, a.Uptime.Round(time.Second), a.Offset)
}

func BenchmarkNow(b *testing.B) {
	w, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		w.Now()
	}
}
