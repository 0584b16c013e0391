package export

import (
	"context"
	"errors"
	"fmt"

	"touchline/cloud"
)

// A Source is a record store as an export reads it: cloud.Archive says what
// Samples promises. Records may be kept after yield returned.
type Source interface {
	Samples(ctx context.Context, q cloud.Query, yield func(cloud.Record) error) error
}

// A Summary says what a table has.
type Summary struct {
	Samples     uint64
	First, Last int64 // ns since the Unix epoch; both 0 where there are none
}

// A WriteError says that the table's writer, and not the store, ended a copy.
type WriteError struct{ err error }

func (e *WriteError) Error() string { return e.err.Error() }
func (e *WriteError) Unwrap() error { return e.err }

const (
	// portions are on their way: one being filled, two that wait, so that
	// neither side waits for the other's every pause, and one being written.
	portions = 4
	// portionRows and portionTextBytes bound what is handed over at a time:
	// with 152 bytes a record, 150 kB and the texts.
	portionRows      = 1024
	portionTextBytes = 1 << 20
)

// A portion of records goes from the reading goroutine to the writing one.
type portion struct {
	records   []cloud.Record
	textBytes int
}

// Copy writes the samples that q selects to a table and closes it. The store is
// read while the table is written, by a goroutine that has ended when Copy
// returns. Where the error is a *WriteError the table is at fault, where it
// wraps cloud.ErrIncomplete the table was closed with all that could be read,
// and after any other there is no table.
func Copy(ctx context.Context, from Source, q cloud.Query, to Table) (Summary, error) {
	c := &copying{full: make(chan *portion, portions), free: make(chan *portion, portions)}
	for range portions {
		c.free <- &portion{records: make([]cloud.Record, 0, portionRows)}
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var reading error
	go func() {
		defer close(c.full)
		reading = c.read(ctx, from, q)
	}()
	summary, err := c.write(to)
	stop()
	for range c.full { // until the reader has ended
	}
	if err == nil { // else the table is broken, whatever the store said
		err = reading
	}
	if err == nil || errors.Is(err, cloud.ErrIncomplete) {
		if closing := to.Close(); closing != nil {
			err = errors.Join(&WriteError{fmt.Errorf("end the table: %w", closing)}, err)
		}
	}
	return summary, err
}

type copying struct {
	full, free chan *portion
}

// read fills portions until the store has no more samples or ctx ends.
func (c *copying) read(ctx context.Context, from Source, q cloud.Query) error {
	p := <-c.free
	err := from.Samples(ctx, q, func(r cloud.Record) error {
		p.records = append(p.records, r)
		p.textBytes += len(r.Value.Text())
		if len(p.records) < portionRows && p.textBytes < portionTextBytes {
			return nil
		}
		c.full <- p // never blocks: there is room for all
		select {
		case p = <-c.free:
			return nil
		case <-ctx.Done():
			p = nil
			return ctx.Err()
		}
	})
	if p != nil {
		c.full <- p
	}
	return err
}

// write adds what comes until there is no more. It does not look at the context:
// what was read before an error belongs to the table.
func (c *copying) write(to Table) (Summary, error) {
	var s Summary
	for p := range c.full {
		for i := range p.records {
			r := &p.records[i]
			if err := to.Add(r); err != nil {
				return s, &WriteError{fmt.Errorf("write the table: %w", err)}
			}
			if s.Samples == 0 {
				s.First = r.Time
			}
			s.Last = r.Time
			s.Samples++
		}
		clear(p.records) // it must keep no text
		p.records, p.textBytes = p.records[:0], 0
		c.free <- p
	}
	return s, nil
}
