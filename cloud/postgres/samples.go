package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline/cloud"
	"touchline/cloud/merge"
)

// errDropped says that a query may have missed samples.
var errDropped = errors.New("samples were dropped meanwhile that were kept long enough: ask again")

// errSwept says that a query may have missed samples.
var errSwept = errors.New("it took longer than a day, and the correction of a gateway's clock moved samples: ask again")

// Samples implements cloud.Archive. At most maxQueries run at once; further
// calls wait for a place or the end of ctx. No transaction is open while yield
// runs: what was stored at the beginning is told from what came later by a
// snapshot of the server that this reading keeps as a value.
func (s *Store) Samples(ctx context.Context, q cloud.Query, yield func(cloud.Record) error) error {
	select {
	case s.queries <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.queries }()
	return s.samples(ctx, q, nil, yield)
}

// samples are those of some gateways; nil is all.
func (s *Store) samples(ctx context.Context, q cloud.Query, only map[string]struct{}, yield func(cloud.Record) error) error {
	r := &reading{store: s}
	streams, err := r.begin(ctx, q)
	if err != nil {
		return fmt.Errorf("query samples: %w", err)
	}
	masks, err := s.masksFor(ctx, q)
	if err != nil {
		return fmt.Errorf("query samples: %w", err)
	}
	return merge.Samples(ctx, merge.Options{
		Query: q, Only: only, Masks: masks, Limits: s.limits, Streams: streams, Shelf: r, Counters: &s.counters, Log: s.logger,
	}, yield)
}

// A reading is the store as one query reads it. It implements merge.Shelf.
type reading struct {
	store    *Store
	snapshot string // pg_snapshot
	gateway  int64  // 0: any
}

// begin notes what is stored now, and returns the streams that may have
// samples for the query: one for each span class of each partition.
func (r *reading) begin(ctx context.Context, q cloud.Query) ([]merge.Stream, error) {
	if q.Gateway != "" {
		id, err := gatewayID(ctx, r.store.pool, q.Gateway)
		if errors.Is(err, errNotRegistered) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		r.gateway = id
	}
	from, to := int32(minHour), int32(maxHour)
	if q.From != nil {
		from = hourOf(*q.From)
	}
	if q.To != nil {
		to = hourOf(*q.To)
	}
	if from > to {
		return nil, nil
	}
	// One statement, so that the partitions and the snapshot are of one moment.
	rows, err := r.store.pool.Query(ctx, streamsQuery, from, to)
	if err != nil {
		return nil, err
	}
	var streams []merge.Stream
	var date time.Time
	var class, hour int
	_, err = pgx.ForEachRow(rows, []any{&r.snapshot, &date, &class, &hour}, func() error {
		streams = append(streams, merge.Stream{Part: int64(dayOf(date)), Class: class, Start: startOf(hour, class)})
		return nil
	})
	return streams, err
}

const streamsQuery = `
	SELECT pg_current_snapshot()::text, day, span, lower(hours * int4multirange(int4range($1, $2, '[]')))
	FROM part_hours WHERE hours && int4range($1, $2, '[]') ORDER BY day, span`

// startOf returns a time before which no block of the class begins that has
// samples of the hour, and none of an earlier hour that is wanted.
func startOf(hour, class int) int64 {
	if hour <= minHour || class >= 15 {
		return math.MinInt64
	}
	start, length := int64(hour)*hourNs, int64(1)<<(4*class)
	if start < math.MinInt64+length {
		return math.MinInt64
	}
	return start - length
}

// pageQuery asks one partition. Row values compare as the index is ordered, so
// each page is one seek. Rows that are missing in the other tables make a block
// that can't be read, and not one that is silently left out.
func pageQuery(d day) string {
	return `
	SELECT t.block, t.min_time, t.max_time, t.shift, t.vouched,
		coalesce(b.first, 0), coalesce(b.count, 0), coalesce(b.crc, 0), coalesce(b.received, 0), coalesce(b.filter, ''),
		coalesce(g.name, ''), coalesce(c.epoch, ''), CASE WHEN octet_length(b.data) <= $1 THEN b.data END
	FROM ` + d.table("place") + ` t
		LEFT JOIN ` + d.table("block") + ` b ON b.id = t.block
		LEFT JOIN cursor c ON c.id = b.cursor
		LEFT JOIN gateway g ON g.id = t.gateway
	WHERE t.span = $2 AND (t.min_time, t.block) > ($3, $4)
		AND t.min_time <= $5 AND t.max_time >= $6 AND ($7 = 0 OR t.gateway = $7)
		AND (t.era < $8 OR pg_visible_in_snapshot(t.xid, $9::text::pg_snapshot))
		AND (t.until IS NULL OR NOT pg_visible_in_snapshot(t.until, $9::text::pg_snapshot))
	ORDER BY t.min_time, t.block
	LIMIT $10`
}

// Page implements merge.Shelf.
func (r *reading) Page(ctx context.Context, s merge.Stream, want merge.Want) ([]merge.Block, error) {
	inline := want.InlineBytes
	if inline == 0 {
		inline = -1 // data of no bytes is none either
	}
	rows, err := r.store.pool.Query(ctx, pageQuery(day(s.Part)), inline, s.Class, want.Behind.Time, want.Behind.ID,
		want.Newest, want.From, r.gateway, r.store.era, r.snapshot, merge.PageBlocks)
	if err != nil {
		return nil, gone(err)
	}
	page := make([]merge.Block, 0, merge.PageBlocks)
	defer rows.Close()
	for rows.Next() {
		var b merge.Block
		var epoch, filter []byte
		if err := rows.Scan(&b.ID, &b.Span.From, &b.Span.To, &b.By.Shift, &b.By.Vouched, &b.First, &b.Count, &b.CRC, &b.Received, &filter,
			&b.Gateway, &epoch, &b.Data); err != nil {
			return nil, err
		}
		copy(b.Epoch[:], epoch)
		b.Filter = filter
		page = append(page, b)
	}
	return page, gone(rows.Err())
}

// Data implements merge.Shelf.
func (r *reading) Data(ctx context.Context, b *merge.Block) error {
	err := r.store.pool.QueryRow(ctx, `SELECT data FROM `+day(b.Part).table("block")+` WHERE id = $1`, b.ID).Scan(&b.Data)
	if errors.Is(err, pgx.ErrNoRows) {
		return merge.ErrGone
	}
	return gone(err)
}

func gone(err error) error {
	if isCode(err, codeUndefinedTable) {
		return errDropped
	}
	return err
}

// Complete implements merge.Shelf: it says whether rows that the query needed
// may have been swept.
func (r *reading) Complete(ctx context.Context) error {
	if r.snapshot == "" {
		return nil // there was nothing
	}
	var swept bool
	err := r.store.pool.QueryRow(ctx, `
		SELECT value::bigint >= pg_snapshot_xmin($1::text::pg_snapshot)::text::bigint FROM meta WHERE key = 'swept'`, r.snapshot).Scan(&swept)
	if err == nil && swept {
		err = errSwept
	}
	return err
}
