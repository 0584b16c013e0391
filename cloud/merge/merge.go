// Package merge answers a query from stored blocks: it yields their samples in
// the order of time, whatever the order in which blocks came and however they
// overlap, each block read once where they follow one another, in memory that
// does not grow with the result. What is the store's own, where blocks are
// found and read, it asks of a Shelf. It has no goroutine and nothing to end.
package merge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A Shelf is where a store keeps its blocks, as they were when the query began.
type Shelf interface {
	// Page returns the next blocks of a stream, at most PageBlocks, in the order
	// of Span.From, ties by ID: those behind want.Behind that begin at or before
	// want.Newest and end at or after want.From. Fewer than PageBlocks means that
	// there are no more. No transaction is open when it returns.
	Page(ctx context.Context, s Stream, want Want) ([]Block, error)
	// Data reads what Page left out of a block. ErrGone says that it is not there.
	Data(ctx context.Context, b *Block) error
	// Complete returns an error where blocks may have been missed since the
	// query began. It is called once, at the end.
	Complete(ctx context.Context) error
}

// ErrGone is the error of Shelf.Data for a block whose row is missing.
var ErrGone = errors.New("its row is gone")

// A Stream is a part of the blocks that has an order of its own.
type Stream struct {
	Class int   // no block of it has another Span.Class
	Part  int64 // the store's own
	Start int64 // no block of it that the query wants begins before
}

// Want says which blocks of a stream are wanted.
type Want struct {
	Behind       Place // the last one that was handed out
	From, Newest int64
	InlineBytes  int // up to which size data is to be read along; 0: none
}

// A Place is a block's in the order of its stream. IDs begin at 1.
type Place struct{ Time, ID int64 }

const (
	// PageBlocks is how many blocks are read at a time: with 17 classes
	// at most and inlineBytes a block, 4.5 MB in the worst case, and
	// one class with 256 KB in the usual one.
	PageBlocks = 64
	// inlineBytes is up to which size data is read along with its row,
	// which then has most of it in its own page. Larger data is read when
	// it is needed.
	inlineBytes = 4096
)

// A Block is a stored block as the store's index has it.
type Block struct {
	wire.Block // Data is nil where it was not read along
	ID         int64
	Part       int64 // the Stream's
	Gateway    string
	Received   int64            // ns since the Unix epoch
	Span       Span             // of its samples, corrected
	By         cloud.Correction // that is in force
	Filter     NameFilter
	source     *source
}

// A source is where samples come from. It is shared by what comes from there,
// and apart from the block so that a held sample does not hold its block.
type source struct {
	gateway  string
	epoch    touchline.Epoch
	received int64
}

// Counters count over all queries of a store.
type Counters struct {
	Decoded atomic.Uint64 // blocks
	Damaged atomic.Uint64 // blocks that could not be read any more, once for each query
}

// Options are the parts of one query.
type Options struct {
	Query    cloud.Query
	Only     map[string]struct{} // gateways; nil: all
	Masks    []cloud.Mask        // that were in force when the query began, at least those that concern it
	Limits   Limits
	Streams  []Stream
	Shelf    Shelf
	Counters *Counters
	Log      *slog.Logger
}

// Samples yields the samples of the streams that the query selects; of its
// gateway the streams must be already. A stored block that can't be read any
// more does not end it: the samples of all others are yielded, and then the
// error names the block, so that an incomplete result is never taken for a
// whole one.
func Samples(ctx context.Context, o Options, yield func(cloud.Record) error) error {
	r := newReading(o)
	for again := !r.empty; again; {
		var err error
		if again, err = r.pass(ctx, yield); err != nil {
			return err
		}
	}
	if err := o.Shelf.Complete(ctx); err != nil {
		return fmt.Errorf("query samples: %w", err)
	}
	return r.damage.err()
}

// A reading is the work on one query: passes over the blocks in the order of
// their oldest sample. A sample is yielded as soon as no later block can hold
// an older one, so where blocks follow one another in time each is read once.
// Where so many overlap that the selection is full, it gives up its upper
// half, and the next pass begins behind the last sample that was yielded.
type reading struct {
	Options
	newest int64 // time above which nothing is selected
	empty  bool  // nothing can match

	names     []uint64 // hashes that a block's filter must have
	masks     masks
	selection selection
	decoder   *wire.Decoder
	decoded   []touchline.Sample
	damage    damage
}

func newReading(o Options) *reading {
	q := o.Query
	r := &reading{Options: o, newest: math.MaxInt64, masks: newMasks(o.Masks),
		selection: selection{limits: o.Limits}, decoder: wire.NewDecoder()}
	r.damage = damage{counters: o.Counters, log: o.Log}
	if q.Sensor != "" {
		r.names = append(r.names, sensorHash(q.Sensor))
	}
	if q.Metric != "" {
		r.names = append(r.names, metricHash(q.Metric))
	}
	if q.To != nil {
		r.empty = *q.To == math.MinInt64 || q.From != nil && *q.From >= *q.To
		r.newest = *q.To - 1
	}
	return r
}

// from returns the time before which this pass wants nothing.
func (r *reading) from() int64 {
	from := int64(math.MinInt64)
	if r.Query.From != nil {
		from = *r.Query.From
	}
	if r.selection.started {
		from = max(from, r.selection.last.time)
	}
	return from
}

// pass yields what it can in one scan, and says whether another is needed.
func (r *reading) pass(ctx context.Context, yield func(cloud.Record) error) (again bool, err error) {
	sel := &r.selection
	scan := r.scan(r.from())
	for {
		b, err := scan.next(ctx)
		if err != nil {
			return false, fmt.Errorf("query samples: %w", err)
		}
		if b == nil {
			break
		}
		if sel.due() {
			if err := sel.yieldBefore(b.Span.From, yield); err != nil {
				return false, err
			}
			sel.makeRoom()
		}
		if sel.endsBefore(b.Span.From) {
			break
		}
		if err := r.take(ctx, b); err != nil {
			return false, fmt.Errorf("query samples: %w", err)
		}
	}
	again = sel.bounded
	return again, sel.yieldAll(yield)
}

// take puts the block's samples that the query selects into the selection.
func (r *reading) take(ctx context.Context, b *Block) error {
	if b.Data == nil {
		err := r.Shelf.Data(ctx, b)
		if errors.Is(err, ErrGone) {
			r.damage.add(b, err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read block %d: %w", b.ID, err)
		}
	}
	var err error
	if r.decoded, err = Decode(r.decoder, r.decoded[:0], &b.Block); err != nil {
		r.damage.add(b, err)
		return nil
	}
	r.Counters.Decoded.Add(1)
	clock := r.decoder.Attributes().Clock
	b.By.Apply(r.decoded)
	// The times are not in the CRC, and a wrong one would break the order.
	if is := SpanOf(r.decoded); is != b.Span {
		r.damage.add(b, fmt.Errorf("it is found at %d to %d ns where its samples are of %d to %d", b.Span.From, b.Span.To, is.From, is.To))
		return nil
	}
	q, veil := &r.Query, veil{masks: r.masks, block: b}
	for i := range r.decoded {
		sample := &r.decoded[i]
		if q.From != nil && sample.Time < *q.From || sample.Time > r.newest ||
			q.Sensor != "" && sample.Sensor != q.Sensor || q.Metric != "" && sample.Metric != q.Metric {
			continue
		}
		seq := b.First + uint64(i)
		by := veil.hides(sample, seq)
		if by != 0 && !q.Replaced {
			continue
		}
		r.selection.add(held{sample: *sample, note: b.By.Note(clock, sample.Stamped), source: b.source, seq: seq, replacedBy: by})
	}
	return nil
}

// Decode appends the samples of a stored block to dst, or says why it can't
// be read any more.
func Decode(d *wire.Decoder, dst []touchline.Sample, b *wire.Block) ([]touchline.Sample, error) {
	if err := b.Check(); err != nil {
		return dst, err
	}
	samples, err := d.Decode(dst, b.Data)
	if err != nil {
		return dst, err
	}
	if len(samples) != int(b.Count) {
		return dst, fmt.Errorf("it decodes to %d samples where its count is %d", len(samples), b.Count)
	}
	return samples, nil
}

// A damage remembers the blocks that a query could not read.
type damage struct {
	counters *Counters
	log      *slog.Logger
	seen     map[int64]struct{} // block ids, so that a second pass does not count again
	names    []string           // the first of them, for the error
}

const (
	maxDamageSeen  = 65536 // ids: 1 MB or so; beyond it blocks may be counted twice
	maxDamageNames = 5
)

func (d *damage) add(b *Block, err error) {
	if _, ok := d.seen[b.ID]; ok {
		return
	}
	if d.seen == nil {
		d.seen = make(map[int64]struct{})
	}
	if len(d.seen) < maxDamageSeen {
		d.seen[b.ID] = struct{}{}
	}
	d.counters.Damaged.Add(1)
	d.log.Error("stored block can't be read: restore it from a backup", "block", b.ID,
		"gateway", b.Gateway, "epoch", b.Epoch.String(), "first", b.First, "count", b.Count, "error", err)
	if len(d.names) < maxDamageNames {
		d.names = append(d.names, fmt.Sprintf("block %d (gateway %s, epoch %s, numbers %d to %d): %v",
			b.ID, b.Gateway, b.Epoch, b.First, b.Last(), err))
	}
}

// err returns nil where all was read.
func (d *damage) err() error {
	if len(d.seen) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d stored blocks can't be read: %s", cloud.ErrIncomplete, len(d.seen), strings.Join(d.names, "; "))
}
