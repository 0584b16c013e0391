package merge

import (
	"slices"

	"touchline"
)

// A NameFilter says which sensors and metrics a block surely does not have:
// a Bloom filter with filterBitsPerName bits for each different name and
// filterProbes bits set for it, as many bytes as that needs. A query for one
// sensor then decodes the blocks that have it and about 1 % of the others
// (measured: TestNameFilter_FalsePositives). Empty means: may have any.
type NameFilter []byte

const (
	filterBitsPerName = 10
	filterProbes      = 4
	// maxFilterBytes bounds the filter beside a block of a few kB. 2,048
	// bits hold 200 names at 1 % and 600 at 23 %.
	maxFilterBytes = 256
	// maxFilterNames is where a filter would let half of all names pass and
	// is not worth its bytes.
	maxFilterNames = 1024
)

// NewNameFilter returns the filter of a block's samples. Samples in a block
// stand in runs of one series, so almost all names equal the one before.
func NewNameFilter(samples []touchline.Sample) NameFilter {
	var hashes []uint64
	for i := range samples {
		s := &samples[i]
		if i == 0 || s.Sensor != samples[i-1].Sensor {
			hashes = append(hashes, sensorHash(s.Sensor))
		}
		if i == 0 || s.Metric != samples[i-1].Metric {
			hashes = append(hashes, metricHash(s.Metric))
		}
	}
	slices.Sort(hashes)
	hashes = slices.Compact(hashes)
	if len(hashes) > maxFilterNames {
		return NameFilter{}
	}
	f := make(NameFilter, min((len(hashes)*filterBitsPerName+7)/8, maxFilterBytes))
	for _, h := range hashes {
		for i := range filterProbes {
			bit := f.bit(h, i)
			f[bit/8] |= 1 << (bit % 8)
		}
	}
	return f
}

// mayHave says whether the block may have the name with this hash.
func (f NameFilter) mayHave(hash uint64) bool {
	if len(f) == 0 {
		return true
	}
	for i := range filterProbes {
		bit := f.bit(hash, i)
		if f[bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
	}
	return true
}

// Hides says whether a query for the sample's sensor or metric would not find
// it by this filter: one that is right hides none of its block's.
func (f NameFilter) Hides(s *touchline.Sample) bool {
	return !f.mayHave(sensorHash(s.Sensor)) || !f.mayHave(metricHash(s.Metric))
}

// bit returns the i-th bit of a hash: double hashing with its two halves.
func (f NameFilter) bit(hash uint64, i int) uint32 {
	return (uint32(hash) + uint32(i)*(uint32(hash>>32)|1)) % uint32(len(f)*8)
}

// Sensors and metrics hash apart, so that one named like the other does not
// pass for it.
func sensorHash(name string) uint64 { return hashName('s', name) }
func metricHash(name string) uint64 { return hashName('m', name) }

// hashName is 64-bit FNV-1a over kind and name, stirred by the finalizer of
// MurmurHash3 since names differ in their last byte only. It is part of the
// file format.
func hashName(kind byte, name string) uint64 {
	const offset, prime = 0xcbf29ce484222325, 0x100000001b3
	h := (uint64(offset) ^ uint64(kind)) * prime
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
