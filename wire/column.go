package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// An integer column is coded as FLAC codes a subframe (RFC 9639, sections
// 9.2.5 and 9.2.7): differences of a fixed order from 0 to 4, and Rice codes
// of what is left. Order 1 suits noise, order 2 is the delta-of-delta that
// makes a steady clock free, order 3 and 4 follow positions that a tracker
// smoothed. Where all values are multiples of one number from the first on,
// as those of a quantised sensor are, they are divided by it before.
//
// All arithmetic wraps at 64 bits, so that every int64 is exact at any order.

const (
	maxOrder = 4
	allZero  = 63 // in place of k: nothing follows, all differences are 0

	orderMask      = 0x07
	flagDivisor    = 0x08
	flagExceptions = 0x10
)

func zigzag(x int64) uint64   { return uint64(x)<<1 ^ uint64(x>>63) }
func unzigzag(z uint64) int64 { return int64(z>>1) ^ -int64(z&1) }

// A plan is how one column is going to be coded.
type plan struct {
	base    int64
	divisor uint64 // 1: none
	order   uint8
	k       uint8
	bits    int
	zs      []uint64 // differences of all values but the first; owned by the planner
}

// cost estimates the bits of the plan's whole cost, header included.
func (p *plan) cost() int {
	n := p.bits + bits.Len64(zigzag(p.base))
	if p.divisor > 1 {
		n += bits.Len64(p.divisor) + 8
	}
	return n
}

// A planner chooses plans. Its buffers are reused: a plan is valid until the
// next one is made.
type planner struct {
	cur, next []int64
	zs        []uint64
}

func (p *planner) grow(n int) {
	if cap(p.cur) < n {
		p.cur, p.next, p.zs = make([]int64, n), make([]int64, n), make([]uint64, n)
	}
}

// plan chooses order and Rice parameter for xs, which has at least one value
// and is left as it is. The divisor is looked for only if divide is set, which
// asks for values below 2^53.
func (p *planner) plan(xs []int64, divide bool) plan {
	n := len(xs)
	p.grow(n)
	out := plan{base: xs[0], divisor: 1, k: allZero}
	if n == 1 {
		return out
	}
	cur, total := p.cur[:n], 0
	for i, x := range xs {
		d := x - out.base
		cur[i] = d
		total += bits.Len64(zigzag(d))
	}
	if total == 0 {
		return out
	}
	if divide && n >= minDivisorValues {
		if out.divisor = divideAll(cur); out.divisor > 1 {
			total = lengths(cur)
		}
	}
	if out.order, total = p.difference(n, total); total == 0 {
		return out
	}
	out.zs = p.zs[:n-1]
	for i, d := range p.cur[1:n] {
		out.zs[i] = zigzag(d)
	}
	out.k, out.bits = chooseK(out.zs, total)
	return out
}

// difference replaces p.cur[:n], whose first value is 0, by the differences of
// the order that makes them smallest, and returns it with the sum of the
// lengths of their zigzag forms; total is that of order 0. The first values
// have too few before them: value i has order i there. Orders are tried
// upwards for as long as they help.
func (p *planner) difference(n, total int) (order uint8, sum int) {
	for o := 1; o <= min(maxOrder, n-1) && total > 0; o++ {
		cur, next := p.cur[:n], p.next[:n]
		copy(next[:o], cur[:o])
		sum := lengths(cur[:o])
		before := cur[o-1]
		for i := o; i < n; i++ {
			d := cur[i] - before
			before = cur[i]
			next[i] = d
			sum += bits.Len64(zigzag(d))
		}
		if sum >= total {
			break
		}
		total, order = sum, uint8(o)
		p.cur, p.next = p.next, p.cur
	}
	return order, total
}

func lengths(xs []int64) int {
	sum := 0
	for _, x := range xs {
		sum += bits.Len64(zigzag(x))
	}
	return sum
}

// chooseK walks from the mean length, given by the total of all, down into the
// nearest minimum of the cost.
func chooseK(zs []uint64, total int) (k uint8, size int) {
	k = uint8(min(max(total/len(zs)-1, 0), maxRiceK))
	size = riceBits(zs, k)
	for k < maxRiceK {
		more := riceBits(zs, k+1)
		if more >= size {
			break
		}
		k, size = k+1, more
	}
	for k > 0 {
		less := riceBits(zs, k-1)
		if less >= size {
			break
		}
		k, size = k-1, less
	}
	return k, size
}

// minDivisorValues is how many values a column has before a common divisor is
// looked for: it costs a division or two each, and a few bytes of header.
const minDivisorValues = 8

// divideAll divides xs by their greatest common divisor and returns it.
func divideAll(xs []int64) uint64 {
	var g uint64
	for _, x := range xs {
		if x == 0 {
			continue
		}
		m := uint64(max(x, -x))
		if g == 0 {
			g = m
			continue
		}
		for m %= g; m != 0; {
			g, m = m, g%m
		}
		if g == 1 {
			return 1
		}
	}
	if g <= 1 {
		return 1
	}
	for i := range xs {
		xs[i] /= int64(g)
	}
	return g
}

// A columnWriter appends integer columns to the four streams that hold them.
type columnWriter struct {
	orders, ks []byte // one byte a column
	numbers    []byte // varints: base, divisor, exceptions
	bits       bitWriter
}

// write appends a column whose exceptions, if it says so, the caller appends
// to numbers. The base goes in as the difference to before.
func (w *columnWriter) write(p plan, before int64, exceptions bool) {
	order := p.order
	w.numbers = binary.AppendUvarint(w.numbers, zigzag(p.base-before))
	if p.divisor > 1 {
		order |= flagDivisor
		w.numbers = binary.AppendUvarint(w.numbers, p.divisor)
	}
	if exceptions {
		order |= flagExceptions
	}
	w.orders = append(w.orders, order)
	w.ks = append(w.ks, p.k)
	if p.k != allZero {
		w.bits.rice(p.zs, p.k, p.bits)
	}
}

func (w *columnWriter) reset() {
	w.orders, w.ks, w.numbers = w.orders[:0], w.ks[:0], w.numbers[:0]
	w.bits.reset()
}

// A columnReader reads integer columns back from the same streams.
type columnReader struct {
	orders, ks cursor
	numbers    cursor
	bits       bitReader
}

// read fills xs, which has room for at least one value, with the next column,
// and says whether its exceptions follow in numbers.
func (r *columnReader) read(xs []int64, before int64) (exceptions bool, err error) {
	order, k := r.orders.byte(), r.ks.byte()
	base := before + unzigzag(r.numbers.uvarint())
	divisor := uint64(1)
	if order&flagDivisor != 0 {
		divisor = r.numbers.uvarint()
	}
	switch {
	case r.orders.bad || r.ks.bad || r.numbers.bad:
		return false, errors.New("header of a column is cut off")
	case order&orderMask > maxOrder || order&^(orderMask|flagDivisor|flagExceptions) != 0:
		return false, fmt.Errorf("unknown order byte 0x%02x of a column", order)
	case k > maxRiceK && k != allZero:
		return false, fmt.Errorf("unknown Rice parameter %d of a column", k)
	case order&flagDivisor != 0 && divisor < 2:
		return false, fmt.Errorf("divisor %d of a column: want at least 2", divisor)
	}
	xs[0] = 0
	if k == allZero {
		clear(xs)
	} else if err := r.bits.rice(xs[1:], k); err != nil {
		return false, err
	}
	undifference(xs, int(order&orderMask))
	if divisor > 1 {
		for i := range xs {
			xs[i] *= int64(divisor)
		}
	}
	for i := range xs {
		xs[i] += base
	}
	return order&flagExceptions != 0, nil
}

// undifference reverts planner.difference.
func undifference(xs []int64, order int) {
	for o := order; o > 0; o-- {
		if o >= len(xs) {
			continue
		}
		sum := xs[o-1]
		for i := o; i < len(xs); i++ {
			sum += xs[i]
			xs[i] = sum
		}
	}
}
