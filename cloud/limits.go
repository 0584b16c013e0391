package cloud

import (
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A bucket lets through rate events a second and burst of them at once. Who
// comes too early is told when to come again; those who come together are told
// different times, so that they don't come together again.
type bucket struct {
	rate, burst float64

	mu       sync.Mutex // covers what follows
	tokens   float64
	filled   time.Time // when tokens was right
	promised promises
}

func newBucket(rate, burst float64) *bucket {
	return &bucket{rate: rate, burst: burst, tokens: burst}
}

// maxRetry bounds what anybody is told to wait.
const maxRetry = time.Minute

// take lets an event through, or says after how long to try again.
func (b *bucket) take(now time.Time) (after time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	if b.tokens >= 1 {
		b.tokens--
		return 0, true
	}
	free := now.Add(time.Duration((1 - b.tokens) / b.rate * float64(time.Second)))
	return b.promised.next(now, free, time.Duration(float64(time.Second)/b.rate)), false
}

// promises are the times that those who came too early were told.
type promises struct{ latest time.Time }

// next returns a wait of at most maxRetry that nobody else was told: free is
// when there is room at the earliest, and between two there is every.
func (p *promises) next(now, free time.Time, every time.Duration) (after time.Duration) {
	if p.latest.Before(free) {
		p.latest = free
	}
	if after = p.latest.Sub(now); after >= maxRetry {
		p.latest = free // more came than a minute holds: they share it
	}
	p.latest = p.latest.Add(every)
	return min(after, maxRetry)
}

// A turnstile lets through perSecond events in any second, wherever that
// begins; a bucket would let twice as many through in its first. What it
// remembers is 8 bytes for each.
type turnstile struct {
	began time.Time

	mu       sync.Mutex      // covers what follows
	last     []time.Duration // a ring of the last ones, since began
	at       int             // the oldest
	promised promises
}

func newTurnstile(perSecond int) *turnstile {
	t := &turnstile{began: time.Now(), last: make([]time.Duration, perSecond)}
	for i := range t.last {
		t.last[i] = -time.Hour // long ago
	}
	return t
}

// take lets an event through, or says after how long to try again.
func (t *turnstile) take(now time.Time) (after time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := max(now.Sub(t.began), t.last[(t.at+len(t.last)-1)%len(t.last)]) // who read the clock first may come second
	if since-t.last[t.at] >= time.Second {
		t.last[t.at] = since
		t.at = (t.at + 1) % len(t.last)
		return 0, true
	}
	free := t.began.Add(t.last[t.at] + time.Second)
	return t.promised.next(now, free, time.Second/time.Duration(len(t.last))), false
}

func (b *bucket) fill(now time.Time) {
	if gone := now.Sub(b.filled).Seconds(); gone > 0 || b.filled.IsZero() {
		b.tokens, b.filled = min(b.burst, b.tokens+max(gone, 0)*b.rate), now
	}
}

func (b *bucket) full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.tokens >= b.burst
}

// buckets has one for each name, up to max of them: those that are full are
// forgotten, which changes nothing for whom they are of. Where max of them are
// not full, names that are new share one.
type buckets struct {
	rate, burst float64
	max         int

	mu     sync.Mutex // covers what follows
	byName map[string]*bucket
	sweep  int // how many there are when the full ones are looked for next
	shared *bucket
}

// minSweep and twice what a look left are what makes looking cost each name a
// constant: a bucket of 120 a minute is full again half a second after one.
const minSweep = 128

func newBuckets(rate, burst float64, max int) *buckets {
	return &buckets{rate: rate, burst: burst, max: max, byName: map[string]*bucket{}, sweep: min(minSweep, max), shared: newBucket(rate, burst)}
}

func (b *buckets) take(name string, now time.Time) (after time.Duration, ok bool) {
	return b.of(name, now).take(now)
}

func (b *buckets) of(name string, now time.Time) *bucket {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.byName[name]
	if one != nil {
		return one
	}
	if len(b.byName) >= b.sweep {
		for other, is := range b.byName {
			if is.full(now) {
				delete(b.byName, other)
			}
		}
		b.sweep = min(max(minSweep, 2*len(b.byName)), b.max)
		if len(b.byName) >= b.max {
			return b.shared
		}
	}
	one = newBucket(b.rate, b.burst)
	b.byName[name] = one
	return one
}

// retryAfter sets the header to whole seconds, at least one.
func retryAfter(w http.ResponseWriter, after time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(after.Seconds())))))
}

// addresses tells who sent a request. A proxy is believed about that only
// where it is listed.
type addresses struct{ proxies []netip.Prefix }

func (a addresses) trusted(addr netip.Addr) bool {
	return slices.ContainsFunc(a.proxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// of returns the address that a request came from: the connection's, or, from
// a listed proxy, the last one in X-Forwarded-For that is no listed proxy.
func (a addresses) of(r *http.Request) netip.Addr {
	addr := peer(r.RemoteAddr)
	if !a.trusted(addr) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		next, ok := hopAddr(strings.TrimSpace(hop))
		if !ok {
			return addr
		}
		if addr = next; !a.trusted(addr) {
			return addr
		}
	}
	return addr
}

// hopAddr reads one of X-Forwarded-For, to which some proxies add the port.
func hopAddr(hop string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.Trim(hop, "[]"))
	if err != nil {
		with, err := netip.ParseAddrPort(hop)
		if err != nil {
			return addr, false
		}
		addr = with.Addr()
	}
	return addr.Unmap().WithZone(""), true
}

// shown is of, for people: with the port where there is no proxy between.
func (a addresses) shown(r *http.Request) string {
	if addr := a.of(r); addr != peer(r.RemoteAddr) {
		return addr.String()
	}
	return r.RemoteAddr
}

func peer(hostport string) netip.Addr {
	ap, _ := netip.ParseAddrPort(hostport)
	return ap.Addr().Unmap().WithZone("")
}

// network is what counts as one sender: an IPv4 address, and of IPv6 the /64
// that one customer has.
func network(addr netip.Addr) string {
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}
