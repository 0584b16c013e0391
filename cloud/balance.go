package cloud

import (
	"math"
	"time"
)

const (
	// shedRate is how many of the sessions that a node had when it began it sends
	// away in a second: a node that has all of them has sent what is too much in
	// 100 s, and the others see a hundredth of a storm.
	shedRate = 0.01

	// shedTick is how often it looks.
	shedTick = time.Second

	// settles is after how long a gateway that was sent away is counted where it
	// went: 5 s until what it had in flight has landed, some seconds to come back,
	// and a NodeInterval until its node says so.
	settles = NodeLost

	// hears is how long a node listens, once it knows of others, before it believes
	// that these are all.
	hears = 2 * NodeInterval

	// Where more than three in four come back to the node that sent them away,
	// the load balancer sees another balance than this one, or has affinity:
	// sending them away again would do so for ever. It is tried again after a pause
	// that doubles, or when a node joins. One that leads anywhere, as after a reload,
	// leads every second one of two nodes back: of so many, more than three in four
	// once in 300 times.
	fewestJudged = 24
	returning    = 0.75
	firstPause   = 10 * time.Minute
	longestPause = 4 * time.Hour
)

// A balance works out how many gateways a node sends away. Above the mean of all
// nodes by a share it begins, and it goes on until the mean is reached: in between
// nothing is done, so no two nodes send gateways to and fro. It has no clock and
// no lock of its own.
//
// What it knows of the others is some seconds old. Gateways on their way are
// counted in twice rather than not at all, by this node as by those that say how
// many they have sent (Node.Shed): that puts the mean too high for a while and
// never too low, so that no node falls below it.
type balance struct {
	above float64 // share, 0.2; 0 is never

	active bool
	base   int       // sessions when it began
	owed   float64   // what the rate allows and was not sent
	last   time.Time // of the step before
	knows  time.Time // since when it knows of others; zero: it does not
	peers  int       // how many of them it knew of
	sent   []parcel  // within settles, oldest first

	tried, back int // since it began: sent away, and come back
	pause       time.Duration
	until       time.Time // of the pause
}

// A parcel is what was sent away at one time.
type parcel struct {
	at time.Time
	n  int
}

// lately returns how many were sent away that may be counted nowhere yet.
func (b *balance) lately(now time.Time) (n int) {
	for len(b.sent) > 0 && now.Sub(b.sent[0].at) >= settles {
		b.sent = b.sent[1:]
	}
	for _, p := range b.sent {
		n += p.n
	}
	return n
}

// step returns how many gateways are to be sent away now. here is how many
// sessions there are, without the leaving ones, who were asked and are still here.
func (b *balance) step(now time.Time, here, leaving int, peers []Node) int {
	elapsed := min(now.Sub(b.last), 2*shedTick)
	b.last = now
	lately := b.lately(now)
	switch {
	case len(peers) == 0:
		b.knows = time.Time{}
	case b.knows.IsZero():
		b.knows = now
	}
	if len(peers) > b.peers {
		b.until = time.Time{}
	}
	b.peers = len(peers)
	if b.above <= 0 || len(peers) == 0 || now.Sub(b.knows) < hears || now.Before(b.until) {
		b.active = false
		return 0
	}
	total := here + max(leaving, lately)
	for _, p := range peers {
		total += p.Sessions + p.Shed
	}
	mean := float64(total) / float64(1+len(peers))
	excess := here - int(math.Ceil(mean))
	if !b.active {
		if excess < 1 || float64(here) <= mean*(1+b.above) {
			return 0
		}
		b.active, b.base, b.owed, b.tried, b.back = true, here, 0, 0, 0
	}
	if excess < 1 {
		if lately == 0 {
			b.active, b.pause = false, 0
		}
		return 0 // or those on their way are waited for
	}
	b.owed = min(b.owed+shedRate*float64(b.base)*elapsed.Seconds(), float64(excess))
	n := int(b.owed)
	if n > 0 {
		b.owed -= float64(n)
		b.tried += n
		b.sent = append(b.sent, parcel{now, n})
	}
	return n
}

// cameBack counts a gateway that was sent away and came back here. It returns
// for how long nothing is tried, where that shows that it is of no use.
func (b *balance) cameBack(now time.Time) (pause time.Duration) {
	b.back++
	if !b.active || b.tried < fewestJudged || float64(b.back) <= returning*float64(b.tried) {
		return 0
	}
	b.pause = min(max(firstPause, 2*b.pause), longestPause)
	b.active, b.until = false, now.Add(b.pause)
	return b.pause
}
