package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"touchline/uplink"
)

// A watch sees when gateways are without a session, and how much waits in the
// queue.
type watch struct {
	arenas []*arena
	queue  *natsServers
	seen   []sighting // by venue; of run only

	mu sync.Mutex // covers what follows
	seenSince
}

type sighting struct {
	at       time.Time // connected, last
	sessions uint64
	trail    []string // what its uplink said since, each once
}

// maxTrail bounds what is remembered of one absence.
const maxTrail = 12

// note adds what an uplink says now to a gateway's trail.
func (s *sighting) note(now time.Time, st uplink.Stats) {
	said := fmt.Sprintf("%s %s", st.State, st.LastError)
	if n := len(s.trail); n < maxTrail && (n == 0 || !strings.HasSuffix(s.trail[n-1], said)) {
		s.trail = append(s.trail, fmt.Sprintf("%.1f s %s", now.Sub(s.at).Seconds(), said))
	}
}

// watchEvery is how exactly absences are measured.
const watchEvery = 50 * time.Millisecond

func newWatch(arenas []*arena, queue *natsServers) *watch {
	return &watch{arenas: arenas, queue: queue, seen: make([]sighting, len(arenas))}
}

// run looks until ctx is done. All arenas were connected before.
func (w *watch) run(ctx context.Context) {
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() { w.runQueue(ctx) })
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		w.look(time.Now())
	}
}

func (w *watch) look(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, v := range w.arenas {
		st, seen := v.uplink.Stats(), &w.seen[i]
		connected := st.State == uplink.Connected
		if seen.at.IsZero() {
			seen.at, seen.sessions = now, st.Sessions
		}
		until := now
		if connected {
			until = st.Since // before the last look, where nothing has changed
		}
		if !connected || st.Sessions != seen.sessions {
			seen.note(now, st)
			away := until.Sub(seen.at)
			if v.requests {
				w.requests = max(w.requests, away)
			} else if away > w.longest {
				w.longest, w.who = away, v.id+": "+strings.Join(seen.trail, "; ")
			}
		}
		if connected {
			*seen = sighting{at: now, sessions: st.Sessions}
		}
	}
}

// runQueue has its own time: a monitor may not answer.
func (w *watch) runQueue(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, 500*time.Millisecond)
		st := w.queue.state()
		w.mu.Lock()
		w.deepest = max(w.deepest, st.waiting)
		w.mu.Unlock()
	}
}

// seenSince is what a watch saw from one reset to the next.
type seenSince struct {
	longest  time.Duration // that a gateway with a WebSocket had no session
	who      string        // that was, and what its uplink said meanwhile
	requests time.Duration // that one without a WebSocket had none
	deepest  uint64        // blocks in the queue
}

// reset begins anew, and returns what was seen.
func (w *watch) reset() seenSince {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seenSince
	w.seenSince = seenSince{}
	return s
}

// sessions returns how many sessions each gateway has had.
func (l *league) sessions() (list []uint64) {
	for _, v := range l.arenas {
		list = append(list, v.uplink.Stats().Sessions)
	}
	return list
}

// A happening is a row of the table that the test prints.
type happening struct {
	what   string
	moved  int           // gateways that have begun another session
	away   time.Duration // the longest that one was without
	http   time.Duration // the longest of those that have no WebSocket
	whole  time.Duration // from the event until all are connected, and what they had then is stored
	even   time.Duration // until no node has more than its share; -1: it was not so
	stored uint64        // samples called stored since the event before
	repeat uint64        // blocks that were queued once more, and dropped by the record store
	deep   uint64        // blocks in the queue at most
	spread []int

	limited bool // it is among what no gateway may lose its session by for long
}

func (h *happening) String() string {
	even := "       -"
	if h.even >= 0 {
		even = fmt.Sprintf("%6.1f s", h.even.Seconds())
	}
	return fmt.Sprintf("%-44s %5d %7.2f s %7.2f s %7.2f s %s %9d %8d %7d  %v", h.what, h.moved, h.away.Seconds(), h.http.Seconds(), h.whole.Seconds(), even, h.stored, h.repeat, h.deep, h.spread)
}

// table prints what happened, a line for each event.
func (l *league) table() {
	l.t.Helper()
	l.t.Logf("MEASURED %s, seed %d, %d gateways: longest time without a session, with a WebSocket and without, until all are connected and what comes is stored, until the nodes have their shares; samples called stored, repeats dropped by the record store, blocks in the queue at most",
		l.t.Name(), l.seed, len(l.arenas)+len(l.sites))
	l.t.Logf("MEASURED %-44s %5s %9s %9s %9s %8s %9s %8s %7s  %s", "event", "moved", "no sess.", "by HTTP", "whole", "even", "samples", "repeats", "queue", "at the nodes")
	for i := range l.rows {
		l.t.Logf("MEASURED %s", &l.rows[i])
	}
}
