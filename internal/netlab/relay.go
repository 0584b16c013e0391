package netlab

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// A Relay accepts connections, dials on for each, and passes bytes both ways,
// as badly as its Faults say. It begins with NewRelay and ends with Close.
type Relay struct {
	listener net.Listener
	opts     RelayOptions
	ctx      context.Context
	cancel   context.CancelFunc
	ended    sync.WaitGroup

	mu      sync.Mutex // covers what follows
	faults  Faults
	changed chan struct{} // closed, and made anew, when faults change
	pairs   []*pair       // open, oldest first
	stats   RelayStats
	closed  bool
}

// RelayOptions says where a Relay leads.
type RelayOptions struct {
	// Dial connects to target, which is what Greet returned.
	Dial func(ctx context.Context, target string) (net.Conn, error)
	// Greet, if there is one, speaks with the client before anything is
	// dialed, as a proxy does, and returns where to go and what to relay:
	// client itself or something around it. An error ends the connection.
	Greet func(client net.Conn) (target string, relayed net.Conn, err error)
	// Seed decides where bytes are corrupted.
	Seed uint64
}

// Faults are what a relay does to all its connections, the open ones too. The
// zero value relays faithfully.
type Faults struct {
	Up, Down Flow // from client to server, and back

	// HoldCloses keeps the end of a connection from the other side, until
	// ReleaseCloses. CloseDelay delays it.
	HoldCloses bool
	CloseDelay time.Duration
}

// Flow is what happens to the bytes of one direction.
type Flow struct {
	Stall          bool // they stay in the sender's queue, which fills
	Blackhole      bool // they are taken and vanish, and so do all later ones of that connection
	BytesPerSecond int  // 0: no limit
	CorruptEvery   int  // one bit is flipped in about as many bytes; 0: none
}

// RelayStats counts since NewRelay.
type RelayStats struct {
	Accepted, Dialed  int    // connections
	Greeted, Rejected int    // by Greet
	Up, Down          uint64 // bytes passed on
	Swallowed         uint64 // bytes
	Flipped           int    // bits
}

// NewRelay relays what l accepts; l is the relay's from then on.
func NewRelay(l net.Listener, o RelayOptions) *Relay {
	r := &Relay{listener: l, opts: o, changed: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.ended.Go(r.accept)
	return r
}

// Addr returns the address to dial.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// Close ends all connections and returns when everything has ended. It may be
// called twice.
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	err := r.listener.Close()
	r.Cut()
	r.ended.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Set changes the faults, at once.
func (r *Relay) Set(f Faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = f
	close(r.changed)
	r.changed = make(chan struct{})
}

// Cut resets all connections, on both sides, and returns how many those were.
func (r *Relay) Cut() int {
	r.mu.Lock()
	pairs := slices.Clone(r.pairs)
	r.mu.Unlock()
	for _, p := range pairs {
		p.reset()
	}
	return len(pairs)
}

// CutClients resets all connections on the client's side. The server learns of
// it as HoldCloses says.
func (r *Relay) CutClients() int {
	r.mu.Lock()
	pairs := slices.Clone(r.pairs)
	r.mu.Unlock()
	for _, p := range pairs {
		abort(p.client)
	}
	return len(pairs)
}

// ReleaseCloses passes on the ends that HoldCloses kept, those of the newest
// connection first, and returns how many connections have ended by it.
func (r *Relay) ReleaseCloses() int {
	r.mu.Lock()
	pairs := slices.Clone(r.pairs)
	r.mu.Unlock()
	slices.Reverse(pairs)
	ended := 0
	for _, p := range pairs {
		if p.release() {
			ended++
		}
	}
	return ended
}

// Held returns how many connections have an end that is held back.
func (r *Relay) Held() (held int) {
	r.mu.Lock()
	pairs := slices.Clone(r.pairs)
	r.mu.Unlock()
	for _, p := range pairs {
		p.mu.Lock()
		if p.waiting > 0 {
			held++
		}
		p.mu.Unlock()
	}
	return held
}

// Open returns how many connections are open.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pairs)
}

// Stats returns a copy of the counts.
func (r *Relay) Stats() RelayStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

func (r *Relay) count(f func(*RelayStats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

// current returns the faults, and a channel that is closed when they change.
func (r *Relay) current() (Faults, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.faults, r.changed
}

func (r *Relay) accept() {
	for number := 0; ; number++ {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.count(func(s *RelayStats) { s.Accepted++ })
		p := newPair(r, client, number)
		r.mu.Lock()
		if r.closed {
			r.mu.Unlock()
			abort(client)
			return
		}
		r.pairs = append(r.pairs, p)
		r.mu.Unlock()
		r.ended.Go(func() {
			p.run()
			r.mu.Lock()
			r.pairs = slices.DeleteFunc(r.pairs, func(q *pair) bool { return q == p })
			r.mu.Unlock()
		})
	}
}
