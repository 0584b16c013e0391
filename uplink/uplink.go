// Package uplink is the gateway's side of touchline.v1: it delivers the
// buffer's blocks to the cloud over a WebSocket and tells the buffer what the
// cloud has stored. A block is forgotten only after the cloud's word "stored";
// whatever breaks in between, the next session begins with what the cloud says
// it has, and sends the rest again. Run ends when its context does; nothing is
// kept between two runs, since the buffer and the cloud know all there is.
package uplink

import (
	"context"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
	"touchline/wire"
)

// Source is the buffer as the uplink needs it. Its methods are called by
// several goroutines at once.
type Source interface {
	// Next waits until there is at least one block behind after and returns
	// those that follow it, oldest first, up to maxBytes of data, but always
	// one. after may name a block that is gone, or a place before the first
	// of its epoch. Reading deletes nothing. The blocks' data stays as it is
	// for as long as the caller holds it. Next ends with ctx's error when
	// ctx ends.
	Next(ctx context.Context, after touchline.Position, maxBytes int) ([]wire.Block, error)
	// Ack says what the cloud has stored, so that it may be forgotten, and
	// which lost records it has confirmed. Repeats, and numbers that are not
	// held, are no error. The slices are the source's from then on.
	Ack(stored []wire.EpochRanges, lost []uint64) error
	// Reconcile says what the cloud has, once for each session and before
	// Next is called in it: of each epoch named, the ranges given and no
	// others. What was acknowledged before and is not among them, because
	// the cloud was restored from a backup, is to be returned by Next again
	// where it is still held.
	Reconcile(stored []wire.EpochRanges) error
	// Held returns which numbers are held, oldest epoch first, and the
	// records of lost samples that are not confirmed, oldest first.
	Held() ([]wire.Held, []wire.Lost)
}

// Clock is the gateway's clock as the uplink needs it. Its methods don't
// block, and are called by several goroutines at once.
type Clock interface {
	// State says how far the clock can be trusted.
	State() touchline.ClockState
	// Heard takes the cloud's time as it is received, in an answer to what
	// was sent roundTrip ago.
	Heard(said time.Time, roundTrip time.Duration)
	// Overheard takes the cloud's time where it answers nothing; roundTrip
	// is what one usually takes.
	Overheard(said time.Time, roundTrip time.Duration)
}

// Corrections are what the cloud has to be told of the gateway's clock. Its
// methods don't block, and are called by several goroutines at once.
type Corrections interface {
	// Clocks returns the clocks that the cloud has to be told, oldest first.
	Clocks() []touchline.Clock
	// ConfirmClocks says which of them it has recorded. Repeats, and others,
	// are no error.
	ConfirmClocks(confirmed []wire.ClockOffset)
}

// Uplink delivers one gateway's blocks. Make it with New; its methods may be
// called by any goroutine.
type Uplink struct {
	opts   Options
	urls   []*url.URL
	source Source
	log    *slog.Logger
	route  *Route
	retry  chan struct{} // 1 slot: what kept us waiting is settled
	count  counters
	turns  atomic.Uint64

	// minHeartbeat bounds what a cloud can ask for: a ping each millisecond
	// would be its attack on us, or its mistake.
	minHeartbeat time.Duration

	// previous is what the last session had sent and not heard to be
	// stored, so that Stats counts each sample once. Only Run uses it.
	previous *flights

	wantsNonce atomic.Bool // the cloud has refused a credential because of our clock

	mu      sync.Mutex // covers what follows
	store   string     // id of the record store that we deliver to; "": none yet
	status  Stats      // what Run knows; the session and counters have the rest
	session *session   // the current or last one
}

// New checks opts and returns an uplink that does nothing yet. The error names
// every setting that is wrong.
func New(opts Options, source Source, logger *slog.Logger) (*Uplink, error) {
	urls, err := opts.validate()
	if err != nil {
		return nil, err
	}
	route, err := newRoute(&opts)
	if err != nil {
		return nil, err
	}
	return &Uplink{
		route:        route,
		retry:        make(chan struct{}, 1),
		store:        opts.KnownStore,
		opts:         opts,
		urls:         urls,
		source:       source,
		log:          logger.With("component", "uplink"),
		minHeartbeat: time.Second,
		previous:     newFlights(),
		status:       Stats{State: Stopped, Since: time.Now(), Store: opts.KnownStore},
	}, nil
}

// Run delivers until ctx ends, and returns nil then, after all that it started
// has ended: at once, or within a second where the cloud has to be told. No
// failure of network, cloud or buffer ends it before; it is logged, shown in
// Stats, and tried again. Not to be called twice at a time.
func (u *Uplink) Run(ctx context.Context) error {
	plan := newSchedule(&u.opts, u.urls)
	for ctx.Err() == nil {
		u.turns.Add(1)
		to, requests := plan.next()
		u.setState(Connecting, to)
		up, err := u.attempt(ctx, to, requests)
		if ctx.Err() != nil {
			break
		}
		f := asFailure(err)
		u.wantsNonce.Store(f.stale || u.wantsNonce.Load() && up == 0)
		wait := plan.wait(to, up, f)
		u.setWaiting(f, up, wait)
		u.rest(ctx, wait)
	}
	u.setState(Stopped, nil)
	return nil
}

// rest waits before the next dial.
func (u *Uplink) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	turn := time.NewTicker(turnInterval)
	defer turn.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.retry:
			return
		case <-t.C:
			return
		case <-turn.C:
			u.turns.Add(1)
		}
	}
}

// turnInterval is how often the loop turns where it just waits.
const turnInterval = 5 * time.Second

// Turns says how often the loop of Run, or of its session, has turned. While
// Run runs that is every heartbeat (Options.Heartbeat) unless it dials, which is
// bounded by HandshakeTimeout, or the source keeps it. Any goroutine may call it.
func (u *Uplink) Turns() uint64 { return u.turns.Load() }

// attempt dials once, and lives through one session if there is one. up is how
// long the session was welcome.
func (u *Uplink) attempt(ctx context.Context, to *url.URL, requests bool) (up time.Duration, err error) {
	u.count.dials.Add(1)
	open := u.dialSocket
	if requests {
		open = u.openRequests
	}
	l, err := open(ctx, to)
	if err != nil {
		return 0, err
	}
	s := newSession(u, l, to)
	s.requests = requests
	u.mu.Lock()
	u.session = s
	u.mu.Unlock()
	up, err = s.run(ctx)
	if f := asFailure(err); up == 0 && !requests && f.code == 0 && !s.spoken() {
		// The upgrade went through, and nothing after it: some proxies do so.
		f.middlebox = true
		return 0, f
	}
	return up, err
}

func (u *Uplink) setState(state State, to *url.URL) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.status.State != state {
		u.status.State, u.status.Since = state, time.Now()
	}
	u.status.NextTry = time.Time{}
	if to != nil {
		u.status.URL = shown(to)
	}
}

// setWelcome notes a session's begin.
func (u *Uplink) setWelcome(w *wire.Welcome, requests bool) {
	u.mu.Lock()
	u.status.State, u.status.Since = Connected, time.Now()
	u.status.Session, u.status.Requests = w.Session, requests
	at := u.status.URL
	u.mu.Unlock()
	u.count.sessions.Add(1)
	u.log.Info("connected", "url", at, "store", w.Store, "session", w.Session, "by_requests", requests,
		"window_bytes", w.Window.Bytes, "window_blocks", w.Window.Blocks)
}

// setStable forgets the last error: it is healed.
func (u *Uplink) setStable() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.status.LastError = ""
}

// setWaiting notes and logs why there is no session. While the same thing goes
// on failing it is one line, and Debug after that: being offline for a night
// is normal here.
func (u *Uplink) setWaiting(f *failure, up, wait time.Duration) {
	u.mu.Lock()
	text := f.Error()
	known := text == u.status.LastError && up == 0
	now := time.Now()
	u.status.State, u.status.Since, u.status.NextTry = Waiting, now, now.Add(wait)
	if u.status.Offered != "" {
		u.status.State = StoreChanged
	}
	u.status.LastError = text
	at := u.status.URL
	u.mu.Unlock()
	args := []any{"url", at, "error", text, "next_try_in", wait.Round(time.Millisecond)}
	switch {
	case known:
		u.log.Debug("still not connected", args...)
	case up > 0:
		u.log.Info("disconnected", append(args, "after", up.Round(time.Millisecond))...)
	default:
		u.log.Warn("not connected", args...)
	}
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
