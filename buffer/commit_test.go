package buffer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// A gate holds commits at a stage until they are let through.
type gate struct {
	stage   string
	reached chan struct{} // one token each time the stage is reached
	pass    chan error    // what to return there; nil lets SQLite's own answer stand
}

func newGate(stage string) *gate {
	return &gate{stage: stage, reached: make(chan struct{}), pass: make(chan error)}
}

func (g *gate) fault(stage string, err error) error {
	if stage != g.stage {
		return err
	}
	g.reached <- struct{}{}
	if wrong := <-g.pass; wrong != nil {
		return wrong
	}
	return err
}

func TestAppendAsync_CommitsAsAGroup(t *testing.T) {
	opts := testOptions(t)
	hold := newGate("commit")
	opts.fault = hold.fault
	b := startBuffer(t, opts)
	var order []int // written by the commit goroutine alone, read when all are done
	var all sync.WaitGroup
	appendOne := func(n int) {
		all.Add(1)
		err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(n, 1)}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			order = append(order, n)
			all.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	appendOne(0)
	<-hold.reached
	const group = 500
	for n := 1; n <= group; n++ {
		appendOne(n)
	}
	hold.pass <- nil
	<-hold.reached
	hold.pass <- nil
	all.Wait()
	if s := b.Stats(); s.Commits != 2 || s.Appended != group+1 || s.Blocks != 2 {
		t.Errorf("%d commits of %d samples in %d blocks, want all %d that waited in one", s.Commits, s.Appended, s.Blocks, group)
	}
	if !slices.Equal(order, upTo(group+1)) {
		t.Errorf("answers came in the order %v…, want that of the appends", clip(order))
	}
	wantValues(t, b, upTo(group+1))
}

func TestAppendAsync_CopiesItsSlice(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	samples := numbered(0, 3)
	var done sync.WaitGroup
	done.Add(1)
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: samples}, func(error) { done.Done() }); err != nil {
		t.Fatal(err)
	}
	clear(samples)
	runBuffer(t, b)
	done.Wait()
	wantValues(t, b, upTo(3))
}

func TestAppend_SplitsWhatNoBlockHolds(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	// Larger than a block, and than the queue: it goes in alone.
	n := int(queueBytes/sampleBytes) + wire.MaxBlockSamples
	mustAppend(t, b, numbered(0, n))
	mustAppend(t, b, numbered(n, 1))
	blocks := readAll(t, b)
	wantDense(t, blocks)
	wantValues(t, b, upTo(n+1))
	if len(blocks) < 4 {
		t.Errorf("%d blocks", len(blocks))
	}
	if s := b.Stats(); s.Commits != 2 {
		t.Errorf("%d commits, want the large append in one", s.Commits)
	}
}

func TestAppend_RefusesSamplesThatFitNoBlock(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	long := strings.Repeat("x", touchline.MaxNameBytes+1)
	for name, s := range map[string]touchline.Sample{
		"value":  {Sensor: "s", Metric: "m", Value: touchline.TextValue(strings.Repeat("x", MaxValueBytes+1))},
		"sensor": {Sensor: long, Metric: "m"},
		"metric": {Sensor: "s", Metric: long},
		"unit":   {Sensor: "s", Metric: "m", Unit: long},
	} {
		if err := b.Append(testContext(t), append(numbered(0, 1), s)); !errors.Is(err, ErrSample) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustAppend(t, b, bulky(MaxValueBytes))
	if s := b.Stats(); s.Samples != 1 {
		t.Errorf("%d samples held, want only the largest that fits", s.Samples)
	}
}

// Append refuses what no block can hold. Should the encoder refuse more than
// that, only the append that has it fails.
func TestRun_FailsOnlyTheAppendThatCanNotBeEncoded(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	answers := make([]error, 5)
	var answered sync.WaitGroup
	for i := range answers {
		answered.Add(1)
		done := func(err error) { answers[i] = err; answered.Done() }
		if i == 2 {
			b.waiting.samples = append(b.waiting.samples, numbered(100, 1)[0], bulky(wire.MaxBlockBytes + 1)[0])
			b.waiting.entries = append(b.waiting.entries, entry{count: 2, done: done})
			continue
		}
		if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(i, 1)}, done); err != nil {
			t.Fatal(err)
		}
	}
	runBuffer(t, b)
	answered.Wait()
	for i, err := range answers {
		if (i == 2) != errors.Is(err, ErrSample) || i != 2 && err != nil {
			t.Errorf("append %d was answered %v", i, err)
		}
	}
	wantValues(t, b, []int{0, 1, 3, 4})
	wantDense(t, readAll(t, b))
}

func TestAppend_EmptyIsAnswered(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	mustAppend(t, b, nil)
	if s := b.Stats(); s.Commits != 0 || s.Blocks != 0 {
		t.Errorf("nothing took %d commits and %d blocks", s.Commits, s.Blocks)
	}
}

func TestAppendAsync_BlocksAtTheLimitOfTheQueue(t *testing.T) {
	b := openBuffer(t, testOptions(t)) // nobody commits yet
	half := numbered(0, int(queueBytes/2/sampleBytes))
	var answered sync.WaitGroup
	done := func(error) { answered.Done() }
	for n := int64(0); n+int64(len(half))*sampleBytes+entryBytes <= queueBytes; n += int64(len(half))*sampleBytes + entryBytes {
		answered.Add(1)
		if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: half}, done); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	blocked := make(chan error)
	go func() {
		blocked <- b.AppendAsync(ctx, touchline.Arrival{Samples: half}, func(error) { t.Error("answered though it was refused") })
	}()
	cancel()
	if err := <-blocked; !errors.Is(err, context.Canceled) {
		t.Fatalf("an append at the limit returned %v", err)
	}
	answered.Add(1)
	go func() { blocked <- b.AppendAsync(context.Background(), touchline.Arrival{Samples: half}, done) }()
	runBuffer(t, b)
	if err := <-blocked; err != nil {
		t.Fatal(err)
	}
	answered.Wait()
	b.Close()
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: half}, done); !errors.Is(err, ErrClosed) {
		t.Fatalf("after close: %v", err)
	}
}

func TestAppendAsync_WakesWhenTheBufferCloses(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(0, int(queueBytes/sampleBytes)+1)}, nil); err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error)
	go func() {
		blocked <- b.AppendAsync(context.Background(), touchline.Arrival{Samples: numbered(0, 1)}, nil)
	}()
	b.Close()
	if err := <-blocked; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestAppend_ContextEndsTheWait(t *testing.T) {
	b := openBuffer(t, testOptions(t)) // nobody commits
	ctx, cancel := context.WithCancel(context.Background())
	waiting := make(chan error)
	go func() { waiting <- b.Append(ctx, numbered(0, 1)) }()
	go func() { waiting <- b.Evict(ctx) }()
	cancel()
	for range 2 {
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if err := b.Append(ctx, numbered(0, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestRun_KeepsTheCommitInterval(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	b.opts.CommitInterval = 24 * time.Hour // longer than any stall of the machine
	runBuffer(t, b)
	mustAppend(t, b, numbered(0, 1)) // an idle buffer commits at once
	const later = 20
	var answered sync.WaitGroup
	answered.Add(later)
	for n := range later {
		if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(1+n, 1)}, func(error) { answered.Done() }); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Evict(testContext(t)); err != nil { // does not wait for the interval
		t.Fatal(err)
	}
	answered.Wait()
	if s := b.Stats(); s.Commits != 2 {
		t.Errorf("%d commits within the interval", s.Commits)
	}
}

// The failures that a commit can have, and what must be there afterwards:
// numbers without a hole, no sample twice, and nothing lost that was
// acknowledged.
func TestAppend_FailedCommitLeavesNumbersDense(t *testing.T) {
	broken := errors.New("injected")
	for name, test := range map[string]struct {
		stages map[string]int // how many times each stage fails
		after  bool           // COMMIT fails though SQLite committed
		there  bool           // the failed samples are in the file
	}{
		"begin":                    {stages: map[string]int{"begin": 1}},
		"insert":                   {stages: map[string]int{"insert": 1}},
		"insert, again and again":  {stages: map[string]int{"insert": 3}},
		"commit, not there":        {stages: map[string]int{"commit": 1}},
		"commit, there":            {stages: map[string]int{"commit": 1}, after: true, there: true},
		"commit, there, not known": {stages: map[string]int{"commit": 1, "probe": 2}, after: true, there: true},
		"commit, gone, not known":  {stages: map[string]int{"commit": 1, "probe": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(t)
			left := map[string]int{}
			armed := make(chan struct{}) // closed when the failures begin
			var b *Buffer
			opts.fault = func(stage string, err error) error {
				select {
				case <-armed:
				default:
					return err
				}
				if left[stage] == 0 || err != nil {
					return err
				}
				left[stage]--
				if stage == "commit" && !test.after {
					// What SQLite did is undone, as it does itself when a sync fails.
					return errors.Join(broken, undoLastCommit(b))
				}
				return broken
			}
			b = openBuffer(t, opts)
			runBuffer(t, b)
			mustAppend(t, b, numbered(0, 5))
			for stage, n := range test.stages {
				left[stage] = n
			}
			close(armed)
			err := b.Append(testContext(t), numbered(5, 3))
			var failed *CommitError
			if !errors.As(err, &failed) || !errors.Is(err, broken) {
				t.Fatalf("a failed commit was answered %v", err)
			}
			if failed.RetryAfter() <= 0 || errors.Is(err, ErrFull) {
				t.Errorf("error %v: retry after %s", err, failed.RetryAfter())
			}
			want := upTo(5)
			if test.there {
				want = upTo(8)
			}
			for next := 100; ; next += 2 { // until the failures are used up
				err := b.Append(testContext(t), numbered(next, 2))
				if err == nil {
					want = append(want, next, next+1)
					break
				}
				if !errors.As(err, &failed) {
					t.Fatal(err)
				}
			}
			wantValues(t, b, want)
			wantDense(t, readAll(t, b))
			s := b.Stats()
			if s.State != StateOK || s.CommitErrors == 0 || !strings.Contains(s.LastError, "injected") {
				t.Errorf("stats %+v", s)
			}
			if s.Samples != int64(len(want)) || s.Appended != uint64(len(want)) {
				t.Errorf("counted %d held and %d appended, want %d", s.Samples, s.Appended, len(want))
			}
			b.Close()
			opts.fault = nil
			wantValues(t, openBuffer(t, opts), want)
		})
	}
}

// undoLastCommit deletes the youngest block behind the buffer's back. It runs
// in the commit goroutine, right after COMMIT.
func undoLastCommit(b *Buffer) error {
	_, err := b.store.conn.ExecContext(context.Background(),
		"DELETE FROM block WHERE key = (SELECT max(key) FROM block)")
	return err
}

func TestRun_FindsOutByItselfThatTheDiskIsBack(t *testing.T) {
	opts := testOptions(t)
	var broken atomic.Bool
	opts.fault = func(stage string, err error) error {
		if err == nil && stage == "begin" && broken.Load() {
			return errors.New("injected")
		}
		return err
	}
	b := startBuffer(t, opts)
	broken.Store(true)
	if err := b.Append(testContext(t), numbered(0, 1)); err == nil {
		t.Fatal("appended")
	}
	if s := b.Stats(); s.State != StateError {
		t.Fatalf("state %q", s.State)
	}
	broken.Store(false)
	waitUntil(t, func() bool { return b.Stats().State == StateOK })
}

// waitUntil polls where there is no signal to wait for.
func waitUntil(t testing.TB, ok func() bool) {
	t.Helper()
	ctx, again := testContext(t), time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("waited in vain")
		case <-again.C:
		}
	}
}

func TestAppend_DiskFull(t *testing.T) {
	for _, policy := range []Policy{Refuse, EvictOldest} {
		t.Run(policy.String(), func(t *testing.T) {
			opts := testOptions(t)
			opts.WhenFull = policy
			b := openBuffer(t, opts)
			limitPages(t, b, 2000) // 8 MB
			runBuffer(t, b)
			appended, refusals := 0, 0
			var lastErr error
			for refusals == 0 && appended < 1000 {
				switch err := b.Append(testContext(t), bulky(100<<10)); {
				case err == nil:
					appended++
				case errors.Is(err, ErrFull):
					refusals++
					lastErr = err
				default:
					t.Fatal(err)
				}
			}
			var retry interface{ RetryAfter() time.Duration }
			if !errors.As(lastErr, &retry) {
				t.Fatalf("error %v says not when to try again", lastErr)
			}
			if s := b.Stats(); s.State != StateFull && policy == Refuse {
				t.Errorf("state %q", s.State)
			}
			if policy == EvictOldest { // makes room by itself
				waitUntil(t, func() bool { return b.Append(testContext(t), bulky(100<<10)) == nil })
				s := b.Stats()
				if s.Evicted["free_reserve"] == 0 || s.State != StateOK {
					t.Errorf("stats %+v", s)
				}
				if _, lost := b.Held(); len(lost) != 1 || lost[0].Ranges[0].First != 1 {
					t.Errorf("lost %v", lost)
				}
				return
			}
			if err := b.Append(testContext(t), numbered(0, 1)); !errors.Is(err, ErrFull) {
				t.Errorf("while full: %v", err)
			}
			blocks := readAll(t, b)
			wantDense(t, blocks)
			if len(blocks) != appended {
				t.Errorf("%d blocks, want the %d that were acknowledged", len(blocks), appended)
			}
			if err := b.Ack(ackOf(blocks[:10]...), nil); err != nil { // space comes back
				t.Fatal(err)
			}
			waitUntil(t, func() bool { return b.Append(testContext(t), numbered(0, 1)) == nil })
			blocks = readAll(t, b)
			wantNumbers(t, blocks, uint64(appended+1))
		})
	}
}

// limitPages makes SQLite find the disk full when the file has so many pages.
func limitPages(t *testing.T, b *Buffer, pages int) {
	t.Helper()
	if _, err := b.store.pragma(fmt.Sprintf("max_page_count = %d", pages)); err != nil {
		t.Fatal(err)
	}
}

// wantNumbers fails unless the last block ends with a number.
func wantNumbers(t *testing.T, blocks []wire.Block, last uint64) {
	t.Helper()
	if got := blocks[len(blocks)-1].Last(); got != last {
		t.Errorf("the youngest number is %d, want %d", got, last)
	}
}

func TestBuffer_ManyAtOnce(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	const writers, each = 16, 300
	var writing, reading sync.WaitGroup
	for g := range writers {
		writing.Go(func() {
			for i := range each {
				if err := b.Append(testContext(t), numbered(g*each+i, 1)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	// One reader acknowledges what it reads, one only looks, one asks.
	var got []int
	reading.Go(func() {
		var after touchline.Position
		for len(got) < writers*each {
			blocks, err := b.Next(testContext(t), after, 4096)
			if err != nil {
				t.Error(err)
				return
			}
			got = append(got, values(t, blocks)...)
			last := blocks[len(blocks)-1]
			after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
			if err := b.Ack(ackOf(blocks...), nil); err != nil {
				t.Error(err)
			}
		}
		cancel()
	})
	reading.Go(func() {
		for ctx.Err() == nil {
			_, _ = b.Next(ctx, touchline.Position{}, 1<<16)
			_ = b.Evict(ctx)
		}
	})
	reading.Go(func() {
		for ctx.Err() == nil {
			b.Held()
			b.Stats()
		}
	})
	writing.Wait()
	reading.Wait()
	slices.Sort(got)
	if !slices.Equal(got, upTo(writers*each)) {
		t.Fatalf("read %d samples, want each of %d once", len(got), writers*each)
	}
	if err := b.Evict(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if s := b.Stats(); s.Samples != 0 || s.Bytes != 0 || s.Blocks != 0 || s.Acked != writers*each {
		t.Errorf("after all was acknowledged: %+v", s)
	}
}
