package cloud

import (
	"fmt"
	"math"
	"slices"

	"touchline"
	"touchline/wire"
)

// A Note says how far a sample's time can be trusted where that is less than
// wholly.
type Note uint8

// The notes, in queries "", "unset", "set" and "corrected".
const (
	NoteNone      Note = iota
	NoteUnset          // the gateway's clock was not set when it came: a stamp of it is wrong, a sensor's own time was not compared with anything
	NoteSet            // the gateway stamped it by a clock that nobody vouched for
	NoteCorrected      // the gateway stamped it by a clock that was off, and it was corrected since
)

// String returns the note as queries name it.
func (n Note) String() string {
	switch n {
	case NoteNone:
		return ""
	case NoteUnset:
		return "unset"
	case NoteSet:
		return "set"
	case NoteCorrected:
		return "corrected"
	}
	return fmt.Sprintf("note %d", uint8(n))
}

// Doubted says whether a block has samples that a clock message can correct:
// the gateway stamped them, and nobody vouched for its clock.
func Doubted(clock *wire.BlockClock, samples []touchline.Sample) bool {
	return clock != nil && clock.State < touchline.ClockSynchronised &&
		slices.ContainsFunc(samples, func(s touchline.Sample) bool { return s.Stamped })
}

// A Correction is what is known of the stamps of a doubted block: they are
// off by -Shift ns. The zero Correction says nothing.
type Correction struct {
	Shift   int64
	Vouched bool // by a clock that was synchronised
}

// Correct returns the correction of a block stamped by one clock, given the
// best that is known of the same boot; the zero Clock where nothing is. A
// known clock of a worse state corrects nothing.
func Correct(by, known touchline.Clock) Correction {
	if known.State == touchline.ClockUnset || known.State < by.State {
		return Correction{}
	}
	return Correction{Shift: saturated(known.Offset, by.Offset), Vouched: known.State == touchline.ClockSynchronised}
}

// saturated returns a - b, or what comes next to it in 64 bits.
func saturated(a, b int64) int64 {
	d := a - b
	switch {
	case a >= 0 && b < 0 && d < 0:
		return math.MaxInt64
	case a < 0 && b > 0 && d >= 0:
		return math.MinInt64
	}
	return d
}

// Time returns the corrected form of a stamp, within what 64 bits hold.
func (c Correction) Time(t int64) int64 {
	if c.Shift >= 0 {
		return t + min(c.Shift, math.MaxInt64-max(t, 0))
	}
	return t + max(c.Shift, math.MinInt64-min(t, 0))
}

// Apply corrects the stamped ones of a block's samples.
func (c Correction) Apply(samples []touchline.Sample) {
	if c.Shift == 0 {
		return
	}
	for i := range samples {
		if samples[i].Stamped {
			samples[i].Time = c.Time(samples[i].Time)
		}
	}
}

// Note returns what is to be said of a sample of a block with this clock, nil
// where it says nothing of it.
func (c Correction) Note(clock *wire.BlockClock, stamped bool) Note {
	switch {
	case clock == nil || clock.State >= touchline.ClockSynchronised:
		return NoteNone
	case stamped && c.Shift != 0:
		return NoteCorrected
	case stamped && c.Vouched:
		return NoteNone
	case clock.State == touchline.ClockUnset:
		return NoteUnset
	case stamped:
		return NoteSet
	}
	return NoteNone
}
