package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"touchline/cloud/merge"
)

// TestSamples_PageIsOneSeekWithoutSorting: each page of a scan is one seek in
// the index of one partition, and rows come out of it in order: without that a
// query over a season would sort it.
func TestSamples_PageIsOneSeekWithoutSorting(t *testing.T) {
	s := openTest(t)
	addGateways(t, s, "north")
	work := match(t, "north", 5, 3000)
	for i := 0; i < len(work); i += 500 {
		record(t, s, work[i:i+500]...)
	}
	today, err := s.today(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// As many epochs and gateways as a league has.
	_, err = s.pool.Exec(t.Context(), `
		INSERT INTO gateway (name, token_sha256, added) SELECT 'g' || n, sha256(n::text::bytea), 0 FROM generate_series(1, 1000) n;
		INSERT INTO cursor (epoch, gateway, begun) SELECT substr(sha256(n::text::bytea), 1, 16), id, now() FROM generate_series(1, 20000) n JOIN gateway ON name = 'g' || n % 1000 + 1;
		ANALYZE`)
	if err != nil {
		t.Fatal(err)
	}
	var cursor int64
	if err := s.pool.QueryRow(t.Context(), `SELECT id FROM cursor WHERE epoch = $1`, work[0].Block.Epoch[:]).Scan(&cursor); err != nil {
		t.Fatal(err)
	}
	span := merge.SpanOf(work[0].Samples)
	for name, c := range map[string]struct {
		query string
		args  []any
		want  []string
		not   string
	}{
		"page": {pageQuery(today), []any{4096, span.Class(), span.From, int64(5), span.From + 1e15, span.From, int64(0), s.era, snapshot(t, s), 64},
			[]string{"Index Scan using " + today.table("place") + "_span_min_time_block_idx", "Index Cond: ((span = ", "AND (ROW(min_time, block) > ROW("}, "Sort"},
		"data": {`SELECT data FROM ` + today.table("block") + ` WHERE id = $1`, []any{int64(5)}, []string{"Index Scan using " + today.table("block") + "_pkey"}, "Seq Scan"},
		"lock": {lockCursors, []any{[][]byte{work[0].Block.Epoch[:]}}, []string{"Index Scan using cursor_epoch_key"}, "Seq Scan"},
		"repeat": {repeatQuery(today), []any{[]int64{cursor}, []int64{1}, []int64{int64(work[9].Block.First)}, []int32{5}, []int64{int64(work[9].Block.CRC)}},
			[]string{today.table("block") + "_cursor_first_idx", "rows=1 loops=1"}, "Seq Scan"},
		"streams": {streamsQuery, []any{int32(minHour), int32(maxHour)}, []string{"part_hours"}, "block"},
	} {
		rows, err := s.pool.Query(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, SUMMARY OFF) "+c.query, c.args...)
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
		t.Logf("%s:\n%s", name, plan.String())
		for _, part := range c.want {
			if !strings.Contains(plan.String(), part) {
				t.Errorf("the plan of %s does not have %q:\n%s", name, part, plan.String())
			}
		}
		if strings.Contains(plan.String(), c.not) {
			t.Errorf("the plan of %s has %q:\n%s", name, c.not, plan.String())
		}
	}
}

func snapshot(t testing.TB, s *Store) (text string) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}
