package sqlite

import (
	"context"
	"fmt"
	"math"

	"touchline/cloud/merge"
)

// Row values compare as block_time is ordered, so each page is one seek, and
// all terms are decided there, before any block is read. Rows that are missing
// in the other tables make a block that can't be read, and not one that is
// silently left out.
const pageQuery = `
	SELECT t.block, t.min_time, t.max_time, t.shift, t.vouched,
		coalesce(b.first, 0), coalesce(b.count, 0), coalesce(b.crc, 0), coalesce(b.received, 0), coalesce(b.filter, x''),
		coalesce(g.name, ''), coalesce(c.epoch, x''), CASE WHEN length(b.data) <= ?1 THEN b.data END
	FROM block_time t
		LEFT JOIN block b ON b.id = t.block
		LEFT JOIN cursor c ON c.id = b.cursor
		LEFT JOIN gateway g ON g.id = t.gateway
	WHERE t.span = ?2 AND (t.min_time, t.block) > (?3, ?4)
		AND t.min_time <= ?5 AND t.max_time >= ?6
		AND t.block <= ?7 AND (?8 = 0 OR t.gateway = ?8)
		AND t.since <= ?9 AND (t.until IS NULL OR t.until > ?9)
	ORDER BY t.min_time, t.block
	LIMIT ?10`

// Page implements merge.Shelf.
func (r *reading) Page(ctx context.Context, s merge.Stream, want merge.Want) (page []merge.Block, err error) {
	inline := want.InlineBytes
	if inline == 0 {
		inline = -1 // data of no bytes is none either
	}
	rows, err := r.store.read.QueryContext(ctx, pageQuery, inline, s.Class, want.Behind.Time, want.Behind.ID,
		want.Newest, want.From, r.snapshot, r.gateway, r.version, merge.PageBlocks)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var b merge.Block
		var epoch []byte
		if err := rows.Scan(&b.ID, &b.Span.From, &b.Span.To, &b.By.Shift, &b.By.Vouched, &b.First, &b.Count, &b.CRC, &b.Received, &b.Filter,
			&b.Gateway, &epoch, &b.Data); err != nil {
			return nil, err
		}
		copy(b.Epoch[:], epoch)
		page = append(page, b)
	}
	return page, rows.Err()
}

// streams returns one for each span class that the store has blocks of: one
// seek in the index for each.
func (s *Store) streams(ctx context.Context) ([]merge.Stream, error) {
	var streams []merge.Stream
	for class := -1; ; {
		var next *int
		if err := s.read.QueryRowContext(ctx, `SELECT min(span) FROM block_time WHERE span > ?`, class).Scan(&next); err != nil {
			return nil, fmt.Errorf("read span classes: %w", err)
		}
		if next == nil {
			return streams, nil
		}
		class = *next
		streams = append(streams, merge.Stream{Class: class, Start: math.MinInt64})
	}
}
