package cloud

import (
	"context"
	"math"
	"time"
)

// A Rollup says what the samples of one series in one second or minute are
// like: those that are finite numbers and that no mask hides.
type Rollup struct {
	Gateway, Sensor, Metric, Unit string

	Time                int64 // s since the Unix epoch, when it begins
	Count               int64 // at least 1
	Min, Max, Sum, Last float64
}

// Mean is the arithmetic mean.
func (r *Rollup) Mean() float64 { return r.Sum / float64(r.Count) }

// Rollups is the record store as readers of rows see it.
type Rollups interface {
	// Rollups calls yield for each row of a minute, or of a second, that begins
	// in q's range: series by series, and of each in the order of time. Rows are
	// behind the samples by some seconds, and what changes while it reads may
	// be in its result or not. It holds no transaction while yield runs, and
	// needs memory that does not grow with the result. It ends with yield's
	// error, if any.
	Rollups(ctx context.Context, q Query, minutes bool, yield func(Rollup) error) error
}

// Seconds returns the seconds that begin in the range of q, both included.
func (q *Query) Seconds() (from, to int64) {
	up := func(ns int64) int64 { // to the second that begins then, or next
		s := ns / int64(time.Second)
		if ns%int64(time.Second) > 0 {
			s++
		}
		return s
	}
	from, to = math.MinInt64/int64(time.Second)-60, math.MaxInt64/int64(time.Second)
	if q.From != nil {
		from = up(*q.From)
	}
	if q.To != nil {
		to = up(*q.To) - 1
	}
	return from, to
}
