package postgres

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline/cloud"
	"touchline/cloud/rollup"
)

// schemaRollups adds rows of seconds and minutes. rollup_1s and rollup_1m are
// what people read; what they are made of is narrow, since there is a row for
// each second of a series.
const schemaRollups = `
CREATE TABLE series (
	id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	gateway bigint NOT NULL REFERENCES gateway,
	sensor  text COLLATE "C" NOT NULL,
	metric  text COLLATE "C" NOT NULL,
	unit    text COLLATE "C" NOT NULL,
	UNIQUE (gateway, sensor, metric, unit)
);
CREATE INDEX series_sensor ON series (sensor, metric);

-- In the order of their sizes, so that nothing is lost to alignment: 72 bytes a row.
-- Rows of the second and the minute that go on are written several times: new
-- versions find room in their page.
CREATE TABLE rollup_second (
	time   timestamptz NOT NULL, -- where it begins
	min    double precision NOT NULL,
	max    double precision NOT NULL,
	sum    double precision NOT NULL,
	last   double precision NOT NULL,
	series integer NOT NULL,
	count  integer NOT NULL,
	PRIMARY KEY (series, time)
) WITH (fillfactor = 90);
CREATE TABLE rollup_minute (LIKE rollup_second INCLUDING ALL) WITH (fillfactor = 70);

CREATE VIEW rollup_1s AS
	SELECT g.name AS gateway, g.venue, s.sensor, s.metric, s.unit, r.time, r.count, r.min, r.max, r.sum / r.count AS mean, r.sum, r.last
	FROM rollup_second r JOIN series s ON s.id = r.series JOIN gateway g ON g.id = s.gateway;
CREATE VIEW rollup_1m AS
	SELECT g.name AS gateway, g.venue, s.sensor, s.metric, s.unit, r.time, r.count, r.min, r.max, r.sum / r.count AS mean, r.sum, r.last
	FROM rollup_minute r JOIN series s ON s.id = r.series JOIN gateway g ON g.id = s.gateway;

-- What transactions changed, and rows do not show yet. Rows come and go, so the
-- table is cleaned up by their number and not by a share of it.
CREATE TABLE rollup_note (
	id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	made  timestamptz NOT NULL DEFAULT now(),
	spans bytea NOT NULL -- rollup.Encode
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Hours since 1970 of which samples were dropped: what is computed there anew
-- may lack them, so rows stay unless more samples come.
CREATE TABLE rollup_final (hours int4multirange NOT NULL);
INSERT INTO rollup_final VALUES ('{}');

INSERT INTO meta (key, value) VALUES ('rollups', 'off'), ('rollup_turn', '0'), ('rollup_seconds_from', '-9223372037');
`

// note leaves word of what a transaction changed.
func note(ctx context.Context, tx pgx.Tx, changed *rollup.Spans) error {
	if changed.None() {
		return nil
	}
	if _, err := tx.Exec(ctx, insertNote, changed.Encode()); err != nil {
		return fmt.Errorf("note what changed: %w", err)
	}
	return nil
}

const insertNote = `INSERT INTO rollup_note (spans) VALUES ($1)`

// seriesIDs are the numbers of series, as far as they are known: they never
// change.
type seriesIDs struct {
	mu    sync.Mutex // covers known, and turns of this node
	known map[rollup.Series]int32
}

// maxSeries bounds them: some 200 bytes each, 20 MB.
const maxSeries = 100_000

// RollupStart implements rollup.Store.
func (s *Store) RollupStart(ctx context.Context, enabled bool) error {
	var is string
	var notes bool
	err := s.pool.QueryRow(ctx, `SELECT value, EXISTS (SELECT FROM rollup_note) FROM meta WHERE key = 'rollups'`).Scan(&is, &notes)
	if err != nil {
		return fmt.Errorf("look at rollups: %w", err)
	}
	if enabled == (is == "on") && (enabled || !notes) {
		return nil
	}
	return s.change(ctx, func(tx pgx.Tx) error {
		// The row is locked first: of two nodes that begin at once one finds it done.
		if err := tx.QueryRow(ctx, `SELECT value FROM meta WHERE key = 'rollups' FOR UPDATE`).Scan(&is); err != nil {
			return err
		}
		if enabled && is == "on" {
			return nil
		}
		if err := nextTurn(ctx, tx, nil); err != nil {
			return err
		}
		if !enabled {
			_, err := tx.Exec(ctx, `DELETE FROM rollup_note`)
			if err == nil {
				_, err = tx.Exec(ctx, `UPDATE meta SET value = 'off' WHERE key = 'rollups'`)
			}
			return err
		}
		// Notes that are there stay: a transaction that has not ended yet may
		// have left one of what all that is stored does not have.
		var all rollup.Spans
		all.Remove(0, math.MinInt64, math.MaxInt64)
		if err := note(ctx, tx, &all); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE meta SET value = 'on' WHERE key = 'rollups'`)
		return err
	})
}

// nextTurn counts a turn; rollup.ErrOvertaken where last is not the newest.
func nextTurn(ctx context.Context, tx pgx.Tx, last *int64) error {
	tag, err := tx.Exec(ctx, `UPDATE meta SET value = (value::bigint + 1)::text WHERE key = 'rollup_turn' AND ($1::bigint IS NULL OR value::bigint = $1)`, last)
	if err != nil {
		return fmt.Errorf("count turns: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return rollup.ErrOvertaken
	}
	return nil
}

// RollupWork implements rollup.Store. The turn is read before the notes: who
// commits meanwhile makes it an old one.
func (s *Store) RollupWork(ctx context.Context, limit int) (w rollup.Work, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT (SELECT value::bigint FROM meta WHERE key = 'rollup_turn'), (SELECT value::bigint FROM meta WHERE key = 'rollup_seconds_from')`).
		Scan(&w.Turn, &w.SecondsFrom)
	if err != nil {
		return w, err
	}
	rows, err := s.pool.Query(ctx, `SELECT id, (extract(epoch FROM clock_timestamp() - made) * 1e6)::bigint, spans FROM rollup_note ORDER BY id LIMIT $1`, limit)
	if err != nil {
		return w, err
	}
	var id, age, oldest int64 // in µs, by the clock of the server
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &age, &data}, func() error {
		spans, err := rollup.Decode(data)
		if err != nil {
			return fmt.Errorf("note %d: %w", id, err)
		}
		oldest = max(oldest, age)
		w.Notes, w.Spans = append(w.Notes, id), append(w.Spans, spans...)
		return nil
	})
	if err != nil || len(w.Notes) == 0 {
		return w, err
	}
	w.Oldest = time.Now().Add(-time.Duration(oldest) * time.Microsecond)
	wanted, all := rollup.GatewaysOf(w.Spans)
	w.Gateways = make(map[int64]string)
	rows, err = s.pool.Query(ctx, `SELECT id, name FROM gateway`)
	if err != nil {
		return w, err
	}
	var name string
	_, err = pgx.ForEachRow(rows, []any{&id, &name}, func() error {
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
	// isFinal says whether samples of the hour of a row were dropped.
	isFinal = `EXISTS (SELECT FROM rollup_final f WHERE f.hours @> floor(extract(epoch FROM r.time) / 3600)::int)`
	// orUpdate is what becomes of a row that is there.
	orUpdate = `
		ON CONFLICT (series, time) DO UPDATE SET count = excluded.count, min = excluded.min, max = excluded.max, sum = excluded.sum, last = excluded.last
		WHERE excluded.count >= r.count OR NOT ` + isFinal
	insertRows = ` AS r (series, time, count, min, max, sum, last)
		SELECT series, to_timestamp(time), count, min, max, sum, last
		FROM unnest($1::int[], $2::float8[], $3::int[], $4::float8[], $5::float8[], $6::float8[], $7::float8[]) AS new (series, time, count, min, max, sum, last)` + orUpdate
	// foldHead, a join, and foldTail make minutes out of their seconds.
	foldHead = `
		INSERT INTO rollup_minute AS r (series, time, count, min, max, sum, last)
		SELECT s.series, date_trunc('minute', s.time), least(sum(s.count), 2147483647)::int, min(s.min), max(s.max), sum(s.sum), (array_agg(s.last ORDER BY s.time DESC))[1]
		FROM rollup_second s `
	foldTail    = ` GROUP BY 1, 2` + orUpdate
	foldMinutes = foldHead + `JOIN unnest($1::int[], $2::float8[]) AS w (series, minute)
		ON s.series = w.series AND s.time >= to_timestamp(w.minute) AND s.time < to_timestamp(w.minute) + interval '1 minute'` + foldTail
	ofGateway   = `series IN (SELECT i.id FROM series i JOIN gateway g ON g.id = i.gateway WHERE g.name = $1) `
	foldGateway = foldHead + `WHERE s.` + ofGateway + `AND s.time >= to_timestamp($2::float8) AND s.time <= to_timestamp($3::float8)` + foldTail
	clearRows   = ` r WHERE ` + ofGateway + `AND r.time >= to_timestamp($2::float8) AND r.time <= to_timestamp($3::float8) AND NOT ` + isFinal
)

// RollupCommit implements rollup.Store.
func (s *Store) RollupCommit(ctx context.Context, r rollup.Result) error {
	s.series.mu.Lock()
	defer s.series.mu.Unlock()
	made := make(map[rollup.Series]int32)
	err := s.change(ctx, func(tx pgx.Tx) error {
		if err := nextTurn(ctx, tx, &r.Turn); err != nil {
			return err
		}
		w := rolling{tx: tx, known: s.series.known, made: made}
		return w.write(ctx, r)
	})
	if err != nil {
		return err
	}
	if s.series.known == nil || len(s.series.known)+len(made) > maxSeries {
		s.series.known = make(map[rollup.Series]int32)
	}
	for series, id := range made {
		s.series.known[series] = id
	}
	return nil
}

// A rolling is the work on the result of one turn.
type rolling struct {
	tx          pgx.Tx
	known, made map[rollup.Series]int32
}

func (w *rolling) write(ctx context.Context, r rollup.Result) error {
	if err := w.makeSeries(ctx, r.Seconds, r.Minutes); err != nil {
		return fmt.Errorf("make series: %w", err)
	}
	var batch pgx.Batch
	batch.Queue(`DELETE FROM rollup_note WHERE id = ANY ($1)`, r.Notes)
	if len(r.Rest) > 0 {
		batch.Queue(`INSERT INTO rollup_note (made, spans) VALUES (now() - $1::interval, $2)`, max(0, time.Since(r.Oldest)), rollup.Encode(r.Rest))
	}
	for _, c := range r.Clear {
		batch.Queue(`DELETE FROM rollup_second`+clearRows, c.Gateway, float64(c.From), float64(c.To))
		batch.Queue(`DELETE FROM rollup_minute`+clearRows, c.Gateway, float64(rollup.MinuteOf(c.From)), float64(c.To))
	}
	w.queue(&batch, "rollup_second", r.Seconds)
	for _, c := range r.Clear {
		batch.Queue(foldGateway, c.Gateway, float64(rollup.MinuteOf(c.From)), float64(rollup.MinuteOf(c.To)+59))
	}
	if series, minutes := w.minutesOf(r.Seconds); len(series) > 0 {
		batch.Queue(foldMinutes, series, minutes)
	}
	w.queue(&batch, "rollup_minute", r.Minutes)
	if err := w.tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	return nil
}

func (w *rolling) number(s rollup.Series) int32 {
	if id, ok := w.known[s]; ok {
		return id
	}
	return w.made[s]
}

// minutesOf returns the series and minutes that rows of seconds are of.
func (w *rolling) minutesOf(rows []rollup.Row) (series []int32, minutes []float64) {
	type minute struct {
		series int32
		time   int64
	}
	seen := make(map[minute]struct{})
	for i := range rows {
		m := minute{w.number(rows[i].Series), rollup.MinuteOf(rows[i].Time)}
		if _, ok := seen[m]; !ok {
			seen[m] = struct{}{}
			series, minutes = append(series, m.series), append(minutes, float64(m.time))
		}
	}
	return series, minutes
}

func (w *rolling) queue(batch *pgx.Batch, table string, rows []rollup.Row) {
	if len(rows) == 0 {
		return
	}
	n := len(rows)
	series, counts := make([]int32, n), make([]int32, n)
	times, mins, maxs, sums, lasts := make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)
	for i := range rows {
		r := &rows[i]
		series[i], times[i], counts[i] = w.number(r.Series), float64(r.Time), int32(min(r.Count, math.MaxInt32))
		mins[i], maxs[i], sums[i], lasts[i] = r.Min, r.Max, r.Sum, r.Last
	}
	batch.Queue(`INSERT INTO `+table+insertRows, series, times, counts, mins, maxs, sums, lasts)
}

// makeSeries makes the series that are new.
func (w *rolling) makeSeries(ctx context.Context, lists ...[]rollup.Row) error {
	var gateways, sensors, metrics, units []string
	seen := make(map[rollup.Series]struct{})
	for _, rows := range lists {
		for i := range rows {
			s := rows[i].Series
			_, there := w.known[s]
			if _, again := seen[s]; there || again {
				continue
			}
			seen[s] = struct{}{}
			gateways, sensors, metrics, units = append(gateways, s.Gateway), append(sensors, s.Sensor), append(metrics, s.Metric), append(units, s.Unit)
		}
	}
	if len(gateways) == 0 {
		return nil
	}
	const wanted = `unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS w (name, sensor, metric, unit) JOIN gateway g ON g.name = w.name`
	_, err := w.tx.Exec(ctx, `INSERT INTO series (gateway, sensor, metric, unit) SELECT g.id, sensor, metric, unit FROM `+wanted+`
		WHERE NOT EXISTS (SELECT FROM series s WHERE s.gateway = g.id AND s.sensor = w.sensor AND s.metric = w.metric AND s.unit = w.unit)
		ON CONFLICT DO NOTHING`, gateways, sensors, metrics, units)
	if err != nil {
		return err
	}
	rows, err := w.tx.Query(ctx, `SELECT s.id, g.name, s.sensor, s.metric, s.unit FROM `+wanted+`
		JOIN series s ON s.gateway = g.id AND s.sensor = w.sensor AND s.metric = w.metric AND s.unit = w.unit`, gateways, sensors, metrics, units)
	if err != nil {
		return err
	}
	var id int32
	var s rollup.Series
	_, err = pgx.ForEachRow(rows, []any{&id, &s.Gateway, &s.Sensor, &s.Metric, &s.Unit}, func() error { w.made[s] = id; return nil })
	if err == nil && len(w.made) != len(gateways) {
		err = fmt.Errorf("%d of %d are there", len(w.made), len(gateways))
	}
	return err
}

// trimPage is of how many series rows are dropped at a time, and trimRows of how
// many of one series: some 60,000 together, a tenth of a second of the 30 that a
// statement has. An hour of seconds is what is over in each hour; a year of them
// is, once, where less is to be kept than before.
const (
	trimPage = 16
	trimRows = 3600
)

// RollupTrim implements rollup.Store.
func (s *Store) RollupTrim(ctx context.Context, seconds, minutes int64) error {
	if seconds != rollup.MinSecond || minutes != rollup.MinSecond {
		if _, err := s.agreedNow(ctx); err != nil {
			return err
		}
	}
	if err := s.keepSeconds(ctx, seconds, minutes); err != nil {
		return fmt.Errorf("note which seconds are kept: %w", err)
	}
	if seconds == rollup.MinSecond && minutes == rollup.MinSecond {
		return nil
	}
	for last := int32(0); ; {
		rows, err := s.pool.Query(ctx, `SELECT id FROM series WHERE id > $1 ORDER BY id LIMIT $2`, last, trimPage)
		if err != nil {
			return fmt.Errorf("read series: %w", err)
		}
		page, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil {
			return fmt.Errorf("read series: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		if err := s.trimSeries(ctx, trimming{"rollup_second", page, 1, seconds}); err != nil {
			return fmt.Errorf("drop seconds: %w", err)
		}
		if err := s.trimSeries(ctx, trimming{"rollup_minute", page, 60, minutes}); err != nil {
			return fmt.Errorf("drop minutes: %w", err)
		}
		last = page[len(page)-1]
	}
}

// keepSeconds notes from when on seconds are kept, before any is dropped: no turn
// makes a minute out of those that are left.
func (s *Store) keepSeconds(ctx context.Context, seconds, minutes int64) error {
	return s.change(ctx, func(tx pgx.Tx) error {
		var was int64
		if err := tx.QueryRow(ctx, `SELECT value::bigint FROM meta WHERE key = 'rollup_seconds_from' FOR UPDATE`).Scan(&was); err != nil {
			return err
		}
		from, again := rollup.KeepSeconds(was, seconds, minutes)
		if from == was {
			return nil
		}
		if _, err := tx.Exec(ctx, `UPDATE meta SET value = $1::bigint::text WHERE key = 'rollup_seconds_from'`, from); err != nil {
			return err
		}
		if err := note(ctx, tx, &again); err != nil {
			return err
		}
		return nextTurn(ctx, tx, nil)
	})
}

// A trimming is of the rows of some series before a time.
type trimming struct {
	table  string
	series []int32
	unit   int64 // s, of a row
	before int64
}

// trimSeries goes from the oldest row on, so that no statement sees again what
// another one has dropped: what is dead stays in the index while somebody, a
// dump for one, looks at what was before.
func (s *Store) trimSeries(ctx context.Context, t trimming) error {
	for next := int64(rollup.MinSecond); ; {
		var oldest *int64
		err := s.pool.QueryRow(ctx, `
			SELECT extract(epoch FROM min(r.time))::bigint FROM unnest($1::int[]) AS w (series), LATERAL (
				SELECT time FROM `+t.table+` WHERE series = w.series AND time >= to_timestamp($2::float8) AND time < to_timestamp($3::float8)
				ORDER BY time LIMIT 1) AS r`, t.series, float64(next), float64(t.before)).Scan(&oldest)
		if err != nil || oldest == nil {
			return err
		}
		next = *oldest + trimRows*t.unit
		_, err = s.pool.Exec(ctx, `DELETE FROM `+t.table+` WHERE series = ANY ($1) AND time >= to_timestamp($2::float8) AND time < to_timestamp($3::float8)`,
			t.series, float64(*oldest), float64(min(next, t.before)))
		if err != nil {
			return err
		}
	}
}

// finish notes that the rows of the hours of the oldest partition stay, which
// is about to be dropped if it is of a day before limit.
func finish(ctx context.Context, tx pgx.Tx, limit day) error {
	_, err := tx.Exec(ctx, `
		UPDATE rollup_final SET hours = CASE
			WHEN (SELECT count(*) FROM unnest(rollup_final.hours + gone.hours)) > $2::int THEN int4multirange(range_merge(rollup_final.hours + gone.hours))
			ELSE rollup_final.hours + gone.hours END
		FROM (
			SELECT coalesce(range_agg(h), '{}') * int4multirange(int4range(NULL, $3)) AS hours FROM part_hours p, unnest(p.hours) AS h
			WHERE p.day = (SELECT min(day) FROM part) AND p.day < $1
		) AS gone WHERE NOT rollup_final.hours @> gone.hours`, limit.date(), maxFinalRanges, hourOf(int64(limit)*24*hourNs))
	if err != nil {
		return fmt.Errorf("note which rows stay: %w", err)
	}
	return nil
}

// maxFinalRanges bounds them against clocks that say anything: honest days are
// one range together.
const maxFinalRanges = 10_000
