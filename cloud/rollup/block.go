package rollup

import (
	"cmp"
	"slices"

	"touchline"
	"touchline/cloud"
)

// maxRuns bounds what is noted of one block, at some 10 bytes each. A block has
// the samples of a venue's sensors between two moments, so one run, and one more
// for each sensor whose clock says something else.
const maxRuns = 64

// AddSamples notes that a block was added to a gateway's, whose stamped samples
// are corrected. Its seconds are noted, and not all between the first and the
// last: one sensor whose clock was never set makes each block of its gateway
// reach from 1970 to today, and computing all of that anew for each block would
// never come to an end.
func (s *Spans) AddSamples(gateway int64, samples []touchline.Sample, by cloud.Correction) {
	var runs []Span
	for i := range samples {
		t := samples[i].Time
		if samples[i].Stamped {
			t = by.Time(t)
		}
		at := SecondOf(t)
		// Samples stand in series, and each in the order of time but for a few.
		if n := len(runs); n > 0 && at >= runs[n-1].From-nearby && at <= runs[n-1].To+nearby {
			runs[n-1].From, runs[n-1].To = min(runs[n-1].From, at), max(runs[n-1].To, at)
			continue
		}
		runs = append(runs, Span{gateway, at, at, false})
	}
	s.list = append(s.list, joinRuns(runs)...)
}

// joinRuns joins runs that are near one another, and of more than maxRuns those
// that are nearest.
func joinRuns(runs []Span) []Span {
	runs = joinWithin(runs, nearby)
	if len(runs) <= maxRuns {
		return runs
	}
	gaps := make([]int64, 0, len(runs)-1)
	for i := 1; i < len(runs); i++ {
		gaps = append(gaps, runs[i].From-runs[i-1].To)
	}
	slices.Sort(gaps)
	return joinWithin(runs, gaps[len(gaps)-maxRuns]) // maxRuns-1 gaps, at most, are wider
}

// joinWithin returns the runs in order, those joined that are at most gap apart.
func joinWithin(runs []Span, gap int64) []Span {
	slices.SortFunc(runs, func(a, b Span) int { return cmp.Compare(a.From, b.From) })
	joined := runs[:0]
	for _, r := range runs {
		if n := len(joined); n > 0 && r.From-joined[n-1].To <= gap {
			joined[n-1].To = max(joined[n-1].To, r.To)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}
