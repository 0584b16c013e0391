package uplink

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxFloor bounds what a cloud can ask for with Retry-After or goaway: one
// that says a year by mistake would take the venue off for a year.
const maxFloor = 10 * time.Minute

// fullJitter returns a wait for attempt n (0, 1, 2 …): uniform in
// [0, min(cap, base·2ⁿ)), so that a thousand venues that lost the same cloud
// come back evenly spread. random(m) returns a number in [0, m).
// Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
func fullJitter(base, cap time.Duration, n int, random func(int64) int64) time.Duration {
	limit := cap
	// base<<n is right while it stays below cap, which is at most 24 h; at
	// n = 47 even 1 ns is beyond that.
	if n < 47 && base <= cap>>n {
		limit = base << n
	}
	return time.Duration(random(int64(limit)))
}

// A failure says why a dial or a session ended, and what follows for the next.
type failure struct {
	err     error
	code    int           // close code that the cloud is told; 0: the link is dead, nobody listens
	floor   time.Duration // wait at least this long; the jitter comes on top
	address *url.URL      // dial this next, once (goaway)
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// asFailure returns err as a failure; a plain error says nothing to the cloud
// and nothing about when to come back.
func asFailure(err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	return &failure{err: err}
}

// A schedule decides where and when to dial next. Only Run's goroutine has it.
type schedule struct {
	urls        []*url.URL
	base, cap   time.Duration
	stableAfter time.Duration
	random      func(int64) int64

	at      int      // index into urls
	attempt int      // of fullJitter
	instead *url.URL // from goaway, for one dial: each wait sets it anew
}

func newSchedule(o *Options, urls []*url.URL) *schedule {
	return &schedule{
		urls: urls, base: o.BackoffBase, cap: o.BackoffCap, stableAfter: o.StableAfter,
		random: rand.Int64N,
	}
}

// next returns the address to dial now.
func (s *schedule) next() *url.URL {
	if s.instead != nil {
		return s.instead
	}
	return s.urls[s.at]
}

// wait returns how long to wait after f before the next dial. up is how long
// the session was welcome; 0 if it never was, and then the next address has
// its turn.
func (s *schedule) wait(dialed *url.URL, up time.Duration, f *failure) time.Duration {
	if up == 0 && dialed == s.urls[s.at] {
		s.at = (s.at + 1) % len(s.urls)
	}
	if up >= s.stableAfter {
		s.attempt = 0
	}
	s.instead = f.address
	d := min(max(f.floor, 0), maxFloor) + fullJitter(s.base, s.cap, s.attempt, s.random)
	s.attempt++
	return d
}

// refusedFor is the floor after a refusal that only a person can heal (wrong
// token, id in use twice): trying each second helps nobody.
func (o *Options) refusedFor() time.Duration { return o.BackoffCap / 2 }

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date.
// 0 means that it is absent or unreadable.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, maxFloor)
	}
	if t, err := http.ParseTime(v); err == nil {
		if said, err := http.ParseTime(h.Get("Date")); err == nil {
			now = said // by the clock that Retry-After is of, since ours may be wrong
		}
		return min(max(t.Sub(now), 0), maxFloor)
	}
	return 0
}
