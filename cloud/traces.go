package cloud

import (
	"slices"
	"sync"
	"time"

	"touchline"
	"touchline/cloud/tracing"
	"touchline/wire"
)

// The trace of a block has these stages, with the time that it waited between them:
//
//	block    at the node: from its arrival until the ack that says stored is written
//	  receive   its check, and room in memory
//	  commit    the transaction that it is in, sync included; or, where there is a queue,
//	  publish   the batch into the queue that it is in
//	  accepted  the ack that says so, until it is written
//	  record    at the recorder: from its coming out of the queue until it is stored
//	    take    room in memory
//	    commit
//	  ack       the ack that says stored, until it is written

// A followed block waits for an ack about it.
type followed struct {
	trace *tracing.Block
	epoch touchline.Epoch
	span  touchline.Range
}

// maxFollowed bounds those of one session; of more the trace ends without the ack.
const maxFollowed = 64

// noAck is what became of a block whose session ended.
const noAck = "the session ended before its ack"

// follows are the blocks of one session that are followed. Its zero value is ready,
// and nil has none.
type follows struct {
	mu      sync.Mutex // covers what follows
	held    []followed // accepted, and not known to be stored
	acked   []followed // whose ack waits to be written
	waiting []followed // of which accepted waits to be written
	ended   bool       // the session has
}

// following returns the session's follows, which idle sessions don't have.
func (s *session) following() *follows {
	s.follows.CompareAndSwap(nil, new(follows))
	return s.follows.Load()
}

// A tracedReceiver is told of blocks that are followed, after it was told what became of
// them. It is implemented by receivers.
type tracedReceiver interface {
	traced(d *Delivery, now time.Time)
}

// begin begins the trace of a block that arrived.
func (s *session) begin(d *Delivery) *tracing.Block {
	b := &d.Block
	return s.in.opts.Tracer.Begin(d.Received, tracing.String("touchline.gateway", d.Gateway), tracing.Int("touchline.session", int64(d.Session)),
		tracing.String("touchline.epoch", b.Epoch.String()), tracing.Int("touchline.first", int64(b.First)), tracing.Int("touchline.samples", int64(b.Count)),
		tracing.Int("touchline.bytes", int64(len(b.Data))), tracing.Bool("touchline.backlog", d.Lane == wire.Backlog))
}

// traced implements tracedReceiver.
func (s *session) traced(d *Delivery, now time.Time) {
	b, f := followed{d.Trace, d.Block.Epoch, d.Block.Range()}, s.following()
	f.mu.Lock()
	switch {
	case f.ended:
		f.mu.Unlock()
		b.trace.End(now, noAck)
		return
	case len(f.held)+len(f.acked)+len(f.waiting) >= maxFollowed:
		f.mu.Unlock()
		b.trace.End(now, "")
		return
	}
	if s.in.queue != nil {
		f.waiting = append(f.waiting, b)
	} else {
		f.acked = append(f.acked, b)
	}
	f.mu.Unlock()
	if s.in.queue != nil && !s.due.holds(&d.Block) { // its notice overtook this
		f.heardStored([]wire.EpochRanges{{Epoch: d.Block.Epoch, Ranges: touchline.Ranges{d.Block.Range()}}})
	}
	s.out.nudge()
}

// heardStored moves those of list to the acks that wait.
func (f *follows) heardStored(list []wire.EpochRanges) {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, from := range []*[]followed{&f.held, &f.waiting} {
		*from = slices.DeleteFunc(*from, func(b followed) bool {
			stored := slices.ContainsFunc(list, func(er wire.EpochRanges) bool { return er.Epoch == b.epoch && er.Ranges.Contains(b.span) })
			if stored {
				f.acked = append(f.acked, b)
			}
			return stored
		})
	}
}

// take returns those whose acks are in the outbox already, stored and accepted.
func (f *follows) take() (stored, accepted []followed) {
	if f == nil {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	stored, accepted = f.acked, f.waiting
	f.acked = nil
	f.held, f.waiting = append(f.held, accepted...), nil
	return stored, accepted
}

// traceAcks tells of acks that were written, or, with err, were not.
func traceAcks(stored, accepted []followed, err error) {
	if len(stored)+len(accepted) == 0 {
		return
	}
	now, problem := time.Now(), ""
	if err != nil {
		problem = "its ack can't be written"
	}
	for _, b := range accepted {
		b.trace.Passed("accepted", now)
	}
	for _, b := range stored {
		b.trace.Passed("ack", now)
		b.trace.End(now, problem)
	}
}

// end ends the traces of a session that ends.
func (f *follows) end(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, list := range [][]followed{f.held, f.acked, f.waiting} {
		for _, b := range list {
			b.trace.End(now, noAck)
		}
	}
	f.held, f.acked, f.waiting, f.ended = nil, nil, nil, true
}

// traced implements tracedReceiver.
func (t *taken) traced(d *Delivery, now time.Time) { d.Trace.End(now, "") }

// traceBatch tells of a batch that arrived where it was brought.
func traceBatch(g batch, stage string, began, ended time.Time) {
	for i := range g.deliveries {
		if t := g.deliveries[i].Trace; t != nil {
			t.Stage(stage, began, ended, tracing.Int("touchline.batch_blocks", int64(g.len())))
		}
	}
}

// traceDone hands the traces of a batch to those who were told of it.
func traceDone(entries []*entry, receivers []receiver, now time.Time) {
	for i, e := range entries {
		if e.delivery.Trace == nil {
			continue
		}
		if to, ok := receivers[i].(tracedReceiver); ok {
			to.traced(&e.delivery, now)
		} else {
			e.delivery.Trace.End(now, "")
		}
	}
}
