package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"touchline/cloud"
	"touchline/cloud/merge"
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
	return s.samples(ctx, q, nil, yield)
}

// samples are those of some gateways; nil is all.
func (s *Store) samples(ctx context.Context, q cloud.Query, only map[string]struct{}, yield func(cloud.Record) error) error {
	r := &reading{store: s}
	defer s.snapshots.drop(r)
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

// A reading is the file as one query reads it. It implements merge.Shelf.
type reading struct {
	store    *Store
	snapshot int64 // highest block id
	version  int64 // of block_time
	gateway  int64 // 0: any
}

// begin notes what is stored now, and returns the streams that it is in: one
// for each span class.
func (r *reading) begin(ctx context.Context, q cloud.Query) ([]merge.Stream, error) {
	s := r.store
	s.snapshots.keep(r, 0) // all, until its version is known
	row := s.read.QueryRowContext(ctx, `SELECT (SELECT coalesce(max(id), 0) FROM block), value FROM meta WHERE key = 'corrections'`)
	if err := row.Scan(&r.snapshot, &r.version); err != nil {
		return nil, err
	}
	s.snapshots.keep(r, r.version)
	if r.snapshot == 0 {
		return nil, nil
	}
	if q.Gateway != "" {
		err := s.read.QueryRowContext(ctx, `SELECT id FROM gateway WHERE name = ?`, q.Gateway).Scan(&r.gateway)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	return s.streams(ctx)
}

// Data implements merge.Shelf.
func (r *reading) Data(ctx context.Context, b *merge.Block) error {
	err := r.store.read.QueryRowContext(ctx, `SELECT data FROM block WHERE id = ?`, b.ID).Scan(&b.Data)
	if errors.Is(err, sql.ErrNoRows) {
		return merge.ErrGone
	}
	return err
}
