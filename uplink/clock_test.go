package uplink

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"touchline"
	"touchline/wire"
)

// A testClock is a Clock, and Corrections, that remember what they were told.
type testClock struct {
	mu    sync.Mutex
	state touchline.ClockState
	heard []time.Duration // how long ago it was said
	trips []time.Duration
	open  []touchline.Clock
}

func (c *testClock) State() touchline.ClockState { return c.state }

func (c *testClock) Heard(said time.Time, roundTrip time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = append(c.heard, time.Since(said))
	c.trips = append(c.trips, roundTrip)
}

func (c *testClock) Overheard(time.Time, time.Duration) {}

func (c *testClock) Clocks() []touchline.Clock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.open)
}

func (c *testClock) ConfirmClocks(confirmed []wire.ClockOffset) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = slices.DeleteFunc(c.open, func(o touchline.Clock) bool {
		return slices.Contains(confirmed, wire.ClockOffset{Boot: o.Boot, Offset: o.Offset})
	})
}

func (c *testClock) left() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

func TestClock_IsToldUntilItIsConfirmed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		const boots = 2*maxClocksOpen + 5
		clock := &testClock{}
		right := func(i int) touchline.Clock {
			return touchline.Clock{Boot: touchline.Boot{byte(i)}, State: touchline.ClockSynchronised, Offset: int64(i)}
		}
		for i := range boots {
			clock.open = append(clock.open, right(i))
		}
		o := w.options()
		o.Corrections = clock
		o.Heartbeat, o.StoreTimeout = 10*time.Second, time.Minute
		u := w.uplink(o)
		w.start(u)
		time.Sleep(2*time.Minute + 15*time.Second)
		synctest.Wait()
		told := func() (n int) {
			w.cloud.set(func() { n = len(w.cloud.clocks) })
			return n
		}
		if told() != 3*maxClocksOpen || clock.left() != boots {
			t.Fatalf("%d were told and %d are open: want the oldest %d once a minute", told(), clock.left(), maxClocksOpen)
		}
		w.cloud.set(func() { w.cloud.confirmClocks = true })
		w.cloud.dropAll()
		time.Sleep(o.Heartbeat / 2)
		synctest.Wait()
		if clock.left() != 0 || u.Stats().ClockSaid != uint64(told()) {
			t.Errorf("%d are open half a heartbeat after the cloud began to confirm, %d were told", clock.left(), told())
		}
		// One that becomes known while the session lives, and then better.
		for _, c := range []touchline.Clock{right(200), {Boot: touchline.Boot{200}, State: touchline.ClockSynchronised, Offset: 1}} {
			clock.mu.Lock()
			clock.open = []touchline.Clock{c}
			clock.mu.Unlock()
			time.Sleep(o.Heartbeat + time.Second)
			synctest.Wait()
			var last wire.Clock
			w.cloud.set(func() { last = w.cloud.clocks[len(w.cloud.clocks)-1] })
			if clock.left() != 0 || last != *wire.NewClock(c) {
				t.Errorf("told last is %+v, want %+v", last, c)
			}
		}
	})
}

// The cloud's time is handed on with how long ago hello was said, so that it
// can be known what it is worth.
func TestClock_HearsTheCloudsTime(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		const wait = 700 * time.Millisecond
		clock := &testClock{}
		o := w.options()
		o.Clock = clock
		o.Heartbeat = 10 * time.Second
		w.cloud.message = func(_ *cloudSession, kind, n int) bool {
			if n == 0 {
				time.Sleep(wait) // hello is on its way
			}
			return true
		}
		w.start(w.uplink(o))
		time.Sleep(time.Minute)
		w.source.add(blocks(touchline.NewEpoch(), 1, 3, 10, 100)...)
		time.Sleep(time.Minute)
		synctest.Wait()
		clock.mu.Lock()
		defer clock.mu.Unlock()
		if len(clock.heard) != 1 || clock.heard[0] != 0 || clock.trips[0] < wait || clock.trips[0] > 2*wait {
			t.Errorf("heard %v with round trips of %v", clock.heard, clock.trips)
		}
	})
}
