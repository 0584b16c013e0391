package buffer

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// File 1 in testdata has two epochs, of the first of which 500 samples were
// evicted and recorded as lost, and of the second samples 500 to 649 are held,
// all of them in the log.
func TestOpen_MigratesAFileOfVersion1(t *testing.T) {
	opts := testOptions(t)
	writeGolden(t, opts.Dir, 1)
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

// File 2 has an epoch in its database, of 100 samples that the cloud stored, and
// one in its log: 100 samples, five that were stamped by a clock that was never
// set, and three of a message that had a name.
func TestOpen_MigratesAFileOfVersion2(t *testing.T) {
	opts, _ := repeatOptions(t)
	opts.MaxBytes, opts.KeepStored = 8<<20, time.Hour
	writeGolden(t, opts.Dir, 2)
	b := startBuffer(t, opts)
	s := b.Stats()
	if len(s.Aside) > 0 || s.Samples != 108 || s.KeptSamples != 100 || len(b.boots.rows) != 1 {
		t.Fatalf("it holds %d samples, keeps %d and knows %d boots: want 108, 100 and 1; set aside: %+v", s.Samples, s.KeptSamples, len(b.boots.rows), s.Aside)
	}
	named := touchline.Key{ID: touchline.DigestOf("a"), Body: touchline.DigestOf("b"), Count: 3, Long: true, Again: true}
	if err := send(t, b, touchline.Arrival{Samples: numbered(205, 3), Keys: []touchline.Key{named}}); err != nil {
		t.Fatal(err)
	}
	if s := b.Stats(); s.RepeatsByKey != 3 || s.Samples != 108 {
		t.Errorf("a message that the file knows was stored again: %+v", s)
	}
	want := append(numbered(100, 100), stampedSamples(200, 5)...)
	got := decodeAll(t, readAll(t, b))
	for i, want := range append(want, numbered(205, 3)...) {
		if got[i] != want {
			t.Fatalf("sample %d is %+v, want %+v", i, got[i], want)
		}
	}
}

// A migrated file and a new one are the same to whoever looks at page 1.
func TestMigrate_MakesTheTablesOfANewFile(t *testing.T) {
	for old := range schemaVersion { // 0: none
		opts := testOptions(t)
		if old > 0 {
			writeGolden(t, opts.Dir, old)
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
			t.Errorf("page 1 does not have the tables of schema %d (migrated from %d)", schemaVersion, old)
		}
		if version := binary.BigEndian.Uint32(page[60:]); int(version) != schemaVersion {
			t.Errorf("page 1 says version %d, want %d (migrated from %d)", version, schemaVersion, old)
		}
		raw, err := openRaw(filepath.Join(opts.Dir, databaseName))
		if err != nil {
			t.Fatal(err)
		}
		for i, step := range schemas {
			if needs := raw.needs(uint32(i + 1)); needs != step.since {
				t.Errorf("it says of schema %d that it needs %q, want %s (migrated from %d)", i+1, needs, step.since, old)
			}
		}
		if err := raw.close(); err != nil {
			t.Fatal(err)
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
