package cloud

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
	"touchline/credential"
	"touchline/wire"
)

// Behind a queue a node serves gateways while the record store is away: what
// they send is accepted, those that reconnect come in, and what only the store can do
// waits for it. Three things make that sound:
//
//   - Who may speak is what the store said last, in bounded time (Options.AccessFor).
//     Tokens count once at each node, which remembers them, and not once at all
//     nodes together.
//   - A session that began without the store has no number. It is served like any other,
//     since ranges decide about data, and is asked to begin anew once the store is
//     back and has what it sent.
//   - What is lost, and clocks, are not confirmed; gateways say them again.

// An outage is what a node knows of its record store being away, and what it
// knows without it.
type outage struct {
	patience time.Duration // Options.AccessFor; 0 where there is no queue
	away     atomic.Bool   // as of the last look
	back     atomic.Int64  // ns since the Unix epoch, when it was away last
	failed   atomic.Int64  // ns since the Unix epoch, when it began no session though it was there; 0 since it began one

	mu       sync.Mutex // covers what follows
	asked    time.Time  // when the store said what follows; zero: never
	revision uint64     // of who may speak, read before it was asked
	gateways map[[32]byte]string
	keys     map[string][]credential.GatewayKey
}

// knowEvery is how old what is known of credentials may get while the store is
// there: one that was added a minute ago is of no use in an outage yet. 10,000
// gateways are read in some 20 ms and take 3 MB.
const knowEvery = time.Minute

// errAway says that the record store did not answer when it was looked at last.
var errAway = errors.New("the record store is away")

// errNotKnown says that the node does not know without the store.
var errNotKnown = errors.New("the record store is away, and has not said who the gateway is")

// stale says whether the store should be asked who may speak.
func (o *outage) stale(revision uint64, now time.Time) bool {
	if o.patience == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since := now.Sub(o.asked) // by the monotonic clock
	return o.asked.IsZero() || o.revision < revision || since >= knowEvery
}

// learn takes what the store said, which was at that revision or at a later one.
func (o *outage) learn(list []GatewayCredentials, revision uint64, now time.Time) {
	gateways := make(map[[32]byte]string, len(list))
	keys := make(map[string][]credential.GatewayKey, len(list))
	for i := range list {
		gateways[list[i].Token] = list[i].Gateway
		keys[list[i].Gateway] = list[i].Keys
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked, o.revision, o.gateways, o.keys = now, revision, gateways, keys
}

// endures says whether gateways can be let in without the store now.
func (o *outage) endures(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts(now)
}

// counts: o.mu is held.
func (o *outage) counts(now time.Time) bool {
	return !o.asked.IsZero() && now.Sub(o.asked) < o.patience
}

func (o *outage) gatewayByToken(hash [32]byte) (gateway string, revision uint64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	gateway, ok := o.gateways[hash]
	if !ok || !o.counts(time.Now()) {
		return "", 0, errNotKnown // and not unknown: it may have been added since
	}
	return gateway, o.revision, nil
}

func (o *outage) handshakeKeys(gateway string) (keys []credential.GatewayKey, revision uint64, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	keys = o.keys[gateway]
	if len(keys) == 0 || !o.counts(time.Now()) {
		return nil, 0, errNotKnown
	}
	return keys, o.revision, nil
}

// gatewayByToken asks the record store, or, while that does not answer, what it
// said last; the pass is then of that revision.
func (in *ingest) gatewayByToken(ctx context.Context, p *pass) (gateway string, err error) {
	if !in.outage.away.Load() {
		gateway, err = in.store.GatewayByToken(ctx, p.token)
		if err == nil || errors.Is(err, ErrUnknownToken) {
			return gateway, err
		}
	}
	known, revision, knownErr := in.outage.gatewayByToken(p.token)
	if knownErr != nil {
		return "", errors.Join(err, knownErr)
	}
	p.revision, p.unasked = revision, true
	return known, nil
}

// handshakeKeys is the same of a gateway's keys.
func (in *ingest) handshakeKeys(ctx context.Context, gateway string, p *pass) (keys []credential.GatewayKey, err error) {
	if !in.outage.away.Load() {
		if keys, err = in.store.HandshakeKeys(ctx, gateway); err == nil {
			return keys, nil
		}
	}
	known, revision, knownErr := in.outage.handshakeKeys(gateway)
	if knownErr != nil {
		return nil, errors.Join(err, knownErr)
	}
	p.revision, p.unasked = revision, true
	return known, nil
}

// redeem uses a token up, durably and at all nodes. While the store can't, it is
// used up at this node only, which its verifier has seen to.
func (in *ingest) redeem(ctx context.Context, h credential.Handshake, p *pass) (err error) {
	if !in.outage.away.Load() {
		err = in.store.Redeem(ctx, h)
		if err == nil || errors.Is(err, credential.ErrReplayed) {
			return err
		}
	}
	if _, revision, knownErr := in.outage.handshakeKeys(p.gateway); knownErr != nil {
		return errors.Join(err, knownErr)
	} else if !p.unasked {
		p.revision, p.unasked = min(p.revision, revision), true
	}
	return nil
}

// lookAround notes whether the record store is there, and has it say who may speak
// where that is due: for the time when it can't.
func (in *ingest) lookAround(ctx context.Context, revision uint64, err error) {
	if in.queue == nil {
		return
	}
	if was := in.outage.away.Swap(err != nil); was != (err != nil) && ctx.Err() == nil {
		if was {
			in.outage.back.Store(time.Now().UnixNano())
			in.outage.failed.Store(0)
			in.log.Info("the record store is back")
		} else {
			in.log.Warn("the record store is away; gateways are served on, from the queue and by what the store said last of their credentials",
				"for", in.outage.patience, "error", err)
		}
	}
	now := time.Now()
	if err != nil || !in.outage.stale(revision, now) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, in.timing.ask)
	defer cancel()
	list, err := in.store.Credentials(ctx)
	if err != nil {
		in.log.Warn("read the credentials of all gateways, for an outage of the record store", "error", err)
		return
	}
	in.outage.learn(list, revision, now)
}

// without says whether the session goes on though the record store did not
// answer: where there is a queue it does.
func (s *session) without(err error) bool {
	if s.in.queue == nil || errors.Is(err, ErrOvertaken) || s.hasHungUp() {
		return false
	}
	s.log.Debug("the record store does not answer; the session goes on without it", "error", err)
	return true
}

// absorbed says whether a block needs not be queued: the queue holds it already,
// the record store is away, and the gateway has lost its patience. Once the
// store is there, what comes again is queued again, since a queue may lose blocks.
func (s *session) absorbed(b *wire.Block) bool {
	return s.in.outage.away.Load() && s.due.holds(b)
}

// introduce asks the record store for what a hello is answered with, and gives
// the session its number.
func (s *session) introduce(ctx context.Context, m *wire.Hello) (store string, number uint64, stored []wire.EpochRanges, err error) {
	if s.in.outage.away.Load() {
		return "", 0, nil, errAway
	}
	defer func() {
		if err == nil {
			s.in.outage.failed.Store(0)
		} else if !errors.Is(err, ErrOvertaken) && !s.hasHungUp() {
			s.in.outage.failed.Store(time.Now().UnixNano())
		}
	}()
	store, number, err = s.in.store.NewSession(ctx, s.gateway)
	if err != nil {
		return "", 0, nil, fmt.Errorf("begin session: %w", err)
	}
	epochs := make([]touchline.Epoch, len(m.Epochs))
	for i := range m.Epochs {
		epochs[i] = m.Epochs[i].Epoch
	}
	if stored, err = s.in.store.Stored(ctx, s.gateway, epochs); err != nil {
		return "", 0, nil, fmt.Errorf("read what is stored: %w", err)
	}
	s.number = number
	s.logged.Store(number)
	if err = s.opened(ctx, m.Epoch); err != nil {
		s.number = 0 // begun without the store after all
		s.logged.Store(0)
	}
	return store, number, stored, err
}

// regularise asks sessions that began without the record store to begin anew, now
// that it is there and has what they sent: they get their number, hear what is
// stored, and whether their gateway is elsewhere too. One that never rests is
// asked after a time, and sends some of it twice. A store that answers and begins no session,
// since it is read-only or its disk is full, is tried with one of them from time to time.
func (in *ingest) regularise(sessions []*session, now time.Time) {
	if in.outage.away.Load() {
		return
	}
	most := maxQuestions
	if failed := in.outage.failed.Load(); failed != 0 {
		if now.UnixNano()-failed <= int64(in.timing.reaskMax) {
			return
		}
		most = 1
		in.outage.failed.Store(now.UnixNano())
	}
	long := now.UnixNano()-in.outage.back.Load() > int64(in.timing.reaskMax)
	for asked, i := 0, 0; i < len(sessions) && asked < most; i++ {
		if s := sessions[i]; s.number == 0 && (long || len(s.due.held()) == 0) && s.regular.CompareAndSwap(false, true) {
			asked++
			s.sendAway(causeOutage)
		}
	}
}

// A GatewayCredentials is what lets one gateway in.
type GatewayCredentials struct {
	Gateway string
	Token   [32]byte // SHA-256 of its token
	Keys    []credential.GatewayKey
}
