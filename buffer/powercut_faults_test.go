package buffer

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"touchline"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// A sweep lives a short life with a fault in it, and says what broke.
type sweep struct {
	*ledger
	t     *testing.T
	fault faultvfs.Fault
	opts  Options
	after touchline.Position
}

// Every call to the disk fails in turn, once and for good.
func TestDiskFault_AcknowledgesNothingThatIsNotThere(t *testing.T) {
	for _, kind := range []faultvfs.Kind{faultvfs.Read, faultvfs.Write, faultvfs.Sync, faultvfs.Truncate} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			tried, failed := 0, 0
			for _, how := range []faultvfs.Fault{{}, {ForGood: true}, {Full: true}, {Full: true, ForGood: true}} {
				if how.Full && kind != faultvfs.Write {
					continue // only a write finds the disk full
				}
				stride := 1
				if how.Full && !long() {
					stride = 5
				}
				n := 1
				for ; ; n += stride {
					how.Kind, how.N = kind, n
					hits, told := runFault(t, how)
					if hits == 0 {
						break // beyond the last call
					}
					tried++
					if told < faultTold {
						failed++
					}
					if t.Failed() {
						t.Fatalf("first with this fault: %s", how)
					}
				}
				if n == 1 {
					t.Errorf("the workload has no %s", kind)
				}
			}
			t.Logf("MEASURED faults of %ss: %d tried, in %d of them an append was refused, 0 samples lost, 0 acknowledged in vain", kind, tried, failed)
			if failed == 0 && kind != faultvfs.Truncate {
				t.Error("no fault was ever noticed")
			}
		})
	}
}

// faultTold is how many of a sweep's appends succeed without a fault.
const faultTold = 13

// runFault returns how many calls failed, and how many appends of the fixed
// part of the life were acknowledged.
func runFault(t *testing.T, fault faultvfs.Fault) (hits, told int) {
	t.Helper()
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	dir, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// In a bubble the waits before each new attempt take no time, and a hang
	// is a failure.
	synctest.Test(t, func(t *testing.T) {
		s := &sweep{ledger: newLedger(disk), t: t, fault: fault}
		s.opts = Options{Dir: dir, MaxBytes: 1 << 30, WhenFull: EvictOldest, ballast: -1, vfs: disk.Name()}
		disk.Fail(fault)
		told = s.first() + s.second()
		hits = disk.Failed()
		disk.Heal()
		e := &examiner{ledger: s.ledger, dir: dir, decoder: wire.NewDecoder()}
		r := disk.Replay()
		r.Advance(r.Len())
		// What the running system would see, and what the disk has.
		if err := e.examine(never - 1); err != nil {
			t.Errorf("%s: opened again: %v", fault, err)
		}
		for mode := range faultvfs.Modes {
			image := r.Cut(mode, rand.New(rand.NewPCG(uint64(fault.N), 0)))
			if err := errors.Join(image.Write(dir), e.examine(never-1)); err != nil {
				t.Errorf("%s: after a power cut, unsynced writes %s: %v", fault, mode, err)
			}
		}
	})
	return hits, told
}

// open opens the buffer; while the disk fails that may fail, but not for longer.
func (s *sweep) open() (b *Buffer, ended chan error) {
	for attempt := 0; ; attempt++ {
		b, err := Open(context.Background(), s.opts, slog.New(slog.DiscardHandler))
		if err == nil {
			ended := make(chan error, 1)
			go func() { ended <- b.Run(context.Background()) }()
			return b, ended
		}
		if s.disk.Failed() == 0 || attempt > 2 {
			s.t.Fatalf("%s: open: %v", s.fault, err)
		}
		if s.fault.ForGood {
			s.disk.Heal()
		}
	}
}

func (s *sweep) close(b *Buffer, ended chan error) {
	if err := b.Close(); err != nil && s.disk.Failed() == 0 {
		s.t.Errorf("%s: close: %v", s.fault, err)
	}
	if err := <-ended; err != nil {
		s.t.Errorf("%s: run: %v", s.fault, err)
	}
}

// append appends once and returns 1 if that was acknowledged.
func (s *sweep) append(b *Buffer, count int) int {
	s.t.Helper()
	samples, first := s.numberedAnew(count)
	err := b.Append(context.Background(), samples)
	if err == nil {
		s.durable(first, count)
		_ = s.observe(b) // an error, if reading fails now
		return 1
	}
	var wait interface{ RetryAfter() time.Duration }
	if !errors.As(err, &wait) || s.disk.Failed() == 0 {
		s.t.Errorf("%s: append: %v, want an error that says when to try again", s.fault, err)
		return 0
	}
	if wait.RetryAfter() > retryMost {
		s.t.Errorf("%s: append: try again in %s", s.fault, wait.RetryAfter())
	}
	time.Sleep(wait.RetryAfter()) // of the bubble
	return 0
}

// recovers wants appends to succeed without a restart, now that the disk
// works.
func (s *sweep) recovers(b *Buffer) {
	for range 3 {
		if s.append(b, 2) == 1 {
			return
		}
	}
	s.t.Errorf("%s: the disk works again, and appends fail: %s", s.fault, b.Stats().LastError)
}

// read reads and acknowledges all that is there.
func (s *sweep) read(b *Buffer) {
	if s.observe(b) != nil {
		return // reading fails now
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	blocks, err := b.Next(ctx, s.after, 1<<20)
	if err != nil {
		return
	}
	s.handedOut(blocks)
	for i := range blocks {
		s.acknowledge(blocks[i].Epoch, touchline.Ranges{blocks[i].Range()}, nil)
	}
	if err := b.Ack(ackOf(blocks...), nil); err != nil {
		s.t.Errorf("%s: ack: %v", s.fault, err)
	}
	last := &blocks[len(blocks)-1]
	s.after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
}

func (s *sweep) first() (told int) {
	b, ended := s.open()
	told += s.append(b, 3)
	told += s.append(b, 2)
	s.read(b)
	_ = b.Evict(context.Background()) // an error, if the disk fails now: it is tried again
	told += s.append(b, 400)
	told += s.append(b, 5)
	told += s.append(b, 600)
	s.close(b, ended)
	return told
}

func (s *sweep) second() (told int) {
	b, ended := s.open()
	told += s.append(b, 10)
	told += s.append(b, 700)
	told += s.append(b, 1)
	s.read(b)
	_ = b.Evict(context.Background())
	for range 4 {
		told += s.append(b, 50)
	}
	told += s.append(b, 1)
	// Until here a fault for good lasted, whatever was tried.
	s.disk.Heal()
	if s.disk.Failed() > 0 {
		s.recovers(b)
	}
	if err := s.observe(b); err != nil {
		s.t.Errorf("%s: read: %v", s.fault, err)
	}
	if err := b.Evict(context.Background()); err != nil {
		s.t.Errorf("%s: evict: %v", s.fault, err)
	}
	s.close(b, ended)
	return told
}

// What is written before SQLite is told to sync would stand in the log before
// what is acknowledged later, and a sync that fails then loses both.
func TestOpen_OfAFileThatIsThereWritesNothing(t *testing.T) {
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	opts := testOptions(t)
	opts.vfs = disk.Name()
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 5))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	count := func() (int, int, int) { return disk.Replay().Count() }
	writes, truncations, syncs := count()
	b = openBuffer(t, opts)
	if w, n, s := count(); w != writes || n != truncations || s != syncs {
		t.Errorf("opening wrote %d times, truncated %d times, synced %d times", w-writes, n-truncations, s-syncs)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// The log is empty only if the last connection is closed, and not kept open
// by a statement.
func TestClose_CopiesTheLogIntoTheDatabase(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 5))
	if _, err := b.Next(testContext(t), touchline.Position{}, 1<<20); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(opts.Dir, databaseName+"-wal")
	if _, err := os.Stat(log); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log is still there: %v", err)
	}
}
