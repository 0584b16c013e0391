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
	if _, err := s.pool.Exec(t.Context(), `ANALYZE`); err != nil {
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
		"lock": {lockCursors, []any{[][]byte{work[0].Block.Epoch[:]}}, []string{"LockRows"}, "Aggregate"},
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
