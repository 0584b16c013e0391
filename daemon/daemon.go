// Package daemon is the gateway: it opens the buffer, the listeners and the
// uplink as the settings say, hands them to one another, and runs them until
// one fails or the context ends. It is the only package that knows sensors,
// buffer and uplink at once. What was acknowledged is safe at every moment,
// so stopping needs no drain: Run closes the listeners first and the buffer
// last, and a crash would have lost nothing more.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/buffer"
	"touchline/clock"
	"touchline/relay"
	"touchline/sensors"
)

// Daemon is one gateway.
type Daemon struct {
	config  touchline.Config
	root    *slog.Logger // whose parts have a component each
	logger  *slog.Logger
	started time.Time

	clock    *clock.Watch
	buffer   *buffer.Buffer
	intake   *sensors.Intake
	ports    ports
	mqtt     *sensors.MQTT // nil: off
	samples  *sensors.HTTP // nil: off
	listener net.Listener  // of HTTP; nil: off
	secure   net.Listener  // of HTTP with TLS; nil: off
	access   *sensors.Access
	in       slot[inbound]
	out      slot[*outbound]
	manager  *manager
	reloads  reloads
	admin    *admin // nil: the folder has no socket
	rate     rate
}

// Limits that are no settings: windows that hold more than one sync of the disk
// takes, and waits that end no peer's work.
const (
	maxSensors      = 10_000           // remembered for status, some 200 bytes each
	mqttWindow      = 1024             // messages of one connection under way to the disk
	streamWindow    = 1024             // messages of one WebSocket under way to the disk
	maxRequests     = 256              // POSTs at a time
	pingInterval    = 20 * time.Second // of WebSockets; a silent one is gone after two
	brokerWindow    = 1024             // messages of the site's broker under way to the disk
	brokerBackoff   = 30 * time.Second // longest pause before that broker is tried again
	fullPatience    = 10 * time.Second // how long a full buffer keeps an MQTT 3.1.1 client waiting
	shutdownTimeout = 5 * time.Second  // for HTTP requests under way
)

// Open acquires folder, buffer and listeners. It starts nothing. On an error
// it has released what it took; the error names the setting.
func Open(ctx context.Context, c touchline.Config, logger *slog.Logger) (_ *Daemon, err error) {
	d := &Daemon{config: c, root: logger, logger: logger.With("component", "daemon"), started: time.Now()}
	d.reloads.config = c
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.clock, err = clock.Open(c.Gateway.Data, logger); err != nil {
		return nil, err
	}
	if err := d.openBuffer(ctx, logger); err != nil {
		return nil, fmt.Errorf("gateway.data %s: %w", c.Gateway.Data, err)
	}
	if d.access, err = openAccess(c, logger.With("component", "sensors")); err != nil {
		return nil, err
	}
	d.intake, err = sensors.NewIntake(sensors.IntakeOptions{Store: d.buffer, Now: d.clock.Now, MaxSensors: maxSensors, Access: d.access})
	if err != nil {
		return nil, err
	}
	if err := d.openListeners(logger); err != nil {
		return nil, err
	}
	in, err := d.newInbound(c, logger)
	if err != nil {
		return nil, err
	}
	d.in.put(in)
	out, err := d.newOutbound(c, logger)
	if err != nil {
		return nil, err
	}
	d.out.put(out)
	if err := out.relay.Tidy(); err != nil {
		d.logger.Warn("what an import left can't be removed", "error", err)
	}
	if d.manager, err = d.newManager(); err != nil {
		return nil, err
	}
	d.listenAdmin(logger)
	return d, nil
}

func (d *Daemon) openBuffer(ctx context.Context, logger *slog.Logger) (err error) {
	policy := buffer.EvictOldest
	if d.config.Buffer.WhenFull == "refuse" {
		policy = buffer.Refuse
	}
	d.buffer, err = buffer.Open(ctx, buffer.Options{
		Dir:            d.config.Gateway.Data,
		MaxBytes:       int64(d.config.Buffer.MaxBytes),
		MaxAge:         time.Duration(d.config.Buffer.MaxAge),
		FreeReserve:    int64(d.config.Buffer.FreeReserve),
		WhenFull:       policy,
		KeepStored:     time.Duration(d.config.Buffer.KeepStored),
		CommitInterval: time.Duration(d.config.Buffer.CommitInterval),
		Working:        stillOpening(),
		RepeatWindow:   time.Duration(d.config.Sensors.DedupeWindow),
		KeepAtLeast:    time.Duration(d.config.Sensors.DedupeWindow), // what is stored still counts as seen after a restart
		RepeatBytes:    int64(d.config.Sensors.DedupeMemory),
		Uptime:         d.clock.Uptime,
	}, logger)
	return err
}

// openMQTT makes the broker of its listeners; either may be nil.
func (d *Daemon) openMQTT(plain, encrypted net.Listener, secure *tls.Config, logger *slog.Logger) (err error) {
	s := &d.config.Sensors
	d.mqtt, err = sensors.ListenMQTT(sensors.MQTTOptions{
		Listener: plain, TLSListener: encrypted, TLS: secure, PayloadBytes: s.MaxPayload.Int(), MaxConnections: s.MaxConnections,
		Window: mqttWindow, Patience: fullPatience, Subscribers: s.Limits.Subscribers, SubscriberQueue: s.Limits.SubscriberQueue,
	}, d.intake, logger)
	return err
}

func (d *Daemon) httpOptions() sensors.HTTPOptions {
	s := &d.config.Sensors
	return sensors.HTTPOptions{
		BodyBytes: s.HTTP.MaxBody.Int(), MessageBytes: s.MaxPayload.Int(),
		MaxRequests: maxRequests, MaxStreams: s.MaxConnections, Window: streamWindow, PingInterval: pingInterval,
	}
}

// Check says what Open would refuse beyond the settings themselves: secrets
// that can't be read, and what the site's brokers are to be asked for. It
// acquires nothing.
func Check(c touchline.Config) error {
	logger := slog.New(slog.DiscardHandler)
	now := func() (time.Time, *touchline.Clock) { return time.Now(), nil }
	access, err := openAccess(c, logger)
	if err != nil {
		return err
	}
	intake, err := sensors.NewIntake(sensors.IntakeOptions{Store: nowhere{}, Now: now, MaxSensors: 1, Access: access})
	if err != nil {
		return err
	}
	d := &Daemon{config: c, logger: logger, intake: intake}
	_, err = sensorTLS(c, logger)
	_, brokers := d.newInbound(c, logger)
	err = errors.Join(err, brokers)
	claim, waits := d.newEnroller(c, logger)
	err = errors.Join(err, waits)
	if len(c.Uplink.URLs) > 0 && claim == nil {
		_, uplink := d.newUplink(c, logger)
		err = errors.Join(err, uplink)
	}
	return err
}

// nowhere stands for the buffer where nothing will be sent.
type nowhere struct{}

func (nowhere) AppendAsync(context.Context, touchline.Arrival, func(error)) error {
	return buffer.ErrClosed
}

// tlsTo returns what a connection to a host is encrypted by. A gateway that
// boots without a clock has to get through to whoever tells it the time.
func (d *Daemon) tlsTo(host string) *tls.Config { return d.clock.TLS(host, nil) }

// brokerTLS is tlsTo, but for Check, which has no clock and connects nowhere.
func (d *Daemon) brokerTLS() func(string) *tls.Config {
	if d.clock == nil {
		return nil
	}
	return d.tlsTo
}

// relayFolder is where archives of other gateways wait, in the data folder.
const relayFolder = "relay"

func relayOptions(c touchline.Config) relay.Options {
	return relay.Options{
		Dir: filepath.Join(c.Gateway.Data, relayFolder), FreeReserve: int64(c.Buffer.FreeReserve), URLs: c.Uplink.URLs,
		Gateway: c.Gateway.ID, Credential: func(nonce string) (string, error) { return uplinkToken(c, nonce) },
		Store:    func() (string, error) { return knownStore(c.Gateway.Data) },
		Software: "touchline/" + touchline.Version, BackoffBase: time.Duration(c.Uplink.ReconnectMin), BackoffCap: time.Duration(c.Uplink.ReconnectMax),
	}
}

func (d *Daemon) newBroker(c touchline.Config, b touchline.BrokerConfig, password string, logger *slog.Logger) (*sensors.Broker, error) {
	clientID := b.ClientID
	if clientID == "" {
		clientID = "touchline-" + c.Gateway.ID
	}
	return sensors.NewBroker(sensors.BrokerOptions{
		URL: b.URL, Topics: b.Topics, ClientID: clientID, Username: b.Username, Password: password,
		PayloadBytes: c.Sensors.MaxPayload.Int(), Window: brokerWindow, MaxBackoff: brokerBackoff, TLS: d.brokerTLS(),
	}, d.intake, logger)
}

// firstLine reads a secret from a file.
func firstLine(name string) (string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSpace(line)
	if line == "" {
		return "", fmt.Errorf("the first line of %s is empty", name)
	}
	return line, nil
}

// Run serves until ctx ends, and returns nil then, or until a part fails, and
// returns its error. All that it started has ended when it returns.
func (d *Daemon) Run(ctx context.Context) error {
	// The buffer outlives what appends to it and reads from it.
	bufferCtx, stopBuffer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBuffer()
	bufferDone := make(chan error, 1)
	go func() { bufferDone <- d.buffer.Run(bufferCtx) }()

	group, groupCtx := errgroup.WithContext(ctx)
	var bufferErr error
	group.Go(func() error {
		select {
		case bufferErr = <-bufferDone:
			bufferDone <- bufferErr
			return fmt.Errorf("run buffer: %w", errors.Join(bufferErr, errors.New("it ended by itself")))
		case <-groupCtx.Done():
			return nil
		}
	})
	group.Go(func() error { return d.rate.run(groupCtx, d.total) })
	group.Go(func() error { return d.clock.Run(groupCtx) })
	group.Go(func() error { return d.followClock(groupCtx) })
	group.Go(func() error { return d.access.Run(groupCtx) })
	if d.mqtt != nil {
		group.Go(func() error { return d.mqtt.Run(groupCtx) })
	}
	if d.samples != nil {
		group.Go(func() error { return d.serveHTTP(groupCtx) })
	}
	group.Go(func() error { return d.in.run(groupCtx) })
	group.Go(func() error { return d.out.run(groupCtx) })
	if d.admin != nil {
		group.Go(func() error { return d.admin.run(groupCtx) })
	}
	d.logger.Info("running", "gateway", d.config.Gateway.ID, "version", touchline.Version, "data", d.config.Gateway.Data,
		"mqtt", d.MQTTAddr(), "http", d.HTTPAddr(), "uplink", d.config.Uplink.URLs)
	group.Go(func() error { return d.manager.run(groupCtx) }) // last: what it says is that all of this runs

	err := group.Wait()
	stopBuffer()
	if bufferErr == nil {
		err = errors.Join(ended(err), ended(<-bufferDone))
	}
	d.logger.Info("stopped", "error", err)
	return err
}

// ended drops the error that only says that the context has ended.
func ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close frees what Open took. It may be called twice, and after Run.
func (d *Daemon) Close() error {
	var errs []error
	for _, l := range d.ports.list {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if d.samples != nil {
		errs = append(errs, d.samples.Close())
	}
	if d.mqtt != nil {
		errs = append(errs, d.mqtt.Close())
	}
	if d.admin != nil { // while the folder is still ours
		errs = append(errs, d.admin.close())
	}
	if d.buffer != nil { // last: the others may still be waiting for it
		errs = append(errs, d.buffer.Close())
	}
	return errors.Join(errs...)
}

// MQTTAddr returns where the broker listens, or "off".
func (d *Daemon) MQTTAddr() string {
	if d.mqtt == nil || d.mqtt.Addr() == nil {
		return "off"
	}
	return d.mqtt.Addr().String()
}

// MQTTTLSAddr returns where the broker listens with TLS, or "off".
func (d *Daemon) MQTTTLSAddr() string {
	if d.mqtt == nil || d.mqtt.TLSAddr() == nil {
		return "off"
	}
	return d.mqtt.TLSAddr().String()
}

// HTTPAddr returns where HTTP is served, or "off".
func (d *Daemon) HTTPAddr() string { return addrOf(d.listener) }

// HTTPTLSAddr returns where HTTP is served with TLS, or "off".
func (d *Daemon) HTTPTLSAddr() string { return addrOf(d.secure) }

func addrOf(l net.Listener) string {
	if l == nil {
		return "off"
	}
	return l.Addr().String()
}

// serveHTTP serves sensors and the status API until ctx ends.
func (d *Daemon) serveHTTP(ctx context.Context) error {
	server := &http.Server{
		Handler:           d.handler(),
		ReadHeaderTimeout: time.Duration(d.config.Sensors.Limits.LoginTimeout), // TLS included
		IdleTimeout:       time.Duration(d.config.Sensors.Limits.IdleTimeout),
		MaxHeaderBytes:    int(d.config.Sensors.HTTP.MaxHeader),
		ConnContext:       d.access.ConnContext,
		ErrorLog:          slog.NewLogLogger(d.logger.Handler(), slog.LevelDebug),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
	}
	var listeners []net.Listener
	for _, l := range []net.Listener{d.listener, d.secure} {
		if l != nil {
			listeners = append(listeners, l)
		}
	}
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { served <- server.Serve(l) }()
	}
	var failed error
	select {
	case failed = <-served:
		failed = fmt.Errorf("serve http: %w", failed)
		listeners = listeners[1:] // one of them is through
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	closing := d.samples.Close() // the streams, which Shutdown does not know
	err := server.Shutdown(stop)
	if err != nil {
		err = server.Close()
	}
	for range listeners {
		<-served
	}
	return errors.Join(failed, err, closing)
}
