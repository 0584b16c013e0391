package buffer

import (
	"cmp"
	"context"
	"fmt"
	"time"
	"unsafe"

	"touchline"
)

const (
	// queueBytes bounds what may wait for a commit or be in one, counted as
	// the memory that it takes: 16 MiB is some 170,000 samples of numbers,
	// a third of a second at 500,000 samples/s. A commit takes a few
	// milliseconds, so a queue at this limit means a disk that stalls, and
	// the right answer to that is a slow Append.
	queueBytes = 16 << 20

	// urgentBytes waiting are committed without heed of CommitInterval, so
	// that the interval never turns into backpressure.
	urgentBytes = queueBytes / 2

	// MaxValueBytes bounds a text or bytes value, so that any single sample
	// fits a block (192 KiB) with its names, even if it does not compress.
	MaxValueBytes = 128 << 10

	sampleBytes = int64(unsafe.Sizeof(touchline.Sample{}))
	// entryBytes is what an append takes besides its samples: its entry, and
	// the closure that most callers hand over.
	entryBytes = int64(unsafe.Sizeof(entry{})) + 64

	// keepSamples is how much of a batch's memory is kept for the next one:
	// 65,536 samples, 5.5 MiB. A larger one was an exception.
	keepSamples = 65536
)

// A batch is what the next commit takes: all that was appended since the
// last one began.
type batch struct {
	samples []touchline.Sample // of all entries, in order
	entries []entry
	bytes   int64         // of room
	evicts  []func(error) // who waits for the limits to be applied
}

// An entry is one append within a batch.
type entry struct {
	count int
	clock *touchline.Clock // nil where nothing is known of it
	room  int64
	done  func(error)
	keys  []touchline.Key
	err   error // what it is told although its batch was committed
}

// Append stores samples and returns nil once they are committed and synced. A
// FullError, ErrClosed or an error that wraps ErrSample means that they are
// surely not stored; a CommitError or ctx's error, that they may be or may
// not. It blocks until Run has committed them or ctx ends; without a Run it
// waits for ctx.
func (b *Buffer) Append(ctx context.Context, samples []touchline.Sample) error {
	result := make(chan error, 1)
	if err := b.AppendAsync(ctx, touchline.Arrival{Samples: samples}, func(err error) { result <- err }); err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for commit: %w", ctx.Err())
	}
}

// AppendAsync hands samples over and returns before they are stored. done is
// then called exactly once: with nil when they are committed and synced, with
// an error when it is not known whether they are (CommitError, or ErrClosed
// where Run never ran). Calls come in the order of the appends from the
// goroutine of Run (or of Close), which commits nothing meanwhile: done must
// not block, nor call Append, Evict or Close.
//
// When AppendAsync itself returns an error, done is never called and the
// samples are surely not stored: a FullError, ErrClosed, ctx's error, or one
// that wraps ErrSample because no block could hold a sample.
//
// It blocks while 16 MiB of samples wait (a third of a second at 500,000
// samples/s), until there is room, ctx ends or the buffer closes. An append
// larger than that waits until it is alone: what bounds it is its caller.
//
// What is a repeat (see Options.RepeatWindow, touchline.Key) is not stored
// again; done is then called as if it were, after the commit of its original.
// A message whose long key belongs to another message is not stored, and done
// is called with touchline.ErrKeyReused.
//
// The slices are copied and may be used again as soon as AppendAsync returns.
// The strings inside are shared until the samples are committed.
func (b *Buffer) AppendAsync(ctx context.Context, arrival touchline.Arrival, done func(error)) error {
	samples := arrival.Samples
	room, err := measure(samples)
	if err != nil {
		return err
	}
	room = min(room+int64(len(arrival.Keys))*keyBytes, queueBytes)
	if err := b.acquire(ctx, room); err != nil {
		return err
	}
	e := entry{count: len(samples), clock: arrival.Clock, room: room, done: done, keys: cloneKeys(arrival)}
	b.mu.Lock()
	err = b.refusal()
	if err == nil {
		b.waiting.samples = append(b.waiting.samples, samples...)
		b.waiting.entries = append(b.waiting.entries, e)
		b.waiting.bytes += room
	}
	urgent := b.waiting.bytes >= urgentBytes
	b.mu.Unlock()
	if err != nil {
		b.room.Release(room)
		return err
	}
	signal(b.work)
	if urgent {
		signal(b.urgent)
	}
	return nil
}

// measure returns the room that samples take while they wait, or why no block
// could hold one of them.
func measure(samples []touchline.Sample) (int64, error) {
	room := entryBytes + int64(len(samples))*sampleBytes
	for i := range samples {
		s := &samples[i]
		value := len(s.Value.Text())
		if value > MaxValueBytes {
			return 0, fmt.Errorf("%w: value of %.40q/%.40q has %d bytes, at most %d are allowed", ErrSample, s.Sensor, s.Metric, value, MaxValueBytes)
		}
		if len(s.Sensor) > touchline.MaxNameBytes || len(s.Metric) > touchline.MaxNameBytes || len(s.Unit) > touchline.MaxNameBytes {
			return 0, fmt.Errorf("%w: a name of %.40q/%.40q has more than %d bytes", ErrSample, s.Sensor, s.Metric, touchline.MaxNameBytes)
		}
		room += int64(value)
	}
	return min(room, queueBytes), nil
}

// acquire takes room in the queue, first come, first served.
func (b *Buffer) acquire(ctx context.Context, room int64) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("append samples: %w", err)
	}
	if b.room.TryAcquire(room) {
		return nil
	}
	// Refused rather than kept waiting, where that is known already.
	b.mu.Lock()
	err := b.refusal()
	b.mu.Unlock()
	if err != nil {
		return err
	}
	either, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.life, cancel)()
	if err := b.room.Acquire(either, room); err != nil {
		if ctx.Err() == nil {
			return ErrClosed
		}
		return fmt.Errorf("wait for room in the buffer: %w", ctx.Err())
	}
	return nil
}

// refusal returns why an append is refused now, if it is. b.mu is held.
func (b *Buffer) refusal() error {
	if b.refused != nil {
		return b.refused
	}
	if b.status.limit != "" {
		return &FullError{Reason: b.status.limit, After: retryFull}
	}
	if wait := time.Until(b.status.retryAt); b.status.diskFull && wait > 0 {
		return &FullError{Reason: "there is no space left on the disk", After: wait.Round(time.Millisecond)}
	}
	return nil
}

// retryAfter is how long the commit loop waits before it tries again.
func (b *Buffer) retryAfter() time.Duration {
	return max(time.Until(b.w.retryAt).Round(time.Millisecond), 0)
}

// refuse makes every later append fail with err.
func (b *Buffer) refuse(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused = err
}

// take returns what waits, and puts an empty batch in its place.
func (b *Buffer) take() *batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.waiting
	b.waiting, b.w.spare = b.w.spare, nil
	return taken
}

// answer tells each append of a batch what became of it, gives its room back,
// and keeps the batch's memory for the next.
func (b *Buffer) answer(taken *batch, err error) {
	var room int64
	for i := range taken.entries {
		e := &taken.entries[i]
		room += e.room
		if e.done != nil {
			e.done(cmp.Or(err, e.err))
		}
	}
	if cap(taken.samples) > keepSamples {
		taken.samples, taken.entries = nil, nil
	}
	clear(taken.samples) // lets go of the strings
	clear(taken.entries) // and of the closures
	*taken = batch{samples: taken.samples[:0], entries: taken.entries[:0]}
	b.w.spare = taken
	b.room.Release(room)
}

// Evict applies the limits and all that was acknowledged now, instead of
// within a second, and returns when that is durable. It blocks until Run has
// done so, or ctx ends.
func (b *Buffer) Evict(ctx context.Context) error {
	result := make(chan error, 1)
	b.mu.Lock()
	err := b.refused
	if err == nil {
		b.waiting.evicts = append(b.waiting.evicts, func(err error) { result <- err })
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	signal(b.work)
	signal(b.urgent)
	select {
	case err := <-result:
		if err != nil {
			return fmt.Errorf("apply limits: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for commit: %w", ctx.Err())
	}
}

// signal puts a token into a channel that holds one. The waiter looks at
// everything when it takes it, so one token stands for any number of calls.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
