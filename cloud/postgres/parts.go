package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A day is one of the database server's, in UTC: days since 1970. Blocks stand
// in the partition of the day on which they were recorded, by the one clock
// that all nodes share. Days of samples are no better: clocks that were never
// set and clocks that are corrected would scatter blocks over partitions that
// nobody made, and move them; and a backlog from before the oldest day that is
// kept would be dropped as it comes.
type day int32

func dayOf(t time.Time) day { return day(t.Unix() / 86_400) }

// date is how the database gets it.
func (d day) date() time.Time { return time.Unix(int64(d)*86_400, 0).UTC() }

func (d day) String() string { return d.date().Format(time.DateOnly) }

// table returns the name of the partition of a table.
func (d day) table(of string) string { return of + "_" + d.date().Format("20060102") }

// daysAhead is how many partitions are there before they are needed: a node
// that can't make any, since somebody's query of weeks has the table, records
// for as long.
const daysAhead = 2

const (
	// tendEvery is how often Run looks. A day is 24 times as long.
	tendEvery = time.Hour
	// tendLockTimeout bounds its waits for whoever reads a table that is to go:
	// behind it all others would wait too.
	tendLockTimeout = 2 * time.Second
	// maxClockDifference is up to which the server's clock is believed to say
	// which days are over.
	maxClockDifference = time.Hour
)

// Run keeps partitions ahead, drops those that are over, and sweeps what no
// query can want any more, until ctx ends. Every node may run it. What fails is
// logged and tried again: nothing of it stops recording.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		if err := s.tend(ctx); err != nil && ctx.Err() == nil {
			s.logger.Error("tend the record store", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Store) tend(ctx context.Context) error {
	return errors.Join(s.makeParts(ctx), s.dropParts(ctx), s.sweep(ctx))
}

// makeParts makes the partitions of today and the days behind it.
func (s *Store) makeParts(ctx context.Context) error {
	today, err := s.today(ctx)
	if err != nil {
		return err
	}
	var missing int
	err = s.pool.QueryRow(ctx, `SELECT $2::date - $1::date + 1 - count(*) FROM part WHERE day BETWEEN $1 AND $2`,
		today.date(), (today + daysAhead).date()).Scan(&missing)
	if err != nil {
		return fmt.Errorf("look for partitions: %w", err)
	}
	for d := today; missing > 0 && d <= today+daysAhead; d++ {
		if err := s.makePart(ctx, d); err != nil {
			return fmt.Errorf("make partition %s: %w", d, err)
		}
	}
	return nil
}

func (s *Store) today(ctx context.Context) (day, error) {
	var now time.Time
	if err := s.pool.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return 0, fmt.Errorf("read the server's clock: %w", err)
	}
	return dayOf(now), nil
}

// makePart makes the partition of one day, unless it is there. Attaching one
// hinders neither readers nor writers, where CREATE TABLE … PARTITION OF does.
func (s *Store) makePart(ctx context.Context, d day) error {
	return s.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, migrationLock); err != nil {
			return err
		}
		made, err := tx.Exec(ctx, `INSERT INTO part (day) VALUES ($1) ON CONFLICT DO NOTHING`, d.date())
		if err != nil || made.RowsAffected() == 0 {
			return err
		}
		for _, of := range []string{"block", "place"} {
			statement := fmt.Sprintf(`
				CREATE TABLE %[1]s (LIKE %[2]s INCLUDING DEFAULTS INCLUDING STORAGE);
				ALTER TABLE %[2]s ATTACH PARTITION %[1]s FOR VALUES FROM ('%[3]s') TO ('%[4]s')`, d.table(of), of, d, d+1)
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
}

// dropParts drops the partitions that were recorded more than KeepDays ago,
// the oldest first, each in a transaction of its own.
func (s *Store) dropParts(ctx context.Context) error {
	if s.opts.KeepDays == 0 {
		return nil
	}
	now, err := s.agreedNow(ctx)
	if err != nil {
		return fmt.Errorf("drop partitions: %w", err)
	}
	for {
		dropped, err := s.dropOldest(ctx, dayOf(now)-day(s.opts.KeepDays))
		if err != nil {
			return fmt.Errorf("drop partitions: %w", err)
		}
		if dropped == nil {
			return nil
		}
		s.logger.Info("samples are dropped that were kept long enough", "recorded", dropped.String(), "keep_days", s.opts.KeepDays)
	}
}

// agreedNow returns the server's time, where this machine says the same: two
// clocks are seldom wrong alike, and one that jumped must not empty the store.
func (s *Store) agreedNow(ctx context.Context) (now time.Time, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
		return now, fmt.Errorf("read the server's clock: %w", err)
	}
	if off := time.Since(now).Abs(); off > maxClockDifference {
		return now, fmt.Errorf("the clocks of the database server and of this machine differ by %s: nothing is dropped until they agree", off.Round(time.Second))
	}
	return now, nil
}

// dropOldest drops the oldest partition if it is of a day before limit.
func (s *Store) dropOldest(ctx context.Context, limit day) (dropped *day, err error) {
	err = s.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), pg_advisory_xact_lock($2)`, millis(tendLockTimeout), migrationLock); err != nil {
			return err
		}
		if err := finish(ctx, tx, limit); err != nil {
			return err
		}
		var date time.Time
		row := tx.QueryRow(ctx, `DELETE FROM part WHERE day = (SELECT min(day) FROM part) AND day < $1 RETURNING day`, limit.date())
		if err := row.Scan(&date); errors.Is(err, pgx.ErrNoRows) {
			return nil
		} else if err != nil {
			return err
		}
		d := dayOf(date)
		if _, err := tx.Exec(ctx, fmt.Sprintf(`DROP TABLE %s, %s`, d.table("block"), d.table("place"))); err != nil {
			return err
		}
		for _, of := range []string{"doubt", "retired"} {
			if _, err := tx.Exec(ctx, `DELETE FROM `+of+` WHERE day = $1`, date); err != nil {
				return err
			}
		}
		dropped = &d
		return nil
	})
	if err != nil {
		return nil, err
	}
	return dropped, nil
}

// retiredFor is how long rows of place stay that are out of force: no query
// takes longer, or it is told (see reading.Complete).
const retiredFor = 24 * time.Hour

const sweepAll = time.Duration(-1)

func (s *Store) sweep(ctx context.Context) error {
	err := s.change(ctx, func(tx pgx.Tx) error { return sweepRetired(ctx, tx, retiredFor) })
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}

// sweepBatch bounds what one transaction sweeps.
const sweepBatch = 100_000

// sweepRetired deletes rows of place that have been out of force for longer
// than age, or all of them.
func sweepRetired(ctx context.Context, tx pgx.Tx, age time.Duration) error {
	limit := int64(sweepBatch)
	if age == sweepAll {
		age, limit = 0, 1<<62
	}
	_, err := tx.Exec(ctx, `
		WITH gone AS (
			DELETE FROM retired WHERE id IN (SELECT id FROM retired WHERE at <= now() - $1::interval ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)
			RETURNING day, span, min_time, block, until
		), rows AS (
			DELETE FROM place p USING gone g
			WHERE p.day = g.day AND p.span = g.span AND p.min_time = g.min_time AND p.block = g.block AND p.until = g.until
		)
		UPDATE meta SET value = greatest(value::bigint, (SELECT max(until::text::bigint) FROM gone))::text
		WHERE key = 'swept' AND EXISTS (SELECT 1 FROM gone)`, age, limit)
	if err != nil {
		return fmt.Errorf("sweep times: %w", err)
	}
	return nil
}
