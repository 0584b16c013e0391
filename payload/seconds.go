package payload

import (
	"math"
	"math/bits"
	"strconv"
)

// parseSeconds reads a decimal number of seconds, in the grammar of JSON
// numbers, as nanoseconds. It never goes through a float, so that each of the
// nine decimals survives; further ones are rounded to the nearest nanosecond,
// halves away from zero. It returns false where an int64 can't hold the
// result (that is beyond the year 2262).
func parseSeconds(text []byte) (int64, bool) {
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		text = text[1:]
	}
	mantissa, exponent := text, 0
	for i, c := range text {
		if c == 'e' || c == 'E' {
			mantissa = text[:i]
			exponent, _ = scanExponent(text, i+1)
			break
		}
	}
	ns, ok := shiftNine(mantissa, exponent)
	if !ok {
		return 0, false
	}
	if negative {
		ns = -ns
	}
	return ns, true
}

// shiftNine returns digits, which may have a decimal point, times
// 10^(exponent+9).
func shiftNine(digits []byte, exponent int) (int64, bool) {
	// left counts how many digits, from the first that is not zero, stand
	// before the decimal point of the result.
	left := exponent + 9
	point := len(digits)
	for i, c := range digits {
		if c == '.' {
			point = i
			break
		}
	}
	left += point
	for len(digits) > 0 && (digits[0] == '0' || digits[0] == '.') {
		if digits[0] == '0' {
			left--
		}
		digits = digits[1:]
	}
	if len(digits) == 0 || left < 0 {
		return 0, true
	}
	if left > maxMantissaDigits {
		return 0, false
	}
	var ns uint64
	for _, c := range digits {
		if c == '.' {
			continue
		}
		if left == 0 {
			if c >= '5' {
				ns++
			}
			left = -1
			break
		}
		ns = ns*10 + uint64(c-'0')
		left--
	}
	for ; left > 0; left-- {
		ns *= 10
	}
	return int64(ns), ns <= math.MaxInt64
}

// scaleSeconds returns mantissa times 10^exponent seconds as nanoseconds
// where that is plain integer arithmetic; false says nothing but that it is
// not.
func scaleSeconds(mantissa uint64, exponent int) (int64, bool) {
	if exponent < -9 || exponent > 0 {
		return 0, false
	}
	high, low := bits.Mul64(mantissa, nanosPer[-exponent])
	return int64(low), high == 0 && low <= math.MaxInt64
}

// nanosPer are the nanoseconds in 1, 0.1, 0.01 and so on seconds.
var nanosPer = [...]uint64{1e9, 1e8, 1e7, 1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1}

// seconds is parseSeconds of num, which is usually simple.
func (s *scanner) seconds() (int64, bool) {
	n := &s.num
	if n.exact {
		if ns, ok := scaleSeconds(n.mantissa, n.exponent); ok {
			if s.data[n.start] == '-' {
				ns = -ns
			}
			return ns, true
		}
	}
	return parseSeconds(s.text())
}

// floatSeconds reads seconds that came as a float. Such a float stands for
// the shortest decimal that reads as it: RFC 8428, section 6, wants a CBOR
// float to be the double nearest to the number that JSON would have written,
// and so both forms of a pack resolve to the same nanosecond.
func floatSeconds(f float64) (int64, bool) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, false
	}
	var buf [32]byte
	return parseSeconds(strconv.AppendFloat(buf[:0], f, 'e', -1, 64))
}

// addInt64 returns a+b and whether it fits.
func addInt64(a, b int64) (int64, bool) {
	sum := a + b
	return sum, (sum > a) == (b > 0)
}

// appendSeconds writes ns, which is not negative, as seconds with as many
// decimals as it needs, at most nine.
func appendSeconds(dst []byte, ns int64) []byte {
	dst = strconv.AppendInt(dst, ns/1e9, 10)
	if fraction := ns % 1e9; fraction != 0 {
		// the leading 1 keeps the zeros behind the point, and becomes it
		at := len(dst)
		dst = strconv.AppendInt(dst, 1e9+fraction, 10)
		dst[at] = '.'
		for dst[len(dst)-1] == '0' {
			dst = dst[:len(dst)-1]
		}
	}
	return dst
}
