package merge

import (
	"math"
	"math/bits"

	"touchline"
	"touchline/cloud"
)

// A Span is the time from one sample to another, both included; it is empty
// where From is after To.
type Span struct{ From, To int64 }

var noSpan = Span{math.MaxInt64, math.MinInt64}

func (s Span) with(t int64) Span { return Span{min(s.From, t), max(s.To, t)} }

// SpanOf returns the times of the oldest and the newest sample.
func SpanOf(samples []touchline.Sample) Span {
	s := noSpan
	for i := range samples {
		s = s.with(samples[i].Time)
	}
	return s
}

// Class returns the class of a block's length in time: blocks of class c
// last less than 16^c ns (class 16: any length). Queries look for blocks
// class by class, since from the length they know how long before a time a
// block that reaches it can begin; one block from a clock that jumped by
// decades then costs the others nothing.
func (s Span) Class() int { return (bits.Len64(uint64(s.To)-uint64(s.From)) + 3) / 4 }

// Stamps are the spans of a block's samples as the block has them: of those
// that the gateway stamped, which a clock message can correct, and of those
// with the sensors' own times.
type Stamps struct{ Stamped, Own Span }

// StampsOf returns those of a block's samples.
func StampsOf(samples []touchline.Sample) Stamps {
	s := Stamps{noSpan, noSpan}
	for i := range samples {
		if sample := &samples[i]; sample.Stamped {
			s.Stamped = s.Stamped.with(sample.Time)
		} else {
			s.Own = s.Own.with(sample.Time)
		}
	}
	return s
}

// By returns the block's span as it is corrected.
func (s *Stamps) By(c cloud.Correction) Span {
	return Span{min(c.Time(s.Stamped.From), s.Own.From), max(c.Time(s.Stamped.To), s.Own.To)}
}

// StampedBy returns the span of what the gateway stamped as it is corrected: a
// clock moves nothing else. It must have stamped some.
func (s *Stamps) StampedBy(c cloud.Correction) Span {
	return Span{c.Time(s.Stamped.From), c.Time(s.Stamped.To)}
}
