package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
	"touchline/wire"
)

// maskLock is the advisory lock of masks being added: their numbers rise in the
// order of their commits ("tlcm").
const maskLock = 0x746c636d

// schemaMasks adds late uploads: masks, which nothing changes.
const schemaMasks = `
CREATE TABLE mask (
	number   bigint PRIMARY KEY,
	sensor   text NOT NULL,   -- of a revocation that of what it revokes
	metric   text NOT NULL,   -- '': all
	min_time bigint NOT NULL,
	max_time bigint NOT NULL, -- included
	revokes  bigint UNIQUE REFERENCES mask,
	made     bigint NOT NULL,
	made_by  text NOT NULL,
	reason   text NOT NULL
);
CREATE INDEX mask_sensor ON mask (sensor, number);

-- The gateways whose samples it covers.
CREATE TABLE mask_gateway (
	mask    bigint NOT NULL REFERENCES mask,
	gateway bigint NOT NULL REFERENCES gateway,
	PRIMARY KEY (mask, gateway)
);

-- The samples that stay.
CREATE TABLE mask_keep (
	mask   bigint NOT NULL REFERENCES mask,
	epoch  bytea NOT NULL,
	ranges int8multirange NOT NULL,
	PRIMARY KEY (mask, epoch)
);

CREATE FUNCTION mask_stays() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION 'a mask is never changed or deleted: revoke it'; END $$;
CREATE TRIGGER mask_stays BEFORE UPDATE OR DELETE ON mask FOR EACH STATEMENT EXECUTE FUNCTION mask_stays();
CREATE TRIGGER mask_stays BEFORE UPDATE OR DELETE ON mask_gateway FOR EACH STATEMENT EXECUTE FUNCTION mask_stays();
CREATE TRIGGER mask_stays BEFORE UPDATE OR DELETE ON mask_keep FOR EACH STATEMENT EXECUTE FUNCTION mask_stays();
`

// AddMask implements cloud.Masks.
func (s *Store) AddMask(ctx context.Context, m cloud.Mask) (cloud.Mask, error) {
	if err := m.Check(); err != nil {
		return cloud.Mask{}, fmt.Errorf("add mask: %w", err)
	}
	err := s.change(ctx, func(tx pgx.Tx) error {
		var masks int
		var newest uint64
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, maskLock); err != nil {
			return err
		}
		// A revocation, and the mask that it put out of force.
		if err := tx.QueryRow(ctx, `SELECT count(*) - 2 * count(revokes), coalesce(max(number), 0) FROM mask`).Scan(&masks, &newest); err != nil {
			return err
		}
		if masks >= cloud.MaxMasks && m.Revokes == 0 {
			return cloud.TooManyMasks(masks)
		}
		m.Number, m.Made, m.Revoked = newest+1, time.Unix(0, time.Now().UnixNano()).UTC(), 0
		var changed rollup.Spans
		var err error
		if m.Revokes != 0 {
			err = revokeMask(ctx, tx, &m, &changed)
		} else {
			err = insertMask(ctx, tx, &m, &changed)
		}
		if err != nil {
			return err
		}
		return note(ctx, tx, &changed)
	})
	if err != nil {
		return cloud.Mask{}, fmt.Errorf("add mask: %w", err)
	}
	return m, nil
}

func insertMask(ctx context.Context, tx pgx.Tx, m *cloud.Mask, changed *rollup.Spans) error {
	_, err := tx.Exec(ctx, `INSERT INTO mask (number, sensor, metric, min_time, max_time, made, made_by, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		int64(m.Number), m.Sensor, m.Metric, m.From, m.To-1, m.Made.UnixNano(), m.By, m.Reason)
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	var batch pgx.Batch
	for _, name := range m.Gateways {
		gateway, err := gatewayID(ctx, tx, name)
		if err != nil {
			return fmt.Errorf("gateway %s: %w", name, err)
		}
		changed.Remove(gateway, m.From, m.To-1)
		batch.Queue(`INSERT INTO mask_gateway (mask, gateway) VALUES ($1, $2)`, int64(m.Number), gateway)
	}
	for _, k := range m.Keep {
		batch.Queue(`INSERT INTO mask_keep (mask, epoch, ranges) VALUES ($1, $2, $3)`, int64(m.Number), k.Epoch[:], multirangeOf(k.Ranges))
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("insert what it covers and keeps: %w", err)
	}
	return nil
}

func revokeMask(ctx context.Context, tx pgx.Tx, m *cloud.Mask, changed *rollup.Spans) error {
	var sensor, metric string
	var from, to int64
	err := tx.QueryRow(ctx, `
		SELECT sensor, metric, min_time, max_time FROM mask m
		WHERE number = $1 AND revokes IS NULL AND NOT EXISTS (SELECT FROM mask WHERE revokes = m.number)`, int64(m.Revokes)).
		Scan(&sensor, &metric, &from, &to)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("revoke mask %d: %w", m.Revokes, cloud.ErrNoMask)
	}
	if err != nil {
		return fmt.Errorf("read mask %d: %w", m.Revokes, err)
	}
	rows, err := tx.Query(ctx, `SELECT gateway FROM mask_gateway WHERE mask = $1`, int64(m.Revokes))
	if err != nil {
		return fmt.Errorf("read gateways of mask %d: %w", m.Revokes, err)
	}
	var gateway int64
	_, err = pgx.ForEachRow(rows, []any{&gateway}, func() error { changed.Remove(gateway, from, to); return nil })
	if err != nil {
		return fmt.Errorf("read gateways of mask %d: %w", m.Revokes, err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO mask (number, sensor, metric, min_time, max_time, revokes, made, made_by, reason) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		int64(m.Number), sensor, metric, from, to, int64(m.Revokes), m.Made.UnixNano(), m.By, m.Reason)
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	return nil
}

// Masks implements cloud.Masks.
func (s *Store) Masks(ctx context.Context, sensor string) ([]cloud.Mask, error) {
	if sensor != "" && touchline.CheckSensor(sensor) != nil {
		return nil, nil // the server takes no NUL, for one
	}
	masks, err := s.readMasks(ctx, maskScope{sensor: sensor, from: math.MinInt64, to: math.MaxInt64, all: true})
	if err != nil {
		return nil, fmt.Errorf("list masks: %w", err)
	}
	return masks, nil
}

// A maskScope says which masks are read.
type maskScope struct {
	sensor, metric string // "": any
	from, to       int64  // both included
	all            bool   // those out of force and revocations too
}

// masksFor returns the masks in force that concern a query.
func (s *Store) masksFor(ctx context.Context, q cloud.Query) ([]cloud.Mask, error) {
	if q.Sensor != "" && touchline.CheckSensor(q.Sensor) != nil || q.Metric != "" && touchline.CheckMetric(q.Metric) != nil {
		return nil, nil // the server takes no NUL, for one
	}
	scope := maskScope{sensor: q.Sensor, metric: q.Metric, from: math.MinInt64, to: math.MaxInt64}
	if q.From != nil {
		scope.from = *q.From
	}
	if q.To != nil {
		scope.to = *q.To
	}
	masks, err := s.readMasks(ctx, scope)
	if err != nil {
		return nil, fmt.Errorf("read masks: %w", err)
	}
	return masks, nil
}

// readMasks reads what masks cover and keep after they are found: what is there
// is never changed, so no mask is seen in parts.
func (s *Store) readMasks(ctx context.Context, scope maskScope) ([]cloud.Mask, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT m.number, m.sensor, m.metric, m.min_time, m.max_time, coalesce(m.revokes, 0), m.made, m.made_by, m.reason, coalesce(r.number, 0)
		FROM mask m LEFT JOIN mask r ON r.revokes = m.number
		WHERE ($1 = '' OR m.sensor = $1) AND ($2 = '' OR m.metric IN ('', $2)) AND m.max_time >= $3 AND m.min_time <= $4
			AND ($5 OR m.revokes IS NULL AND r.number IS NULL)
		ORDER BY m.number`, scope.sensor, scope.metric, scope.from, scope.to, scope.all)
	if err != nil {
		return nil, err
	}
	var masks []cloud.Mask
	var numbers []int64
	at := make(map[int64]int)
	var m cloud.Mask
	var made int64
	to := []any{&m.Number, &m.Sensor, &m.Metric, &m.From, &m.To, &m.Revokes, &made, &m.By, &m.Reason, &m.Revoked}
	_, err = pgx.ForEachRow(rows, to, func() error {
		read := m
		read.To++
		read.Made = time.Unix(0, made).UTC()
		if read.Revokes != 0 {
			read.Sensor, read.Metric, read.From, read.To = "", "", 0, 0
		}
		at[int64(m.Number)] = len(masks)
		masks, numbers = append(masks, read), append(numbers, int64(m.Number))
		return nil
	})
	if err != nil || len(masks) == 0 {
		return nil, err
	}
	var number int64
	var name string
	rows, err = s.pool.Query(ctx, `SELECT mask, name FROM mask_gateway k JOIN gateway g ON g.id = k.gateway WHERE mask = ANY ($1) ORDER BY name`, numbers)
	if err != nil {
		return nil, err
	}
	_, err = pgx.ForEachRow(rows, []any{&number, &name}, func() error {
		m := &masks[at[number]]
		m.Gateways = append(m.Gateways, name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var epoch []byte
	var stored multirange
	rows, err = s.pool.Query(ctx, `SELECT mask, epoch, ranges FROM mask_keep WHERE mask = ANY ($1) ORDER BY mask, epoch`, numbers)
	if err != nil {
		return nil, err
	}
	_, err = pgx.ForEachRow(rows, []any{&number, &epoch, &stored}, func() error {
		ranges, err := rangesOf(stored)
		if err != nil || len(epoch) != len(touchline.Epoch{}) {
			return fmt.Errorf("mask %d: %w", number, errRanges)
		}
		m := &masks[at[number]]
		m.Keep = append(m.Keep, wire.EpochRanges{Epoch: touchline.Epoch(epoch), Ranges: ranges})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return masks, nil
}
