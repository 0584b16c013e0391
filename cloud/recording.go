package cloud

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline/cloud/tracing"
	"touchline/wire"
)

// A Recording brings what a queue holds into the record store: in a node, beside
// its Server, or in a process of its own. Any number of them may run on one
// queue, each with its own handle of the record store. A block leaves the queue after the
// transaction that holds it is committed and synced, and never before; one that
// comes twice is a repeat in the store's cursor.
//
// It is made by New or Server.Recording, and lives in Run, which ends with its
// context.
type Recording struct {
	source  Source
	bus     Bus // nil is none
	batcher *batcher
	stats   *counters
	log     *slog.Logger
	tracer  *tracing.Tracer // nil: none; set before Run

	// Used by the batcher's goroutine only: what the transaction at hand stored.
	tickets []Ticket
	stored  map[string][]wire.EpochRanges // by gateway
}

// RecordingOptions are the settings of a Recording in a process of its own.
type RecordingOptions struct {
	QueueBytes int // of blocks are in its memory at most
	Bus        Bus // takes what it recorded to viewers; nil is none
}

// NewRecording returns a Recording for a process of its own.
func NewRecording(store Recorder, source Source, opts RecordingOptions, logger *slog.Logger) *Recording {
	r := newRecording(store, source, opts.QueueBytes, newCounters(), logger)
	if opts.Bus != nil {
		r.bus, r.batcher.onRecorded = opts.Bus, publishTo(opts.Bus)
	}
	return r
}

// Recording returns one that records into the server's store, and whose figures
// are in the server's Stats. Nothing else may call the store's Record then.
func (s *Server) Recording(source Source) *Recording {
	r := newRecording(s.store, source, s.opts.QueueBytes, s.stats, s.log).Trace(s.opts.Tracer)
	r.batcher.onRecorded = publishTo(s.live.bus)
	return r
}

// Trace has r follow the blocks that nodes began to follow. Call it before Run.
func (r *Recording) Trace(tracer *tracing.Tracer) *Recording {
	r.tracer = tracer
	return r
}

func newRecording(store Recorder, source Source, queueBytes int, stats *counters, logger *slog.Logger) *Recording {
	r := &Recording{source: source, stats: stats, log: logger, stored: map[string][]wire.EpochRanges{}}
	r.batcher = newBatcher(store, queueBytes, stats, logger)
	r.batcher.settled, r.batcher.onLoad = r.settle, nil
	r.batcher.entrance = "take"
	return r
}

// Run records until ctx is done, and then returns nil when the transaction at
// hand has ended and nothing uses store and source any more. What it had taken
// and not recorded goes back to the queue.
func (r *Recording) Run(ctx context.Context) error {
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer cut()
		r.batcher.run(ctx, work)
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		pause(work, r.batcher.timing.shutdown)
		cut()
		return nil
	})
	group.Go(func() error { r.batcher.watch(ctx); return nil })
	group.Go(func() error { return r.source.Take(ctx, r.take) })
	err := group.Wait()
	r.giveBack()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (r *Recording) take(ctx context.Context, d Delivery, t Ticket) error {
	if d.Again {
		r.stats.queue.redelivered.Add(1)
	}
	d.Trace = r.tracer.Resume(d.Trace, time.Now())
	return r.batcher.submit(ctx, d, &taken{r, d.Gateway, d.Accepted, t})
}

// settle tells who waits, and only then lets the queue forget: a process that
// dies in between leaves what comes again, is a repeat and is told of then.
func (r *Recording) settle() {
	for gateway, stored := range r.stored {
		if err := r.source.Tell(gateway, stored); err != nil {
			r.log.Debug("a notice of what is stored was not sent; the gateway's node asks the record store", "gateway", gateway, "error", err)
		}
	}
	clear(r.stored)
	for _, t := range r.tickets {
		t.Done()
	}
	clear(r.tickets)
	r.tickets = r.tickets[:0]
}

// giveBack returns what was not recorded, so that others need not wait until
// the queue misses it. The batcher has ended.
func (r *Recording) giveBack() {
	for _, e := range r.batcher.pending {
		e.to.(*taken).ticket.Return()
	}
}

// Health returns why blocks are not being recorded now; nil where they are.
func (r *Recording) Health() error { return r.batcher.Health() }

// Stats returns a copy of what is counted. What only a Server has is zero.
func (r *Recording) Stats() Stats {
	var st Stats
	r.stats.fill(&st)
	st.QueueBytes, st.QueueBlocks = r.batcher.waiting()
	return st
}

// taken is the receiver of a block that came out of the queue.
type taken struct {
	r       *Recording
	gateway string
	since   time.Time // when the queue held it; zero is not known
	ticket  Ticket
}

func (t *taken) stored(b *wire.Block) {
	list := t.r.stored[t.gateway]
	addRange(&list, b.Epoch, b.Range())
	t.r.stored[t.gateway] = list
	t.r.tickets = append(t.r.tickets, t.ticket)
	if !t.since.IsZero() {
		t.r.stats.queue.acceptedToStored.observe(max(0, time.Since(t.since).Seconds()))
	}
}

// forget: it came once more, and the newer ticket counts.
func (t *taken) forget(*wire.Block) {}

// refuse: to keep it would hold up the queue for good.
func (t *taken) refuse(*wire.Block) {
	t.r.stats.queueRefused.Add(1)
	t.ticket.Drop()
}

func (t *taken) accepted(*wire.Block) {
	panic("BUG: a block that came out of the queue went into a queue")
}
