package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/wire"
)

const (
	// closeGrace is how long the end of a session may take: what is being
	// written, our close frame, the cloud's answer.
	closeGrace = time.Second
	// drainGrace is how long after goaway we wait for what is in flight to
	// be accepted; what isn't is sent again in the next session.
	drainGrace = 5 * time.Second
	// maxHeldInHello bounds hello: 2,000 epochs of 105 bytes in JSON stay
	// below wire.MaxMessageBytes. What is not named is sent, and the cloud
	// acknowledges it again.
	maxHeldInHello = 2000
)

// A session is one connection, from hello to close. Seven goroutines share it:
// write, the only one that writes to the connection; read; feedLive and
// feedBacklog, which take blocks out of the source; keepLedger, which tells the
// source what is stored; lookBack, which looks for a better way; and closeAtEnd. The first that fails ends all.
type session struct {
	u        *Uplink
	link     link
	to       *url.URL
	requests bool // in place of a WebSocket
	log      *slog.Logger
	source   Source

	wakeWriter chan struct{} // 1 slot: there may be something to write
	wakeFeeder chan struct{} // 1 slot: there may be room for a read of the backlog
	wakeLive   chan struct{} // 1 slot: and of what is new
	wakeLedger chan struct{} // 1 slot: the source has something to learn
	welcomed   chan struct{} // closed when welcome is there
	readDone   chan struct{} // closed when read has returned
	writeDone  chan struct{} // closed when write has returned

	// frame and frameBuf are the writer's own, used again for each frame.
	frame    []wire.FrameBlock
	frameBuf []byte
	// backlog is feedBacklog's own, but for what its comment says.
	backlog   backlog
	liveAfter touchline.Position // what follows was committed after hello
	mark      mark               // feedLive's own

	mu         sync.Mutex // covers what follows
	ended      bool
	cause      error // why the session ends; the first one counts
	flights    *flights
	outbox     outbox
	handover   handover
	parting    parting
	ledger     ledger
	interval   time.Duration // of our pings
	frameBytes int           // size of a frame at most
	welcome    *wire.Welcome // nil before it is there
	helloAt    time.Time
	heard      bool // anything came from the cloud
	welcomeAt  time.Time
	stable     bool      // StableAfter has passed
	welcomeBy  time.Time // the cloud's time for it
	nextPing   time.Time
	nextScan   time.Time // for blocks that are not stored in time
	paced      time.Time // when something in the hand-over may be sent that has to wait now
	proof      time.Time // when the cloud last answered something that we sent
	nextStamp  uint64    // above all pings' payloads
	rtt        time.Duration
	rttWorst   time.Duration
	goaway     *failure  // set by goaway: how this session will end
	drainBy    time.Time // and when at the latest
}

func newSession(u *Uplink, l link, to *url.URL) *session {
	now := time.Now()
	return &session{
		u: u, link: l, to: to, log: u.log, source: u.source,
		wakeWriter: make(chan struct{}, 1),
		wakeFeeder: make(chan struct{}, 1),
		wakeLive:   make(chan struct{}, 1),
		wakeLedger: make(chan struct{}, 1),
		welcomed:   make(chan struct{}),
		readDone:   make(chan struct{}),
		writeDone:  make(chan struct{}),
		flights:    newFlights(),
		handover:   newHandover(),
		ledger:     newLedger(),
		interval:   u.opts.Heartbeat,
		frameBytes: wire.MinFrameBytes,
		welcomeBy:  now.Add(u.opts.HandshakeTimeout),
		nextPing:   now.Add(u.opts.Heartbeat),
	}
}

// run says hello and lives until the connection or ctx ends. It returns how
// long it was welcome, and why it ended; never nil.
func (s *session) run(ctx context.Context) (time.Duration, error) {
	defer s.link.Close()
	if err := s.sayHello(); err != nil {
		return 0, err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range []func(context.Context) error{s.read, s.write, s.feedLive, s.feedBacklog, s.keepLedger, s.lookBack, s.closeAtEnd} {
		g.Go(func() error { return s.because(f(ctx)) })
	}
	return s.end(g.Wait())
}

// because notes why the session ends and returns that: err, unless something
// came before it. Our own close frame makes the cloud close too, and that
// answer must not pass for the cause. Nil is no reason.
func (s *session) because(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = err
	}
	return s.cause
}

// end sums up after all goroutines have ended.
func (s *session) end(err error) (time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	f := asFailure(err)
	if g := s.goaway; g != nil && f != g {
		// The cloud, or the network, was faster than our polite end.
		f.floor, f.address, f.leave, f.asked = max(f.floor, g.floor), g.address, g.leave, g.asked
	}
	if s.welcome == nil {
		return 0, f
	}
	s.u.previous.inherit(s.flights)
	s.handover = handover{} // its blocks are of no use to anybody
	return max(time.Since(s.welcomeAt), 1), f
}

// sayHello puts hello into the outbox and notes what the cloud may know.
func (s *session) sayHello() error {
	held, _ := s.source.Held()
	clock := touchline.ClockSet
	if s.u.opts.Clock != nil {
		clock = s.u.opts.Clock.State()
	}
	said := held[:min(len(held), maxHeldInHello)]
	data, err := wire.MarshalMessage(&wire.Hello{
		Gateway:  s.u.opts.Gateway,
		Software: s.u.opts.Software,
		Epochs:   said,
		Clock:    clock.String(),
		Epoch:    s.u.opts.Epoch,
	})
	if err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range said {
		s.ledger.named = append(s.ledger.named, h.Epoch)
	}
	for _, h := range held {
		if h.Next > 0 {
			s.ledger.horizon[h.Epoch] = h.Next - 1
		}
		s.handover.liveFrom[h.Epoch] = h.Next
		s.liveAfter = touchline.Position{Epoch: h.Epoch, Seq: max(h.Next, 1) - 1}
	}
	s.backlog = newBacklog(held, s.u.opts.Limits.NewestFirst && !s.u.opts.Limits.Plain)
	s.outbox.messages = append(s.outbox.messages, data)
	s.helloAt = time.Now()
	return nil
}

// takeWelcome checks what the cloud offers and begins the session proper.
func (s *session) takeWelcome(w *wire.Welcome) error {
	if w.MaxFrame < wire.MinFrameBytes {
		return s.broken(fmt.Errorf("welcome allows frames of %d bytes: touchline.v1 wants at least %d", w.MaxFrame, wire.MinFrameBytes))
	}
	if err := s.u.checkStore(w.Store); err != nil {
		return err
	}
	now := time.Now()
	s.mu.Lock()
	if s.welcome != nil {
		s.mu.Unlock()
		return s.broken(errors.New("a second welcome in one session"))
	}
	if asked := time.Duration(w.Heartbeat) * time.Millisecond; asked > 0 {
		s.interval = min(s.interval, max(asked, s.u.minHeartbeat))
	}
	s.frameBytes = w.MaxFrame
	s.flights.setWindow(w.Window, now)
	s.flights.pace = newPace(s.u.opts.Limits, now)
	s.welcome, s.welcomeAt, s.proof = w, now, now
	s.nextPing, s.nextScan = now, now.Add(s.u.opts.StoreTimeout)
	for _, er := range w.Stored {
		for _, r := range er.Ranges {
			_, samples := s.u.previous.store(er.Epoch, r, now)
			s.u.count.stored.Add(samples)
		}
	}
	s.ledger.addWelcome(w.Stored)
	answered := s.ledger.answered()
	asked := now.Sub(s.helloAt)
	s.mu.Unlock()
	if w.Complete { // else nothing follows from what it does not name
		if err := s.source.Reconcile(answered); err != nil {
			return &failure{err: fmt.Errorf("reconcile buffer with the cloud: %w", err), code: websocket.CloseInternalServerErr}
		}
	}
	s.u.setWelcome(w, s.requests)
	if clock := s.u.opts.Clock; clock != nil {
		clock.Heard(w.Time, asked)
	}
	close(s.welcomed)
	wake(s.wakeLedger)
	wake(s.wakeWriter)
	return nil
}

// closeAtEnd closes the connection when ctx, the session's, has ended. Where
// the cloud is to be told why, it has closeGrace to take our close frame and
// answer it. A writer that hangs in the network is freed by the cut.
func (s *session) closeAtEnd(ctx context.Context) error {
	<-ctx.Done()
	if closeCode(context.Cause(ctx)) == 0 {
		s.link.Cut()
		return nil
	}
	isCut := make(chan struct{})
	timer := time.AfterFunc(closeGrace, func() {
		defer close(isCut)
		s.link.Cut()
	})
	<-s.readDone
	// If it was the reader that gave up, what still comes is thrown away: a
	// socket closed with unread data resets the connection, and the cloud
	// would not see our close frame.
	for err := error(nil); err == nil; {
		_, _, err = s.link.Next()
	}
	<-s.writeDone
	if !timer.Stop() {
		<-isCut
	}
	s.link.Close()
	return nil
}

// closeCode is what the cloud is told as the session ends by cause; 0 is
// nothing, because nobody can be listening.
func closeCode(cause error) int {
	var f *failure
	if errors.As(cause, &f) {
		return f.code
	}
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return websocket.CloseGoingAway // we are stopping
	}
	return 0
}

// broken is a breach of the protocol by the cloud.
func (s *session) broken(err error) error {
	return &failure{err: fmt.Errorf("cloud broke the protocol: %w", err), code: wire.CloseProtocol, floor: s.u.opts.refusedFor()}
}

// wakeFeeders says that there may be room for a read.
func (s *session) wakeFeeders() {
	wake(s.wakeFeeder)
	wake(s.wakeLive)
}

// wake puts a token into a wake-up channel of one slot; one that is there
// already does as well.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sortedEpochs returns the keys of m in a fixed order.
func sortedEpochs[V any](m map[touchline.Epoch]V) []touchline.Epoch {
	epochs := make([]touchline.Epoch, 0, len(m))
	for e := range m {
		epochs = append(epochs, e)
	}
	slices.SortFunc(epochs, func(a, b touchline.Epoch) int { return slices.Compare(a[:], b[:]) })
	return epochs
}
