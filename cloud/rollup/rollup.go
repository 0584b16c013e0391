// Package rollup keeps rows of one second and one minute of each series beside
// the samples: how many there are, the least, the greatest, the sum and the
// last of them. They are ordinary rows, for SQL and dashboards.
//
// The transaction that changes what a query would read (blocks, corrections of
// clocks, masks) leaves a note of the gateways and seconds that it changed. A
// Roller reads those seconds as any query does, and writes what comes of them
// together with the end of the notes. So rows are behind by seconds, never
// count a sample twice, and a Roller that was killed is one that has not begun.
package rollup

import (
	"context"
	"errors"
	"math"
	"time"

	"touchline"
	"touchline/cloud"
)

// A Series is what rows are of.
type Series struct{ Gateway, Sensor, Metric, Unit string }

// A Row is what is kept of the samples of a series in one second or minute:
// of the numbers that are finite, in the order of a query.
type Row struct {
	Series
	Time int64 // when it begins
	Figures
}

// Figures are what a row says.
type Figures struct {
	Count               int64 // at least 1, at most 2^31-1
	Min, Max, Sum, Last float64
}

// Bounds of sums. Stores add and divide them, and PostgreSQL ends a statement
// whose result is above what a float64 holds, or is 0 since it is below: 60
// times the highest can be added, and the lowest divided by each count.
const (
	maxSum = 1e306
	minSum = 1e-290
)

func tame(sum float64) float64 {
	if math.Abs(sum) < minSum {
		return 0
	}
	return max(-maxSum, min(maxSum, sum))
}

// add adds the next sample.
func (f *Figures) add(v float64) {
	if f.Count == 0 {
		f.Min, f.Max = v, v
	}
	if f.Count < math.MaxInt32 {
		f.Count++
	}
	f.Min, f.Max, f.Last = min(f.Min, v), max(f.Max, v), v
	f.Sum += v
	if math.IsInf(f.Sum, 0) {
		f.Sum = math.Copysign(math.MaxFloat64, f.Sum)
	}
}

// counts says whether a value has a place in rows.
func counts(v touchline.Value) bool {
	return v.Kind() == touchline.Number && !math.IsNaN(v.Float()) && !math.IsInf(v.Float(), 0)
}

// Work is what a turn begins with.
type Work struct {
	Turn     int64            // how many there were: who commits with an older one is refused
	Notes    []int64          // the store's numbers of the notes taken, the oldest ones
	Spans    []Span           // what they say
	Oldest   time.Time        // when the oldest of them was made; zero where there are none
	Gateways map[int64]string // the names of the gateways in Spans; of all, where one is of all
	// SecondsFrom is the time before which rows of seconds are not kept, a
	// multiple of an hour. Rows of minutes are made of samples there, else of
	// the rows of seconds.
	SecondsFrom int64
}

// A Clearing is a part of a gateway's time in which rows that a turn does not
// write are to go. It is of whole minutes before Work.SecondsFrom.
type Clearing struct {
	Gateway  string
	From, To int64 // both included
}

// A Result is what a turn ends with.
type Result struct {
	Turn    int64
	Notes   []int64 // that are done
	Rest    []Span  // that are not, in a note of the age of Oldest
	Oldest  time.Time
	Clear   []Clearing
	Seconds []Row
	Minutes []Row // of before Work.SecondsFrom only
}

// ErrOvertaken says that another process has had a turn since this one began.
var ErrOvertaken = errors.New("another process rolls up")

// A Store is a record store as a Roller needs it.
type Store interface {
	// RollupStart begins or ends the keeping of rows: where it begins, all that
	// is stored is noted as changed; where it ends, notes are dropped.
	RollupStart(ctx context.Context, enabled bool) error
	// RollupWork returns at most limit notes, the oldest. What it names is
	// committed, so a query that begins later sees it.
	RollupWork(ctx context.Context, limit int) (Work, error)
	// RollupSamples is cloud.Archive's Samples of these gateways only; nil is
	// all. It waits for no other query.
	RollupSamples(ctx context.Context, q cloud.Query, only map[string]struct{}, yield func(cloud.Record) error) error
	// RollupCommit writes the result of a turn in one transaction, with the
	// rows of the minutes that its seconds are of; ErrOvertaken is in the error
	// where Turn is not the newest.
	RollupCommit(ctx context.Context, r Result) error
	// RollupTrim drops rows of seconds and of minutes that are of before these
	// times; MinSecond drops none. What it dropped of later ones before is noted
	// to be computed anew (see KeepSeconds). Where another clock than this
	// machine's says that the times are wrong, it does nothing and says so.
	RollupTrim(ctx context.Context, seconds, minutes int64) error
}
