package sensors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"touchline"
	"touchline/payload"
)

// ackable is a message that its broker waits for.
type ackable struct{ message paho.Message }

// brokerSession is one connection to the broker.
type brokerSession struct {
	b    *Broker
	ctx  context.Context
	fail context.CancelCauseFunc // ends the session; the broker will deliver again
	flow flow[ackable]
	wake chan struct{}

	mu    sync.Mutex // held while a message is handed over; covers ended
	ended bool
}

var errSessionOver = errors.New("session is over")

// session lives until the connection is lost, a commit fails, or ctx is done.
func (b *Broker) session(ctx context.Context) error {
	s := &brokerSession{b: b, wake: make(chan struct{}, 1)}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	s.flow.init(b.intake.store, b.opts.Window, maxInflightBytes, s.signal)
	acked := make(chan struct{})
	stop := make(chan struct{})
	go func() { defer close(acked); s.acknowledge(stop) }()

	dialer := &brokerDialer{ctx: s.ctx, tls: b.tlsTo}
	client := paho.NewClient(s.options(dialer))
	err := s.connect(client, dialer)
	if err == nil {
		b.intake.counters[TransportBroker].connections.Add(1)
		b.logger.Info("connected to the site's broker", "url", b.redacted(), "topics", b.opts.Topics)
		<-s.ctx.Done()
		b.intake.counters[TransportBroker].connections.Add(-1)
		err = context.Cause(s.ctx)
	}
	s.fail(errSessionOver)

	// First the messages that are on their way are answered and acknowledged,
	// so that a polite end makes no repetition; then the connection goes.
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.flow.drain()
	close(stop)
	<-acked
	client.Disconnect(uint(brokerTimeout.Milliseconds()))
	dialer.close()
	return err
}

func (s *brokerSession) options(dialer *brokerDialer) *paho.ClientOptions {
	o := &s.b.opts
	return paho.NewClientOptions().
		AddBroker(o.URL).
		SetClientID(o.ClientID).
		SetUsername(o.Username).
		SetPassword(o.Password).
		SetCleanSession(false).
		SetProtocolVersion(4).
		SetOrderMatters(true).
		SetAutoAckDisabled(true).
		SetAutoReconnect(false). // Run does it
		SetConnectRetry(false).
		SetConnectTimeout(brokerTimeout).
		SetKeepAlive(brokerKeepalive).
		SetPingTimeout(brokerPingTimeout).
		SetWriteTimeout(brokerTimeout).
		SetCustomOpenConnectionFn(dialer.open).
		SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) { s.take(m) }).
		SetConnectionLostHandler(func(_ paho.Client, err error) { s.fail(fmt.Errorf("connection lost: %w", err)) })
}

// connect opens the session and subscribes. A filter that the broker refuses is
// an error: its samples would be missing without a word.
func (s *brokerSession) connect(client paho.Client, dialer *brokerDialer) error {
	stop := context.AfterFunc(s.ctx, dialer.close) // a peer that says nothing must not hold up the end
	defer stop()
	token := client.Connect()
	<-token.Done() // within brokerTimeout
	if err := token.Error(); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	filters := make(map[string]byte, len(s.b.opts.Topics))
	for _, filter := range s.b.opts.Topics {
		filters[filter] = 1
	}
	subscribed, _ := client.SubscribeMultiple(filters, nil).(*paho.SubscribeToken)
	timeout := time.NewTimer(brokerTimeout)
	defer timeout.Stop()
	select {
	case <-subscribed.Done():
	case <-timeout.C:
		return fmt.Errorf("subscribe: no answer within %s", brokerTimeout)
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	if err := subscribed.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	var refused []string
	for filter, granted := range subscribed.Result() {
		if granted > 2 {
			refused = append(refused, filter)
		}
	}
	if len(refused) > 0 {
		slices.Sort(refused)
		return fmt.Errorf("subscribe: the broker refuses %s: check what the user may read", strings.Join(refused, ", "))
	}
	return nil
}

// take hands a message over. It is called by paho in the order of arrival, and
// blocks while the window or the store is full: then nothing more is read.
func (s *brokerSession) take(m paho.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.ctx.Err() != nil {
		return // not acknowledged, so the broker keeps it
	}
	s.flow.admit()
	b := s.b.batches.get(&s.flow)
	b.answers = append(b.answers, ackable{m})
	s.b.read(b, m)
	if m.Qos() > 0 && s.b.ids.names(m.MessageID(), m.Duplicate()) && b.needsKey(0) {
		key := publishKey(s.b.name, m.MessageID(), m.Topic(), m.Payload())
		key.Again = m.Duplicate()
		b.addKey(key, 0)
	}
	s.flow.push(b)
	if err := s.submit(b); err != nil {
		s.flow.settle(b, err)
	}
}

// submit waits for a full store as long as patience lasts.
func (s *brokerSession) submit(b *batch[ackable]) error {
	err := s.flow.submit(s.ctx, b)
	if err == nil || retryAfter(err) == 0 {
		return err
	}
	patience := time.NewTimer(brokerPatience)
	defer patience.Stop()
	for retryAfter(err) > 0 {
		again := time.NewTimer(retryAfter(err))
		select {
		case <-again.C:
			err = s.flow.submit(s.ctx, b)
		case <-patience.C:
			again.Stop()
			return err
		case <-s.ctx.Done():
			again.Stop()
			return err
		}
	}
	return err
}

// read decodes m into the batch.
func (b *Broker) read(to *batch[ackable], m paho.Message) {
	in := b.intake
	now, clock := in.stamp()
	to.clock = clock
	data := m.Payload()
	in.counters[TransportBroker].messages.Add(1)
	to.count(min(len(data), b.opts.PayloadBytes), now)
	if m.Retained() {
		in.reject(CauseRetained)
		return
	}
	if len(data) > b.opts.PayloadBytes {
		in.reject(CauseTooLarge)
		b.trouble.warn("message of the site's broker left out: it is too large", slog.String("topic", m.Topic()),
			slog.Int("bytes", len(data)), slog.Int("max_payload_bytes", b.opts.PayloadBytes))
		return
	}
	r := b.route(m.Topic())
	src := payload.Source{Sensor: r.sensor, Metric: r.metric, Now: now}
	decoder := decoders.Get().(*payload.Decoder)
	defer decoders.Put(decoder)
	first := len(to.samples)
	if err := to.decode(decoder, payload.Auto, src, data); err != nil {
		to.samples = append(to.samples, payload.Raw(src, data))
		to.raw++
		b.trouble.warn("payload of the site's broker can't be read: it is kept whole as "+touchline.MetricRaw,
			slog.String("topic", r.topic), slog.Any("error", err))
	}
	b.disown(to.samples[first:], r.topic)
}

// disown keeps what comes under the id of a sensor with a key, and came
// without it, apart from that sensor: as the foreign topic sensors/<sensor>.
// Who may publish on the site's broker is not known here, and to leave it out
// could be a loss.
func (b *Broker) disown(samples []touchline.Sample, topic string) {
	for i := range samples {
		s := &samples[i]
		if b.guest.mayPublish(s.Sensor) {
			continue
		}
		b.trouble.warn("sensor has a key, and the site's broker does not show it: what comes from there has another name",
			slog.String("topic", topic), slog.String("sensor", s.Sensor))
		s.Sensor = foreignName("sensors/" + s.Sensor)
	}
}

func (b *Broker) route(topic string) route {
	r, ok := b.topics[topic]
	if !ok {
		sensor, metric := foreignTopic(topic)
		r = route{topic, sensor, metric}
		if b.topics == nil || len(b.topics) >= maxTopics {
			b.topics = make(map[string]route)
		}
		b.topics[topic] = r
	}
	return r
}

func (s *brokerSession) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// acknowledge passes the store's answers on, in order. After the first one
// that is not good, nothing is acknowledged any more.
func (s *brokerSession) acknowledge(stop <-chan struct{}) {
	var taken []*batch[ackable]
	var cache seenCache
	failed := false
	for {
		select {
		case <-stop:
			return
		case <-s.wake:
		}
		for {
			taken = s.flow.take(taken[:0])
			if len(taken) == 0 {
				break
			}
			for _, b := range taken {
				if b.err != nil && !failed {
					failed = true
					s.fail(fmt.Errorf("store samples: %w", b.err))
				}
				s.b.intake.account(TransportBroker, &cache, &b.load, b.err)
				if !failed {
					b.answers[0].message.Ack() // waits until paho's writer has it; gone connections lose it
				}
			}
			s.flow.release(taken)
			for _, b := range taken {
				s.b.batches.put(b)
			}
		}
	}
}
