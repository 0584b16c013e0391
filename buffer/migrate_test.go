package buffer

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"touchline/internal/faultvfs"
)

// goldens are files that earlier versions wrote, in testdata, and how many
// samples they hold.
var goldens = map[int]int64{1: 150, 2: 208}

// writeGolden puts the file of a version into a folder.
func writeGolden(t testing.TB, dir string, version int) {
	t.Helper()
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("version%d.db%s", version, suffix)))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, databaseName+suffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// schemaIn returns the schema of a file as an older version would see it
// before SQLite does, and whether it has the tables of that schema and no other.
func schemaIn(t testing.TB, dir string) (version int, pure bool) {
	t.Helper()
	f, err := openRaw(filepath.Join(dir, databaseName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	page := make([]byte, pageBytes)
	if err := f.live().read(1, page); err != nil {
		t.Fatal(err)
	}
	version = int(binary.BigEndian.Uint32(page[60:]))
	return version, version >= 1 && version <= schemaVersion && hasTables(page, schemaOf(version))
}

// TestMigrate_IsWholeOrNotAtAll: each write and each sync of a migration fails
// in turn, once and for good, also since the disk is full. The file is of the
// older schema then, for the older version to go on with, or of the newer one;
// and when the disk works again all samples are there.
func TestMigrate_IsWholeOrNotAtAll(t *testing.T) {
	tried, older := 0, 0
	for version, samples := range goldens {
		for _, how := range []faultvfs.Fault{
			{Kind: faultvfs.Write}, {Kind: faultvfs.Write, ForGood: true}, {Kind: faultvfs.Write, Full: true, ForGood: true},
			{Kind: faultvfs.Sync}, {Kind: faultvfs.Sync, ForGood: true},
		} {
			for how.N = 1; ; how.N++ {
				hits, failed := migrateWith(t, version, how, samples)
				if t.Failed() {
					t.Fatalf("schema %d, %s", version, how)
				}
				if hits == 0 {
					break // beyond the last call
				}
				tried++
				if failed {
					older++
				}
			}
			if how.N == 1 {
				t.Errorf("a migration of schema %d has no %s", version, how.Kind)
			}
		}
	}
	t.Logf("MEASURED migrations with a fault: %d tried, %d of them did not come about, 0 samples lost", tried, older)
	if older == 0 {
		t.Error("no fault was ever noticed")
	}
}

func migrateWith(t *testing.T, version int, fault faultvfs.Fault, samples int64) (hits int, failed bool) {
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
	writeGolden(t, dir, version)
	opts := Options{Dir: dir, MaxBytes: 1 << 30, WhenFull: EvictOldest, ballast: -1, vfs: disk.Name()}
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	disk.Fail(fault)
	b, err := Open(t.Context(), opts, logger)
	if hits, failed = disk.Failed(), err != nil; !failed {
		_ = b.Close() // which may fail, as the disk does
	} else if is, pure := schemaIn(t, dir); is != version && is != schemaVersion || !pure {
		t.Errorf("it ended with %v, and left schema %d (whole: %t), want %d or %d", err, is, pure, version, schemaVersion)
	}
	disk.Heal()
	if b, err = Open(t.Context(), opts, logger); err != nil {
		t.Fatal(err)
	}
	s := b.Stats()
	if len(s.Aside) > 0 || s.Samples+s.KeptSamples != samples {
		t.Errorf("on a disk that works again there are %d samples, want %d; set aside: %+v", s.Samples+s.KeptSamples, samples, s.Aside)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	return hits, failed
}

// TestMigrate_FullDiskGivesItsBallast: without the new tables there is no
// gateway that could send what fills the disk.
func TestMigrate_FullDiskGivesItsBallast(t *testing.T) {
	dir := t.TempDir()
	writeGolden(t, dir, 2)
	b := ballast{path: filepath.Join(dir, ballastName), size: 64 << 10}
	if err := b.make(); err != nil {
		t.Fatal(err)
	}
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	opts := Options{Dir: dir, MaxBytes: 1 << 30, WhenFull: EvictOldest, ballast: 64 << 10, vfs: disk.Name(),
		free: func(string) (int64, error) { return 0, nil }} // so that it is not made again at once
	disk.Fail(faultvfs.Fault{Kind: faultvfs.Write, N: 3, Full: true}) // once: then there is the ballast's room
	got, err := Open(t.Context(), opts, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	s := got.Stats()
	if err := got.Close(); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(b.path); disk.Failed() != 1 || err != nil || info.Size() != 0 || !s.BallastGiven || s.Samples != 108 {
		t.Errorf("%d writes found the disk full, the ballast has %d bytes, the buffer %d samples (%+v)", disk.Failed(), info.Size(), s.Samples, s)
	}
	// Where there is none to give, the error says what is wrong.
	empty := t.TempDir()
	writeGolden(t, empty, 2)
	opts.Dir = empty
	disk.Fail(faultvfs.Fault{Kind: faultvfs.Write, N: 1, Full: true, ForGood: true})
	if _, err = Open(t.Context(), opts, testLogger(t)); !isFull(err) {
		t.Errorf("a disk that is full and stays so: %v", err)
	}
}
