package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"touchline/cloud"
	"touchline/cloud/rollup"
)

// schemaRollups adds rows of seconds and minutes. rollup_1s and rollup_1m are
// what people read; what they are made of is narrow, since there is a row for
// each second of a series.
const schemaRollups = `
CREATE TABLE series (
	id      INTEGER PRIMARY KEY,
	gateway INTEGER NOT NULL REFERENCES gateway,
	sensor  TEXT NOT NULL,
	metric  TEXT NOT NULL,
	unit    TEXT NOT NULL,
	UNIQUE (gateway, sensor, metric, unit)
);
CREATE INDEX series_sensor ON series (sensor, metric);

CREATE TABLE rollup_second (
	series INTEGER NOT NULL REFERENCES series,
	time   INTEGER NOT NULL, -- s since the Unix epoch, where it begins
	count  INTEGER NOT NULL,
	min    REAL NOT NULL,
	max    REAL NOT NULL,
	sum    REAL NOT NULL,
	last   REAL NOT NULL,
	PRIMARY KEY (series, time)
) WITHOUT ROWID;

CREATE TABLE rollup_minute (
	series INTEGER NOT NULL REFERENCES series,
	time   INTEGER NOT NULL, -- s since the Unix epoch, where it begins
	count  INTEGER NOT NULL,
	min    REAL NOT NULL,
	max    REAL NOT NULL,
	sum    REAL NOT NULL,
	last   REAL NOT NULL,
	PRIMARY KEY (series, time)
) WITHOUT ROWID;

CREATE VIEW rollup_1s AS
	SELECT g.name AS gateway, g.venue, s.sensor, s.metric, s.unit, r.time, r.count, r.min, r.max, r.sum / r.count AS mean, r.sum, r.last
	FROM rollup_second r JOIN series s ON s.id = r.series JOIN gateway g ON g.id = s.gateway;
CREATE VIEW rollup_1m AS
	SELECT g.name AS gateway, g.venue, s.sensor, s.metric, s.unit, r.time, r.count, r.min, r.max, r.sum / r.count AS mean, r.sum, r.last
	FROM rollup_minute r JOIN series s ON s.id = r.series JOIN gateway g ON g.id = s.gateway;

-- What transactions changed, and rows do not show yet.
CREATE TABLE rollup_note (
	id    INTEGER PRIMARY KEY,
	made  INTEGER NOT NULL,
	spans BLOB NOT NULL -- rollup.Encode
);

INSERT INTO meta (key, value) VALUES ('rollups', 'off'), ('rollup_turn', '0'), ('rollup_seconds_from', '-9223372037');
`

// note leaves word of what a transaction changed.
func note(tx *sql.Tx, changed *rollup.Spans) error {
	spans := changed.Encode()
	if spans == nil {
		return nil
	}
	if _, err := tx.Exec(`INSERT INTO rollup_note (made, spans) VALUES (?, ?)`, time.Now().UnixNano(), spans); err != nil {
		return fmt.Errorf("note what changed: %w", err)
	}
	return nil
}

// seriesIDs are the numbers of series, as far as they are known: they never
// change.
type seriesIDs struct {
	mu    sync.Mutex // covers known, and turns of one process
	known map[rollup.Series]int64
}

// maxSeries bounds them: some 200 bytes each, 20 MB.
const maxSeries = 100_000

// RollupStart implements rollup.Store.
func (s *Store) RollupStart(ctx context.Context, enabled bool) (err error) {
	var is string
	var notes bool
	row := s.read.QueryRowContext(ctx, `SELECT value, EXISTS (SELECT 1 FROM rollup_note) FROM meta WHERE key = 'rollups'`)
	if err := row.Scan(&is, &notes); err != nil {
		return fmt.Errorf("look at rollups: %w", err)
	}
	if enabled == (is == "on") && (enabled || !notes) {
		return nil
	}
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx, &err)
	if _, err := tx.Exec(`DELETE FROM rollup_note`); err != nil {
		return err
	}
	is = "off"
	if enabled {
		is = "on"
		var all rollup.Spans
		all.Remove(0, math.MinInt64, math.MaxInt64)
		if err := note(tx, &all); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(`UPDATE meta SET value = ? WHERE key = 'rollups'`, is); err != nil {
		return err
	}
	if err := nextTurn(tx, nil); err != nil {
		return err
	}
	return tx.Commit()
}

// nextTurn counts a turn; rollup.ErrOvertaken where last is not the newest.
func nextTurn(tx *sql.Tx, last *int64) error {
	result, err := tx.Exec(`UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'rollup_turn' AND (?1 IS NULL OR CAST(value AS INTEGER) = ?1)`, last)
	if err != nil {
		return fmt.Errorf("count turns: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return errors.Join(rollup.ErrOvertaken, err)
	}
	return nil
}

// RollupWork implements rollup.Store.
func (s *Store) RollupWork(ctx context.Context, limit int) (w rollup.Work, err error) {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return w, err
	}
	defer rollback(tx, &err)
	if err := tx.QueryRowContext(ctx, `
		SELECT (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'rollup_turn'), (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'rollup_seconds_from')`).
		Scan(&w.Turn, &w.SecondsFrom); err != nil {
		return w, err
	}
	err = each(ctx, tx, `SELECT id, made, spans FROM rollup_note ORDER BY id LIMIT ?`, []any{limit}, func(rows *sql.Rows) error {
		var id, made int64
		var data []byte
		if err := rows.Scan(&id, &made, &data); err != nil {
			return err
		}
		spans, err := rollup.Decode(data)
		if err != nil {
			return fmt.Errorf("note %d: %w", id, err)
		}
		if at := time.Unix(0, made); w.Oldest.IsZero() || at.Before(w.Oldest) {
			w.Oldest = at
		}
		w.Notes, w.Spans = append(w.Notes, id), append(w.Spans, spans...)
		return nil
	})
	if err != nil {
		return w, err
	}
	w.Gateways = make(map[int64]string)
	wanted, all := rollup.GatewaysOf(w.Spans)
	err = each(ctx, tx, `SELECT id, name FROM gateway`, nil, func(rows *sql.Rows) error {
		var id int64
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			return err
		}
		if _, ok := wanted[id]; ok || all {
			w.Gateways[id] = name
		}
		return nil
	})
	return w, err
}

// RollupSamples implements rollup.Store.
func (s *Store) RollupSamples(ctx context.Context, q cloud.Query, only map[string]struct{}, yield func(cloud.Record) error) error {
	return s.samples(ctx, q, only, yield)
}

const (
	insertSecond = `INSERT INTO rollup_second (series, time, count, min, max, sum, last) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET count = excluded.count, min = excluded.min, max = excluded.max, sum = excluded.sum, last = excluded.last`
	insertMinute = `INSERT INTO rollup_minute (series, time, count, min, max, sum, last) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET count = excluded.count, min = excluded.min, max = excluded.max, sum = excluded.sum, last = excluded.last`
	// fold makes the minutes of a time out of its seconds. Rounding down is not
	// what % does with what is before 1970.
	foldHead = `
		INSERT OR REPLACE INTO rollup_minute (series, time, count, min, max, sum, last)
		SELECT m.series, m.minute, min(m.count, 2147483647), m.min, m.max, m.sum, l.last
		FROM (
			SELECT series, time - (time % 60 + 60) % 60 AS minute, sum(count) AS count, min(min) AS min, max(max) AS max, sum(sum) AS sum, max(time) AS newest
			FROM rollup_second WHERE `
	foldTail = ` AND time BETWEEN ?2 AND ?3 GROUP BY 1, 2
		) m JOIN rollup_second l ON l.series = m.series AND l.time = m.newest`
	ofGateway   = `series IN (SELECT s.id FROM series s JOIN gateway g ON g.id = s.gateway WHERE g.name = ?1)`
	foldSeries  = foldHead + `series = ?1` + foldTail
	foldGateway = foldHead + ofGateway + foldTail
)

// RollupCommit implements rollup.Store.
func (s *Store) RollupCommit(ctx context.Context, r rollup.Result) (err error) {
	s.series.mu.Lock()
	defer s.series.mu.Unlock()
	if err := s.inPlace(); err != nil {
		return err
	}
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx, &err)
	w := rolling{tx: tx, known: s.series.known, made: make(map[rollup.Series]int64), minutes: make(map[[2]int64]struct{})}
	if err := w.write(r); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if s.series.known == nil || len(s.series.known)+len(w.made) > maxSeries {
		s.series.known = make(map[rollup.Series]int64)
	}
	for series, id := range w.made {
		s.series.known[series] = id
	}
	return nil
}

// A rolling is the work on the result of one turn.
type rolling struct {
	tx      *sql.Tx
	known   map[rollup.Series]int64
	made    map[rollup.Series]int64
	minutes map[[2]int64]struct{} // by series and time, that seconds were written of
}

func (w *rolling) write(r rollup.Result) error {
	if err := nextTurn(w.tx, &r.Turn); err != nil {
		return err
	}
	for _, id := range r.Notes {
		if _, err := w.tx.Exec(`DELETE FROM rollup_note WHERE id = ?`, id); err != nil {
			return fmt.Errorf("end notes: %w", err)
		}
	}
	if len(r.Rest) > 0 {
		if _, err := w.tx.Exec(`INSERT INTO rollup_note (made, spans) VALUES (?, ?)`, r.Oldest.UnixNano(), rollup.Encode(r.Rest)); err != nil {
			return fmt.Errorf("note what is left: %w", err)
		}
	}
	for _, c := range r.Clear {
		for _, statement := range []string{`DELETE FROM rollup_second WHERE ` + ofGateway + ` AND time BETWEEN ?2 AND ?3`,
			`DELETE FROM rollup_minute WHERE ` + ofGateway + ` AND time BETWEEN ?2 - (?2 % 60 + 60) % 60 AND ?3`} {
			if _, err := w.tx.Exec(statement, c.Gateway, c.From, c.To); err != nil {
				return fmt.Errorf("clear rows: %w", err)
			}
		}
	}
	for i := range r.Seconds {
		row := &r.Seconds[i]
		id, err := w.insert(insertSecond, row)
		if err != nil {
			return fmt.Errorf("write seconds: %w", err)
		}
		w.minutes[[2]int64{id, rollup.MinuteOf(row.Time)}] = struct{}{}
	}
	for _, c := range r.Clear {
		if _, err := w.tx.Exec(foldGateway, c.Gateway, rollup.MinuteOf(c.From), rollup.MinuteOf(c.To)+59); err != nil {
			return fmt.Errorf("write minutes: %w", err)
		}
	}
	for m := range w.minutes {
		if _, err := w.tx.Exec(foldSeries, m[0], m[1], m[1]+59); err != nil {
			return fmt.Errorf("write minutes: %w", err)
		}
	}
	for i := range r.Minutes {
		if _, err := w.insert(insertMinute, &r.Minutes[i]); err != nil {
			return fmt.Errorf("write minutes: %w", err)
		}
	}
	return nil
}

func (w *rolling) insert(statement string, r *rollup.Row) (series int64, err error) {
	if series, err = w.number(r.Series); err != nil {
		return 0, err
	}
	_, err = w.tx.Exec(statement, series, r.Time, r.Count, r.Min, r.Max, r.Sum, r.Last)
	return series, err
}

// number returns that of a series, and makes it where there is none.
func (w *rolling) number(s rollup.Series) (id int64, err error) {
	if id, ok := w.known[s]; ok {
		return id, nil
	}
	if id, ok := w.made[s]; ok {
		return id, nil
	}
	_, err = w.tx.Exec(`INSERT INTO series (gateway, sensor, metric, unit) SELECT id, ?2, ?3, ?4 FROM gateway WHERE name = ?1 ON CONFLICT DO NOTHING`,
		s.Gateway, s.Sensor, s.Metric, s.Unit)
	if err != nil {
		return 0, fmt.Errorf("make series: %w", err)
	}
	err = w.tx.QueryRow(`SELECT s.id FROM series s JOIN gateway g ON g.id = s.gateway WHERE g.name = ? AND sensor = ? AND metric = ? AND unit = ?`,
		s.Gateway, s.Sensor, s.Metric, s.Unit).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("read series: %w", err)
	}
	w.made[s] = id
	return id, nil
}

// trimPage is of how many series rows are dropped at a time, and trimRows of how
// many of one series: some 60,000 together, a tenth of a second in which nothing
// is recorded. An hour of seconds is what is over in each hour; a year of them
// is, once, where less is to be kept than before.
const (
	trimPage = 16
	trimRows = 3600
)

// RollupTrim implements rollup.Store.
func (s *Store) RollupTrim(ctx context.Context, seconds, minutes int64) error {
	if err := s.keepSeconds(ctx, seconds, minutes); err != nil {
		return fmt.Errorf("note which seconds are kept: %w", err)
	}
	if seconds == rollup.MinSecond && minutes == rollup.MinSecond {
		return nil
	}
	for last := int64(0); ; {
		var next sql.NullInt64
		err := s.read.QueryRowContext(ctx, `SELECT max(id) FROM (SELECT id FROM series WHERE id > ? ORDER BY id LIMIT ?)`, last, trimPage).Scan(&next)
		if err != nil {
			return fmt.Errorf("read series: %w", err)
		}
		if !next.Valid {
			return nil
		}
		page := [2]int64{last, next.Int64}
		if err := s.trimSeries(ctx, trimming{"rollup_second", page, 1, seconds}); err != nil {
			return fmt.Errorf("drop seconds: %w", err)
		}
		if err := s.trimSeries(ctx, trimming{"rollup_minute", page, 60, minutes}); err != nil {
			return fmt.Errorf("drop minutes: %w", err)
		}
		last = next.Int64
	}
}

// keepSeconds notes from when on seconds are kept, before any is dropped: no turn
// makes a minute out of those that are left.
func (s *Store) keepSeconds(ctx context.Context, seconds, minutes int64) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		var was int64
		if err := tx.QueryRow(`SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'rollup_seconds_from'`).Scan(&was); err != nil {
			return err
		}
		from, again := rollup.KeepSeconds(was, seconds, minutes)
		if from == was {
			return nil
		}
		if _, err := tx.Exec(`UPDATE meta SET value = ? WHERE key = 'rollup_seconds_from'`, from); err != nil {
			return err
		}
		if err := note(tx, &again); err != nil {
			return err
		}
		return nextTurn(tx, nil)
	})
}

// A trimming is of the rows of some series before a time.
type trimming struct {
	table  string
	series [2]int64 // above the first number, up to the second
	unit   int64    // s, of a row
	before int64
}

func (s *Store) trimSeries(ctx context.Context, t trimming) error {
	for next := int64(rollup.MinSecond); ; {
		var oldest sql.NullInt64
		err := s.read.QueryRowContext(ctx, `SELECT min(oldest) FROM (
			SELECT (SELECT min(time) FROM `+t.table+` WHERE series = s.id AND time >= ? AND time < ?) AS oldest FROM series s WHERE s.id > ? AND s.id <= ?)`,
			next, t.before, t.series[0], t.series[1]).Scan(&oldest)
		if err != nil || !oldest.Valid {
			return err
		}
		next = oldest.Int64 + trimRows*t.unit
		err = s.change(ctx, func(tx *sql.Tx) error {
			// #nosec G202 -- table is one of two names of this package
			_, err := tx.Exec(`DELETE FROM `+t.table+` WHERE series IN (SELECT id FROM series WHERE id > ? AND id <= ?) AND time >= ? AND time < ?`,
				t.series[0], t.series[1], oldest.Int64, min(next, t.before))
			return err
		})
		if err != nil {
			return err
		}
	}
}
