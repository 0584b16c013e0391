package sqlite

import (
	"context"
	"errors"
	"sync"
)

// snapshots are the versions of block_time that queries read at this moment.
type snapshots struct {
	mu sync.Mutex
	of map[*reading]int64
}

func (s *snapshots) keep(r *reading, version int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[*reading]int64)
	}
	s.of[r] = version
}

func (s *snapshots) drop(r *reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, r)
}

// errSwept says that a query may have missed samples.
var errSwept = errors.New("another process recorded the correction of a gateway's clock, and samples moved meanwhile: ask again")

// Complete implements merge.Shelf: it says whether rows that the query needed
// may have been deleted, by another process that did not know of it.
func (r *reading) Complete(ctx context.Context) error {
	var swept int64
	if err := r.store.read.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'swept'`).Scan(&swept); err != nil {
		return err
	}
	if swept > r.version {
		return errSwept
	}
	return nil
}
