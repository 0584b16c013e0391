package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"touchline"
	"touchline/wire"
)

// Bounds of one transaction. Whatever waits while the store syncs goes into
// the next one, up to these; so throughput is not bounded by the store's sync
// rate, and a block that arrives alone waits for nothing.
const (
	maxBatchBlocks = 512
	maxBatchBytes  = 4 << 20 // a write-ahead log of a few MiB, some 10 ms of disk

	// A decoded sample has 96 bytes: 262,144 are 25 MB, kept from batch to batch.
	maxBatchSamples = 4 * wire.MaxBlockSamples
)

// blockOverhead is what a waiting block costs beside its data: delivery, entry
// and map slot. It bounds the count too: 64 MiB of queue hold at most 131,072 blocks.
const blockOverhead = 512

// isolateAfter is how often a batch may fail before the blocks that fail it
// are looked for. A store that is busy or away for a moment fails less often.
const isolateAfter = 3

// stalledAfter is when a transaction that has not ended counts as trouble.
const stalledAfter = 10 * time.Second

// A receiver is told what became of its blocks. Its methods don't block.
type receiver interface {
	// accepted: the queue holds the block; the record store does not yet. Where
	// blocks go to the store itself it is not called.
	accepted(b *wire.Block)
	// stored: the block is committed and synced.
	stored(b *wire.Block)
	// forget: the block needs no answer any more, since a repeat of it took its place.
	forget(b *wire.Block)
	// refuse: the record store can't take the block, though it takes others.
	refuse(b *wire.Block)
}

// A batcher commits the blocks of all gateways in groups. Deliveries wait in one
// queue, in the order of arrival, and one goroutine (run) records all that is
// there. A block is in it once: a repeat that comes while the first waits
// takes over its place, so a store that fails for an hour, with gateways that
// lose patience and come back, fills the queue with nothing but news.
//
// Where there is a Queue a node has two of them: one brings blocks into the
// queue, and has them off its hands when it holds them; the other, wherever it
// runs, records what comes out of it.
type batcher struct {
	recorder Recorder
	into     Queue  // where it is set blocks go there, and not into the store
	entrance string // what a trace calls the way into memory
	settled  func() // called after receivers were told, by run
	stats    *counters
	timing   timing
	log      *slog.Logger

	room     *semaphore.Weighted // QueueBytes; first come, first served
	capacity int
	onLoad   func() // called when load changed, by any goroutine; nil where no gateway's window follows it

	// onRecorded is called once a transaction is committed and synced; it does not block.
	onRecorded func([]Delivery, []Outcome)

	wake chan struct{} // holds one: the queue is not empty

	mu      sync.Mutex // covers what follows
	queue   []*entry
	pending map[blockKey]*entry // queued, or in the hands of run
	bytes   int                 // cost of pending
	load    load
	oldest  time.Time     // when the oldest of pending was received, as of the last look; zero where there is none
	waited  time.Duration // that the oldest had at the last look
	trouble error         // why the last transaction failed; nil after one that succeeded
	began   time.Time     // of the transaction that runs; zero when none does

	// Used by run only.
	decoder  *wire.Decoder
	arena    []touchline.Sample // the decoded samples of one batch
	failures int                // batches in a row that were not stored whole
}

// An entry is a delivery on its way into the store.
type entry struct {
	key      blockKey
	delivery Delivery
	cost     int
	to       receiver // covered by batcher.mu
	session  uint64   // that to is of; covered by batcher.mu
}

// A blockKey is what makes two deliveries the same block.
type blockKey struct {
	gateway string
	epoch   touchline.Epoch
	first   uint64
	count   uint32
	crc     uint32
}

func newBatcher(recorder Recorder, queueBytes int, stats *counters, logger *slog.Logger) *batcher {
	return &batcher{
		recorder: recorder, entrance: "receive", stats: stats, timing: defaultTiming, log: logger,
		room: semaphore.NewWeighted(int64(queueBytes)), capacity: queueBytes, onLoad: func() {}, onRecorded: func([]Delivery, []Outcome) {}, settled: func() {},
		wake: make(chan struct{}, 1), pending: map[blockKey]*entry{}, decoder: wire.NewDecoder(),
	}
}

// submit queues a delivery, whose block the batcher owns from then on. It
// waits while the queue is full; ctx ends the wait, and is then the only error.
func (b *batcher) submit(ctx context.Context, d Delivery, to receiver) error {
	cost := len(d.Block.Data) + blockOverhead
	if err := b.room.Acquire(ctx, int64(cost)); err != nil {
		return err
	}
	key := blockKey{d.Gateway, d.Block.Epoch, d.Block.First, d.Block.Count, d.Block.CRC}

	b.mu.Lock()
	if twin, ok := b.pending[key]; ok {
		// The newest session is told: one that it took over may still be reading
		// what had arrived, and nobody listens to it. One without a number is as new as it comes.
		told := to
		if d.Session >= twin.session || d.Session == 0 {
			told, twin.to, twin.session = twin.to, to, d.Session
		}
		b.mu.Unlock()
		b.stats.repeatsWaiting.Add(1)
		b.room.Release(int64(cost))
		told.forget(&d.Block)
		d.Trace.End(time.Now(), "a copy of it waits already")
		return nil
	}
	e := &entry{key: key, delivery: d, cost: cost, to: to, session: d.Session}
	b.pending[key] = e
	b.queue = append(b.queue, e)
	b.bytes += cost
	if d.Trace != nil {
		d.Trace.Passed(b.entrance, time.Now())
	}
	tell := b.weigh(time.Now())
	b.mu.Unlock()

	tell()
	b.signal()
	return nil
}

func (b *batcher) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// run records until stop is done, and then ends after the transaction at
// hand, which it cuts short when work is done. What is still queued then
// was acknowledged to nobody.
func (b *batcher) run(stop, work context.Context) {
	for {
		select {
		case <-stop.Done():
			return
		case <-b.wake:
		}
		for taken := b.take(); len(taken) > 0; taken = b.take() {
			b.record(stop, work, taken)
			if stop.Err() != nil {
				return
			}
		}
	}
}

// take removes the next batch from the queue: at least one entry where there is one.
func (b *batcher) take() []*entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, bytes, samples := 0, 0, 0
	for n < len(b.queue) && n < maxBatchBlocks {
		block := &b.queue[n].delivery.Block
		bytes += len(block.Data)
		samples += int(block.Count)
		if n > 0 && (bytes > maxBatchBytes || samples > maxBatchSamples) {
			break
		}
		n++
	}
	taken := append([]*entry(nil), b.queue[:n]...)
	rest := copy(b.queue, b.queue[n:])
	clear(b.queue[rest:])
	b.queue = b.queue[:rest]
	return taken
}

// A batch is entries and, in the same order, what the store gets of them.
type batch struct {
	entries    []*entry
	deliveries []Delivery
}

func (g batch) slice(from, to int) batch { return batch{g.entries[from:to], g.deliveries[from:to]} }
func (g batch) len() int                 { return len(g.entries) }

// those returns the ones that are marked.
func (g batch) those(marked []bool) (some batch) {
	for i := range g.entries {
		if marked[i] {
			some.entries, some.deliveries = append(some.entries, g.entries[i]), append(some.deliveries, g.deliveries[i])
		}
	}
	return some
}

// decode fills in the samples. It happens here and not on arrival, so that
// what waits costs two bytes a sample and not 96.
func (b *batcher) decode(entries []*entry) batch {
	if b.into != nil {
		g := batch{entries, make([]Delivery, len(entries))}
		for i, e := range entries {
			g.deliveries[i] = e.delivery
		}
		return g
	}
	samples := 0
	for _, e := range entries {
		samples += int(e.delivery.Block.Count)
	}
	if cap(b.arena) < samples {
		b.arena = make([]touchline.Sample, 0, samples)
	}
	arena := b.arena[:0]
	g := batch{entries, make([]Delivery, len(entries))}
	for i, e := range entries {
		d := e.delivery
		arena = d.decode(b.decoder, arena)
		g.deliveries[i] = d
	}
	b.arena = arena
	return g
}

// decode fills in the samples, which it appends to arena, or the problem.
func (d *Delivery) decode(decoder *wire.Decoder, arena []touchline.Sample) []touchline.Sample {
	from := len(arena)
	decoded, err := decoder.Decode(arena, d.Block.Data)
	switch {
	case err != nil:
		d.Problem = problemText(err)
	case len(decoded)-from != int(d.Block.Count):
		d.Problem = fmt.Sprintf("decode block: it has %d samples, its header says %d", len(decoded)-from, d.Block.Count)
	default:
		arena = decoded
		d.Samples = arena[from:len(arena):len(arena)]
		d.Clock = decoder.Attributes().Clock
	}
	return arena
}

// problemText bounds what a damaged block can put into the store and the log.
func problemText(err error) string { return fmt.Sprintf("%.300s", err.Error()) }

// record stores a batch, or puts back what could not be stored and pauses. It
// puts it behind what came meanwhile, so that a block that can't be stored is
// soon in the company of some that can, which is what shows that it is to blame.
func (b *batcher) record(stop, work context.Context, entries []*entry) {
	g := b.decode(entries)
	defer func() { clear(b.arena) }() // lets go of names and texts
	err := b.attempt(work, g)
	if stop.Err() != nil {
		return
	}
	if b.health(err); err == nil {
		b.failures = 0
		return
	}
	b.failures++
	b.stats.recordErrors.Add(1)
	if b.into == nil && b.failures >= isolateAfter && !errors.Is(err, ErrUnavailable) {
		if g = b.isolate(stop, work, g); g.len() == 0 {
			b.health(nil)
			b.failures = 0
			return
		}
	}
	b.mu.Lock()
	for _, e := range g.entries {
		if b.pending[e.key] == e { // the queue may hold some of them
			b.queue = append(b.queue, e)
		}
	}
	b.mu.Unlock()
	b.signal()

	d := b.timing.retryMax
	if doublings := b.failures - 1; doublings < 16 {
		d = min(d, b.timing.retryMin<<doublings)
	}
	pause(stop, d/2+rand.N(d/2+1))
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// attempt brings g to the next station: into the queue, or in one transaction
// into the store. An error means that nothing is known of g: it may be brought
// again, since repeats are harmless.
func (b *batcher) attempt(ctx context.Context, g batch) error {
	if b.into != nil {
		return b.publish(ctx, g)
	}
	began := time.Now()
	b.mu.Lock()
	b.began = began
	b.mu.Unlock()

	outcomes, err := b.recorder.Record(ctx, g.deliveries)
	now := time.Now()
	if err == nil && len(outcomes) != g.len() {
		err = fmt.Errorf("the record store gave %d outcomes for %d blocks", len(outcomes), g.len())
	}
	b.stats.recordSeconds.observe(now.Sub(began).Seconds())
	b.mu.Lock()
	b.began = time.Time{}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	traceBatch(g, "commit", began, now)
	b.weighed(g)
	waited(b.stats.storedLag, g.deliveries, now)
	b.count(g, outcomes, now)
	b.done(g.entries, func(e *entry, to receiver) { to.stored(&e.delivery.Block) })
	b.onRecorded(g.deliveries, outcomes)
	return nil
}

// publish brings g into the queue. No block is ever to blame there.
func (b *batcher) publish(ctx context.Context, g batch) error {
	began := time.Now()
	b.mu.Lock()
	b.began = began
	b.mu.Unlock()
	err := b.into.Publish(ctx, g.deliveries)
	b.stats.publishSeconds.observe(time.Since(began).Seconds())
	b.mu.Lock()
	b.began = time.Time{}
	b.mu.Unlock()
	var partly *PartlyHeldError
	if errors.As(err, &partly) {
		g = g.those(partly.Held)
	} else if err != nil {
		return err
	}
	now := time.Now()
	traceBatch(g, "publish", began, now)
	waited(b.stats.acceptedLag, g.deliveries, now)
	b.stats.blocksAccepted.Add(uint64(g.len()))
	b.done(g.entries, func(e *entry, to receiver) { to.accepted(&e.delivery.Block) })
	return err
}

// health keeps what Health reports, and logs its changes.
func (b *batcher) health(err error) {
	b.mu.Lock()
	before := b.trouble
	b.trouble = err
	waiting := len(b.pending)
	b.mu.Unlock()
	b.noteHealth()
	switch {
	case err != nil && before == nil:
		b.log.Error("the "+b.station()+" fails; blocks wait and are tried again", "error", err, "blocks_waiting", waiting)
	case err == nil && before != nil:
		b.log.Info("the "+b.station()+" works again", "blocks_waiting", waiting)
	}
}

// station is where blocks go from here.
func (b *batcher) station() string {
	if b.into != nil {
		return "queue"
	}
	return "record store"
}

// work is what is done with blocks here.
func (b *batcher) work() string {
	if b.into != nil {
		return "queue blocks"
	}
	return "record blocks"
}

// Health returns why blocks are not being stored now; nil where they are.
func (b *batcher) Health() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.trouble != nil {
		return fmt.Errorf("%s: %w", b.work(), b.trouble)
	}
	if !b.began.IsZero() && time.Since(b.began) > stalledAfter {
		return fmt.Errorf("%s: what began at %s has not ended", b.work(), b.began.UTC().Format(time.RFC3339))
	}
	return nil
}

func (b *batcher) count(g batch, outcomes []Outcome, now time.Time) {
	var age ages
	var blocks, samples, bytes, repeats, aside uint64
	var firstAside int
	for i, o := range outcomes {
		d := &g.deliveries[i]
		switch {
		case o.Repeat:
			repeats++
		case o.KeptAside || d.Samples == nil:
			if aside++; aside == 1 {
				firstAside = i
			}
		default:
			blocks++
			samples += uint64(d.Block.Count)
			bytes += uint64(len(d.Block.Data))
			age.observe(now.UnixNano(), d.Samples)
		}
	}
	if aside > 0 {
		d := &g.deliveries[firstAside]
		b.log.Warn("blocks are kept aside: stored, but not among the samples", "blocks", aside, "gateway", d.Gateway,
			"epoch", d.Block.Epoch, "first", d.Block.First, "count", d.Block.Count, "reason", outcomes[firstAside].Reason)
	}
	b.stats.blocksStored.Add(blocks)
	b.stats.samplesStored.Add(samples)
	b.stats.bytesStored.Add(bytes)
	b.stats.repeats.Add(repeats)
	b.stats.keptAside.Add(aside)
	b.stats.sampleAge.add(age.counts[:], age.sum)
}

// done takes entries out of the queue's account and tells their receivers.
func (b *batcher) done(entries []*entry, tell func(*entry, receiver)) {
	cost := 0
	receivers := make([]receiver, len(entries))
	b.mu.Lock()
	for i, e := range entries {
		delete(b.pending, e.key)
		receivers[i] = e.to
		cost += e.cost
	}
	b.bytes -= cost
	changed := b.weigh(time.Now())
	b.mu.Unlock()

	for i, e := range entries {
		tell(e, receivers[i])
	}
	traceDone(entries, receivers, time.Now())
	b.settled()
	b.room.Release(int64(cost))
	changed()
}

// waiting returns how much is queued or being recorded.
func (b *batcher) waiting() (bytes, blocks int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes, len(b.pending)
}
