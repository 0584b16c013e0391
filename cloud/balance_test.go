package cloud

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A world is nodes behind a load balancer, second by second: rows that are some
// seconds old, and gateways that need some seconds to leave and to come back.
type world struct {
	random *rand.Rand
	now    time.Time
	began  time.Time
	nodes  []*worldNode
	choose func(from int) int // the load balancer: where a gateway of a node goes
	moving []traveller
	quick  bool // gateways have nothing in flight
	sent   int  // sent away, so far
	all    int  // gateways
}

type worldNode struct {
	balance  balance
	here     int // without those that were asked to leave
	leaving  int
	row      Node
	seen     time.Time // zero: it is not known yet
	announce int       // second of five at which it does
	away     bool      // its store does not answer it: it neither announces nor hears
	known    []Node    // the others, as it heard last
	heard    time.Time
}

type traveller struct {
	from   int
	leaves time.Time // is at its old node until then
	comes  time.Time
	left   bool
}

func newWorld(t *rapid.T, above float64, sessions ...int) *world {
	w := &world{random: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "ways"), 0)), began: time.Unix(1_780_000_000, 0)}
	w.now = w.began
	for _, n := range sessions {
		w.nodes = append(w.nodes, &worldNode{here: n, balance: balance{above: above}, announce: rapid.IntRange(0, 4).Draw(t, "phase")})
		w.all += n
	}
	w.choose = w.fewest
	return w
}

// fewest is leastconn.
func (w *world) fewest(int) int {
	best := 0
	for i, n := range w.nodes {
		if n.here+n.leaving < w.nodes[best].here+w.nodes[best].leaving {
			best = i
		}
	}
	return best
}

func (w *world) mean() float64 { return float64(w.all) / float64(len(w.nodes)) }

func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(time.Second) {
		w.second()
	}
}

func (w *world) second() {
	left := w.moving[:0]
	for _, m := range w.moving {
		if !m.left && !m.leaves.After(w.now) {
			m.left = true
			w.nodes[m.from].leaving--
		}
		if m.comes.After(w.now) {
			left = append(left, m)
			continue
		}
		to := w.choose(m.from)
		w.nodes[to].here++
		if to == m.from {
			w.nodes[to].balance.cameBack(w.now)
		}
	}
	w.moving = left
	for i, n := range w.nodes {
		if n.away || (int(w.now.Sub(w.began).Seconds())+n.announce)%int(NodeInterval.Seconds()) != 0 {
			continue
		}
		n.row = Node{ID: fmt.Sprint(i), Sessions: n.here + n.leaving, Shed: n.balance.lately(w.now)}
		n.seen = w.now
		n.known, n.heard = n.known[:0], w.now
		for j, p := range w.nodes {
			if j != i && !p.seen.IsZero() && w.now.Sub(p.seen) <= NodeLost {
				n.known = append(n.known, p.row)
			}
		}
	}
	for i, n := range w.nodes {
		peers := n.known
		if w.now.Sub(n.heard) > NodeLost {
			peers = nil
		}
		k := n.balance.step(w.now, n.here, n.leaving, peers)
		for range k {
			n.here--
			n.leaving++
			m := traveller{from: i, leaves: w.now, comes: w.now}
			if !w.quick {
				m.leaves = w.now.Add(time.Duration(w.random.IntN(5)) * time.Second)
				m.comes = m.leaves.Add(time.Duration(1+w.random.IntN(3)) * time.Second)
			}
			w.moving = append(w.moving, m)
		}
		w.sent += k
	}
}

func (w *world) spread() (list []int) {
	for _, n := range w.nodes {
		list = append(list, n.here+n.leaving)
	}
	return list
}

// tryWorlds sets how many worlds a test tries.
func tryWorlds(t *testing.T) {
	t.Helper()
	was, checks := flag.Lookup("rapid.checks").Value.String(), "30"
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		checks = "2000"
	}
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set("rapid.checks", was) })
}

func drawSessions(t *rapid.T) (sessions []int) {
	sessions = rapid.SliceOfN(rapid.IntRange(0, 300), 1, 5).Draw(t, "nodes")
	for range rapid.IntRange(1, 4).Draw(t, "joining") {
		sessions = append(sessions, 0)
	}
	return sessions
}

// Whatever the nodes have when some join, after two minutes none has a fifth more
// than the mean, or more than one gateway; no node
// fell below the mean for it, none that came above it sends anything back, and
// then there is rest.
func TestBalance_IsEvenInTwoMinutesAndRests(t *testing.T) {
	var longest time.Duration
	tryWorlds(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 0.2, drawSessions(t)...)
		mean, excess, before := w.mean(), 0, w.spread()
		for _, n := range before {
			excess += max(0, n-int(math.Ceil(mean)))
		}
		even := func() bool {
			for _, n := range w.nodes {
				if n.here+n.leaving > int(math.Ceil(mean))+1 && float64(n.here+n.leaving) > 1.2*mean {
					return false
				}
			}
			return true
		}
		took := time.Duration(0)
		for !even() {
			w.run(time.Second)
			took += time.Second
			if took > 2*time.Minute {
				t.Fatalf("%v is %v after two minutes; the mean is %.1f", before, w.spread(), mean)
			}
			for i, n := range w.nodes {
				if n.balance.tried > 0 && n.here < int(mean) {
					t.Fatalf("node %d of %v has sent itself below the mean: %v", i, before, w.spread())
				}
			}
		}
		longest = max(longest, took)
		w.run(3 * time.Minute)              // those on their way were counted twice: the last ones follow
		if w.sent > excess+2*len(w.nodes) { // one that just came may have to go again
			t.Fatalf("%v: %d gateways were sent away, and %d are above the mean of %.1f", before, w.sent, excess, mean)
		}
		rest := w.sent
		w.run(10 * time.Minute)
		if w.sent != rest || !even() || len(w.moving) > 0 {
			t.Fatalf("%v: %v, and %d more were sent away in the ten minutes after", before, w.spread(), w.sent-rest)
		}
	})
	t.Logf("MEASURED even after %s at most", longest)
}

// Turns are no reason for gateways to go round in circles.
func TestBalance_ComesToRestBehindTurns(t *testing.T) {
	tryWorlds(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 0.2, drawSessions(t)...)
		turn := 0
		w.choose = func(int) int { turn++; return turn % len(w.nodes) }
		w.run(40 * time.Minute)
		rest := w.sent
		w.run(20 * time.Minute)
		if w.sent != rest {
			t.Fatalf("%v, and %d are still sent away in 20 minutes", w.spread(), w.sent-rest)
		}
		if w.sent > 2*w.all {
			t.Fatalf("%d gateways were sent away %d times", w.all, w.sent)
		}
	})
}

// A load balancer that leads them anywhere, as one does that was reloaded and has
// counted nothing yet, leads some back: that is no affinity, however few have gone.
func TestBalance_SomeWhoComeBackAreNoAffinity(t *testing.T) {
	tryWorlds(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 0.2, rapid.IntRange(300, 1000).Draw(t, "sessions"), 0, 0)
		w.quick, w.choose = true, func(int) int { return w.random.IntN(len(w.nodes)) }
		w.run(4 * time.Minute)
		if pause := w.nodes[0].balance.pause; pause > 0 {
			t.Fatalf("%v: it has given up for %s", w.spread(), pause)
		}
	})
}

// A node that joins may be one where gateways stay.
func TestBalance_TriesAgainWhenANodeJoins(t *testing.T) {
	tryWorlds(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 0.2, rapid.IntRange(100, 500).Draw(t, "sessions"), 0, 0)
		w.nodes[2].away = true
		w.choose = func(from int) int { return from }
		for limit := w.now.Add(time.Hour); w.nodes[0].balance.pause == 0; w.run(time.Second) {
			if w.now.After(limit) {
				t.Fatal("it has not given up: this test shows nothing")
			}
		}
		w.run(10 * time.Second) // until those that it has sent are back
		sent := w.sent
		w.nodes[2].away, w.choose = false, w.fewest
		w.run(time.Minute)
		if w.sent == sent {
			t.Fatalf("%v: none was sent away in the minute after", w.spread())
		}
	})
}

// A load balancer with affinity leads each gateway back to where it came from: the
// node that has more than its share gives up, for longer each time.
func TestBalance_GivesUpWhereGatewaysComeBack(t *testing.T) {
	tryWorlds(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 0.2, rapid.IntRange(20, 500).Draw(t, "sessions"), rapid.IntRange(0, 5).Draw(t, "other"))
		w.choose = func(from int) int { return from }
		w.run(5 * time.Hour)
		// Pauses of 10, 20, 40, 80 and 160 minutes: five times, and a fifth of the
		// sessions at most is on its way until it shows.
		if most := 5 * max(2*fewestJudged, w.all/5); w.sent > most {
			t.Fatalf("%v: %d gateways were sent away in five hours, and came back", w.spread(), w.sent)
		}
		if w.sent == 0 {
			t.Fatal("none was sent away: this test shows nothing")
		}
	})
}

// Whom the store does not answer it sends nobody away, and one that is alone has
// nowhere to send them.
func TestBalance_NobodyIsSentAwayInTheDark(t *testing.T) {
	tryWorlds(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 0.2, rapid.IntRange(50, 300).Draw(t, "sessions"), 0)
		alone := rapid.Bool().Draw(t, "alone")
		if alone {
			w.nodes[1].away = true // it never came up
		} else {
			w.nodes[0].away = true
		}
		w.run(5 * time.Minute)
		if w.sent != 0 {
			t.Fatalf("%d gateways were sent away, alone %t", w.sent, alone)
		}
		w.nodes[0].away, w.nodes[1].away = false, false
		w.run(2 * time.Minute)
		if w.sent == 0 {
			t.Fatal("none was sent away afterwards")
		}
		w.nodes[0].away = true
		w.run(NodeLost + 2*time.Second)
		was := w.sent
		w.nodes[0].here += 100
		w.run(time.Minute)
		if w.sent != was {
			t.Fatalf("%d were sent away by a node that knows of no other any more", w.sent-was)
		}
	})
}

func TestBalance_NeverWhereItIsOff(t *testing.T) {
	b := balance{}
	for now := time.Unix(1_780_000_000, 0); b.last.Before(now.Add(-time.Second)) && len(b.sent) == 0; now = now.Add(time.Second) {
		if n := b.step(now, 1000, 0, []Node{{}}); n != 0 {
			t.Fatalf("%d", n)
		}
		if now.Unix() > 1_780_000_100 {
			return
		}
	}
}
