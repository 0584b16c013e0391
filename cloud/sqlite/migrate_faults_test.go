package sqlite

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/internal/faultvfs"
)

// TestMigrate_IsWholeOrNotAtAll: writes and syncs of a migration fail in turn,
// once, for good, and since the disk is full. The store is what it was then, and
// the version before goes on with it; or it is migrated.
func TestMigrate_IsWholeOrNotAtAll(t *testing.T) {
	const before = 5
	whole := migrations
	defer func() { migrations = whole }()
	golden := t.TempDir()
	migrations = whole[:before]
	old := open(t, golden)
	if err := old.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	// That version recorded no notes; this one must not either.
	if _, err := old.write.Exec(`CREATE TEMP TABLE rollup_note (id INTEGER PRIMARY KEY, made, spans)`); err != nil {
		t.Fatal(err)
	}
	d := recordertest.NewDelivery(t, "north", touchline.NewEpoch(), 1, recordertest.Series("belt", 0, 1e8, 600))
	if _, err := old.Record(t.Context(), []cloud.Delivery{d}); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(golden, FileName))
	if err != nil {
		t.Fatal(err)
	}
	stride := 3
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		stride = 1
	}
	tried, back := 0, 0
	for _, how := range []faultvfs.Fault{
		{Kind: faultvfs.Write}, {Kind: faultvfs.Write, ForGood: true}, {Kind: faultvfs.Write, Full: true, ForGood: true}, {Kind: faultvfs.Sync, ForGood: true},
	} {
		for how.N = 1; ; {
			hits, schema := migrateWith(t, file, how, whole, before)
			if t.Failed() {
				t.Fatalf("first with this fault: %s", how)
			}
			if hits == 0 {
				break // beyond the last call
			}
			if tried++; schema == before {
				back++
			}
			if how.N++; how.Kind == faultvfs.Write {
				how.N += stride - 1
			}
		}
	}
	t.Logf("MEASURED migrations of a record store with a fault: %d tried, after %d of them the version before went on, 0 blocks lost", tried, back)
	if back == 0 {
		t.Error("no fault kept a migration from coming about")
	}
}

// migrateWith returns how many calls failed, and which schema was left.
func migrateWith(t *testing.T, file []byte, fault faultvfs.Fault, whole []migration, before int) (hits, schema int) {
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
	writeFile(t, filepath.Join(dir, FileName), string(file))
	logger := slog.New(slog.DiscardHandler)
	disk.Fail(fault)
	migrations = whole
	s, failed := openOn(t.Context(), disk.Name(), dir, logger)
	hits = disk.Failed()
	if failed == nil {
		_ = s.Close() // which may fail, as the disk does
	}
	disk.Heal()
	migrations = whole[:before]
	if failed != nil {
		if s, err = openOn(t.Context(), disk.Name(), dir, logger); err == nil {
			if schema, err = strconv.Atoi(pragmaOf(t, s, "user_version")); err != nil || schema != before {
				t.Errorf("the version before opened schema %d (%v)", schema, err)
			}
			if err := s.AddGateway(t.Context(), "south", [32]byte{2}); err != nil {
				t.Errorf("the version before can't go on: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	migrations = whole
	if s, err = openOn(t.Context(), disk.Name(), dir, logger); err != nil {
		t.Errorf("on a disk that works again: %v", err)
		return hits, schema
	}
	defer s.Close()
	var blocks int
	if err := s.read.QueryRow(`SELECT count(*) FROM block`).Scan(&blocks); err != nil || blocks != 1 {
		t.Errorf("the store has %d blocks (%v), want 1", blocks, err)
	}
	audit(t, s)
	return hits, schema
}
