package buffer

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"touchline"
	"touchline/internal/folder"
)

const databaseName = "buffer.db"

const (
	pageBytes = 4096

	// One connection for each reader at a time: the uplink, the status
	// page, an export, and one to spare.
	maxReaders = 4
)

// store is the SQLite file: one connection that writes, a pool that reads,
// and the statements. It knows nothing of queues and limits.
type store struct {
	path    string
	vfs     string
	writeDB *sql.DB
	conn    *sql.Conn // the only one of writeDB; used by one goroutine at a time
	readDB  *sql.DB

	prepared []*sql.Stmt // of conn: database/sql leaves it to us to close them

	begin, commit, rollback                     *sql.Stmt
	insertBlock, insertEpoch, sweepEpochs       *sql.Stmt
	ackVictims, victimsIn, deleteBlocks, oldest *sql.Stmt
	saveMark, deleteMark, countRun, readRun     *sql.Stmt
	insertLost, updateLost, deleteLost          *sql.Stmt
	probe, saveTally                            *sql.Stmt
	markDamaged, victimAt, lastUpTo, firstAfter *sql.Stmt
	probeLost                                   *sql.Stmt
	insertKeys, deleteKeys                      *sql.Stmt
	putClock, sweepClocks, probeClock           *sql.Stmt
	read, after, upTo                           *sql.Stmt // of readDB
}

// openStore opens the file at path, or makes it, and checks that SQLite took
// the settings on which durability depends. What the file is has been looked
// at (see inspect).
func openStore(ctx context.Context, path string) (*store, error) {
	return openStoreOn(ctx, defaultVFS, path)
}

// openStoreOn leaves it to its caller to close a store that it returns with an
// error: the file is damaged then, and is renamed first (see setAside).
func openStoreOn(ctx context.Context, vfs, path string) (_ *store, err error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		// Made here, not by SQLite, so that nobody else may read it.
		f, err := folder.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make database: %w", err)
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("make database: %w", err)
		}
	}
	s := &store{path: path, vfs: vfs}
	for _, step := range []func(context.Context) error{s.rewriteLog, s.connect, s.migrate, s.prepare} {
		switch err := step(ctx); {
		case err == nil:
		case isDamageAtOpen(err):
			return s, fmt.Errorf("open database %s: %w", path, err)
		default:
			return nil, fmt.Errorf("open database %s: %w", path, errors.Join(err, s.close()))
		}
	}
	return s, nil
}

// rewriteLog writes each byte of the log again and syncs it. Where a sync
// failed before the last run ended, the system may have what it was to write
// in its cache only and take it for written. SQLite would read it as committed
// and go on behind it, and all that is acknowledged from then on would hang on
// a page that a power cut takes away. Only a run that did not end by Close, or
// whose disk failed, leaves a log.
func (s *store) rewriteLog(context.Context) error {
	f, err := os.OpenFile(s.path+"-wal", os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rewrite log: %w", err)
	}
	err = rewrite(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("rewrite log: %w", err)
	}
	return nil
}

func rewrite(f *os.File) error {
	buf := make([]byte, 1<<20)
	for at := int64(0); ; {
		n, err := f.ReadAt(buf, at)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
		if errors.Is(err, io.EOF) {
			return f.Sync()
		}
		if err != nil {
			return err
		}
	}
}

// unmade says whether the file may have no page yet, which is when it takes
// auto_vacuum: it is empty, or a power cut left the journal of its making. Any
// other file has it, and must not be given it again: SQLite would write it
// into the log before it is told to sync, and all that is committed later
// would stand behind a page that a failed sync can lose.
func (s *store) unmade() bool {
	info, err := os.Stat(s.path)
	_, journal := os.Stat(s.path + "-journal")
	return err != nil || info.Size() == 0 || journal == nil
}

// uriOf names a file to SQLite (sqlite.org/uri.html), whose paths of Windows are
// file:///C:/folder/file.
func uriOf(path string) string {
	path = filepath.ToSlash(path)
	if filepath.VolumeName(path) != "" {
		path = "/" + path
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// connect opens the connections.
func (s *store) connect(ctx context.Context) error {
	common := uriOf(s.path) + "?vfs=" + s.vfs + "&_journal_mode=WAL&_synchronous=" + synchronous + "&_busy_timeout=5000"
	var err error
	writer := common + "&_txlock=immediate&_cache_size=-8000"
	if s.unmade() {
		writer += "&_auto_vacuum=incremental"
	}
	if s.writeDB, err = sql.Open("sqlite3", writer); err != nil {
		return err
	}
	s.writeDB.SetMaxOpenConns(1)
	if s.conn, err = s.writeDB.Conn(ctx); err != nil {
		return err
	}
	if err := s.limitLog(ctx, maxLogPages); err != nil {
		return err
	}
	for _, want := range []struct{ pragma, value string }{
		{"journal_mode", "wal"}, {"synchronous", synchronousLevel}, {"auto_vacuum", "2"}, {"page_size", strconv.Itoa(pageBytes)},
	} {
		var got string
		if err := s.conn.QueryRowContext(ctx, "PRAGMA "+want.pragma).Scan(&got); err != nil {
			return fmt.Errorf("ask for %s: %w", want.pragma, err)
		}
		if got != want.value {
			return fmt.Errorf("SQLite has %s = %s, and must have %s", want.pragma, got, want.value)
		}
	}
	if s.readDB, err = sql.Open("sqlite3", common+"&_query_only=true"); err != nil {
		return err
	}
	s.readDB.SetMaxOpenConns(maxReaders)
	s.readDB.SetMaxIdleConns(maxReaders)
	return nil
}

// statements are prepared once; a pool prepares them again on each of its
// connections as needed.
func (s *store) prepare(ctx context.Context) error {
	const victim = "SELECT key, count, length(data), min_time, max_time, committed FROM block "
	type statement struct {
		to   **sql.Stmt
		text string
	}
	for _, p := range []statement{
		{&s.begin, "BEGIN IMMEDIATE"},
		{&s.commit, "COMMIT"},
		{&s.rollback, "ROLLBACK"},
		{&s.insertBlock, "INSERT INTO block (key, count, min_time, max_time, crc, committed, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"},
		{&s.deleteBlocks, "DELETE FROM block WHERE key BETWEEN ?1 AND ?2"},
		{&s.ackVictims, victim + "WHERE key BETWEEN ?1 AND ?2 AND key + count - 1 <= ?2 ORDER BY key LIMIT ?3"},
		{&s.victimsIn, victim + "WHERE key BETWEEN ?1 AND ?2 ORDER BY key LIMIT ?3"},
		{&s.oldest, "SELECT key, committed FROM block WHERE key >= ?1 ORDER BY key LIMIT 1"},
		{&s.readRun, "SELECT key, count, crc, data, committed FROM block WHERE key >= ?1 ORDER BY key LIMIT ?2"},
		{&s.saveMark, "INSERT OR REPLACE INTO stored (first, last, running_ms, blocks, samples, data_bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"},
		{&s.deleteMark, "DELETE FROM stored WHERE first BETWEEN ?1 AND ?2"},
		{&s.countRun, "SELECT count(*), coalesce(sum(count), 0), coalesce(sum(length(data)), 0) FROM block WHERE key BETWEEN ?1 AND ?2"},
		{&s.probe, "SELECT count(*) FROM block WHERE key = ?1"},
		{&s.insertEpoch, "INSERT INTO epoch (base, uuid) VALUES (?1, ?2)"},
		// The first block behind the base is another epoch's, or there is none.
		{&s.sweepEpochs, `DELETE FROM epoch WHERE base <> ?1
			AND coalesce((SELECT min(key) FROM block WHERE key > epoch.base), 9223372036854775807)
			> coalesce((SELECT min(base) FROM epoch AS later WHERE later.base > epoch.base), 9223372036854775806)`},
		{&s.insertLost, "INSERT INTO lost (id, epoch, ranges, cause, min_time, max_time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"},
		{&s.updateLost, "UPDATE lost SET ranges = ?2, min_time = ?3, max_time = ?4 WHERE id = ?1"},
		{&s.deleteLost, "DELETE FROM lost WHERE id = ?1"},
		{&s.markDamaged, "UPDATE block SET committed = -1 - committed WHERE key = ?1 AND committed >= 0"},
		{&s.victimAt, victim + "WHERE key = ?1"},
		{&s.firstAfter, "SELECT key, count FROM block WHERE key > ?1 ORDER BY key LIMIT 1"},
		{&s.lastUpTo, "SELECT key, count FROM block WHERE key <= ?1 ORDER BY key DESC LIMIT 1"},
		{&s.probeLost, "SELECT count(*) FROM lost WHERE id = ?1"},
		{&s.insertKeys, "REPLACE INTO arrival (n, committed, keys) VALUES (?1, ?2, ?3)"},
		{&s.deleteKeys, "DELETE FROM arrival WHERE n BETWEEN ?1 AND ?2"},
		{&s.putClock, `INSERT INTO clock (boot, state, offset, confirmed) VALUES (?1, ?2, ?3, ?4)
			ON CONFLICT (boot) DO UPDATE SET state = ?2, offset = ?3, confirmed = ?4`},
		{&s.sweepClocks, "DELETE FROM clock WHERE confirmed = 1 AND n NOT IN (SELECT n FROM clock ORDER BY n DESC LIMIT ?1)"},
		{&s.probeClock, "SELECT count(*) FROM clock WHERE boot = ?1 AND state >= ?2"},
		{&s.saveTally, "UPDATE tally SET upto = ?1, blocks = ?2, samples = ?3, data_bytes = ?4, running_ms = ?5"},
	} {
		stmt, err := s.conn.PrepareContext(ctx, p.text)
		if err != nil {
			return fmt.Errorf("prepare %q: %w", p.text, err)
		}
		*p.to = stmt
		s.prepared = append(s.prepared, stmt)
	}
	for _, p := range []statement{
		{&s.read, "SELECT key, count, crc, data, committed FROM block WHERE key >= ?1 ORDER BY key LIMIT ?2"},
		{&s.after, "SELECT key, count FROM block WHERE key > ?1 ORDER BY key LIMIT 1"},
		{&s.upTo, "SELECT key, count FROM block WHERE key <= ?1 ORDER BY key DESC LIMIT 1"},
	} {
		stmt, err := s.readDB.PrepareContext(ctx, p.text)
		if err != nil {
			return fmt.Errorf("prepare %q: %w", p.text, err)
		}
		*p.to = stmt
	}
	return nil
}

// limitLog makes SQLite itself copy the log at four times the length at which
// we do, should our estimate of it be wrong, and cut it to twice that length
// when it was copied.
func (s *store) limitLog(ctx context.Context, pages int) error {
	for _, pragma := range []string{
		"PRAGMA wal_autocheckpoint = " + strconv.Itoa(4*pages),
		"PRAGMA journal_size_limit = " + strconv.Itoa(2*pages*pageBytes),
	} {
		if _, err := s.conn.ExecContext(ctx, pragma); err != nil {
			return fmt.Errorf("%s: %w", pragma, err)
		}
	}
	return nil
}

// contents is what a file holds when it is opened.
type contents struct {
	held      totals
	oldest    int64 // running ms, of what is not stored
	marks     marks
	runningMS int64
	lastKey   int64 // of a block or an epoch
	epochs    epochs
	lost      []*lostRecord
	clocks    []*bootClock
}

func (s *store) load(ctx context.Context) (contents, error) {
	var c contents
	if err := s.loadTotals(ctx, &c); err != nil {
		return c, fmt.Errorf("count blocks: %w", contentError(err))
	}
	if err := s.loadEpochs(ctx, &c); err != nil {
		return c, fmt.Errorf("read epochs: %w", contentError(err))
	}
	if err := s.loadLost(ctx, &c); err != nil {
		return c, fmt.Errorf("read lost records: %w", contentError(err))
	}
	if err := s.loadClocks(ctx, &c); err != nil {
		return c, fmt.Errorf("read clocks: %w", contentError(err))
	}
	var err error
	if c.marks, err = s.loadMarks(ctx); err != nil {
		return c, fmt.Errorf("read what is stored: %w", contentError(err))
	}
	if kept := c.marks.sum(); kept.blocks > c.held.blocks || kept.samples > c.held.samples || kept.bytes > c.held.bytes {
		c.marks = nil // sent again
	}
	if c.oldest, err = s.oldestOutside(c.marks, c.runningMS); err != nil {
		return c, fmt.Errorf("find oldest block: %w", err)
	}
	if c.held.blocks < 0 || c.held.samples < 0 || c.held.bytes < 0 || c.lastKey < 0 || c.lastKey > maxKey {
		return c, fmt.Errorf("%w: it counts %d blocks, %d samples, %d bytes, up to %d", errDamaged,
			c.held.blocks, c.held.samples, c.held.bytes, c.lastKey)
	}
	return c, nil
}

// maxKey leaves room above the highest key for a new epoch.
const maxKey = 1 << 62

// contentError makes damage of a value of the wrong type, and of a row that
// must be there and is not. (database/sql has no type for the first.)
func contentError(err error) error {
	if errors.Is(err, sql.ErrNoRows) || strings.HasPrefix(err.Error(), "sql: Scan error") {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return err
}

func (s *store) loadTotals(ctx context.Context, c *contents) error {
	var data int64
	row := s.conn.QueryRowContext(ctx, `SELECT tally.blocks + rest.blocks, tally.samples + rest.samples, tally.data_bytes + rest.bytes
		FROM tally, (SELECT count(*) AS blocks, coalesce(sum(count), 0) AS samples, coalesce(sum(length(data)), 0) AS bytes
			FROM block WHERE key > (SELECT upto FROM tally)) AS rest`)
	if err := row.Scan(&c.held.blocks, &c.held.samples, &data); err != nil {
		return err
	}
	c.held.bytes = data + c.held.blocks*blockOverheadBytes
	// The youngest block says how late it was when it was committed; the
	// clock saved with the tally may be later. Keys that the tally counted stay
	// taken when their blocks are gone: what comes next is not in it.
	row = s.conn.QueryRowContext(ctx, `SELECT
		max(coalesce((SELECT committed FROM block ORDER BY key DESC LIMIT 1), 0), (SELECT running_ms FROM tally)),
		max(coalesce((SELECT key + count - 1 FROM block ORDER BY key DESC LIMIT 1), 0), (SELECT upto FROM tally))`)
	if err := row.Scan(&c.runningMS, &c.lastKey); err != nil {
		return err
	}
	c.runningMS = max(c.runningMS, 0)
	return nil
}

func (s *store) loadEpochs(ctx context.Context, c *contents) error {
	rows, err := s.conn.QueryContext(ctx, "SELECT base, uuid FROM epoch ORDER BY base")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var base int64
		var uuid []byte
		if err := rows.Scan(&base, &uuid); err != nil {
			return err
		}
		var epoch touchline.Epoch
		if len(uuid) != len(epoch) {
			return fmt.Errorf("%w: epoch %d has %d bytes: want %d", errDamaged, base, len(uuid), len(epoch))
		}
		copy(epoch[:], uuid)
		if n := len(c.epochs.bases); base < 0 || base > maxKey || n > 0 && base <= c.epochs.bases[n-1] {
			return fmt.Errorf("%w: epoch %s at %d is out of order", errDamaged, epoch, base)
		}
		if _, twice := c.epochs.index[epoch]; twice {
			return fmt.Errorf("%w: epoch %s is there twice", errDamaged, epoch)
		}
		c.epochs.add(base, epoch)
		c.lastKey = max(c.lastKey, base+1)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	// The next epoch goes into the index, too: looked at now, before anybody
	// relies on that.
	astray := 0
	row := s.conn.QueryRowContext(ctx, `SELECT count(*) FROM epoch AS e
		WHERE NOT EXISTS (SELECT 1 FROM epoch AS i INDEXED BY sqlite_autoindex_epoch_1 WHERE i.uuid = e.uuid AND i.base = e.base)`)
	if err := row.Scan(&astray); err != nil {
		return err
	}
	if astray > 0 {
		return fmt.Errorf("%w: %d epochs are not in their index", errDamaged, astray)
	}
	return nil
}

func (s *store) loadLost(ctx context.Context, c *contents) error {
	rows, err := s.conn.QueryContext(ctx, "SELECT id, epoch, ranges, cause, min_time, max_time FROM lost ORDER BY n")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		// Whether an earlier run announced it is not known: it stays as it is.
		r := &lostRecord{announced: true}
		var uuid, ranges []byte
		if err := rows.Scan(&r.ID, &uuid, &ranges, &r.Cause, &r.MinTime, &r.MaxTime); err != nil {
			return err
		}
		if copy(r.Epoch[:], uuid) != len(r.Epoch) || len(uuid) != len(r.Epoch) {
			return fmt.Errorf("%w: record %d names an epoch of %d bytes", errDamaged, r.ID, len(uuid))
		}
		if err := json.Unmarshal(ranges, &r.Ranges); err != nil {
			return fmt.Errorf("%w: record %d: %w", errDamaged, r.ID, err)
		}
		c.lost = append(c.lost, r)
	}
	return rows.Err()
}

// oldestOutside returns when the oldest block that is not marked was
// committed, in running ms, or none where there is none.
func (s *store) oldestOutside(m marks, none int64) (int64, error) {
	for from := int64(0); ; {
		var key, committed int64
		err := s.oldest.QueryRowContext(context.Background(), from).Scan(&key, &committed)
		if errors.Is(err, sql.ErrNoRows) {
			return none, nil
		}
		if err != nil {
			return none, contentError(err)
		}
		end, marked := m.end(key, key)
		if !marked {
			return runningOf(committed), nil
		}
		from = end + 1
	}
}

// checkpoint copies the log into the database and returns how many pages of it
// are left. PASSIVE waits for nobody, and leaves what somebody still reads
// older pages of; TRUNCATE waits for readers (at most the busy timeout) and
// empties the log; NOOP only counts.
func (s *store) checkpoint(mode string) (pages int, err error) {
	var busy, log, done int
	row := s.conn.QueryRowContext(context.Background(), "PRAGMA wal_checkpoint("+mode+")")
	if err := row.Scan(&busy, &log, &done); err != nil {
		return 0, fmt.Errorf("checkpoint: %w", err)
	}
	return max(log-done, 0), nil
}

// pragma returns the number that a pragma of the writing connection has.
func (s *store) pragma(name string) (int64, error) {
	var n int64
	if err := s.conn.QueryRowContext(context.Background(), "PRAGMA "+name).Scan(&n); err != nil {
		return 0, fmt.Errorf("ask for %s: %w", name, err)
	}
	return n, nil
}

// vacuum gives up to pages unused pages back to the file system. SQLite frees
// one at each step of the statement.
func (s *store) vacuum(pages int) error {
	rows, err := s.conn.QueryContext(context.Background(), "PRAGMA incremental_vacuum("+strconv.Itoa(pages)+")")
	if err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}
	return nil
}

// close frees the connections; the last one copies the log into the database.
func (s *store) close() error {
	var errs []error
	if s.readDB != nil {
		errs = append(errs, s.readDB.Close()) // with its statements
	}
	for _, stmt := range s.prepared { // or SQLite keeps the connection open
		errs = append(errs, stmt.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.writeDB != nil {
		errs = append(errs, s.writeDB.Close())
	}
	return errors.Join(errs...)
}
