package buffer

import (
	"errors"
	"slices"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// keepOptions keeps what is stored for an hour of a clock that tests move.
func keepOptions(t testing.TB) (Options, *testClock) {
	opts, clock := testOptions(t), new(testClock)
	opts.KeepStored, opts.clock, opts.tick = time.Hour, clock.elapsed, time.Hour
	return opts, clock
}

// storeAll lets the cloud store all that is there.
func storeAll(t testing.TB, b *Buffer) []wire.Block {
	t.Helper()
	blocks := readAll(t, b)
	if err := b.Ack(ackOf(blocks...), nil); err != nil {
		t.Fatal(err)
	}
	evict(t, b)
	return blocks
}

// wantKept wants so many blocks that wait, and so many that are kept.
func wantKept(t testing.TB, b *Buffer, waiting, kept int64) {
	t.Helper()
	s := b.Stats()
	if s.Blocks != waiting || s.KeptBlocks != kept {
		t.Errorf("%d blocks wait and %d are kept, want %d and %d", s.Blocks, s.KeptBlocks, waiting, kept)
	}
	if n := int64(len(readAll(t, b))); n != waiting {
		t.Errorf("%d blocks are read, want %d", n, waiting)
	}
}

func TestKeep_StoredIsKeptAndDoesNotWait(t *testing.T) {
	opts, clock := keepOptions(t)
	b := startBuffer(t, opts)
	for i := range 10 {
		mustAppend(t, b, numbered(10*i, 10))
	}
	storeAll(t, b)
	mustAppend(t, b, numbered(100, 10))
	wantKept(t, b, 1, 10)
	held, lost := b.Held()
	if len(held) != 1 || held[0].Oldest != 1 || held[0].Next != 111 || len(lost) > 0 {
		t.Errorf("hello would say %+v %+v, want what is kept as well", held, lost)
	}
	clock.advance(59 * time.Minute)
	evict(t, b)
	wantKept(t, b, 1, 10)
	clock.advance(4 * time.Minute) // a step later
	evict(t, b)
	wantKept(t, b, 1, 0)
	if s := b.Stats(); s.Acked != 100 || s.LostRecords != 0 || s.Evicted["max_age"] != 0 {
		t.Errorf("%+v", s)
	}
}

func TestKeep_MarksSurviveReopening(t *testing.T) {
	opts, clock := keepOptions(t)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 10))
	mustAppend(t, b, numbered(10, 10))
	storeAll(t, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startBuffer(t, opts)
	mustAppend(t, b, numbered(20, 10))
	wantKept(t, b, 1, 2)
	clock.advance(70 * time.Minute)
	evict(t, b)
	wantKept(t, b, 1, 0)
}

// What is stored goes first, and what waits only when that is gone.
func TestKeep_IsGivenUpFirst(t *testing.T) {
	for _, policy := range []Policy{EvictOldest, Refuse} {
		t.Run(policy.String(), func(t *testing.T) {
			opts, _ := keepOptions(t)
			opts.MaxBytes, opts.WhenFull = MinMaxBytes, policy
			b := startBuffer(t, opts)
			mustAppend(t, b, bulky(100_000)) // the oldest, and it waits
			first := readAll(t, b)
			for range 8 {
				mustAppend(t, b, bulky(100_000))
			}
			blocks := readAll(t, b)[1:]
			if err := b.Ack(ackOf(blocks...), nil); err != nil {
				t.Fatal(err)
			}
			evict(t, b)
			wantKept(t, b, 1, 8)
			for range 6 {
				mustAppend(t, b, bulky(100_000))
			}
			evict(t, b)
			s := b.Stats()
			if s.Blocks != 7 || s.LostRecords != 0 || s.State != StateOK || s.Bytes+s.KeptBytes > opts.MaxBytes {
				t.Errorf("%d blocks wait, %d losses, state %s, %d bytes: want 7, none, ok, within the limit", s.Blocks, s.LostRecords, s.State, s.Bytes+s.KeptBytes)
			}
			if now := readAll(t, b); now[0].First != first[0].First {
				t.Errorf("the oldest block that waits is %d, want %d", now[0].First, first[0].First)
			}
		})
	}
}

// A cloud that was restored from a backup lacks what it had called stored.
func TestReconcile_ReturnsWhatTheCloudLacks(t *testing.T) {
	opts, _ := keepOptions(t)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 30))
	storeAll(t, b)
	old := b.epoch
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startBuffer(t, opts)
	for i := range 10 {
		mustAppend(t, b, numbered(30+10*i, 10))
	}
	blocks := storeAll(t, b)
	wantKept(t, b, 0, 11)
	all := touchline.Ranges{{First: 1, Last: 100}}
	if err := b.Reconcile([]wire.EpochRanges{{Epoch: b.epoch, Ranges: all}}); err != nil { // as it was, of one epoch
		t.Fatal(err)
	}
	evict(t, b)
	wantKept(t, b, 0, 11)
	// Half a block counts as none; of the other epoch there is nothing.
	err := b.Reconcile([]wire.EpochRanges{{Epoch: b.epoch, Ranges: touchline.Ranges{{First: 1, Last: 45}, {First: 71, Last: 90}}}, {Epoch: old}})
	if err != nil {
		t.Fatal(err)
	}
	want := []uint64{1, 41, 51, 61, 91}
	firsts := func() (got []uint64) {
		for _, block := range readAll(t, b) {
			got = append(got, block.First)
		}
		return got
	}
	if got := firsts(); !slices.Equal(got, want) {
		t.Errorf("before the marks are taken back %v are read, want %v", got, want)
	}
	evict(t, b)
	if got := firsts(); !slices.Equal(got, want) {
		t.Errorf("%v are read, want %v", got, want)
	}
	wantKept(t, b, 5, 6)
	if err := b.Ack(append(ackOf(blocks...), wire.EpochRanges{Epoch: old, Ranges: touchline.Ranges{{First: 1, Last: 30}}}), nil); err != nil {
		t.Fatal(err)
	}
	evict(t, b)
	wantKept(t, b, 0, 11)
}

// Merged into one run or not, marks cover what was put in.
func TestMarks_CoverWhatWasAdded(t *testing.T) {
	var m marks
	for _, k := range []mark{{first: 11, last: 20, at: 1}, {first: 31, last: 40, at: 1}, {first: 21, last: 30, at: 1}, {first: 1, last: 10, at: 2}} {
		k.totals = totals{1, 10, 100}
		m.add(k)
	}
	want := marks{{1, 10, 2, totals{1, 10, 100}}, {11, 40, 1, totals{3, 30, 300}}}
	if !slices.Equal(m, want) {
		t.Fatalf("%+v, want %+v", m, want)
	}
	if end, ok := m.end(5, 35); !ok || end != 40 {
		t.Errorf("5 to 35 end at %d (%v), want 40", end, ok)
	}
	if _, ok := m.end(35, 41); ok {
		t.Error("41 is not marked")
	}
	var gaps [][2]int64
	m.gaps(-5, 50, func(first, last int64) bool { gaps = append(gaps, [2]int64{first, last}); return true })
	if !slices.Equal(gaps, [][2]int64{{-5, 0}, {41, 50}}) {
		t.Errorf("gaps are %v", gaps)
	}
	if m.oldest() != 1 {
		t.Errorf("the oldest is %d, want 1", m.oldest())
	}
}

// An acknowledgement may be on its way to the disk while the cloud, restored
// from a backup, says that it lacks what was acknowledged.
func TestReconcile_MeetsAcksOnTheirWayToTheDisk(t *testing.T) {
	for name, fails := range map[string]bool{"the commit succeeds": false, "the commit fails": true} {
		t.Run(name, func(t *testing.T) {
			opts, _ := keepOptions(t)
			var b *Buffer
			now := false
			opts.fault = func(stage string, err error) error {
				if !now || stage != "commit" {
					return err
				}
				now = false
				if err := b.Reconcile([]wire.EpochRanges{{Epoch: b.epoch, Ranges: touchline.Ranges{{First: 1, Last: 10}}}}); err != nil {
					t.Error(err)
				}
				if fails {
					return errors.New("the sync failed") // and what became of it can't be told: no block shows it
				}
				return err
			}
			b = openBuffer(t, opts)
			for i := range 3 {
				if err := b.AppendAsync(t.Context(), touchline.Arrival{Samples: numbered(10*i, 10)}, nil); err != nil {
					t.Fatal(err)
				}
				b.round(false)
			}
			if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
				t.Fatal(err)
			}
			now = true
			b.round(true)
			for range 3 { // and it stays so when all is on the disk
				b.round(true)
				var got []uint64
				for _, block := range readAll(t, b) {
					got = append(got, block.First)
				}
				if want := []uint64{11, 21}; !slices.Equal(got, want) {
					t.Fatalf("the cloud gets the blocks at %v, want what it lacks: %v", got, want)
				}
			}
		})
	}
}
