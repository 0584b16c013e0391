package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/rollup"
)

// Clock implements cloud.Recorder. Blocks that the correction moves in time
// get another version in place, and the old one is out of force from then on;
// queries that run go on reading it.
func (s *Store) Clock(ctx context.Context, gateway string, session uint64, clock touchline.Clock) error {
	fail := func(err error) error {
		return fmt.Errorf("record clock of gateway %s, boot %s: %w", gateway, clock.Boot, err)
	}
	if clock.State == touchline.ClockUnset || clock.State > touchline.ClockSynchronised {
		return fail(fmt.Errorf("%s corrects nothing", clock.State))
	}
	err := s.change(ctx, func(tx pgx.Tx) error {
		id, err := gatewayID(ctx, tx, gateway)
		if err != nil {
			return err
		}
		b, err := bootOf(ctx, tx, bootKey{id, clock.Boot}, "FOR UPDATE")
		if err != nil {
			return err
		}
		// Behind the lock of the boot: a newer session's message that this one
		// would overwrite is committed, and so is the session.
		if err := fenced(ctx, tx, id, session); err != nil {
			return err
		}
		if clock.State < b.known.State || clock == b.known {
			return nil // recorded already, or better
		}
		_, err = tx.Exec(ctx, `UPDATE boot SET state = $2, clock_offset = $3, recorded = $4 WHERE id = $1`,
			b.id, int16(clock.State), clock.Offset, time.Now().UnixNano())
		if err != nil {
			return err
		}
		return s.move(ctx, tx, b, clock)
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

// A bootKey names a row of table boot.
type bootKey struct {
	gateway int64
	boot    touchline.Boot
}

// A boot is a row of table boot.
type boot struct {
	id      int64
	gateway int64
	known   touchline.Clock // the zero State where nothing is
}

// bootOf returns what is known of a gateway's boot, locked, and makes its row
// where there is none.
func bootOf(ctx context.Context, tx pgx.Tx, key bootKey, locked string) (boot, error) {
	b := boot{gateway: key.gateway, known: touchline.Clock{Boot: key.boot}}
	read := func() error {
		var state int16
		err := tx.QueryRow(ctx, `SELECT id, state, clock_offset FROM boot WHERE gateway = $1 AND boot = $2 `+locked, key.gateway, key.boot[:]).
			Scan(&b.id, &state, &b.known.Offset)
		b.known.State = touchline.ClockState(state)
		return err
	}
	err := read()
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := tx.Exec(ctx, `INSERT INTO boot (gateway, boot) VALUES ($1, $2) ON CONFLICT DO NOTHING`, key.gateway, key.boot[:]); err != nil {
			return b, fmt.Errorf("make boot: %w", err)
		}
		err = read()
	}
	if err != nil {
		return b, fmt.Errorf("read boot: %w", err)
	}
	return b, nil
}

// A doubt is a row of table doubt: a block of which a clock message can
// correct samples.
type doubt struct {
	block  int64
	day    day
	by     touchline.Clock
	stamps merge.Stamps
}

// doubtPage is how many doubts are moved at a time.
const doubtPage = 1024

// move puts the blocks of a boot where the new clock says.
func (s *Store) move(ctx context.Context, tx pgx.Tx, b boot, clock touchline.Clock) error {
	covers := cover{}
	var changed rollup.Spans
	for last := int64(0); ; {
		page, err := readDoubts(ctx, tx, b.id, last)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		last = page[len(page)-1].block
		byDay := make(map[day][]movement)
		for i := range page {
			d := &page[i]
			was, is := cloud.Correct(d.by, b.known), cloud.Correct(d.by, clock)
			if was == is {
				continue
			}
			m := movement{d, d.stamps.By(was), d.stamps.By(is), is}
			byDay[d.day] = append(byDay[d.day], m)
			covers.add(d.day, m.to)
			for _, by := range []cloud.Correction{was, is} {
				stamped := d.stamps.StampedBy(by)
				changed.Remove(b.gateway, stamped.From, stamped.To)
			}
		}
		for d, moved := range byDay {
			if err := s.replace(ctx, tx, d, moved); err != nil {
				return err
			}
		}
	}
	if len(covers) == 0 {
		return nil
	}
	var batch pgx.Batch
	covers.queue(&batch)
	batch.Queue(insertNote, changed.Encode())
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("note hours: %w", err)
	}
	return nil
}

func readDoubts(ctx context.Context, tx pgx.Tx, boot, after int64) ([]doubt, error) {
	rows, err := tx.Query(ctx, `
		SELECT block, day, state, clock_offset, stamped_min, stamped_max, own_min, own_max FROM doubt
		WHERE boot = $1 AND block > $2 ORDER BY block LIMIT $3`, boot, after, doubtPage)
	if err != nil {
		return nil, fmt.Errorf("read doubts: %w", err)
	}
	var page []doubt
	var d doubt
	var date time.Time
	var state int16
	to := []any{&d.block, &date, &state, &d.by.Offset, &d.stamps.Stamped.From, &d.stamps.Stamped.To, &d.stamps.Own.From, &d.stamps.Own.To}
	_, err = pgx.ForEachRow(rows, to, func() error {
		d.day, d.by.State = dayOf(date), touchline.ClockState(state)
		page = append(page, d)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read doubts: %w", err)
	}
	return page, nil
}

// A movement is that of one block in time.
type movement struct {
	doubt    *doubt
	from, to merge.Span
	by       cloud.Correction
}

// replace puts the rows of one partition out of force that are in force for
// these blocks, and makes others.
func (s *Store) replace(ctx context.Context, tx pgx.Tx, d day, moved []movement) error {
	var spans []int16
	var times, blocks []int64
	for _, m := range moved {
		spans, times, blocks = append(spans, int16(m.from.Class())), append(times, m.from.From), append(blocks, m.doubt.block)
	}
	rows, err := tx.Query(ctx, `
		WITH old AS (
			UPDATE `+d.table("place")+` p SET until = pg_current_xact_id()
			FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS w (span, min_time, block)
			WHERE p.span = w.span AND p.min_time = w.min_time AND p.block = w.block AND p.until IS NULL
			RETURNING p.day, p.span, p.min_time, p.block, p.gateway
		), noted AS (
			INSERT INTO retired (day, span, min_time, block) SELECT day, span, min_time, block FROM old
		)
		SELECT block, gateway FROM old`, spans, times, blocks)
	if err != nil {
		return fmt.Errorf("retire times: %w", err)
	}
	gateways := make(map[int64]int64)
	var block, gateway int64
	if _, err := pgx.ForEachRow(rows, []any{&block, &gateway}, func() error { gateways[block] = gateway; return nil }); err != nil {
		return fmt.Errorf("retire times: %w", err)
	}
	var places [][]any
	for _, m := range moved {
		gateway, ok := gateways[m.doubt.block]
		if !ok {
			return fmt.Errorf("block %d is not found at %d to %d ns: restore the store from a backup", m.doubt.block, m.from.From, m.from.To)
		}
		places = append(places, placeRow(d, m.doubt.block, m.to, gateway, m.by, s.era))
	}
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{d.table("place")}, placeColumns, pgx.CopyFromRows(places)); err != nil {
		return fmt.Errorf("copy times: %w", err)
	}
	return nil
}
