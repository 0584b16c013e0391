package wire

import "slices"

// The times of a block are in the largest of these units that divides all of
// them: seconds to nanoseconds.
var timeUnits = [...]struct {
	exponent byte
	ns       int64
}{{9, 1e9}, {6, 1e6}, {3, 1e3}, {0, 1}}

// unitOf returns the nanoseconds of a unit by its exponent; 0 if there is none.
func unitOf(exponent byte) int64 {
	for _, u := range timeUnits {
		if u.exponent == exponent {
			return u.ns
		}
	}
	return 0
}

// timeColumns are the distinct time columns of the block's series. Metrics
// that arrive in one message share theirs.
type timeColumns struct {
	columns  []timeColumn
	refs     []int32 // per series
	ticks    []int64 // of all columns
	exponent byte
}

// A timeColumn is a part of ticks.
type timeColumn struct{ start, count int32 }

// maxRecentColumns is how many columns a series is compared with. Series of
// one sensor stand close together, at most a few different ones apart.
const maxRecentColumns = 4

// collect fills the columns, with ticks in nanoseconds.
func (t *timeColumns) collect(g *grouping) {
	t.columns, t.refs, t.ticks = t.columns[:0], t.refs[:0], t.ticks[:0]
	for i := range g.series {
		s := &g.series[i]
		times := g.times[s.start : s.start+s.count]
		ref := t.recent(times)
		if ref < 0 {
			ref = len(t.columns)
			t.columns = append(t.columns, timeColumn{int32(len(t.ticks)), s.count})
			t.ticks = append(t.ticks, times...)
		}
		t.refs = append(t.refs, int32(ref))
	}
}

// recent returns which of the newest columns equals times; -1 if none does.
func (t *timeColumns) recent(times []int64) int {
	last := len(times) - 1
	for i := len(t.columns) - 1; i >= max(0, len(t.columns)-maxRecentColumns); i-- {
		c := t.columns[i]
		if int(c.count) != len(times) {
			continue
		}
		other := t.ticks[c.start : c.start+c.count]
		if other[last] == times[last] && slices.Equal(other, times) {
			return i
		}
	}
	return -1
}

// scale finds the unit and turns the ticks from nanoseconds into it.
func (t *timeColumns) scale() {
	at := 0
	for _, tick := range t.ticks {
		for tick%timeUnits[at].ns != 0 {
			at++
		}
		if timeUnits[at].ns == 1 {
			break
		}
	}
	t.exponent = timeUnits[at].exponent
	if ns := timeUnits[at].ns; ns > 1 {
		for i := range t.ticks {
			t.ticks[i] /= ns
		}
	}
}
