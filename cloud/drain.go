package cloud

import (
	"math/rand/v2"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// drainTick is the grain of the spread in which gateways are sent away: at 333
// a second (10,000 in 30 s) it is seven of them at a time.
const drainTick = 20 * time.Millisecond

// drain moves the gateways to other nodes before this one stops. First it only
// says that it is not ready, and goes on as before, until load balancers have
// noticed: nobody is refused meanwhile. Then it lets nobody in and sends away who
// is there, spread so that the others can take them: each is told to come
// back at once, since that leads elsewhere, and ends its session when all that it
// sent is stored. It returns when nobody is left, when those who stayed were
// given up, or when the listener broke.
func (s *Server) drain(broken <-chan struct{}) {
	if s.opts.DrainDelay == 0 && s.opts.Drain == 0 {
		return
	}
	s.log.Info("touchline-cloud drains", "connections", s.Stats().Connections, "delay", s.opts.DrainDelay, "over", s.opts.Drain)
	s.ingest.roster.leaves()
	if !idle(s.opts.DrainDelay, broken) || s.opts.Drain == 0 {
		return
	}
	sessions, empty := s.ingest.roster.turnAway()
	began := time.Now()
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for sent := 0; sent < len(sessions); {
		select {
		case <-tick.C:
		case <-empty:
			return
		case <-broken:
			return
		}
		due := int(float64(len(sessions)) * min(1, float64(time.Since(began))/float64(s.opts.Drain)))
		for ; sent < due; sent++ {
			sessions[sent].sendAway(causeDrain)
		}
	}
	timer := time.NewTimer(s.ingest.timing.leave)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
		s.log.Warn("gateways did not leave when they were asked to; their sessions are closed", "connections", s.Stats().Connections)
	case <-broken:
	}
}

// idle waits for d, and returns false where broken came first.
func idle(d time.Duration, broken <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-broken:
		return false
	}
}

// sayGoodbye ends all sessions, also those that still come. Where there are
// other nodes, gateways go there. Else they come back spread over five seconds, to
// this node's successor.
func (s *Server) sayGoodbye() {
	s.ingest.roster.drain(func() farewell {
		if s.opts.Drain > 0 {
			return farewell{code: websocket.CloseServiceRestart, reason: "this node stops", goaway: &wire.Goaway{Reason: "drain"}}
		}
		after := time.Second + rand.N(5*time.Second)
		return farewell{code: websocket.CloseGoingAway, reason: "this node stops",
			goaway: &wire.Goaway{Reason: "drain", ReconnectAfter: int(after.Milliseconds())}}
	})
}

// sendAway asks the gateway to come back at once, when all that it sent is
// stored: behind a load balancer that mostly leads to another node. It may be called by
// any goroutine.
func (s *session) sendAway(cause cause) {
	s.in.stats.sentAway[cause].Add(1)
	reason := "rebalance"
	if cause == causeDrain {
		reason = "drain"
	}
	s.out.setGoaway(wire.Goaway{Reason: reason})
}

// A cause is why a gateway is asked to come anew.
type cause int

const (
	causeDrain     cause = iota // this node stops
	causeAge                    // its session is older than MaxAge
	causeImbalance              // this node has more than its share
	causeOutage                 // its session began while the record store was away
	causes
)

func (c cause) String() string { return [causes]string{"drain", "age", "imbalance", "outage"}[c] }

// expiry returns when a session that began then is old: MaxAge give or take a
// tenth, so that gateways that came together don't leave together.
func (in *ingest) expiry(began time.Time) time.Time {
	if in.opts.MaxAge == 0 {
		return time.Time{}
	}
	return began.Add(in.opts.MaxAge*9/10 + rand.N(in.opts.MaxAge/5+1))
}

// age sends an old session away, and closes it where its gateway stays. It is
// called with each ping, so it is late by one heartbeat at most.
func (s *session) age(now time.Time) {
	switch {
	case s.expires.IsZero() || now.Before(s.expires):
	case s.expired:
		s.out.end(farewell{code: websocket.CloseServiceRestart, reason: "the session is older than this node allows",
			goaway: &wire.Goaway{Reason: "rebalance"}})
	default:
		s.expired, s.expires = true, now.Add(s.in.timing.leave)
		s.sendAway(causeAge)
	}
}
