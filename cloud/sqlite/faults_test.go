package sqlite

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/internal/faultvfs"
)

// Every call to the disk fails in turn, once and for good, and the power goes
// afterwards: what was called stored is there, and what was not is taken again.
func TestDiskFault_WhatWasCalledStoredIsThere(t *testing.T) {
	stride := 4
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		stride = 1
	}
	for _, kind := range []faultvfs.Kind{faultvfs.Read, faultvfs.Write, faultvfs.Sync, faultvfs.Truncate} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			tried, refused := 0, 0
			for _, how := range []faultvfs.Fault{{}, {ForGood: true}, {Full: true, ForGood: true}} {
				if how.Full && kind != faultvfs.Write {
					continue // only a write finds the disk full
				}
				step := stride
				if kind == faultvfs.Sync || kind == faultvfs.Truncate {
					step = 1 // there are few
				}
				for n := 1; ; n += step {
					how.Kind, how.N = kind, n
					f := liveWithFault(t, how)
					if f.hits == 0 {
						break // beyond the last call
					}
					tried++
					refused += f.refused
					if t.Failed() {
						t.Fatalf("first with this fault: %s", how)
					}
				}
			}
			t.Logf("MEASURED faults of the record store's %ss: %d tried, %d batches refused, 0 blocks lost, 0 twice", kind, tried, refused)
			if tried == 0 || refused == 0 && kind != faultvfs.Truncate {
				t.Errorf("%d faults were tried, and %d batches refused: want some", tried, refused)
			}
		})
	}
}

// A faulted is a short life with a fault in it.
type faulted struct {
	*ledger
	t       *testing.T
	dir     string
	fault   faultvfs.Fault
	epoch   touchline.Epoch
	next    uint64
	waiting []cloud.Delivery // refused: their gateway has them still
	refused int              // batches
	hits    int
}

func liveWithFault(t *testing.T, fault faultvfs.Fault) *faulted {
	t.Helper()
	disk, err := faultvfs.New("unix")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	dir, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	f := &faulted{ledger: &ledger{disk: disk, gateways: []string{"arena"}}, t: t, dir: dir, fault: fault, epoch: touchline.NewEpoch(), next: 1}
	// The gateway is registered before the first fault, as a person does it.
	s := f.open()
	if err := s.AddGateway(t.Context(), "arena", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	f.close(s)
	disk.Fail(fault)
	for range 3 {
		s := f.open()
		for range 3 {
			f.batch(s)
		}
		f.close(s)
	}
	// The machine goes on, the fault does not: what was refused comes again.
	f.hits = disk.Failed()
	disk.Heal()
	// What is answered as a repeat writes nothing that would bring it to the
	// disk; what is new does.
	s = f.open()
	f.send(s)
	f.crash(disk)
	f.batch(s)
	f.crash(disk)
	if len(f.waiting) > 0 {
		t.Errorf("%s: the disk works again, and %d blocks are refused", fault, len(f.waiting))
	}
	f.close(s)
	return f
}

// open opens the store; while the disk fails that may fail, but not for longer.
func (f *faulted) open() *Store {
	f.t.Helper()
	for attempt := 0; ; attempt++ {
		s, err := openOn(f.t.Context(), f.disk.Name(), f.dir, slog.New(slog.DiscardHandler))
		if err == nil {
			return s
		}
		if f.disk.Failed() == 0 || attempt > 2 {
			f.t.Fatalf("%s: open: %v", f.fault, err)
		}
		if f.fault.ForGood {
			f.disk.Heal()
		}
	}
}

// close is what a killed process leaves where the disk fails: the log.
func (f *faulted) close(s *Store) {
	f.t.Helper()
	if err := s.Close(); err != nil && f.disk.Failed() == 0 {
		f.t.Errorf("%s: close: %v", f.fault, err)
	}
}

// batch sends what was refused before, and a new block.
func (f *faulted) batch(s *Store) {
	f.t.Helper()
	samples := recordertest.Series("belt", int64(f.next), 1, 20)
	f.waiting = append(f.waiting, recordertest.NewDelivery(f.t, "arena", f.epoch, f.next, samples))
	f.next += uint64(len(samples))
	f.send(s)
}

// send sends all that is waiting.
func (f *faulted) send(s *Store) {
	f.t.Helper()
	if len(f.waiting) == 0 {
		return
	}
	_, err := s.Record(f.t.Context(), f.waiting)
	if err != nil {
		f.refused++
		if f.disk.Failed() == 0 {
			f.t.Errorf("%s: record: %v", f.fault, err)
		}
		return
	}
	now := f.fact()
	for i := range f.waiting {
		f.sent, f.told = append(f.sent, f.waiting[i]), append(f.told, now)
	}
	f.waiting = nil
}

// crash cuts the power now, in every way.
func (f *faulted) crash(disk *faultvfs.Disk) {
	f.t.Helper()
	r := disk.Replay()
	r.Advance(r.Len())
	dir, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
	if err != nil {
		f.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for mode := range faultvfs.Modes {
		image := r.Cut(mode, rand.New(rand.NewPCG(uint64(f.fault.N), 0)))
		if err := errors.Join(image.Write(dir), f.examine(dir, r.Len())); err != nil {
			f.t.Errorf("%s: after a power cut, unsynced writes %s: %v", f.fault, mode, err)
		}
	}
}

// A commit whose sync fails is not stored. But it stands in the log, and in the
// system's memory: the next process reads it there, and calls it stored.
func TestOpen_MakesSureOfALogWhoseSyncFailed(t *testing.T) {
	disk, err := faultvfs.New("unix")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	f := &faulted{ledger: &ledger{disk: disk, gateways: []string{"arena"}}, t: t, dir: memoryFolder(t), epoch: touchline.NewEpoch(), next: 1}
	s := f.open()
	if err := s.AddGateway(t.Context(), "arena", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	f.batch(s)
	disk.Fail(faultvfs.Fault{Kind: faultvfs.Sync, N: 1, ForGood: true})
	f.batch(s)
	if len(f.waiting) != 1 {
		t.Fatal("a batch was called stored whose sync failed")
	}
	f.close(s) // without a checkpoint: it fails too
	disk.Heal()
	s = f.open()
	outcomes, err := s.Record(t.Context(), f.waiting)
	if err != nil || !outcomes[0].Repeat {
		t.Fatalf("%+v, %v: the test wants the log to be read as committed", outcomes, err)
	}
	f.send(s)
	f.crash(disk)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A store that is open elsewhere must not have its log rewritten under it; one
// whose last process died must, before anybody reads it.
func TestOpen_RewritesTheLogOnlyWhereItIsAlone(t *testing.T) {
	dir, longAgo := t.TempDir(), time.Unix(1, 0)
	log := filepath.Join(dir, FileName+"-wal")
	s := open(t, dir)
	if err := s.AddGateway(t.Context(), "arena", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(log, longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	info, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	if !info.ModTime().Equal(longAgo) {
		t.Error("a second opening wrote to the log of the first")
	}
	if err := errors.Join(second.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := enterFolder(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if alone, err := p.alone(); err != nil || !alone {
		t.Errorf("alone = %v, %v when both are closed", alone, err)
	}
	if err := p.leave(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
}
