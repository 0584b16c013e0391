package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"touchline"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// A message of the walk: two samples with times of their own, and one that
// the gateway stamped, known by its key.
func walkMessage(n int) touchline.Arrival {
	a := touchline.Arrival{Samples: []touchline.Sample{sampleNumber(3 * n), sampleNumber(3*n + 1), sampleNumber(3*n + 2)}}
	a.Samples[2].Stamped = true
	a.Keys = []touchline.Key{{ID: touchline.DigestOf(fmt.Sprint(n)), First: 2, Count: 1, Again: true, Long: n%2 == 0}}
	return a
}

// The power is cut at the sync boundaries of some appends, and in between; the
// sender repeats what it had no answer for, and some of what it had. Then
// everything is there once: samples, keys and the window are of one
// transaction. Without the window (the control) it must not be so.
func TestPowerCut_WhatIsSentAgainIsThereOnce(t *testing.T) {
	twice, points := walkRepeats(t, 10*time.Minute)
	t.Logf("MEASURED power cut, then everything unanswered sent again: %d crash points, %d with a sample twice", points, twice)
	if twice > 0 || points < 100 {
		t.Errorf("%d of %d points have a sample twice, or lost", twice, points)
	}
	twice, points = walkRepeats(t, 0)
	t.Logf("MEASURED the same with dedupe_window = \"0s\" (control): %d crash points, %d with a sample twice", points, twice)
	if twice == 0 {
		t.Error("nothing is twice without the window: the walk proves nothing")
	}
}

func walkRepeats(t *testing.T, window time.Duration) (twice, points int) {
	t.Helper()
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	root, clock := memoryFolder(t), new(testClock)
	opts := Options{Dir: filepath.Join(root, "0"), MaxBytes: 1 << 30, WhenFull: EvictOldest, RepeatWindow: window, RepeatBytes: 1 << 20,
		clock: clock.elapsed, tick: 24 * time.Hour, vfs: disk.Name()}
	const messages = 16
	var told [messages]int
	func() {
		b, end := runQuietly(t, opts)
		defer end()
		for n := range messages {
			if err := send(t, b, walkMessage(n)); err != nil {
				t.Fatal(err)
			}
			told[n] = disk.Now()
		}
	}()
	opts.vfs = ""
	replay, random := disk.Replay(), rand.New(rand.NewPCG(testSeed(t, 0), 0))
	step := 3
	if long() {
		step = 1
	}
	for position := 0; position <= told[messages-1]; position += step {
		replay.Advance(position)
		for mode := range faultvfs.Modes {
			image := replay.Cut(mode, random)
			points++
			opts.Dir = filepath.Join(root, fmt.Sprint(points))
			if err := errors.Join(os.Mkdir(opts.Dir, 0o700), image.Write(opts.Dir)); err != nil {
				t.Fatal(err)
			}
			if err := repeatUnanswered(t, opts, told[:], position); err != nil {
				twice++
				if window > 0 {
					t.Logf("position %d, %s: %v", position, mode, err)
				}
			}
			if err := os.RemoveAll(opts.Dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	return twice, points
}

// runQuietly is startBuffer without its log, and ended by its caller.
func runQuietly(t *testing.T, opts Options) (*Buffer, func()) {
	t.Helper()
	b, err := Open(testContext(t), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	return b, func() {
		if err := errors.Join(b.Close(), <-ended); err != nil {
			t.Error(err)
		}
	}
}

// repeatUnanswered opens what a power cut left, sends again, and counts.
func repeatUnanswered(t *testing.T, opts Options, told []int, position int) error {
	b, end := runQuietly(t, opts)
	defer end()
	unheard := 0
	for unheard < len(told) && told[unheard] <= position {
		unheard++
	}
	last := min(unheard, len(told)-1) // the next one was never begun
	for n := max(unheard-2, 0); n <= last; n++ {
		if err := send(t, b, walkMessage(n)); err != nil {
			return err
		}
	}
	there, err := rawBlocks(b, b.store.readDB)
	if err != nil {
		return err
	}
	counts, decoder := make(map[int64]int), wire.NewDecoder()
	for _, block := range there {
		samples, err := decoder.Decode(nil, block.Data)
		if err != nil {
			return err
		}
		for i := range samples {
			counts[samples[i].Time-walkBegins]++
		}
	}
	for n := range int64(3 * (last + 1)) {
		if counts[n] != 1 {
			return fmt.Errorf("sample %d is there %d times (%d blocks)", n, counts[n], len(there))
		}
	}
	if len(counts) != 3*(last+1) {
		return fmt.Errorf("%d samples are there, want %d", len(counts), 3*(last+1))
	}
	return nil
}
