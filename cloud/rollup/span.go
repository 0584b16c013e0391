package rollup

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"
)

// Times in this package are seconds since the Unix epoch, rounded down: 64 bits
// of ns are the seconds MinSecond to MaxSecond.
const (
	second    = int64(time.Second)
	minute    = int64(60) // s
	MinSecond = math.MinInt64/second - 1
	MaxSecond = math.MaxInt64 / second
)

// SecondOf returns the second of a sample's time.
func SecondOf(ns int64) int64 { return floor(ns, second) }

// MinuteOf returns the second in which the minute of a second begins.
func MinuteOf(s int64) int64 { return floor(s, minute) * minute }

func floor(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// A Span says which seconds of a gateway have changed and are to be computed
// anew.
type Span struct {
	Gateway  int64 // the store's number of it; 0: all
	From, To int64 // both included
	// Removes says that rows may have to go: samples were moved or hidden.
	// Where they were only added, each row that is there stays or grows.
	Removes bool
}

// Spans are what one transaction changed. The zero value is ready.
type Spans struct{ list []Span }

// Remove notes that samples between two times, in ns and both included, may
// have been moved or hidden.
func (s *Spans) Remove(gateway, from, to int64) {
	if from <= to {
		s.list = append(s.list, Span{gateway, SecondOf(from), SecondOf(to), true})
	}
}

// None says whether nothing changed.
func (s *Spans) None() bool { return len(s.list) == 0 }

// Encode returns the spans as they are stored with the transaction, nil where
// there are none: some 8 bytes for each gateway of a batch.
func (s *Spans) Encode() []byte { return Encode(s.list) }

// Encode appends to nothing, for each span, gateway and Removes as one uvarint,
// From as varint and the length as uvarint. Spans that touch become one.
func Encode(list []Span) []byte {
	var dst []byte
	for _, span := range union(list) {
		n := uint64(span.Gateway) << 1
		if span.Removes {
			n |= 1
		}
		dst = binary.AppendUvarint(dst, n)
		dst = binary.AppendVarint(dst, span.From)
		dst = binary.AppendUvarint(dst, uint64(span.To)-uint64(span.From))
	}
	return dst
}

var errSpans = errors.New("stored spans are damaged")

// Decode reads what Encode wrote.
func Decode(data []byte) ([]Span, error) {
	var list []Span
	for len(data) > 0 {
		gateway, n := binary.Uvarint(data)
		if n <= 0 {
			return nil, errSpans
		}
		from, m := binary.Varint(data[n:])
		if m <= 0 {
			return nil, errSpans
		}
		length, l := binary.Uvarint(data[n+m:])
		if l <= 0 || from < MinSecond || from > MaxSecond || length > uint64(MaxSecond-from) {
			return nil, errSpans
		}
		data = data[n+m+l:]
		list = append(list, Span{Gateway: int64(gateway >> 1), From: from, To: from + int64(length), Removes: gateway&1 != 0})
	}
	return list, nil
}

// union returns the spans in order, those joined that touch.
func union(list []Span) []Span {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.Gateway, b.Gateway), compareBool(a.Removes, b.Removes), cmp.Compare(a.From, b.From))
	})
	joined := list[:0]
	for _, s := range list {
		if n := len(joined); n > 0 && joined[n-1].Gateway == s.Gateway && joined[n-1].Removes == s.Removes && s.From <= joined[n-1].To+1 {
			joined[n-1].To = max(joined[n-1].To, s.To)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// GatewaysOf returns the gateways of spans, and whether one is of all.
func GatewaysOf(list []Span) (gateways map[int64]struct{}, all bool) {
	gateways = make(map[int64]struct{})
	for _, s := range list {
		gateways[s.Gateway] = struct{}{}
	}
	_, all = gateways[0]
	return gateways, all
}
