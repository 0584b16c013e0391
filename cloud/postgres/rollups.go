package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
)

// rowsPage is how many rows are read at a time, each some 100 bytes.
const rowsPage = 1000

// Rollups implements cloud.Rollups.
func (s *Store) Rollups(ctx context.Context, q cloud.Query, minutes bool, yield func(cloud.Rollup) error) error {
	if q.Gateway != "" && touchline.CheckGateway(q.Gateway) != nil || q.Sensor != "" && touchline.CheckSensor(q.Sensor) != nil ||
		q.Metric != "" && touchline.CheckMetric(q.Metric) != nil {
		return nil // the server takes no NUL, for one
	}
	from, to := q.Seconds()
	table := "rollup_second"
	if minutes {
		table = "rollup_minute"
	}
	for last := int32(0); ; {
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
func (s *Store) nextSeries(ctx context.Context, q cloud.Query, last int32) (id int32, r cloud.Rollup, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT s.id, g.name, s.sensor, s.metric, s.unit FROM series s JOIN gateway g ON g.id = s.gateway
		WHERE s.id > $1 AND ($2 = '' OR g.name = $2) AND ($3 = '' OR s.sensor = $3) AND ($4 = '' OR s.metric = $4) ORDER BY s.id LIMIT 1`,
		last, q.Gateway, q.Sensor, q.Metric).Scan(&id, &r.Gateway, &r.Sensor, &r.Metric, &r.Unit)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, r, nil
	}
	return id, r, err
}

func (s *Store) rowsOf(ctx context.Context, table string, series int32, r cloud.Rollup, span [2]int64) (page []cloud.Rollup, err error) {
	rows, err := s.pool.Query(ctx, `SELECT extract(epoch FROM time)::bigint, count, min, max, sum, last FROM `+table+`
		WHERE series = $1 AND time >= to_timestamp($2::float8) AND time <= to_timestamp($3::float8) ORDER BY time LIMIT $4`,
		series, float64(span[0]), float64(span[1]), rowsPage)
	if err != nil {
		return nil, err
	}
	_, err = pgx.ForEachRow(rows, []any{&r.Time, &r.Count, &r.Min, &r.Max, &r.Sum, &r.Last}, func() error {
		page = append(page, r)
		return nil
	})
	return page, err
}
