package postgres

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline/cloud/merge"
)

// Hours since 1970, rounded down. 64 bits of ns are the hours -2,562,048 to
// 2,562,047.
const (
	hourNs  = int64(time.Hour)
	minHour = -2_562_048
	maxHour = 2_562_047
)

func hourOf(ns int64) int32 {
	h := ns / hourNs
	if ns%hourNs < 0 {
		h--
	}
	return int32(h)
}

// maxHourRanges bounds a row of part_hours, against clocks that say anything:
// what has more is taken for the whole time between its ends. A day's honest
// samples are one to three.
const maxHourRanges = 500

// A stand is a row of part_hours.
type stand struct {
	day  day
	span int
}

// A cover is what blocks add to part_hours.
type cover map[stand]map[[2]int32]struct{}

func (c cover) add(d day, s merge.Span) {
	at := stand{d, s.Class()}
	if c[at] == nil {
		c[at] = make(map[[2]int32]struct{})
	}
	c[at][[2]int32{hourOf(s.From), hourOf(s.To)}] = struct{}{}
}

// queue adds it to part_hours. A row that has it already is not even locked, so
// that nodes that record at the same time wait for one another once in an
// hour. All take the rows in the same order.
func (c cover) queue(batch *pgx.Batch) {
	order := slices.SortedFunc(maps.Keys(c), func(a, b stand) int { return cmp.Or(cmp.Compare(a.day, b.day), cmp.Compare(a.span, b.span)) })
	for _, at := range order {
		var first, last []int32
		for h := range c[at] {
			first, last = append(first, h[0]), append(last, h[1])
		}
		batch.Queue(`
			INSERT INTO part_hours AS p (day, span, hours)
			SELECT $1::date, $2::smallint, new.hours
			FROM (SELECT range_agg(int4range(f, l, '[]')) AS hours FROM unnest($3::int[], $4::int[]) AS h (f, l)) AS new
			WHERE NOT EXISTS (SELECT FROM part_hours o WHERE o.day = $1 AND o.span = $2 AND o.hours @> new.hours)
			ON CONFLICT (day, span) DO UPDATE SET hours = CASE
				WHEN (SELECT count(*) FROM unnest(p.hours + excluded.hours)) > $5::int THEN int4multirange(range_merge(p.hours + excluded.hours))
				ELSE p.hours + excluded.hours END`, at.day.date(), at.span, first, last, maxHourRanges)
	}
}
