package rollup

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"touchline"
	"touchline/cloud"
)

// Whatever the times are: each sample's second is noted, the ends of what is
// noted are samples' seconds, and there are not too many notes of one block.
func TestAddSamples_NotesEachSecondAndFewOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		centers := rapid.SliceOfN(rapid.Int64(), 1, 100).Draw(t, "centers")
		by := cloud.Correction{Shift: rapid.Int64().Draw(t, "shift")}
		seconds := make(map[int64]bool)
		var samples []touchline.Sample
		for range rapid.IntRange(1, 300).Draw(t, "samples") {
			at := rapid.SampledFrom(centers).Draw(t, "center")
			if off := rapid.Int64Range(0, 200e9).Draw(t, "off"); at <= math.MaxInt64-off {
				at += off
			}
			sample := touchline.Sample{Time: at, Stamped: rapid.Bool().Draw(t, "stamped")}
			samples = append(samples, sample)
			if sample.Stamped {
				at = by.Time(at)
			}
			seconds[SecondOf(at)] = true
		}
		var s Spans
		s.AddSamples(7, samples, by)
		if len(s.list) > maxRuns {
			t.Fatalf("there are %d spans", len(s.list))
		}
		noted := make(map[int64]bool)
		for i, span := range s.list {
			if span.Gateway != 7 || span.Removes || !seconds[span.From] || !seconds[span.To] || i > 0 && span.From <= s.list[i-1].To+nearby {
				t.Fatalf("%+v is no span of the samples, after %+v", span, s.list[:i])
			}
			for at := range seconds {
				noted[at] = noted[at] || span.From <= at && at <= span.To
			}
		}
		for at := range seconds {
			if !noted[at] {
				t.Fatalf("second %d is not noted: %+v", at, s.list)
			}
		}
		if decoded, err := Decode(s.Encode()); err != nil || len(decoded) != len(s.list) {
			t.Fatalf("%+v come back as %+v, %v", s.list, decoded, err)
		}
	})
}

// Of many moments that are far apart those are joined that are nearest.
func TestAddSamples_JoinsTheNearest(t *testing.T) {
	var samples []touchline.Sample
	for i := range int64(2 * maxRuns) { // pairs, two minutes apart, of hours
		at := (i/2)*7200e9 + (i%2)*120e9
		samples = append(samples, touchline.Sample{Time: at})
	}
	var s Spans
	s.AddSamples(1, samples, cloud.Correction{})
	if len(s.list) > maxRuns || len(s.list) < maxRuns/2 {
		t.Fatalf("there are %d spans", len(s.list))
	}
	for _, span := range s.list {
		if span.To-span.From >= 7200 {
			t.Errorf("%+v joins what is far apart", span)
		}
	}
}
