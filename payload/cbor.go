package payload

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// cborMode bounds what is read at all. Nothing is allocated for what these
// numbers count, so they only end what is no pack of samples: 16 levels as in
// JSON, 1 Mi records of at least 3 bytes, 256 fields where RFC 8428 has 15.
var cborMode = func() cbor.DecMode {
	mode, err := cbor.DecOptions{MaxNestedLevels: maxDepth, MaxArrayElements: 1 << 20, MaxMapPairs: 256}.DecMode()
	if err != nil {
		panic("BUG: CBOR options: " + err.Error())
	}
	return mode
}()

// The major types of RFC 8949, section 3.1.
const (
	cborUint   = 0
	cborNegInt = 1
	cborBytes  = 2
	cborText   = 3
	cborArray  = 4
	cborMap    = 5
	cborTag    = 6
	cborSimple = 7
)

var cborKinds = [8]string{"an integer", "an integer", "a byte string", "a text string", "an array", "a map", "a tag", "a simple value"}

// cborBreak ends items of indefinite length.
const cborBreak = 0xff

// A cborReader walks CBOR (RFC 8949) that is known to be well-formed, so that
// no read can leave the data. Its methods return false where the kind of item
// is another than wanted, and err then says what.
type cborReader struct {
	data    []byte
	pos     int
	scratch []byte // holds the last string that came in chunks, or number as text
	err     *Error
}

// open begins to read data once it is well-formed.
func (r *cborReader) open(data []byte) *Error {
	r.data, r.pos, r.err = data, 0, nil
	err := cborMode.Wellformed(data)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &Error{Record: -1, Offset: len(data), What: "the payload ends early"}
	}
	return &Error{Record: -1, Offset: -1, What: "this is not well-formed CBOR", Err: err}
}

// fail keeps the first error, at byte offset.
func (r *cborReader) fail(offset int, what string) bool {
	if r.err == nil {
		r.err = &Error{Record: -1, Offset: offset, What: what}
	}
	return false
}

func (r *cborReader) failed(what string, cause error) bool {
	r.fail(r.pos, what)
	r.err.Err = cause
	return false
}

func (r *cborReader) unexpected(want string) bool {
	have := cborKinds[r.major()]
	switch b := r.data[r.pos]; b {
	case 0xf4, 0xf5:
		have = "a boolean"
	case 0xf6:
		have = "null"
	case 0xf7:
		have = "undefined"
	case 0xf9, 0xfa, 0xfb:
		have = "a float"
	}
	return r.fail(r.pos, "want "+want+", have "+have)
}

// major is the major type of the next item.
func (r *cborReader) major() byte { return r.data[r.pos] >> 5 }

// head reads an item's first bytes: its argument, and whether its length is
// indefinite instead.
func (r *cborReader) head() (argument uint64, indefinite bool) {
	info := r.data[r.pos] & 0x1f
	r.pos++
	rest := r.data[r.pos:]
	switch info {
	case 24:
		r.pos++
		return uint64(rest[0]), false
	case 25:
		r.pos += 2
		return uint64(binary.BigEndian.Uint16(rest)), false
	case 26:
		r.pos += 4
		return uint64(binary.BigEndian.Uint32(rest)), false
	case 27:
		r.pos += 8
		return binary.BigEndian.Uint64(rest), false
	case 31:
		return 0, true
	}
	return uint64(info), false
}

// more says whether another of the items of an array or a map follows, of
// which left are to come unless the number is indefinite.
func (r *cborReader) more(left *uint64, indefinite bool) bool {
	if indefinite {
		if r.data[r.pos] == cborBreak {
			r.pos++
			return false
		}
		return true
	}
	if *left == 0 {
		return false
	}
	*left--
	return true
}

// skip passes one item.
func (r *cborReader) skip() {
	major := r.major()
	n, indefinite := r.head()
	switch major {
	case cborBytes, cborText:
		if !indefinite {
			r.pos += int(n)
			return
		}
		for r.more(&n, true) {
			r.skip()
		}
	case cborMap:
		for r.more(&n, indefinite) {
			r.skip()
			r.skip()
		}
	case cborArray:
		for r.more(&n, indefinite) {
			r.skip()
		}
	case cborTag:
		r.skip()
	}
}

// str reads a string of major type major, in one piece or in chunks.
func (r *cborReader) str(major byte) ([]byte, bool) {
	if r.major() != major {
		return nil, r.unexpected(cborKinds[major])
	}
	offset := r.pos
	n, indefinite := r.head()
	if !indefinite {
		text := r.data[r.pos : r.pos+int(n)]
		r.pos += int(n)
		if major == cborText && !utf8.Valid(text) {
			return nil, r.fail(offset, "the string is not valid UTF-8")
		}
		return text, true
	}
	out := r.scratch[:0]
	for r.more(&n, true) {
		size, _ := r.head()
		chunk := r.data[r.pos : r.pos+int(size)]
		r.pos += int(size)
		if major == cborText && !utf8.Valid(chunk) { // each by itself: RFC 8949, section 3.2.3
			return nil, r.fail(offset, "the string is not valid UTF-8")
		}
		out = append(out, chunk...)
	}
	r.scratch = out
	return out, true
}

func (r *cborReader) text() ([]byte, bool)   { return r.str(cborText) }
func (r *cborReader) octets() ([]byte, bool) { return r.str(cborBytes) }

func (r *cborReader) boolean() (bool, bool) {
	b := r.data[r.pos]
	if b != 0xf4 && b != 0xf5 {
		return false, r.unexpected("a boolean")
	}
	r.pos++
	return b == 0xf5, true
}

func (r *cborReader) version() (uint64, bool) {
	if r.major() != cborUint {
		return 0, r.unexpected("a positive integer")
	}
	n, _ := r.head()
	return n, true
}

// A cborNumber is an integer times a power of ten, a float64 or the text of a
// decimal number.
type cborNumber struct {
	integer  int64
	exponent int // -22 to 0; others are written as text
	float    float64
	isFloat  bool
	text     []byte // part of the reader's scratch memory; nil where it is another
}

// number reads an integer, a float, a bignum or a decimal fraction, the forms
// that RFC 8428, section 6, has.
func (r *cborReader) number() (cborNumber, bool) {
	offset := r.pos
	switch r.major() {
	case cborUint, cborNegInt:
		negative := r.major() == cborNegInt
		n, _ := r.head()
		if n > math.MaxInt64 {
			r.scratch = appendInt(r.scratch[:0], n, negative)
			return cborNumber{text: r.scratch}, true
		}
		if negative {
			return cborNumber{integer: -1 - int64(n)}, true
		}
		return cborNumber{integer: int64(n)}, true
	case cborSimple:
		if info := r.data[r.pos] & 0x1f; info >= 25 && info <= 27 {
			bits, _ := r.head()
			return cborNumber{float: widen(bits, info), isFloat: true}, true
		}
	case cborTag:
		switch tag, _ := r.head(); tag {
		case 2, 3:
			return r.bignum(tag == 3)
		case 4:
			return r.decimalFraction(offset)
		}
		r.pos = offset
	}
	return cborNumber{}, r.unexpected("a number")
}

// appendInt writes the integer n, or -1-n, which an int64 may not hold.
func appendInt(dst []byte, n uint64, negative bool) []byte {
	if !negative {
		return strconv.AppendUint(dst, n, 10)
	}
	if n == math.MaxUint64 {
		return append(dst, "-18446744073709551616"...)
	}
	return strconv.AppendUint(append(dst, '-'), n+1, 10)
}

// widen returns a float of 16, 32 or 64 bits (info is 25, 26 or 27) as a
// float64 and keeps the bits of a NaN, which a conversion may change.
func widen(bits uint64, info byte) float64 {
	switch info {
	case 25:
		sign, exponent, fraction := bits>>15<<63, bits>>10&0x1f, bits&0x3ff
		if exponent == 0x1f {
			return math.Float64frombits(sign | 0x7ff<<52 | fraction<<42)
		}
		f := math.Ldexp(float64(fraction), -24) // zero and subnormal
		if exponent > 0 {
			f = math.Ldexp(float64(fraction|0x400), int(exponent)-25)
		}
		return math.Float64frombits(sign | math.Float64bits(f))
	case 26:
		if bits>>23&0xff == 0xff {
			return math.Float64frombits(bits>>31<<63 | 0x7ff<<52 | bits&0x7fffff<<29)
		}
		return float64(math.Float32frombits(uint32(bits)))
	}
	return math.Float64frombits(bits)
}

// maxBignum bounds bignums, in bytes: 128 bytes are 2^1024, what a float64
// can't hold any more.
const maxBignum = 128

// bignum reads the byte string behind tag 2, or 3 where it is negative.
func (r *cborReader) bignum(negative bool) (cborNumber, bool) {
	offset := r.pos
	digits, ok := r.octets()
	if !ok {
		return cborNumber{}, false
	}
	if len(digits) > maxBignum {
		return cborNumber{}, r.fail(offset, fmt.Sprintf("a number of %d bytes: at most %d are allowed", len(digits), maxBignum))
	}
	n := new(big.Int).SetBytes(digits)
	if negative {
		n.Not(n)
	}
	r.scratch = n.Append(r.scratch[:0], 10)
	return cborNumber{text: r.scratch}, true
}

// decimalFraction reads the pair [exponent, mantissa] behind tag 4 (RFC 8949,
// section 3.4.4); offset is where the tag stands.
func (r *cborReader) decimalFraction(offset int) (cborNumber, bool) {
	want := func() (cborNumber, bool) {
		return cborNumber{}, r.fail(offset, "a decimal fraction (tag 4) is an array of two integers: exponent and mantissa")
	}
	if r.major() != cborArray {
		return want()
	}
	left, indefinite := r.head()
	if !r.more(&left, indefinite) || r.major() > cborNegInt {
		return want()
	}
	negative := r.major() == cborNegInt
	exponent, _ := r.head()
	if !r.more(&left, indefinite) || !r.integerNext() {
		return want()
	}
	mantissa, ok := r.number()
	if !ok {
		return cborNumber{}, false
	}
	if r.more(&left, indefinite) {
		return want()
	}
	if mantissa.text == nil && negative && exponent < 22 {
		mantissa.exponent = -1 - int(exponent)
		return mantissa, true
	}
	if mantissa.text == nil {
		r.scratch = strconv.AppendInt(r.scratch[:0], mantissa.integer, 10)
	}
	r.scratch = appendInt(append(r.scratch, 'e'), exponent, negative)
	return cborNumber{text: r.scratch}, true
}

// integerNext says whether the next item is an integer or a bignum.
func (r *cborReader) integerNext() bool {
	switch r.major() {
	case cborUint, cborNegInt:
		return true
	case cborTag:
		at := r.pos
		tag, _ := r.head()
		r.pos = at
		return tag == 2 || tag == 3
	}
	return false
}

func (r *cborReader) float() (float64, bool) {
	offset := r.pos
	n, ok := r.number()
	switch {
	case !ok:
		return 0, false
	case n.isFloat:
		return n.float, true
	case n.text == nil && n.exponent == 0:
		return float64(n.integer), true
	}
	f, ok := parseFloat(r.decimal(n))
	return f, ok || r.fail(offset, tooLarge)
}

func (r *cborReader) seconds() (int64, bool) {
	offset := r.pos
	n, ok := r.number()
	if !ok {
		return 0, false
	}
	var ns int64
	if n.isFloat {
		ns, ok = floatSeconds(n.float)
		return ns, ok || r.fail(offset, secondsBounds)
	}
	if n.text == nil && n.integer >= 0 {
		if ns, ok = scaleSeconds(uint64(n.integer), n.exponent); ok {
			return ns, true
		}
	}
	ns, ok = parseSeconds(r.decimal(n))
	return ns, ok || r.fail(offset, secondsBounds)
}

// decimal writes a number that is no float as JSON would.
func (r *cborReader) decimal(n cborNumber) []byte {
	if n.text == nil {
		r.scratch = strconv.AppendInt(r.scratch[:0], n.integer, 10)
		r.scratch = strconv.AppendInt(append(r.scratch, 'e'), int64(n.exponent), 10)
		n.text = r.scratch
	}
	return n.text
}
