package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand"
	"slices"
	"strings"
	"sync"
	"testing"

	"touchline"
)

type seriesName struct {
	sensor, metric, unit string
	stamped              bool
}

// columnOrder returns samples as Decode must: by series in order of first
// appearance.
func columnOrder(samples []touchline.Sample) []touchline.Sample {
	name := func(s touchline.Sample) seriesName { return seriesName{s.Sensor, s.Metric, s.Unit, s.Stamped} }
	order := map[seriesName]int{}
	for _, s := range samples {
		if _, ok := order[name(s)]; !ok {
			order[name(s)] = len(order)
		}
	}
	out := slices.Clone(samples)
	slices.SortStableFunc(out, func(a, b touchline.Sample) int { return order[name(a)] - order[name(b)] })
	return out
}

type codec struct {
	e *Encoder
	d *Decoder
}

var codecs = sync.Pool{New: func() any { return &codec{NewEncoder(), NewDecoder()} }}

// roundTrip encodes samples into as many blocks as it takes, and checks that
// each decodes to what went in.
func roundTrip(t testing.TB, samples []touchline.Sample) {
	t.Helper()
	c := codecs.Get().(*codec) // used ones, so that state left over would show
	defer codecs.Put(c)
	e, d := c.e, c.d
	for rest := samples; ; {
		got, err := e.Encode(nil, rest)
		if err != nil {
			t.Fatalf("encode %d samples: %v", len(rest), err)
		}
		if len(got.Data) > MaxBlockBytes || got.Count > MaxBlockSamples {
			t.Fatalf("block has %d bytes and %d samples", len(got.Data), got.Count)
		}
		back, err := d.Decode(nil, got.Data)
		if err != nil {
			t.Fatalf("decode %d samples: %v", got.Count, err)
		}
		want := columnOrder(rest[:got.Count])
		if !slices.Equal(want, back) {
			for i := range want {
				if i >= len(back) || want[i] != back[i] {
					t.Fatalf("sample %d of %d: got %+v, want %+v", i, len(want), back[i], want[i])
				}
			}
			t.Fatalf("got %d samples, want %d", len(back), len(want))
		}
		for _, s := range want {
			if s.Time < got.MinTime || s.Time > got.MaxTime {
				t.Fatalf("time %d is outside of %d to %d", s.Time, got.MinTime, got.MaxTime)
			}
		}
		rest = rest[got.Count:]
		if len(rest) == 0 {
			return
		}
		if got.Count == 0 {
			t.Fatal("empty block of some samples")
		}
	}
}

func TestEncode_KeepsRecordings(t *testing.T) {
	for _, name := range recordings {
		t.Run(name, func(t *testing.T) {
			samples := recording(t, name)
			for _, size := range []int{1, 7, 1000, len(samples)} {
				for at := 0; at < min(len(samples), 1000*size); at += size {
					roundTrip(t, samples[at:min(at+size, len(samples))])
				}
			}
		})
	}
	t.Run("match", func(t *testing.T) { roundTrip(t, matchRound()) })
}

func TestEncode_KeepsEveryForm(t *testing.T) {
	number := func(fs ...float64) (out []touchline.Sample) {
		for i, f := range fs {
			out = append(out, touchline.Sample{Sensor: "s", Metric: "m", Unit: "u", Time: int64(i) * 1e9, Value: touchline.NumberValue(f)})
		}
		return out
	}
	times := func(ts ...int64) (out []touchline.Sample) {
		for _, at := range ts {
			out = append(out, touchline.Sample{Sensor: "s", Metric: "m", Time: at})
		}
		return out
	}
	values := func(vs ...touchline.Value) (out []touchline.Sample) {
		for i, v := range vs {
			out = append(out, touchline.Sample{Sensor: "s", Metric: "m", Time: int64(i), Value: v})
		}
		return out
	}
	named := func(names ...string) (out []touchline.Sample) {
		for _, a := range names {
			for _, b := range names {
				out = append(out, touchline.Sample{Sensor: a, Metric: b, Unit: a + b}, touchline.Sample{Sensor: b, Metric: a, Unit: b})
			}
		}
		return out
	}
	ramp := func(n int, of func(i int) float64) (out []float64) {
		for i := range n {
			out = append(out, of(i))
		}
		return out
	}
	nan, negative := math.NaN(), math.Copysign(0, -1)
	tests := map[string][]touchline.Sample{
		"one":               number(1.5),
		"zero":              {{}},
		"odd floats":        number(oddFloats...),
		"exceptions":        number(append(ramp(40, func(i int) float64 { return float64(i) / 10 }), nan, 1, negative, 2, 3, 4, 5, 6, 7, 8)...),
		"exceptions first":  number(append([]float64{nan}, ramp(40, func(i int) float64 { return float64(i) / 10 })...)...),
		"all NaN":           number(nan, nan, nan, nan),
		"decimals grow":     number(append(ramp(20, func(i int) float64 { return float64(i) }), 0.5, 0.25, 0.125, 1e-15)...),
		"decimals overflow": number(append(ramp(20, func(i int) float64 { return 1e15 + float64(i) }), 0.001)...),
		"semicircles":       number(ramp(50, func(i int) float64 { return float64(703_000_000+i*i) * 180 / (1 << 31) })...),
		"float32":           number(ramp(50, func(i int) float64 { return float64(float32(9.81) + float32(i)*0.01) })...),
		"cubic":             number(ramp(50, func(i int) float64 { x := float64(i); return x*x*x/3 - x*x/7 })...),
		"crosses zero":      number(ramp(50, func(i int) float64 { return (float64(i) - 25) * math.Pi })...),
		"time extremes":     times(oddTimes...),
		"time wraps":        times(math.MinInt64, math.MaxInt64, math.MinInt64, math.MaxInt64, 0),
		"time backwards":    times(9e9, 8e9, 7e9, 7e9, 1),
		"negative seconds":  times(-3e9, -2e9, -1e9),
		"names":             named(oddNames...),
		"texts":             values(touchline.TextValue(""), touchline.TextValue("half-time"), touchline.TextValue("\xff"), touchline.TextValue(strings.Repeat("z", 70000))),
		"bytes":             values(touchline.BytesValue(""), touchline.BytesValue("\x00\x01"), touchline.BytesValue("x")),
		"booleans":          values(touchline.BoolValue(true), touchline.BoolValue(false), touchline.BoolValue(true)),
		"mixed": values(touchline.BoolValue(true), touchline.NumberValue(1), touchline.TextValue("1"), touchline.BytesValue("1"),
			touchline.NumberValue(negative), touchline.BoolValue(false), touchline.TextValue("")),
		"empty": nil,
	}
	for name, samples := range tests {
		t.Run(name, func(t *testing.T) { roundTrip(t, samples) })
	}
	for _, f := range oddFloats {
		roundTrip(t, number(f))
		roundTrip(t, number(1, f, 2))
	}
}

func TestEncode_KeepsRandomSamples(t *testing.T) {
	r := randomOf(t)
	for range 200 {
		roundTrip(t, randomSamples(r, 1200))
	}
}

func TestEncode_KeepsManySeriesOfOneSensor(t *testing.T) {
	var samples []touchline.Sample
	for round := range 3 {
		for i := range 200 { // beyond what is compared one by one
			samples = append(samples, touchline.Sample{Sensor: "s", Metric: fmt.Sprint("m", i*7%200), Unit: fmt.Sprint(i % 3), Time: int64(round)})
		}
	}
	rand.New(rand.NewSource(1)).Shuffle(len(samples), func(i, j int) { samples[i], samples[j] = samples[j], samples[i] })
	roundTrip(t, samples)
}

func TestEncode_EmptyBlock(t *testing.T) {
	got, err := NewEncoder().Encode([]byte("head"), nil)
	if err != nil || got.Count != 0 || got.MinTime != 0 || got.MaxTime != 0 {
		t.Fatalf("got %+v, %v", got, err)
	}
	back, err := NewDecoder().Decode(nil, got.Data[4:])
	if err != nil || len(back) != 0 {
		t.Fatalf("got %v, %v", back, err)
	}
}

func TestEncode_AppendsAndDependsOnSamplesAlone(t *testing.T) {
	r := randomOf(t)
	used := NewEncoder()
	for range 50 {
		samples := randomSamples(r, 500)
		before := slices.Clone(samples)
		a, err := used.Encode([]byte("head"), samples)
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewEncoder().Encode(nil, samples)
		if err != nil {
			t.Fatal(err)
		}
		if string(a.Data[:4]) != "head" || !bytes.Equal(a.Data[4:], b.Data) {
			t.Fatal("a used encoder writes something else than a new one")
		}
		if !slices.Equal(before, samples) {
			t.Fatal("the samples were changed")
		}
	}
}

// incompressible returns n random bytes as a string.
func incompressible(n int) string {
	b := make([]byte, n)
	newRandom(int64(n)).Read(b)
	return string(b)
}

func TestEncode_OneSampleFits(t *testing.T) {
	long := incompressible(3 * touchline.MaxNameBytes)
	samples := []touchline.Sample{{
		Sensor: long[:128], Metric: long[128:256], Unit: long[256:], Time: math.MinInt64,
		Value: touchline.BytesValue(incompressible(128 << 10)),
	}}
	for range 3 { // several do not share a block, and each comes through
		samples = append(samples, samples[0])
	}
	roundTrip(t, samples)
}

func TestEncode_TakesWhatFits(t *testing.T) {
	var one touchline.Sample
	number := func(i int) touchline.Sample {
		s := one
		s.Sensor, s.Time, s.Value = "s", int64(i), touchline.NumberValue(float64(i))
		return s
	}
	tests := map[string]func(i int) touchline.Sample{
		"more than MaxBlockSamples": number,
		"noise": func(i int) touchline.Sample {
			s := number(i)
			s.Value = touchline.NumberValue(math.Float64frombits(uint64(i) * 0x9e3779b97f4a7c15))
			return s
		},
		"each a series": func(i int) touchline.Sample {
			s := number(i)
			s.Sensor, s.Metric, s.Unit = fmt.Sprint("sensor", i), fmt.Sprint("metric", i), fmt.Sprint("unit", i)
			return s
		},
		"long texts that compress": func(i int) touchline.Sample {
			s := number(i)
			s.Value = touchline.TextValue(strings.Repeat("ab", 500))
			return s
		},
	}
	for name, of := range tests {
		t.Run(name, func(t *testing.T) {
			samples := make([]touchline.Sample, 70_000)
			for i := range samples {
				samples[i] = of(i)
			}
			roundTrip(t, samples)
		})
	}
}

func TestEncode_RefusesWhatCannotFit(t *testing.T) {
	for name, s := range map[string]touchline.Sample{
		"incompressible": {Sensor: "s", Metric: "m", Value: touchline.BytesValue(incompressible(MaxBlockBytes))},
		"raw":            {Sensor: "s", Metric: "m", Value: touchline.TextValue(strings.Repeat("a", MaxRawBytes))},
		"name":           {Sensor: incompressible(MaxBlockBytes)},
	} {
		t.Run(name, func(t *testing.T) {
			e := NewEncoder()
			if _, err := e.Encode(nil, []touchline.Sample{s}); !errors.Is(err, ErrTooLarge) {
				t.Fatalf("got %v, want ErrTooLarge", err)
			}
			small := touchline.Sample{Sensor: "s"}
			if got, err := e.Encode(nil, []touchline.Sample{small, s}); err != nil || got.Count != 1 {
				t.Fatalf("the sample before it: got %d, %v", got.Count, err)
			}
		})
	}
}

func TestEncode_CompressesRecordings(t *testing.T) {
	for name, limit := range map[string]float64{"endurance": 1.5, "gym_imu": 2.3, "pitch_positions": 5.5} {
		samples, e, size := recording(t, name), NewEncoder(), 0
		for at := 0; at < len(samples); at += 1000 {
			got, err := e.Encode(nil, samples[at:min(at+1000, len(samples))])
			if err != nil {
				t.Fatal(err)
			}
			size += len(got.Data)
		}
		per := float64(size) / float64(len(samples))
		t.Logf("%s: %.2f B/sample", name, per)
		if per > limit {
			t.Errorf("%s takes %.2f B/sample: want at most %.1f", name, per, limit)
		}
	}
}
