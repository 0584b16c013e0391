package buffer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"touchline"
	"touchline/wire"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("TOUCHLINE_TEST_APPENDER"); dir != "" {
		appendUntilKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of these tests; reaching it is a failure.
const patience = 30 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func testOptions(t testing.TB) Options {
	return Options{Dir: t.TempDir(), MaxBytes: 1 << 30, WhenFull: EvictOldest}
}

func testLogger(t testing.TB) *slog.Logger {
	if _, bench := t.(*testing.B); bench {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// openBuffer opens a buffer that does not run yet.
func openBuffer(t testing.TB, opts Options) *Buffer {
	t.Helper()
	b, err := Open(testContext(t), opts, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		checkFile(t, b)
	})
	return b
}

// checkFile looks whether what a closed buffer counted is what its file has.
func checkFile(t testing.TB, b *Buffer) {
	t.Helper()
	if _, bench := t.(*testing.B); bench {
		return
	}
	lock, err := lockFolder(b.opts.Dir)
	if err != nil {
		return // the test has opened another one
	}
	defer lock.Close()
	s, err := openStore(context.Background(), b.store.path)
	if err != nil {
		t.Errorf("open file again: %v", err)
		return
	}
	defer s.close()
	state, err := s.load(context.Background())
	if err != nil {
		t.Errorf("load file again: %v", err)
	}
	var there totals
	var data int64
	var sound string
	row := s.conn.QueryRowContext(context.Background(), "SELECT count(*), coalesce(sum(count), 0), coalesce(sum(length(data)), 0) FROM block")
	if err := row.Scan(&there.blocks, &there.samples, &data); err != nil {
		t.Error(err)
	}
	there.bytes = data + there.blocks*blockOverheadBytes
	if state.held != there {
		t.Errorf("file tallies %+v, and has %+v", state.held, there)
	}
	if err := s.conn.QueryRowContext(context.Background(), "PRAGMA integrity_check").Scan(&sound); err != nil || sound != "ok" {
		t.Errorf("file is not sound: %s (%v)", sound, err)
	}
	overlaps := 0
	row = s.conn.QueryRowContext(context.Background(), "SELECT count(*) FROM (SELECT key, lag(key + count) OVER (ORDER BY key) AS free FROM block) WHERE key < free")
	if err := row.Scan(&overlaps); err != nil || overlaps > 0 {
		t.Errorf("%d blocks overlap (%v)", overlaps, err)
	}
}

// startBuffer opens a buffer and runs it until it is closed.
func startBuffer(t testing.TB, opts Options) *Buffer {
	t.Helper()
	b := openBuffer(t, opts)
	runBuffer(t, b)
	return b
}

func runBuffer(t testing.TB, b *Buffer) {
	done := make(chan error, 1)
	go func() { done <- b.Run(context.Background()) }()
	t.Cleanup(func() {
		b.Close()
		if err := <-done; err != nil {
			t.Error("run:", err)
		}
	})
}

// numbered returns samples whose values are from, from+1, …
func numbered(from, count int) []touchline.Sample {
	samples := make([]touchline.Sample, count)
	for i := range samples {
		n := from + i
		samples[i] = touchline.Sample{Sensor: "belt-7", Metric: "heart_rate", Unit: "beat/min",
			Time: 1_700_000_000_000_000_000 + int64(n)*int64(time.Millisecond), Value: touchline.NumberValue(float64(n))}
	}
	return samples
}

// bulky returns one sample that takes about size bytes in the file, since
// random bytes do not compress.
func bulky(size int) []touchline.Sample {
	raw := make([]byte, size)
	for i := range raw {
		raw[i] = byte(rand.Uint32())
	}
	return []touchline.Sample{{Sensor: "camera", Metric: "_raw", Time: 1, Value: touchline.BytesValue(string(raw))}}
}

func mustAppend(t testing.TB, b *Buffer, samples []touchline.Sample) {
	t.Helper()
	if err := b.Append(testContext(t), samples); err != nil {
		t.Fatal(err)
	}
}

// readAll returns all blocks that the buffer holds, without waiting.
func readAll(t testing.TB, b *Buffer) []wire.Block {
	t.Helper()
	var all []wire.Block
	var after touchline.Position
	for {
		blocks, err := b.readBehind(after, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(blocks) == 0 {
			return all
		}
		all = append(all, blocks...)
		last := blocks[len(blocks)-1]
		after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
	}
}

// values returns the numbers in blocks, in their order.
func values(t testing.TB, blocks []wire.Block) []int {
	t.Helper()
	decoder := wire.NewDecoder()
	var all []int
	for _, block := range blocks {
		if err := block.Check(); err != nil {
			t.Fatal(err)
		}
		samples, err := decoder.Decode(nil, block.Data)
		if err != nil {
			t.Fatal(err)
		}
		if len(samples) != int(block.Count) {
			t.Fatalf("block has %d samples, its count is %d", len(samples), block.Count)
		}
		for _, s := range samples {
			all = append(all, int(s.Value.Float()))
		}
	}
	return all
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func wantValues(t testing.TB, b *Buffer, want []int) {
	t.Helper()
	if got := values(t, readAll(t, b)); !slices.Equal(got, want) {
		t.Fatalf("buffer holds %d samples %v, want %d %v", len(got), clip(got), len(want), clip(want))
	}
}

func clip(list []int) []int { return list[:min(len(list), 20)] }

// wantDense fails unless the blocks of each epoch follow one another without
// a hole from number 1 on.
func wantDense(t testing.TB, blocks []wire.Block) {
	t.Helper()
	next := map[touchline.Epoch]uint64{}
	for _, block := range blocks {
		want := max(next[block.Epoch], 1)
		if block.First != want {
			t.Fatalf("epoch %s goes on at %d, want %d", block.Epoch, block.First, want)
		}
		next[block.Epoch] = block.Last() + 1
	}
}

func ackOf(blocks ...wire.Block) []wire.EpochRanges {
	var acks []wire.EpochRanges
	for _, block := range blocks {
		acks = append(acks, wire.EpochRanges{Epoch: block.Epoch, Ranges: touchline.Ranges{block.Range()}})
	}
	return acks
}

func TestAppend_IsThereAfterReopening(t *testing.T) {
	opts := testOptions(t)
	var epochs []touchline.Epoch
	for i := range 3 {
		b := startBuffer(t, opts)
		epochs = append(epochs, b.Stats().Epoch)
		mustAppend(t, b, numbered(10*i, 10))
		wantValues(t, b, upTo(10*(i+1)))
		wantDense(t, readAll(t, b))
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if epochs[0] == epochs[1] || epochs[1] == epochs[2] {
		t.Fatalf("epochs %v: each opening must draw its own", epochs)
	}
	b := openBuffer(t, opts)
	held, _ := b.Held()
	if len(held) != 3 {
		t.Fatalf("held %v, want three epochs", held)
	}
	for i, h := range held {
		if h.Epoch != epochs[i] || h.Oldest != 1 || h.Next != 11 {
			t.Errorf("epoch %d is held as %+v, want %s from 1 to below 11", i, h, epochs[i])
		}
	}
	if s := b.Stats(); s.Samples != 30 || s.Blocks != 3 || s.Bytes <= 3*blockOverheadBytes {
		t.Errorf("counted at opening: %+v", s)
	}
}

func TestOpen_LocksItsFolder(t *testing.T) {
	opts := testOptions(t)
	b := openBuffer(t, opts)
	_, err := Open(testContext(t), opts, testLogger(t))
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Fatalf("a second buffer opened the folder: %v", err)
	}
	if locked.PID != os.Getpid() || !strings.Contains(err.Error(), opts.Dir) {
		t.Errorf("error %q, want folder and process %d", err, os.Getpid())
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	openBuffer(t, opts)
}

func TestOpen_RefusesBadOptions(t *testing.T) {
	opts := Options{MaxBytes: 1, MaxAge: time.Second, FreeReserve: -1, CommitInterval: time.Hour}
	_, err := Open(testContext(t), opts, testLogger(t))
	if err == nil {
		t.Fatal("opened")
	}
	for _, key := range []string{"folder", "max_bytes", "max_age", "free_reserve", "when_full", "commit_interval"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("error does not name %s: %v", key, err)
		}
	}
}

func TestOpen_MakesFilesForTheOwnerOnly(t *testing.T) {
	opts := testOptions(t)
	opts.Dir = filepath.Join(opts.Dir, "a?b#c %41", "d") // what would end or change a URI unless escaped
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 1))
	if _, err := os.Stat(filepath.Join(opts.Dir, databaseName+"-shm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the index of the log is a mapped file, which is deadly on a full disk: %v", err)
	}
	for _, name := range []string{"", databaseName, databaseName + "-wal", lockName} {
		info, err := os.Stat(filepath.Join(opts.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q has mode %s", name, info.Mode())
		}
	}
}

func TestClose_MayBeCalledTwiceAndEarly(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	answers := make(chan error, 1)
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(0, 1)}, func(err error) { answers <- err }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-answers; !errors.Is(err, ErrClosed) {
		t.Errorf("an append that nobody ran was answered %v", err)
	}
	if err := b.Append(testContext(t), numbered(0, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if _, err := b.Next(testContext(t), touchline.Position{}, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("next after close: %v", err)
	}
	if err := b.Ack(nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("ack after close: %v", err)
	}
	if err := b.Evict(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("evict after close: %v", err)
	}
	if held, lost := b.Held(); held != nil || lost != nil {
		t.Errorf("held after close: %v %v", held, lost)
	}
	if err := b.Run(testContext(t)); err == nil {
		t.Error("ran after close")
	}
	b.Stats()
}

func TestRun_EndsWithItsContextAfterALastCommit(t *testing.T) {
	opts := testOptions(t)
	opts.CommitInterval = MaxCommitInterval // so that the second append waits for the end
	b := openBuffer(t, opts)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	mustAppend(t, b, numbered(0, 1))
	answers := make(chan error, 1)
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(1, 1)}, func(err error) { answers <- err }); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, openBuffer(t, opts), upTo(2))
}

func TestClose_WaitsForTheCommitUnderWay(t *testing.T) {
	opts := testOptions(t)
	committing, release := make(chan struct{}), make(chan struct{})
	opts.fault = func(stage string, err error) error {
		if stage == "commit" {
			close(committing)
			<-release
		}
		return err
	}
	b := openBuffer(t, opts)
	runBuffer(t, b)
	answers := make(chan error, 1)
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(0, 5)}, func(err error) { answers <- err }); err != nil {
		t.Fatal(err)
	}
	<-committing
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	<-b.life.Done() // Close has begun
	select {
	case err := <-closed:
		t.Fatalf("Close returned (%v) while a commit was under way", err)
	case err := <-answers:
		t.Fatalf("answered %v before the commit ended", err)
	default:
	}
	close(release)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-answers:
		if err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatal("Close returned before the commit was answered")
	}
	opts.fault = nil
	wantValues(t, openBuffer(t, opts), upTo(5))
}
