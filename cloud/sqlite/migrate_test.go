package sqlite

import (
	"fmt"
	"log/slog"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/cloud/rollup"
	"touchline/wire"
)

// A store of the version before knows neither masks nor rows: it is migrated as
// it is opened, and rows are computed of all that it has.
func TestOpen_MigratesAStoreThatKeptNoRows(t *testing.T) {
	dir := t.TempDir()
	whole := migrations
	migrations = whole[:5]
	defer func() { migrations = whole }()
	old := open(t, dir)
	if err := old.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if version := pragmaOf(t, old, "user_version"); version != "5" {
		t.Fatalf("the old store has schema %s", version)
	}
	// The version before recorded no notes; this one must not either.
	if _, err := old.write.Exec(`CREATE TEMP TABLE rollup_note (id INTEGER PRIMARY KEY, made, spans)`); err != nil {
		t.Fatal(err)
	}
	epoch := touchline.NewEpoch()
	d := recordertest.NewDelivery(t, "north", epoch, 1, recordertest.Series("belt", 0, 1e8, 600))
	if _, err := old.Record(t.Context(), []cloud.Delivery{d}); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	migrations = whole
	s := open(t, dir)
	defer s.Close()
	if version := pragmaOf(t, s, "user_version"); version != fmt.Sprint(len(whole)) {
		t.Errorf("the store has schema %s after it was opened", version)
	}
	var needs string
	if err := s.read.QueryRow(`SELECT value FROM meta WHERE key = 'needs'`).Scan(&needs); err != nil || needs != whole[len(whole)-1].since {
		t.Errorf("it says that it needs %q (%v), want %s", needs, err, whole[len(whole)-1].since)
	}
	if err := s.RollupStart(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	rollAll(t, s)
	var rows, samples int
	if err := s.read.QueryRow(`SELECT count(*), sum(count) FROM rollup_1s WHERE gateway = 'north' AND sensor = 'belt' AND mean BETWEEN 120 AND 160`).Scan(&rows, &samples); err != nil {
		t.Fatal(err)
	}
	if rows != 60 || samples != 600 {
		t.Errorf("there are %d rows of %d samples, want 60 of 600", rows, samples)
	}
	_, err := s.AddMask(t.Context(), cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: 1, By: "t", Keep: []wire.EpochRanges{cloud.WholeEpoch(epoch)}})
	if err != nil {
		t.Error(err)
	}
	audit(t, s)
}

// A block that can't be read any more has no rows, and holds up nothing.
func TestRollup_GoesOnBesideADamagedBlock(t *testing.T) {
	s := openTest(t)
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	epoch := touchline.NewEpoch()
	var batch []cloud.Delivery
	for i := range uint64(3) {
		batch = append(batch, recordertest.NewDelivery(t, "north", epoch, 1+100*i, recordertest.Series("belt", int64(i)*50e9, 5e8, 100)))
	}
	if _, err := s.Record(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.Exec(`UPDATE block SET crc = crc + 1 WHERE first = 101`); err != nil {
		t.Fatal(err)
	}
	if err := s.RollupStart(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	rollAll(t, s)
	var samples, notes int
	if err := s.read.QueryRow(`SELECT (SELECT sum(count) FROM rollup_1s), (SELECT count(*) FROM rollup_note)`).Scan(&samples, &notes); err != nil {
		t.Fatal(err)
	}
	if samples != 200 || notes != 0 {
		t.Errorf("the rows have %d samples, and %d notes are left: want 200 and none", samples, notes)
	}
}

// What is written of masks is never changed, by whom ever.
func TestMask_IsNeverChanged(t *testing.T) {
	s := openTest(t)
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	_, err := s.AddMask(t.Context(), cloud.Mask{Gateways: []string{"north"}, Sensor: "belt", From: 0, To: 1, By: "t", Keep: []wire.EpochRanges{cloud.WholeEpoch(touchline.NewEpoch())}})
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{`UPDATE mask SET max_time = 5`, `DELETE FROM mask`, `UPDATE mask_keep SET ranges = x''`, `DELETE FROM mask_keep`,
		`UPDATE mask_gateway SET mask = 1`, `DELETE FROM mask_gateway`} {
		if _, err := s.write.Exec(statement); err == nil {
			t.Errorf("%s: a mask was changed", statement)
		}
	}
}

func rollAll(t testing.TB, s *Store) {
	t.Helper()
	r, err := rollup.New(rollup.Options{Enabled: true, Limits: rollup.DefaultLimits}, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for more := true; more; {
		if more, err = r.Turn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
