package payload

import (
	"encoding/binary"
	"math"
	"strconv"
	"unsafe"
)

// A number is a JSON number as it was written.
type number struct {
	start, end int    // where it stands in the document
	mantissa   uint64 // its digits without the point, where exact
	exponent   int    // power of ten that goes with the mantissa, where exact
	exact      bool   // false where there are too many digits for a mantissa
	integer    bool   // neither fraction nor exponent
}

// maxMantissaDigits is how many decimal digits always fit a uint64:
// 10^19-1 < 2^64.
const maxMantissaDigits = 19

// number reads a number by the grammar of RFC 8259, section 6, into num.
func (s *scanner) number() bool {
	data, i := s.data, s.pos
	n := &s.num
	n.start = i
	if i < len(data) && data[i] == '-' {
		i++
	}
	first := i
	mantissa, i := scanDigits(data, i, 0)
	digits := i - first
	if digits == 0 {
		s.pos = i
		return s.unexpected(wantValue(i > n.start))
	}
	if digits > 1 && data[first] == '0' {
		return s.fail(first, "a number may not begin with a zero")
	}
	n.integer, n.exponent = true, 0
	if i < len(data) && data[i] == '.' {
		point := i + 1
		if mantissa, i = scanDigits(data, point, mantissa); i == point {
			return s.fail(i, "want a digit after the decimal point")
		}
		n.integer, n.exponent = false, point-i
		digits += i - point
	}
	if i < len(data) && data[i]|0x20 == 'e' {
		exponent, end := scanExponent(data, i+1)
		if end == 0 {
			return s.fail(i, "want a digit in the number's exponent")
		}
		n.integer = false
		n.exponent += exponent
		i = end
	}
	n.end, n.mantissa, n.exact = i, mantissa, digits <= maxMantissaDigits
	s.pos = i
	return true
}

// scanDigits appends the decimal digits from byte i on to mantissa, which
// wraps around where they are too many, and returns the byte behind them.
func scanDigits(data []byte, i int, mantissa uint64) (uint64, int) {
	// Eight at a time where there are so many, as in times of nanoseconds:
	// each byte b holds a digit where its high half is 3 and that of b+6 too.
	for i+8 <= len(data) && data[i+7]-'0' <= 9 {
		const high = 0xf0f0f0f0f0f0f0f0
		v := binary.LittleEndian.Uint64(data[i:])
		if v&high|(v+0x0606060606060606)&high>>4 != 0x3333333333333333 {
			break
		}
		v -= 0x3030303030303030
		v = (v*10 + v>>8) & 0x00ff00ff00ff00ff   // four numbers of two digits
		v = (v*100 + v>>16) & 0x0000ffff0000ffff // two of four
		v = (v*10_000 + v>>32) & 0xffffffff      // one of eight
		mantissa = mantissa*1e8 + v
		i += 8
	}
	for ; i < len(data); i++ {
		c := data[i] - '0'
		if c > 9 {
			break
		}
		mantissa = mantissa*10 + uint64(c)
	}
	return mantissa, i
}

func wantValue(minus bool) string {
	if minus {
		return "a digit"
	}
	return anyValue
}

// maxExponent is where exponents stop counting: a document would need 64 MiB
// of digits to make up for it, and an int of 32 bits holds ten times as much.
const maxExponent = 1 << 26

// scanExponent reads sign and digits of an exponent at byte i and returns it
// with the byte behind it, 0 where there is no digit.
func scanExponent(data []byte, i int) (exponent, end int) {
	negative := false
	if i < len(data) && (data[i] == '+' || data[i] == '-') {
		negative = data[i] == '-'
		i++
	}
	first := i
	for i < len(data) && data[i]-'0' <= 9 {
		exponent = min(exponent*10+int(data[i]-'0'), maxExponent)
		i++
	}
	if i == first {
		return 0, 0
	}
	if negative {
		exponent = -exponent
	}
	return exponent, i
}

// powersOfTen are those that a float64 holds exactly.
var powersOfTen = [...]float64{
	1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
	1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
}

// text is num as it was written.
func (s *scanner) text() []byte { return s.data[s.num.start:s.num.end] }

// float returns the float64 nearest to num, ties to even, and false where it
// is too large for one.
func (s *scanner) float() (float64, bool) {
	n := &s.num
	// Mantissa and power are exact in float64 here, so the one operation
	// rounds once, and correctly (Clinger 1990, "fast path").
	if n.exact && n.mantissa <= 1<<53 && -22 <= n.exponent && n.exponent <= 22 {
		f := float64(n.mantissa)
		if n.exponent < 0 {
			f /= powersOfTen[-n.exponent]
		} else {
			f *= powersOfTen[n.exponent]
		}
		if s.data[n.start] == '-' {
			f = -f
		}
		return f, true
	}
	f, ok := parseFloat(s.text())
	return f, ok || s.fail(n.start, tooLarge)
}

const tooLarge = "the number does not fit a 64-bit float (at most 1.8e308)"

func parseFloat(text []byte) (float64, bool) {
	// The string shares memory with text and does not outlive the call.
	f, err := strconv.ParseFloat(unsafe.String(unsafe.SliceData(text), len(text)), 64)
	return f, err == nil
}

// int64 returns num where it is an integer that fits.
func (s *scanner) int64() (int64, bool) {
	n := &s.num
	if !n.integer || !n.exact {
		return 0, false
	}
	if s.data[n.start] == '-' {
		// -mantissa wraps around to the smallest int64 just where it should
		return -int64(n.mantissa), n.mantissa <= -math.MinInt64
	}
	return int64(n.mantissa), n.mantissa <= math.MaxInt64
}

// AppendFloat appends the shortest decimal form that reads back as exactly f,
// by the rules of ECMAScript: without an exponent from 1e-6 to below 1e21,
// "-0" for negative zero. NaN and the infinities, which JSON has no form for,
// become NaN, +Inf and -Inf, as strconv.ParseFloat reads them.
func AppendFloat(dst []byte, f float64) []byte {
	abs := math.Abs(f)
	if abs < 1e15 && f == math.Trunc(f) && (f != 0 || !math.Signbit(f)) {
		return strconv.AppendInt(dst, int64(f), 10)
	}
	if abs >= 1e-6 && abs < 1e21 || f == 0 || math.IsNaN(f) || math.IsInf(f, 0) {
		return strconv.AppendFloat(dst, f, 'f', -1, 64)
	}
	dst = strconv.AppendFloat(dst, f, 'e', -1, 64)
	// 1e-07 is written 1e-7
	if n := len(dst); dst[n-2] == '0' && (dst[n-3] == '-' || dst[n-3] == '+') {
		dst[n-2] = dst[n-1]
		dst = dst[:n-1]
	}
	return dst
}
