package clock

import (
	"time"

	"touchline"
)

func (w *Watch) evaluate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.evaluateLocked()
}

// evaluateLocked makes what Now uses of what is known now. w.mu is held.
func (w *Watch) evaluateLocked() {
	w.follow()
	now := w.anchor.Load()
	uptime := w.Uptime()
	next, source := w.choose(*now.clock, uptime)
	w.source = source
	switch source {
	case SourceSystem:
		w.vouched = uptime
	case SourceCloud:
		w.vouched = max(w.vouched, w.cloud.at)
	}
	if next == *now.clock {
		return
	}
	w.anchor.Store(&anchor{at: now.at, uptime: now.uptime, clock: &next})
	close(w.changed)
	w.changed = make(chan struct{})
	facts := []any{"state", next.State.String(), "source", string(source), "time", time.Unix(0, next.Offset+int64(uptime)).UTC()}
	if now.clock.Offset != 0 { // else there was no clock to be stepped
		facts = append(facts, "was", now.clock.State.String(), "stepped", time.Duration(next.Offset-now.clock.Offset).Round(time.Millisecond))
	}
	w.log.Info("clock", facts...)
}

// follow moves the anchor where the monotonic clock did not count time that
// the machine slept. w.mu is held.
func (w *Watch) follow() {
	a := w.anchor.Load()
	now := w.from.now()
	uptime := w.from.uptime()
	if distance(int64(uptime), int64(a.uptimeAt(now))) > int64(stepLimit) {
		w.anchor.Store(&anchor{at: now, uptime: uptime, clock: a.clock})
	}
}

// choose returns the clock that is to be stamped by, and who vouches for it.
//
//   - A system that says it is synchronised is believed, where it does not
//     show a time before this program was made.
//   - Else the cloud's time is.
//   - Else a clock that was synchronised since power-on stays what it was,
//     whatever the system's clock is set to meanwhile, for as long as it is
//     off by little.
//   - Else the system's clock is taken for set where it is plausible.
//   - What was set once is not unset by a jump to 1970: the old setting stays.
func (w *Watch) choose(now touchline.Clock, uptime time.Duration) (touchline.Clock, Source) {
	next := now
	system := w.systemOffset()
	shown := system + int64(uptime)
	switch {
	case shown >= touchline.Released && w.from.synchronised():
		next.State = touchline.ClockSynchronised
		next.Offset = steady(now.Offset, system, stepLimit)
		return next, SourceSystem
	case w.cloudIsFresh(uptime):
		next.State = touchline.ClockSynchronised
		next.Offset = steady(now.Offset, w.cloud.offset, cloudLimit+w.cloud.error(uptime))
		return next, SourceCloud
	case now.State == touchline.ClockSynchronised && uptime-w.vouched < holdover:
		return now, SourceNone
	case shown >= w.latestPlausible(now, uptime) && shown < touchline.Released+int64(lifetime):
		next.State = touchline.ClockSet
		next.Offset = steady(now.Offset, system, stepLimit)
	case now.State >= touchline.ClockSet:
		next.State = touchline.ClockSet
	default:
		next.Offset = steady(now.Offset, system, stepLimit)
	}
	return next, SourceNone
}

// latestPlausible is the time before which the system's clock is not believed:
// the latest known from an earlier run, or where the clock was synchronised
// since power-on, what it shows now, but for its drift.
func (w *Watch) latestPlausible(now touchline.Clock, uptime time.Duration) int64 {
	if w.vouched == 0 {
		return w.floor
	}
	return now.Offset + int64(uptime) - int64((uptime-w.vouched)/1e6*driftPPM) - int64(stepLimit)
}

func (w *Watch) cloudIsFresh(uptime time.Duration) bool {
	return w.cloud.at != 0 && uptime-w.cloud.at < holdover
}

// steady returns the present offset unless the other is further away than
// limit: within one setting, time does not jump.
func steady(present, other int64, limit time.Duration) int64 {
	if distance(present, other) > int64(limit) {
		return other
	}
	return present
}

// systemOffset returns the system's clock less the time since power-on. The
// two can't be read at once: of three tries the one with the least in between
// counts.
func (w *Watch) systemOffset() int64 {
	var offset int64
	least := time.Duration(1<<63 - 1)
	for range 3 {
		before := w.from.uptime()
		wall := w.from.wall()
		after := w.from.uptime()
		if after-before < least {
			least = after - before
			offset = wall.UnixNano() - int64(before) - int64(least/2)
		}
	}
	return offset
}

// distance returns how far apart two times are; at most 2^63 - 1.
func distance[T ~int64](a, b T) T {
	d := max(a, b) - min(a, b)
	if d < 0 { // it does not fit
		return 1<<63 - 1
	}
	return d
}
