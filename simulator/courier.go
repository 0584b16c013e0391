package simulator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"
)

// maxWindow bounds the messages in flight on one connection. With messages of
// 48 KiB (maxPackBytes) a window is 12 MiB; 256 of a player's 150 bytes are
// 38 KB.
const maxWindow = 256

// A message is what one PUBLISH, frame or POST carries.
type message struct {
	body    []byte
	samples int
	due     time.Time // not to be sent before
}

// A feed is where a courier takes messages from. Next returns the next one
// without waiting for its time, and false when there are no more.
type feed interface {
	Next(now time.Time) (message, bool)
}

// A link is one connection of one sensor. Its methods but Acked are called by
// one goroutine.
type link interface {
	// Send hands a message to the connection. It blocks while the peer does
	// not read, until ctx has ended or the link is lost. Not more than
	// maxWindow messages are sent and not acknowledged at any time.
	Send(ctx context.Context, id uint64, body []byte) error
	// Acked delivers the ids of acknowledged messages, each once. It is
	// closed when the link has ended, behind all acknowledgements that came.
	Acked() <-chan uint64
	// Err says why the link ended, once Acked is closed.
	Err() error
	// Close ends the link and waits for its goroutines.
	Close()
}

// A parcel is a message on its way.
type parcel struct {
	message
	id    uint64
	sent  bool // on some connection, this one or an earlier one
	acked bool
}

// A courier delivers the messages of one sensor in order, over one connection
// after another. Messages that were not acknowledged when a connection was
// lost are sent again on the next one, in their order and before new ones.
type courier struct {
	sensor   string
	feed     feed
	window   int
	dial     func(context.Context) (link, error)
	counters *counters
	logger   *slog.Logger

	waiting      []*parcel // taken from the feed and not acknowledged, in order; at most window
	sent         int       // how many of them were sent on the current link
	next         *message  // taken from the feed, not due yet
	ended        bool      // the feed has no more
	lastID       uint64
	acknowledged uint64 // messages
}

// deliver returns nil when the feed has ended and all is acknowledged, an
// error that wraps ErrRefused, or ctx's error.
func (c *courier) deliver(ctx context.Context) error {
	var retry backoff
	for connections := 0; ; {
		l, err := c.dial(ctx)
		if err == nil {
			if connections++; connections > 1 {
				c.counters.reconnects.Add(1)
			}
			before := c.acknowledged
			err = c.serve(ctx, l)
			if c.acknowledged != before {
				retry.reset() // the peer works, it did not only accept connections
			}
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrRefused):
			return fmt.Errorf("sensor %q: %w", c.sensor, err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		c.counters.lastError.Store(&err)
		c.logger.Debug("connection lost", "err", err, "unacknowledged", len(c.waiting))
		if err := retry.wait(ctx, err); err != nil {
			return context.Cause(ctx)
		}
	}
}

// serve uses one link until it is lost or all is done.
func (c *courier) serve(ctx context.Context, l link) error {
	c.counters.connected.Add(1)
	defer c.counters.connected.Add(-1)
	c.sent = 0
	err := c.exchange(ctx, l)
	l.Close()
	for id := range l.Acked() { // what came after the last look: it need not be sent again
		c.acknowledge(id)
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(p *parcel) bool { return p.acked })
	if err != nil && c.done() {
		return nil // the last acknowledgement came together with the loss
	}
	return err
}

// exchange sends what is due and takes acknowledgements.
func (c *courier) exchange(ctx context.Context, l link) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var pause backoff
	for {
		if !c.takeAcks(l) {
			return l.Err()
		}
		wait := c.take(time.Now())
		if c.sent < len(c.waiting) {
			err := c.send(ctx, l)
			if later := (*retryAfterError)(nil); errors.As(err, &later) && !errors.Is(err, errNotSent) {
				c.sent-- // the link is fine: the same message again, after a while
				err = pause.wait(ctx, err)
			} else {
				pause.reset()
			}
			if err != nil {
				return err
			}
			continue
		}
		if c.done() {
			return nil
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case id, ok := <-l.Acked():
			if !ok {
				return l.Err()
			}
			c.acknowledge(id)
		case <-due:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *courier) done() bool { return c.ended && c.next == nil && len(c.waiting) == 0 }

// take moves what is due from the feed to the window, as far as there is
// room, and returns how long the next one has to wait; 0 where only an
// acknowledgement can help.
func (c *courier) take(now time.Time) time.Duration {
	for len(c.waiting) < c.window {
		if c.next == nil && !c.ended {
			m, ok := c.feed.Next(now)
			if ok {
				c.next = &m
			} else {
				c.ended = true
			}
		}
		if c.next == nil {
			return 0
		}
		if wait := c.next.due.Sub(now); wait > 0 {
			return wait
		}
		c.lastID++
		c.waiting = append(c.waiting, &parcel{message: *c.next, id: c.lastID})
		c.counters.taken.Add(int64(c.next.samples))
		c.next = nil
	}
	return 0
}

// send sends the first message of the window that this link has not had.
func (c *courier) send(ctx context.Context, l link) error {
	p := c.waiting[c.sent]
	c.sent++
	again := p.sent
	err := l.Send(ctx, p.id, p.body)
	if errors.Is(err, errNotSent) {
		return err // nothing of it left: the next sending is not a second one
	}
	p.sent = true
	if again {
		c.counters.resentMessages.Add(1)
		c.counters.resentSamples.Add(int64(p.samples))
	}
	return err
}

// errNotSent is wrapped by errors of Send when no byte of the message left.
var errNotSent = errors.New("message not sent")

// takeAcks takes the acknowledgements that are there, without waiting, and
// says whether the link is still up.
func (c *courier) takeAcks(l link) bool {
	for {
		select {
		case id, ok := <-l.Acked():
			if !ok {
				return false
			}
			c.acknowledge(id)
		default:
			return true
		}
	}
}

// acknowledge marks a message and lets go of the acknowledged ones at the
// front. Acknowledgements come in order from every gateway that we know; one
// out of order only keeps its place a little longer.
func (c *courier) acknowledge(id uint64) {
	i := 0
	for ; i < len(c.waiting) && c.waiting[i].id != id; i++ {
	}
	if i == len(c.waiting) || c.waiting[i].acked {
		return // of no message that we wait for
	}
	p := c.waiting[i]
	p.acked = true
	c.acknowledged++
	c.counters.messages.Add(1)
	c.counters.samples.Add(int64(p.samples))
	if i > 0 {
		return
	}
	done := 1
	for done < len(c.waiting) && c.waiting[done].acked {
		done++
	}
	c.waiting = slices.Delete(c.waiting, 0, done)
	c.sent = max(0, c.sent-done)
}

// backoff is the wait before a connection is tried again: full jitter, so
// that a thousand sensors don't come back in the same instant, doubling, and
// never beyond a second.
type backoff struct{ tries int }

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = time.Second
)

func (b *backoff) reset() { b.tries = 0 }

// delay returns the next wait: anything up to 50, 100, 200, 400, 800 and then
// 1,000 ms, or what the peer asked for (RetryAfter), if that is less than a
// second.
func (b *backoff) delay(cause error) time.Duration {
	limit := min(firstBackoff<<min(b.tries, 5), maxBackoff)
	b.tries++
	if asked := (*retryAfterError)(nil); errors.As(cause, &asked) {
		return min(max(asked.after, firstBackoff), maxBackoff)
	}
	return rand.N(limit)
}

func (b *backoff) wait(ctx context.Context, cause error) error {
	timer := time.NewTimer(b.delay(cause))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A retryAfterError says that the peer is alive and wants to be asked later.
type retryAfterError struct {
	after  time.Duration
	reason string
}

func (e *retryAfterError) Error() string { return e.reason }
