package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgtype"

	"touchline"
)

// A multirange is touchline.Ranges as int8multirange, canonical: the lower
// bound included, the upper not.
type multirange = pgtype.Multirange[pgtype.Range[pgtype.Int8]]

func multirangeOf(ranges touchline.Ranges) multirange {
	m := make(multirange, len(ranges))
	for i, r := range ranges {
		m[i] = pgtype.Range[pgtype.Int8]{
			Lower: pgtype.Int8{Int64: int64(r.First), Valid: true}, LowerType: pgtype.Inclusive,
			Upper: pgtype.Int8{Int64: int64(r.Last) + 1, Valid: true}, UpperType: pgtype.Exclusive,
			Valid: true,
		}
	}
	return m
}

var errRanges = errors.New("stored ranges are damaged")

// rangesOf reads what multirangeOf wrote, and nothing else.
func rangesOf(m multirange) (touchline.Ranges, error) {
	if len(m) == 0 {
		return nil, nil
	}
	ranges := make(touchline.Ranges, len(m))
	for i, r := range m {
		if !r.Valid || r.LowerType != pgtype.Inclusive || r.UpperType != pgtype.Exclusive || r.Lower.Int64 < 1 {
			return nil, errRanges
		}
		if ranges[i] = (touchline.Range{First: uint64(r.Lower.Int64), Last: uint64(r.Upper.Int64) - 1}); !ranges[i].Valid() {
			return nil, errRanges
		}
	}
	return ranges, nil
}
