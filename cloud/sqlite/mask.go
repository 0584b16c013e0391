package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
	"touchline/wire"
)

// schemaMasks adds late uploads: masks, which nothing changes.
const schemaMasks = `
CREATE TABLE mask (
	number   INTEGER PRIMARY KEY AUTOINCREMENT,
	sensor   TEXT NOT NULL,    -- of a revocation that of what it revokes
	metric   TEXT NOT NULL,    -- '': all
	min_time INTEGER NOT NULL,
	max_time INTEGER NOT NULL, -- included
	revokes  INTEGER UNIQUE REFERENCES mask,
	made     INTEGER NOT NULL,
	made_by  TEXT NOT NULL,
	reason   TEXT NOT NULL
);
CREATE INDEX mask_sensor ON mask (sensor, number);

-- The gateways whose samples it covers.
CREATE TABLE mask_gateway (
	mask    INTEGER NOT NULL REFERENCES mask,
	gateway INTEGER NOT NULL REFERENCES gateway,
	PRIMARY KEY (mask, gateway)
) WITHOUT ROWID;

-- The samples that stay.
CREATE TABLE mask_keep (
	mask   INTEGER NOT NULL REFERENCES mask,
	epoch  BLOB NOT NULL,
	ranges BLOB NOT NULL, -- appendRanges
	PRIMARY KEY (mask, epoch)
) WITHOUT ROWID;

CREATE TRIGGER mask_stays BEFORE UPDATE ON mask BEGIN SELECT raise(ABORT, 'a mask is never changed: revoke it'); END;
CREATE TRIGGER mask_is_kept BEFORE DELETE ON mask BEGIN SELECT raise(ABORT, 'a mask is never deleted: revoke it'); END;
CREATE TRIGGER mask_gateway_stays BEFORE UPDATE ON mask_gateway BEGIN SELECT raise(ABORT, 'a mask is never changed: revoke it'); END;
CREATE TRIGGER mask_gateway_is_kept BEFORE DELETE ON mask_gateway BEGIN SELECT raise(ABORT, 'a mask is never changed: revoke it'); END;
CREATE TRIGGER mask_keep_stays BEFORE UPDATE ON mask_keep BEGIN SELECT raise(ABORT, 'a mask is never changed: revoke it'); END;
CREATE TRIGGER mask_keep_is_kept BEFORE DELETE ON mask_keep BEGIN SELECT raise(ABORT, 'a mask is never changed: revoke it'); END;
`

// AddMask implements cloud.Masks.
func (s *Store) AddMask(ctx context.Context, m cloud.Mask) (_ cloud.Mask, err error) {
	fail := func(err error) (cloud.Mask, error) { return cloud.Mask{}, fmt.Errorf("add mask: %w", err) }
	if err := m.Check(); err != nil {
		return fail(err)
	}
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return fail(err)
	}
	defer rollback(tx, &err)
	var masks int
	// A revocation, and the mask that it put out of force.
	if err := tx.QueryRow(`SELECT count(*) - 2 * count(revokes) FROM mask`).Scan(&masks); err != nil {
		return fail(err)
	}
	if masks >= cloud.MaxMasks && m.Revokes == 0 {
		return fail(cloud.TooManyMasks(masks))
	}
	m.Made, m.Revoked = time.Unix(0, time.Now().UnixNano()).UTC(), 0
	var changed rollup.Spans
	if m.Revokes != 0 {
		m.Number, err = revokeMask(tx, &m, &changed)
	} else {
		m.Number, err = insertMask(tx, &m, &changed)
	}
	if err != nil {
		return fail(err)
	}
	if err := note(tx, &changed); err != nil {
		return fail(err)
	}
	if err := tx.Commit(); err != nil {
		return fail(fmt.Errorf("commit: %w", err))
	}
	return m, nil
}

func insertMask(tx *sql.Tx, m *cloud.Mask, changed *rollup.Spans) (uint64, error) {
	result, err := tx.Exec(`INSERT INTO mask (sensor, metric, min_time, max_time, made, made_by, reason) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		m.Sensor, m.Metric, m.From, m.To-1, m.Made.UnixNano(), m.By, m.Reason)
	if err != nil {
		return 0, fmt.Errorf("insert: %w", err)
	}
	number, err := result.LastInsertId()
	if err != nil {
		return 0, fmt.Errorf("insert: %w", err)
	}
	for _, name := range m.Gateways {
		var gateway int64
		err := tx.QueryRow(`SELECT id FROM gateway WHERE name = ?`, name).Scan(&gateway)
		if errors.Is(err, sql.ErrNoRows) {
			return 0, fmt.Errorf("gateway %s: %w", name, errNotRegistered)
		}
		if err == nil {
			_, err = tx.Exec(`INSERT INTO mask_gateway (mask, gateway) VALUES (?, ?)`, number, gateway)
		}
		if err != nil {
			return 0, fmt.Errorf("insert gateway %s: %w", name, err)
		}
		changed.Remove(gateway, m.From, m.To-1)
	}
	for _, k := range m.Keep {
		if _, err := tx.Exec(`INSERT INTO mask_keep (mask, epoch, ranges) VALUES (?, ?, ?)`, number, k.Epoch[:], appendRanges(nil, k.Ranges)); err != nil {
			return 0, fmt.Errorf("insert epoch %s: %w", k.Epoch, err)
		}
	}
	return uint64(number), nil
}

func revokeMask(tx *sql.Tx, m *cloud.Mask, changed *rollup.Spans) (uint64, error) {
	var from, to int64
	err := tx.QueryRow(`
		SELECT sensor, metric, min_time, max_time FROM mask m
		WHERE number = ? AND revokes IS NULL AND NOT EXISTS (SELECT 1 FROM mask WHERE revokes = m.number)`, int64(m.Revokes)).
		Scan(&m.Sensor, &m.Metric, &from, &to)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("revoke mask %d: %w", m.Revokes, cloud.ErrNoMask)
	}
	if err != nil {
		return 0, fmt.Errorf("read mask %d: %w", m.Revokes, err)
	}
	rows, err := tx.Query(`SELECT gateway FROM mask_gateway WHERE mask = ?`, int64(m.Revokes))
	if err != nil {
		return 0, fmt.Errorf("read gateways of mask %d: %w", m.Revokes, err)
	}
	defer rows.Close()
	for rows.Next() {
		var gateway int64
		if err := rows.Scan(&gateway); err != nil {
			return 0, fmt.Errorf("read gateways of mask %d: %w", m.Revokes, err)
		}
		changed.Remove(gateway, from, to)
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("read gateways of mask %d: %w", m.Revokes, err)
	}
	result, err := tx.Exec(`INSERT INTO mask (sensor, metric, min_time, max_time, revokes, made, made_by, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		m.Sensor, m.Metric, from, to, int64(m.Revokes), m.Made.UnixNano(), m.By, m.Reason)
	if err != nil {
		return 0, fmt.Errorf("insert: %w", err)
	}
	number, err := result.LastInsertId()
	m.Sensor, m.Metric = "", ""
	return uint64(number), err
}

// Masks implements cloud.Masks.
func (s *Store) Masks(ctx context.Context, sensor string) ([]cloud.Mask, error) {
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

const masksWhere = `
	FROM mask m LEFT JOIN mask r ON r.revokes = m.number
	WHERE (?1 = '' OR m.sensor = ?1) AND (?2 = '' OR m.metric IN ('', ?2)) AND m.max_time >= ?3 AND m.min_time <= ?4
		AND (?5 OR m.revokes IS NULL AND r.number IS NULL)`

// readMasks reads in one transaction, so that no mask is seen in parts.
func (s *Store) readMasks(ctx context.Context, scope maskScope) (masks []cloud.Mask, err error) {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer rollback(tx, &err)
	args := []any{scope.sensor, scope.metric, scope.from, scope.to, scope.all}
	at := make(map[int64]int)
	err = each(ctx, tx, `SELECT m.number, m.sensor, m.metric, m.min_time, m.max_time, coalesce(m.revokes, 0), m.made, m.made_by, m.reason, coalesce(r.number, 0)`+
		masksWhere+` ORDER BY m.number`, args, func(rows *sql.Rows) error {
		var m cloud.Mask
		var number, revokes, revoked, made int64
		if err := rows.Scan(&number, &m.Sensor, &m.Metric, &m.From, &m.To, &revokes, &made, &m.By, &m.Reason, &revoked); err != nil {
			return err
		}
		m.To++
		m.Number, m.Revokes, m.Revoked, m.Made = uint64(number), uint64(revokes), uint64(revoked), time.Unix(0, made).UTC()
		if revokes != 0 {
			m.Sensor, m.Metric, m.From, m.To = "", "", 0, 0
		}
		at[number] = len(masks)
		masks = append(masks, m)
		return nil
	})
	if err != nil || len(masks) == 0 {
		return nil, err
	}
	err = each(ctx, tx, `SELECT k.mask, g.name FROM mask_gateway k JOIN gateway g ON g.id = k.gateway WHERE k.mask IN (SELECT m.number`+
		masksWhere+`) ORDER BY g.name`, args, func(rows *sql.Rows) error {
		var number int64
		var name string
		if err := rows.Scan(&number, &name); err != nil {
			return err
		}
		m := &masks[at[number]]
		m.Gateways = append(m.Gateways, name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = each(ctx, tx, `SELECT mask, epoch, ranges FROM mask_keep WHERE mask IN (SELECT m.number`+masksWhere+`) ORDER BY mask, epoch`, args, func(rows *sql.Rows) error {
		var number int64
		var epoch, encoded []byte
		if err := rows.Scan(&number, &epoch, &encoded); err != nil {
			return err
		}
		ranges, err := parseRanges(encoded)
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

// each calls do for each row of a query.
func each(ctx context.Context, tx *sql.Tx, query string, args []any, do func(*sql.Rows) error) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := do(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
