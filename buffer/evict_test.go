package buffer

import (
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// testClock is a monotonic clock that stands still until it is moved.
type testClock struct{ now atomic.Int64 }

func (c *testClock) elapsed() time.Duration   { return time.Duration(c.now.Load()) }
func (c *testClock) advance(by time.Duration) { c.now.Add(int64(by)) }

func evict(t testing.TB, b *Buffer) {
	t.Helper()
	if err := b.Evict(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestEvict_MaxBytesDeletesTheOldestAndRecordsIt(t *testing.T) {
	opts := testOptions(t)
	opts.MaxBytes = MinMaxBytes
	b := startBuffer(t, opts)
	const blocks = 30
	for range blocks {
		mustAppend(t, b, bulky(100_000))
		if held := b.Stats().Bytes; held > opts.MaxBytes {
			t.Fatalf("%d bytes are held, max_bytes is %d", held, opts.MaxBytes)
		}
	}
	left := readAll(t, b)
	wantNumbers(t, left, blocks)
	if len(left) < 8 {
		t.Errorf("%d blocks of 100,000 bytes are left, want about as many as fit", len(left))
	}
	held, lost := b.Held()
	if len(lost) != 1 {
		t.Fatalf("%d lost records, want one that grew: %v", len(lost), lost)
	}
	want := wire.Lost{ID: lost[0].ID, Epoch: b.epoch, Ranges: touchline.Ranges{{First: 1, Last: left[0].First - 1}}, Cause: "max_bytes", MinTime: 1, MaxTime: 1}
	if !equalLost(lost[0], want) {
		t.Errorf("lost %+v, want %+v", lost[0], want)
	}
	if held[0].Oldest != left[0].First {
		t.Errorf("held from %d, want %d", held[0].Oldest, left[0].First)
	}
	if s := b.Stats(); s.Evicted["max_bytes"] != blocks-uint64(len(left)) || s.Samples != int64(len(left)) {
		t.Errorf("stats %+v", s)
	}
}

func equalLost(a, b wire.Lost) bool {
	return a.ID == b.ID && a.Epoch == b.Epoch && a.Cause == b.Cause && a.MinTime == b.MinTime && a.MaxTime == b.MaxTime && slices.Equal(a.Ranges, b.Ranges)
}

func TestEvict_TakesWhatIsAcknowledgedFirst(t *testing.T) {
	opts := testOptions(t)
	opts.MaxBytes = MinMaxBytes
	opts.tick = time.Hour // so that the acknowledgement waits
	b := startBuffer(t, opts)
	for range 9 {
		mustAppend(t, b, bulky(100_000))
	}
	if err := b.Ack(ackOf(readAll(t, b)[4:8]...), nil); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, b, bulky(100_000))
	mustAppend(t, b, bulky(100_000))
	if _, lost := b.Held(); len(lost) != 0 {
		t.Errorf("lost %v though acknowledged blocks made room", lost)
	}
	if s := b.Stats(); s.Acked != 4 || s.Blocks != 7 {
		t.Errorf("stats %+v", s)
	}
}

func TestEvict_LostRecords(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	opts.MaxAge = time.Minute
	b := startBuffer(t, opts)
	lose := func(from int) { // four blocks of ten, of which the third is acknowledged
		t.Helper()
		for i := range 4 {
			mustAppend(t, b, numbered(from+10*i, 10))
		}
		if err := b.Ack(ackOf(readAll(t, b)[2]), nil); err != nil {
			t.Fatal(err)
		}
		evict(t, b)
		clock.advance(2 * time.Minute)
		evict(t, b)
	}
	lose(0)
	lose(40)
	base := numbered(0, 1)[0].Time
	_, lost := b.Held()
	if len(lost) != 1 {
		t.Fatalf("%d records, want one: nobody saw it before it grew: %v", len(lost), lost)
	}
	want := wire.Lost{ID: lost[0].ID, Epoch: b.epoch, Cause: "max_age", MinTime: base, MaxTime: base + int64(79*time.Millisecond),
		Ranges: touchline.Ranges{{First: 1, Last: 20}, {First: 31, Last: 60}, {First: 71, Last: 80}}}
	if !equalLost(lost[0], want) || want.ID == 0 || want.ID > touchline.MaxSeq {
		t.Fatalf("lost %+v, want %+v", lost[0], want)
	}
	lose(80) // the first was seen, and stays as it is
	_, lost = b.Held()
	if len(lost) != 2 || !equalLost(lost[0], want) || lost[1].Ranges[0].First != 81 {
		t.Fatalf("lost %+v, want the first as it was and another", lost)
	}
	if s := b.Stats(); s.LostRecords != 2 || s.Evicted["max_age"] != 90 || s.Acked != 30 {
		t.Errorf("stats %+v", s)
	}
	second := lost[1]
	b.Close() // unconfirmed ones are there after reopening
	b = startBuffer(t, opts)
	if _, lost := b.Held(); len(lost) != 2 || !equalLost(lost[0], want) || !equalLost(lost[1], second) {
		t.Fatalf("after reopening: %+v", lost)
	}
	for range 2 { // a repeat is no error
		if err := b.Ack(nil, []uint64{want.ID, 99}); err != nil {
			t.Fatal(err)
		}
		if _, lost := b.Held(); len(lost) != 1 || !equalLost(lost[0], second) {
			t.Fatalf("after it was confirmed: %+v", lost)
		}
		evict(t, b)
	}
	b.Close()
	b = openBuffer(t, opts)
	if _, lost := b.Held(); len(lost) != 1 || !equalLost(lost[0], second) {
		t.Fatalf("after it was confirmed, and reopening: %+v", lost)
	}
}

func TestEvict_LostRecordsStayBounded(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	opts.MaxAge = time.Minute
	b := startBuffer(t, opts)
	for i := range maxAnnounced + 50 {
		mustAppend(t, b, numbered(i, 1))
		clock.advance(2 * time.Minute)
		evict(t, b)
		b.Held() // as an uplink that tries to connect all the time would
	}
	_, lost := b.Held()
	if len(lost) != maxAnnounced {
		t.Fatalf("%d records are announced, want %d", len(lost), maxAnnounced)
	}
	if s := b.Stats(); s.LostRecords != maxAnnounced+1 {
		t.Errorf("%d records, want one more, which grows", s.LostRecords)
	}
	var ids []uint64
	for _, l := range lost {
		ids = append(ids, l.ID)
	}
	if err := b.Ack(nil, ids); err != nil {
		t.Fatal(err)
	}
	_, rest := b.Held()
	if len(rest) != 1 || rest[0].Ranges.Count() != 50 {
		t.Errorf("then %v, want the rest in one record", rest)
	}
}

func TestHeld_AnnouncesNoRecordThatIsChanging(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	opts.MaxAge = time.Minute
	opts.tick = time.Hour
	b := openBuffer(t, opts)
	hold := newGate("commit")
	runBuffer(t, b)
	lose := func(n int) <-chan error {
		t.Helper()
		mustAppend(t, b, numbered(n, 1))
		clock.advance(2 * time.Minute)
		done := make(chan error, 1)
		b.mu.Lock() // Run is idle, and looks at this when the next commit comes
		if n == 1 {
			b.opts.fault = hold.fault
		}
		b.mu.Unlock()
		go func() { done <- b.Evict(testContext(t)) }()
		return done
	}
	if err := <-lose(0); err != nil {
		t.Fatal(err)
	}
	second := lose(1)
	<-hold.reached // the record grows in the file, and has not grown in memory
	if _, lost := b.Held(); len(lost) != 0 {
		t.Errorf("announced %v: once seen, it must not grow", lost)
	}
	hold.pass <- nil
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if _, lost := b.Held(); len(lost) != 1 || lost[0].Ranges.Count() != 2 {
		t.Errorf("then announced %v", lost)
	}
}

// What is counted when the file is opened is compared with what it has when
// the test ends.
func TestOpen_CountsFromTheTally(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	b := startBuffer(t, opts)
	for i := range 4 {
		mustAppend(t, b, numbered(10*i, 10))
	}
	clock.advance(2 * tallyInterval)
	evict(t, b) // writes the tally
	mustAppend(t, b, numbered(40, 10))
	if err := b.Ack(ackOf(readAll(t, b)[1:3]...), nil); err != nil {
		t.Fatal(err)
	}
	evict(t, b)
	mustAppend(t, b, numbered(50, 10))
	want := b.Stats()
	b.Close()
	got := openBuffer(t, opts).Stats()
	if got.Samples != 40 || got.Samples != want.Samples || got.Blocks != want.Blocks || got.Bytes != want.Bytes {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

func TestEvict_MaxAgeCountsRunningTimeAcrossOpenings(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	opts.MaxAge = time.Hour
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 1))
	clock.advance(20 * time.Minute)
	mustAppend(t, b, numbered(1, 1))
	if age := b.Stats().OldestAge; age != 20*time.Minute {
		t.Errorf("age %s", age)
	}
	b.Close()
	clock.advance(1000 * time.Hour) // switched off
	b = startBuffer(t, opts)
	if age := b.Stats().OldestAge; age != 20*time.Minute {
		t.Errorf("age after a long time off is %s, want only the time for which it ran", age)
	}
	clock.advance(30 * time.Minute)
	evict(t, b) // nothing is appended: the time is kept all the same
	b.Close()
	b = startBuffer(t, opts)
	if age := b.Stats().OldestAge; age != 50*time.Minute {
		t.Errorf("age %s, want what was kept", age)
	}
	clock.advance(11 * time.Minute)
	evict(t, b)
	wantValues(t, b, []int{1})
	if age := b.Stats().OldestAge; age != 41*time.Minute {
		t.Errorf("age %s, want that of the block that is left", age)
	}
	clock.advance(time.Hour)
	evict(t, b)
	if s := b.Stats(); s.Blocks != 0 || s.OldestAge != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestEvict_HappensWithoutAppends(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	opts.MaxAge = time.Minute
	opts.tick = time.Millisecond
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 1))
	clock.advance(2 * time.Minute)
	waitUntil(t, func() bool { return b.Stats().Blocks == 0 })
}

func TestEvict_FreeReserve(t *testing.T) {
	opts := testOptions(t)
	clock := new(testClock)
	opts.clock = clock.elapsed
	var free atomic.Int64
	free.Store(100 << 20)
	opts.free = func(string) (int64, error) { return free.Load(), nil }
	opts.FreeReserve = 64 << 20
	b := startBuffer(t, opts)
	for range 50 {
		mustAppend(t, b, bulky(100_000))
	}
	if s := b.Stats(); s.Blocks != 50 {
		t.Fatalf("stats %+v", s)
	}
	free.Store(63 << 20) // 1 MiB is missing
	clock.advance(2 * freeInterval)
	evict(t, b)
	s := b.Stats()
	if n := s.Evicted["free_reserve"]; n < 10 || n > 13 {
		t.Errorf("%d blocks of 100,000 bytes were evicted for 1 MiB", n)
	}
	clock.advance(2 * freeInterval)
	evict(t, b) // what is unused in the file counts as free
	if again := b.Stats(); again.Blocks != s.Blocks {
		t.Errorf("then %d more", s.Blocks-again.Blocks)
	}
	if _, lost := b.Held(); len(lost) != 1 || lost[0].Cause != "free_reserve" {
		t.Errorf("lost %v", lost)
	}
}

func TestRefuse_MaxBytes(t *testing.T) {
	opts := testOptions(t)
	opts.WhenFull = Refuse
	opts.MaxBytes = MinMaxBytes
	b := startBuffer(t, opts)
	var err error
	appended := 0
	for ; err == nil && appended < 100; appended++ {
		err = b.Append(testContext(t), bulky(100_000))
	}
	var full *FullError
	if !errors.As(err, &full) || !errors.Is(err, ErrFull) || full.RetryAfter() <= 0 {
		t.Fatalf("after %d blocks of 100,000 bytes: %v", appended, err)
	}
	if s := b.Stats(); s.State != StateFull || s.Bytes > opts.MaxBytes+101_000 {
		t.Errorf("stats %+v", s)
	}
	if _, lost := b.Held(); len(lost) != 0 {
		t.Errorf("lost %v", lost)
	}
	if err := b.Ack(ackOf(readAll(t, b)[0]), nil); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return b.Stats().State == StateOK })
	mustAppend(t, b, numbered(0, 1))
}

func TestRefuse_FreeReserve(t *testing.T) {
	opts := testOptions(t)
	opts.WhenFull = Refuse
	opts.tick = time.Millisecond
	clock := new(testClock)
	opts.clock = clock.elapsed
	var free atomic.Int64
	opts.free = func(string) (int64, error) { return free.Load(), nil }
	opts.FreeReserve = 64 << 20
	b := startBuffer(t, opts)
	waitUntil(t, func() bool { return b.Stats().State == StateFull })
	if err := b.Append(testContext(t), numbered(0, 1)); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v", err)
	}
	free.Store(100 << 20)
	clock.advance(2 * freeInterval)
	waitUntil(t, func() bool { return b.Stats().State == StateOK })
	mustAppend(t, b, numbered(0, 1))
}

func TestRun_GivesSpaceBack(t *testing.T) {
	opts := testOptions(t)
	opts.tick = time.Millisecond
	b := startBuffer(t, opts)
	for range 300 {
		mustAppend(t, b, bulky(100_000)) // 30 MB
	}
	pages := func() int64 {
		b.readers.RLock()
		defer b.readers.RUnlock()
		var n int64
		if err := b.store.readDB.QueryRow("PRAGMA page_count").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := pages(); n < 30_000_000/pageBytes {
		t.Fatalf("%d pages", n)
	}
	if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return pages() <= keepFreePages+100 })
	mustAppend(t, b, numbered(0, 1))
}

func TestRun_KeepsTheLogShort(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	for range 600 {
		mustAppend(t, b, bulky(100_000)) // 60 MB
		info, err := os.Stat(b.store.path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		if limit := int64(2 * int64(b.logLimit) * pageBytes); info.Size() > limit {
			t.Fatalf("the log has %d bytes, want at most %d", info.Size(), limit)
		}
	}
}

func TestParsePolicy(t *testing.T) {
	for _, p := range []Policy{EvictOldest, Refuse} {
		if got, err := ParsePolicy(p.String()); err != nil || got != p {
			t.Errorf("%s: %v (%v)", p, got, err)
		}
	}
	if _, err := ParsePolicy("drop_newest"); err == nil {
		t.Error("an unknown policy was taken")
	}
}
