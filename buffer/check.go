package buffer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"touchline"
	"touchline/wire"
)

const (
	// maxProblems and maxListed bound a report: each problem is a line of at
	// most some 300 bytes, each range 36 bytes.
	maxProblems = 200
	maxListed   = 4096
)

// A Report is what Check found. It says nothing of samples, only of how they
// are kept.
type Report struct {
	File    string        `json:"file"`
	Bytes   int64         `json:"file_bytes"` // with its log
	Running bool          `json:"running"`    // a gateway has it open
	Epochs  []EpochReport `json:"epochs"`     // oldest first; those with blocks
	Blocks  int64         `json:"blocks"`
	Samples int64         `json:"samples"`
	Data    int64         `json:"data_bytes"`

	LostRecords int      `json:"lost_records"` // that the cloud has not confirmed
	LostSamples uint64   `json:"lost_samples"`
	Aside       []string `json:"set_aside"` // files that were
	// Who takes those back that are of a newer schema: "touchline 0.7.0 or newer".
	AsideReader map[string]string `json:"set_aside_reader,omitempty"`

	Problems []string `json:"problems"`
	More     int      `json:"more_problems"` // beyond those listed

	ranges int
}

// An EpochReport says what is held of one epoch.
type EpochReport struct {
	Epoch   touchline.Epoch  `json:"epoch"`
	Ranges  touchline.Ranges `json:"ranges"` // between them is what the cloud has, or what was lost
	Cut     bool             `json:"ranges_cut,omitempty"`
	Blocks  int64            `json:"blocks"`
	Samples int64            `json:"samples"`
	Data    int64            `json:"data_bytes"`
	MinTime time.Time        `json:"min_time"` // of the samples
	MaxTime time.Time        `json:"max_time"`
}

// OK says whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) >= maxProblems {
		r.More++
		return
	}
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// Check reads the whole file of an open buffer and says what is in it and what
// is wrong, without stopping appends. It changes nothing, not even what is
// known to be damaged. The log grows while SQLite looks at its trees. ctx ends
// it; an error means that the file could not be read.
func (b *Buffer) Check(ctx context.Context) (Report, error) {
	r := Report{File: b.store.path, Running: true}
	return r, b.check(ctx, &r)
}

// Check is Buffer.Check for a file that nobody has open.
func (r *Reading) Check(ctx context.Context) (Report, error) {
	report := Report{File: r.path}
	if r.b == nil {
		report.problem("%s: %s; the next start of the gateway sets it aside%s", r.path, r.found.why, r.found.kind.fate())
		return report, report.listAside(r.path)
	}
	return report, r.b.check(ctx, &report)
}

func (b *Buffer) check(ctx context.Context, r *Report) error {
	a := asideFile{path: b.store.path}
	r.Bytes = a.bytes()
	c := checker{b: b, r: r, decoder: wire.NewDecoder()}
	for _, step := range []func(context.Context) error{c.trees, c.tally, c.blocks, c.lost} {
		if err := c.locked(ctx, step); errors.Is(err, ErrClosed) {
			return fmt.Errorf("check buffer: %w", err)
		} else if err != nil && ctx.Err() != nil {
			return fmt.Errorf("check buffer: %w", ctx.Err())
		} else if isDamage(err) {
			r.problem("%v", err)
		} else if err != nil {
			return fmt.Errorf("check buffer: %w", err)
		}
	}
	return r.listAside(b.store.path)
}

func (r *Report) listAside(path string) error {
	list, err := listAside(path)
	if err != nil {
		return fmt.Errorf("check buffer: %w", err)
	}
	for i := range list {
		name := filepath.Base(list[i].path)
		r.Aside = append(r.Aside, name)
		if list[i].unknown() {
			if r.AsideReader == nil {
				r.AsideReader = make(map[string]string)
			}
			r.AsideReader[name] = newerSchema{list[i].version, list[i].report.Needs}.reader()
		}
	}
	return nil
}

type checker struct {
	b       *Buffer
	r       *Report
	decoder *wire.Decoder
	samples []touchline.Sample
	end     int64 // last key of the block before
}

// locked keeps the file open for a step. Close waits for it: the longest, that
// of SQLite's own, ends with ctx.
func (c *checker) locked(ctx context.Context, step func(context.Context) error) error {
	c.b.readers.RLock()
	defer c.b.readers.RUnlock()
	if c.b.life.Err() != nil {
		return ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.b.life, cancel)() // the buffer's end is no reason to wait
	err := step(ctx)
	if c.b.life.Err() != nil {
		return ErrClosed
	}
	return err
}

// trees has SQLite look at every page.
func (c *checker) trees(ctx context.Context) error {
	rows, err := c.b.store.readDB.QueryContext(ctx, fmt.Sprintf("PRAGMA integrity_check(%d)", maxProblems))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return contentError(err)
		}
		if line != "ok" {
			c.r.problem("SQLite: %.300s", line)
		}
	}
	return rows.Err()
}

// tally compares the count that the file keeps of itself with its rows, in one
// statement, since a running gateway changes both.
func (c *checker) tally(ctx context.Context) error {
	var upto int64
	var kept, there totals
	row := c.b.store.readDB.QueryRowContext(ctx, `SELECT tally.upto, tally.blocks, tally.samples, tally.data_bytes,
		(SELECT count(*) FROM block WHERE key <= tally.upto),
		(SELECT coalesce(sum(count), 0) FROM block WHERE key <= tally.upto),
		(SELECT coalesce(sum(length(data)), 0) FROM block WHERE key <= tally.upto) FROM tally`)
	err := row.Scan(&upto, &kept.blocks, &kept.samples, &kept.bytes, &there.blocks, &there.samples, &there.bytes)
	if err != nil {
		return contentError(err)
	}
	if kept != there {
		c.r.problem("the tally says %d blocks, %d samples, %d bytes up to %d, and there are %d, %d and %d",
			kept.blocks, kept.samples, kept.bytes, upto, there.blocks, there.samples, there.bytes)
	}
	return nil
}

// blocks reads and decodes each block.
func (c *checker) blocks(ctx context.Context) error {
	for from := int64(-1 << 62); ; {
		rows, err := c.b.readRows(ctx, from, exportBytes)
		if err != nil || len(rows) == 0 {
			return err
		}
		for i := range rows {
			c.block(&rows[i])
		}
		from = rows[len(rows)-1].key + 1
	}
}

func (c *checker) block(row *row) {
	block, err := c.b.blockOf(row)
	reported, _ := row.committed.(int64)
	switch {
	case err != nil && reported < 0:
		c.r.problem("%v (it is recorded as lost)", err)
		return
	case err != nil:
		c.r.problem("%v", err)
		return
	}
	if row.key <= c.end {
		c.r.problem("block %s/%d overlaps the one before", block.Epoch, block.First)
	}
	c.end = row.key + int64(block.Count) - 1
	c.samples, err = c.decoder.Decode(c.samples[:0], block.Data)
	defer clear(c.samples) // lets go of the strings
	if err != nil {
		c.r.problem("block %s/%d: %v", block.Epoch, block.First, err)
		return
	}
	if len(c.samples) != int(block.Count) {
		c.r.problem("block %s/%d has %d samples and says %d", block.Epoch, block.First, len(c.samples), block.Count)
	}
	from, to := timeSpan(c.samples)
	if row.minTime != any(from) || row.maxTime != any(to) {
		c.r.problem("block %s/%d says it is from %v to %v and is from %d to %d", block.Epoch, block.First, row.minTime, row.maxTime, from, to)
	}
	c.r.add(&block, from, to)
}

// add counts a block that holds.
func (r *Report) add(block *wire.Block, from, to int64) {
	r.Blocks++
	r.Samples += int64(block.Count)
	r.Data += int64(len(block.Data))
	first, last := time.Unix(0, from).UTC(), time.Unix(0, to).UTC()
	n := len(r.Epochs)
	if n == 0 || r.Epochs[n-1].Epoch != block.Epoch {
		r.Epochs = append(r.Epochs, EpochReport{Epoch: block.Epoch, MinTime: first, MaxTime: last})
		n++
	}
	e := &r.Epochs[n-1]
	e.Blocks++
	e.Samples += int64(block.Count)
	e.Data += int64(len(block.Data))
	if first.Before(e.MinTime) {
		e.MinTime = first
	}
	if last.After(e.MaxTime) {
		e.MaxTime = last
	}
	// Extending the last range is always possible, another one where there is
	// room.
	before := len(e.Ranges)
	if k := before - 1; k >= 0 && e.Ranges[k].Last+1 == block.First {
		e.Ranges[k].Last = block.Last()
	} else if r.ranges < maxListed {
		e.Ranges.Add(block.Range())
		r.ranges += len(e.Ranges) - before
	} else {
		e.Cut = true
	}
}

// lost reads the records of loss.
func (c *checker) lost(ctx context.Context) error {
	rows, err := c.b.store.readDB.QueryContext(ctx, "SELECT id, epoch, ranges, cause, min_time, max_time FROM lost ORDER BY n")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var l wire.Lost
		var id int64
		var uuid, text []byte
		if err := rows.Scan(&id, &uuid, &text, &l.Cause, &l.MinTime, &l.MaxTime); err != nil {
			return contentError(err)
		}
		c.r.LostRecords++
		switch err := json.Unmarshal(text, &l.Ranges); {
		case err != nil || len(l.Ranges) == 0:
			c.r.problem("lost record %d names no ranges: %.100q", id, text)
		case id < 1 || uint64(id) > touchline.MaxSeq || len(uuid) != len(l.Epoch) || !knownCause(l.Cause):
			c.r.problem("lost record %d, cause %.40q, is out of bounds", id, l.Cause)
		default:
			c.r.LostSamples += l.Ranges.Count()
		}
	}
	return rows.Err()
}
