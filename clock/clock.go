// Package clock knows what time it is, and how far that can be trusted. Many
// gateways boot without a clock: a Watch counts from power-on, which no
// setting of the system's clock disturbs, and adds the offset that it trusts
// most: that of a system that is synchronised, the cloud's, or the system's as
// it is. It never sets the system's clock. Open it and give Run a goroutine;
// both end with Run's context.
package clock

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
)

const (
	// interval is how often the system's clock is looked at: what is stamped
	// for so long after it was set is stamped by the old setting.
	interval = time.Second

	// stepLimit is by how much an offset must differ from the one that is
	// stamped by to replace it. CLOCK_REALTIME and CLOCK_BOOTTIME run at one
	// rate, slewing included, so their difference changes only where the
	// clock is stepped, and by what lies between two readings (µs, and ms
	// where the process is kept waiting). ntpd steps above 128 ms, timesyncd
	// above 400. Where they don't run at one rate (not on Linux), 100 ppm
	// reach the limit in a quarter of an hour.
	stepLimit = 100 * time.Millisecond

	// cloudLimit is the same for the cloud's time, which is known to half a
	// round trip, and good enough to a second.
	cloudLimit = time.Second

	// maxRoundTrip is how uncertain the cloud's time may be: with 10 s it is
	// good to 5, which is better than 1970.
	maxRoundTrip = 10 * time.Second

	// driftPPM is what a quartz that nothing disciplines drifts: at most some
	// 100 millionths (8.6 s a day), as data sheets have it for -20 to 70 °C.
	driftPPM = 100

	// holdover is how long a clock that was synchronised is called that when
	// nobody vouches for it any more: it is off by 8.6 s at most then.
	holdover = 24 * time.Hour

	// lifetime bounds what a plausible clock shows: no version of this
	// program is run for thirty years. A battery that died brings 2099 as
	// easily as 1999.
	lifetime = 30 * 365 * 24 * time.Hour

	// keepInterval is how often the latest time is written down: 24 small
	// files a day.
	keepInterval = time.Hour
)

// sources are the machine's clocks. Tests have others.
type sources struct {
	boot         touchline.Boot
	now          func() time.Time     // with a monotonic reading; cheap
	wall         func() time.Time     // the system's clock
	uptime       func() time.Duration // since power-on, time asleep included
	synchronised func() bool          // the system says that its clock is
}

// A Watch tells the time. Its methods are safe for concurrent use.
type Watch struct {
	log  *slog.Logger
	from sources
	file string // where the latest time is kept

	anchor atomic.Pointer[anchor]

	mu      sync.Mutex // covers what follows
	changed chan struct{}
	floor   int64    // the latest time known when Open was called
	cloud   estimate // zero before the cloud has said anything
	heard   overheard
	source  Source
	vouched time.Duration // since power-on, when somebody last vouched for the clock
	kept    time.Duration // since power-on, when the latest time was written down

	trouble string // the last error of that; of the goroutine of Run alone
}

// An anchor is what Now needs: the time since power-on at one moment of the
// monotonic clock, which is much cheaper to read, and the clock.
type anchor struct {
	at     time.Time // with a monotonic reading
	uptime time.Duration
	clock  *touchline.Clock
}

func (a *anchor) uptimeAt(now time.Time) time.Duration { return a.uptime + now.Sub(a.at) }

// Source says who vouches for the clock.
type Source string

// The sources of time.
const (
	SourceNone   Source = "none"   // nobody does
	SourceSystem Source = "system" // the system's time service
	SourceCloud  Source = "cloud"  // its time in welcome or ack
)

// Open reads the machine's clocks, and the latest time known from dir, the
// data folder. A file there that can't be read is as good as none.
func Open(dir string, logger *slog.Logger) (*Watch, error) {
	from, err := machine()
	if err != nil {
		return nil, fmt.Errorf("open clock: %w", err)
	}
	return open(dir, from, logger), nil
}

func open(dir string, from sources, logger *slog.Logger) *Watch {
	w := &Watch{log: logger.With("component", "clock"), from: from, file: fileIn(dir), changed: make(chan struct{}), source: SourceNone}
	latest, err := readLatest(w.file)
	if err != nil {
		w.log.Warn("the latest time known can't be read, and is not used", "error", err)
	}
	w.floor = max(touchline.Released, latest)
	now := from.now()
	w.anchor.Store(&anchor{at: now, uptime: from.uptime(), clock: &touchline.Clock{Boot: from.boot}})
	w.evaluate()
	return w
}

// Now returns the time for stamping, and the clock that it is of. While that
// is the same pointer the time never jumps, and goes on through sleep within
// a second. It costs a reading of the monotonic clock.
func (w *Watch) Now() (time.Time, *touchline.Clock) {
	now := w.from.now()
	a := w.anchor.Load()
	return time.Unix(0, a.clock.Offset+int64(a.uptimeAt(now))), a.clock
}

// Uptime returns the time since power-on, which clocks' offsets count from.
func (w *Watch) Uptime() time.Duration { return w.anchor.Load().uptimeAt(w.from.now()) }

// Clock returns the clock, and a channel that is closed when there is another.
func (w *Watch) Clock() (touchline.Clock, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.anchor.Load().clock, w.changed
}

// State says how far the clock can be trusted.
func (w *Watch) State() touchline.ClockState { return w.anchor.Load().clock.State }

// Status is a copy of what the watch knows.
type Status struct {
	State  touchline.ClockState
	Source Source        // who vouches for it
	Error  time.Duration // of the cloud's time, at most; 0 where another source is used
	Boot   touchline.Boot
	Uptime time.Duration
	Offset time.Duration // by which our time is ahead of the system's
}

// Status returns what is known.
func (w *Watch) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.anchor.Load().clock
	s := Status{State: c.State, Source: w.source, Boot: c.Boot, Uptime: w.Uptime()}
	s.Offset = time.Duration(c.Offset - w.systemOffset())
	if w.source == SourceCloud {
		s.Error = w.cloud.error(s.Uptime)
	}
	return s
}

// Latest returns the latest time that is known to have been: a right clock
// shows no earlier one. It is what certificates can be checked against where
// the clock is not set.
func (w *Watch) Latest() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Unix(0, w.latest())
}

// latest is Latest. w.mu is held.
func (w *Watch) latest() int64 {
	c := w.anchor.Load().clock
	if c.State == touchline.ClockSynchronised {
		return c.Offset + int64(w.Uptime()) // also where that is earlier: an earlier run was mistaken
	}
	return w.floor
}

// Run looks at the machine's clocks until ctx ends, and returns nil then.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			w.keepLatest(0)
			return nil
		case <-tick.C:
			w.evaluate()
			w.keepLatest(keepInterval)
		}
	}
}
