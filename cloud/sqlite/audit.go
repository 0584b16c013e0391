package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/wire"
)

// Audited is what Audit looked at.
type Audited struct {
	Gateways, Epochs, Blocks, Samples, KeptAside uint64
}

// maxFindings bounds what Audit's error lists.
const maxFindings = 20

// Audit says whether the store is what exactly-once rests on: for each epoch
// the cursor has exactly the numbers of its blocks and of what its gateway's
// blocks kept aside had, no two blocks overlap, every block is whole, decodes
// and is found by its times and names, and the counters of the gateways say
// what is there. It reads everything, in one read transaction: recording goes
// on meanwhile, but the log grows until it ends.
func (s *Store) Audit(ctx context.Context) (_ Audited, err error) {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return Audited{}, fmt.Errorf("audit: %w", err)
	}
	defer rollback(tx, &err)
	a := auditing{ctx: ctx, tx: tx, decoder: wire.NewDecoder(), tallies: make(map[int64]*tally)}
	for _, check := range []func() error{a.file, a.cursors, a.asides, a.counters} {
		if err := check(); err != nil {
			return a.audited, fmt.Errorf("audit: %w", err)
		}
	}
	if len(a.findings) > 0 {
		return a.audited, fmt.Errorf("audit: %d findings: %s", a.found, strings.Join(a.findings, "; "))
	}
	return a.audited, nil
}

type auditing struct {
	ctx      context.Context
	tx       *sql.Tx
	decoder  *wire.Decoder
	decoded  []touchline.Sample
	audited  Audited
	tallies  map[int64]*tally // by gateway, what was found
	findings []string
	found    int
}

func (a *auditing) find(format string, args ...any) {
	if a.found++; len(a.findings) < maxFindings {
		a.findings = append(a.findings, fmt.Sprintf(format, args...))
	}
}

// file lets SQLite check its own structure and the references between tables.
func (a *auditing) file() error {
	var result string
	if err := a.tx.QueryRowContext(a.ctx, `PRAGMA integrity_check(5)`).Scan(&result); err != nil {
		return err
	}
	if result != "ok" {
		a.find("the file is damaged: %s", result)
	}
	var orphans int
	if err := a.tx.QueryRowContext(a.ctx, `SELECT count(*) FROM pragma_foreign_key_check`).Scan(&orphans); err != nil {
		return err
	}
	if orphans > 0 {
		a.find("%d rows refer to rows that are not there", orphans)
	}
	return nil
}

func (a *auditing) cursors() error {
	for last := int64(0); ; {
		var c cursor
		var epoch, encoded []byte
		err := a.tx.QueryRowContext(a.ctx, `SELECT id, epoch, gateway, ranges FROM cursor WHERE id > ? ORDER BY id LIMIT 1`, last).
			Scan(&c.id, &epoch, &c.gateway, &encoded)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read cursors: %w", err)
		}
		last = c.id
		a.audited.Epochs++
		if copy(c.epoch[:], epoch) != len(epoch) || len(epoch) != len(c.epoch) {
			a.find("cursor %d has an epoch of %d bytes", c.id, len(epoch))
		}
		if c.ranges, err = parseRanges(encoded); err != nil {
			a.find("epoch %s: %v", c.epoch, err)
			continue
		}
		if err := a.epoch(&c); err != nil {
			return fmt.Errorf("read epoch %s: %w", c.epoch, err)
		}
	}
}

// epoch checks that the cursor's ranges are the union of its blocks and
// asides.
func (a *auditing) epoch(c *cursor) error {
	union, err := a.blocks(c)
	if err != nil {
		return err
	}
	rows, err := a.tx.QueryContext(a.ctx, `SELECT first, count FROM aside WHERE cursor = ? AND gateway = ?`, c.id, c.gateway)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var b wire.Block
		if err := rows.Scan(&b.First, &b.Count); err != nil {
			return err
		}
		union.Add(b.Range())
	}
	if !slices.Equal(union, c.ranges) {
		a.find("epoch %s: the cursor has the numbers %v, the blocks have %v", c.epoch, c.ranges, union)
	}
	return rows.Err()
}

// blocks checks each block of the cursor and returns the union of their
// numbers.
func (a *auditing) blocks(c *cursor) (union touchline.Ranges, err error) {
	rows, err := a.tx.QueryContext(a.ctx, `
		SELECT id, first, count, crc, filter, data FROM block WHERE cursor = ? ORDER BY first`, c.id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		b := wire.Block{Epoch: c.epoch}
		var id int64
		var filter merge.NameFilter
		if err := rows.Scan(&id, &b.First, &b.Count, &b.CRC, &filter, &b.Data); err != nil {
			return nil, err
		}
		a.audited.Blocks++
		a.audited.Samples += uint64(b.Count)
		a.tally(c.gateway).blocks++
		a.tally(c.gateway).samples += int64(b.Count)
		if b.Count == 0 || !b.Range().Valid() {
			a.find("block %d has numbers out of bounds: %d+%d", id, b.First, b.Count)
			continue
		}
		if union.Overlaps(b.Range()) {
			a.find("block %d (epoch %s, numbers %d to %d) overlaps another", id, c.epoch, b.First, b.Last())
		}
		union.Add(b.Range())
		if err := a.block(id, &b, c.gateway, filter); err != nil {
			return nil, err
		}
	}
	return union, rows.Err()
}

// block checks that the block decodes and that queries find it.
func (a *auditing) block(id int64, b *wire.Block, gateway int64, filter merge.NameFilter) (err error) {
	if a.decoded, err = merge.Decode(a.decoder, a.decoded[:0], b); err != nil {
		a.find("block %d: %v", id, err)
		return nil
	}
	by, err := a.correction(id, gateway)
	if err != nil {
		return err
	}
	by.Apply(a.decoded)
	is := merge.SpanOf(a.decoded)
	var found int
	err = a.tx.QueryRowContext(a.ctx, `
		SELECT count(*) FROM block_time WHERE span = ? AND min_time = ? AND block = ? AND max_time = ? AND gateway = ?
			AND until IS NULL AND shift = ? AND vouched = ?`,
		is.Class(), is.From, id, is.To, gateway, by.Shift, by.Vouched).Scan(&found)
	if err != nil {
		return err
	}
	if found != 1 {
		a.find("block %d is not found at its time, %d to %d ns, as gateway %d's", id, is.From, is.To, gateway)
	}
	for i := range a.decoded {
		s := &a.decoded[i]
		if (i == 0 || s.Sensor != a.decoded[i-1].Sensor || s.Metric != a.decoded[i-1].Metric) && filter.Hides(s) {
			a.find("block %d: its filter hides %s %s", id, s.Sensor, s.Metric)
			break
		}
	}
	return nil
}

// correction returns that of the block that was decoded last, and checks that
// the store knows that it can be corrected.
func (a *auditing) correction(id, gateway int64) (c cloud.Correction, err error) {
	clock := a.decoder.Attributes().Clock
	want := 0
	if cloud.Doubted(clock, a.decoded) {
		want = 1
	}
	var found int
	var known touchline.Clock
	row := a.tx.QueryRowContext(a.ctx, `
		SELECT count(*), coalesce(max(boot.state), 0), coalesce(max(boot.offset), 0) FROM doubt JOIN boot ON boot.id = doubt.boot
		WHERE doubt.block = ? AND boot.gateway = ?`, id, gateway)
	if err := row.Scan(&found, &known.State, &known.Offset); err != nil {
		return c, err
	}
	if found != want {
		a.find("block %d has %d doubts of its clock, want %d", id, found, want)
	}
	if want == 0 {
		return c, nil
	}
	return cloud.Correct(clock.Clock, known), nil
}

// asides checks that what is kept aside is still what was sent.
func (a *auditing) asides() error {
	rows, err := a.tx.QueryContext(a.ctx, `
		SELECT aside.id, aside.gateway, epoch, first, count, crc, data FROM aside JOIN cursor ON cursor.id = aside.cursor`)
	if err != nil {
		return fmt.Errorf("read blocks kept aside: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, gateway int64
		var b wire.Block
		var epoch []byte
		if err := rows.Scan(&id, &gateway, &epoch, &b.First, &b.Count, &b.CRC, &b.Data); err != nil {
			return fmt.Errorf("read blocks kept aside: %w", err)
		}
		a.audited.KeptAside++
		a.tally(gateway).keptAside++
		copy(b.Epoch[:], epoch)
		if err := b.Check(); err != nil {
			a.find("block %d kept aside: %v", id, err)
		}
	}
	return rows.Err()
}

// counters compares what gateways and block_time say with what was found.
func (a *auditing) counters() error {
	rows, err := a.tx.QueryContext(a.ctx, `SELECT id, name, samples, blocks, kept_aside FROM gateway ORDER BY name`)
	if err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var name string
		var counted tally
		if err := rows.Scan(&id, &name, &counted.samples, &counted.blocks, &counted.keptAside); err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
		a.audited.Gateways++
		if there := *a.tally(id); counted != there {
			a.find("gateway %s counted %d samples, %d blocks, %d kept aside where %d, %d, %d are", name,
				counted.samples, counted.blocks, counted.keptAside, there.samples, there.blocks, there.keptAside)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	var times uint64
	if err := a.tx.QueryRowContext(a.ctx, `SELECT count(*) FROM block_time WHERE until IS NULL`).Scan(&times); err != nil {
		return fmt.Errorf("count times: %w", err)
	}
	if times != a.audited.Blocks {
		a.find("%d blocks have %d entries by time", a.audited.Blocks, times)
	}
	return nil
}

func (a *auditing) tally(gateway int64) *tally {
	t := a.tallies[gateway]
	if t == nil {
		t = &tally{}
		a.tallies[gateway] = t
	}
	return t
}
