package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/cloud/rollup"
	"touchline/internal/pgtest"
	"touchline/wire"
)

func newRoller(t testing.TB, s *Store) *rollup.Roller {
	t.Helper()
	r, err := rollup.New(rollup.Options{Enabled: true, Limits: rollup.DefaultLimits}, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RollupStart(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	return r
}

func rollAll(t testing.TB, s *Store) {
	t.Helper()
	r := newRoller(t, s)
	for more := true; more; {
		var err error
		if more, err = r.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// counted returns how many rows there are of seconds and of minutes, and how
// many samples they count.
func counted(t testing.TB, s *Store) (c [4]int) {
	t.Helper()
	err := s.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM rollup_1s), (SELECT coalesce(sum(count), 0) FROM rollup_1s),
		(SELECT count(*) FROM rollup_1m), (SELECT coalesce(sum(count), 0) FROM rollup_1m)`).Scan(&c[0], &c[1], &c[2], &c[3])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantCounted(t testing.TB, s *Store, when string, want [4]int) {
	t.Helper()
	if got := counted(t, s); got != want {
		t.Errorf("%s: rows and samples of seconds and minutes are %v, want %v", when, got, want)
	}
}

// A database of the version before knows neither masks nor rows: it is migrated
// as it is opened, and rows are computed of all that it has.
func TestOpen_MigratesADatabaseThatKeptNoRows(t *testing.T) {
	url := pgtest.Database(t)
	whole := migrations
	migrations = whole[:3]
	defer func() { migrations = whole }()
	old := open(t, url)
	addGateways(t, old, "north")
	// Notes go nowhere, as the version before made none.
	pgtest.Exec(t, url, `CREATE TABLE touchline.rollup_note (spans bytea)`)
	record(t, old, recordertest.NewDelivery(t, "north", touchline.NewEpoch(), 1, recordertest.Series("belt", 0, 1e8, 600)))
	pgtest.Exec(t, url, `DROP TABLE touchline.rollup_note`)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	migrations = whole
	s := open(t, url)
	defer s.Close()
	var version string
	if err := s.pool.QueryRow(t.Context(), `SELECT value FROM meta WHERE key = 'schema'`).Scan(&version); err != nil || version != fmt.Sprint(len(whole)) {
		t.Fatalf("the database has schema %s after it was opened, %v", version, err)
	}
	rollAll(t, s)
	wantCounted(t, s, "migrated", [4]int{60, 600, 1, 600})
	audit(t, s)
}

// Rows outlive the samples that they are of: what is computed anew where a
// partition was dropped adds what came since, and takes nothing away.
func TestRollup_StaysWhereSamplesWereDropped(t *testing.T) {
	s := openWith(t, Options{URL: pgtest.Database(t), KeepDays: 30})
	defer s.Close()
	addGateways(t, s, "north", "south")
	epoch, late := touchline.NewEpoch(), touchline.NewEpoch()
	record(t, s, recordertest.NewDelivery(t, "north", epoch, 1, recordertest.Series("belt", 0, 5e8, 240)))
	rollAll(t, s)
	want := [4]int{120, 240, 2, 240}
	wantCounted(t, s, "recorded", want)
	age(t, s, 31)
	if err := s.tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := query(t, s, allSamples); len(left) != 0 {
		t.Fatalf("%d samples are left", len(left))
	}
	rollAll(t, s)
	wantCounted(t, s, "dropped", want)

	// All is computed anew, from nothing.
	for _, enabled := range []bool{false, true} {
		if err := s.RollupStart(t.Context(), enabled); err != nil {
			t.Fatal(err)
		}
	}
	rollAll(t, s)
	wantCounted(t, s, "computed anew", want)

	// A venue that was without a line sends what is of the same hour, in two
	// parts that meet in the middle of a second.
	series := recordertest.Series("vest", 0, 2e8, 100)
	record(t, s, recordertest.NewDelivery(t, "south", late, 1, series[:52]))
	rollAll(t, s)
	record(t, s, recordertest.NewDelivery(t, "south", late, 53, series[52:]))
	rollAll(t, s)
	wantCounted(t, s, "late", [4]int{140, 340, 3, 340})

	// One sample of what was dropped comes late: the second keeps its two.
	record(t, s, recordertest.NewDelivery(t, "north", epoch, 1001, recordertest.Series("belt", 3e9, 0, 1)))
	rollAll(t, s)
	wantCounted(t, s, "one more", [4]int{140, 340, 3, 340})
}

// Of two nodes one works. When it is gone the other one goes on, with nothing
// lost and nothing counted twice.
func TestRollup_AnotherNodeGoesOnWhereOneWasKilled(t *testing.T) {
	url := pgtest.Database(t)
	first, second := open(t, url), open(t, url)
	defer second.Close()
	addGateways(t, first, "north")
	epoch := touchline.NewEpoch()
	next := 0
	more := func() {
		record(t, second, recordertest.NewDelivery(t, "north", epoch, uint64(1+next*100), recordertest.Series("belt", int64(next)*40e9, 5e8, 100)))
		next++
	}
	more()
	rollAll(t, first)
	more()
	// The first one dies between reading and writing: its connections end.
	dying := &interrupted{Store: first}
	r, err := rollup.New(rollup.Options{Enabled: true, Limits: rollup.DefaultLimits}, dying, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	dying.before = func() { _ = first.Close() }
	if _, err := r.Turn(t.Context()); err == nil {
		t.Fatal("a turn ended without its connections")
	}
	more()
	rollAll(t, second)
	samples := query(t, second, allSamples)
	if got := counted(t, second); got[1] != len(samples) || got[3] != len(samples) {
		t.Errorf("rows count %v of %d samples", got, len(samples))
	}
}

// An interrupted store does something before a turn is written.
type interrupted struct {
	*Store
	before func()
}

func (i *interrupted) RollupCommit(ctx context.Context, r rollup.Result) error {
	i.before()
	return i.Store.RollupCommit(ctx, r)
}

// Whoever was overtaken while it read writes nothing, and the notes of what
// came meanwhile are there for the next turn.
func TestRollup_ASampleThatComesWhileATurnReadsIsNotLost(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	epoch := touchline.NewEpoch()
	record(t, s, recordertest.NewDelivery(t, "north", epoch, 1, recordertest.Series("belt", 0, 1e8, 5)))
	_ = newRoller(t, s)
	meanwhile := &interrupted{Store: s}
	r, err := rollup.New(rollup.Options{Enabled: true, Limits: rollup.DefaultLimits}, meanwhile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	meanwhile.before = func() {
		meanwhile.before = func() {}
		record(t, s, recordertest.NewDelivery(t, "north", epoch, 6, recordertest.Series("belt", 5e8, 1e8, 5)))
	}
	if _, err := r.Turn(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantCounted(t, s, "behind", [4]int{1, 5, 1, 5})
	meanwhile.before = func() {
		meanwhile.before = func() {}
		rollAll(t, s) // another node
	}
	if _, err := r.Turn(t.Context()); !errors.Is(err, rollup.ErrOvertaken) {
		t.Errorf("a turn that was overtaken: %v", err)
	}
	wantCounted(t, s, "in the end", [4]int{1, 10, 1, 10})
}

func TestMask_IsNeverChanged(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	_, err := s.AddMask(t.Context(), cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: 1, By: "t", Keep: []wire.EpochRanges{cloud.WholeEpoch(touchline.NewEpoch())}})
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{`UPDATE mask SET max_time = 5`, `DELETE FROM mask`, `UPDATE mask_keep SET ranges = '{}'`, `DELETE FROM mask_keep`,
		`UPDATE mask_gateway SET mask = 1`, `DELETE FROM mask_gateway`} {
		if _, err := s.pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("%s: a mask was changed", statement)
		}
	}
}

// What a dashboard asks for finds its series by an index, and of each the rows
// of its time by another: no table is read that grows with the years.
func TestRollup_DashboardsReadByIndex(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	_, err := s.pool.Exec(t.Context(), `
		INSERT INTO series (gateway, sensor, metric, unit) SELECT g.id, 'player-' || p, m, '' FROM gateway g, generate_series(1, 200) p, unnest('{heart_rate,x,y}'::text[]) m;
		INSERT INTO rollup_minute (series, time, count, min, max, sum, last)
			SELECT s.id, t, 60, 1, 2, 90, 2 FROM series s, generate_series(timestamptz '2026-05-30 15:00Z', timestamptz '2026-05-30 18:00Z', interval '1 minute') t;
		INSERT INTO rollup_second (series, time, count, min, max, sum, last)
			SELECT s.id, t, 10, 1, 2, 15, 2 FROM series s, generate_series(timestamptz '2026-05-30 15:00Z', timestamptz '2026-05-30 15:03Z', interval '1 second') t;
		ANALYZE`)
	if err != nil {
		t.Fatal(err)
	}
	for _, view := range []string{"rollup_1m", "rollup_1s"} {
		table := map[string]string{"rollup_1m": "rollup_minute", "rollup_1s": "rollup_second"}[view]
		rows, err := s.pool.Query(t.Context(), `EXPLAIN (ANALYZE, SUMMARY OFF) SELECT time, mean FROM `+view+`
			WHERE gateway = 'north' AND sensor = 'player-17' AND metric = 'heart_rate' AND time BETWEEN '2026-05-30 15:01Z' AND '2026-05-30 16:00Z' ORDER BY time`)
		if err != nil {
			t.Fatal(err)
		}
		var plan bytes.Buffer
		for rows.Next() {
			var line string
			err = errors.Join(err, rows.Scan(&line))
			fmt.Fprintln(&plan, line)
		}
		if err := errors.Join(err, rows.Err()); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s:\n%s", view, plan.String())
		if strings.Contains(plan.String(), "Seq Scan on "+table) || !strings.Contains(plan.String(), table+"_pkey") {
			t.Errorf("the plan of %s does not go by the index:\n%s", view, plan.String())
		}
	}
}

// A Roller in Run does what is asked, and ends with its context.
func TestRollup_RunsBesideRecording(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	r, err := rollup.New(rollup.Options{Enabled: true, Limits: rollup.DefaultLimits}, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	record(t, s, recordertest.NewDelivery(t, "north", touchline.NewEpoch(), 1, recordertest.Series("belt", 0, 1e9, 90)))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for counted(t, s) != [4]int{90, 90, 2, 90} {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("Run ended: %v", err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if st := r.Stats(); st.Turns == 0 || st.Samples < 90 {
		t.Errorf("Stats are %+v", st)
	}
}
