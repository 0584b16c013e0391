package buffer

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// stampedSamples are of the gateway's time.
func stampedSamples(from, count int) []touchline.Sample {
	samples := numbered(from, count)
	for i := range samples {
		samples[i].Stamped = true
	}
	return samples
}

func clockOf(boot byte, state touchline.ClockState, offset int64) *touchline.Clock {
	return &touchline.Clock{Boot: touchline.Boot{boot}, State: state, Offset: offset}
}

// arrive appends samples under a clock.
func arrive(b *Buffer, samples []touchline.Sample, clock *touchline.Clock) error {
	done := make(chan error, 1)
	err := b.AppendAsync(context.Background(), touchline.Arrival{Samples: samples, Clock: clock}, func(err error) { done <- err })
	if err != nil {
		return err
	}
	return <-done
}

func mustArrive(t testing.TB, b *Buffer, samples []touchline.Sample, clock *touchline.Clock) {
	t.Helper()
	if err := arrive(b, samples, clock); err != nil {
		t.Fatal(err)
	}
}

func flush(t testing.TB, b *Buffer) {
	t.Helper()
	if err := b.Evict(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func wantClocks(t testing.TB, b *Buffer, want ...*touchline.Clock) {
	t.Helper()
	got := b.Clocks()
	if !slices.EqualFunc(got, want, func(a touchline.Clock, b *touchline.Clock) bool { return a == *b }) {
		t.Errorf("the cloud has to be told %+v, want %d clocks", got, len(want))
		for _, c := range want {
			t.Logf("want %+v", *c)
		}
	}
}

func TestAppend_BlocksSayByWhichClockTheyWereStamped(t *testing.T) {
	opts := testOptions(t)
	opts.Uptime = func() time.Duration { return 7 * time.Second }
	b := openBuffer(t, opts)
	first, second := clockOf(1, touchline.ClockUnset, 5), clockOf(1, touchline.ClockSynchronised, 1e18)
	var answers []error
	done := func(err error) { answers = append(answers, err) }
	for i, clock := range []*touchline.Clock{nil, first, first, second, first, nil} { // all into one commit
		samples := stampedSamples(10*i, 10)
		if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: samples, Clock: clock}, done); err != nil {
			t.Fatal(err)
		}
	}
	runBuffer(t, b)
	flush(t, b)
	blocks := readAll(t, b)
	wantDense(t, blocks)
	d := wire.NewDecoder()
	var got []*touchline.Clock
	for i := range blocks {
		samples, err := d.Decode(nil, blocks[i].Data)
		if err != nil {
			t.Fatal(err)
		}
		if !samples[0].Stamped {
			t.Errorf("block %d forgot that its samples were stamped", i)
		}
		c := d.Attributes().Clock
		if c == nil {
			got = append(got, nil)
			continue
		}
		if c.Uptime != 7*time.Second {
			t.Errorf("block %d was committed %v after power-on", i, c.Uptime)
		}
		got = append(got, &c.Clock)
	}
	want := []*touchline.Clock{nil, first, second, first, nil}
	if !slices.EqualFunc(got, want, func(a, b *touchline.Clock) bool { return a == b || a != nil && b != nil && *a == *b }) {
		t.Errorf("%d blocks have the clocks %+v", len(got), got)
	}
	wantValues(t, b, upTo(60))
	if len(answers) != 6 || slices.ContainsFunc(answers, func(err error) bool { return err != nil }) {
		t.Errorf("answers are %v", answers)
	}
}

// The whole life of a correction, across restarts of the gateway and of the
// machine.
func TestSetClock_IsToldUntilItIsConfirmed(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	unset, set, right := clockOf(1, touchline.ClockUnset, 5), clockOf(1, touchline.ClockSet, 900), clockOf(1, touchline.ClockSynchronised, 1000)
	early := clockOf(0, touchline.ClockUnset, 4)
	b.SetClock(*early)
	mustArrive(t, b, numbered(0, 10), early) // the sensor's own times: nothing to correct
	b.SetClock(*clockOf(0, touchline.ClockSynchronised, 1000))
	flush(t, b)
	wantClocks(t, b)
	b.SetClock(*unset)
	mustArrive(t, b, stampedSamples(10, 10), unset)
	wantClocks(t, b)
	b.SetClock(*set)
	flush(t, b)
	wantClocks(t, b, set)
	b.SetClock(*right)
	flush(t, b)
	wantClocks(t, b, right)

	reopen := func() {
		t.Helper()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = startBuffer(t, opts)
	}
	reopen()
	wantClocks(t, b, right)
	next := clockOf(2, touchline.ClockUnset, 6)
	b.SetClock(*next) // the machine was switched off
	mustArrive(t, b, stampedSamples(20, 10), next)
	flush(t, b)
	wantClocks(t, b, right)
	later := clockOf(2, touchline.ClockSynchronised, 2000)
	b.SetClock(*later)
	flush(t, b)
	wantClocks(t, b, right, later)
	b.ConfirmClocks([]wire.ClockOffset{{Boot: right.Boot, Offset: 1}, {Boot: touchline.Boot{9}, Offset: 1000}, offsetOf(*right)})
	wantClocks(t, b, later)
	flush(t, b)
	reopen()
	wantClocks(t, b, later)
	if s := b.Stats(); s.Clocks != 1 {
		t.Errorf("stats count %d clocks", s.Clocks)
	}
	b.ConfirmClocks([]wire.ClockOffset{offsetOf(*later)})
	flush(t, b)
	reopen()
	wantClocks(t, b)
	b.SetClock(*later) // as each start says it
	flush(t, b)
	wantClocks(t, b)
	third := clockOf(3, touchline.ClockSet, 1)
	mustArrive(t, b, stampedSamples(30, 10), third)
	flush(t, b)
	var rows int
	if err := b.store.readDB.QueryRow("SELECT count(*) FROM clock").Scan(&rows); err != nil || rows != 3 {
		t.Errorf("%d rows are left of 3 boots, %v", rows, err)
	}
}

// Samples may be stamped before the clock was known to be wrong, and committed
// after.
func TestSetClock_CorrectsWhatWaitedForItsCommit(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	unset, right := clockOf(1, touchline.ClockUnset, 5), clockOf(1, touchline.ClockSynchronised, 1000)
	done := make(chan error, 1)
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: stampedSamples(0, 5), Clock: unset}, func(err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	b.SetClock(*right)
	runBuffer(t, b)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantClocks(t, b, right)
}

// A model of what the cloud has to learn: for each boot by whose clock samples
// were stamped that nobody vouched for, the best that was ever known of it.
func TestClocks_NoCorrectionIsForgotten(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	steps := 500
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		steps = 5_000 // 185 boots, of 256
	}
	opts := testOptions(t)
	var failing atomic.Bool
	opts.fault = func(stage string, err error) error {
		if err == nil && stage == "begin" && failing.CompareAndSwap(true, false) {
			return errors.New("disk I/O error")
		}
		return err
	}
	now := clockOf(1, touchline.ClockUnset, 0)
	cloud := map[touchline.Boot]touchline.Clock{} // what it recorded
	doubted := map[touchline.Boot]bool{}          // samples of it need a correction
	doubtedBy := map[touchline.Boot]map[touchline.Clock]bool{}
	best := map[touchline.Boot]touchline.Clock{} // what SetClock said of it that counts
	var b *Buffer
	start := func() {
		b = openBuffer(t, opts)
		runBuffer(t, b)
		flush(t, b)                              // it runs
		if err := b.Reconcile(nil); err != nil { // by its first session
			t.Fatal(err)
		}
	}
	start()
	reopened, failures := 0, 0
	say := func() {
		b.SetClock(*now)
		if before := best[now.Boot]; now.State > touchline.ClockUnset && now.State >= before.State {
			best[now.Boot] = *now
		}
	}
	say()
	for step := range steps {
		switch r.IntN(9) {
		case 0: // the clock is set
			state := min(now.State+touchline.ClockState(r.IntN(2)), touchline.ClockSynchronised)
			now = clockOf(now.Boot[0], state, r.Int64N(1000))
			say()
		case 1: // power-off
			if r.IntN(3) == 0 {
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				now = clockOf(now.Boot[0]+1, touchline.ClockState(r.IntN(2)), r.Int64N(1000))
				start()
				say()
			}
		case 2:
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			start()
			say()
			reopened++
		case 3: // the cloud hears
			for _, c := range b.Clocks() {
				if c.State >= cloud[c.Boot].State {
					cloud[c.Boot] = c
				}
				if r.IntN(2) == 0 {
					b.ConfirmClocks([]wire.ClockOffset{offsetOf(c)})
				}
			}
		case 4: // of nothing that was told; or the cloud is restored from a backup
			if r.IntN(4) == 0 {
				maps.DeleteFunc(cloud, func(boot touchline.Boot, _ touchline.Clock) bool { return boot[0]+maxClocks/2 > now.Boot[0] })
				if err := b.Reconcile(nil); err != nil {
					t.Fatal(err)
				}
			}
			b.ConfirmClocks([]wire.ClockOffset{{Boot: now.Boot, Offset: 1000 + r.Int64N(1000)}})
		default:
			samples := numbered(step, 3)
			samples[1].Stamped = r.IntN(2) == 0
			failing.Store(r.IntN(4) == 0)
			err := arrive(b, samples, now)
			failing.Store(false)
			if err != nil {
				failures++
			} else if samples[1].Stamped && now.State < touchline.ClockSynchronised {
				doubted[now.Boot] = true
				if doubtedBy[now.Boot] == nil {
					doubtedBy[now.Boot] = map[touchline.Clock]bool{}
				}
				doubtedBy[now.Boot][*now] = true
			}
		}
	}
	flush(t, b)
	for list := b.Clocks(); len(list) > 0; list = b.Clocks() {
		for _, c := range list {
			if c.State >= cloud[c.Boot].State {
				cloud[c.Boot] = c
			}
			b.ConfirmClocks([]wire.ClockOffset{offsetOf(c)})
		}
		flush(t, b)
	}
	corrections := 0
	for boot := range maps.Keys(doubted) {
		want, known := best[boot]
		if !known || len(doubtedBy[boot]) == 1 && doubtedBy[boot][want] {
			continue // nothing better than what stamped
		}
		corrections++
		if cloud[boot] != want {
			t.Errorf("of boot %v the cloud has %+v, want %+v", boot, cloud[boot], want)
		}
	}
	t.Logf("MEASURED clocks: %d steps, %d restarts, %d appends refused, %d boots in doubt, %d corrections, none forgotten",
		steps, reopened, failures, len(doubted), corrections)
	if corrections == 0 {
		t.Error("no correction was due: the test proves nothing")
	}
}

func TestOpen_CorrectionsSurviveDamage(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	unset, right := clockOf(1, touchline.ClockUnset, 5), clockOf(1, touchline.ClockSynchronised, 1000)
	mustArrive(t, b, stampedSamples(0, 10), unset)
	b.SetClock(*right)
	flush(t, b)
	second := clockOf(2, touchline.ClockUnset, 7)
	mustArrive(t, b, stampedSamples(10, 10), second)
	path := b.store.path
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(data[:16]) // no SQLite database any more
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b = startBuffer(t, opts)
	if aside := b.Stats().Aside; len(aside) != 1 {
		t.Fatalf("set aside: %+v", aside)
	}
	wantValues(t, b, upTo(20))
	wantClocks(t, b, right)
	later := clockOf(2, touchline.ClockSynchronised, 2000)
	b.SetClock(*later)
	flush(t, b)
	wantClocks(t, b, right, later)
}

// A cloud that was restored from a backup has forgotten the correction as well,
// and gets back blocks as they were stamped.
func TestReconcile_TellsClocksAgain(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	unset, right := clockOf(1, touchline.ClockUnset, 5), clockOf(1, touchline.ClockSynchronised, 1000)
	b.SetClock(*unset)
	mustArrive(t, b, stampedSamples(0, 10), unset)
	b.SetClock(*right)
	flush(t, b)
	confirm := func(c *touchline.Clock) {
		t.Helper()
		b.ConfirmClocks([]wire.ClockOffset{offsetOf(*c)})
		flush(t, b)
		wantClocks(t, b)
	}
	confirm(right)
	// The machine boots once more, and stamps without a clock again.
	second, rightToo := clockOf(2, touchline.ClockUnset, 6), clockOf(2, touchline.ClockSynchronised, 2000)
	b.SetClock(*second)
	mustArrive(t, b, stampedSamples(10, 10), second)
	b.SetClock(*rightToo)
	flush(t, b)
	confirm(rightToo)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBuffer(t, opts)
	wantClocks(t, b)
	if err := b.Reconcile(nil); err != nil {
		t.Fatal(err)
	}
	wantClocks(t, b, right, rightToo)
	confirm2 := []wire.ClockOffset{offsetOf(*right), offsetOf(*rightToo)}
	b.ConfirmClocks(confirm2[:1])
	wantClocks(t, b, rightToo)
	b.ConfirmClocks(confirm2)
	wantClocks(t, b)
}

func TestClocks_OfConfirmedOnesTheYoungestStay(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	const boots = maxClocks + 20
	for i := range boots {
		unset, right := clockOf(byte(i), touchline.ClockUnset, 5), clockOf(byte(i), touchline.ClockSynchronised, 1000)
		b.SetClock(*unset)
		mustArrive(t, b, stampedSamples(10*i, 10), unset)
		b.SetClock(*right)
		flush(t, b)
		if i != 3 { // which the cloud never confirms
			b.ConfirmClocks([]wire.ClockOffset{offsetOf(*right)})
		}
		flush(t, b)
	}
	rows := func() (list []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, r := range b.boots.rows {
			list = append(list, r.best.Boot[0])
		}
		return list
	}
	before := rows()
	if len(before) != maxClocks+1 || before[0] != 3 || before[1] != boots-maxClocks {
		t.Errorf("%d boots are known, from %d and %d on", len(before), before[0], before[1])
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBuffer(t, opts)
	if after := rows(); !slices.Equal(after, before) {
		t.Errorf("the file has %v, memory had %v", after, before)
	}
	wantClocks(t, b, clockOf(3, touchline.ClockSynchronised, 1000))
}
