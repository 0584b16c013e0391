package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A Bus implements cloud.Bus between processes, over core NATS: nothing is kept
// and nothing is waited for. It has a connection of its own, since a server
// cuts one off that does not read in time, and viewers must not cost a queue its
// connection. What one process publishes and follows itself goes by no server.
//
// A server that can't be reached is tried again for ever, and missed by viewers
// only. A Bus is made by OpenBus, sends in Run, and is given back by Close.
type Bus struct {
	opts  BusOptions
	log   *slog.Logger
	local *cloud.LocalBus
	conn  *nats.Conn
	wake  chan struct{} // holds one: something waits to be sent

	dropped atomic.Uint64 // blocks that were not sent, and messages that were not heard

	mu      sync.Mutex // covers what follows
	waiting []cloud.Recorded
	bytes   int // of waiting
}

// BusOptions are the settings of a Bus.
type BusOptions struct {
	// Servers are the addresses of a NATS cluster, nats://A,nats://B. It needs no JetStream.
	Servers string

	// Store is the id of the record store that blocks are recorded in, as in Options.
	Store string

	// CredentialsFile is a NATS .creds file, CAFile a CA in PEM for tls:// addresses;
	// empty is none.
	CredentialsFile, CAFile string
}

const (
	// maxBusWaiting bounds the blocks that wait to be sent: some four million
	// samples. Above it the oldest go, since what is behind them is newer.
	maxBusWaiting = 8 << 20

	// maxBusPending bounds what came and was not handed on. That takes no more
	// than a copy of the pointers, so it is for bursts.
	maxBusPending = 16 << 20

	// maxBusFrame bounds a message: a block more than fills it to 448 KiB, less than
	// half of what servers take by default.
	maxBusFrame = 256 << 10

	// busPatience is how long a server may take to read, and to know of a follower.
	busPatience = 2 * time.Second
)

func (o *BusOptions) subject(gateway string) string {
	return "touchline.live." + o.Store + "." + token(gateway)
}

// OpenBus returns a Bus that connects as soon as it can. An error is one of the
// options.
func OpenBus(opts BusOptions, logger *slog.Logger) (*Bus, error) {
	if opts.Servers == "" || opts.Store == "" || strings.Map(dropStoreLetter, opts.Store) != "" {
		return nil, errors.New("bus options: want Servers, and a Store of letters, digits and -")
	}
	b := &Bus{opts: opts, log: logger.With("component", "bus"), local: cloud.NewLocalBus(), wake: make(chan struct{}, 1)}
	options := []nats.Option{
		nats.Name("touchline-cloud live"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.Timeout(busPatience),
		nats.ReconnectBufSize(-1), nats.FlusherTimeout(busPatience),
		nats.NoEcho(), // followers in this process have it already
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("the bus between nodes is away; viewers see this node only", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { b.log.Info("the bus between nodes is back", "server", c.ConnectedServerName()) }),
		nats.ErrorHandler(b.trouble),
	}
	if opts.CredentialsFile != "" {
		options = append(options, nats.UserCredentials(opts.CredentialsFile))
	}
	if opts.CAFile != "" {
		options = append(options, nats.RootCAs(opts.CAFile))
	}
	conn, err := nats.Connect(opts.Servers, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to the bus at %s: %w", shown(opts.Servers), err)
	}
	b.conn = conn
	if !conn.IsConnected() {
		b.log.Warn("the bus between nodes can't be reached; viewers see this node only until it can", "servers", shown(opts.Servers))
	}
	return b, nil
}

func (b *Bus) trouble(_ *nats.Conn, _ *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) { // once until it keeps up again
		b.dropped.Add(1)
	}
	b.log.Debug("bus", "error", err)
}

// Publish implements cloud.Bus.
func (b *Bus) Publish(recorded []cloud.Recorded) {
	b.local.Publish(recorded)
	b.mu.Lock()
	for i := range recorded {
		b.bytes += cost(&recorded[i])
	}
	b.waiting = append(b.waiting, recorded...)
	old := 0
	for ; b.bytes > maxBusWaiting; old++ {
		b.bytes -= cost(&b.waiting[old])
	}
	clear(b.waiting[:old])
	b.waiting = b.waiting[old:]
	b.mu.Unlock()
	b.dropped.Add(uint64(old))
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// cost is what a block takes on the wire and in memory.
func cost(r *cloud.Recorded) int { return len(r.Block.Data) + 256 }

// Run sends what is published until ctx is done, and then returns nil.
func (b *Bus) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		}
		b.mu.Lock()
		list := b.waiting
		b.waiting, b.bytes = nil, 0
		b.mu.Unlock()
		b.send(ctx, list)
	}
}

// send sends blocks, those of a gateway together and in order. What can't be sent
// now is too old when it can.
func (b *Bus) send(ctx context.Context, list []cloud.Recorded) {
	at := map[string]int{}
	var parcels []parcel
	for i := range list {
		r := &list[i]
		n, ok := at[r.Gateway]
		if !ok || !parcels[n].fits(r) {
			n = len(parcels)
			at[r.Gateway] = n
			parcels = append(parcels, parcel{gateway: r.Gateway})
		}
		parcels[n].add(r)
	}
	for i := range parcels {
		p := &parcels[i]
		m, err := p.message(b.opts.subject(p.gateway))
		if err == nil && ctx.Err() == nil {
			err = b.conn.PublishMsg(m)
		}
		if err != nil {
			b.dropped.Add(uint64(len(p.blocks)))
			b.log.Debug("blocks are not shown at other nodes", "gateway", p.gateway, "blocks", len(p.blocks), "error", err)
		}
	}
}

// A parcel is blocks of one gateway that go in one message: a frame of touchline.v1, and
// when each was received, in a header.
type parcel struct {
	gateway  string
	blocks   []wire.FrameBlock
	received []string
	bytes    int
}

const headerReceivedEach = "Touchline-Received-Each" // ns since the Unix epoch, with commas

func (p *parcel) fits(r *cloud.Recorded) bool {
	return p.bytes+cost(r) <= maxBusFrame && len(p.blocks) < wire.MaxBlocksPerFrame
}

func (p *parcel) add(r *cloud.Recorded) {
	p.blocks = append(p.blocks, wire.FrameBlock{Block: r.Block, Lane: r.Lane})
	p.received = append(p.received, strconv.FormatInt(r.Received.UnixNano(), 10))
	p.bytes += cost(r)
}

func (p *parcel) message(subject string) (*nats.Msg, error) {
	data, err := wire.AppendFrame(nil, p.blocks)
	if err != nil {
		return nil, fmt.Errorf("make frame: %w", err)
	}
	return &nats.Msg{Subject: subject, Data: data, Header: nats.Header{headerReceivedEach: {strings.Join(p.received, ",")}}}, nil
}

// recordedOf reads a message.
func recordedOf(m *nats.Msg) ([]cloud.Recorded, error) {
	blocks, err := wire.ParseFrame(nil, m.Data)
	if err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	received := strings.Split(m.Header.Get(headerReceivedEach), ",")
	if len(received) != len(blocks) {
		return nil, fmt.Errorf("it has %d blocks, and %d times at which they were received", len(blocks), len(received))
	}
	gateway := gatewayOf(m.Subject)
	if err := touchline.CheckGateway(gateway); err != nil {
		return nil, err
	}
	list := make([]cloud.Recorded, len(blocks))
	for i := range blocks {
		if err := blocks[i].Check(); err != nil {
			return nil, err
		}
		ns, err := strconv.ParseInt(received[i], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read time: %w", err)
		}
		list[i] = cloud.Recorded{Gateway: gateway, Lane: blocks[i].Lane, Received: time.Unix(0, ns), Block: blocks[i].Block}
	}
	return list, nil
}

// Follow implements cloud.Bus. A server that is away now is followed once it is
// back.
func (b *Bus) Follow(deliver func([]cloud.Recorded)) (unfollow func(), err error) {
	f := &follower{deliver: deliver}
	subscription, err := b.conn.Subscribe(b.opts.subject("*"), func(m *nats.Msg) {
		list, err := recordedOf(m)
		if err != nil {
			b.log.Warn("what another node recorded can't be shown", "subject", m.Subject, "error", err)
			return
		}
		f.hear(list)
	})
	if err != nil {
		return nil, fmt.Errorf("follow the bus: %w", err)
	}
	if err := subscription.SetPendingLimits(-1, maxBusPending); err != nil {
		return nil, errors.Join(fmt.Errorf("follow the bus: %w", err), subscription.Unsubscribe())
	}
	leave, err := b.local.Follow(f.hear)
	if err != nil {
		return nil, errors.Join(err, subscription.Unsubscribe())
	}
	if b.conn.IsConnected() { // so that what is recorded from now on is seen
		if err := b.conn.FlushTimeout(busPatience); err != nil {
			b.log.Debug("flush", "error", err)
		}
	}
	return func() {
		leave()
		if dropped, err := subscription.Dropped(); err == nil {
			b.dropped.Add(uint64(dropped))
		}
		_ = subscription.Unsubscribe() // fails where the connection is closed, and all is silent
		f.end()
	}, nil
}

// A follower hears from this process and from the server, one at a time.
type follower struct {
	mu      sync.Mutex // covers what follows
	deliver func([]cloud.Recorded)
	ended   bool
}

func (f *follower) hear(list []cloud.Recorded) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended {
		f.deliver(list)
	}
}

func (f *follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
}

// Dropped returns how much was not carried: blocks that were not sent in time,
// and messages that were not heard in time.
func (b *Bus) Dropped() uint64 { return b.dropped.Load() }

// Close gives the connection back. It may be called twice, and on a nil Bus.
func (b *Bus) Close() error {
	if b != nil {
		b.conn.Close()
	}
	return nil
}
