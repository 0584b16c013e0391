package buffer

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	sqlite3 "github.com/mattn/go-sqlite3"

	"touchline/wire"
)

// A Reading is the file of a buffer that nobody has open, to be looked at. It
// keeps gateways out while it is open, and changes nothing: it writes no byte,
// moves no log into the database, and sets nothing aside.
type Reading struct {
	lock  *os.File
	found finding // damage that is seen before SQLite
	path  string
	b     *Buffer // that never runs; nil where the file can't be opened
}

// OpenToRead opens the buffer in dir. A LockedError says that a gateway has
// it; os.ErrNotExist, that there is none. Damage is no error: Check says what
// is wrong.
func OpenToRead(ctx context.Context, dir string) (*Reading, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("read buffer: %w", err)
	}
	r := &Reading{path: filepath.Join(dir, databaseName)}
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("read buffer: %w", err)
	}
	// No lock is left where there is nothing to lock.
	if _, err := os.Stat(r.path); errors.Is(err, os.ErrNotExist) {
		if _, none := os.Stat(r.path + "-wal"); none != nil {
			return nil, fmt.Errorf("read buffer: %w", err)
		}
	}
	if r.lock, err = lockToRead(dir); err != nil {
		return nil, fmt.Errorf("read buffer: %w", err)
	}
	if err := r.open(ctx, dir); err != nil {
		return nil, fmt.Errorf("read buffer: %w", errors.Join(err, r.Close()))
	}
	return r, nil
}

func (r *Reading) open(ctx context.Context, dir string) (err error) {
	if r.found, err = inspect(r.path); err != nil || r.found.kind != sound {
		return err
	}
	if size, err := sizeOf(r.path); err != nil {
		return err
	} else if size == 0 {
		if _, err := os.Stat(r.path); err != nil {
			return err
		}
		return fmt.Errorf("%s is empty: no gateway has finished its first start with it", r.path)
	}
	st, err := openStoreToRead(ctx, r.path)
	if err == nil {
		var state contents
		if state, err = st.load(ctx); err == nil {
			r.b = newBuffer(Options{Dir: dir}, slog.New(slog.DiscardHandler))
			r.b.store = st
			r.b.start(state)
			return nil
		}
	}
	if st != nil {
		err = errors.Join(err, st.closeToRead())
	}
	if !isDamageAtOpen(err) {
		return err
	}
	r.found = finding{kind: damaged, why: err.Error()}
	return nil
}

// Close lets the file and its lock go. It may be called twice.
func (r *Reading) Close() error {
	var errs []error
	if r.b != nil {
		r.b.stop()
		errs = append(errs, r.b.store.closeToRead())
		r.b = nil
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
		r.lock = nil
	}
	return errors.Join(errs...)
}

// Export is Buffer.Export. A damaged file is refused: the next start of a
// gateway salvages it.
func (r *Reading) Export(ctx context.Context, all bool, take func([]wire.Block) error) ([]wire.Lost, error) {
	if r.b == nil && r.found.kind == newer {
		return nil, fmt.Errorf("export buffer: %s: %s", r.path, r.found.why)
	}
	if r.b == nil {
		return nil, fmt.Errorf("export buffer: %s can't be used (%s): start the gateway, which saves what can be read, and export then", r.path, r.found.why)
	}
	return r.b.Export(ctx, all, take)
}

// readVFS knows no locks: ours keeps gateways out, and one that is exclusive to
// SQLite, which keeps the index of the log in memory, can't be had on a file
// that is opened to be read.
const readVFS = "unix-none"

// A readConnector opens connections that leave the log where it is: the last
// one to close a database otherwise copies it and deletes it.
type readConnector string

// Connect implements driver.Connector.
func (c readConnector) Connect(context.Context) (driver.Conn, error) {
	return c.Driver().Open(string(c))
}

// Driver implements driver.Connector.
func (c readConnector) Driver() driver.Driver {
	return &sqlite3.SQLiteDriver{ConnectHook: func(conn *sqlite3.SQLiteConn) error {
		return conn.SetFileControlInt("main", sqlite3.SQLITE_FCNTL_PERSIST_WAL, 1)
	}}
}

// openStoreToRead opens a file of this version's schema whose connections can't
// write. A store that comes with an error is the caller's to close.
func openStoreToRead(ctx context.Context, path string) (*store, error) {
	s, err := connectToRead(ctx, path)
	if err != nil {
		return s, err
	}
	var version uint32
	if err := s.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return s, fmt.Errorf("read schema version: %w", err)
	}
	if version != uint32(schemaVersion) {
		return s, fmt.Errorf("%s has schema %d and this version reads %d: start the gateway once, which brings it up to date", path, version, schemaVersion)
	}
	return s, s.prepare(ctx)
}

// connectToRead opens connections that can't write, to a file of any schema. A
// store that comes with an error is the caller's to close.
func connectToRead(ctx context.Context, path string) (*store, error) {
	s := &store{path: path, vfs: readVFS}
	uri := uriOf(path) +
		"?mode=ro&vfs=" + s.vfs + "&_locking_mode=EXCLUSIVE&_query_only=true&_busy_timeout=5000"
	logBytes, err := sizeOf(path + "-wal")
	if err != nil {
		return s, err
	}
	if logBytes == 0 {
		uri += "&immutable=1" // or SQLite makes a log
	}
	s.readDB = sql.OpenDB(readConnector(uri))
	s.readDB.SetMaxOpenConns(maxReaders)
	s.readDB.SetMaxIdleConns(maxReaders)
	s.conn, err = s.readDB.Conn(ctx)
	return s, err
}

// closeToRead closes what openStoreToRead opened.
func (s *store) closeToRead() error {
	var errs []error
	for _, stmt := range s.prepared {
		errs = append(errs, stmt.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.readDB != nil {
		errs = append(errs, s.readDB.Close()) // with its statements
	}
	return errors.Join(errs...)
}

// positionOf returns the place of a block in the file.
func (b *Buffer) positionOf(block *wire.Block) int64 {
	return b.known.bases[b.known.index[block.Epoch]] + int64(block.First)
}
