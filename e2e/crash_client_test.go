package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"
)

// A client publishes the samples of one sensor and sends each until it is
// acknowledged, over one connection after another. Message m, from 0, carries
// the metrics m0, m1, … with the values m*samples, m*samples+1, …, all at the
// time messageTime(m): a sample in the cloud says by itself which of all ever
// sent it is, and its ledger how often it was sent.
type client struct {
	clientOptions
	sensor   string
	dial     func(context.Context) (link, error)
	progress *progress
	record   func(event, message int) // for a ledger beyond this process; may be nil

	mu       sync.Mutex // covers all below
	sent     []int      // by message: how often it was handed to a connection
	acked    []bool
	refusals map[string]int // what the gateway said instead of acknowledging
	stopped  bool           // no new messages any more
	held     bool           // …for now
}

type clientOptions struct {
	transport string // mqtt4, mqtt5, ws or http
	qos       byte   // of MQTT, 1 or 2
	samples   int    // in each message
	blob      int    // bytes of text that do not compress, in the metric "blob"
	window    int    // messages in flight
	pace      int    // new messages in each paceInterval
	bare      bool   // its samples have no time of their own
	named     bool   // …and its messages have names: Idempotency-Keys, or packet ids of a client that counts
}

const (
	paceInterval = 10 * time.Millisecond
	// A refused message is sent again after this, whatever the gateway
	// proposes: its refusals are what is tested.
	refusedPause = 100 * time.Millisecond
)

// A link is one connection. send and answers may be called by two goroutines
// at a time; close ends both.
type link interface {
	send(message int, body []byte, dup bool) error
	answers() ([]answer, error) // blocks until there is one; the ones beside an error count
	close()
}

// An answer is what the gateway said to one message.
type answer struct {
	message int
	refusal string // "" is an acknowledgement
}

// messageTime is 2026-01-01 and 1 ms for each message, in ns.
func messageTime(message int) int64 { return 1_767_225_600_000_000_000 + int64(message)*1_000_000 }

// body is the JSON object of a message.
func (c *client) body(message int) []byte {
	var b []byte
	if !c.bare {
		b = fmt.Appendf(b, `,"t":%d`, messageTime(message))
	}
	for k := range c.samples {
		b = append(b, `,"m`...)
		b = strconv.AppendInt(b, int64(k), 10)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, int64(message*c.samples+k), 10)
	}
	if c.blob > 0 {
		b = fmt.Appendf(b, `,"blob":%q`, c.text(message))
	}
	b[0] = '{'
	return append(b, '}')
}

// once says whether the gateway can tell a message from its repeat: by its
// samples, or by its name.
func (c *client) once() bool { return !c.bare || c.named }

// text is the blob of a message: its number, and what a generator with this
// seed gives.
func (c *client) text(message int) string {
	random := rand.NewChaCha8([32]byte{byte(message), byte(message >> 8), byte(message >> 16), byte(message >> 24)})
	raw := make([]byte, c.blob*3/4)
	_, _ = random.Read(raw)
	return fmt.Sprintf("%d-%s", message, base64.RawURLEncoding.EncodeToString(raw))
}

// run publishes until stop was called and all is acknowledged, or ctx ends.
func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil && !c.finished() {
		if l, err := c.dial(ctx); err == nil {
			c.converse(ctx, l)
		} else {
			pause(ctx, 20*time.Millisecond)
		}
	}
}

// stop makes run end once all that was sent is acknowledged.
func (c *client) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
}

func (c *client) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped && len(c.unacknowledged()) == 0
}

// unacknowledged returns the messages sent and not acknowledged. c.mu is held.
func (c *client) unacknowledged() []int {
	var list []int
	for m, acked := range c.acked {
		if !acked {
			list = append(list, m)
		}
	}
	return list
}

// converse uses one connection until it is lost or all is done: first what an
// earlier connection left without an acknowledgement, then new messages.
func (c *client) converse(ctx context.Context, l link) {
	lost := make(chan struct{})
	came := make(chan answer, 2*c.window) // never more than window, but for repeats
	go func() {
		defer close(lost)
		for {
			answers, err := l.answers()
			for _, a := range answers {
				if c.note(a) {
					came <- a
				}
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		l.close()
		for {
			select {
			case <-came:
			case <-lost:
				return
			}
		}
	}()
	c.mu.Lock()
	again := c.unacknowledged()
	c.mu.Unlock()
	dup := len(again) // so many of again were sent on an earlier connection
	tick := time.NewTicker(paceInterval)
	defer tick.Stop()
	var resume time.Time // no refused message before
	allowance := c.pace
	for flying := 0; ; {
		for flying < c.window {
			var m int
			switch {
			case len(again) > 0 && !time.Now().Before(resume):
				m, again = again[0], again[1:]
				c.noteAgain(m)
			case len(again) == 0 && allowance > 0 && c.next(&m):
				allowance--
			default:
				m = -1
			}
			if m < 0 {
				break
			}
			if l.send(m, c.body(m), dup > 0) != nil {
				return
			}
			dup--
			flying++
		}
		if flying == 0 && len(again) == 0 && c.finished() {
			return
		}
		select {
		case a := <-came:
			flying--
			if a.refusal != "" {
				again, resume = append(again, a.message), time.Now().Add(refusedPause)
			}
		case <-tick.C:
			allowance = c.pace
		case <-lost:
			return
		case <-ctx.Done():
			return
		}
	}
}

// next takes a new message, unless the client was told to stop.
func (c *client) next(m *int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.held {
		return false
	}
	*m = len(c.sent)
	c.sent = append(c.sent, 1)
	c.acked = append(c.acked, false)
	c.tell(eventSent, *m)
	return true
}

func (c *client) noteAgain(m int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[m]++
	c.tell(eventSent, m)
}

// tell records an event, before anybody else can know of it. c.mu is held.
func (c *client) tell(event, message int) {
	if c.record != nil {
		c.record(event, message)
	}
}

// note keeps an answer, and says whether it is the first for its message on
// this way through the gateway.
func (c *client) note(a answer) bool {
	c.mu.Lock()
	first := a.message < len(c.acked) && !c.acked[a.message]
	if a.refusal != "" {
		c.refusals[a.refusal]++
	} else if first {
		c.acked[a.message] = true
		c.tell(eventAcked, a.message)
	}
	c.mu.Unlock()
	if first && a.refusal == "" {
		c.progress.add(c.samples)
	}
	return first
}

// refused returns how often the gateway refused in that way.
func (c *client) refused(how string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusals[how]
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// progress counts acknowledged samples, and wakes who waits for a number of
// them in the moment in which the client hears of it.
type progress struct {
	mu      sync.Mutex
	samples int
	target  int
	reached chan struct{} // nil while nobody waits
}

func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.samples += n; p.reached != nil && p.samples >= p.target {
		close(p.reached)
		p.reached = nil
	}
}

func (p *progress) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.samples
}

// more waits until n more samples are acknowledged.
func (p *progress) more(t *testing.T, n int) {
	t.Helper()
	reached := make(chan struct{})
	p.mu.Lock()
	p.target, p.reached = p.samples+n, reached
	p.mu.Unlock()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case <-reached:
	case <-deadline.C:
		t.Fatalf("waited %s for %d more samples to be acknowledged", patience, n)
	}
}

// A crowd is all clients of a site.
type crowd struct {
	*progress
	clients []*client
	cancel  context.CancelFunc
	ended   sync.WaitGroup
}

// sensorName is the sensor of a site's client i.
func sensorName(i int, o clientOptions) string { return fmt.Sprintf("%s-%d-%d", o.transport, o.qos, i) }

// publish starts clients; they are ended with the test at the latest.
func (s *site) publish(options ...clientOptions) *crowd {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{progress: &progress{}, cancel: cancel}
	for i, o := range options {
		one := &client{clientOptions: o, sensor: sensorName(i, o), progress: c.progress, refusals: map[string]int{}}
		switch o.transport {
		case "mqtt4", "mqtt5":
			one.dial = newMQTTDialer(s, one)
		case "ws":
			one.dial = func(ctx context.Context) (link, error) { return dialStream(ctx, s.http, one.sensor) }
		case "http":
			one.dial = func(ctx context.Context) (link, error) { return newPoster(ctx, s.http, one), nil }
		default:
			s.t.Fatalf("no such transport: %q", o.transport)
		}
		if s.ledger != nil {
			s.ledger.attach(i, one)
		}
		c.clients = append(c.clients, one)
		c.ended.Go(func() { one.run(ctx) })
	}
	s.t.Cleanup(func() {
		cancel()
		c.ended.Wait()
	})
	return c
}

// hold lets all clients fall silent, with nothing unacknowledged, until
// release.
func (c *crowd) hold(t *testing.T) {
	t.Helper()
	for _, one := range c.clients {
		one.mu.Lock()
		one.held = true
		one.mu.Unlock()
	}
	waitFor(t, "the clients to fall silent", func() bool {
		for _, one := range c.clients {
			one.mu.Lock()
			open := len(one.unacknowledged())
			one.mu.Unlock()
			if open > 0 {
				return false
			}
		}
		return true
	})
}

func (c *crowd) release() {
	for _, one := range c.clients {
		one.mu.Lock()
		one.held = false
		one.mu.Unlock()
	}
}

// finish lets all clients send what they have begun until it is acknowledged.
func (c *crowd) finish(t *testing.T) {
	t.Helper()
	for _, one := range c.clients {
		one.stop()
	}
	done := make(chan struct{})
	go func() {
		c.ended.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		for _, one := range c.clients {
			one.mu.Lock()
			if open := one.unacknowledged(); len(open) > 0 {
				t.Errorf("%s: %d of %d messages are not acknowledged, the first is %d", one.sensor, len(open), len(one.sent), open[0])
			}
			one.mu.Unlock()
		}
		t.Fatalf("clients waited %s for their last acknowledgements", patience)
	}
}
