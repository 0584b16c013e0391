package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"touchline/cloud"
)

// rowsPage is how many rows are read at a time, each some 100 bytes.
const rowsPage = 1000

// Rollups implements cloud.Rollups.
func (s *Store) Rollups(ctx context.Context, q cloud.Query, minutes bool, yield func(cloud.Rollup) error) error {
	from, to := q.Seconds()
	table := "rollup_second"
	if minutes {
		table = "rollup_minute"
	}
	for last := int64(0); ; {
		id, row, err := s.nextSeries(ctx, q, last)
		if err != nil {
			return fmt.Errorf("query rollups: %w", err)
		}
		if id == 0 {
			return nil
		}
		last = id
		for next := from; next <= to; {
			page, err := s.rowsOf(ctx, table, id, row, [2]int64{next, to})
			if err != nil {
				return fmt.Errorf("query rollups: %w", err)
			}
			for i := range page {
				if err := yield(page[i]); err != nil {
					return err
				}
			}
			if len(page) < rowsPage {
				break
			}
			next = page[len(page)-1].Time + 1
		}
	}
}

// nextSeries returns the series behind one that the query selects; 0 is none.
func (s *Store) nextSeries(ctx context.Context, q cloud.Query, last int64) (id int64, r cloud.Rollup, err error) {
	err = s.read.QueryRowContext(ctx, `
		SELECT s.id, g.name, s.sensor, s.metric, s.unit FROM series s JOIN gateway g ON g.id = s.gateway
		WHERE s.id > ?1 AND (?2 = '' OR g.name = ?2) AND (?3 = '' OR s.sensor = ?3) AND (?4 = '' OR s.metric = ?4) ORDER BY s.id LIMIT 1`,
		last, q.Gateway, q.Sensor, q.Metric).Scan(&id, &r.Gateway, &r.Sensor, &r.Metric, &r.Unit)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, r, nil
	}
	return id, r, err
}

func (s *Store) rowsOf(ctx context.Context, table string, series int64, r cloud.Rollup, span [2]int64) (page []cloud.Rollup, err error) {
	// #nosec G202 -- table is one of two names of this package
	rows, err := s.read.QueryContext(ctx, `SELECT time, count, min, max, sum, last FROM `+table+`
		WHERE series = ? AND time BETWEEN ? AND ? ORDER BY time LIMIT ?`, series, span[0], span[1], rowsPage)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		if err := rows.Scan(&r.Time, &r.Count, &r.Min, &r.Max, &r.Sum, &r.Last); err != nil {
			return nil, err
		}
		page = append(page, r)
	}
	return page, rows.Err()
}
