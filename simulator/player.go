package simulator

import (
	"math"
	"math/rand/v2"
)

// The pitch, and what a player can do on it.
const (
	pitchLengthM = 105.0
	pitchWidthM  = 68.0
	sprintMS     = 8.5 // metres a second; the fastest players reach 10
	// smoothS is the time constant of each of the two filters that a
	// player's movement passes. It bounds the acceleration: below.
	smoothS    = 1.5
	minHeart   = 60.0
	maxHeart   = 200.0
	heartLagS  = 25.0 // the heart follows the effort behind by this
	maxStepS   = 0.02 // the model is advanced in steps of at most this
	roleRangeM = 22.0 // how far a player's runs lead from his place
)

// A player moves as players do: he stands, walks, jogs, runs and sprints
// towards places near his own on the pitch, and his heart follows.
//
// A carrot runs straight lines between places of the pitch at one of the
// speeds of gait, and the player follows it through two low-pass filters of
// first order. What that guarantees needs no clamping: a filtered position is a mean of
// places on the pitch, which is convex, so he stays on it; his velocity is a
// mean of the carrot's, so he is never faster than sprintMS; and his
// acceleration is (v1-v2)/smoothS, v1 and v2 being the velocities behind the
// two filters, whose difference is at most 2/e of the largest input: 8.5 m/s
// x 0.736 / 1.5 s = 4.2 m/s².
type player struct {
	rng            *rand.Rand
	home           point   // his place in the formation
	goal           point   // where the carrot runs to
	carrot, lead   point   // lead is behind the first filter
	at             point   // behind the second: the player
	paceMS         float64 // of the carrot
	standS         float64 // how long the carrot rests yet
	speed, accel   float64
	heart          float64
	rest, heartTop float64 // bounds of his own heart rate
}

type point struct{ x, y float64 }

func (p point) minus(q point) point { return point{p.x - q.x, p.y - q.y} }
func (p point) length() float64     { return math.Hypot(p.x, p.y) }
func (p *point) approach(q point, k float64) {
	p.x += (q.x - p.x) * k
	p.y += (q.y - p.y) * k
}

// gaits are how players spend a match: the share of the decisions, and the
// speed, each of which varies by a fifth to either side.
var gaits = []struct {
	until   float64 // cumulated share
	speedMS float64
}{
	{0.10, 0}, {0.55, 1.5}, {0.83, 3}, {0.95, 5.2}, {1, 7.1},
}

// newPlayer makes the player with this number; the same seed and number make
// the same player.
func newPlayer(seed uint64, number int) *player {
	rng := rand.New(rand.NewPCG(seed, uint64(number)))
	p := &player{rng: rng}
	p.home = point{3 + rng.Float64()*(pitchLengthM-6), 3 + rng.Float64()*(pitchWidthM-6)}
	p.carrot, p.lead, p.at = p.home, p.home, p.home
	p.rest = 60 + 15*rng.Float64()
	p.heartTop = 180 + 20*rng.Float64()
	p.heart = p.rest + 25
	p.decide()
	return p
}

// decide chooses where to go next, and how.
func (p *player) decide() {
	dice, gait := p.rng.Float64(), 0
	for gaits[gait].until < dice {
		gait++
	}
	p.paceMS = min(gaits[gait].speedMS*(0.8+0.4*p.rng.Float64()), sprintMS)
	if p.paceMS == 0 {
		p.standS = 1 + 4*p.rng.Float64()
		return
	}
	angle, distance := 2*math.Pi*p.rng.Float64(), roleRangeM*math.Sqrt(p.rng.Float64())
	p.goal = point{
		x: min(max(p.home.x+distance*math.Cos(angle), 0.5), pitchLengthM-0.5),
		y: min(max(p.home.y+distance*math.Sin(angle), 0.5), pitchWidthM-0.5),
	}
}

// advance moves the player on by seconds.
func (p *player) advance(seconds float64) {
	steps := max(1, int(math.Ceil(seconds/maxStepS)))
	dt := seconds / float64(steps)
	for range steps {
		p.step(dt)
	}
}

func (p *player) step(dt float64) {
	p.moveCarrot(dt)
	k := 1 - math.Exp(-dt/smoothS)
	before := p.at
	p.lead.approach(p.carrot, k)
	p.at.approach(p.lead, k)
	speed := p.at.minus(before).length() / dt
	p.accel = (speed - p.speed) / dt
	p.speed = speed

	// Running at 5 m/s all the time would take the heart to its top, and
	// sharp accelerations cost as much as speed does.
	effort := min(1, p.speed/6.5+0.05*math.Abs(p.accel))
	p.heart += (p.rest + (p.heartTop-p.rest)*effort - p.heart) * (1 - math.Exp(-dt/heartLagS))
}

func (p *player) moveCarrot(dt float64) {
	if p.paceMS == 0 {
		if p.standS -= dt; p.standS <= 0 {
			p.decide()
		}
		return
	}
	way := p.goal.minus(p.carrot)
	left := way.length()
	if stride := p.paceMS * dt; stride < left {
		p.carrot.x += way.x / left * stride
		p.carrot.y += way.y / left * stride
		return
	}
	p.carrot = p.goal
	p.decide()
}
