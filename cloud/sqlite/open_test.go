package sqlite

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mattn/go-sqlite3"
	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// A name that means something in a URI must not in a folder.
func TestOpen_MakesFolderAndFileForItsOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?mode=memory#%41", "data")
	s := open(t, dir)
	if s.ID() == "" {
		t.Fatal("the store has no id")
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(filepath.Join(dir, FileName+suffix))
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Fatalf("%s has mode %o, want 600: it holds token hashes", info.Name(), mode)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, FileName+"-wal")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the log is left behind after Close: %v", err)
	}
	if _, err := s.Record(t.Context(), []cloud.Delivery{{Gateway: "north"}}); err == nil {
		t.Fatal("Record after Close returned nil, want an error")
	}
}

// What acknowledgements rest on holds on each write connection, also on one
// that was opened anew.
func TestOpen_SyncsEachCommit(t *testing.T) {
	s := openTest(t)
	for round := range 2 {
		withWriter(t, s, func(conn *sqlite3.SQLiteConn) {
			for name, want := range map[string]string{
				"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "250", "page_size": "8192",
			} {
				if got, err := pragma(conn, name); err != nil || got != want {
					t.Errorf("connection %d: %s = %s, %v: want %s", round, name, got, err, want)
				}
			}
		})
		conn, err := s.write.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err, driver.ErrBadConn) {
			t.Fatal(err)
		}
	}
	if opened := s.writeConn.opened.Load(); opened < 2 {
		t.Fatalf("%d write connections were opened: the test did not make it open anew", opened)
	}
}

func TestOpen_RefusesAConnectionThatDoesNotSync(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	writeFile(t, path, "")
	weak := strings.Replace(writerDSN(path), "_synchronous=FULL", "_synchronous=NORMAL", 1)
	db := sql.OpenDB(newConnector(weak, verifyWriter))
	defer db.Close()
	if err := db.Ping(); err == nil || !strings.Contains(err.Error(), "synchronous") {
		t.Fatalf("a connection with synchronous=NORMAL: %v, want a refusal that names it", err)
	}
}

func TestOpen_ReadersCannotWrite(t *testing.T) {
	s := openTest(t)
	if _, err := s.read.Exec(`DELETE FROM meta`); err == nil {
		t.Fatal("a read connection wrote")
	}
}

func TestOpen_RefusesWhatItCannotRead(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(t *testing.T, dir, path string)
		reason string
	}{
		{"newer schema", func(t *testing.T, dir, path string) {
			s := open(t, dir)
			defer s.Close()
			if _, err := s.write.Exec(fmt.Sprintf(`UPDATE meta SET value = '7.12.3' WHERE key = 'needs'; PRAGMA user_version = %d`, len(migrations)+1)); err != nil {
				t.Fatal(err)
			}
		}, "touchline-cloud 7.12.3 or newer reads this record store: its schema is"},
		{"newer schema that names no version", func(t *testing.T, dir, path string) {
			s := open(t, dir)
			defer s.Close()
			if _, err := s.write.Exec(fmt.Sprintf(`DROP TABLE meta; PRAGMA user_version = %d`, len(migrations)+1)); err != nil {
				t.Fatal(err)
			}
		}, "a newer touchline-cloud reads this record store"},
		{"another program's database", func(t *testing.T, dir, path string) {
			db, err := sql.Open("sqlite3", path)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec(`CREATE TABLE notes (text)`); err != nil {
				t.Fatal(err)
			}
		}, "another program's database"},
		{"no database", func(t *testing.T, dir, path string) {
			writeFile(t, path, strings.Repeat("samples,", 1000))
		}, "not an SQLite database"},
		{"a few bytes", func(t *testing.T, dir, path string) {
			writeFile(t, path, "SQLite format 3\x00")
		}, "not an SQLite database"},
		{"emptied file with its log", func(t *testing.T, dir, path string) {
			writeFile(t, path, "")
			writeFile(t, path+"-wal", "the last of what was acknowledged")
		}, "its log"},
		{"missing file with its log", func(t *testing.T, dir, path string) {
			writeFile(t, path+"-wal", "the last of what was acknowledged")
		}, "its log"},
		{"folder in the file's place", func(t *testing.T, dir, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is a folder"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, FileName)
			c.make(t, dir, path)
			before := contents(t, dir)
			for range 2 { // the first must not prepare the way for the second
				_, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
				if err == nil || !strings.Contains(err.Error(), c.reason) || !strings.Contains(err.Error(), path) {
					t.Fatalf("Open: %v\nwant an error that names %s and says %q", err, path, c.reason)
				}
			}
			after := contents(t, dir)
			for name, content := range before {
				if after[name] != content {
					t.Errorf("Open changed %s", name)
				}
			}
		})
	}
}

func TestOpen_NamesAFolderThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "")
	_, err := Open(t.Context(), filepath.Join(file, "data"), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("Open in a file: %v, want an error that names it", err)
	}
}

// Cloud and administration command started together on an empty folder.
func TestOpen_AtTheSameTimeMakesOneStore(t *testing.T) {
	for range 10 {
		dir := t.TempDir()
		var group errgroup.Group
		stores := make([]*Store, 4)
		for i := range stores {
			group.Go(func() (err error) {
				stores[i], err = Open(t.Context(), dir, slog.New(slog.DiscardHandler))
				return err
			})
		}
		err := group.Wait()
		for _, s := range stores {
			if s != nil {
				if s.ID() != stores[0].ID() {
					t.Errorf("store ids %s and %s of one file", s.ID(), stores[0].ID())
				}
				s.Close()
			}
		}
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
	}
}

// A full disk (here: SQLite may use no more pages) is an error that leaves
// nothing, and when there is space again everything goes on.
func TestRecord_SurvivesAFullDisk(t *testing.T) {
	s := openTest(t)
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	epoch := touchline.NewEpoch()
	pages := func(limit int) {
		withWriter(t, s, func(conn *sqlite3.SQLiteConn) {
			if _, err := conn.Exec(fmt.Sprintf(`PRAGMA max_page_count = %d`, limit), nil); err != nil {
				t.Fatal(err)
			}
		})
	}
	var batches [][]cloud.Delivery
	for i := range uint64(40) {
		samples := recordertest.Series("belt", int64(i)*1000, 1, 20)
		samples[0].Value = touchline.TextValue(strings.Repeat(fmt.Sprintf("%x", i*0x9e3779b97f4a7c15), 2000))
		batches = append(batches, []cloud.Delivery{
			recordertest.NewDelivery(t, "north", epoch, 1+40*i, samples),
			recordertest.Undecodable("north", epoch, 21+40*i, 20, strings.Repeat("x", 3000)),
		})
	}
	pages(24)
	full := 0
	for ; full < len(batches); full++ {
		if _, err := s.Record(t.Context(), batches[full]); err != nil {
			if !strings.Contains(err.Error(), "full") {
				t.Fatalf("Record on a full disk: %v", err)
			}
			break
		}
	}
	if full == 0 || full == len(batches) {
		t.Fatalf("the disk was full after %d batches: the test needs it in between", full)
	}
	audit(t, s)
	if _, err := s.Record(t.Context(), batches[full]); err == nil {
		t.Fatal("Record on a full disk returned nil")
	}
	stored, err := s.Stored(t.Context(), "north", []touchline.Epoch{epoch})
	if err != nil || len(stored) != 1 || stored[0].Ranges.Count() != uint64(full)*40 {
		t.Fatalf("stored are %v, %v: want the %d numbers before the disk was full", stored, err, full*40)
	}
	pages(1 << 20)
	for _, batch := range batches {
		if _, err := s.Record(t.Context(), batch); err != nil {
			t.Fatalf("Record with space again: %v", err)
		}
	}
	if found := audit(t, s); found.Blocks != 40 || found.KeptAside != 40 || found.Samples != 800 {
		t.Fatalf("the store has %+v, want 40 blocks with 800 samples, and 40 aside", found)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// contents returns what is in the files of dir.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, file := range files {
		if file.Name() == lockName {
			continue // it may be made beside anything
		}
		if content, err := os.ReadFile(filepath.Join(dir, file.Name())); err == nil {
			all[file.Name()] = string(content)
		}
	}
	return all
}
