package cloud

import (
	"context"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

// A shedder sends gateways to other nodes while this one has more than its share.
type shedder struct {
	in *ingest

	mu      sync.Mutex // covers what follows
	balance balance
	asked   map[*session]time.Time // sent away, and still here
	gone    map[string]time.Time   // gateways that left then, within settles
}

func newShedder(in *ingest) *shedder {
	return &shedder{in: in, balance: balance{above: float64(in.opts.ShedAbove) / 100},
		asked: map[*session]time.Time{}, gone: map[string]time.Time{}}
}

// run looks each shedTick until stop is done; peers are the other nodes that take
// gateways.
func (h *shedder) run(stop context.Context, peers func(now time.Time) []Node) {
	if h.in.opts.ShedAbove == 0 {
		return
	}
	ticker := time.NewTicker(h.in.timing.shed)
	defer ticker.Stop()
	for {
		select {
		case <-stop.Done():
			return
		case now := <-ticker.C:
			h.look(now, peers(now))
		}
	}
}

func (h *shedder) look(now time.Time, peers []Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.follow(now)
	if h.in.roster.stopping() {
		return
	}
	was, here := h.balance.active, h.in.roster.population()
	n := h.balance.step(now, here-len(h.asked), len(h.asked), peers)
	if h.balance.active && !was {
		h.in.log.Info("this node has more gateways than its share and sends some to others", "connections", here, "nodes", 1+len(peers))
	}
	for _, s := range h.in.roster.some(n, h.asked) {
		s.sendAway(causeImbalance)
		h.asked[s] = now
	}
}

// follow looks what became of those that were sent away: a session whose gateway
// stays is closed, and a gateway that came back is counted. h.mu is held.
func (h *shedder) follow(now time.Time) {
	for s, at := range h.asked {
		switch {
		case h.in.roster.of(s.gateway) != s:
			delete(h.asked, s)
			h.gone[s.gateway] = at
		case now.Sub(at) >= h.in.timing.leave:
			s.out.end(farewell{code: websocket.CloseServiceRestart, reason: "another node has more room",
				goaway: &wire.Goaway{Reason: "rebalance"}})
		}
	}
	for gateway, at := range h.gone {
		back := h.in.roster.of(gateway) != nil
		if back || now.Sub(at) >= settles {
			delete(h.gone, gateway)
		}
		if !back {
			continue
		}
		if pause := h.balance.cameBack(now); pause > 0 {
			h.in.log.Warn("gateways that are sent to other nodes come back to this one, where the load balancer has affinity or counts otherwise; they are kept for now",
				"pause", pause)
		}
	}
}

// lately returns how many gateways were sent away and may be counted nowhere yet.
func (h *shedder) lately(now time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.balance.lately(now)
}

// population returns how many gateways said hello.
func (r *roster) population() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.newest)
}

// some returns n sessions, in no order: none is always the one that has to go.
func (r *roster) some(n int, except map[*session]time.Time) (list []*session) {
	if n == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.newest {
		if len(list) == n {
			break
		}
		if _, out := except[s]; !out {
			list = append(list, s)
		}
	}
	return list
}
