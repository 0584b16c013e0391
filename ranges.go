package touchline

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
)

// A Range is the sample numbers First to Last of one epoch, both included.
// In JSON it is the pair [first,last].
type Range struct {
	First, Last uint64
}

// Count returns how many numbers the range has.
func (r Range) Count() uint64 { return r.Last - r.First + 1 }

// Valid says whether the range is one: numbers begin at 1, and stay below
// 2^53 so that every JSON reader can hold them.
func (r Range) Valid() bool { return r.First >= 1 && r.First <= r.Last && r.Last <= MaxSeq }

// MaxSeq is the largest sample number. At a million samples a second an epoch
// reaches it after 285 years.
const MaxSeq = 1<<53 - 1

// MarshalJSON writes [first,last].
func (r Range) MarshalJSON() ([]byte, error) { return json.Marshal([2]uint64{r.First, r.Last}) }

// UnmarshalJSON reads [first,last] and refuses what is no range.
func (r *Range) UnmarshalJSON(data []byte) error {
	var pair []uint64
	if err := json.Unmarshal(data, &pair); err != nil {
		return fmt.Errorf("range: %w", err)
	}
	if len(pair) != 2 {
		return fmt.Errorf("range has %d numbers: want [first,last]", len(pair))
	}
	got := Range{pair[0], pair[1]}
	if !got.Valid() {
		return fmt.Errorf("range [%d,%d]: want 1 <= first <= last < 2^53", got.First, got.Last)
	}
	*r = got
	return nil
}

// Ranges is a set of sample numbers of one epoch: sorted, disjoint and never
// adjacent, so that equal sets are equal slices. The zero value is the empty
// set. It is not safe for concurrent use.
type Ranges []Range

// Add puts r into the set and merges it with what it touches.
func (s *Ranges) Add(r Range) {
	if !r.Valid() {
		panic(fmt.Sprintf("BUG: range [%d,%d] added", r.First, r.Last))
	}
	set := *s
	if n := len(set); n > 0 && set[n-1].First <= r.First { // the usual case: at the end
		if last := &set[n-1]; r.First <= last.Last+1 {
			last.Last = max(last.Last, r.Last)
		} else {
			*s = append(set, r)
		}
		return
	}
	lo := sort.Search(len(set), func(i int) bool { return set[i].Last+1 >= r.First })
	hi := sort.Search(len(set), func(i int) bool { return set[i].First > r.Last+1 })
	if lo < hi {
		r.First = min(r.First, set[lo].First)
		r.Last = max(r.Last, set[hi-1].Last)
	}
	*s = slices.Replace(set, lo, hi, r)
}

// AddAll puts every range of other into the set.
func (s *Ranges) AddAll(other Ranges) {
	for _, r := range other {
		s.Add(r)
	}
}

// Contains says whether every number of r is in the set.
func (s Ranges) Contains(r Range) bool {
	i := s.firstEndingAtOrAfter(r.First)
	return i < len(s) && s[i].First <= r.First && r.Last <= s[i].Last
}

// Overlaps says whether any number of r is in the set.
func (s Ranges) Overlaps(r Range) bool {
	i := s.firstEndingAtOrAfter(r.First)
	return i < len(s) && s[i].First <= r.Last
}

// Missing returns the parts of r that are not in the set.
func (s Ranges) Missing(r Range) Ranges {
	var gaps Ranges
	next := r.First
	for _, have := range s[s.firstEndingAtOrAfter(r.First):] {
		if have.First > r.Last {
			break
		}
		if have.First > next {
			gaps = append(gaps, Range{next, have.First - 1})
		}
		next = have.Last + 1
	}
	if next <= r.Last {
		gaps = append(gaps, Range{next, r.Last})
	}
	return gaps
}

// Count returns how many numbers the set has.
func (s Ranges) Count() uint64 {
	var n uint64
	for _, r := range s {
		n += r.Count()
	}
	return n
}

// Clone returns a copy that shares no memory.
func (s Ranges) Clone() Ranges { return slices.Clone(s) }

// UnmarshalJSON reads a list of ranges in any order and form.
func (s *Ranges) UnmarshalJSON(data []byte) error {
	var list []Range
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	sort.Slice(list, func(i, j int) bool { return list[i].First < list[j].First })
	*s = nil
	for _, r := range list {
		s.Add(r)
	}
	return nil
}

func (s Ranges) firstEndingAtOrAfter(n uint64) int {
	return sort.Search(len(s), func(i int) bool { return s[i].Last >= n })
}
