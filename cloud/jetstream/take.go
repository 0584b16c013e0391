package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"touchline/cloud"
)

const (
	// maxTaken is how many blocks of a shard are with recorders: two of their
	// largest transactions, so that one fills while the other is synced, and a shard that has
	// less to do is in the hands of one.
	maxTaken = 1024

	// fetch and fetchBytes are how much of a shard waits in a recorder to be taken.
	fetch      = 256
	fetchBytes = 4 << 20

	// heartbeat is how often a shard that has nothing says so: after two that are
	// missing it is asked again. A server that dies takes what was asked of
	// it along, so blocks wait as long.
	heartbeat = 2 * time.Second

	// lookAgain is the time between looks for streams of another number of shards.
	lookAgain = 30 * time.Second

	retryTake = time.Second
)

// Take implements cloud.Source: it takes from all streams of the queue.
func (q *Queue) Take(ctx context.Context, take func(context.Context, cloud.Delivery, cloud.Ticket) error) error {
	group, ctx := errgroup.WithContext(ctx)
	known := map[string]bool{}
	begin := func(name string) {
		if !known[name] {
			known[name] = true
			group.Go(func() error { return q.takeStream(ctx, name, take) })
		}
	}
	for shard := range q.opts.Shards {
		begin(q.opts.stream(shard))
	}
	for wait := time.Duration(0); pause(ctx, wait); wait = lookAgain {
		names := q.js.StreamNames(ctx, jetstream.WithStreamListSubject(q.opts.subjects()))
		for name := range names.Name() {
			begin(name)
		}
		if err := names.Err(); err != nil && ctx.Err() == nil {
			q.log.Debug("list streams", "error", err)
		}
	}
	return group.Wait()
}

// takeStream takes from one stream until ctx is done, however often that fails.
func (q *Queue) takeStream(ctx context.Context, name string, take func(context.Context, cloud.Delivery, cloud.Ticket) error) error {
	for well := true; ; {
		err := q.takeWhileWell(ctx, name, take)
		if ctx.Err() != nil {
			return nil
		}
		if well {
			q.log.Warn("blocks can't be taken from the queue; it is tried again", "stream", name, "error", err)
		}
		well = false
		pause(ctx, retryTake)
	}
}

func (q *Queue) takeWhileWell(ctx context.Context, name string, take func(context.Context, cloud.Delivery, cloud.Ticket) error) error {
	asking, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	consumer, err := q.js.CreateOrUpdateConsumer(asking, name, jetstream.ConsumerConfig{
		Durable: consumerName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.opts.AckWait,
		MaxAckPending: maxTaken, DeliverPolicy: jetstream.DeliverAllPolicy, MaxDeliver: -1,
	})
	if err != nil {
		return fmt.Errorf("make consumer: %w", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(fetch, fetchBytes), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return fmt.Errorf("take: %w", err)
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue // it asks again by itself
		}
		if err != nil {
			return fmt.Errorf("take: %w", err)
		}
		d, err := deliveryOf(m.Headers(), m.Data())
		if err != nil {
			// Its gateway was told accepted only, and sends it again.
			q.log.Error("a block in the queue is damaged and taken out; its gateway sends it again", "stream", name, "error", err)
			ticket{q, m}.Drop()
			continue
		}
		if about, err := m.Metadata(); err == nil {
			d.Accepted, d.Again = about.Timestamp, about.NumDelivered > 1
		}
		if err := take(ctx, d, ticket{q, m}); err != nil {
			ticket{q, m}.Return()
			return err
		}
	}
}

// pause waits for d, and says whether ctx still counts.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// A ticket is a message that a recorder has.
type ticket struct {
	q       *Queue
	message jetstream.Msg
}

// Done implements cloud.Ticket.
func (t ticket) Done() { t.log(t.message.Ack()) }

// Return implements cloud.Ticket.
func (t ticket) Return() { t.log(t.message.Nak()) }

// Drop implements cloud.Ticket.
func (t ticket) Drop() { t.log(t.message.Term()) }

// log: the message comes again then, and is a repeat.
func (t ticket) log(err error) {
	if err != nil {
		t.q.log.Debug("answer the queue", "error", err)
	}
}
