package sensors

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"touchline"
)

// BrokerOptions are what NewBroker needs. Every field but Username and
// Password, and TLS, is required.
type BrokerOptions struct {
	URL          string   // mqtt://, mqtts://, ws:// or wss://, with host and port
	Topics       []string // filters to subscribe to
	ClientID     string   // stays the same over restarts: the broker keeps the session by it
	Username     string
	Password     string
	PayloadBytes int           // largest payload that is stored
	Window       int           // messages taken and not yet acknowledged
	MaxBackoff   time.Duration // longest pause before connecting again
	// TLS returns what a connection to a host is encrypted by. Nil is the
	// system's authorities, by the system's clock.
	TLS func(host string) *tls.Config
}

// Limits that are no settings.
const (
	brokerKeepalive   = 30 * time.Second // a ping after so much silence
	brokerPingTimeout = 30 * time.Second // must outlast a commit that waits for room
	brokerTimeout     = 10 * time.Second // to connect, to write, to subscribe
	brokerPatience    = 10 * time.Second // with a full store, before the broker is asked to send again later
	minBackoff        = 100 * time.Millisecond
	steadyAfter       = time.Minute // a session that lived so long resets the backoff
	maxTopics         = 1000        // topics whose meaning is remembered, of at most 64 KiB; usually 100 bytes
)

func (o *BrokerOptions) validate() error {
	var errs []error
	u, err := url.Parse(o.URL)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("url: %w", err))
	case u.Host == "" || u.Port() == "" && u.Scheme != "ws" && u.Scheme != "wss":
		errs = append(errs, fmt.Errorf("url %q: use mqtt://host:1883, mqtts://host:8883, ws://host/path or wss://host/path", u.Redacted()))
	default:
		switch u.Scheme {
		case "mqtt", "tcp", "mqtts", "ssl", "tls", "ws", "wss":
		default:
			errs = append(errs, fmt.Errorf("url %q: scheme %q is not one of mqtt, mqtts, ws and wss", u.Redacted(), u.Scheme))
		}
	}
	if len(o.Topics) == 0 {
		errs = append(errs, errors.New("topics are empty: name at least one filter, such as sensors/#"))
	}
	for _, filter := range o.Topics {
		if err := checkFilter(filter); err != nil {
			errs = append(errs, err)
		}
	}
	if o.ClientID == "" {
		errs = append(errs, errors.New("client id is empty: without one the broker keeps no session"))
	}
	if o.PayloadBytes < 1 {
		errs = append(errs, fmt.Errorf("payload bytes are %d: at least 1 is needed", o.PayloadBytes))
	}
	if o.Window < 1 {
		errs = append(errs, fmt.Errorf("window is %d: at least 1 message is needed", o.Window))
	}
	if o.MaxBackoff < minBackoff {
		errs = append(errs, fmt.Errorf("max backoff is %s: at least %s is needed", o.MaxBackoff, minBackoff))
	}
	return errors.Join(errs...)
}

// checkFilter says whether filter is one (MQTT 3.1.1, section 4.7).
func checkFilter(filter string) error {
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		if strings.ContainsAny(level, "+#") && level != "+" && (level != "#" || i != len(levels)-1) {
			return fmt.Errorf("topic filter %q: + stands for one whole level, # for all that follow at the end", filter)
		}
	}
	if filter == "" || len(filter) > 65535 || strings.ContainsRune(filter, 0) {
		return fmt.Errorf("topic filter %.40q is empty, longer than 65535 bytes or has a NUL", filter)
	}
	return nil
}

// Broker takes what a site's own MQTT broker has. It subscribes with QoS 1 and
// a persistent session, and acknowledges a message after its commit; since a
// broker delivers again only to a new connection, a commit that failed or was
// refused ends the connection. What the broker keeps for an absent client is
// the broker's limit.
//
// Messages of QoS 0 are taken and have no second chance. Retained messages
// that a broker repeats on subscribing are acknowledged and left out: they came
// when they were published, and without a time of their own they would get a
// wrong one with each connection. A payload above PayloadBytes is acknowledged
// and left out as well, since the broker would deliver it for ever; both are
// counted as rejected.
//
// foreignTopic says which sensor a topic means. The id of a sensor that has a key
// (see Access) is not to be had this way: what comes under it is kept under the
// name of a foreign topic, ~sensors.<sensor>.
type Broker struct {
	opts    BrokerOptions
	intake  *Intake
	logger  *slog.Logger
	trouble *limitedLog
	batches pool[ackable]
	topics  map[string]route // of the goroutine that reads; sessions follow one another
	ids     naming           // of the same
	guest   *guest           // of the same; who publishes on the broker is anonymous here
	name    touchline.Digest // of the session at the broker
}

// tlsTo returns what a connection to a host is encrypted by.
func (b *Broker) tlsTo(host string) *tls.Config {
	if b.opts.TLS != nil {
		return b.opts.TLS(host)
	}
	return &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
}

// NewBroker returns a client of the broker at opts.URL. It connects in Run.
func NewBroker(opts BrokerOptions, intake *Intake, logger *slog.Logger) (*Broker, error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("broker options: %w", err)
	}
	return &Broker{
		opts: opts, intake: intake, logger: logger, trouble: newLimitedLog(logger), guest: intake.access.anonymous(),
		name: touchline.DigestOf("broker", opts.URL, opts.ClientID),
	}, nil
}

// Run connects, and again whenever the connection is lost, until ctx is done.
// It returns when everything that was handed to the store has been answered by
// it: the store must be closed after Run. It returns nil; a broker that can't
// be reached is logged and tried again.
func (b *Broker) Run(ctx context.Context) error {
	backoff := minBackoff
	for {
		began := time.Now()
		err := b.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steadyAfter {
			backoff = minBackoff
		}
		pause := rand.N(backoff) + 1 // full jitter: gateways that lost one broker do not return as one
		if wait := retryAfter(err); wait > 0 {
			pause = min(max(pause, wait), b.opts.MaxBackoff)
		}
		b.trouble.warn("no session with the site's broker", slog.String("url", b.redacted()), slog.Any("error", err), slog.Duration("again_in", pause))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		backoff = min(2*backoff, b.opts.MaxBackoff)
	}
}

func (b *Broker) redacted() string {
	u, err := url.Parse(b.opts.URL)
	if err != nil {
		panic("BUG: a bad url was let in")
	}
	return u.Redacted()
}
