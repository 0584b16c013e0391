package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"touchline/uplink"
)

// A watch sees when gateways are without a session, and how much waits in the
// queue.
type watch struct {
	arenas []*arena
	queue  *natsServers
	seen   []sighting // by venue; of run only

	mu      sync.Mutex // covers what follows
	longest time.Duration
	who     string
	slack   time.Duration // the longest that this process itself stood still
	deepest uint64
	ever    uint64
}

type sighting struct {
	at       time.Time // connected, last
	sessions uint64
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
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		w.look(now, now.Sub(last)-watchEvery)
		last = now
	}
}

func (w *watch) look(now time.Time, slack time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slack = max(w.slack, slack)
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
		if away := until.Sub(seen.at); (!connected || st.Sessions != seen.sessions) && away > w.longest {
			w.longest, w.who = away, fmt.Sprintf("%s, %s: %s", v.id, st.State, st.LastError)
		}
		if connected {
			seen.at, seen.sessions = now, st.Sessions
		}
	}
}

// runQueue has its own time: a monitor may not answer.
func (w *watch) runQueue(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, 500*time.Millisecond)
		st := w.queue.state()
		w.mu.Lock()
		w.deepest, w.ever = max(w.deepest, st.waiting), max(w.ever, st.ever)
		w.mu.Unlock()
	}
}

// seenSince is what a watch saw from one reset to the next.
type seenSince struct {
	longest time.Duration
	who     string
	slack   time.Duration
	deepest uint64
}

// reset begins anew, and returns what was seen.
func (w *watch) reset() seenSince {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := seenSince{w.longest, w.who, w.slack, w.deepest}
	w.longest, w.who, w.slack, w.deepest = 0, "", 0, 0
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
	whole  time.Duration // from the event until all are connected, and what they had then is stored
	even   time.Duration // until no node has more than its share; -1: it was not so
	stored uint64        // samples called stored since the event before
	repeat uint64        // blocks that were queued once more, and dropped by the record store
	deep   uint64        // blocks in the queue at most
	spread []int
}

func (h *happening) String() string {
	even := "       -"
	if h.even >= 0 {
		even = fmt.Sprintf("%6.1f s", h.even.Seconds())
	}
	return fmt.Sprintf("%-44s %5d %7.2f s %7.2f s %s %9d %8d %7d  %v", h.what, h.moved, h.away.Seconds(), h.whole.Seconds(), even, h.stored, h.repeat, h.deep, h.spread)
}

func (l *league) table(t *testing.T) {
	t.Helper()
	text := fmt.Sprintf("MEASURED %s, seed %d, %d gateways; samples stored, repeats dropped, deepest queue in blocks\n%-44s %5s %9s %9s %8s %9s %8s %7s  %s", t.Name(), l.seed, len(l.arenas)+len(l.sites),
		"event", "moved", "no session", "whole", "even", "samples", "repeats", "queue", "at the nodes")
	for i := range l.rows {
		text += "\n" + l.rows[i].String()
	}
	t.Log(text)
}
