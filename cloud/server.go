// Package cloud is touchline-cloud: it takes the uplinks of gateways, has the
// record store keep each sample exactly once, and answers queries about them.
// A gateway is told that a block is stored after the transaction that holds it is
// committed and synced, and never before. A Server is made by New, acquires
// its address in Listen, and lives in Run, which ends with its context.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"touchline/credential"
	"touchline/wire"
)

// A Store is everything a Server needs of the record store. Its methods are
// called concurrently, but for Record.
type Store interface {
	Recorder
	Archive
	Registry
	Access
	Directory
}

// A Server is one node of the cloud.
type Server struct {
	opts     Options
	store    Store
	log      *slog.Logger
	stats    *counters
	batcher  *batcher
	ingest   *ingest
	reader   *reader
	live     *live
	archives *archives
	enroller *enroller
	pipes    *pipes
	shedder  *shedder
	nodes    *announcer
	registry *prometheus.Registry

	mu          sync.Mutex // covers what follows
	listener    net.Listener
	agent       net.Listener                // nil where there is none
	loopback    bool                        // set before the first request
	certificate *credential.CertificateFile // nil without TLS
	running     bool
}

// New returns a Server with opts, or an error that names all that is wrong
// with them. It starts and acquires nothing. The store is the caller's, who
// closes it after Run has returned.
func New(opts Options, store Store, logger *slog.Logger) (*Server, error) {
	return NewQueued(opts, store, nil, logger)
}

// NewQueued is New, with a queue between ingest and the record store: what is
// stored is up to a Recording, of this server or elsewhere. The queue is the
// caller's too; nil is none.
func NewQueued(opts Options, store Store, queue Queue, logger *slog.Logger) (*Server, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("cloud options: %w", err)
	}
	nonces, err := credential.NewNonces(store.NonceSecret())
	if err != nil {
		return nil, fmt.Errorf("make nonces: %w", err)
	}
	verifier, err := credential.NewSharedVerifier(nonces, store.ID(), wire.Audience)
	if err != nil {
		return nil, fmt.Errorf("make verifier: %w", err)
	}
	s := &Server{opts: opts, store: store, log: logger, stats: newCounters()}
	s.batcher = newBatcher(store, opts.QueueBytes, s.stats, logger)
	s.batcher.into = queue
	s.ingest = &ingest{opts: opts, queue: queue, timing: defaultTiming, store: store, batcher: s.batcher, roster: newRoster(&opts, s.batcher.behind),
		stats: s.stats, log: logger, upgrader: newUpgrader(), verifier: verifier, nonces: nonces, from: addresses{opts.TrustedProxies},
		mutual:     mutual{header: opts.ClientCertHeader, from: addresses{opts.TrustedProxies}, stats: s.stats},
		handshakes: newTurnstile(opts.Handshakes),
		each:       newBuckets(float64(opts.GatewayHandshakes)/60, float64(opts.GatewayHandshakes), opts.MaxGateways)}
	if queue != nil {
		s.ingest.outage.patience = opts.AccessFor
	}
	s.batcher.onLoad = s.ingest.roster.refresh
	s.reader = &reader{archive: store, timeout: opts.Timeouts.Answer, stats: s.stats, log: logger, slots: make(chan struct{}, opts.MaxQueries)}
	s.live = newLive(opts, s.stats, logger)
	s.batcher.onRecorded = publishTo(s.live.bus)
	s.archives = newArchives(s.ingest)
	s.enroller = newEnroller(s.ingest)
	s.pipes = newPipes(s.ingest)
	s.shedder = newShedder(s.ingest)
	s.nodes = newAnnouncer(s)
	s.registry = newRegistry(s.Stats, &standing{data: opts.Data, unsynced: opts.StoreUnsynced, certEnds: s.certEnds})
	s.registry.MustRegister(&queueCollector{queue: queue, bus: s.live.bus, stats: s.stats.queue})
	return s, nil
}

// Listen acquires the address. Connections wait in the system's queue until
// Run. It may be called once.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return fmt.Errorf("listen on %s: this server listens already", s.opts.Listen)
	}
	if err := s.ingest.mutual.open(s.opts.ClientCA); err != nil {
		return fmt.Errorf("listen on %s: %w", s.opts.Listen, err)
	}
	listener, err := listenOn(s.opts.Listen, "listen")
	if err != nil {
		return err
	}
	var agent net.Listener
	if s.opts.AgentListen != "" {
		if agent, err = listenOn(s.opts.AgentListen, "balancer.agent_listen"); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	address, ok := listener.Addr().(*net.TCPAddr)
	s.loopback = ok && address.IP.IsLoopback()
	listener = limitAddresses(limitConnections(listener, s.opts.MaxGateways+s.opts.MaxViewers+s.opts.SpareConnections), s.opts.AddressConnections,
		s.ingest.from.trusted, func() { s.stats.addressRefused.Add(1) })
	if s.opts.CertFile != "" {
		secure, files, err := listenTLS(listener, &s.opts, s.ingest.mutual.roots, s.log)
		if err != nil {
			err = errors.Join(fmt.Errorf("listen on %s with TLS: %w", s.opts.Listen, err), listener.Close())
			if agent != nil {
				err = errors.Join(err, agent.Close())
			}
			return err
		}
		listener, s.certificate = secure, files
	}
	s.listener, s.agent = listener, agent
	return nil
}

// listenOn acquires an address, the value of a setting. Its errors say what to do.
func listenOn(address, setting string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: the port is in use, perhaps by another touchline-cloud: stop that, or set %s to another port: %w", address, setting, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: this port needs more rights than this user has: set %s to a port above 1023: %w", address, setting, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this machine does not have that address: set %s to one that it has, or to 0.0.0.0 for all: %w", address, setting, err)
	case err != nil:
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return listener, nil
}

// Addr returns the address that Listen acquired, with its true port; nil before.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// certEnds returns when the certificate ends; zero where there is none.
func (s *Server) certEnds() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.certificate == nil {
		return time.Time{}
	}
	return s.certificate.NotAfter()
}

// AgentAddr is Addr of the agent; nil where there is none.
func (s *Server) AgentAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == nil {
		return nil
	}
	return s.agent.Addr()
}

// Close gives the address back where Run did not. It may be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range []net.Listener{s.listener, s.agent} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close listener: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx is done, and then returns nil, or until the listener
// fails. It returns when all that it started has ended: no connection is open
// and the record store is not used any more. Call Listen first, and Run once.
//
// Stopping is a polite crash: gateways are sent to other nodes (see drain) or
// told to come back later, the transaction at hand is finished, and what was not
// acknowledged is still where it came from.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	listener, agent := s.listener, s.agent
	again := s.running
	s.running = true
	s.mu.Unlock()
	if listener == nil || again {
		return errors.New("run cloud: call Listen before Run, and Run once")
	}

	// Requests outlive ctx: while a node drains it answers as before.
	stop, cancelStop := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelStop()
	work, cancelWork := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWork()
	recorded := make(chan struct{})
	recorderStop, stopRecorder := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRecorder()
	go func() {
		defer close(recorded)
		s.batcher.run(recorderStop, work)
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.ingest.watchAccess(stop)
	}()
	reasked := make(chan struct{})
	go func() {
		defer close(reasked)
		s.ingest.watchAccepted(stop)
	}()
	owned := make(chan struct{})
	go func() {
		defer close(owned)
		s.ingest.watchOwners(stop)
	}()
	announced := make(chan struct{})
	go func() {
		defer close(announced)
		s.nodes.run(stop)
	}()
	balanced := make(chan struct{})
	go func() {
		defer close(balanced)
		s.shedder.run(stop, s.nodes.peers)
	}()
	weighed := make(chan struct{})
	go func() {
		defer close(weighed)
		s.batcher.watch(stop)
	}()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		s.live.run(stop)
	}()

	web := s.web(stop)
	var brokenBy error // set when served is closed
	served := make(chan struct{})
	go func() {
		defer close(served)
		brokenBy = web.Serve(listener)
	}()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.answerAgents(stop, agent)
	}()
	s.log.Info("touchline-cloud listens", "address", listener.Addr().String())

	var failure error
	select {
	case <-ctx.Done():
		s.drain(served)
	case <-served:
	}
	select {
	case <-served:
		failure = fmt.Errorf("serve %s: %w", s.opts.Listen, brokenBy)
	default:
		s.log.Info("touchline-cloud stops", "connections", s.Stats().Connections)
	}
	cancelStop()

	// The gateways first, while there is a listener still: those over HTTP hear of it
	// in an answer. Then the listener, the queries and the viewers, whose context ended with stop; the
	// recorder last, when nobody is left who waits for its queue.
	s.sayGoodbye()
	s.awaitSessions()
	s.closeWeb(web)
	s.live.close(s.ingest.timing.shutdown) // of viewers over WebSockets the web server knows nothing
	<-served
	<-shown
	<-watched
	<-owned
	<-announced
	<-balanced
	<-weighed
	if agent != nil {
		agent.Close()
	}
	<-answered
	<-reasked
	stopRecorder()
	timer := time.AfterFunc(s.ingest.timing.shutdown, cancelWork)
	defer timer.Stop()
	<-recorded
	s.nodes.withdraw()
	return failure
}

// web makes the HTTP server. Reading has a limit in time for the header, and
// one that each handler with a body sets, since a stream is one request; what is
// written has one too, which a stream extends as it goes.
func (s *Server) web(stop context.Context) *http.Server {
	return &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: s.opts.Timeouts.Login,
		WriteTimeout:      s.opts.Timeouts.Answer,
		IdleTimeout:       s.opts.Timeouts.Idle,
		MaxHeaderBytes:    s.opts.MaxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return stop },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // what clients do wrong
	}
}

func (s *Server) closeWeb(web *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), s.ingest.timing.shutdown)
	defer cancel()
	if web.Shutdown(ctx) != nil {
		web.Close() // a reader that does not read
	}
}

// awaitSessions returns when all sessions have ended.
func (s *Server) awaitSessions() {
	timer := time.AfterFunc(s.ingest.timing.shutdown, s.ingest.roster.cut)
	defer timer.Stop()
	s.ingest.roster.wg.Wait()
}

// Ready returns why this node is of no use to gateways now; nil where it is:
// it is running, the record store answers, and the last transaction succeeded. Behind
// a queue it can do without the store for a time.
func (s *Server) Ready(ctx context.Context) error {
	if s.ingest.roster.stopping() {
		return errDraining
	}
	if err := s.batcher.Health(); err != nil {
		return err
	}
	if s.ingest.outage.away.Load() && s.ingest.outage.endures(time.Now()) {
		return nil
	}
	// The hash of no token: to find one would be to invert SHA-256.
	if _, err := s.store.GatewayByToken(ctx, [32]byte{}); err != nil && !errors.Is(err, ErrUnknownToken) && !s.ingest.outage.endures(time.Now()) {
		return fmt.Errorf("ask record store: %w", err)
	}
	return nil
}

// Stats returns a copy of what the server counts. It may be called at any time.
func (s *Server) Stats() Stats {
	var st Stats
	s.stats.fill(&st)
	connections, window := s.ingest.roster.counts()
	st.Connections, st.Window = connections, window.Bytes
	st.QueueBytes, st.QueueBlocks = s.batcher.waiting()
	st.MaxConnections, st.MaxQueueBytes = s.opts.MaxGateways, s.opts.QueueBytes
	st.Lag = s.batcher.lag()
	st.Spans, st.SpansExported = s.opts.Tracer.Counts()
	st.Draining = s.ingest.roster.stopping()
	st.Viewers = s.live.count()
	st.Nodes = 1 + len(s.nodes.peers(time.Now()))
	if s.opts.Rollups != nil {
		st.Rollups = s.opts.Rollups()
	}
	return st
}
