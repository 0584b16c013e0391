package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// Samples implements cloud.Archive. At most maxQueries run at once; further
// calls wait for a place or the end of ctx. No statement is open while yield
// runs.
//
// A stored block that can't be read any more does not end the query: the
// samples of all others are yielded, and then the error names the block, so
// that an incomplete result is never taken for a whole one.
func (s *Store) Samples(ctx context.Context, q cloud.Query, yield func(cloud.Record) error) error {
	select {
	case s.queries <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.queries }()

	r, err := s.newReading(ctx, q)
	defer s.snapshots.drop(r)
	if err != nil {
		return fmt.Errorf("query samples: %w", err)
	}
	for again := !r.empty; again; {
		if again, err = r.pass(ctx, yield); err != nil {
			return err
		}
	}
	if err := r.swept(ctx); err != nil {
		return err
	}
	return r.damage.err()
}

// A reading is the work on one query: passes over the blocks in the order of
// their oldest sample. A sample is yielded as soon as no later block can hold
// an older one, so where blocks follow one another in time each is read once.
// Where so many overlap that the selection is full, it gives up its upper
// half, and the next pass begins behind the last sample that was yielded.
type reading struct {
	store    *Store
	query    cloud.Query
	snapshot int64 // highest block id
	version  int64 // of block_time
	newest   int64 // time above which nothing is selected
	gateway  int64 // 0: any
	classes  []int // of blocks, that exist
	empty    bool  // nothing can match

	names     []uint64 // hashes that a block's filter must have
	selection selection
	decoder   *wire.Decoder
	decoded   []touchline.Sample
	damage    damage
}

func (s *Store) newReading(ctx context.Context, q cloud.Query) (*reading, error) {
	r := &reading{store: s, query: q, newest: math.MaxInt64, selection: selection{limits: s.limits}, decoder: wire.NewDecoder()}
	r.damage = damage{store: s}
	if q.Sensor != "" {
		r.names = append(r.names, sensorHash(q.Sensor))
	}
	if q.Metric != "" {
		r.names = append(r.names, metricHash(q.Metric))
	}
	s.snapshots.keep(r, 0) // all, until its version is known
	row := s.read.QueryRowContext(ctx, `SELECT (SELECT coalesce(max(id), 0) FROM block), value FROM meta WHERE key = 'corrections'`)
	if err := row.Scan(&r.snapshot, &r.version); err != nil {
		return r, err
	}
	s.snapshots.keep(r, r.version)
	r.empty = r.snapshot == 0
	if q.To != nil {
		r.empty = r.empty || *q.To == math.MinInt64 || q.From != nil && *q.From >= *q.To
		r.newest = *q.To - 1
	}
	if q.Gateway != "" {
		err := s.read.QueryRowContext(ctx, `SELECT id FROM gateway WHERE name = ?`, q.Gateway).Scan(&r.gateway)
		if errors.Is(err, sql.ErrNoRows) {
			r.empty = true
		} else if err != nil {
			return r, err
		}
	}
	var err error
	r.classes, err = s.spanClasses(ctx)
	return r, err
}

// from returns the time before which this pass wants nothing.
func (r *reading) from() int64 {
	from := int64(math.MinInt64)
	if r.query.From != nil {
		from = *r.query.From
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
			if err := sel.yieldBefore(b.minTime, yield); err != nil {
				return false, err
			}
			sel.makeRoom()
		}
		if sel.endsBefore(b.minTime) {
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
func (r *reading) take(ctx context.Context, b *storedBlock) error {
	if b.Data == nil {
		err := r.store.read.QueryRowContext(ctx, `SELECT data FROM block WHERE id = ?`, b.id).Scan(&b.Data)
		if errors.Is(err, sql.ErrNoRows) {
			r.damage.add(b, errors.New("its row is gone"))
			return nil
		}
		if err != nil {
			return fmt.Errorf("read block %d: %w", b.id, err)
		}
	}
	var err error
	if r.decoded, err = decode(r.decoder, r.decoded[:0], &b.Block); err != nil {
		r.damage.add(b, err)
		return nil
	}
	r.store.decoded.Add(1)
	clock := r.decoder.Attributes().Clock
	b.by.Apply(r.decoded)
	// The times are not in the CRC, and a wrong one would break the order.
	if minTime, maxTime := timeSpan(r.decoded); minTime != b.minTime || maxTime != b.maxTime {
		r.damage.add(b, fmt.Errorf("it is found at %d to %d ns where its samples are of %d to %d", b.minTime, b.maxTime, minTime, maxTime))
		return nil
	}
	q := &r.query
	for i := range r.decoded {
		sample := &r.decoded[i]
		if q.From != nil && sample.Time < *q.From || sample.Time > r.newest ||
			q.Sensor != "" && sample.Sensor != q.Sensor || q.Metric != "" && sample.Metric != q.Metric {
			continue
		}
		r.selection.add(held{sample: *sample, note: b.by.Note(clock, sample.Stamped), source: b.source, seq: b.First + uint64(i)})
	}
	return nil
}

// decode appends the samples of a stored block to dst, or says why it can't
// be read any more.
func decode(d *wire.Decoder, dst []touchline.Sample, b *wire.Block) ([]touchline.Sample, error) {
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
	store *Store
	seen  map[int64]struct{} // block ids, so that a second pass does not count again
	names []string           // the first of them, for the error
}

const (
	maxDamageSeen  = 65536 // ids: 1 MB or so; beyond it blocks may be counted twice
	maxDamageNames = 5
)

func (d *damage) add(b *storedBlock, err error) {
	if _, ok := d.seen[b.id]; ok {
		return
	}
	if d.seen == nil {
		d.seen = make(map[int64]struct{})
	}
	if len(d.seen) < maxDamageSeen {
		d.seen[b.id] = struct{}{}
	}
	d.store.damaged.Add(1)
	d.store.logger.Error("stored block can't be read: restore it from a backup", "block", b.id,
		"gateway", b.source.gateway, "epoch", b.Epoch.String(), "first", b.First, "count", b.Count, "error", err)
	if len(d.names) < maxDamageNames {
		d.names = append(d.names, fmt.Sprintf("block %d (gateway %s, epoch %s, numbers %d to %d): %v",
			b.id, b.source.gateway, b.Epoch, b.First, b.Last(), err))
	}
}

// err returns nil where all was read.
func (d *damage) err() error {
	if len(d.seen) == 0 {
		return nil
	}
	return fmt.Errorf("samples are incomplete: %d stored blocks can't be read: %s", len(d.seen), strings.Join(d.names, "; "))
}
