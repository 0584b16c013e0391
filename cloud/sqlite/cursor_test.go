package sqlite

import (
	"bytes"
	"slices"
	"testing"

	"touchline"
)

func TestRanges_ComeBackAsTheyWere(t *testing.T) {
	for _, ranges := range []touchline.Ranges{
		nil,
		{{First: 1, Last: 1}},
		{{First: 1, Last: touchline.MaxSeq}},
		{{First: touchline.MaxSeq, Last: touchline.MaxSeq}},
		{{First: 1, Last: 5}, {First: 7, Last: 7}, {First: 1 << 40, Last: 1 << 50}},
	} {
		got, err := parseRanges(appendRanges(nil, ranges))
		if err != nil || !slices.Equal(got, ranges) {
			t.Errorf("%v came back as %v, %v", ranges, got, err)
		}
	}
}

// Whatever is in the file: an error, or ranges that are a proper set and are
// written the same way again.
func FuzzParseRanges(f *testing.F) {
	for _, seed := range [][]byte{
		{}, {1, 0}, {0, 0}, {1, 0, 1, 0}, {1, 0, 2, 0}, {1}, {0x80}, {0x81, 0x00, 0x00},
		appendRanges(nil, touchline.Ranges{{First: 1, Last: touchline.MaxSeq}}),
		append(appendRanges(nil, touchline.Ranges{{First: 1, Last: touchline.MaxSeq}}), 2, 0),
		bytes.Repeat([]byte{0xff}, 10), append(bytes.Repeat([]byte{0xff}, 9), 1, 5),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ranges, err := parseRanges(data)
		if err != nil {
			return
		}
		var set touchline.Ranges
		for _, r := range ranges {
			if !r.Valid() {
				t.Fatalf("%x has the range %v", data, r)
			}
			set.Add(r)
		}
		if !slices.Equal(set, ranges) {
			t.Fatalf("%x reads as %v, which is no set", data, ranges)
		}
		if again, err := parseRanges(appendRanges(nil, ranges)); err != nil || !slices.Equal(again, ranges) {
			t.Fatalf("%v came back as %v, %v", ranges, again, err)
		}
	})
}

// The cache stays within its limits, drops what was used least recently, and
// adds up.
func TestCursorCache_StaysWithinItsLimits(t *testing.T) {
	c := newCursorCache()
	var first, second touchline.Epoch
	for i := range maxCursors + 100 {
		cur := &cursor{epoch: touchline.NewEpoch()}
		c.cursors[cur.epoch] = c.recent.PushFront(cur)
		c.add(cur, touchline.Range{First: 1, Last: 2})
		switch i {
		case 0:
			first = cur.epoch
		case 1:
			second = cur.epoch
		case 2:
			c.recent.MoveToFront(c.cursors[first])
		}
		c.trim()
	}
	if len(c.cursors) != maxCursors || c.recent.Len() != maxCursors || c.ranges != maxCursors {
		t.Fatalf("%d cursors, %d in the list, %d ranges: want %d of each", len(c.cursors), c.recent.Len(), c.ranges, maxCursors)
	}
	if c.cursors[second] != nil {
		t.Fatal("the cursor used least recently is still there")
	}
	large := &cursor{epoch: touchline.NewEpoch()}
	c.cursors[large.epoch] = c.recent.PushFront(large)
	for i := range uint64(maxCachedRanges) {
		c.add(large, touchline.Range{First: 1 + 2*i, Last: 1 + 2*i})
	}
	c.trim()
	if len(c.cursors) != 1 || c.ranges != maxCachedRanges {
		t.Fatalf("%d cursors with %d ranges: want the large one alone with %d", len(c.cursors), c.ranges, maxCachedRanges)
	}
	c.add(large, touchline.Range{First: 1, Last: touchline.MaxSeq})
	if c.ranges != 1 {
		t.Fatalf("%d ranges after they became one", c.ranges)
	}
}
