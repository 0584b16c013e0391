package wire

import (
	"flag"
	"math"
	"math/rand"
	"strings"
	"testing"
	"time"

	"touchline"
)

var seedFlag = flag.Int64("seed", 0, "seed of the random tests; 0 draws one")

func newRandom(seed int64) *rand.Rand { return rand.New(rand.NewSource(seed)) }

// randomOf returns a source whose seed is printed, so that -seed repeats it.
func randomOf(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("go test -run '^%s$' -seed %d", t.Name(), seed)
	return newRandom(seed)
}

var oddNames = []string{"", "a", "heart_rate", "speed", "x", "größe", "心拍", "a\x00b", "\xff\xfe", "belt 7", strings.Repeat("n", 128), "\u202e", "_raw"}

var oddTimes = []int64{0, 1, -1, math.MinInt64, math.MaxInt64, math.MinInt64 + 1, 1e18, -1e9, 1e9, 999}

var oddFloats = []float64{
	0, math.Copysign(0, -1), 1, -1, math.Inf(1), math.Inf(-1), math.NaN(),
	math.Float64frombits(0x7ff0000000000001), math.Float64frombits(0xfff8dead00000000), // signalling; with a payload
	math.SmallestNonzeroFloat64, -math.SmallestNonzeroFloat64, math.Float64frombits(0x000fffffffffffff), // subnormal
	math.MaxFloat64, -math.MaxFloat64, 1 << 53, 1<<53 - 1, -(1 << 53), 1<<53 + 2, 0.1, 0.3, 1e-15, 123456789.123456789, 1e22, 1e23, 5e-324,
}

// randomSamples returns up to limit samples of the forms that sensors send
// and of forms that only an enemy would.
func randomSamples(r *rand.Rand, limit int) []touchline.Sample {
	n := 1 + r.Intn(limit)
	pool := make([]touchline.Sample, 1+r.Intn(40))
	next := make([]func() touchline.Value, len(pool))
	for i := range pool {
		pool[i] = touchline.Sample{Sensor: randomName(r), Metric: randomName(r), Unit: randomName(r)}
		next[i] = randomSeries(r)
	}
	now := randomTime(r)
	step := []int64{0, 1, 1e6, 4e7, 1e9, -1e9, math.MaxInt64 / 2}[r.Intn(7)]
	jitter := []int64{1, 1000, 5e6}[r.Intn(3)]
	cyclic := r.Intn(2) == 0
	stamped := []int{0, 0, 1, 2}[r.Intn(4)] // none, all, or any
	out := make([]touchline.Sample, n)
	for i := range out {
		which := i % len(pool)
		if !cyclic {
			which = r.Intn(len(pool))
		}
		if which == 0 {
			now += step + r.Int63n(jitter)
		}
		out[i] = pool[which]
		out[i].Time = now
		if r.Intn(500) == 0 {
			out[i].Time = randomTime(r)
		}
		out[i].Value = next[which]()
		out[i].Stamped = stamped == 1 || stamped == 2 && r.Intn(3) == 0
	}
	return out
}

func randomName(r *rand.Rand) string {
	if r.Intn(2) == 0 {
		return oddNames[r.Intn(len(oddNames))]
	}
	b := make([]byte, r.Intn(12))
	r.Read(b)
	return string(b)
}

func randomTime(r *rand.Rand) int64 {
	if r.Intn(3) == 0 {
		return oddTimes[r.Intn(len(oddTimes))]
	}
	return int64(r.Uint64())
}

// randomSeries returns a source of values of one kind of sensor.
func randomSeries(r *rand.Rand) func() touchline.Value {
	odd := func() float64 { return oddFloats[r.Intn(len(oddFloats))] }
	walk := 100 * r.NormFloat64()
	number := func(of func() float64) func() touchline.Value {
		rare := r.Intn(3) == 0
		return func() touchline.Value {
			walk += r.NormFloat64()
			if rare && r.Intn(20) == 0 {
				return touchline.NumberValue(odd())
			}
			return touchline.NumberValue(of())
		}
	}
	scale := math.Pow(10, float64(r.Intn(16)))
	text := func() string {
		b := make([]byte, r.Intn(20))
		r.Read(b)
		return string(b)
	}
	kinds := []func() touchline.Value{
		number(func() float64 { return math.Round(walk*scale) / scale }),
		number(func() float64 { return float64(float32(walk)) }),
		number(func() float64 { return math.Round(walk*1e4) * 180 / (1 << 31) }),
		number(func() float64 { return math.Round(walk) * 0.25 }),
		number(func() float64 { return walk }),
		number(func() float64 { return walk * 1e300 }),
		number(func() float64 { return math.Float64frombits(r.Uint64()) }),
		number(odd),
		number(func() float64 { return 21 }),
		func() touchline.Value { return touchline.TextValue(oddNames[r.Intn(len(oddNames))]) },
		func() touchline.Value { return touchline.TextValue(text()) },
		func() touchline.Value { return touchline.BytesValue(text()) },
		func() touchline.Value { return touchline.BoolValue(r.Intn(2) == 0) },
		func() touchline.Value { return touchline.BoolValue(true) },
	}
	if r.Intn(8) == 0 { // a series of mixed kinds
		return func() touchline.Value { return kinds[r.Intn(len(kinds))]() }
	}
	return kinds[r.Intn(len(kinds))]
}
