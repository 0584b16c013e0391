package buffer

import (
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"touchline"
	"touchline/wire"
)

// playedRecording returns the samples of a recording again and again, later
// each time, in the order of their times.
func playedRecording(t testing.TB, name string, count int) []touchline.Sample {
	t.Helper()
	f, err := os.Open("../testdata/" + name + ".csv.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(z).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var once []touchline.Sample
	for _, row := range rows[1:] {
		at, err := strconv.ParseInt(row[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		value, err := strconv.ParseFloat(row[4], 64)
		if err != nil {
			t.Fatal(err)
		}
		once = append(once, touchline.Sample{Sensor: row[1], Metric: row[2], Unit: row[3], Time: at, Value: touchline.NumberValue(value)})
	}
	slices.SortStableFunc(once, func(a, b touchline.Sample) int { return int(min(max(a.Time-b.Time, -1), 1)) })
	span := once[len(once)-1].Time - once[0].Time + int64(time.Second)
	all := make([]touchline.Sample, 0, count)
	for i := range count {
		s := once[i%len(once)]
		s.Time += span * int64(i/len(once))
		all = append(all, s)
	}
	return all
}

// A site of 100 samples/s that is offline takes little of the disk. The time
// is simulated; what is measured is the file.
func TestMerge_OfflineSiteOf100SamplesASecondIsSmall(t *testing.T) {
	const perSecond, perAppend = 100, 50
	seconds := 1800
	if long() {
		seconds = 24 * 3600
	}
	for _, recording := range []struct {
		name string
		most float64 // bytes for each sample on the disk
	}{{"endurance", 3}, {"gym_imu", 3}, {"pitch_positions", 3}} {
		t.Run(recording.name, func(t *testing.T) {
			opts, clock := testOptions(t), new(testClock)
			opts.Dir, opts.clock, opts.tick = memoryFolder(t), clock.elapsed, time.Hour
			b := openBuffer(t, opts)
			samples := playedRecording(t, recording.name, seconds*perSecond)
			// What Run does, in simulated time: a tick each second.
			for at := 0; at < len(samples); at += perAppend {
				if err := b.AppendAsync(context.Background(), touchline.Arrival{Samples: samples[at:min(at+perAppend, len(samples))]}, nil); err != nil {
					t.Fatal(err)
				}
				tick := at%perSecond == 0
				b.round(tick)
				b.afterRound(tick)
				if tick {
					clock.advance(time.Second)
				}
			}
			clock.advance(2 * mergeSpan)
			b.afterRound(true)
			s := b.Stats()
			if s.CommitErrors > 0 || s.Samples != int64(len(samples)) {
				t.Fatalf("%d samples are held of %d, %d commits failed", s.Samples, len(samples), s.CommitErrors)
			}
			got := decodeAll(t, readAll(t, b))
			wantSame(t, got, samples)
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			size, err := sizeOf(b.store.path)
			if err != nil {
				t.Fatal(err)
			}
			each := float64(size) / float64(len(samples))
			t.Logf("MEASURED merged blocks, %s: %d s of %d samples/s in %d commits: %d blocks, %.2f bytes a sample in blocks, %.2f on the disk",
				recording.name, seconds, perSecond, s.Commits, s.Blocks, float64(s.Bytes)/float64(len(samples)), each)
			if each > recording.most {
				t.Errorf("a sample takes %.2f bytes on the disk, want at most %.1f", each, recording.most)
			}
		})
	}
}

// wantSame wants the same samples, in each series in the same order.
func wantSame(t testing.TB, got, want []touchline.Sample) {
	t.Helper()
	type series struct{ sensor, metric, unit string }
	split := func(all []touchline.Sample) map[series][]touchline.Sample {
		of := make(map[series][]touchline.Sample)
		for _, s := range all {
			k := series{s.Sensor, s.Metric, s.Unit}
			of[k] = append(of[k], s)
		}
		return of
	}
	have, expected := split(got), split(want)
	if len(got) != len(want) || len(have) != len(expected) {
		t.Fatalf("%d samples of %d series, want %d of %d", len(got), len(have), len(want), len(expected))
	}
	for k, list := range expected {
		if !slices.Equal(have[k], list) {
			t.Errorf("series %v is not what was appended", k)
		}
	}
}

// What was handed out stays as it is, to the last bit; what follows is merged.
func TestMerge_LeavesWhatWasHandedOut(t *testing.T) {
	opts, clock := testOptions(t), new(testClock)
	opts.clock, opts.tick = clock.elapsed, time.Hour
	b := openBuffer(t, opts)
	add := func(from, blocks int) {
		for i := range blocks {
			if err := b.AppendAsync(context.Background(), touchline.Arrival{Samples: numbered(from+10*i, 10)}, nil); err != nil {
				t.Fatal(err)
			}
			b.round(false)
		}
	}
	add(0, 20)
	seen, err := b.readBehind(touchline.Position{}, 1) // the first
	if err != nil {
		t.Fatal(err)
	}
	clock.advance(2 * mergeSpan)
	b.afterRound(true)
	blocks := readAll(t, b)
	if len(blocks) != 2 || blocks[0].CRC != seen[0].CRC || blocks[0].Count != 10 || blocks[1].First != 11 || blocks[1].Count != 190 {
		t.Fatalf("%d blocks: %+v", len(blocks), blocks)
	}
	wantSame(t, decodeAll(t, blocks), numbered(0, 200))
	clock.advance(2 * mergeSpan)
	b.afterRound(true)
	again := readAll(t, b)
	if !slices.EqualFunc(again, blocks, func(x, y wire.Block) bool { return x.First == y.First && x.CRC == y.CRC }) {
		t.Error("blocks changed that were handed out")
	}
	if s := b.Stats(); s.Merged != 19 || s.Blocks != 2 || s.Samples != 200 {
		t.Errorf("%+v", s)
	}
}

// What is said of a block is said of all its samples: those that were stamped
// by another setting of the clock are in another one.
func TestMerge_KeepsSettingsOfTheClockApart(t *testing.T) {
	opts, clock := testOptions(t), new(testClock)
	opts.clock, opts.tick, opts.Uptime = clock.elapsed, time.Hour, clock.elapsed
	b := openBuffer(t, opts)
	unset := &touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockUnset, Offset: 5}
	set := &touchline.Clock{Boot: touchline.Boot{1}, State: touchline.ClockSet, Offset: 7e9}
	same := *set // another pointer, as after a restart of what hands it over
	for i, c := range []*touchline.Clock{nil, nil, unset, unset, set, &same, unset} {
		samples := numbered(10*i, 10)
		for j := range samples {
			samples[j].Stamped = c != nil && j%2 == 0
		}
		if err := b.AppendAsync(context.Background(), touchline.Arrival{Samples: samples, Clock: c}, nil); err != nil {
			t.Fatal(err)
		}
		clock.advance(time.Second)
		b.round(false)
	}
	for range 8 { // a run ends where the clock differs, and the next begins there
		clock.advance(2 * mergeSpan)
		b.afterRound(true)
	}
	decoder := wire.NewDecoder()
	var got []touchline.Clock
	var uptimes []time.Duration
	for _, block := range readAll(t, b) {
		samples, err := decoder.Decode(nil, block.Data)
		if err != nil {
			t.Fatal(err)
		}
		c := decoder.Attributes().Clock
		for _, s := range samples {
			if s.Stamped != (c != nil && s.Value.Float() == float64(int(s.Value.Float())/2*2)) {
				t.Fatalf("%v is in a block of clock %v", s, c)
			}
		}
		if c == nil {
			c = new(wire.BlockClock)
		}
		got, uptimes = append(got, c.Clock), append(uptimes, c.Uptime)
	}
	if want := []touchline.Clock{{}, *unset, *set, *unset}; !slices.Equal(got, want) {
		t.Fatalf("clocks of the blocks are %v, want %v", got, want)
	}
	if want := []time.Duration{0, 4 * time.Second, 6 * time.Second, 7 * time.Second}; !slices.Equal(uptimes, want) {
		t.Errorf("blocks were committed at %v, want those of their youngest samples: %v", uptimes, want)
	}
}

// Blocks of an earlier opening may have been handed out: they stay.
func TestMerge_LeavesOtherEpochs(t *testing.T) {
	opts, clock := testOptions(t), new(testClock)
	opts.clock, opts.tick = clock.elapsed, time.Hour
	b := startBuffer(t, opts)
	for i := range 3 {
		mustAppend(t, b, numbered(10*i, 10))
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBuffer(t, opts)
	clock.advance(2 * mergeSpan)
	b.round(true)
	b.afterRound(true)
	if s := b.Stats(); s.Blocks != 3 || s.Merged != 0 {
		t.Errorf("%d blocks, %d merged: want 3 and none", s.Blocks, s.Merged)
	}
}

// A merge whose commit failed may come about by a power cut: nothing of it, and
// nothing behind it, is read until the next commit has its place in the log.
// What is before it is: the disk may take no commit ever again.
func TestMerge_ThatFailedHoldsReadersBack(t *testing.T) {
	opts, clock := testOptions(t), new(testClock)
	opts.clock, opts.tick = clock.elapsed, time.Hour
	failing := false
	opts.fault = func(stage string, err error) error {
		if failing && stage == "commit" {
			return errors.New("the sync failed")
		}
		return err
	}
	b := openBuffer(t, opts)
	add := func(n int) {
		if err := b.AppendAsync(context.Background(), touchline.Arrival{Samples: numbered(n, 10)}, nil); err != nil {
			t.Fatal(err)
		}
		b.round(false)
	}
	add(0)
	add(10)
	clock.advance(2 * mergeSpan)
	b.afterRound(true)
	add(20)
	add(30)
	clock.advance(2 * mergeSpan)
	failing = true
	b.afterRound(true)
	if blocks := readAll(t, b); len(blocks) != 1 || blocks[0].Last() != 20 {
		t.Errorf("%d blocks are read: want the one that is settled, and none of which it is not known what they become", len(blocks))
	}
	if _, err := b.Export(t.Context(), false, func([]wire.Block) error { return nil }); !errors.Is(err, errUnsure) {
		t.Errorf("an export that would be short ends with %v", err)
	}
	failing = false
	add(40)
	wantSame(t, decodeAll(t, readAll(t, b)), numbered(0, 50))
}

// onRun calls f in the goroutine of Run, after a commit, and waits for it.
func onRun(t testing.TB, b *Buffer, f func()) {
	t.Helper()
	done := make(chan error, 1)
	b.mu.Lock()
	b.waiting.evicts = append(b.waiting.evicts, func(err error) { f(); done <- err })
	b.mu.Unlock()
	signal(b.work)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// After a merge that failed, a gateway to which nothing comes goes on sending
// by itself, also where the disk is full; and nothing is given up for a merge.
func TestMerge_ThatFailedLetsReadersGoOnByItself(t *testing.T) {
	for name, fault := range map[string]error{
		"sync":      sqlite3.Error{Code: sqlite3.ErrIoErr},
		"full disk": sqlite3.Error{Code: sqlite3.ErrFull},
	} {
		t.Run(name, func(t *testing.T) {
			opts, clock := testOptions(t), new(testClock)
			opts.clock, opts.tick, opts.ballast = clock.elapsed, time.Hour, -1 // no tick helps
			var free atomic.Int64
			free.Store(1 << 30)
			opts.free = func(string) (int64, error) { return free.Load(), nil }
			var merging atomic.Bool
			opts.fault = func(stage string, err error) error {
				if stage == "commit" && merging.CompareAndSwap(true, false) {
					return fault
				}
				return err
			}
			b := startBuffer(t, opts)
			for i := range 5 {
				mustAppend(t, b, numbered(10*i, 10))
			}
			clock.advance(2 * mergeSpan)
			onRun(t, b, func() {
				merging.Store(true)
				if err := b.merge(); err == nil || b.unsure.Load() == 0 {
					t.Errorf("the merge ended with %v", err)
				}
				free.Store(0) // and others took the rest
				clock.advance(2 * freeInterval)
			})
			blocks, err := b.Next(testContext(t), touchline.Position{}, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			wantSame(t, decodeAll(t, blocks), numbered(0, 50))
			if s := b.Stats(); s.Samples != 50 || s.LostRecords != 0 || s.CommitErrors != 1 {
				t.Errorf("%d samples are held, %d losses, %d commits failed: want 50, none, one", s.Samples, s.LostRecords, s.CommitErrors)
			}
		})
	}
}

// A cloud that calls stored what it never got loses that, and nothing else.
func TestMerge_LeavesWhatTheCloudClaims(t *testing.T) {
	opts, clock := keepOptions(t)
	opts.KeepStored = 10 * mergeSpan
	b := startBuffer(t, opts)
	for i := range 5 {
		mustAppend(t, b, numbered(10*i, 10))
	}
	if err := b.Ack([]wire.EpochRanges{{Epoch: b.epoch, Ranges: touchline.Ranges{{First: 1, Last: 10}}}}, nil); err != nil {
		t.Fatal(err)
	}
	evict(t, b)
	clock.advance(2 * mergeSpan)
	onRun(t, b, func() { b.afterRound(true) })
	if s := b.Stats(); s.Merged != 4 || s.Blocks != 1 || s.KeptBlocks != 1 {
		t.Errorf("%d blocks were merged, %d wait and %d are kept: want 4, 1 and 1", s.Merged, s.Blocks, s.KeptBlocks)
	}
	clock.advance(opts.KeepStored)
	evict(t, b)
	wantKept(t, b, 1, 0)
	wantSame(t, decodeAll(t, readAll(t, b)), numbered(10, 40))
}
