package cloud

import (
	"context"

	"touchline/wire"
)

// A Queue stands between ingest and the record store, so that receiving goes on
// while recording does not, and any node can take any gateway. cloud/jetstream
// is one.
//
// Publish returns nil when the queue holds each block of batch safely: synced,
// and replicated where it is a cluster. The gateway is then told accepted, and
// keeps the block. An error means that nothing is known of the batch, but for what
// a PartlyHeldError says; it is published again, and a copy more in the queue is a
// repeat in the record store. A queue that is full is an error. Publish is called by
// one goroutine at a time.
//
// Hear calls stored with what the recorders say is stored of a gateway, at
// whichever node and in whichever process, until silence is called. It is a
// courtesy: what it does not tell is asked of the record store. stored must not
// block.
type Queue interface {
	Publish(ctx context.Context, batch []Delivery) error
	Hear(gateway string, stored func([]wire.EpochRanges)) (silence func(), err error)
}

// A PartlyHeldError says that the queue holds some blocks of a batch, as it would be
// without the others: where it has parts one of them may be full.
type PartlyHeldError struct {
	Held []bool // for each block of the batch
	Err  error  // what became of the others
}

// Error implements error.
func (e *PartlyHeldError) Error() string { return e.Err.Error() }

// Unwrap returns what became of the others.
func (e *PartlyHeldError) Unwrap() error { return e.Err }

// A Source is a queue as those see it who record what it holds.
//
// Take calls take with each delivery, samples not decoded, until ctx is done,
// and then returns nil. It is called by several goroutines at a time, and may
// wait. Order promises nothing, and each may come again until its ticket is
// done: one that was taken by a process that died does.
//
// Tell says to all nodes what is stored of a gateway, without waiting.
type Source interface {
	Take(ctx context.Context, take func(context.Context, Delivery, Ticket) error) error
	Tell(gateway string, stored []wire.EpochRanges) error
}

// A Ticket ends a delivery's time in a Source. Its methods don't wait, and
// where one has no effect the delivery comes again.
type Ticket interface {
	Done()   // it is committed and synced
	Return() // another may have it now
	Drop()   // it can't be recorded; its gateway has it still
}
