package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// A value column begins with its mode. The first three kinds of mode hold
// numbers: as decimals, which is what most sensors send; as multiples of a
// power of two, which is what a float32 and Garmin's semicircles (180/2^31
// degrees) are; or as the bits of the float64 in an order that makes them
// integers of the same order.
const (
	modeDecimal = 0x00 // + k: n / 10^k, k up to maxDecimal
	modeBinary  = 0x40 // + j: n / 2^j, j from 1 to maxBinary
	modeFloat   = 0x80
	modeText    = 0x81
	modeBytes   = 0x82
	modeBool    = 0x83
	modeMixed   = 0x84

	maxDecimal = 15 // a float64 has at most 17 digits; 10^22 would still be exact
	maxBinary  = 63
	maxInteger = 1 << 53 // integers up to here are exact in a float64
)

var powersOfTen = [maxDecimal + 1]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15}

// longDecimal is the number of decimals from which on a column is tried as
// multiples of a power of two as well.
const longDecimal = 7

// An exception is a value that its column's mode can't hold: NaN, -0, or one
// with more digits than the others.
type exception struct {
	at   int
	bits uint64
}

// A scaler turns float64 columns into integer columns, each only where the
// way back gives the same bits.
type scaler struct {
	decimals, binaries []int64
	exceptions         []exception
}

func (s *scaler) grow(n int) {
	if cap(s.decimals) < n {
		s.decimals, s.binaries = make([]int64, n), make([]int64, n)
	}
}

// decimal fills s.decimals[:len(fs)] with fs times the smallest power of ten
// that makes them integers, and s.exceptions with those that none does. It
// gives up, and says so, where the latter are more than an eighth.
func (s *scaler) decimal(fs []float64) (k int, ok bool) {
	ints := s.decimals[:len(fs)]
	s.exceptions = s.exceptions[:0]
	limit := len(fs) / 8
	fixed := 0 // values before this one have another k
	var last int64
	for i, f := range fs {
		n, fits := toDecimal(f, powersOfTen[k])
		if !fits {
			if more, m := moreDecimals(f, k); more > 0 {
				k, fixed, n, fits = more, i, m, true
			}
		}
		if !fits {
			s.exceptions = append(s.exceptions, exception{i, math.Float64bits(f)})
			if len(s.exceptions) > limit || len(s.exceptions) > 1+i/4 {
				return 0, false
			}
			n = last
		}
		ints[i], last = n, n
	}
	if fixed > 0 && !s.rescale(fs, fixed, k, limit) {
		return 0, false
	}
	return k, true
}

// rescale computes the first values again with the k that a later one asked for.
func (s *scaler) rescale(fs []float64, count, k, limit int) bool {
	later := s.exceptions
	for len(later) > 0 && later[0].at < count {
		later = later[1:]
	}
	later = append([]exception(nil), later...)
	s.exceptions = s.exceptions[:0]
	var last int64
	for i, f := range fs[:count] {
		n, fits := toDecimal(f, powersOfTen[k])
		if !fits {
			s.exceptions = append(s.exceptions, exception{i, math.Float64bits(f)})
			n = last
		}
		s.decimals[i], last = n, n
	}
	s.exceptions = append(s.exceptions, later...)
	return len(s.exceptions) <= limit
}

// toDecimal returns f times scale as an integer, and whether dividing it again
// gives f. The conversion forbids a fused multiply-add, which would round
// otherwise.
func toDecimal(f, scale float64) (int64, bool) {
	x := float64(f * scale)
	if !(x < maxInteger && x > -maxInteger) {
		return 0, false
	}
	n := int64(x + math.Copysign(0.5, x))
	return n, math.Float64bits(float64(n)/scale) == math.Float64bits(f)
}

// moreDecimals returns the smallest number of decimals above k that f needs,
// and f as an integer; 0 if there is none.
func moreDecimals(f float64, k int) (int, int64) {
	for k++; k <= maxDecimal; k++ {
		n, fits := toDecimal(f, powersOfTen[k])
		if fits {
			return k, n
		}
		if math.Abs(f)*powersOfTen[k] >= maxInteger {
			break
		}
	}
	return 0, 0
}

// binary fills s.binaries[:len(fs)] with fs times the smallest power of two
// that makes all of them integers, if there is one.
func (s *scaler) binary(fs []float64) (j int, ok bool) {
	high := math.MinInt // exponent of the largest value
	for _, f := range fs {
		u := math.Float64bits(f)
		exponent := int(u>>52&0x7ff) - 1023
		if exponent == -1023 || exponent == 1024 {
			if u != 0 {
				return 0, false // -0, subnormal, infinite or no number
			}
			continue
		}
		zeros := bits.TrailingZeros64(u | 1<<52)
		j = max(j, 52-zeros-exponent)
		high = max(high, exponent)
		if high+j >= 53 || j > maxBinary {
			return 0, false
		}
	}
	if j == 0 {
		return 0, false // integers are decimals
	}
	factor := powerOfTwo(j)
	for i, f := range fs {
		s.binaries[i] = int64(f * factor)
	}
	return j, true
}

func powerOfTwo(j int) float64 { return math.Float64frombits(uint64(1023+j) << 52) }

// orderFloat maps the bits of a float64 to an integer of the same order, and
// back: it is its own inverse.
func orderFloat(u uint64) uint64 { return u ^ uint64(int64(u)>>63)>>1 }

// A numberWriter appends columns of numbers.
type numberWriter struct {
	*columnWriter
	planner planner
	scaler  scaler
	modes   []byte
}

// write appends fs, which has at least one value.
func (w *numberWriter) write(fs []float64) {
	w.scaler.grow(len(fs))
	k, isDecimal := w.scaler.decimal(fs)
	if isDecimal && k < longDecimal {
		w.put(modeDecimal+byte(k), w.scaler.decimals[:len(fs)], w.scaler.exceptions)
		return
	}
	j, isBinary := w.scaler.binary(fs)
	if isBinary && isDecimal {
		decimal := w.planner.plan(w.scaler.decimals[:len(fs)], true)
		cost := decimal.cost() + 72*len(w.scaler.exceptions)
		binary := w.planner.plan(w.scaler.binaries[:len(fs)], true)
		isBinary = binary.cost() < cost
	}
	switch {
	case isBinary:
		w.put(modeBinary+byte(j), w.scaler.binaries[:len(fs)], nil)
	case isDecimal:
		w.put(modeDecimal+byte(k), w.scaler.decimals[:len(fs)], w.scaler.exceptions)
	default:
		w.putFloats(fs)
	}
}

func (w *numberWriter) put(mode byte, xs []int64, exceptions []exception) {
	w.modes = append(w.modes, mode)
	w.columnWriter.write(w.planner.plan(xs, true), 0, len(exceptions) > 0)
	if len(exceptions) == 0 {
		return
	}
	w.numbers = binary.AppendUvarint(w.numbers, uint64(len(exceptions)))
	next := 0
	for _, e := range exceptions {
		w.numbers = binary.AppendUvarint(w.numbers, uint64(e.at-next))
		w.numbers = binary.LittleEndian.AppendUint64(w.numbers, e.bits)
		next = e.at + 1
	}
}

func (w *numberWriter) putFloats(fs []float64) {
	xs := w.scaler.binaries[:len(fs)]
	for i, f := range fs {
		xs[i] = int64(orderFloat(math.Float64bits(f)))
	}
	w.modes = append(w.modes, modeFloat)
	w.columnWriter.write(w.planner.plan(xs, false), 0, false)
}

// unscale turns the integers of a column of the given mode into numbers. fs
// and xs are equally long.
func unscale(fs []float64, xs []int64, mode byte) error {
	switch {
	case mode <= modeDecimal+maxDecimal:
		scale := powersOfTen[mode-modeDecimal]
		for i, x := range xs {
			fs[i] = float64(x) / scale
		}
	case mode > modeBinary && mode <= modeBinary+maxBinary:
		scale := powerOfTwo(-int(mode - modeBinary))
		for i, x := range xs {
			fs[i] = float64(x) * scale
		}
	case mode == modeFloat:
		for i, x := range xs {
			fs[i] = math.Float64frombits(orderFloat(uint64(x)))
		}
	default:
		return fmt.Errorf("mode 0x%02x is none of numbers", mode)
	}
	return nil
}

// exceptions puts the column's exceptions into fs.
func (r *columnReader) exceptions(fs []float64) error {
	at := 0
	for n := r.numbers.count(len(fs)); n > 0; n-- {
		at += r.numbers.count(len(fs))
		bits := r.numbers.uint64()
		if r.numbers.bad || at >= len(fs) {
			return errors.New("exceptions of a column are malformed")
		}
		fs[at] = math.Float64frombits(bits)
		at++
	}
	if r.numbers.bad {
		return errors.New("exceptions of a column are malformed")
	}
	return nil
}
