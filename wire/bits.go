package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// Integers of a column are Golomb-Rice codes in one bit stream, least
// significant bit first: z>>k zero bits and a one, then the k low bits of z.
// Where z>>k is riceLimit or more, an escape: riceLimit zero bits, the length
// of z less one in riceLengthBits, and z without its leading one. The limit
// keeps the cost of an outlier near its own length; 8 did best on the recorded
// data, and any code up to k = maxFastK is one 64-bit load to read.
const (
	riceLimit      = 8
	riceLengthBits = 6
	maxRiceK       = 62
	maxFastK       = 57 - riceLimit // a load at any bit has at least 57 bits
)

// riceBits returns how many bits the codes of zs take with parameter k.
func riceBits(zs []uint64, k uint8) int {
	n := len(zs) * int(1+k)
	for _, z := range zs {
		if q := z >> (k & 63); q < riceLimit {
			n += int(q)
		} else {
			n += riceLimit + riceLengthBits + bits.Len64(z) - 2 - int(k)
		}
	}
	return n
}

// A bitWriter appends codes to buf. The bits of the last, partial byte are in
// acc until flush.
type bitWriter struct {
	buf []byte
	acc uint64
	n   uint // bits in acc, below 8 between calls
}

func (w *bitWriter) reset() { w.buf, w.acc, w.n = w.buf[:0], 0, 0 }

// write appends the low n bits of v, n at most 56; v has no bits above them.
// buf has room for eight bytes more.
func (w *bitWriter) write(v uint64, n uint) {
	w.acc |= v << w.n
	w.n += n
	at := len(w.buf)
	binary.LittleEndian.PutUint64(w.buf[at:at+8], w.acc)
	w.buf = w.buf[:at+int(w.n>>3)]
	w.acc >>= w.n &^ 7
	w.n &= 7
}

// rice appends the codes of zs. size is what riceBits says of them.
func (w *bitWriter) rice(zs []uint64, k uint8, size int) {
	w.buf = slices.Grow(w.buf, size/8+10) // 7 bits of acc before, 8 bytes of the last store
	if k > maxFastK {
		for _, z := range zs {
			w.riceSlow(z, k)
		}
		return
	}
	buf, at, acc, n := w.buf[:cap(w.buf)], len(w.buf), w.acc, w.n
	low := uint64(1)<<k - 1
	for _, z := range zs {
		q := z >> k
		if q >= riceLimit {
			w.buf, w.acc, w.n = buf[:at], acc, n
			w.riceSlow(z, k)
			acc, n, at = w.acc, w.n, len(w.buf)
			continue
		}
		acc |= (1<<q | (z&low)<<(q+1)) << n
		n += uint(q) + 1 + uint(k)
		binary.LittleEndian.PutUint64(buf[at:], acc)
		at += int(n >> 3)
		acc >>= n &^ 7
		n &= 7
	}
	w.buf, w.acc, w.n = buf[:at], acc, n
}

// riceSlow appends one code of any k in steps that fit write.
func (w *bitWriter) riceSlow(z uint64, k uint8) {
	q := z >> k
	if q < riceLimit {
		w.write(1<<q, uint(q)+1)
		w.writeLong(z&(1<<k-1), uint(k))
		return
	}
	length := uint(bits.Len64(z))
	w.write(uint64(length-1)<<riceLimit, riceLimit+riceLengthBits)
	w.writeLong(z&^(1<<(length-1)), length-1)
}

func (w *bitWriter) writeLong(v uint64, n uint) {
	if n > 32 {
		w.write(v&(1<<32-1), 32)
		v, n = v>>32, n-32
	}
	w.write(v, n)
}

// flush pads the last byte with zero bits.
func (w *bitWriter) flush() {
	if w.n > 0 {
		w.buf = append(w.buf, byte(w.acc))
		w.acc, w.n = 0, 0
	}
}

// bitSlack is how many bytes must follow the bit stream in its slice, so that
// every read is one load. What they hold does not matter.
const bitSlack = 8

var errBits = errors.New("bit stream is cut off")

// A bitReader reads codes from the first size bits of data, which has at
// least bitSlack bytes more.
type bitReader struct {
	data []byte
	at   int // bit
	size int // bits
}

// load returns the next bits, of which at least 57 count.
func (r *bitReader) load() uint64 {
	return binary.LittleEndian.Uint64(r.data[r.at>>3:]) >> (r.at & 7)
}

// rice fills xs with the next codes, their zigzag undone.
func (r *bitReader) rice(xs []int64, k uint8) error {
	if k > maxFastK {
		for i := range xs {
			z, err := r.riceSlow(k)
			if err != nil {
				return err
			}
			xs[i] = unzigzag(z)
		}
		return nil
	}
	data, at, size := r.data, r.at, r.size
	low := uint64(1)<<k - 1
	for i := range xs {
		if at >= size {
			return errBits
		}
		w := binary.LittleEndian.Uint64(data[at>>3:]) >> (at & 7)
		q := bits.TrailingZeros64(w)
		if q >= riceLimit {
			r.at = at
			z, err := r.riceSlow(k)
			if err != nil {
				return err
			}
			xs[i], at = unzigzag(z), r.at
			continue
		}
		xs[i] = unzigzag(uint64(q)<<k | w>>(q+1)&low)
		at += q + 1 + int(k)
	}
	if at > size {
		return errBits
	}
	r.at = at
	return nil
}

func (r *bitReader) riceSlow(k uint8) (uint64, error) {
	head, err := r.peek(riceLimit + riceLengthBits)
	if err != nil {
		return 0, err
	}
	if q := bits.TrailingZeros64(head); q < riceLimit {
		r.at += q + 1
		low, err := r.read(int(k))
		return uint64(q)<<k | low, err
	}
	r.at += riceLimit + riceLengthBits
	length := int(head >> riceLimit & (1<<riceLengthBits - 1)) // less one
	low, err := r.read(length)
	return 1<<length | low, err
}

// peek returns the next n bits, n at most 57, with zeros after the end.
func (r *bitReader) peek(n int) (uint64, error) {
	if r.at >= r.size {
		return 0, errBits
	}
	w := r.load() & (1<<n - 1)
	if left := r.size - r.at; left < n {
		w &= 1<<left - 1
	}
	return w, nil
}

// read takes n bits, n at most 63.
func (r *bitReader) read(n int) (uint64, error) {
	if n > r.size-r.at {
		return 0, errBits
	}
	var v uint64
	for got := 0; got < n; {
		step := min(n-got, 32)
		v |= r.load() & (1<<step - 1) << got
		r.at += step
		got += step
	}
	return v, nil
}

// end says whether nothing but the padding of the last byte is left.
func (r *bitReader) end() error {
	left := r.size - r.at
	if left >= 8 {
		return fmt.Errorf("%d bits are left after the last column", left)
	}
	if v, err := r.read(left); err != nil || v != 0 {
		return errors.New("padding of the bit stream is not zero")
	}
	return nil
}
