package faultvfs

import (
	"bytes"
	"database/sql"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newDisk(t *testing.T) *Disk {
	t.Helper()
	d, err := New("unix-excl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// openDB opens a database on the disk, in a folder of its own.
func openDB(t *testing.T, d *Disk, settings string) (db *sql.DB, dir string) {
	t.Helper()
	dir = t.TempDir()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, "x.db")+"?vfs="+d.Name()+"&"+settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	db.SetMaxOpenConns(1)
	return db, dir
}

func exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// With everything kept, the image is the folder.
func TestReplay_KeptIsWhatTheFilesHave(t *testing.T) {
	for _, settings := range []string{"_journal_mode=WAL&_synchronous=FULL", "_journal_mode=DELETE&_synchronous=FULL", "_journal_mode=TRUNCATE&_synchronous=OFF"} {
		d := newDisk(t)
		db, dir := openDB(t, d, settings)
		exec(t, db, "PRAGMA wal_autocheckpoint = 10")
		exec(t, db, "CREATE TABLE x (a, b)")
		for range 50 {
			exec(t, db, "INSERT INTO x VALUES (random(), randomblob(1000))")
			exec(t, db, "DELETE FROM x WHERE a % 3 = 0")
		}
		r := d.Replay()
		r.Advance(r.Len())
		image := r.Cut(Kept, rand.New(rand.NewPCG(1, 1)))
		for name, data := range image {
			there, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || !bytes.Equal(there, data) {
				t.Errorf("%s: %s has %d bytes, the image other %d (%v)", settings, name, len(there), len(data), err)
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != len(image) {
			t.Errorf("%s: %d files, %d in the image", settings, len(entries), len(image))
		}
		writes, _, syncs := r.Count()
		if writes < 50 || (syncs == 0) != strings.Contains(settings, "OFF") {
			t.Errorf("%s: %d writes, %d syncs", settings, writes, syncs)
		}
	}
}

// logOf makes a replay of a log that is written by hand.
func logOf(ops ...op) *Replay {
	return &Replay{log: ops, names: []string{"a", "b"}, files: make([]content, 2), folder: make(map[string]int)}
}

func TestCut_KeepsWhatWasSynced(t *testing.T) {
	data := func(c string, n int) []byte { return bytes.Repeat([]byte(c), n) }
	ops := []op{
		{kind: opCreate, file: 0},
		{kind: opSyncFolder, file: -1},
		{kind: opWrite, file: 0, off: 0, data: data("1", 2048)},
		{kind: opSync, file: 0},
		{kind: opWrite, file: 0, off: 1024, data: data("2", 2048)},
		{kind: opTruncate, file: 0, off: 2560},
		{kind: opCreate, file: 1},
		{kind: opWrite, file: 1, off: 0, data: data("3", 10)},
		{kind: opSync, file: 1},
	}
	seen := map[Mode]map[string]bool{}
	named := map[Mode]int{}
	random := rand.New(rand.NewPCG(1, 2))
	const cuts = 200
	for mode := range Modes {
		seen[mode] = map[string]bool{}
		for range cuts {
			r := logOf(ops...)
			r.Advance(r.Len())
			image := r.Cut(mode, random)
			a := string(image["a"])
			seen[mode][a] = true
			if !strings.HasPrefix(a, string(data("1", 1024))) || len(a) < 2048 {
				t.Fatalf("%s: what was synced is gone: %d bytes", mode, len(a))
			}
			for i := 0; i < len(a); i += sector {
				if s := a[i:min(i+sector, len(a))]; strings.Trim(s, s[:1]) != "" {
					t.Fatalf("%s: a sector is torn", mode)
				}
			}
			if _, there := image["b"]; there {
				named[mode]++
			}
		}
	}
	wholes := string(data("1", 1024)) + string(data("2", 1536))
	if len(seen[Kept]) != 1 || !seen[Kept][wholes] {
		t.Errorf("kept: %d images", len(seen[Kept]))
	}
	if len(seen[Lost]) != 1 || !seen[Lost][string(data("1", 2048))] {
		t.Errorf("lost: %d images", len(seen[Lost]))
	}
	// The write and the truncation are there or not, and where both are, the
	// last of them decides the length; torn has each set of 4 sectors.
	if len(seen[Torn]) < 15 || len(seen[Reordered]) != 4 {
		t.Errorf("torn: %d images, reordered: %d", len(seen[Torn]), len(seen[Reordered]))
	}
	// A synced file without a name that is durable.
	if named[Kept] != cuts || named[Lost] != 0 || named[Torn] == 0 || named[Torn] == cuts {
		t.Errorf("the name that was not synced is there %v times", named)
	}
}

func TestCut_ReordersWrites(t *testing.T) {
	r := logOf(op{kind: opCreate, file: 0}, op{kind: opSyncFolder, file: -1},
		op{kind: opWrite, file: 0, data: []byte("xy")}, op{kind: opWrite, file: 0, data: []byte("z")})
	r.Advance(r.Len())
	seen := map[string]int{}
	random := rand.New(rand.NewPCG(1, 3))
	for range 200 {
		seen[string(r.Cut(Reordered, random)["a"])]++
	}
	for _, want := range []string{"", "z", "xy", "zy"} {
		if seen[want] == 0 {
			t.Errorf("no image has %q: %v", want, seen)
		}
	}
	if seen["xy"] <= seen["zy"] { // xy is what the first alone leaves, and both in the wrong order
		t.Errorf("no reordering in %v", seen)
	}
}

// What a failed sync was to write is not written by a later one.
func TestCut_FailedSyncDropsItsWrites(t *testing.T) {
	r := logOf(
		op{kind: opCreate, file: 0}, op{kind: opSyncFolder, file: -1},
		op{kind: opWrite, file: 0, off: 0, data: []byte("dropped")},
		op{kind: opSyncFailed, file: 0},
		op{kind: opWrite, file: 0, off: 7, data: []byte("there")},
		op{kind: opSync, file: 0},
	)
	r.Advance(r.Len())
	if got := string(r.Cut(Kept, nil)["a"]); got != "\x00\x00\x00\x00\x00\x00\x00there" {
		t.Errorf("the disk has %q", got)
	}
}

func TestFail_EachKindOnceAndForGood(t *testing.T) {
	for kind := range kinds {
		for _, fault := range []Fault{{Kind: kind, N: 2}, {Kind: kind, N: 1, ForGood: true}, {Kind: kind, N: 1, Full: true}} {
			d := newDisk(t)
			db, _ := openDB(t, d, "_journal_mode=TRUNCATE&_synchronous=FULL&_cache_size=1")
			exec(t, db, "CREATE TABLE x (a)")
			exec(t, db, "INSERT INTO x VALUES (zeroblob(100000))")
			d.Fail(fault)
			touch := func() error {
				_, err := db.Exec("UPDATE x SET a = randomblob(100000)")
				return err
			}
			// The TRUNCATE of a journal at its end needs two transactions for two.
			err := touch()
			if err == nil {
				err = touch()
			}
			if err == nil || d.Failed() == 0 {
				t.Errorf("%s: %v, %d calls failed", fault, err, d.Failed())
				continue
			}
			if fault.Full != strings.Contains(err.Error(), "full") {
				t.Errorf("%s: %v", fault, err)
			}
			if fault.ForGood {
				if err := touch(); err == nil {
					t.Errorf("%s: a later one succeeded", fault)
				}
			}
			d.Heal()
			if err := touch(); err != nil {
				t.Errorf("%s: after it was healed: %v", fault, err)
			}
		}
	}
}
