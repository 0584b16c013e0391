package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/rollup"
)

// Clock implements cloud.Recorder. Blocks that the correction moves in time
// get another row in block_time, with the version from which it is in force;
// the old one stays until no query of this process reads an older version.
// Three rows are written for each: 100,000 blocks, a day of ten small ones a
// second, are a transaction of a few seconds.
func (s *Store) Clock(ctx context.Context, gateway string, session uint64, clock touchline.Clock) (err error) {
	fail := func(err error) error {
		return fmt.Errorf("record clock of gateway %s, boot %s: %w", gateway, clock.Boot, err)
	}
	if clock.State == touchline.ClockUnset || clock.State > touchline.ClockSynchronised {
		return fail(fmt.Errorf("%s corrects nothing", clock.State))
	}
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return fail(err)
	}
	defer rollback(tx, &err)
	id, err := fenced(tx, gateway, session)
	if err != nil {
		return fail(err)
	}
	b, err := bootOf(tx, id, clock.Boot)
	if err != nil {
		return fail(err)
	}
	if clock.State < b.known.State || clock == b.known {
		return nil // recorded already, or better
	}
	if _, err := tx.Exec(`UPDATE boot SET state = ?, offset = ?, recorded = ? WHERE id = ?`,
		int64(clock.State), clock.Offset, time.Now().UnixNano(), b.id); err != nil {
		return fail(err)
	}
	if err := s.move(ctx, tx, b, clock); err != nil {
		return fail(err)
	}
	if err := tx.Commit(); err != nil {
		return fail(err)
	}
	return nil
}

// A boot is a row of table boot.
type boot struct {
	id      int64
	gateway int64
	known   touchline.Clock // the zero State where nothing is
}

// bootOf returns what is known of a gateway's boot, and makes its row where
// there is none.
func bootOf(tx *sql.Tx, gateway int64, id touchline.Boot) (boot, error) {
	b := boot{gateway: gateway, known: touchline.Clock{Boot: id}}
	if _, err := tx.Exec(`INSERT INTO boot (gateway, boot) VALUES (?, ?) ON CONFLICT DO NOTHING`, gateway, id[:]); err != nil {
		return b, fmt.Errorf("make boot: %w", err)
	}
	row := tx.QueryRow(`SELECT id, state, offset FROM boot WHERE gateway = ? AND boot = ?`, gateway, id[:])
	if err := row.Scan(&b.id, &b.known.State, &b.known.Offset); err != nil {
		return b, fmt.Errorf("read boot: %w", err)
	}
	return b, nil
}

// A doubt is a row of table doubt: a block of which a clock message can
// correct samples.
type doubt struct {
	block  int64
	by     touchline.Clock
	stamps merge.Stamps
}

func (d *doubt) insert(tx *sql.Tx, boot int64) error {
	_, err := tx.Exec(`
		INSERT INTO doubt (block, boot, state, offset, stamped_min, stamped_max, own_min, own_max) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		d.block, boot, int64(d.by.State), d.by.Offset, d.stamps.Stamped.From, d.stamps.Stamped.To, d.stamps.Own.From, d.stamps.Own.To)
	if err != nil {
		return fmt.Errorf("insert doubt: %w", err)
	}
	return nil
}

// A placed block is a row of table block_time.
type placed struct {
	merge.Span
	block, gateway int64
	by             cloud.Correction
	since          int64
}

func (p *placed) insert(tx *sql.Tx) error {
	_, err := tx.Exec(`
		INSERT INTO block_time (span, min_time, block, since, max_time, gateway, shift, vouched) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		p.Class(), p.From, p.block, p.since, p.To, p.gateway, p.by.Shift, p.by.Vouched)
	if err != nil {
		return fmt.Errorf("insert time: %w", err)
	}
	return nil
}

// doubtPage is how many doubts are read at a time.
const doubtPage = 1024

// move puts the blocks of a boot where the new clock says, and what is known
// of them into block_time.
func (s *Store) move(ctx context.Context, tx *sql.Tx, b boot, clock touchline.Clock) error {
	version, err := corrections(tx)
	if err != nil {
		return err
	}
	version++
	var moved rollup.Spans
	for last := int64(0); ; {
		page, err := readDoubts(ctx, tx, b.id, last)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for i := range page {
			d := &page[i]
			last = d.block
			was, is := cloud.Correct(d.by, b.known), cloud.Correct(d.by, clock)
			if was == is {
				continue
			}
			for _, by := range []cloud.Correction{was, is} {
				stamped := d.stamps.StampedBy(by)
				moved.Remove(b.gateway, stamped.From, stamped.To)
			}
			if err := replace(tx, d, was, is, version); err != nil {
				return err
			}
		}
	}
	if moved.None() {
		return nil
	}
	if err := note(tx, &moved); err != nil {
		return err
	}
	if _, err := tx.Exec(`UPDATE meta SET value = ? WHERE key = 'corrections'`, version); err != nil {
		return fmt.Errorf("count corrections: %w", err)
	}
	// What this correction retires is swept with the next one: until this
	// transaction is committed, queries begin that want it.
	return s.sweep(tx, version-1)
}

// corrections returns the version of block_time.
func corrections(tx *sql.Tx) (version int64, err error) {
	if err := tx.QueryRow(`SELECT value FROM meta WHERE key = 'corrections'`).Scan(&version); err != nil {
		return 0, fmt.Errorf("read version of corrections: %w", err)
	}
	return version, nil
}

func readDoubts(ctx context.Context, tx *sql.Tx, boot, after int64) ([]doubt, error) {
	rows, err := tx.QueryContext(ctx, `
		SELECT block, state, offset, stamped_min, stamped_max, own_min, own_max FROM doubt
		WHERE boot = ? AND block > ? ORDER BY block LIMIT ?`, boot, after, doubtPage)
	if err != nil {
		return nil, fmt.Errorf("read doubts: %w", err)
	}
	defer rows.Close()
	var page []doubt
	for rows.Next() {
		var d doubt
		if err := rows.Scan(&d.block, &d.by.State, &d.by.Offset, &d.stamps.Stamped.From, &d.stamps.Stamped.To, &d.stamps.Own.From, &d.stamps.Own.To); err != nil {
			return nil, fmt.Errorf("read doubts: %w", err)
		}
		page = append(page, d)
	}
	return page, rows.Err()
}

// replace retires the row that is in force for a block, and makes another.
func replace(tx *sql.Tx, d *doubt, was, is cloud.Correction, version int64) error {
	old := d.stamps.By(was)
	p := placed{Span: d.stamps.By(is), block: d.block, by: is, since: version}
	var since int64
	err := tx.QueryRow(`
		UPDATE block_time SET until = ? WHERE span = ? AND min_time = ? AND block = ? AND until IS NULL RETURNING since, gateway`,
		version, old.Class(), old.From, d.block).Scan(&since, &p.gateway)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("block %d is not found at %d to %d ns: restore the store from a backup", d.block, old.From, old.To)
	}
	if err != nil {
		return fmt.Errorf("retire time: %w", err)
	}
	_, err = tx.Exec(`INSERT INTO retired (until, span, min_time, block, since) VALUES (?, ?, ?, ?, ?)`,
		version, old.Class(), old.From, d.block, since)
	if err != nil {
		return fmt.Errorf("retire time: %w", err)
	}
	return p.insert(tx)
}

// sweep deletes the rows, out of force by a version that is committed, that no
// query of this process can want any more. One of another process that does
// finds out (see reading.swept).
func (s *Store) sweep(tx *sql.Tx, version int64) error {
	s.snapshots.mu.Lock()
	for _, v := range s.snapshots.of {
		version = min(version, v)
	}
	s.snapshots.mu.Unlock()
	for _, statement := range []string{
		`DELETE FROM block_time WHERE (span, min_time, block, since) IN (SELECT span, min_time, block, since FROM retired WHERE until <= ?)`,
		`DELETE FROM retired WHERE until <= ?`,
		`UPDATE meta SET value = max(CAST(value AS INTEGER), ?) WHERE key = 'swept'`,
	} {
		if _, err := tx.Exec(statement, version); err != nil {
			return fmt.Errorf("sweep times: %w", err)
		}
	}
	return nil
}
