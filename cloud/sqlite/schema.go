package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"

	"touchline/cloud"
	"touchline/credential"
)

// applicationID marks the file as a record store ("tlcr"), so that another
// program's database is not taken for one.
const applicationID = 0x746c6372

// migrations bring the schema from version i to i+1. They are never changed
// once released, only added to.
var migrations = []migration{
	{"0.1.0", schema1},
	{"0.1.0", schemaKeys},
	{"0.1.0", schemaClocks},
	{"0.1.0", schemaAccess},
	{"0.1.0", schemaUsed},
	{"0.1.0", schemaNode},
	{"0.1.0", schemaMasks + schemaRollups},
}

// A migration says since which version of touchline-cloud there is its schema:
// what a person must run who wants to read it. The store repeats it, for older
// versions to tell.
type migration struct{ since, script string }

// Times are ns since the Unix epoch. Epochs are referred to by their cursor's
// small id: 16 random bytes in every row and index entry would cost more than
// many a block's data.
const schema1 = `
CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE gateway (
	id           INTEGER PRIMARY KEY,
	name         TEXT NOT NULL UNIQUE,
	token_sha256 BLOB NOT NULL UNIQUE,
	added        INTEGER NOT NULL,
	session      INTEGER NOT NULL DEFAULT 0, -- number of the newest
	last_stored  INTEGER,
	samples      INTEGER NOT NULL DEFAULT 0,
	blocks       INTEGER NOT NULL DEFAULT 0,
	kept_aside   INTEGER NOT NULL DEFAULT 0, -- blocks
	lost         INTEGER NOT NULL DEFAULT 0  -- samples
);

-- One row per epoch: which of its numbers are stored. Bound to the first
-- gateway that used the epoch. Never pruned: what it forgets could be stored
-- a second time.
CREATE TABLE cursor (
	id      INTEGER PRIMARY KEY,
	epoch   BLOB NOT NULL UNIQUE,
	gateway INTEGER NOT NULL REFERENCES gateway,
	ranges  BLOB NOT NULL -- appendRanges
);

-- AUTOINCREMENT: ids only rise, also after deletions, so that the highest id
-- is a snapshot of what a query reads. filter stands before data, so that
-- looking at it does not read the data's pages.
CREATE TABLE block (
	id       INTEGER PRIMARY KEY AUTOINCREMENT,
	cursor   INTEGER NOT NULL REFERENCES cursor,
	first    INTEGER NOT NULL,
	count    INTEGER NOT NULL,
	crc      INTEGER NOT NULL,
	received INTEGER NOT NULL,
	filter   BLOB NOT NULL, -- nameFilter
	data     BLOB NOT NULL, -- as the gateway sent it
	UNIQUE (cursor, first)
);

-- Where queries look for blocks. A table and not an index, since SQLite does
-- not seek to a place among equal times by a rowid: a gateway whose clock
-- stands still would make each page of a scan begin from its first block.
CREATE TABLE block_time (
	span     INTEGER NOT NULL, -- spanClass(min_time, max_time)
	min_time INTEGER NOT NULL,
	block    INTEGER NOT NULL,
	max_time INTEGER NOT NULL,
	gateway  INTEGER NOT NULL, -- the cursor's
	PRIMARY KEY (span, min_time, block)
) WITHOUT ROWID;

-- Blocks that can't stand among the samples. Their numbers are in the cursor,
-- unless the epoch is another gateway's.
CREATE TABLE aside (
	id       INTEGER PRIMARY KEY AUTOINCREMENT,
	cursor   INTEGER NOT NULL REFERENCES cursor,
	gateway  INTEGER NOT NULL REFERENCES gateway, -- who sent it
	first    INTEGER NOT NULL,
	count    INTEGER NOT NULL,
	crc      INTEGER NOT NULL,
	received INTEGER NOT NULL,
	reason   TEXT NOT NULL,
	data     BLOB NOT NULL,
	UNIQUE (cursor, first, gateway, count, crc)
);

-- What gateways announced to be lost. Their ids begin anew with each buffer
-- file, hence the epoch in the key.
CREATE TABLE lost (
	gateway  INTEGER NOT NULL REFERENCES gateway,
	epoch    BLOB NOT NULL,
	id       INTEGER NOT NULL,
	ranges   BLOB NOT NULL, -- appendRanges
	cause    TEXT NOT NULL,
	min_time INTEGER NOT NULL,
	max_time INTEGER NOT NULL,
	recorded INTEGER NOT NULL,
	PRIMARY KEY (gateway, epoch, id)
) WITHOUT ROWID;
`

// Version 2 knows gateways whose clocks were wrong. What is in block_time is
// as corrected by then: a block whose stamps are corrected gets another row.
const schemaClocks = `
-- What is known of a gateway's clock in one of its boots.
CREATE TABLE boot (
	id       INTEGER PRIMARY KEY,
	gateway  INTEGER NOT NULL REFERENCES gateway,
	boot     BLOB NOT NULL,
	state    INTEGER NOT NULL DEFAULT 0, -- touchline.ClockState; 0: nothing is known
	offset   INTEGER NOT NULL DEFAULT 0, -- ns
	recorded INTEGER,
	UNIQUE (gateway, boot)
);

-- Blocks with samples that a clock message can correct: the clock that
-- stamped them, and the spans of what it stamped and of the sensors' own
-- times as the block has them (from after to where there are none).
CREATE TABLE doubt (
	block       INTEGER PRIMARY KEY REFERENCES block,
	boot        INTEGER NOT NULL REFERENCES boot,
	state       INTEGER NOT NULL,
	offset      INTEGER NOT NULL,
	stamped_min INTEGER NOT NULL,
	stamped_max INTEGER NOT NULL,
	own_min     INTEGER NOT NULL,
	own_max     INTEGER NOT NULL
);
CREATE INDEX doubt_boot ON doubt (boot, block);

-- Versions count corrections (meta, key corrections): a query reads the rows
-- that were in force when it began.
CREATE TABLE corrected_time (
	span     INTEGER NOT NULL, -- spanClass(min_time, max_time)
	min_time INTEGER NOT NULL,
	block    INTEGER NOT NULL,
	since    INTEGER NOT NULL, -- version; 0: from the beginning
	until    INTEGER,          -- version; NULL: in force
	max_time INTEGER NOT NULL,
	gateway  INTEGER NOT NULL, -- the cursor's
	shift    INTEGER NOT NULL, -- ns that are added to what the gateway stamped
	vouched  INTEGER NOT NULL, -- 1: by a clock that was synchronised
	PRIMARY KEY (span, min_time, block, since)
) WITHOUT ROWID;
INSERT INTO corrected_time SELECT span, min_time, block, 0, NULL, max_time, gateway, 0, 0 FROM block_time ORDER BY span, min_time, block;
DROP TABLE block_time;
ALTER TABLE corrected_time RENAME TO block_time;

-- The rows of block_time that are out of force, until they are swept.
CREATE TABLE retired (
	until    INTEGER NOT NULL,
	span     INTEGER NOT NULL,
	min_time INTEGER NOT NULL,
	block    INTEGER NOT NULL,
	since    INTEGER NOT NULL,
	PRIMARY KEY (until, span, min_time, block, since)
) WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('corrections', '0'), ('swept', '0');
`

// migrate brings the schema up to date in one transaction. Of two processes
// that do it at once one waits for the other and finds nothing to do.
func (s *Store) migrate(ctx context.Context) (err error) {
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx, &err)
	var version int // 0 in a new file
	if err := tx.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&version); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if version > len(migrations) {
		newer := &cloud.NewerStoreError{Schema: version, Known: len(migrations)}
		_ = tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'needs'`).Scan(&newer.Needs) // which need not be there
		return newer
	}
	if version == len(migrations) {
		return nil
	}
	for i, migration := range migrations[version:] {
		if _, err := tx.ExecContext(ctx, migration.script); err != nil {
			return fmt.Errorf("migrate schema to version %d: %w", version+i+1, err)
		}
	}
	// What SQLite's own generator draws is not meant to be secret.
	for _, drawn := range []struct {
		since, bytes int // schema version, length
		key          string
	}{{1, 16, "store"}, {5, credential.MinNonceSecret, "nonce_secret"}} {
		if drawn.since <= version || drawn.since > len(migrations) {
			continue
		}
		value := make([]byte, drawn.bytes)
		_, _ = rand.Read(value) // documented never to fail
		if _, err := tx.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES (?, ?)`, drawn.key, hex.EncodeToString(value)); err != nil {
			return fmt.Errorf("write %s: %w", drawn.key, err)
		}
	}
	needs := migrations[len(migrations)-1].since
	if _, err := tx.ExecContext(ctx, `REPLACE INTO meta (key, value) VALUES ('needs', ?)`, needs); err != nil {
		return fmt.Errorf("write which version reads it: %w", err)
	}
	pragmas := fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d`, applicationID, len(migrations))
	if _, err := tx.ExecContext(ctx, pragmas); err != nil {
		return fmt.Errorf("write schema version: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if version > 0 {
		s.logger.Info("the record store is brought up to date: older versions of touchline-cloud refuse it now",
			"file", s.path, "schema", len(migrations), "before", version, "needs", needs)
	}
	return nil
}

// rollback undoes tx unless it was committed; a failed rollback is added to
// an error that is there.
func rollback(tx *sql.Tx, err *error) {
	if undone := tx.Rollback(); undone != nil && !errors.Is(undone, sql.ErrTxDone) && *err != nil {
		*err = errors.Join(*err, fmt.Errorf("roll back: %w", undone))
	}
}
