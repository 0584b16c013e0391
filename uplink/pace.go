package uplink

import (
	"math"
	"slices"
	"time"

	"touchline/wire"
)

const (
	// queueTarget is how much longer the backlog may make a block's way to the
	// cloud, in all the queues between: ours, the kernel's, a router's, the
	// recorder's. A new sample waits that long, and for one frame under way
	// (frameParts), which stays below the 200 ms of DESIGN.md.
	queueTarget = 80 * time.Millisecond
	// frameParts is how many frames at least make up what the backlog may have
	// under way: the link is kept busy while one is acknowledged, and a live
	// frame waits for a quarter of queueTarget.
	frameParts = 4
	// startBytes is what the backlog of a session begins with, on a link of
	// which nothing is known: one second of 32 kbit/s, once. It doubles with each
	// round trip, until a queue shows.
	startBytes = 4 << 10
	// leastBytes is below what is worth halving: four parts of 512 bytes, beside
	// which their headers are 7 %. It is half a second of 32 kbit/s. One frame
	// may always be under way.
	leastBytes = 2 << 10
	// probeEvery is how often the queues are let run empty, to learn again how
	// long the way is without them; it costs one round trip and queueTarget.
	probeEvery = 30 * time.Second
	// probePatience bounds that wait where the cloud holds something back.
	probePatience = 2 * time.Second
	// lastWays is how many of the last ways to the cloud are kept.
	lastWays = 3
	// maxMilestones bounds the parts whose pong is awaited: frameParts of them, and
	// what a limit that was halved a few times leaves. 32 bytes each.
	maxMilestones = 64
	// sharePeriod is the time of which the backlog has its share.
	sharePeriod = time.Second
)

// A pace says how fast the backlog may go, so that a new sample never waits
// long behind it, whatever the link: it holds how much is under way at what the
// link delivers within queueTarget. That is what is known of delay-based
// congestion control (LEDBAT, RFC 6817; BBR's probe for the round trip), on top
// of TCP's: TCP alone fills the largest queue on the way. It holds max_rate,
// backlog_share and backlog_hours too. The session's mutex covers it.
type pace struct {
	limits Limits
	began  time.Time

	limit    int    // bytes of a lane that may be under way
	inFlight [2]int // and those that are, by lane
	starting bool
	full     bool // limit was reached in this round

	blocks, parts trips       // to the store, and of parts to the cloud only
	milestones    []milestone // parts under way, in order; at most maxMilestones
	roundAt       time.Time   // a round ends when something sent after this has arrived
	probeAt       time.Time   // next probe; while one goes on, when it began
	probing       bool

	tokens float64 // bytes that max_rate allows now; below zero is a debt
	filled time.Time
}

// A milestone is a part that is under way. A ping follows each, and its pong says
// that all before it arrived.
type milestone struct {
	stamp uint64 // payload of the ping
	lane  wire.Lane
	bytes int
	at    time.Time
}

// trips knows how long one kind of way takes.
type trips struct {
	base, earlier time.Duration           // shortest way since the last probe, and before it; 0: not known
	ways          [lastWays]time.Duration // the last ones
	count         int
	fresh         int // of this round
}

func (t *trips) note(way time.Duration) {
	t.ways[t.count%lastWays] = way
	t.count++
	t.fresh++
	if t.base == 0 || way < t.base {
		t.base = way
	}
}

// last returns how long the way is without queues, and how much longer it is
// now. The shortest of the last ways counts, so that one lost packet is not
// taken for a queue.
func (t *trips) last() (base, queue time.Duration) {
	base = t.base
	if t.earlier > 0 {
		base = min(base, t.earlier)
	}
	return base, slices.Min(t.ways[:min(t.count, lastWays)]) - base
}

func (t *trips) probed() {
	if t.base > 0 {
		t.earlier, t.base = t.base, 0
	}
}

func newPace(l Limits, now time.Time) pace {
	return pace{
		limits: l, began: now, limit: startBytes, starting: true,
		roundAt: now, probeAt: now.Add(probeEvery), tokens: float64(l.MaxRate), filled: now,
	}
}

// live returns when the next n bytes of the live lane may go: now, at that
// time, or, where only an arrival can tell, never. Few blocks never wait; many
// are a backlog in the making (see spill), and must not fill the queues either.
func (p *pace) live(n int, now time.Time) time.Time {
	mine, bulk := p.inFlight[wire.Live], max(p.limit, startBytes)
	if mine > 0 && (mine+n > bulk || p.probing && mine+n > bulk/2) && !p.limits.Plain {
		p.full = p.full || !p.probing
		return never
	}
	return p.earned(now, -float64(p.limits.MaxRate)) // a second's worth beyond what the backlog may
}

// backlog is the same for the backlog, which counts what is live as well.
func (p *pace) backlog(n int, now time.Time) time.Time {
	all := p.inFlight[wire.Live] + p.inFlight[wire.Backlog]
	if p.inFlight[wire.Backlog] > 0 && (p.probing || all+n > p.limit) && !p.limits.Plain {
		p.full = p.full || !p.probing
		return never
	}
	at := p.earned(now, 0)
	if at.After(now) {
		return at
	}
	if share := p.limits.BacklogShare; share < 1 {
		since := now.Sub(p.began) % sharePeriod
		if since >= time.Duration(share*float64(sharePeriod)) {
			return now.Add(sharePeriod - since)
		}
	}
	if p.limits.BacklogFrom != nil {
		return p.limits.BacklogFrom(now)
	}
	return now
}

// frameBytes is how large a frame of the backlog grows by gathering blocks.
func (p *pace) frameBytes() int {
	if p.limits.Plain {
		return frameTarget
	}
	return min(frameTarget, p.limit/frameParts)
}

// earned returns when tokens are above least.
func (p *pace) earned(now time.Time, least float64) time.Time {
	rate := float64(p.limits.MaxRate)
	if rate <= 0 {
		return now
	}
	p.tokens = min(rate, p.tokens+rate*now.Sub(p.filled).Seconds()) // what is saved up is a second's worth
	p.filled = now
	if p.tokens > least {
		return now
	}
	return now.Add(time.Duration((least-p.tokens)/rate*float64(time.Second)) + time.Millisecond)
}

// spend notes n bytes of a frame.
func (p *pace) spend(n int) { p.tokens -= float64(n) }

// launched notes n bytes on their way.
func (p *pace) launched(lane wire.Lane, n int) { p.inFlight[lane] += n }

// left notes n bytes that are called back, or forgotten.
func (p *pace) left(lane wire.Lane, n int) { p.inFlight[lane] -= n }

// part returns when the next n bytes of a block that goes in parts may go, as
// live and backlog do for whole ones.
func (p *pace) part(lane wire.Lane, n int, now time.Time) time.Time {
	all := p.inFlight[wire.Live] + p.inFlight[wire.Backlog]
	if p.inFlight[lane] > 0 && (p.probing || all+n > p.limit) || len(p.milestones) >= maxMilestones {
		p.full = p.full || !p.probing
		return never
	}
	if lane == wire.Live {
		return p.earned(now, -float64(p.limits.MaxRate))
	}
	return p.earned(now, 0)
}

// departed notes a part on its way.
func (p *pace) departed(m milestone) {
	p.launched(m.lane, m.bytes)
	p.milestones = append(p.milestones, m)
}

// passed takes a pong, and says whether it was one for parts.
func (p *pace) passed(stamp uint64, now time.Time) bool {
	n := 0
	for n < len(p.milestones) && p.milestones[n].stamp <= stamp {
		p.left(p.milestones[n].lane, p.milestones[n].bytes)
		n++
	}
	if n == 0 {
		return false
	}
	sent := p.milestones[n-1].at
	p.milestones = slices.Delete(p.milestones, 0, n)
	p.came(&p.parts, sent, now)
	return true
}

// arrived notes n bytes that the cloud has, sent at the time given.
func (p *pace) arrived(lane wire.Lane, n int, sent, now time.Time) {
	p.left(lane, n)
	p.came(&p.blocks, sent, now)
}

// came learns from a way that began at sent.
func (p *pace) came(t *trips, sent, now time.Time) {
	t.note(max(now.Sub(sent), 1))
	// The first of those that were sent together has met no queue yet.
	if !sent.Before(p.roundAt) && t.fresh >= lastWays {
		base, queue := t.last()
		p.endRound(base, queue, now)
	}
	switch {
	case p.probing && (p.inFlight == [2]int{} || now.Sub(p.probeAt) > probePatience):
		// What is sent next finds the queues empty.
		p.probing, p.probeAt = false, now.Add(probeEvery)
		p.blocks.probed()
		p.parts.probed()
	case !p.probing && !now.Before(p.probeAt):
		p.probing, p.probeAt = true, now
	}
}

// endRound adapts limit to what a round trip has shown. It goes half the way to
// what the link delivered, taken over a way with a queue of queueTarget, since
// what it changes shows a round later only; and not below the half, or above
// half as much again.
func (p *pace) endRound(base, queue time.Duration, now time.Time) {
	gain := (float64(base+queueTarget)/float64(base+queue) - 1) / 2
	gain = min(max(gain, -0.5), 0.5)
	switch {
	case p.starting && queue < queueTarget/4:
		gain = 1
	default:
		p.starting = false
	}
	if gain < 0 || p.full {
		p.limit = int(math.Min(float64(p.limit)*(1+gain), math.MaxInt32))
		p.limit = max(p.limit, leastBytes)
	}
	p.full, p.roundAt = false, now
	p.blocks.fresh, p.parts.fresh = 0, 0
}

// never stands for a time that an arrival will bring, not a clock.
var never = time.Unix(1<<40, 0)
