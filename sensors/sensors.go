// Package sensors is the side of the gateway that sensors see: an embedded
// MQTT broker, a client of the site's own broker, HTTP and WebSocket. What
// arrives is decoded and handed to a Store, and no sensor is told that a
// message was taken before the Store said that its samples are durable; a
// commit that failed is never acknowledged, so the sensor sends again. MQTT
// and Broker end when the context of their Run is done; HTTP ends with Close.
package sensors

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"touchline"
)

// Store keeps samples.
//
// AppendAsync blocks while its queue is full, which is the backpressure that
// reaches the sensors, and returns early when ctx is done. It owns what
// the arrival has until done was called; done is called exactly once, from another goroutine,
// and does not block. done(nil) says that the samples are durable; done with
// an error says that it is unknown whether they are. When AppendAsync returns
// an error, done is not called and nothing was stored. An error with a method
// RetryAfter() time.Duration says that the store is full and nothing was
// stored: come back after that time.
type Store interface {
	AppendAsync(ctx context.Context, arrival touchline.Arrival, done func(error)) error
}

// Transport says by which way a message came in.
type Transport uint8

// The transports.
const (
	TransportMQTT   Transport = iota // the embedded broker
	TransportBroker                  // the site's own broker
	TransportHTTP                    // POST /v1/samples
	TransportStream                  // WebSocket at /v1/samples/stream
	transports
)

// String returns the transport's name as metrics and logs use it.
func (t Transport) String() string {
	switch t {
	case TransportMQTT:
		return "mqtt"
	case TransportBroker:
		return "broker"
	case TransportHTTP:
		return "http"
	case TransportStream:
		return "stream"
	}
	return fmt.Sprintf("transport %d", uint8(t))
}

// Cause says why a message or a connection was turned away.
type Cause uint8

// The causes.
const (
	CauseTopic     Cause = iota // a topic that names no sensor
	CausePayload                // undecodable, on a transport where the sender can be told
	CauseTooLarge               // packet, body or message above its limit
	CauseProtocol               // a packet or request that breaks its protocol
	CauseLimit                  // too many connections, sessions or subscriptions
	CauseMediaType              // a content type that is not read
	CauseKeyReused              // an Idempotency-Key that belongs to another body
	CauseRetained               // an old message that the site's broker repeats on subscribing
	CauseAccess                 // no key, a wrong one, or one that does not allow this
	causes
)

// String returns the cause's name as metrics and logs use it.
func (c Cause) String() string {
	switch c {
	case CauseTopic:
		return "topic"
	case CausePayload:
		return "payload"
	case CauseTooLarge:
		return "too_large"
	case CauseProtocol:
		return "protocol"
	case CauseLimit:
		return "limit"
	case CauseMediaType:
		return "media_type"
	case CauseKeyReused:
		return "key_reused"
	case CauseRetained:
		return "retained"
	case CauseAccess:
		return "access"
	}
	return fmt.Sprintf("cause %d", uint8(c))
}

// IntakeOptions are what NewIntake needs. Every field is required.
type IntakeOptions struct {
	Store      Store
	Now        func() (time.Time, *touchline.Clock) // the time of arrival, and the clock that says so; nil where nothing is known of it
	MaxSensors int                                  // sensors remembered; then the longest silent one is forgotten
	Access     *Access                              // who may send what, but for the site's own brokers
}

// Intake is what all transports share: the store, the counters and the
// sensors seen. It is safe for concurrent use, holds no resources and starts
// nothing.
type Intake struct {
	store  Store
	now    func() (time.Time, *touchline.Clock)
	seen   *registry
	access *Access

	counters [transports]counters
	rejected [causes]atomic.Uint64
	dropped  atomic.Uint64
}

// counters of one transport. Each is padded by its neighbours' use: they are
// written once a batch, not once a sample.
type counters struct {
	connections atomic.Int64
	messages    atomic.Uint64
	samples     atomic.Uint64
	raw         atomic.Uint64
	refused     atomic.Uint64
	failed      atomic.Uint64
}

// NewIntake returns an intake that hands samples to opts.Store.
func NewIntake(opts IntakeOptions) (*Intake, error) {
	switch {
	case opts.Store == nil:
		return nil, errors.New("intake: no store is given")
	case opts.Now == nil:
		return nil, errors.New("intake: no clock is given")
	case opts.Access == nil:
		return nil, errors.New("intake: no access is given")
	case opts.MaxSensors < 1:
		return nil, fmt.Errorf("intake: max sensors is %d: at least 1 is needed", opts.MaxSensors)
	}
	return &Intake{store: opts.Store, now: opts.Now, seen: newRegistry(opts.MaxSensors), access: opts.Access}, nil
}

// Stats is a copy of an intake's counters, all since its start.
type Stats struct {
	Transports map[Transport]TransportStats
	Rejected   map[Cause]uint64 // messages and connections turned away, with a word to whoever can be told
	Dropped    uint64           // live copies that a local subscriber was too slow to take; the samples are stored
	Sensors    []SensorStats    // in order of name
	Forgotten  uint64           // sensors that made room for others in Sensors; their samples are stored
}

// TransportStats are the counters of one transport.
type TransportStats struct {
	Connections int64  // open now
	Messages    uint64 // received
	Samples     uint64 // durable
	Raw         uint64 // messages kept whole as _raw, because they could not be decoded
	Refused     uint64 // messages that a full store did not take
	Failed      uint64 // messages whose commit failed; whether they are stored is unknown
}

// SensorStats says what is known of one sensor.
type SensorStats struct {
	Name      string
	Transport Transport // the latest
	LastSeen  time.Time // when its latest durable sample arrived
	Samples   uint64    // durable
}

// Stats returns a copy of the counters.
func (in *Intake) Stats() Stats {
	s := Stats{
		Transports: make(map[Transport]TransportStats, transports),
		Rejected:   make(map[Cause]uint64, causes),
		Dropped:    in.dropped.Load(),
		Forgotten:  in.seen.forgotten.Load(),
		Sensors:    in.seen.list(),
	}
	for t := range transports {
		c := &in.counters[t]
		s.Transports[t] = TransportStats{
			Connections: c.connections.Load(), Messages: c.messages.Load(), Samples: c.samples.Load(),
			Raw: c.raw.Load(), Refused: c.refused.Load(), Failed: c.failed.Load(),
		}
	}
	for c := range causes {
		s.Rejected[c] = in.rejected[c].Load()
	}
	s.Rejected[CauseLimit] += in.access.turnedAway.Load()
	return s
}

// stamp returns what a message that arrives now is stamped with: ns since the
// Unix epoch, and the clock that says so.
func (in *Intake) stamp() (int64, *touchline.Clock) {
	now, clock := in.now()
	return now.UnixNano(), clock
}

func (in *Intake) reject(c Cause) { in.rejected[c].Add(1) }

// account books a batch that the store has answered. Only durable samples
// count as samples and as a sign of life.
func (in *Intake) account(t Transport, cache *seenCache, b *load, err error) {
	c := &in.counters[t]
	switch {
	case errors.Is(err, touchline.ErrKeyReused):
		in.reject(CauseKeyReused)
	case err == nil:
		c.samples.Add(uint64(len(b.samples)))
		c.raw.Add(uint64(b.raw))
		in.seen.add(t, cache, b.samples, b.arrived)
	case retryAfter(err) > 0:
		c.refused.Add(uint64(b.messages))
	default:
		c.failed.Add(uint64(b.messages))
	}
}

// retryAfter returns how long a full store asks to be left alone, at least a
// millisecond, or 0 where err does not say that the store is full.
func retryAfter(err error) time.Duration {
	var full interface{ RetryAfter() time.Duration }
	if !errors.As(err, &full) {
		return 0
	}
	return max(full.RetryAfter(), time.Millisecond)
}
