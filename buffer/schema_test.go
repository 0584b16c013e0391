package buffer

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"touchline"
	"touchline/wire"
)

// writeVersion1 puts a buffer that version 1 wrote into a folder: two epochs,
// of the first of which 500 samples were evicted and recorded as lost, and of
// the second samples 500 to 649 are held, all of them in the log.
func writeVersion1(t testing.TB, dir string) {
	t.Helper()
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(filepath.Join("testdata", "version1.db"+suffix))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, databaseName+suffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpen_MigratesAFileOfVersion1(t *testing.T) {
	opts := testOptions(t)
	writeVersion1(t, opts.Dir)
	b := startBuffer(t, opts)
	s := b.Stats()
	if len(s.Aside) > 0 || s.Blocks != 2 || s.Samples != 150 || s.LostRecords != 1 {
		t.Fatalf("it holds %d blocks, %d samples and %d losses: want 2, 150 and 1; set aside: %+v", s.Blocks, s.Samples, s.LostRecords, s.Aside)
	}
	_, lost := b.Held()
	if n := lost[0].Ranges.Count(); n != 500 {
		t.Errorf("%d samples are recorded as lost, want 500", n)
	}
	got := decodeAll(t, readAll(t, b))
	for i, want := range numbered(500, 150) {
		if got[i] != want {
			t.Fatalf("sample %d is %+v, want %+v", i, got[i], want)
		}
	}
	mustAppend(t, b, numbered(650, 10))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	var version int
	st, err := openStore(t.Context(), filepath.Join(opts.Dir, databaseName))
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	if err := st.conn.QueryRowContext(t.Context(), "PRAGMA user_version").Scan(&version); err != nil || version != schemaVersion {
		t.Errorf("its schema is %d (%v), want %d", version, err, schemaVersion)
	}
}

// A migrated file and a new one are the same to whoever looks at page 1.
func TestMigrate_MakesTheTablesOfANewFile(t *testing.T) {
	for _, old := range []bool{false, true} {
		opts := testOptions(t)
		if old {
			writeVersion1(t, opts.Dir)
		}
		b := openBuffer(t, opts)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		page := make([]byte, pageBytes)
		f, err := os.Open(filepath.Join(opts.Dir, databaseName))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(page, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if !hasTables(page, schemaOf(schemaVersion)) {
			t.Errorf("page 1 does not have the tables of schema %d (migrated: %v)", schemaVersion, old)
		}
		if version := binary.BigEndian.Uint32(page[60:]); int(version) != schemaVersion {
			t.Errorf("page 1 says version %d, want %d (migrated: %v)", version, schemaVersion, old)
		}
	}
}

func decodeAll(t testing.TB, blocks []wire.Block) []touchline.Sample {
	t.Helper()
	var all []touchline.Sample
	decoder := wire.NewDecoder()
	for i := range blocks {
		var err error
		if all, err = decoder.Decode(all, blocks[i].Data); err != nil {
			t.Fatal(err)
		}
	}
	return all
}
