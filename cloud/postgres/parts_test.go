package postgres

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/internal/pgtest"
)

// age moves all that is recorded into the partition of an earlier day.
func age(t testing.TB, s *Store, days int) {
	t.Helper()
	today, err := s.today(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	then := today - day(days)
	if err := s.makePart(t.Context(), then); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`UPDATE block SET day = $2 WHERE day = $1`, `UPDATE place SET day = $2 WHERE day = $1`, `UPDATE doubt SET day = $2 WHERE day = $1`,
		`UPDATE retired SET day = $2 WHERE day = $1`, `UPDATE part_hours SET day = $2 WHERE day = $1`, `UPDATE cursor SET begun = $2 WHERE begun = $1`,
	} {
		if _, err := s.pool.Exec(t.Context(), statement, today.date(), then.date()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParts_OverAreDroppedAndOthersStay(t *testing.T) {
	s := openWith(t, Options{URL: pgtest.Database(t), KeepDays: 30})
	defer s.Close()
	addGateways(t, s, "north")
	old, kept, fresh := blocks(t, "north", 5), blocks(t, "north", 5), blocks(t, "north", 5)
	record(t, s, old...)
	age(t, s, 31)
	record(t, s, kept...)
	age(t, s, 30)
	record(t, s, fresh...)
	audit(t, s)
	for range 2 {
		if err := s.tend(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := query(t, s, allSamples), recordertest.Records(append(kept, fresh...)...); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%d samples are left, want %d", len(got), len(want))
		}
		audit(t, s)
	}
	for i, o := range record(t, s, append(kept, fresh...)...) {
		if !o.Repeat {
			t.Errorf("block %d is %+v, want a repeat", i, o)
		}
	}
	// What was dropped is not recorded a second time.
	if o := record(t, s, old[0])[0]; !o.KeptAside {
		t.Errorf("a block that was dropped is %+v, want it kept aside", o)
	}
	var parts int
	if err := s.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_inherits WHERE inhparent = 'block'::regclass`).Scan(&parts); err != nil {
		t.Fatal(err)
	}
	if want := 1 + 1 + daysAhead; parts != want {
		t.Errorf("there are %d partitions, want %d", parts, want)
	}
}

func TestParts_KeptForEverByDefault(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	work := blocks(t, "north", 5)
	record(t, s, work...)
	age(t, s, 10_000)
	if err := s.tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(query(t, s, allSamples)); got != 50 {
		t.Errorf("%d samples are left, want 50", got)
	}
}

// A query that lost blocks on its way says so.
func TestParts_DroppedUnderAQueryIsAnError(t *testing.T) {
	s := openWith(t, Options{URL: pgtest.Database(t), KeepDays: 30})
	defer s.Close()
	addGateways(t, s, "north")
	record(t, s, recordertest.NewDelivery(t, "north", [16]byte{1}, 1, recordertest.Series("belt", 1_000_000e9, 1e9, 50)))
	age(t, s, 31)
	// Enough that they are yielded before the later hour is looked at.
	for i := range 40 {
		record(t, s, recordertest.NewDelivery(t, "north", [16]byte{2}, uint64(1+1000*i), recordertest.Series("belt", int64(i)*1e9, 1e6, 1000)))
	}
	dropped := false
	err := s.Samples(t.Context(), allSamples, func(cloud.Record) error {
		if dropped {
			return nil
		}
		dropped = true
		return s.tend(t.Context())
	})
	if !errors.Is(err, errDropped) {
		t.Fatalf("Samples: %v, want %v", err, errDropped)
	}
}

// Each query asks the partitions that have samples of its time, and no others.
func TestParts_QueriesAskThoseOfTheirTime(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	const hour = 3600e9
	for i := range 5 {
		record(t, s, recordertest.NewDelivery(t, "north", [16]byte{byte(i + 1)}, 1, recordertest.Series("belt", int64(i)*100*hour, 1e9, 50)))
		age(t, s, 100-i)
	}
	for _, c := range []struct {
		from, to int64
		streams  int
	}{
		{math.MinInt64, math.MaxInt64, 5}, {0, 1, 1}, {150 * hour, 160 * hour, 0}, {100 * hour, 200*hour + 1, 2}, {-5, math.MaxInt64, 5}, {401 * hour, 500 * hour, 0},
	} {
		r := &reading{store: s}
		streams, err := r.begin(t.Context(), cloud.Query{From: &c.from, To: &c.to})
		if err != nil || len(streams) != c.streams {
			t.Errorf("from %d to %d: %d streams, %v: want %d", c.from, c.to, len(streams), err, c.streams)
		}
	}
}

// Clocks that say anything do not make a row of part_hours grow for ever, nor
// hide anything.
func TestCover_IsBoundedAndHidesNothing(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	var all []cloud.Delivery
	for i := range maxHourRanges + 50 {
		all = append(all, recordertest.NewDelivery(t, "north", [16]byte{1}, uint64(1+5*i), recordertest.Series("belt", int64(i)*7200e9, 1e9, 5)))
	}
	for i := 0; i < len(all); i += 100 {
		record(t, s, all[i:min(i+100, len(all))]...)
	}
	var ranges int
	if err := s.pool.QueryRow(t.Context(), `SELECT max((SELECT count(*) FROM unnest(hours))) FROM part_hours`).Scan(&ranges); err != nil {
		t.Fatal(err)
	}
	if ranges > maxHourRanges {
		t.Errorf("a row has %d ranges", ranges)
	}
	if got := len(query(t, s, allSamples)); got != 5*len(all) {
		t.Errorf("%d samples are found of %d", got, 5*len(all))
	}
	audit(t, s)
}
