package postgres

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/recordertest"
	"touchline/internal/pgtest"
)

func TestMain(m *testing.M) {
	code := pgtest.Main(m)
	if err := goleak.Find(); code == 0 && err != nil {
		println(err.Error())
		code = 1
	}
	os.Exit(code)
}

func open(t testing.TB, url string) *Store { return openWith(t, Options{URL: url}) }

func openWith(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

// openTest opens a store in a database of its own until the test ends.
func openTest(t testing.TB) *Store {
	t.Helper()
	s := open(t, pgtest.Database(t))
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func addGateways(t testing.TB, s *Store, names ...string) {
	t.Helper()
	for i, name := range names {
		if err := s.AddGateway(t.Context(), name, [32]byte{byte(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
}

func record(t testing.TB, s *Store, work ...cloud.Delivery) []cloud.Outcome {
	t.Helper()
	outcomes, err := s.Record(t.Context(), work)
	if err != nil {
		t.Fatalf("Record: %v", err)
	}
	return outcomes
}

func query(t testing.TB, s *Store, q cloud.Query) (records []cloud.Record) {
	t.Helper()
	err := s.Samples(t.Context(), q, func(r cloud.Record) error { records = append(records, r); return nil })
	if err != nil {
		t.Fatalf("Samples: %v", err)
	}
	return records
}

// A cutter breaks connections at the next commit when it is told to: before
// the server gets it, or behind it, so that its answer is lost.
type cutter struct{ before, after atomic.Bool }

type cutConn struct {
	net.Conn
	cutter *cutter
}

func (c *cutConn) Write(b []byte) (int, error) {
	if !strings.Contains(string(b), "commit\x00") {
		return c.Conn.Write(b)
	}
	if c.cutter.before.Swap(false) {
		_ = c.Conn.Close()
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Write(b)
	if c.cutter.after.Swap(false) {
		// The answer is on its way when it can be read.
		_, _ = c.Conn.Read(make([]byte, 1))
		_ = c.Conn.Close()
	}
	return n, err
}

// openCut opens a store whose connections c breaks.
func openCut(t testing.TB, url string, c *cutter) *Store {
	t.Helper()
	opts := Options{URL: url}
	config, err := poolConfig(opts)
	if err != nil {
		t.Fatal(err)
	}
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{conn, c}, nil
	}
	s, err := openOn(t.Context(), config, opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

// A suiteStore is audited when it is closed, and can be made to fail.
type suiteStore struct {
	*Store
	cutter *cutter
	t      *testing.T
	closed *sync.Once
}

func (s suiteStore) FailNextCommit(*testing.T) { s.cutter.before.Store(true) }

func (s suiteStore) AgeNodes(t *testing.T, id string, by time.Duration) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), `UPDATE node SET seen = seen - $2::interval WHERE id = $1`, id, by); err != nil {
		t.Fatal(err)
	}
}

func (s suiteStore) Close() error {
	s.closed.Do(func() { audit(s.t, s.Store) })
	return s.Store.Close()
}

func audit(t testing.TB, s *Store) Audited {
	t.Helper()
	found, err := s.Audit(t.Context())
	if err != nil {
		t.Fatalf("Audit: %v", err)
	}
	return found
}

func TestConformance(t *testing.T) { conformance(t, merge.DefaultLimits) }

// With almost no memory for a query every query needs many passes.
func TestConformance_InManyPasses(t *testing.T) {
	if os.Getenv("TOUCHLINE_TEST_LONG") == "" {
		t.Skip("long: what a query holds is package merge's, and the suite of cloud/sqlite tests it each time (TOUCHLINE_TEST_LONG=1)")
	}
	conformance(t, merge.Limits{Samples: 200, TextBytes: 100})
}

func conformance(t *testing.T, limits merge.Limits) {
	server := pgtest.Shared(t)
	template := server.Database(t)
	made := open(t, template)
	if err := made.makeParts(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := made.Close(); err != nil {
		t.Fatal(err)
	}
	databases := make(map[string]string)
	recordertest.Run(t, func(t *testing.T) recordertest.Store {
		if databases[t.Name()] == "" {
			databases[t.Name()] = server.Clone(t, template)
		}
		c := &cutter{}
		s := openCut(t, databases[t.Name()], c)
		s.limits = limits
		return suiteStore{s, c, t, &sync.Once{}}
	})
}
