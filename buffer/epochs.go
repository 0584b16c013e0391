package buffer

import (
	"math"
	"slices"
	"sort"

	"touchline"
)

// epochs gives each block its place in the file: the key of a block is the
// base of its epoch plus the number of its first sample. A new epoch's base is
// the highest key so far, so keys ascend by age across all epochs, one integer
// is the whole key of the table, and a commit appends to the end of one
// B-tree (measured: 2 to 4 pages written for a block of 1 to 4 KB, where a key
// of two columns takes 5.3).
//
// Epochs are known by index, oldest first; the last is that of this opening.
// Nothing changes after Open, so readers need no lock.
type epochs struct {
	bases []int64
	uuids []touchline.Epoch
	index map[touchline.Epoch]int
}

// add puts an epoch behind those that are there.
func (e *epochs) add(base int64, uuid touchline.Epoch) {
	if n := len(e.bases); n > 0 && base <= e.bases[n-1] {
		panic("BUG: epochs out of order")
	}
	if e.index == nil {
		e.index = make(map[touchline.Epoch]int)
	}
	e.index[uuid] = len(e.bases)
	e.bases = append(e.bases, base)
	e.uuids = append(e.uuids, uuid)
}

// insert puts an epoch where its base belongs, and returns its index. It is
// for those who have the epochs to themselves.
func (e *epochs) insert(base int64, uuid touchline.Epoch) int {
	i, _ := slices.BinarySearch(e.bases, base)
	e.bases, e.uuids = slices.Insert(e.bases, i, base), slices.Insert(e.uuids, i, uuid)
	e.index = make(map[touchline.Epoch]int, len(e.uuids))
	for i, uuid := range e.uuids {
		e.index[uuid] = i
	}
	return i
}

// current returns the index of this opening's epoch.
func (e *epochs) current() int { return len(e.bases) - 1 }

// base returns the base of this opening's epoch.
func (e *epochs) base() int64 { return e.bases[e.current()] }

// end returns the last key that an epoch may have.
func (e *epochs) end(i int) int64 {
	if i == e.current() {
		return math.MaxInt64
	}
	return e.bases[i+1]
}

// key returns the key of a number, or the epoch's last where that would reach
// into the next: an acknowledgement of blocks that are long gone must not
// touch another epoch's.
func (e *epochs) key(i int, seq uint64) int64 {
	return min(e.bases[i]+int64(min(seq, touchline.MaxSeq)), e.end(i))
}

// of returns epoch and number of a key; ok is false for one before them all.
func (e *epochs) of(key int64) (i int, seq uint64, ok bool) {
	i = sort.Search(len(e.bases), func(i int) bool { return e.bases[i] >= key }) - 1
	if i < 0 {
		return 0, 0, false
	}
	return i, uint64(key - e.bases[i]), true
}
