package buffer

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"sync"
	"testing"

	"touchline/internal/faultvfs"
)

// long says whether the long forms of the tests are to run.
func long() bool { return os.Getenv("TOUCHLINE_TEST_LONG") != "" }

// testSeed returns the seed of the random tests, from TOUCHLINE_TEST_SEED or
// always the same, and prints it. round tells apart what one test repeats.
func testSeed(t testing.TB, round int) uint64 {
	t.Helper()
	seed := uint64(20261122)
	if text := os.Getenv("TOUCHLINE_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TOUCHLINE_TEST_SEED: %v", err)
		}
	}
	seed += uint64(round)
	t.Logf("seed %d (TOUCHLINE_TEST_SEED=%d repeats it)", seed, seed)
	return seed
}

// A cut is one crash point: the power goes when the log is so long, and this
// becomes of what was not synced.
type cut struct {
	position int
	mode     faultvfs.Mode
	index    int // of the cut, by which chance is drawn
}

// cuts returns crash points in order: each way to lose what was not synced
// just before and just after every sync, and one way between any two calls.
func cuts(r *faultvfs.Replay, seed uint64) []cut {
	var all []cut
	add := func(position int, mode faultvfs.Mode) {
		all = append(all, cut{position, mode, len(all)})
	}
	boundaries := r.Boundaries()
	random := rand.New(rand.NewPCG(seed, 1))
	for position := range r.Len() + 1 {
		if _, is := slices.BinarySearch(boundaries, position); !is {
			add(position, faultvfs.Mode(random.IntN(int(faultvfs.Modes))))
			continue
		}
		for mode := range faultvfs.Modes {
			add(position, mode)
		}
	}
	return all
}

// walked is what a walk found.
type walked struct {
	points   int // images that differ, or of which more was known
	broken   map[promise]int
	examples map[promise]string
}

func (w *walked) String() string {
	s := fmt.Sprintf("%d crash points, %d broken promises", w.points, w.total())
	for _, p := range slices.Sorted(maps.Keys(w.broken)) {
		s += fmt.Sprintf("; %s: %d times not (%s)", p, w.broken[p], w.examples[p])
	}
	return s
}

func (w *walked) total() int {
	n := 0
	for _, c := range w.broken {
		n += c
	}
	return n
}

// walk cuts the power at each point and examines what is left.
func (l *ledger) walk(t *testing.T, seed uint64, points []cut) *walked {
	t.Helper()
	result := &walked{broken: make(map[promise]int), examples: make(map[promise]string)}
	var mu sync.Mutex // covers result
	var all sync.WaitGroup
	facts := l.facts()
	sums := maphash.MakeSeed()
	workers := runtime.GOMAXPROCS(0)
	for i := range workers {
		mine := points[i*len(points)/workers : (i+1)*len(points)/workers]
		e, r := newExaminer(t, l), l.disk.Replay()
		all.Add(1)
		go func() {
			defer all.Done()
			type point struct {
				image uint64
				facts int
			}
			seen := make(map[point]bool)
			for _, c := range mine {
				r.Advance(c.position)
				image := r.Cut(c.mode, rand.New(rand.NewPCG(seed, uint64(c.index))))
				p := point{image.Sum(sums), sort.SearchInts(facts, c.position+1)}
				if seen[p] {
					continue
				}
				seen[p] = true
				err := image.Write(e.dir)
				if err == nil {
					err = e.examine(c.position)
				}
				mu.Lock()
				result.add(c, err)
				mu.Unlock()
			}
		}()
	}
	all.Wait()
	return result
}

func (w *walked) add(c cut, err error) {
	w.points++
	if err == nil {
		return
	}
	var f *breach
	if !errors.As(err, &f) {
		f = &breach{"the harness works", err.Error()}
	}
	w.broken[f.promise]++
	if w.examples[f.promise] == "" {
		w.examples[f.promise] = fmt.Sprintf("cut at %d, unsynced writes %s: %s", c.position, c.mode, f.what)
	}
}

// Invariants 1 to 7 of the design hold wherever the power is cut.
func TestPowerCut_LosesNothing(t *testing.T) {
	rounds, w := 1, workload{openings: 5, steps: 100}
	if long() {
		rounds = 20
	}
	points := 0
	for round := range rounds {
		seed := testSeed(t, round)
		l := w.record(t, seed)
		r := l.disk.Replay()
		writes, truncations, syncs := r.Count()
		result := l.walk(t, seed, cuts(r, seed))
		points += result.points
		t.Logf("MEASURED power cuts in the buffer (%s: %d writes, %d truncations, %d syncs; %d samples acknowledged, %d losses recorded, %d blocks merged, %d kept, %d times a full disk): %s",
			&w, writes, truncations, syncs, len(l.told), len(l.lost), l.merged, l.kept, l.filled, result)
		if result.total() > 0 {
			t.Errorf("%s", result)
		}
		if l.filled == 0 || l.merged == 0 || l.kept == 0 || len(l.lost) == 0 || len(l.acked) == 0 || truncations == 0 || len(l.epochs) != w.openings {
			t.Errorf("the workload filled the disk %d times, merged %d blocks, kept %d, evicted %d, acknowledged %d, truncated %d times, opened %d: want some of each", l.filled, l.merged, l.kept, len(l.lost), len(l.acked), truncations, len(l.epochs))
		}
	}
	if points < 2000 {
		t.Errorf("%d crash points, want 2,000", points)
	}
}

// The walk can fail: each of these loses what was acknowledged, or damages
// the file, and the walk says so.
func TestPowerCut_ControlsFail(t *testing.T) {
	for _, c := range []struct {
		workload
		breaks []promise // one of them at least
	}{
		{workload{openings: 2, steps: 30, synchronous: "NORMAL"}, []promise{promiseNothingLost}},
		{workload{openings: 2, steps: 30, synchronous: "OFF"}, []promise{promiseSound, promiseOpens}},
		{workload{openings: 2, steps: 30, early: true}, []promise{promiseNothingLost}},
	} {
		t.Run(c.workload.String(), func(t *testing.T) {
			seed := testSeed(t, 0)
			l := c.record(t, seed)
			all := cuts(l.disk.Replay(), seed)
			var some []cut // a third
			for i := 0; i < len(all); i += 3 {
				some = append(some, all[i])
			}
			result := l.walk(t, seed, some)
			t.Logf("MEASURED control (%s): %s", &c.workload, result)
			n := 0
			for _, p := range c.breaks {
				n += result.broken[p]
			}
			if n == 0 {
				t.Errorf("the walk found nothing of %q: it can't fail", c.breaks)
			}
		})
	}
}
