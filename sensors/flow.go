package sensors

import (
	"context"
	"slices"
	"sync"
	"unsafe"

	"touchline"
	"touchline/payload"
)

// load is what a batch brings to the store.
type load struct {
	samples  []touchline.Sample
	keys     []touchline.Key  // of messages whose repeats are known by name
	messages int              // messages the samples came in
	raw      int              // of these, how many are kept whole
	bytes    int              // of memory: payload and samples
	arrived  int64            // ns since the Unix epoch, of the first message
	clock    *touchline.Clock // of all messages
}

// batch is some messages of one connection that go to the store together, and
// what is to be answered for them, in order. The store owns its samples from
// submit until it answered.
type batch[T any] struct {
	load
	answers []T

	flow     *flow[T]
	finished bool // with err, the store's answer; covered by flow.mu
	err      error
	done     func(error) // batch.finish, bound once so that a batch costs no closure
}

// decode adds the samples of data. On error the batch is as before.
func (b *batch[T]) decode(d *payload.Decoder, format payload.Format, src payload.Source, data []byte) error {
	samples, err := d.Decode(b.samples, format, src, data)
	if err != nil {
		return err
	}
	b.bytes += (len(samples) - len(b.samples)) * sampleBytes
	b.samples = samples
	return nil
}

// sampleBytes is what a sample takes beside its payload. A payload may be as
// little as a sixtieth of its samples, so these count.
const sampleBytes = int(unsafe.Sizeof(touchline.Sample{}))

// count adds one message of n payload bytes.
func (b *batch[T]) count(n int, arrived int64) {
	if b.messages == 0 {
		b.arrived = arrived
	}
	b.messages++
	b.bytes += n
}

// pool recycles batches once the store and the answers are through with them.
type pool[T any] struct{ free sync.Pool }

func (p *pool[T]) get(f *flow[T]) *batch[T] {
	b, _ := p.free.Get().(*batch[T])
	if b == nil {
		b = &batch[T]{}
		b.done = func(err error) { b.flow.settle(b, err) }
	}
	b.flow = f
	return b
}

// maxKept is the largest batch that is kept for reuse, in samples: 4,096 of 96
// bytes are 384 KiB. One huge payload must not stay in memory for ever.
const maxKept = 4096

func (p *pool[T]) put(b *batch[T]) {
	if cap(b.samples) > maxKept {
		return
	}
	clear(b.samples) // the strings belong to payloads that may go now
	clear(b.answers)
	done := b.done
	*b = batch[T]{load: load{samples: b.samples[:0], keys: b.keys[:0]}, answers: b.answers[:0], done: done}
	p.free.Put(b)
}

// flow is the messages of one connection that are on their way: handed to the
// store and not yet answered. It keeps their order, however the store orders
// its answers, and bounds how many there are.
//
// One goroutine sends (admit, push, submit); another one answers (take,
// release). The answering one is called for by wake, which must not block, and
// is called for again only after take returned nothing.
type flow[T any] struct {
	store     Store
	wake      func()
	maxCount  int // messages
	maxBytes  int // of memory, but one message is always let in
	answering bool

	mu       sync.Mutex // covers what is below, and answering
	changed  sync.Cond  // with mu; signalled when something was released
	queue    []*batch[T]
	messages int
	bytes    int
}

func (f *flow[T]) init(store Store, maxCount, maxBytes int, wake func()) {
	f.store, f.maxCount, f.maxBytes, f.wake = store, maxCount, maxBytes, wake
	f.changed.L = &f.mu
}

// crowded says whether a batch with so many messages and bytes must wait.
func (f *flow[T]) crowded(messages, bytes int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.messages+messages > f.maxCount || f.bytes+bytes > f.maxBytes && f.messages > 0
}

// admit blocks until one more message has room. It is unblocked by release,
// which the store's answer leads to in any case.
func (f *flow[T]) admit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.messages >= f.maxCount || f.bytes >= f.maxBytes {
		f.changed.Wait()
	}
}

// push puts b at the end of the queue. From now on it must be submitted
// successfully, or settled.
func (f *flow[T]) push(b *batch[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, b)
	f.messages += b.messages
	f.bytes += b.bytes
}

// submit hands a pushed batch to the store. On error the batch stays where it
// is, to be submitted again or settled. A batch without samples needs no
// store.
func (f *flow[T]) submit(ctx context.Context, b *batch[T]) error {
	if len(b.samples) == 0 {
		f.settle(b, nil)
		return nil
	}
	return f.store.AppendAsync(ctx, touchline.Arrival{Samples: b.samples, Clock: b.clock, Keys: b.keys}, b.done)
}

// settle notes the store's answer to b and has it passed on when all before it
// are answered too. It does not block.
func (f *flow[T]) settle(b *batch[T], err error) {
	f.mu.Lock()
	if b.finished {
		f.mu.Unlock()
		panic("BUG: a batch was answered twice")
	}
	b.finished, b.err = true, err
	start := !f.answering && f.queue[0].finished
	if start {
		f.answering = true
	}
	f.mu.Unlock()
	if start {
		f.wake()
	}
}

// take appends the answered batches at the head of the queue to dst. When
// there is none, the caller's turn ends.
func (f *flow[T]) take(dst []*batch[T]) []*batch[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for n < len(f.queue) && f.queue[n].finished {
		n++
	}
	if n == 0 {
		f.answering = false
		f.changed.Broadcast()
		return dst
	}
	dst = append(dst, f.queue[:n]...)
	f.queue = slices.Delete(f.queue, 0, n)
	return dst
}

// release makes room: what was taken has been passed on.
func (f *flow[T]) release(taken []*batch[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range taken {
		f.messages -= b.messages
		f.bytes -= b.bytes
	}
	f.changed.Broadcast()
}

// drain blocks until everything sent was answered and passed on, so that no
// goroutine and no callback of this flow is left.
func (f *flow[T]) drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) > 0 || f.answering {
		f.changed.Wait()
	}
}

// idle says whether everything sent was answered and passed on.
func (f *flow[T]) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.queue) == 0 && !f.answering
}

// decoders are shared by all connections: one is needed only while a payload
// is being read.
var decoders = sync.Pool{New: func() any { return payload.NewDecoder() }}
