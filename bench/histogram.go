package main

import (
	"math"
	"math/bits"
	"slices"
)

// A histogram counts durations in microseconds, 32 buckets to each doubling,
// so that a bucket is at most 3 % wide. It is not safe for concurrent use.
type histogram struct {
	n       uint64
	buckets [histogramBuckets]uint64
}

const (
	perDoubling      = 32
	histogramBuckets = 40 * perDoubling // up to 2^44 µs, half a year
)

// bucketOf returns where us is counted: itself below 32, and then the upper
// five bits behind the leading one, doubling by doubling.
func bucketOf(us int64) int {
	v := uint64(max(us, 0))
	if v < perDoubling {
		return int(v)
	}
	shift := bits.Len64(v) - 6
	return min((shift+1)*perDoubling+int(v>>shift)-perDoubling, histogramBuckets-1)
}

// bucketTop returns the first µs beyond bucket i.
func bucketTop(i int) int64 {
	if i < perDoubling {
		return int64(i) + 1
	}
	shift := i/perDoubling - 1
	return int64(i%perDoubling+perDoubling+1) << shift
}

func (h *histogram) add(us int64) { h.addN(us, 1) }

func (h *histogram) addN(us int64, n uint64) {
	h.buckets[bucketOf(us)] += n
	h.n += n
}

func (h *histogram) merge(o *histogram) {
	for i, n := range o.buckets {
		h.buckets[i] += n
	}
	h.n += o.n
}

// cumulative returns the histogram in the form that it shares with those of
// /metrics.
func (h *histogram) cumulative() buckets {
	var out buckets
	var sum uint64
	for i, n := range h.buckets {
		if n > 0 {
			sum += n
			out = append(out, bucket{seconds: float64(bucketTop(i)) / 1e6, count: float64(sum)})
		}
	}
	return out
}

// buckets are cumulative counts, sorted by their upper bounds.
type buckets []bucket

type bucket struct {
	seconds float64 // upper bound
	count   float64 // of what is at most that
}

// at returns the count at a bound that may not be a bucket of its own.
func (b buckets) at(seconds float64) float64 {
	i, found := slices.BinarySearchFunc(b, seconds, func(x bucket, s float64) int {
		switch {
		case x.seconds < s:
			return -1
		case x.seconds > s:
			return 1
		}
		return 0
	})
	if found {
		return b[i].count
	}
	if i == 0 {
		return 0
	}
	return b[i-1].count
}

// since returns what was counted after before was taken of the same counter.
func (b buckets) since(before buckets) buckets {
	out := make(buckets, len(b))
	for i, x := range b {
		out[i] = bucket{x.seconds, x.count - before.at(x.seconds)}
	}
	return out
}

// quantile returns the upper bound of the bucket that the quantile is in, in
// seconds: never less than the true one. NaN where nothing was counted, +Inf
// beyond the last bound.
func (b buckets) quantile(q float64) float64 {
	if len(b) == 0 || b[len(b)-1].count <= 0 {
		return math.NaN()
	}
	want := q * b[len(b)-1].count
	for _, x := range b {
		if x.count >= want {
			return x.seconds
		}
	}
	return math.Inf(1)
}
