package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/mattn/go-sqlite3"

	"touchline/cloud"
	"touchline/internal/folder"
)

// busyTimeout is how long a connection waits for another process's lock. The
// other writers are administration commands and other nodes on this machine, whose
// transactions take milliseconds; half a minute covers a disk that stalls.
const busyTimeout = 30 * time.Second

// busyTurn is how long a writer waits inside SQLite, where nothing can wake
// it. beginWrite repeats that until busyTimeout.
const busyTurn = 250 * time.Millisecond

// writerDSN returns the data source of the write connection. Everything that
// holds per connection is in it, so that a reconnect can't lose it. The
// default VFS is used so that a second process can work beside this one; what
// it maps is allocated first (see allocateSharedMemory).
func writerDSN(path string) string {
	return dsn(path, url.Values{
		"mode":             {"rw"}, // prepareFile made it
		"_busy_timeout":    {millis(busyTurn)},
		"_journal_mode":    {"WAL"},
		"_synchronous":     {"FULL"},
		"_foreign_keys":    {"1"},
		"_txlock":          {"immediate"},
		"_stmt_cache_size": {"32"}, // there are about 15 different statements
	})
}

// readerDSN returns the data source of the read connections.
func readerDSN(path string) string {
	return dsn(path, url.Values{
		"mode":             {"ro"},
		"_busy_timeout":    {millis(busyTimeout)},
		"_query_only":      {"1"},
		"_stmt_cache_size": {"32"},
	})
}

// withVFS names SQLite's way to the disk in a data source; "" is its default.
// Tests put a disk there that fails.
func withVFS(dsn, vfs string) string {
	if vfs == "" {
		return dsn
	}
	return dsn + "&vfs=" + vfs
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func dsn(path string, params url.Values) string {
	u := url.URL{Scheme: "file", Path: path, RawQuery: params.Encode()}
	return u.String()
}

// A connector opens connections of one data source and counts them.
type connector struct {
	driver *sqlite3.SQLiteDriver
	dsn    string
	opened atomic.Uint64
}

func newConnector(dsn string, verify func(*sqlite3.SQLiteConn) error) *connector {
	return &connector{driver: &sqlite3.SQLiteDriver{ConnectHook: verify}, dsn: dsn}
}

// Connect waits up to busyTimeout where another process is in the way of what
// is done before the first statement: SQLite itself does not wait where a new
// file is given its write-ahead log.
func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	retry := time.NewTicker(10 * time.Millisecond)
	defer retry.Stop()
	for end := time.Now().Add(busyTimeout); ; {
		conn, err := c.driver.Open(c.dsn)
		if err == nil {
			c.opened.Add(1)
			return conn, nil
		}
		if !isCode(err, sqlite3.ErrBusy) || time.Now().After(end) {
			return nil, err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// unavailable wraps what SQLite says of the file, the disk or the memory, and
// not of what it was given.
func unavailable(err error) error {
	for _, code := range []sqlite3.ErrNo{sqlite3.ErrFull, sqlite3.ErrIoErr, sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrReadonly,
		sqlite3.ErrCantOpen, sqlite3.ErrNomem, sqlite3.ErrProtocol, sqlite3.ErrCorrupt, sqlite3.ErrNotADB} {
		if isCode(err, code) {
			return fmt.Errorf("%w: %w", cloud.ErrUnavailable, err)
		}
	}
	return err
}

func isCode(err error, code sqlite3.ErrNo) bool {
	var sqliteErr sqlite3.Error
	return errors.As(err, &sqliteErr) && sqliteErr.Code == code
}

func (c *connector) Driver() driver.Driver { return c.driver }

// verifyWriter says whether the connection has the properties that
// acknowledgements rest on. A file system without shared memory, for example,
// leaves the journal mode as it was and reports no error.
func verifyWriter(conn *sqlite3.SQLiteConn) error {
	// The log grows with the largest batch and is cut to 64 MiB (300 blocks
	// of the largest size) when it begins anew.
	if _, err := conn.Exec(`PRAGMA journal_size_limit = 67108864`, nil); err != nil {
		return fmt.Errorf("limit log: %w", err)
	}
	for _, want := range []struct{ pragma, value, why string }{
		{"journal_mode", "wal", "readers would block the recorder"},
		{"synchronous", "2", "a power cut would lose acknowledged samples"},
		{"foreign_keys", "1", "blocks could lose their gateway"},
	} {
		got, err := pragma(conn, want.pragma)
		if err != nil {
			return err
		}
		if got != want.value {
			return fmt.Errorf("SQLite has %s = %s where %s is needed (%s): is the data folder on a network file system?",
				want.pragma, got, want.value, want.why)
		}
	}
	return nil
}

func pragma(conn *sqlite3.SQLiteConn, name string) (value string, err error) {
	rows, err := conn.Query("PRAGMA "+name, nil)
	if err != nil {
		return "", fmt.Errorf("read pragma %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	dest := make([]driver.Value, 1)
	if err := rows.Next(dest); err != nil {
		return "", fmt.Errorf("read pragma %s: %w", name, err)
	}
	return fmt.Sprint(dest[0]), nil
}

// prepareFile makes the file where it is missing, and says whether it is a
// record store before it is opened for good. SQLite must not see an empty file
// whose write-ahead log is there: it would delete the log, which may hold the
// last copy of what was acknowledged.
//
// A file that exists is looked at through SQLite only: closing it in any
// other way drops all locks that this process has on it (fcntl(2)); but where
// nobody has the store open there are none, and its log is made sure of.
func prepareFile(ctx context.Context, vfs, path string, alone bool) error {
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !missing:
		return err
	case !missing && info.IsDir():
		return fmt.Errorf("%s is a folder: move it away", path)
	case missing || info.Size() == 0:
		if log, err := os.Stat(path + "-wal"); err == nil && log.Size() > 0 {
			return fmt.Errorf("%s is missing or empty, but its log %s-wal is not: restore the file from a backup, or move both away", path, path)
		}
	}
	if missing {
		// Nobody but its owner reads the token hashes. SQLite gives its
		// other files the same mode.
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			err = errors.Join(file.Close(), folder.Sync(filepath.Dir(filepath.Dir(path))))
		}
		if err != nil && !errors.Is(err, fs.ErrExist) { // another process was faster
			return err
		}
	}
	if alone {
		if err := rewriteLog(path); err != nil {
			return fmt.Errorf("make sure of the log: %w", err)
		}
	}
	params := url.Values{"mode": {"rw"}, "_busy_timeout": {millis(busyTurn)}, "_synchronous": {"FULL"}}
	conn, err := newConnector(withVFS(dsn(path, params), vfs), layOut).Connect(ctx)
	if isCode(err, sqlite3.ErrNotADB) {
		return fmt.Errorf("%s is not an SQLite database: restore it from a backup, or move it away", path)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return conn.Close()
}

// pageBytes is twice SQLite's default: a block of 1,000 samples has around
// 1.5 kB, of which 4 KiB hold two with a quarter wasted and 8 KiB hold five.
// Larger pages make small commits write more: each writes every page that it
// touches.
const pageBytes = 8192

// layOut makes an empty file a database, which must be done before its
// write-ahead log is begun, and refuses another program's. A crash leaves the
// file empty or done.
func layOut(conn *sqlite3.SQLiteConn) error {
	pages, err := pragma(conn, "page_count")
	if err != nil {
		return err
	}
	if pages == "0" {
		_, err := conn.Exec(fmt.Sprintf(`PRAGMA page_size = %d; PRAGMA application_id = %d`, pageBytes, applicationID), nil)
		return err
	}
	if id, err := pragma(conn, "application_id"); err != nil {
		return err
	} else if id != strconv.Itoa(applicationID) {
		return errors.New("it is another program's database: move it away, or choose another data folder")
	}
	return nil
}
