package sensors

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// MQTTOptions are what ListenMQTT needs. Every field is required, but one of
// the addresses is enough.
type MQTTOptions struct {
	Address        string        // host:port to listen on; empty: none
	TLSAddress     string        // the same with TLS
	Listener       net.Listener  // in place of Address: one that is open, the broker's from then on
	TLSListener    net.Listener  // in place of TLSAddress; what it accepts is not encrypted yet
	TLS            *tls.Config   // required with TLSAddress
	PayloadBytes   int           // largest payload of a message
	MaxConnections int           // open at a time; as many sessions may be waiting for their client
	Window         int           // messages of one connection that are not yet acknowledged, 1 to 65,535
	Patience       time.Duration // how long a full store is waited for before a sensor's connection is closed

	// What slow subscribers hold: a copy is at most 16 KiB of packet (a pack of
	// some 250 samples) and 1 KiB of mochi's own, so 64 sessions with 64 copies
	// each hold at most 68 MiB. A session keeps the queue of its last
	// connection. More copies are dropped, and so are larger ones; more
	// subscribers are refused, unless one that is away can be forgotten.
	Subscribers     int // sessions with subscriptions
	SubscriberQueue int // copies that wait for one of them
}

// Limits that are no settings: what no sensor needs more of, and what the
// arithmetic of memory hangs on.
const (
	// A PUBLISH is its payload, a topic of at most 267 bytes, and MQTT 5
	// properties, for which 4 KiB is plenty.
	packetOverhead = 4 << 10

	// The read buffer bounds how many small messages go to the store together:
	// 4 KiB hold 30 of 130 bytes.
	readBufferBytes = 4 << 10

	maxLiveBytes = 16 << 10 // of a copy for a subscriber, see MQTTOptions

	// What large packets hold: mochi makes room for a whole packet, and later
	// for a copy of it, once it knows the length. So one of more than 8 KiB
	// needs a place first, and there are as many as keep both within 64 MiB:
	// 481 with payloads of 64 KiB, and one of 16 MiB. Smaller ones that 4,064
	// connections have begun take 32 MiB.
	largePacketBytes  = 8 << 10
	largePacketsBytes = 64 << 20

	// A connection keeps its will, with that what the will tells about itself,
	// so 4,000 hold at most 16 MiB. 8 KiB of CONNECT leave 4 KiB for a user
	// name, a password and properties, which nobody needs yet.
	maxWillBytes    = 4 << 10
	maxConnectBytes = 8 << 10

	maxSubscriptions  = 16  // of one client: a display has a few
	maxFilterBytes    = 512 // of one subscription; the longest topic has 267
	maxClientIDBytes  = 256
	maxAliases        = 16 // MQTT 5 topic aliases of one connection, 267 bytes each
	maxRetained       = 1024
	maxRetainedBytes  = 4 << 10   // of one retained payload, so all of them stay below 4 MiB
	sessionExpiry     = time.Hour // of a session whose client is away, at most
	maxSessionExpiry  = uint32(sessionExpiry / time.Second)
	maxKeepalive      = 5 * time.Minute        // that an MQTT 5 client is told to use instead of a longer one or none
	maxInflightBytes  = 1 << 20                // payload and samples of one connection, not yet acknowledged
	takeoverPatience  = 5 * time.Second        // how long the older connection of a client id may take to end, beside the next two
	goodbyePatience   = 100 * time.Millisecond // may it have said good-bye, which is still to be read
	farewellPatience  = time.Second            // how long it may take to be told why
	handshakeHeadroom = 64                     // connections that have not sent CONNECT yet, beyond MaxConnections
)

func (o *MQTTOptions) validate() error {
	var errs []error
	if o.Address == "" && o.TLSAddress == "" && o.Listener == nil && o.TLSListener == nil {
		errs = append(errs, errors.New("address is empty: use host:port"))
	}
	if (o.TLSAddress != "" || o.TLSListener != nil) && o.TLS == nil {
		errs = append(errs, errors.New("there is no certificate for TLS"))
	}
	if o.PayloadBytes < 1 || o.PayloadBytes > 16<<20 {
		errs = append(errs, fmt.Errorf("payload bytes are %d: use 1 to 16777216", o.PayloadBytes))
	}
	if o.MaxConnections < 1 {
		errs = append(errs, fmt.Errorf("max connections are %d: at least 1 is needed", o.MaxConnections))
	}
	if o.Window < 1 || o.Window > 65535 {
		errs = append(errs, fmt.Errorf("window is %d: use 1 to 65535 messages", o.Window))
	}
	if o.Patience <= 0 {
		errs = append(errs, fmt.Errorf("patience is %s: use more than 0", o.Patience))
	}
	if o.Subscribers < 1 || o.SubscriberQueue < 1 {
		errs = append(errs, fmt.Errorf("subscribers are %d with a queue of %d: at least 1 is needed of each", o.Subscribers, o.SubscriberQueue))
	}
	return errors.Join(errs...)
}

// MQTT is the embedded broker, MQTT 3.1.1 and 5. Sensors publish to
// sensors/<sensor> and sensors/<sensor>/<metric>; PUBACK and PUBREC follow the
// commit, in the order of the messages. Subscribers on the local network get a
// message after it is durable (nobody sees what could still be lost), at
// QoS 0, and lose what they are too slow to take and what is larger than
// 16 KiB. Only a will goes to them at once; it is stored like any message.
//
// A will delay is not offered: a will of at most 4 KiB is sent as soon as the
// connection is lost, even if the client comes back within the delay it asked
// for. mochi would keep delayed wills without a bound, and only in memory.
//
// QoS 2 is exactly once as long as the session lives: for an hour after its
// client left, and until the gateway restarts. After that, and for QoS 1, what
// is sent again is known by its samples or by its name (keys.go).
type MQTT struct {
	opts     MQTTOptions
	intake   *Intake
	logger   *slog.Logger
	trouble  *limitedLog
	server   *mqtt.Server
	listener net.Listener // nil: none
	secure   net.Listener // with TLS; nil: none
	sessions *sessions
	batches  pool[answer]

	retainers retainers

	large chan struct{} // a place for each large packet under way

	connectTimeout, packetTimeout, takeoverPatience time.Duration // shorter in a test

	ctx  context.Context // done when the broker ends; unblocks what waits for the store
	stop context.CancelFunc

	mu     sync.Mutex // covers what is below
	ran    bool
	closed bool
	conns  map[*mqttConn]struct{}
	wg     sync.WaitGroup // one for each in conns; Add only while not closed
}

// ListenMQTT binds the addresses, or takes over what is open. Connections are
// accepted once Run is called.
func ListenMQTT(opts MQTTOptions, intake *Intake, logger *slog.Logger) (*MQTT, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("mqtt options: %w", err)
	}
	m := &MQTT{
		opts: opts, intake: intake, logger: logger, trouble: newLimitedLog(logger),
		retainers: retainers{byTopic: map[string]*guest{}},
		conns:     make(map[*mqttConn]struct{}), connectTimeout: intake.access.opts.Limits.Login, packetTimeout: intake.access.opts.Limits.Receive,
		takeoverPatience: takeoverPatience,
		large:            make(chan struct{}, largePacketsBytes/(2*(opts.PayloadBytes+packetOverhead))),
	}
	m.sessions = newSessions(opts.MaxConnections, opts.Subscribers, m.forgetAbsent)
	m.ctx, m.stop = context.WithCancel(context.Background())
	if err := m.listen(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for mqtt: %w", err), m.closeListeners())
	}
	m.server = mqtt.New(serverOptions(opts, logger))
	err := m.server.AddHook(&hook{m: m}, nil)
	if m.listener != nil {
		err = errors.Join(err, m.server.AddListener(&acceptor{m: m, id: "mqtt"}))
	}
	if m.secure != nil {
		err = errors.Join(err, m.server.AddListener(&acceptor{m: m, id: "mqtts", secure: true}))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up mqtt: %w", err), m.closeListeners())
	}
	return m, nil
}

func (m *MQTT) listen() (err error) {
	config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3, // a dead peer is found in a minute
	}}
	bind := func(address string) (net.Listener, error) {
		l, err := config.Listen(context.Background(), "tcp", address)
		if err != nil {
			return nil, err
		}
		return m.intake.access.Guard(l), nil
	}
	m.listener, m.secure = m.opts.Listener, m.opts.TLSListener
	if m.listener == nil && m.opts.Address != "" {
		if m.listener, err = bind(m.opts.Address); err != nil {
			return err
		}
	}
	if m.secure == nil && m.opts.TLSAddress != "" {
		if m.secure, err = bind(m.opts.TLSAddress); err != nil {
			return err
		}
	}
	return nil
}

// serverOptions returns mochi's options: nothing in it may grow without bound.
func serverOptions(opts MQTTOptions, logger *slog.Logger) *mqtt.Options {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumClients = int64(opts.MaxConnections)
	c.MaximumPacketSize = uint32(opts.PayloadBytes + packetOverhead)
	c.MaximumClientWritesPending = int32(opts.SubscriberQueue)
	c.MaximumSessionExpiryInterval = math.MaxUint32 // they end by sessions.expire
	c.MaximumMessageExpiryInterval = 0              // otherwise each message gets an expiry that nobody asked for
	c.ReceiveMaximum = uint16(opts.Window)
	c.MaximumInflight = 1024
	c.TopicAliasMaximum = maxAliases
	c.SharedSubAvailable = 0
	c.Compatibilities = mqtt.Compatibilities{
		ObscureNotAuthorized:       true,
		PassiveClientDisconnect:    true, // so who sends DISCONNECT here must also close
		NoInheritedPropertiesOnAck: true,
	}
	return &mqtt.Options{
		Capabilities:             c,
		ClientNetReadBufferSize:  readBufferBytes,
		ClientNetWriteBufferSize: 2 << 10,
		// $SYS topics are not offered, and each publication of them stops the
		// world to read memory statistics: next time in ten years.
		SysTopicResendInterval: 10 * 365 * 24 * 3600,
		Logger:                 slog.New(&mochiHandler{logger.Handler()}),
	}
}

// Addr returns the address that is listened on without TLS, and nil where
// there is none.
func (m *MQTT) Addr() net.Addr { return addrOf(m.listener) }

// TLSAddr returns the address that is listened on with TLS, and nil where there
// is none.
func (m *MQTT) TLSAddr() net.Addr { return addrOf(m.secure) }

func addrOf(l net.Listener) net.Addr {
	if l == nil {
		return nil
	}
	return l.Addr()
}

// Run serves until ctx is done, then closes all connections and returns when
// every message that was handed to the store has been answered by it: the
// store must be closed after Run.
func (m *MQTT) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.closed || m.ran {
		m.mu.Unlock()
		return errors.New("run mqtt: it is closed or was run before")
	}
	m.ran = true
	m.mu.Unlock()
	if err := m.server.Serve(); err != nil {
		return errors.Join(fmt.Errorf("serve mqtt: %w", err), m.Close())
	}
	for topic := range m.server.Topics.Retained.GetAll() {
		if strings.HasPrefix(topic, mqtt.SysPrefix) { // mochi has just published them; sensors may have been as quick
			m.server.Topics.RetainMessage(packets.Packet{TopicName: topic})
		}
	}
	m.logger.Info("mqtt listens", "address", m.Addr(), "tls_address", m.TLSAddr())
	sweep := time.NewTicker(time.Second)
	defer sweep.Stop()
	for {
		select {
		case now := <-sweep.C:
			m.sessions.expire(now)
		case <-ctx.Done():
			return m.Close()
		case <-m.ctx.Done(): // Close
			return m.Close()
		}
	}
}

// Close ends the broker as the end of Run's context does, and waits for its
// goroutines. It may be called twice.
func (m *MQTT) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		m.wg.Wait()
		return nil
	}
	m.closed = true
	ran := m.ran
	m.mu.Unlock()
	m.stop()
	var err error
	if ran {
		err = m.server.Close() // closes the acceptor, and with it all connections
	} else {
		err = m.closeListeners()
	}
	m.wg.Wait()
	return err
}

func (m *MQTT) closeListeners() error {
	var errs []error
	for _, l := range []net.Listener{m.listener, m.secure} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close mqtt listener: %w", err))
		}
	}
	return errors.Join(errs...)
}
