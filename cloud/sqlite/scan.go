package sqlite

import (
	"context"
	"fmt"
	"math"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A storedBlock is a row of table block.
type storedBlock struct {
	wire.Block       // Data is nil where it was too large to be read along
	id               int64
	minTime, maxTime int64
	by               cloud.Correction
	source           *source
}

// A source is where samples come from. It is shared by what comes from there,
// and apart from the block so that a held sample does not hold its block.
type source struct {
	gateway string
	epoch   touchline.Epoch
}

const (
	// pageBlocks is how many rows a scan reads at a time: with 17 classes
	// at most and inlineBytes a row, 4.5 MB in the worst case, and
	// one class with 256 KB in the usual one.
	pageBlocks = 64
	// inlineBytes is up to which size data is read along with its row,
	// which then has most of it in its own page. Larger data is read when
	// it is needed.
	inlineBytes = 4096
)

// A blockScan goes over the blocks that may have samples for a pass, in the
// order of their oldest sample: it merges one classScan for each span class.
type blockScan struct {
	reading *reading
	classes []*classScan
	last    *source
}

// A classScan goes over the blocks of one span class in the order of
// block_time. It reads a page at a time, so that no read transaction stays
// open while samples are yielded.
type classScan struct {
	class  int
	from   int64         // the pass wants nothing older
	page   []storedBlock // not handed out yet
	ended  bool          // there is nothing behind the page
	behind struct {      // the last row that was read
		minTime, block int64
	}
}

// scan begins a scan for samples at or after from.
func (r *reading) scan(from int64) *blockScan {
	s := &blockScan{reading: r}
	for _, class := range r.classes {
		c := &classScan{class: class, from: from}
		c.behind.minTime = math.MinInt64 // and block 0: ids begin at 1
		// A block of this class that reaches from began less than 16^class
		// ns before it.
		if length := int64(1)<<min(4*class, 62) - 1; class < 16 && from > math.MinInt64+length {
			c.behind.minTime = from - length
		}
		s.classes = append(s.classes, c)
	}
	return s
}

// next returns the block with the next oldest sample, or nil at the end.
func (s *blockScan) next(ctx context.Context) (*storedBlock, error) {
	var first *classScan
	for _, c := range s.classes {
		for len(c.page) == 0 && !c.ended {
			if err := s.readPage(ctx, c); err != nil {
				return nil, fmt.Errorf("scan blocks: %w", err)
			}
		}
		if len(c.page) > 0 && (first == nil || c.page[0].minTime < first.page[0].minTime) {
			first = c
		}
	}
	if first == nil {
		return nil, nil
	}
	b := first.page[0]
	first.page[0].Data = nil // the page must not keep it
	first.page = first.page[1:]
	return &b, nil
}

// Row values compare as block_time is ordered, so each page is one seek, and
// all terms are decided there, before any block is read. Rows that are missing
// in the other tables make a block that can't be read, and not one that is
// silently left out.
const pageQuery = `
	SELECT t.block, t.min_time, t.max_time, t.shift, t.vouched,
		coalesce(b.first, 0), coalesce(b.count, 0), coalesce(b.crc, 0), coalesce(b.filter, x''),
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

// readPage reads the class's next rows, and leaves out those whose filter
// says that they have nothing for the query.
func (s *blockScan) readPage(ctx context.Context, c *classScan) error {
	r := s.reading
	inline := inlineBytes
	if len(r.names) > 0 {
		inline = -1 // most data will not be wanted
	}
	rows, err := r.store.read.QueryContext(ctx, pageQuery, inline, c.class, c.behind.minTime, c.behind.block,
		r.newest, c.from, r.snapshot, r.gateway, r.version, pageBlocks)
	if err != nil {
		return err
	}
	defer rows.Close()
	c.page = c.page[:0]
	n := 0
	for ; rows.Next(); n++ {
		var b storedBlock
		var filter, epoch []byte
		var gateway string
		if err := rows.Scan(&b.id, &b.minTime, &b.maxTime, &b.by.Shift, &b.by.Vouched, &b.First, &b.Count, &b.CRC, &filter,
			&gateway, &epoch, &b.Data); err != nil {
			return err
		}
		c.behind.minTime, c.behind.block = b.minTime, b.id
		if !r.mayMatch(filter) {
			continue
		}
		copy(b.Epoch[:], epoch)
		if s.last == nil || s.last.gateway != gateway || s.last.epoch != b.Epoch {
			s.last = &source{gateway: gateway, epoch: b.Epoch}
		}
		b.source = s.last
		c.page = append(c.page, b)
	}
	c.ended = n < pageBlocks
	return rows.Err()
}

func (r *reading) mayMatch(filter nameFilter) bool {
	for _, hash := range r.names {
		if !filter.mayHave(hash) {
			return false
		}
	}
	return true
}

// spanClasses returns the classes that the store has blocks of: one seek in
// the index for each.
func (s *Store) spanClasses(ctx context.Context) ([]int, error) {
	var classes []int
	for class := -1; ; {
		var next *int
		if err := s.read.QueryRowContext(ctx, `SELECT min(span) FROM block_time WHERE span > ?`, class).Scan(&next); err != nil {
			return nil, fmt.Errorf("read span classes: %w", err)
		}
		if next == nil {
			return classes, nil
		}
		class = *next
		classes = append(classes, class)
	}
}
