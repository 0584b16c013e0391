package buffer

import (
	"context"
	"math"
	"slices"
	"sort"
)

// storedTable has what the cloud called stored and the file still holds. A
// row is a run of keys from the first of a block to the last of one; running_ms
// is when it was noted, and the rest is what its blocks add up to. It is
// written once a tick, not at each acknowledgement: a mark that a power cut
// takes means that a block is sent again.
const storedTable = `
CREATE TABLE stored (
	first      INTEGER PRIMARY KEY,
	last       INTEGER NOT NULL,
	running_ms INTEGER NOT NULL,
	blocks     INTEGER NOT NULL,
	samples    INTEGER NOT NULL,
	data_bytes INTEGER NOT NULL
) STRICT;
`

// maxMarks bounds the runs that are remembered, 56 bytes each: 224 KiB. They
// are few, since a cloud stores what follows one another; where it does not,
// the oldest are forgotten before their time.
const maxMarks = 4096

// markSlots is into how many steps the time for which blocks are kept is
// divided: what is stored within one step is one run.
const markSlots = 32

// A mark is a run of keys that the cloud stored, from the first of a block to
// the last of one. Between its blocks there may be holes.
type mark struct {
	first, last int64
	at          int64 // running ms, rounded up to a step
	totals            // of its blocks
}

// marks are sorted, and disjoint.
type marks []mark

// from returns the index of the first mark that ends at key or behind it.
func (m marks) from(key int64) int {
	return sort.Search(len(m), func(i int) bool { return m[i].last >= key })
}

// end returns the last key up to which all that follows first is stored; ok is
// false where last is behind that.
func (m marks) end(first, last int64) (end int64, ok bool) {
	i := m.from(first)
	if i == len(m) || m[i].first > first {
		return 0, false
	}
	for ; i+1 < len(m) && m[i+1].first == m[i].last+1; i++ {
	}
	return m[i].last, last <= m[i].last
}

// gaps calls use for each part of a run that is not in a mark, until it
// returns false.
func (m marks) gaps(first, last int64, use func(first, last int64) bool) {
	for i := m.from(first); first <= last; i++ {
		if i == len(m) || m[i].first > last {
			use(first, last)
			return
		}
		if m[i].first > first && !use(first, m[i].first-1) {
			return
		}
		first = m[i].last + 1
	}
}

// add puts a run where none of its keys is marked. A neighbour of the same
// time takes it in.
func (m *marks) add(k mark) {
	i := m.from(k.first)
	if i < len(*m) && (*m)[i].first == k.last+1 && (*m)[i].at == k.at {
		k.last = (*m)[i].last
		k.totals.add((*m)[i].totals)
		*m = slices.Delete(*m, i, i+1)
	}
	if i > 0 && (*m)[i-1].last+1 == k.first && (*m)[i-1].at == k.at {
		before := &(*m)[i-1]
		before.last = k.last
		before.totals.add(k.totals)
		return
	}
	*m = slices.Insert(*m, i, k)
}

// oldest returns the index of the mark that was made first; there is one.
func (m marks) oldest() int {
	oldest := 0
	for i := range m {
		if m[i].at < m[oldest].at {
			oldest = i
		}
	}
	return oldest
}

// sum returns what all blocks that are marked add up to.
func (m marks) sum() (all totals) {
	for i := range m {
		all.add(m[i].totals)
	}
	return all
}

// loadMarks reads the table. Marks that can't be are no damage: without them
// blocks are sent again.
func (s *store) loadMarks(ctx context.Context) (marks, error) {
	rows, err := s.conn.QueryContext(ctx, "SELECT first, last, running_ms, blocks, samples, data_bytes FROM stored ORDER BY first")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all marks
	for rows.Next() {
		var k mark
		if err := rows.Scan(&k.first, &k.last, &k.at, &k.blocks, &k.samples, &k.bytes); err != nil {
			return nil, err
		}
		k.bytes += k.blocks * blockOverheadBytes
		if k.first > k.last || k.blocks < 1 || k.samples < 1 || k.bytes < 1 || len(all) > 0 && k.first <= all[len(all)-1].last {
			return nil, rows.Close()
		}
		all = append(all, k)
	}
	return all, rows.Err()
}

// saveMarks makes the table what the marks are. saved is what it has; nil is
// not known.
func (t *txn) saveMarks(saved *marks) error {
	s, ctx := t.b.store, context.Background()
	have := make(map[int64]mark)
	if saved == nil {
		if _, err := s.deleteMark.ExecContext(ctx, 0, int64(math.MaxInt64)); err != nil {
			return err
		}
	} else {
		for _, k := range *saved {
			have[k.first] = k
		}
	}
	stay := make(map[int64]bool, len(t.marks))
	for _, k := range t.marks {
		stay[k.first] = true
		if have[k.first] == k {
			continue
		}
		if _, err := s.saveMark.ExecContext(ctx, k.first, k.last, k.at, k.blocks, k.samples, k.bytes-k.blocks*blockOverheadBytes); err != nil {
			return err
		}
	}
	for first := range have {
		if !stay[first] {
			if _, err := s.deleteMark.ExecContext(ctx, first, first); err != nil {
				return err
			}
		}
	}
	return nil
}
