package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"touchline"
)

// encodeWith is one block of all samples.
func encodeWith(t testing.TB, samples []touchline.Sample, a Attributes) []byte {
	t.Helper()
	got, err := NewEncoder().EncodeWith(nil, samples, a)
	if err != nil || got.Count != len(samples) {
		t.Fatalf("encode: %d of %d samples, %v", got.Count, len(samples), err)
	}
	return got.Data
}

func TestAttributes_ClockComesBackExactly(t *testing.T) {
	d := NewDecoder()
	for _, state := range []touchline.ClockState{touchline.ClockUnset, touchline.ClockSet, touchline.ClockSynchronised} {
		for _, offset := range []int64{0, 1, -1, 1767225600e9, math.MaxInt64, math.MinInt64} {
			for _, uptime := range []time.Duration{0, time.Millisecond, 40 * 24 * time.Hour, time.Duration(maxUptime) * time.Millisecond} {
				want := BlockClock{Clock: touchline.Clock{Boot: touchline.Boot(goldenEpoch), State: state, Offset: offset}, Uptime: uptime}
				samples := exampleSamples()
				got, err := d.Decode(nil, encodeWith(t, samples, Attributes{Clock: &want}))
				if err != nil || !slices.Equal(got, columnOrder(samples)) {
					t.Fatalf("%+v: %v", want, err)
				}
				if c := d.Attributes().Clock; c == nil || *c != want {
					t.Fatalf("got %+v, want %+v", c, want)
				}
			}
		}
	}
	if _, err := d.Decode(nil, encodeWith(t, exampleSamples(), Attributes{})); err != nil || d.Attributes().Clock != nil {
		t.Errorf("a block without a clock has that of the one before: %+v, %v", d.Attributes().Clock, err)
	}
	if _, err := d.Decode(nil, clockedBlock(t)); err != nil || d.Attributes().Clock == nil {
		t.Fatal(err)
	}
	if _, err := d.Decode(nil, []byte{1, 0}); err == nil || d.Attributes().Clock != nil {
		t.Errorf("what is no block has the clock of the one before: %+v, %v", d.Attributes().Clock, err)
	}
}

// The same sensor, metric and unit, with times of its own and of the gateway,
// in turns: which is which must survive for every number of series.
func TestAttributes_StampedIsKeptSampleBySample(t *testing.T) {
	d := NewDecoder()
	for series := range 40 {
		var samples []touchline.Sample
		for i := range 3 * (series + 1) {
			samples = append(samples, touchline.Sample{
				Sensor: "s", Metric: fmt.Sprint("m", i%(series+1)), Time: int64(i), Stamped: i%3 == 0 || i%7 == 0,
			})
		}
		got, err := d.Decode(nil, encodeWith(t, samples, Attributes{}))
		if err != nil || !slices.Equal(got, columnOrder(samples)) {
			t.Fatalf("%d series: got %+v, %v", series+1, got, err)
		}
	}
}

// attributesBefore replaces the attributes of a stored block without any.
func attributesBefore(data []byte, attributes ...[]byte) []byte {
	out := binary.AppendUvarint(bytes.Clone(data[:2]), uint64(len(attributes)))
	for _, a := range attributes {
		out = append(out, a[0])
		out = binary.AppendUvarint(out, uint64(len(a)-1))
		out = append(out, a[1:]...)
	}
	return append(out, data[3:]...)
}

func TestDecode_RefusesBadAttributes(t *testing.T) {
	d := NewDecoder()
	stored := encodeWith(t, exampleSamples(), Attributes{}) // two series
	if stored[1] != 0 || stored[2] != 0 {
		t.Fatal("the example is compressed or has attributes")
	}
	clock := append([]byte{keyClock}, appendClock(nil, &goldenClock)...)
	with := func(at int, value byte) []byte {
		c := bytes.Clone(clock)
		c[at] = value
		return c
	}
	endless := append(slices.Clone(clock[:18]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0)
	for name, c := range map[string]struct {
		attributes [][]byte
		good       bool
	}{
		"none":                  {nil, true},
		"clock":                 {[][]byte{clock}, true},
		"both":                  {[][]byte{clock, {keyStamped, 3}}, true},
		"both, the other way":   {[][]byte{{keyStamped, 2}, clock}, true},
		"unknown":               {[][]byte{{9, 1, 2, 3}, clock, {100}}, true},
		"unknown twice":         {[][]byte{{9, 1}, {9, 1}}, true},
		"clock twice":           {[][]byte{clock, clock}, false},
		"stamped twice":         {[][]byte{{keyStamped, 1}, {keyStamped, 1}}, false},
		"clock empty":           {[][]byte{{keyClock}}, false},
		"clock cut off":         {[][]byte{clock[:len(clock)-1]}, false},
		"clock too long":        {[][]byte{append(slices.Clone(clock), 0)}, false},
		"clock of state 3":      {[][]byte{with(17, 3)}, false},
		"clock of 600 My":       {[][]byte{endless}, false},
		"stamped empty":         {[][]byte{{keyStamped}}, false},
		"stamped too long":      {[][]byte{{keyStamped, 1, 0}}, false},
		"stamped beyond series": {[][]byte{{keyStamped, 4}}, false},
	} {
		got, err := d.Decode(nil, attributesBefore(stored, c.attributes...))
		if c.good != (err == nil) || c.good && len(got) != 6 {
			t.Errorf("%s: %d samples, %v", name, len(got), err)
		}
	}
	empty := encodeWith(t, nil, Attributes{})
	if _, err := d.Decode(nil, attributesBefore(empty, clock)); err != nil {
		t.Errorf("empty block with a clock: %v", err)
	}
	if _, err := d.Decode(nil, attributesBefore(empty, []byte{keyStamped, 1})); err == nil {
		t.Error("empty block with stamped series is accepted")
	}
}

func TestAttributes_SameClockIsOneSettingOfOneClock(t *testing.T) {
	with := func(change func(*BlockClock)) Attributes {
		c := goldenClock
		change(&c)
		return Attributes{Clock: &c}
	}
	a := with(func(*BlockClock) {})
	for name, c := range map[string]struct {
		b    Attributes
		same bool
	}{
		"itself":     {a, true},
		"later":      {with(func(c *BlockClock) { c.Uptime += time.Hour }), true},
		"boot":       {with(func(c *BlockClock) { c.Boot[15]++ }), false},
		"state":      {with(func(c *BlockClock) { c.State++ }), false},
		"offset":     {with(func(c *BlockClock) { c.Offset++ }), false},
		"no clock":   {Attributes{}, false},
		"both blank": {Attributes{}, false},
	} {
		if a.SameClock(c.b) != c.same || c.b.SameClock(a) != c.same {
			t.Errorf("%s: want %v", name, c.same)
		}
	}
	if !(Attributes{}).SameClock(Attributes{}) {
		t.Error("two blocks that say nothing of their clocks can't be merged")
	}
}

func TestClock_SaysOnlyWhatCorrects(t *testing.T) {
	for _, state := range []touchline.ClockState{touchline.ClockSet, touchline.ClockSynchronised} {
		want := touchline.Clock{Boot: touchline.Boot(goldenEpoch), State: state, Offset: -5}
		if got, err := NewClock(want).Says(); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", state, got, err)
		}
	}
	for _, state := range []string{"", "unset", "Set", "best"} {
		if got, err := (&Clock{State: state}).Says(); err == nil {
			t.Errorf("state %q says %+v", state, got)
		}
	}
}
