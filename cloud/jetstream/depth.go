package jetstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"touchline/cloud"
)

// Depth says what all streams of the queue hold, those of another number of shards
// included. Duplicates is right where there is an error too.
func (q *Queue) Depth(ctx context.Context) (d cloud.Depth, err error) {
	d.Duplicates = q.duplicates.Load()
	names := q.js.StreamNames(ctx, jetstream.WithStreamListSubject(q.opts.subjects()))
	for name := range names.Name() {
		stream, err := q.js.Stream(ctx, name)
		if err != nil {
			return d, fmt.Errorf("ask stream %s: %w", name, err)
		}
		about := stream.CachedInfo()
		d.Blocks, d.Bytes, d.MaxBytes = d.Blocks+about.State.Msgs, d.Bytes+about.State.Bytes, d.MaxBytes+uint64(max(about.Config.MaxBytes, 0))
		if first := about.State.FirstTime; about.State.Msgs > 0 && (d.Oldest.IsZero() || first.Before(d.Oldest)) {
			d.Oldest = first
		}
		consumer, err := stream.Consumer(ctx, consumerName)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue // nobody has recorded from it yet
		}
		if err != nil {
			return d, fmt.Errorf("ask for the recorders of stream %s: %w", name, err)
		}
		d.Taken += uint64(max(consumer.CachedInfo().NumAckPending, 0))
	}
	return d, names.Err()
}

// Waiting returns how much the streams hold that is not recorded.
func (q *Queue) Waiting(ctx context.Context) (blocks, bytes uint64, err error) {
	d, err := q.Depth(ctx)
	return d.Blocks, d.Bytes, err
}
