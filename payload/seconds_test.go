package payload

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strconv"
	"testing"
)

func TestParseSeconds_KeepsEachNanosecond(t *testing.T) {
	tests := []struct {
		text string
		want int64
	}{
		{"0", 0},
		{"-0", 0},
		{"0.0", 0},
		{"0e99999999999999999999", 0},
		{"1", 1e9},
		{"-5", -5e9},
		{"0.1", 1e8},
		{"1.320078429e+09", 1_320_078_429_000_000_000},
		{"1.276020076001e+09", 1_276_020_076_001_000_000},
		{"1700000000.123456789", 1_700_000_000_123_456_789},
		{"1.700000000123456789e9", 1_700_000_000_123_456_789},
		{"1.700000000123456789E+09", 1_700_000_000_123_456_789},
		{"1700000000123456789e-9", 1_700_000_000_123_456_789},
		{"0.000000001700000000123456789e18", 1_700_000_000_123_456_789},
		{"17000000001234567890000000000000e-22", 1_700_000_000_123_456_789},
		{"0.000000001", 1},
		{"-0.000000001", -1},
		{"1e-9", 1},
		{"1e-10", 0},
		// halves go away from zero, and only the next digit decides
		{"0.0000000005", 1},
		{"-0.0000000005", -1},
		{"0.00000000049999999999999999999999999", 0},
		{"0.0000000014999999999999999999", 1},
		{"0.0000000015", 2},
		{"5e-10", 1},
		{"4.9e-10", 0},
		{"0.0999999999999", 1e8},
		{"9.9999999999", 10e9},
		// the ends of int64
		{"9223372036.854775807", math.MaxInt64},
		{"9223372036.8547758074", math.MaxInt64},
		{"-9223372036.854775807", -math.MaxInt64},
	}
	for _, tt := range tests {
		got, ok := parseSeconds([]byte(tt.text))
		if !ok || got != tt.want {
			t.Errorf("parseSeconds(%s) = %d, %v; want %d", tt.text, got, ok, tt.want)
		}
	}
	for _, text := range []string{
		"9223372036.854775808", "9223372036.8547758075", "1e10", "1e400", "-1e19", "99999999999999999999",
		"10000000000000000000", "1700000000000000000", "1e9999999999999999999999",
	} {
		if got, ok := parseSeconds([]byte(text)); ok {
			t.Errorf("parseSeconds(%s) = %d, want it refused", text, got)
		}
	}
}

// TestParseSeconds_AgreesWithBigRationals compares random decimals with exact
// arithmetic.
func TestParseSeconds_AgreesWithBigRationals(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		text := randomDecimal(random)
		got, ok := parseSeconds(text)
		want, fits := exactNanoseconds(string(text))
		if ok != fits || ok && got != want {
			t.Fatalf("parseSeconds(%s) = %d, %v; want %d, %v", text, got, ok, want, fits)
		}
	}
}

func randomDecimal(r *rand.Rand) []byte {
	var b []byte
	if r.IntN(2) == 0 {
		b = append(b, '-')
	}
	b = strconv.AppendUint(b, r.Uint64()>>r.IntN(64), 10)
	if r.IntN(3) > 0 {
		b = append(b, '.')
		for range 1 + r.IntN(14) {
			b = append(b, byte('0'+r.IntN(10)))
		}
	}
	if r.IntN(2) == 0 {
		b = append(b, 'e')
		b = strconv.AppendInt(b, int64(r.IntN(50)-35), 10)
	}
	return b
}

func exactNanoseconds(text string) (int64, bool) {
	x, ok := new(big.Rat).SetString(text)
	if !ok {
		return 0, false
	}
	x.Mul(x, big.NewRat(1e9, 1))
	half := big.NewRat(1, 2)
	if x.Sign() < 0 {
		half.Neg(half)
	}
	x.Add(x, half)
	ns := new(big.Int).Quo(x.Num(), x.Denom()) // toward zero
	return ns.Int64(), ns.IsInt64() && ns.Int64() != math.MinInt64
}

func TestFloatSeconds_IsTheShortestDecimal(t *testing.T) {
	tests := []struct {
		f    float64
		want int64
	}{
		{1.276020076001e+09, 1_276_020_076_001_000_000},
		{1.320067464e+09, 1_320_067_464_000_000_000},
		{-5, -5e9},
		{0.1, 1e8},
		{float64(float32(0.5)), 5e8},
	}
	for _, tt := range tests {
		if got, ok := floatSeconds(tt.f); !ok || got != tt.want {
			t.Errorf("floatSeconds(%v) = %d, %v; want %d", tt.f, got, ok, tt.want)
		}
	}
	for _, f := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e300} {
		if got, ok := floatSeconds(f); ok {
			t.Errorf("floatSeconds(%v) = %d, want it refused", f, got)
		}
	}
}

func TestAppendSeconds_ReadsBackAsTheSameNanosecond(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	check := func(ns int64) {
		text := appendSeconds(nil, ns)
		if got, ok := parseSeconds(text); !ok || got != ns {
			t.Fatalf("%d ns became %s, which reads as %d, %v", ns, text, got, ok)
		}
	}
	for _, ns := range []int64{0, 1, 10, 999_999_999, 1e9, 1e9 + 1, math.MaxInt64} {
		check(ns)
	}
	for range 10_000 {
		ns := random.Int64() >> random.IntN(63)
		check(ns)
		check(ns / 1e6 * 1e6)
	}
	if got := string(appendSeconds(nil, 1_700_000_000_050_000_000)); got != "1700000000.05" {
		t.Errorf("got %s, want no more decimals than needed", got)
	}
}
