package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestHistogram_BucketsAreNarrowAndHoldTheirValues(t *testing.T) {
	for _, us := range []int64{0, 1, 31, 32, 33, 63, 64, 65, 1000, 999_999, 1 << 20, 1_500_000, 1<<43 + 12345} {
		i := bucketOf(us)
		top, bottom := bucketTop(i), int64(0)
		if i > 0 {
			bottom = bucketTop(i - 1)
		}
		if us < bottom || us >= top {
			t.Errorf("%d µs is in bucket %d, from %d to %d", us, i, bottom, top)
		}
		if width := float64(top - bottom); width > 1 && width > float64(us)/31 {
			t.Errorf("the bucket of %d µs is %v wide: want at most 3 %%", us, width)
		}
	}
	if bucketOf(-5) != 0 || bucketOf(math.MaxInt64) != histogramBuckets-1 {
		t.Error("values beyond both ends have no bucket")
	}
	for i := range histogramBuckets - 1 {
		if bucketTop(i) >= bucketTop(i+1) || bucketOf(bucketTop(i)) != i+1 {
			t.Fatalf("bucket %d ends at %d, the next at %d", i, bucketTop(i), bucketTop(i+1))
		}
	}
}

func TestHistogram_QuantilesAreAtMostABucketTooHigh(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var a, b histogram
	var all []int64
	for i := range 20_000 {
		us := int64(math.Exp(rng.Float64() * 15))
		all = append(all, us)
		if i%2 == 0 {
			a.add(us)
		} else {
			b.add(us)
		}
	}
	a.merge(&b)
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999} {
		got, want := a.cumulative().quantile(q)*1e6, float64(all[int(q*float64(len(all)))-1])
		if got < want || got > want*1.04+1 {
			t.Errorf("quantile %v is %v µs: want %v, and at most 3 %% more", q, got, want)
		}
	}
	if !math.IsNaN((&histogram{}).cumulative().quantile(0.5)) {
		t.Error("a histogram of nothing has a median")
	}
}

func TestBuckets_SinceCountsOnlyWhatCameLater(t *testing.T) {
	var h histogram
	h.addN(10, 90)
	before := h.cumulative()
	h.addN(10, 1)
	h.addN(5000, 99)
	d := h.cumulative().since(before)
	if last := d[len(d)-1].count; last != 100 {
		t.Errorf("%v counted since: want 100", last)
	}
	if q := d.quantile(0.5); q < 0.005 || q > 0.0052 {
		t.Errorf("median since is %v s: want 5 ms", q)
	}
	if q := (buckets{{0.1, 5}, {math.Inf(1), 10}}).quantile(0.99); !math.IsInf(q, 1) {
		t.Errorf("a quantile beyond the last bound is %v: want +Inf", q)
	}
}
