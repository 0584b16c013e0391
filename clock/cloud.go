package clock

import (
	"time"

	"touchline"
)

// An estimate is the offset of the clock by the cloud's time.
type estimate struct {
	offset int64
	within time.Duration // of the truth, when it was made
	at     time.Duration // since power-on
}

// Heard takes the cloud's time, as it was received a moment ago: with
// roundTrip between what was asked and the answer, it was said up to that long
// ago, and is taken for half of it.
func (w *Watch) Heard(said time.Time, roundTrip time.Duration) {
	if !useful(said, roundTrip) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	uptime := w.Uptime()
	heard := estimate{offset: said.UnixNano() + int64(roundTrip/2) - int64(uptime), within: roundTrip / 2, at: uptime}
	w.learn(heard)
}

// learn takes an estimate, unless what is known is better and agrees with it.
// w.mu is held.
func (w *Watch) learn(e estimate) {
	if w.cloud.at != 0 && e.within >= w.cloud.error(e.at) && w.cloud.agrees(e) {
		e = estimate{offset: w.cloud.offset, within: w.cloud.error(e.at), at: e.at} // confirmed
	}
	w.cloud = e
	w.evaluateLocked()
}

// useful says whether a time is recent enough to be of use, and can be right.
func useful(said time.Time, roundTrip time.Duration) bool {
	return roundTrip >= 0 && roundTrip <= maxRoundTrip && said.Year() < 2262 && said.UnixNano() >= touchline.Released
}

// Overheard takes a time that the cloud said without being asked, so that how
// long it was on its way is not known; roundTrip is what one usually takes.
// That it was late makes it too early by any amount, and never too late. So
// what comes later than the known time is believed, what agrees confirms it,
// and the rest counts by the least late of some minutes.
func (w *Watch) Overheard(said time.Time, roundTrip time.Duration) {
	if !useful(said, roundTrip) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	uptime := w.Uptime()
	heard := estimate{offset: said.UnixNano() + int64(roundTrip/2) - int64(uptime), within: roundTrip / 2, at: uptime}
	if w.cloud.at != 0 && (heard.offset >= w.cloud.offset || w.cloud.agrees(heard)) {
		w.learn(heard)
	}
	if best, ok := w.heard.add(heard); ok {
		w.learn(best)
	}
}

// overheard has the least late of what was overheard lately.
type overheard struct {
	best  estimate
	began time.Duration // since power-on
	count int
}

// A window of 10 minutes and 8 times: in the first a quartz drifts by 60 ms,
// and all of the second are hardly late.
const (
	windowLength = 10 * time.Minute
	windowCount  = 8
)

// add returns the least late of a window that is full.
func (o *overheard) add(e estimate) (best estimate, full bool) {
	if o.count == 0 || e.at-o.began > 2*windowLength {
		*o = overheard{best: e, began: e.at}
	}
	if e.offset > o.best.offset {
		o.best = e
	}
	o.count++
	if o.count < windowCount || e.at-o.began < windowLength {
		return estimate{}, false
	}
	best = o.best
	best.within, best.at = best.error(e.at), e.at
	*o = overheard{}
	return best, true
}

// error returns how far the estimate may be off by now.
func (e estimate) error(uptime time.Duration) time.Duration {
	return e.within + (uptime-e.at)/1e6*driftPPM
}

// agrees says whether both estimates can be true.
func (e estimate) agrees(later estimate) bool {
	return distance(e.offset, later.offset) <= int64(e.error(later.at)+later.within)
}
