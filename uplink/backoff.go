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
	told    bool          // the floor is this gateway's turn, given by Retry-After
	spread  time.Duration // and a random time below this, where many are sent away at once
	address *url.URL      // dial this next, once (goaway)
	asked   bool          // the cloud asked us to come anew: it is well, and so are we

	middlebox bool // the upgrade failed as something between us and the cloud makes it fail
	stale     bool // the cloud wants a nonce, because of our clock
	fresh     bool // a fresh credential may do, at once
	taken     bool // another session of this gateway took over
	leave     bool // something better is to be used from here on
	next      bool // this address goes away: the next one has its turn
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

	returnAfter time.Duration

	at      int       // index into urls
	left    time.Time // when the first address was left
	attempt int       // of fullJitter
	taken   int       // sessions in a row that another one of this gateway ended
	again   bool      // the last dial was made at once, with a fresh credential
	instead *url.URL  // from goaway, for one dial: each wait sets it anew

	refused  int  // upgrades in a row that something on the way refused
	requests bool // in use in place of a WebSocket
}

// fallbackAfter is how many upgrades in a row have to fail as a middlebox fails
// them before requests take their place: one or two may be a cloud that is
// being restarted.
const fallbackAfter = 3

const (
	overloadLeast  = 10 * time.Second // after 1013, 4429 and HTTP 429
	overloadSpread = 50 * time.Second
	restartSpread  = 5 * time.Second  // after 1012 that no goaway came before
	takenLeast     = 10 * time.Second // doubles, so that two boxes with one identity each get their turn
	maxTaken       = 4                // doublings: 160 s
	askedLeast     = 5 * time.Second  // a session that is asked to come anew after less may be one of a loop
	versionFloor   = 10 * time.Minute // a version that the cloud does not speak is changed by a person
)

func newSchedule(o *Options, urls []*url.URL) *schedule {
	return &schedule{
		urls: urls, base: o.BackoffBase, cap: o.BackoffCap, stableAfter: o.StableAfter, returnAfter: o.ReturnAfter,
		random: rand.Int64N,
	}
}

// next returns the address to dial now, and whether by requests.
func (s *schedule) next() (to *url.URL, requests bool) {
	if s.instead != nil {
		return s.instead, s.requests
	}
	return s.urls[s.at], s.requests
}

// wait returns how long to wait after f before the next dial. up is how long
// the session was welcome; 0 if it never was, and then the next address has
// its turn.
func (s *schedule) wait(dialed *url.URL, up time.Duration, f *failure) time.Duration {
	s.instead = nil
	if f.leave {
		s.at, s.requests, s.refused, s.attempt = 0, false, 0, 0
		return 0
	}
	s.instead = f.address
	if s.countRefused(up, f) {
		return 0
	}
	s.moveOn(dialed, up, f)
	if up >= s.stableAfter {
		s.attempt, s.taken = 0, 0
	}
	if (f.stale || f.fresh) && !s.again {
		s.again = true
		return 0
	}
	s.again = f.stale || f.fresh
	floor := min(max(f.floor, 0), maxFloor)
	if f.taken {
		floor = max(floor, takenLeast<<min(s.taken, maxTaken))
		s.taken++
	}
	attempt := s.attempt
	if f.asked && up >= askedLeast {
		attempt = 0 // nodes that even out send one gateway more than once in a minute
	} else {
		s.attempt++
	}
	d := floor + fullJitter(s.base, s.jitterCap(f, floor), attempt, s.random)
	if f.spread > 0 {
		d += time.Duration(s.random(int64(f.spread)))
	}
	return d
}

// jitterCap bounds the random wait after a floor. Who was given a turn takes it,
// a quarter of its wait late at most: the cloud knows what it can bear, and the
// waits before, which may be up to a minute, were for when nobody said so.
func (s *schedule) jitterCap(f *failure, floor time.Duration) time.Duration {
	if f.told && floor > 0 {
		return min(s.cap, max(s.base, floor/4))
	}
	return s.cap
}

// countRefused counts upgrades that something on the way refused, and returns
// true when it is time to go another way, at once. Requests that fail go back
// to a WebSocket the next time.
func (s *schedule) countRefused(up time.Duration, f *failure) bool {
	switch {
	case s.requests:
		s.requests = up > 0
		s.refused = fallbackAfter - 1 // one more refusal, and requests have their turn again
		return false
	case !f.middlebox:
		s.refused = 0
		return false
	}
	s.refused++
	s.requests = s.refused >= fallbackAfter
	return s.requests
}

// moveOn chooses the address for the next dial.
func (s *schedule) moveOn(dialed *url.URL, up time.Duration, f *failure) {
	now := time.Now()
	switch {
	case s.at > 0 && up > 0 && now.Sub(s.left) >= s.returnAfter:
		s.at = 0
	case (up == 0 || f.next) && dialed == s.urls[s.at] && !f.stale && !f.fresh:
		if s.at == 0 {
			s.left = now
		}
		s.at = (s.at + 1) % len(s.urls)
	}
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
