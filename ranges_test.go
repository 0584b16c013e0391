package touchline_test

import (
	"encoding/json"
	"flag"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"touchline"
)

var seedFlag = flag.Int64("seed", 0, "seed of the random tests; 0 draws one")

// randomOf returns a source whose seed is printed, so that -seed repeats it.
func randomOf(t *testing.T) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("go test -run '^%s$' -seed %d", t.Name(), seed)
	return rand.New(rand.NewSource(seed))
}

// checkRanges compares got with a model, number by number up to limit.
func checkRanges(t *testing.T, got touchline.Ranges, model map[uint64]bool, limit uint64) {
	t.Helper()
	for i, r := range got {
		if !r.Valid() {
			t.Fatalf("range %v of %v is invalid", r, got)
		}
		if i > 0 && got[i-1].Last+1 >= r.First {
			t.Fatalf("%v is not sorted, disjoint and apart", got)
		}
	}
	if got.Count() != uint64(len(model)) {
		t.Fatalf("%v has %d numbers: want %d", got, got.Count(), len(model))
	}
	for n := uint64(1); n <= limit; n++ {
		if got.Contains(touchline.Range{First: n, Last: n}) != model[n] {
			t.Fatalf("%v: Contains(%d) is %v", got, n, !model[n])
		}
	}
}

func TestRanges_AreASetOfNumbers(t *testing.T) {
	r := randomOf(t)
	const limit = 80
	draw := func() touchline.Range {
		first := 1 + uint64(r.Intn(limit-1))
		return touchline.Range{First: first, Last: min(limit, first+uint64(r.Intn(1+r.Intn(15))))}
	}
	for range 300 {
		var set touchline.Ranges
		model := map[uint64]bool{}
		for range r.Intn(30) {
			add := draw()
			set.Add(add)
			for n := add.First; n <= add.Last; n++ {
				model[n] = true
			}
			checkRanges(t, set, model, limit)
		}
		for range 30 {
			checkQuestions(t, set, model, draw())
		}
	}
}

// checkQuestions asks everything that can be asked about a range.
func checkQuestions(t *testing.T, set touchline.Ranges, model map[uint64]bool, ask touchline.Range) {
	t.Helper()
	all, any := true, false
	missing := map[uint64]bool{}
	for n := ask.First; n <= ask.Last; n++ {
		all, any = all && model[n], any || model[n]
		if !model[n] {
			missing[n] = true
		}
	}
	if set.Contains(ask) != all {
		t.Fatalf("%v: Contains(%v) is %v", set, ask, !all)
	}
	if set.Overlaps(ask) != any {
		t.Fatalf("%v: Overlaps(%v) is %v", set, ask, !any)
	}
	gaps := set.Missing(ask)
	checkRanges(t, gaps, missing, ask.Last+1)
	whole := set.Clone()
	whole.AddAll(gaps)
	if !whole.Contains(ask) {
		t.Fatalf("%v with what is missing of %v is %v", set, ask, whole)
	}
}

func TestRanges_EqualSetsAreEqualSlices(t *testing.T) {
	r := randomOf(t)
	for range 200 {
		parts := make([]touchline.Range, 1+r.Intn(20))
		for i := range parts {
			first := 1 + uint64(r.Intn(60))
			parts[i] = touchline.Range{First: first, Last: first + uint64(r.Intn(6))}
		}
		var a, b touchline.Ranges
		a.AddAll(parts)
		r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		b.AddAll(parts)
		if !slices.Equal(a, b) {
			t.Fatalf("%v added in another order: %v and %v", parts, a, b)
		}
	}
}

func TestRanges_TouchTheirBounds(t *testing.T) {
	var set touchline.Ranges
	set.Add(touchline.Range{First: touchline.MaxSeq, Last: touchline.MaxSeq})
	set.Add(touchline.Range{First: 1, Last: 1})
	set.Add(touchline.Range{First: 2, Last: touchline.MaxSeq - 1})
	if want := (touchline.Ranges{{First: 1, Last: touchline.MaxSeq}}); !slices.Equal(set, want) {
		t.Errorf("got %v, want %v", set, want)
	}
	var none touchline.Ranges
	one := touchline.Range{First: 1, Last: 1}
	if none.Contains(one) || none.Overlaps(one) || none.Count() != 0 || !slices.Equal(none.Missing(one), touchline.Ranges{one}) {
		t.Error("the empty set is not empty")
	}
}

func TestRanges_CloneSharesNothing(t *testing.T) {
	set := touchline.Ranges{{First: 1, Last: 5}}
	other := set.Clone()
	other.Add(touchline.Range{First: 6, Last: 7})
	if set[0].Last != 5 {
		t.Errorf("got %v", set)
	}
}

func TestRanges_AddRefusesWhatIsNoRange(t *testing.T) {
	for _, r := range []touchline.Range{{}, {First: 0, Last: 1}, {First: 2, Last: 1}, {First: 1, Last: touchline.MaxSeq + 1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v was added", r)
				}
			}()
			var set touchline.Ranges
			set.Add(r)
		}()
	}
}

func TestRanges_JSON(t *testing.T) {
	set := touchline.Ranges{{First: 1, Last: 5}, {First: 7, Last: touchline.MaxSeq}}
	data, err := json.Marshal(set)
	if err != nil || string(data) != `[[1,5],[7,9007199254740991]]` {
		t.Fatalf("got %s, %v", data, err)
	}
	for in, want := range map[string]touchline.Ranges{
		string(data):                set,
		`[]`:                        nil,
		`null`:                      nil,
		`[[7,9],[1,2],[3,3],[8,8]]`: {{First: 1, Last: 3}, {First: 7, Last: 9}},
		`[[1,100],[2,3],[5,6]]`:     {{First: 1, Last: 100}},
	} {
		got := touchline.Ranges{{First: 1000, Last: 1001}} // replaced
		if err := json.Unmarshal([]byte(in), &got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v, %v: want %v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		`[[1]]`:                  "1 numbers",
		`[[1,2,3]]`:              "3 numbers",
		`[[0,1]]`:                "1 <= first",
		`[[2,1]]`:                "first <= last",
		`[[1,9007199254740992]]`: "2^53",
		`[[-1,2]]`:               "range",
		`[[1.5,2]]`:              "range",
		`[["1","2"]]`:            "range",
		`[null]`:                 "0 numbers",
		`{}`:                     "cannot unmarshal",
		`7`:                      "cannot unmarshal",
	} {
		var got touchline.Ranges
		if err := json.Unmarshal([]byte(in), &got); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, %v: want …%s…", in, got, err, want)
		}
	}
}
