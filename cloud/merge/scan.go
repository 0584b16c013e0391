package merge

import (
	"context"
	"fmt"
	"math"
)

// A blockScan goes over the blocks that may have samples for a pass, in the
// order of their oldest sample: it merges one streamScan for each stream.
type blockScan struct {
	reading *reading
	streams []*streamScan
	last    *source
}

// A streamScan goes over the blocks of one stream, a page at a time, so that
// no read transaction stays open while samples are yielded.
type streamScan struct {
	Stream
	want  Want
	page  []Block // not handed out yet
	begun bool    // a page was read
	ended bool    // there is nothing behind the page
}

// scan begins a scan for samples at or after from.
func (r *reading) scan(from int64) *blockScan {
	s := &blockScan{reading: r}
	for _, stream := range r.Streams {
		c := &streamScan{Stream: stream, want: Want{From: from, Newest: r.newest}}
		c.want.Behind.Time = math.MinInt64 // and block 0: ids begin at 1
		// A block of this class that reaches from began less than 16^class
		// ns before it.
		if length := int64(1)<<min(4*c.Class, 62) - 1; c.Class < 16 && from > math.MinInt64+length {
			c.want.Behind.Time = from - length
		}
		if len(r.names) == 0 { // else most data will not be wanted
			c.want.InlineBytes = inlineBytes
		}
		s.streams = append(s.streams, c)
	}
	return s
}

// next returns the block with the next oldest sample, or nil at the end. A
// stream is not read before its Start is reached, so that one of a season's
// many parts costs a query nothing while others are being read.
func (s *blockScan) next(ctx context.Context) (*Block, error) {
	for {
		var first *streamScan
		for _, c := range s.streams {
			if c.ended && len(c.page) == 0 {
				continue
			}
			// Of equals one that is to be read first: it may have an older block.
			if first == nil || c.head() < first.head() || c.head() == first.head() && len(c.page) == 0 {
				first = c
			}
		}
		if first == nil || first.head() > s.reading.newest {
			return nil, nil
		}
		if len(first.page) == 0 {
			if err := s.readPage(ctx, first); err != nil {
				return nil, fmt.Errorf("scan blocks: %w", err)
			}
			continue
		}
		b := first.page[0]
		first.page[0].Data = nil // the page must not keep it
		first.page = first.page[1:]
		return &b, nil
	}
}

// head returns a time before which the stream has nothing any more.
func (c *streamScan) head() int64 {
	switch {
	case len(c.page) > 0:
		return c.page[0].Span.From
	case c.begun:
		return c.want.Behind.Time
	}
	return c.Start
}

// readPage reads the stream's next blocks, and leaves out those whose filter
// says that they have nothing for the query.
func (s *blockScan) readPage(ctx context.Context, c *streamScan) error {
	page, err := s.reading.Shelf.Page(ctx, c.Stream, c.want)
	if err != nil {
		return err
	}
	c.begun, c.ended = true, len(page) < PageBlocks
	if len(page) > 0 {
		last := &page[len(page)-1]
		c.want.Behind = Place{last.Span.From, last.ID}
	}
	c.page = page[:0]
	for i := range page {
		b := &page[i]
		if !s.reading.mayMatch(b.Filter) {
			continue
		}
		if _, wanted := s.reading.Only[b.Gateway]; s.reading.Only != nil && !wanted {
			continue
		}
		if s.last == nil || s.last.gateway != b.Gateway || s.last.epoch != b.Epoch || s.last.received != b.Received {
			s.last = &source{gateway: b.Gateway, epoch: b.Epoch, received: b.Received}
		}
		b.source, b.Part = s.last, c.Part
		c.page = append(c.page, *b)
	}
	return nil
}

func (r *reading) mayMatch(filter NameFilter) bool {
	for _, hash := range r.names {
		if !filter.mayHave(hash) {
			return false
		}
	}
	return true
}
