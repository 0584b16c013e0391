package sqlite

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"
	"go.uber.org/goleak"

	"touchline/cloud/merge"
	"touchline/cloud/recordertest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(runChild(role))
	}
	goleak.VerifyTestMain(m)
}

// testStore is a Store as the conformance suite wants it.
type testStore struct {
	*Store
}

// FailNextCommit makes SQLite itself refuse the next commit.
func (s testStore) FailNextCommit(t *testing.T) {
	withWriter(t, s.Store, func(conn *sqlite3.SQLiteConn) {
		conn.RegisterCommitHook(func() int {
			conn.RegisterCommitHook(nil)
			return 1
		})
	})
}

// withWriter runs f with the write connection.
func withWriter(t *testing.T, s *Store, f func(*sqlite3.SQLiteConn)) {
	t.Helper()
	conn, err := s.write.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Raw(func(raw any) error { f(raw.(*sqlite3.SQLiteConn)); return nil }); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

// openTest opens a store in a folder of its own until the test ends.
func openTest(t testing.TB) *Store {
	t.Helper()
	s := open(t, t.TempDir())
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func audit(t *testing.T, s *Store) Audited {
	t.Helper()
	found, err := s.Audit(t.Context())
	if err != nil {
		t.Fatalf("Audit: %v", err)
	}
	return found
}

// The suite's stores are audited when they are closed.
type auditedStore struct {
	testStore
	t      *testing.T
	closed *sync.Once
}

func (s auditedStore) AgeNodes(t *testing.T, id string, by time.Duration) {
	t.Helper()
	if _, err := s.write.Exec(`UPDATE node SET seen = seen - ? WHERE id = ?`, by.Nanoseconds(), id); err != nil {
		t.Fatal(err)
	}
}

func (s auditedStore) Close() error {
	s.closed.Do(func() { audit(s.t, s.Store) })
	return s.Store.Close()
}

func TestConformance(t *testing.T) {
	root := t.TempDir()
	recordertest.Run(t, func(t *testing.T) recordertest.Store {
		s := open(t, filepath.Join(root, filepath.Base(t.Name())))
		return auditedStore{testStore{s}, t, &sync.Once{}}
	})
}

// With almost no memory for a query every query needs many passes.
func TestConformance_InManyPasses(t *testing.T) {
	root := t.TempDir()
	recordertest.Run(t, func(t *testing.T) recordertest.Store {
		s := open(t, filepath.Join(root, filepath.Base(t.Name())))
		s.limits = merge.Limits{Samples: 200, TextBytes: 100}
		return auditedStore{testStore{s}, t, &sync.Once{}}
	})
}
