package buffer

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"
)

// A smallDisk is a file system of so many bytes, of which the buffer's files
// and others take some.
type smallDisk struct {
	size, others int64
}

func (d *smallDisk) free(dir string) (int64, error) {
	free := d.size - d.others
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil {
			free -= allocated(info)
		}
	}
	return max(free, 0), nil
}

// 24 MiB are ours: the log must not push out what it could make room for.
func TestEvict_LeavesReserveAndKeepsTheRest(t *testing.T) {
	opts := testOptions(t)
	disk := &smallDisk{size: 48 << 20}
	opts.FreeReserve, opts.free = 24<<20, disk.free
	b := startBuffer(t, opts)
	least := int64(48 << 20)
	for range 400 {
		mustAppend(t, b, bulky(100_000)) // 40 MB
		free, err := disk.free(opts.Dir)
		if err != nil {
			t.Fatal(err)
		}
		least = min(least, free)
	}
	s := b.Stats()
	t.Logf("MEASURED 40 MB into 24 MiB: %.1f MB held, at least %.1f MiB stayed free of 24", float64(s.Bytes)/1e6, float64(least)/(1<<20))
	if s.Bytes < 12<<20 {
		t.Errorf("%d bytes are held, want at least 12 MiB of the 24", s.Bytes)
	}
	if least < 22<<20 { // one log, and a commit
		t.Errorf("%d bytes stayed free, want 24 MiB but for what is in the log", least)
	}
}

// What is written between two looks at the file system counts.
func TestEvict_ReserveHoldsWithinASecond(t *testing.T) {
	opts := testOptions(t)
	disk := &smallDisk{size: 64 << 20}
	clock := new(testClock) // stands still: no second passes
	opts.FreeReserve, opts.free, opts.clock = 16<<20, disk.free, clock.elapsed
	opts.WhenFull, opts.tick = Refuse, time.Hour
	b := startBuffer(t, opts)
	for i := 0; b.Stats().State == StateOK; i++ {
		if i > 1000 {
			t.Fatal("100 MB went into 48 MiB")
		}
		mustAppend(t, b, bulky(100_000))
	}
	if free, err := disk.free(opts.Dir); err != nil || free < 14<<20 {
		t.Errorf("%d bytes are free (%v), want 16 MiB but for one commit and its copy", free, err)
	}
}

func TestBallast_TakesSpaceAndGivesItBack(t *testing.T) {
	l := findBallast(filepath.Join(t.TempDir(), ballastName))
	l.size = 3 << 20
	if l.there != 0 || l.missing() != 0 {
		t.Fatalf("a ballast that never was: %+v", l)
	}
	for _, make := range []func() error{l.make, func() error {
		f, err := os.OpenFile(l.path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return fill(f, l.size)
	}} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if found := findBallast(l.path); found.there != l.size || found.given {
			t.Errorf("it was made, and %+v is found", found)
		}
		if err := l.give(); err != nil {
			t.Fatal(err)
		}
		found := findBallast(l.path)
		found.size = l.size
		if found.there != 0 || found.missing() != l.size || l.missing() != l.size {
			t.Errorf("it was given back, and %+v is found, %d missing", found, found.missing())
		}
	}
}

// A disk that others filled: the ballast goes, and comes back with the space.
func TestRun_MakesTheBallastAgain(t *testing.T) {
	opts := testOptions(t)
	var others atomic.Int64
	opts.free = func(dir string) (int64, error) {
		return (&smallDisk{size: 64 << 20, others: others.Load()}).free(dir)
	}
	opts.WhenFull, opts.tick = Refuse, time.Millisecond
	var full atomic.Bool
	opts.fault = func(stage string, err error) error {
		if stage == "insert" && full.Load() {
			return sqlite3.Error{Code: sqlite3.ErrFull}
		}
		return err
	}
	b := startBuffer(t, opts)
	if b.Stats().Ballast == 0 {
		t.Fatal("there is no ballast")
	}
	others.Store(60 << 20)
	full.Store(true)
	if err := b.Append(testContext(t), numbered(0, 10)); !errors.Is(err, ErrFull) {
		t.Fatalf("a full disk took samples: %v", err)
	}
	if s := b.Stats(); s.Ballast != 0 || !s.BallastGiven || s.State != StateFull {
		t.Fatalf("the disk is full, and the ballast has %d bytes, state %s", s.Ballast, s.State)
	}
	full.Store(false) // thanks to the ballast
	evict(t, b)
	if err := b.Append(testContext(t), numbered(0, 10)); !errors.Is(err, ErrFull) {
		t.Errorf("samples were taken into the place of the ballast: %v", err)
	}
	others.Store(0)
	waitUntil(t, func() bool { s := b.Stats(); return s.Ballast > 0 && !s.BallastGiven && s.State == StateOK })
	mustAppend(t, b, numbered(10, 10))
}

// Whatever a power cut, a person or another program left in its place: the
// gateway opens, and has a ballast again, or takes samples without one.
func TestOpen_FindsWhateverIsLeftOfTheBallast(t *testing.T) {
	write := func(size int) func(string) error {
		return func(path string) error { return os.WriteFile(path, make([]byte, size), 0o600) }
	}
	for _, test := range []struct {
		name  string
		leave func(path string) error
		whole bool
	}{
		{"nothing", func(string) error { return nil }, true},
		{"cut while it was given back: nothing in it", write(0), true},
		{"cut while it was made: a page", write(pageBytes), true},
		{"cut while it was made: half", write(1 << 20), true},
		{"cut while it was made: its length and no blocks", func(path string) error {
			return errors.Join(write(0)(path), os.Truncate(path, 2<<20))
		}, true},
		{"of another size", write(5 << 20), true},
		{"a folder", func(path string) error { return os.Mkdir(path, 0o700) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := testOptions(t)
			opts.ballast = 2 << 20
			if err := test.leave(filepath.Join(opts.Dir, ballastName)); err != nil {
				t.Fatal(err)
			}
			b := startBuffer(t, opts)
			mustAppend(t, b, numbered(0, 10))
			if s := b.Stats(); test.whole && s.Ballast < opts.ballast || s.BallastGiven || s.State != StateOK {
				t.Errorf("the ballast has %d bytes, given (%v), state %s", s.Ballast, s.BallastGiven, s.State)
			}
		})
	}
}
