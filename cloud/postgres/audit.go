package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

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
// blocks kept aside had (and more, of partitions that were dropped), no two
// blocks overlap, every block is whole, decodes and is found by its times and
// names, and the counters of the gateways say what is there. It reads
// everything in one transaction: recording goes on meanwhile, but no partition
// is dropped, and versions of rows are not cleaned up until it ends.
func (s *Store) Audit(ctx context.Context) (Audited, error) {
	a := auditing{ctx: ctx, decoder: wire.NewDecoder(), cursors: make(map[int64]*auditedCursor), tallies: make(map[int64]*tally)}
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		a.tx = tx
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
			return err
		}
		for _, check := range []func() error{a.readCursors, a.parts, a.asides, a.compare, a.counters} {
			if err := check(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return a.audited, fmt.Errorf("audit: %w", err)
	}
	if a.found > 0 {
		return a.audited, fmt.Errorf("audit: %d findings: %s", a.found, strings.Join(a.findings, "; "))
	}
	return a.audited, nil
}

type auditing struct {
	ctx      context.Context
	tx       pgx.Tx
	decoder  *wire.Decoder
	decoded  []touchline.Sample
	audited  Audited
	dropped  bool // partitions were
	cursors  map[int64]*auditedCursor
	tallies  map[int64]*tally // by gateway, what was found
	findings []string
	found    int
}

type auditedCursor struct {
	epoch   touchline.Epoch
	gateway int64
	begun   day
	stored  touchline.Ranges
	union   touchline.Ranges // of what was found
}

func (a *auditing) find(format string, args ...any) {
	if a.found++; len(a.findings) < maxFindings {
		a.findings = append(a.findings, fmt.Sprintf(format, args...))
	}
}

func (a *auditing) readCursors() error {
	rows, err := a.tx.Query(a.ctx, `SELECT id, epoch, gateway, begun, ranges FROM cursor`)
	if err != nil {
		return fmt.Errorf("read cursors: %w", err)
	}
	var id int64
	var epoch []byte
	var begun time.Time
	var c auditedCursor
	var stored multirange
	_, err = pgx.ForEachRow(rows, []any{&id, &epoch, &c.gateway, &begun, &stored}, func() error {
		made := c
		a.audited.Epochs++
		if copy(made.epoch[:], epoch) != len(made.epoch) {
			a.find("cursor %d has an epoch of %d bytes", id, len(epoch))
		}
		made.begun = dayOf(begun)
		if made.stored, err = rangesOf(stored); err != nil {
			a.find("epoch %s: %v", made.epoch, err)
		}
		a.cursors[id] = &made
		return nil
	})
	return err
}

// parts checks each block of each partition.
func (a *auditing) parts() error {
	rows, err := a.tx.Query(a.ctx, `SELECT day FROM part ORDER BY day`)
	if err != nil {
		return fmt.Errorf("read partitions: %w", err)
	}
	dates, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return fmt.Errorf("read partitions: %w", err)
	}
	for _, c := range a.cursors {
		a.dropped = a.dropped || len(dates) == 0 || c.begun < dayOf(dates[0])
	}
	for _, date := range dates {
		if err := a.part(dayOf(date)); err != nil {
			return fmt.Errorf("read partition %s: %w", dayOf(date), err)
		}
	}
	return nil
}

// A foundBlock is a block with what queries find it by. One that they would find
// twice comes twice, and overlaps itself.
type foundBlock struct {
	wire.Block
	id, cursor, gateway int64
	span                merge.Span
	class               int
	by                  cloud.Correction
	doubted             bool
	known               touchline.Clock
	filter              []byte
	covered             bool
}

func (a *auditing) part(d day) error {
	const hour = `floor(%s::numeric / 3600000000000)::int`
	rows, err := a.tx.Query(a.ctx, `
		SELECT b.id, b.cursor, b.first, b.count, b.crc, b.filter, b.data,
			coalesce(p.gateway, 0), coalesce(p.span, -1), coalesce(p.min_time, 0), coalesce(p.max_time, 0), coalesce(p.shift, 0), coalesce(p.vouched, false),
			d.block IS NOT NULL, coalesce(k.state, 0), coalesce(k.clock_offset, 0),
			coalesce(h.hours @> int4range(`+fmt.Sprintf(hour, "p.min_time")+`, `+fmt.Sprintf(hour, "p.max_time")+`, '[]'), false)
		FROM `+d.table("block")+` b
			LEFT JOIN `+d.table("place")+` p ON p.block = b.id AND p.until IS NULL
			LEFT JOIN doubt d ON d.block = b.id
			LEFT JOIN boot k ON k.id = d.boot AND k.gateway = p.gateway
			LEFT JOIN part_hours h ON h.day = b.day AND h.span = p.span
		ORDER BY b.cursor, b.first`)
	if err != nil {
		return err
	}
	defer rows.Close()
	blocks := 0
	for ; rows.Next(); blocks++ {
		var b foundBlock
		var state int16
		if err := rows.Scan(&b.id, &b.cursor, &b.First, &b.Count, &b.CRC, &b.filter, &b.Data, &b.gateway, &b.class, &b.span.From, &b.span.To,
			&b.by.Shift, &b.by.Vouched, &b.doubted, &state, &b.known.Offset, &b.covered); err != nil {
			return err
		}
		b.known.State = touchline.ClockState(state)
		a.block(&b)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	var places int
	if err := a.tx.QueryRow(a.ctx, `SELECT count(*) FROM `+d.table("place")+` WHERE until IS NULL`).Scan(&places); err != nil {
		return err
	}
	if places != blocks {
		a.find("%d blocks recorded on %s have %d places", blocks, d, places)
	}
	return nil
}

// block checks that the block stands where its numbers are, decodes, and that
// queries find it.
func (a *auditing) block(b *foundBlock) {
	c := a.cursors[b.cursor]
	if c == nil {
		a.find("block %d has no cursor", b.id)
		return
	}
	b.Epoch = c.epoch
	a.audited.Blocks++
	a.audited.Samples += uint64(b.Count)
	a.tally(c.gateway).blocks++
	a.tally(c.gateway).samples += int64(b.Count)
	switch {
	case b.Count == 0 || !b.Range().Valid():
		a.find("block %d has numbers out of bounds: %d+%d", b.id, b.First, b.Count)
		return
	case c.union.Overlaps(b.Range()):
		a.find("block %d (epoch %s, numbers %d to %d) overlaps another", b.id, c.epoch, b.First, b.Last())
	}
	c.union.Add(b.Range())
	var err error
	if a.decoded, err = merge.Decode(a.decoder, a.decoded[:0], &b.Block); err != nil {
		a.find("block %d: %v", b.id, err)
		return
	}
	clock := a.decoder.Attributes().Clock
	var by cloud.Correction
	doubted := cloud.Doubted(clock, a.decoded)
	if doubted {
		by = cloud.Correct(clock.Clock, b.known)
	}
	by.Apply(a.decoded)
	is := merge.SpanOf(a.decoded)
	if b.doubted != doubted {
		a.find("block %d is noted as one whose clock can be corrected: %v, and is one: %v", b.id, b.doubted, doubted)
	}
	if b.gateway != c.gateway || b.span != is || b.class != is.Class() || b.by != by || !b.covered {
		a.find("block %d is not found at its time, %d to %d ns, as gateway %d's", b.id, is.From, is.To, c.gateway)
	}
	filter := merge.NameFilter(b.filter)
	for i := range a.decoded {
		s := &a.decoded[i]
		if (i == 0 || s.Sensor != a.decoded[i-1].Sensor || s.Metric != a.decoded[i-1].Metric) && filter.Hides(s) {
			a.find("block %d: its filter hides %s %s", b.id, s.Sensor, s.Metric)
			break
		}
	}
}

// asides checks that what is kept aside is still what was sent.
func (a *auditing) asides() error {
	rows, err := a.tx.Query(a.ctx, `SELECT id, cursor, gateway, first, count, crc, data FROM aside`)
	if err != nil {
		return fmt.Errorf("read blocks kept aside: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, cursor, gateway int64
		var b wire.Block
		if err := rows.Scan(&id, &cursor, &gateway, &b.First, &b.Count, &b.CRC, &b.Data); err != nil {
			return fmt.Errorf("read blocks kept aside: %w", err)
		}
		a.audited.KeptAside++
		a.tally(gateway).keptAside++
		c := a.cursors[cursor] // there, by its foreign key
		b.Epoch = c.epoch
		if err := b.Check(); err != nil {
			a.find("block %d kept aside: %v", id, err)
		}
		if c.gateway == gateway && b.Range().Valid() {
			c.union.Add(b.Range())
		}
	}
	return rows.Err()
}

// compare holds the cursors against what was found.
func (a *auditing) compare() error {
	for _, c := range a.cursors {
		more := slices.Clone(c.stored)
		more.AddAll(c.union)
		if !slices.Equal(more, c.stored) || !a.dropped && !slices.Equal(c.union, c.stored) {
			a.find("epoch %s: the cursor has the numbers %v, the blocks have %v", c.epoch, c.stored, c.union)
		}
	}
	return nil
}

// counters compares what gateways say with what was found.
func (a *auditing) counters() error {
	rows, err := a.tx.Query(a.ctx, `SELECT id, name, samples, blocks, kept_aside FROM gateway ORDER BY name`)
	if err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	var id int64
	var name string
	var counted tally
	_, err = pgx.ForEachRow(rows, []any{&id, &name, &counted.samples, &counted.blocks, &counted.keptAside}, func() error {
		a.audited.Gateways++
		there := *a.tally(id)
		if counted.keptAside != there.keptAside || counted.samples < there.samples || counted.blocks < there.blocks ||
			!a.dropped && (counted.samples != there.samples || counted.blocks != there.blocks) {
			a.find("gateway %s counted %d samples, %d blocks, %d kept aside where %d, %d, %d are", name,
				counted.samples, counted.blocks, counted.keptAside, there.samples, there.blocks, there.keptAside)
		}
		return nil
	})
	return err
}

func (a *auditing) tally(gateway int64) *tally {
	t := a.tallies[gateway]
	if t == nil {
		t = &tally{}
		a.tallies[gateway] = t
	}
	return t
}
