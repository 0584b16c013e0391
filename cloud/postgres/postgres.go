// Package postgres is the record store of a cluster: blocks, cursors, gateways
// and announced losses in PostgreSQL 15 or newer, which any number of nodes
// use at once. A batch is recorded in one transaction that the server has
// synced when Record returns; an error leaves nothing behind that a repeat
// would not find. Open connects, Run keeps partitions ahead and drops those
// that are over, Close ends all connections.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/rollup"
)

const (
	// maxConns bounds the connections of one node: one records, and the others
	// answer queries, handshakes and commands. A server takes 100 by default,
	// so that ten nodes fit.
	maxConns = 8

	// maxQueries bounds the Samples calls that run at once; further ones
	// wait. Each needs up to about 50 MiB (see merge.DefaultLimits), and a
	// connection only while a statement runs.
	maxQueries = 8
)

// Options say where the store is and what is asked of it.
type Options struct {
	// URL is postgres://user@host:port/database?sslmode=…, or what else libpq
	// understands: several hosts, the variables PGHOST and so on, and the
	// files .pgpass and pg_service.conf.
	URL string
	// PasswordFile holds the password, in its first line; it is read at each
	// connect. Empty: the password is where libpq finds it.
	PasswordFile string
	// Node names this process to others (table gateway).
	Node string
	// KeepDays is how many days after they were recorded samples are
	// dropped; 0: never.
	KeepDays int
	// AllowUnsynced opens a server that acknowledges what a power cut can
	// take away. What is called stored can be lost then.
	AllowUnsynced bool
}

// maxKeepDays is a century.
const maxKeepDays = 36_500

func (o *Options) validate() error {
	if o.KeepDays < 0 || o.KeepDays > maxKeepDays {
		return fmt.Errorf("KeepDays is %d: want 0 to %d", o.KeepDays, maxKeepDays)
	}
	return nil
}

// A Store is the record store. It implements cloud.Recorder, cloud.Archive,
// cloud.Registry, cloud.Access and cloud.Directory. All methods are safe for concurrent use, in
// any number of processes: each sees what the others committed before its
// call.
type Store struct {
	opts   Options
	logger *slog.Logger
	pool   *pgxpool.Pool

	id     string // drawn when the schema was made
	era    int16  // of transaction ids
	system string // the cluster's identity, in which they compare

	nonceSecret []byte // drawn when the schema was made
	usedSweeps  usedSweeps
	series      seriesIDs

	queries  chan struct{} // a place for each running Samples
	limits   merge.Limits  // of one query's memory
	counters merge.Counters
}

var (
	_ cloud.Recorder = (*Store)(nil)
	_ cloud.Archive  = (*Store)(nil)
	_ cloud.Registry = (*Store)(nil)
	_ cloud.Access   = (*Store)(nil)

	_ cloud.Directory = (*Store)(nil)
	_ cloud.Masks     = (*Store)(nil)
	_ rollup.Store    = (*Store)(nil)
)

// Open connects to the store, and makes its schema where it is missing. It
// refuses a schema that a newer version wrote, and a server that does not sync
// what it commits, and changes nothing there.
func Open(ctx context.Context, opts Options, logger *slog.Logger) (*Store, error) {
	config, err := poolConfig(opts)
	if err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	return openOn(ctx, config, opts, logger)
}

func openOn(ctx context.Context, config *pgxpool.Config, opts Options, logger *slog.Logger) (*Store, error) {
	s := &Store{
		opts:    opts,
		logger:  logger,
		queries: make(chan struct{}, maxQueries),
		limits:  merge.DefaultLimits,
	}
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	config.AfterConnect = s.verify
	var err error
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open record store: %w", err), s.Close())
	}
	return s, nil
}

// Close ends all connections. It waits for calls that run, and may be called
// twice. Calls after it fail.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

// ID returns the store's own id, drawn when its schema was made.
func (s *Store) ID() string { return s.id }

// Stats is what the store counted since Open.
type Stats struct {
	Queries int    // that run now
	Decoded uint64 // stored blocks that queries decoded
	Damaged uint64 // stored blocks that could not be read any more, once for each query
	Conns   int    // connections that are open
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	return Stats{
		Queries: len(s.queries), Decoded: s.counters.Decoded.Load(), Damaged: s.counters.Damaged.Load(),
		Conns: int(s.pool.Stat().TotalConns()),
	}
}

// undoTimeout bounds the end of a transaction whose caller has gone. A
// connection on which it fails is closed, and the server ends it.
const undoTimeout = 5 * time.Second

// commitTimeout bounds the wait for a commit, which no caller interrupts: it
// is as unknown afterwards as before.
const commitTimeout = 30 * time.Second

// change runs do in a transaction; what it did is durable where change returns
// nil, and undone where it does not, unless the commit itself failed: then
// nobody knows.
func (s *Store) change(ctx context.Context, do func(pgx.Tx) error) (err error) {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			_ = tx.Rollback(undo) // or the connection is gone, and its transaction with it
			if ctx.Err() != nil {
				err = ctx.Err() // and not what it did to a statement
			}
		}
	}()
	if err := do(tx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	commit, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	if err := tx.Commit(commit); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
