package cloud

import (
	"errors"
	"sync"

	"touchline/wire"
)

// A roster knows the uplinks that are open: how many, which session is a
// gateway's newest, and what window each is offered.
//
// The windows of all gateways together fit half the queue: with n of them,
// each is offered the window halved until n of it do, a quarter of that
// while the record store lags, and none while it stands. So a reader rarely has to wait for the queue
// while its gateway waits for a pong. The exception is the floor: a gateway
// gets smallestWindow bytes and smallestBlocks blocks, unless it is to pause.
type roster struct {
	full  wire.Window
	queue int
	max   int
	load  func() load // of the record store

	wg sync.WaitGroup // one for each admitted connection

	mu       sync.Mutex // covers what follows
	open     int        // admitted, upgraded or about to be
	sessions map[*session]struct{}
	newest   map[string]*session // by gateway: those that said hello
	offered  wire.Window
	leaving  bool            // the node says that it is not ready
	empty    chan struct{}   // nil while gateways are let in; then closed when the last one is gone
	draining func() farewell // how sessions end once the node stops; nil before
}

// 64 KiB and four blocks: at 1,000 gateways and one block of 2 KB a second
// each, that is 30 s of samples.
const (
	smallestWindow = 64 << 10
	smallestBlocks = 4
)

// laggingHalvings: while the store lags, the window is a quarter.
const laggingHalvings = 2

var (
	errFull     = errors.New("as many gateways are connected as this node takes")
	errDraining = errors.New("this node is stopping")
)

func newRoster(o *Options, load func() load) *roster {
	full := wire.Window{Bytes: o.WindowBytes, Blocks: o.WindowBlocks}
	return &roster{full: full, offered: full, queue: o.QueueBytes, max: o.MaxGateways, load: load,
		sessions: map[*session]struct{}{}, newest: map[string]*session{}}
}

// admit takes a place for a connection that is about to be upgraded. Each
// admission ends with one call of leave.
func (r *roster) admit() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.draining != nil || r.empty != nil:
		return errDraining
	case r.open >= r.max:
		return errFull
	}
	r.open++
	r.wg.Add(1)
	return nil
}

// enter adds a connection that was upgraded.
func (r *roster) enter(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s] = struct{}{}
	switch {
	case r.draining != nil:
		s.out.end(r.draining())
	case r.empty != nil: // it was let in before
		s.sendAway(causeDrain)
	}
	r.reoffer()
}

// greet makes s, which has its number now, its gateway's newest session and
// returns its window. The session that was the newest is ended; where that has a
// higher number, s itself is, and ok is false. One without a number is as new as it comes.
func (r *roster) greet(s *session) (window wire.Window, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.newest[s.gateway]; other != nil {
		if s.number != 0 && other.number > s.number {
			return wire.Window{}, false
		}
		other.out.end(overtaken)
	}
	r.newest[s.gateway] = s
	return r.offered, true
}

// leaves says that the node will stop.
func (r *roster) leaves() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = true
}

// turnAway lets nobody in any more. It returns the sessions that are to be sent
// away, and what is closed when the last one of all has ended.
func (r *roster) turnAway() (sessions []*session, empty <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.empty = make(chan struct{})
	if r.open == 0 {
		close(r.empty)
	}
	for s := range r.sessions {
		sessions = append(sessions, s)
	}
	return sessions, r.empty
}

// leave gives the place back. s is nil where the upgrade did not happen.
func (r *roster) leave(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s != nil {
		delete(r.sessions, s)
		if r.newest[s.gateway] == s {
			delete(r.newest, s.gateway)
		}
	}
	if r.open--; r.open == 0 && r.empty != nil {
		close(r.empty) // nobody was let in since: it is closed once
	}
	r.reoffer()
	r.wg.Done()
}

// refresh is called when the record store's load changed.
func (r *roster) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reoffer()
}

// reoffer works out the window, and tells all sessions when it changed. It
// changes by halves, so one that comes or goes seldom makes all hear of it.
// r.mu is held.
func (r *roster) reoffer() {
	halvings := 0
	for r.full.Bytes>>halvings > smallestWindow && (r.full.Bytes>>halvings)*len(r.sessions) > r.queue/2 {
		halvings++
	}
	behind := r.load()
	if behind == lags {
		halvings += laggingHalvings
	}
	window := wire.Window{
		Bytes:  max(r.full.Bytes>>halvings, smallestWindow),
		Blocks: max(r.full.Blocks>>halvings, min(smallestBlocks, r.full.Blocks)),
	}
	if behind == stands {
		window = wire.Window{}
	}
	if window == r.offered {
		return
	}
	r.offered = window
	for _, s := range r.newest {
		s.out.setWindow(window)
	}
}

// drain ends every session with what f returns, and those that still come.
func (r *roster) drain(f func() farewell) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = f
	for s := range r.sessions {
		s.out.end(f())
	}
}

// cut closes every connection that is still open.
func (r *roster) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.sessions {
		s.cut()
	}
}

// of returns the newest session of a gateway, or nil.
func (r *roster) of(gateway string) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest[gateway]
}

func (r *roster) counts() (open int, window wire.Window) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open, r.offered
}

func (r *roster) stopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaving || r.draining != nil
}
