package sqlite

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/recordertest"
)

// Each page of a scan is one seek, and rows come out of it in
// order: without that a query over a season would sort it.
func TestSamples_PageIsOneSeekWithoutSorting(t *testing.T) {
	s := openTest(t)
	args := make([]any, 10)
	for i := range args {
		args[i] = 1
	}
	rows, err := s.read.Query("EXPLAIN QUERY PLAN "+pageQuery, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var plan []string
	for rows.Next() {
		var a, b, c int
		var step string
		if err := rows.Scan(&a, &b, &c, &step); err != nil {
			t.Fatal(err)
		}
		plan = append(plan, step)
	}
	got := strings.Join(plan, "\n")
	if !strings.Contains(got, "SEARCH t USING PRIMARY KEY (span=? AND (min_time,block)>(?,?)") ||
		strings.Contains(got, "TEMP B-TREE") || strings.Contains(got, "SCAN") {
		t.Fatalf("the plan is\n%s\nwant one search of block_time by span, time and block, and no sorting", got)
	}
}

// decodes answers q and returns how many samples it yielded and how many
// blocks it decoded for them.
func decodes(t *testing.T, s *Store, q cloud.Query) (samples, blocks int) {
	t.Helper()
	before := s.Stats().Decoded
	if err := s.Samples(t.Context(), q, func(cloud.Record) error { samples++; return nil }); err != nil {
		t.Fatal(err)
	}
	return samples, int(s.Stats().Decoded - before)
}

// However many samples there are: blocks that follow one another in time,
// also those of several gateways and in any order of arrival, are read once.
func TestSamples_ReadsBlocksOfATimeOnce(t *testing.T) {
	s := openTest(t)
	s.limits.Samples = 8000
	var work []cloud.Delivery
	for i, gateway := range []string{"north", "south", "east"} {
		if err := s.AddGateway(t.Context(), gateway, [32]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		work = append(work, match(t, gateway, 1000, 40)...)
	}
	slices.Reverse(work)
	recordAll(t, s, work)
	if samples, blocks := decodes(t, s, cloud.Query{}); samples != 120_000 || blocks != 120 {
		t.Errorf("%d samples from %d blocks, want 120000 from 120", samples, blocks)
	}
	// Three blocks at once do not fit any more: passes, but each of them
	// reads only around its own time.
	s.limits.Samples = 2000
	if samples, blocks := decodes(t, s, cloud.Query{}); samples != 120_000 || blocks <= 120 || blocks > 8*120 {
		t.Errorf("%d samples from %d blocks, want 120000 from a few times 120", samples, blocks)
	}
}

// The least that a pass may hold is one sample, however large.
func TestSamples_YieldsValuesLargerThanTheLimit(t *testing.T) {
	s := openTest(t)
	s.limits = merge.Limits{Samples: 4, TextBytes: 100}
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	epoch := touchline.NewEpoch()
	var work []cloud.Delivery
	for i := range 5 {
		samples := recordertest.Series("board", 0, 1, 10)
		for j := range samples {
			samples[j].Value = touchline.TextValue(strings.Repeat("long ", 100*i+j))
		}
		work = append(work, recordertest.NewDelivery(t, "north", epoch, uint64(1+10*i), samples))
	}
	recordAll(t, s, work)
	var got []cloud.Record
	err := s.Samples(t.Context(), cloud.Query{}, func(r cloud.Record) error {
		if got = append(got, r); len(got) > 50 {
			return errors.New("there are 50")
		}
		return nil
	})
	if want := recordertest.Records(work...); err != nil || !slices.Equal(got, want) {
		t.Fatalf("Samples yielded %d records and returned %v, want all %d", len(got), err, len(want))
	}
}

// A query does not touch blocks that can't have anything for it: here one
// that would be an error.
func TestSamples_LeavesOtherBlocksAlone(t *testing.T) {
	s := openTest(t)
	for i, gateway := range []string{"north", "south"} {
		if err := s.AddGateway(t.Context(), gateway, [32]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	bad := recordertest.NewDelivery(t, "north", touchline.NewEpoch(), 1, recordertest.Series("broken", 1000, 1, 100))
	good := recordertest.NewDelivery(t, "south", touchline.NewEpoch(), 1, recordertest.Series("belt", 1050, 1, 1000))
	recordAll(t, s, []cloud.Delivery{bad, good})
	if _, err := s.write.Exec(`UPDATE block SET data = x'00' WHERE id = 1`); err != nil {
		t.Fatal(err)
	}
	from, to := int64(1100), int64(1000)
	for _, q := range []cloud.Query{{Gateway: "south"}, {Sensor: "belt"}, {From: &from}, {To: &to}, {Metric: "none"}} {
		if err := s.Samples(t.Context(), q, func(cloud.Record) error { return nil }); err != nil {
			t.Errorf("query %+v read the broken block: %v", q, err)
		}
	}
	if err := s.Samples(t.Context(), cloud.Query{}, func(cloud.Record) error { return nil }); err == nil {
		t.Error("the broken block is none: the test proves nothing")
	}
}
