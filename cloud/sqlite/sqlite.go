// Package sqlite is the record store of one node: blocks, cursors, gateways
// and announced losses in one SQLite file. A batch is recorded in one
// transaction that is synced (synchronous=FULL) when Record returns; an error
// leaves nothing behind that a repeat would not find. Open takes the file,
// Close gives it back; nothing runs in between on its own.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mattn/go-sqlite3"

	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/rollup"
	"touchline/internal/folder"
)

// FileName is the name of the database in the data folder.
const FileName = "cloud.db"

const (
	// maxReaders bounds the read connections. Each has a page cache of
	// 2 MB at most (SQLite's default), and holds one only while a
	// statement runs, never while a query's reader takes its time.
	maxReaders = 4

	// maxQueries bounds the Samples calls that run at once; further ones
	// wait. Each needs up to about 50 MiB (see merge.DefaultLimits), so 400 MiB in
	// the worst case and a tenth of that in the usual one.
	maxQueries = 8
)

// A Store is the record store. It implements cloud.Recorder, cloud.Archive,
// cloud.Registry, cloud.Access and cloud.Directory. All methods are safe for concurrent use. Several
// processes may have the same file open at once (touchline-cloud gateway add
// beside a running cloud): each sees what the others committed at its next
// call.
type Store struct {
	id     string // drawn when the file was made
	path   string
	file   os.FileInfo // what was at path when it was opened
	logger *slog.Logger

	presence *presence

	write     *sql.DB // one connection
	writeConn *connector
	read      *sql.DB // up to maxReaders, read-only

	recording sync.Mutex // covers known
	known     cursorCache

	redemptions *redemptions
	nonceSecret []byte // drawn when the file was made

	snapshots snapshots
	series    seriesIDs

	queries chan struct{} // a place for each running Samples
	limits  merge.Limits  // of one query's memory

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

// Open opens the store in the folder dir and makes both where they are
// missing; a new file is synced with its folder before Open returns. It
// refuses a file that a newer version wrote, one that is not a record store,
// and an emptied one whose log is still there, and changes none of them. It
// waits while another process opens or closes the store.
func Open(ctx context.Context, dir string, logger *slog.Logger) (*Store, error) {
	return openOn(ctx, "", dir, logger)
}

func openOn(ctx context.Context, vfs, dir string, logger *slog.Logger) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	if err := allocateSharedMemory(); err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	s := &Store{
		path:        filepath.Join(dir, FileName),
		logger:      logger,
		known:       newCursorCache(),
		redemptions: newRedemptions(),
		queries:     make(chan struct{}, maxQueries),
		limits:      merge.DefaultLimits,
	}
	if s.presence, err = enterFolder(ctx, dir); err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	for {
		alone, err := s.openFile(ctx, vfs)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open record store: %w", err), s.Close())
		}
		if alone {
			break
		}
		// Where the others died meanwhile, this may have been the first one
		// who looked at their log, and it did not make sure of it.
		if alone, err = s.presence.alone(); err == nil && !alone {
			break
		}
		if err = errors.Join(err, s.closeFile()); err != nil {
			return nil, errors.Join(fmt.Errorf("open record store: %w", err), s.Close())
		}
	}
	if err := s.presence.enter(); err != nil {
		return nil, errors.Join(fmt.Errorf("open record store: %w", err), s.Close())
	}
	return s, nil
}

// openFile makes and opens the connections, and says whether nobody else had
// the store open.
func (s *Store) openFile(ctx context.Context, vfs string) (alone bool, err error) {
	if alone, err = s.presence.alone(); err != nil {
		return false, err
	}
	if err := prepareFile(ctx, vfs, s.path, alone); err != nil {
		return alone, err
	}
	s.writeConn = newConnector(withVFS(writerDSN(s.path), vfs), verifyWriter)
	s.write = sql.OpenDB(s.writeConn)
	s.write.SetMaxOpenConns(1)
	s.read = sql.OpenDB(newConnector(withVFS(readerDSN(s.path), vfs), nil))
	s.read.SetMaxOpenConns(maxReaders)
	s.read.SetMaxIdleConns(maxReaders)
	if err := s.begin(ctx); err != nil {
		return alone, fmt.Errorf("%s: %w", s.path, err)
	}
	return alone, nil
}

// begin brings the schema up to date, makes sure that file and folder survive
// a power cut, and reads the store's id.
func (s *Store) begin(ctx context.Context) error {
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if err := folder.Sync(filepath.Dir(s.path)); err != nil {
		return err
	}
	if err := s.read.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'store'`).Scan(&s.id); err != nil {
		return fmt.Errorf("read store id: %w", err)
	}
	if err := s.readNonceSecret(ctx); err != nil {
		return err
	}
	info, err := os.Stat(s.path)
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	s.file = info
	return nil
}

// ErrGone says that the file was removed or replaced while it was open.
// SQLite would go on writing into a file that nobody can open again.
var ErrGone = errors.New("the record store's file was removed or replaced while it was open: put it back, or restart touchline-cloud to begin a new one")

// inPlace returns an error unless the open file is still the one at its path.
func (s *Store) inPlace() error {
	info, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, s.file) {
		return fmt.Errorf("%s: %w", s.path, ErrGone)
	}
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	return nil
}

// beginWrite begins a transaction that has the write lock. It waits for other
// calls of this process as long as ctx lets it, and for another process up to
// busyTimeout.
func (s *Store) beginWrite(ctx context.Context) (*sql.Tx, error) {
	for end := time.Now().Add(busyTimeout); ; {
		tx, err := s.write.BeginTx(ctx, nil)
		if err == nil {
			return tx, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !isCode(err, sqlite3.ErrBusy) || time.Now().After(end) {
			return nil, fmt.Errorf("begin transaction: %w", err)
		}
	}
}

// Close gives the file back. It waits for statements that run, and may be
// called twice. Calls after it fail.
func (s *Store) Close() error { return s.presence.leave(s.closeFile) }

func (s *Store) closeFile() error {
	if s.write == nil {
		return nil // it was not opened
	}
	// The reader goes first: it can't write, so the writer must be the last
	// one out, who moves the log into the file and deletes it.
	return errors.Join(s.read.Close(), s.write.Close())
}

// ID returns the store's own id, drawn when its file was made.
func (s *Store) ID() string { return s.id }

// Stats is what the store counted since Open.
type Stats struct {
	Queries int    // that run now
	Decoded uint64 // stored blocks that queries decoded
	Damaged uint64 // stored blocks that could not be read any more, once for each query
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	return Stats{Queries: len(s.queries), Decoded: s.counters.Decoded.Load(), Damaged: s.counters.Damaged.Load()}
}
