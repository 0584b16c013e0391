package buffer

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"touchline/internal/folder"
)

// schemas are the steps from one version of the file's layout to the next: a
// new file takes all of them, an older one those that it lacks. A step only
// adds tables, so that an older file is a newer one's beginning, word for word
// (see hasTables). All tables of a step must fit page 1 as text. A step that
// was released is never changed, and leaves a file in testdata.
var schemas = [...]schemaStep{
	{"0.1.0", schema1},
	{"0.1.0", schema2},
	{"0.1.0", needsTable},
}

// A schemaStep says since which version of touchline there is such a layout:
// what a person must run who wants to read it.
type schemaStep struct{ since, script string }

const (
	schemaVersion = len(schemas)
	applicationID = 0x746c6275 // "tlbu", so that no other program's database is taken for a buffer
)

// schema2 has what came with version 2, each table described where it is used.
const schema2 = storedTable + arrivalTable + clockTable

// schema1 is the file's first layout.
//
// A block's key is epoch.base plus the number of its first sample (see
// epochs). Counting, acknowledging and evicting read the heads of blocks; what
// of the data does not fit the page of the head is on pages that they skip.
//
// committed is running time (see runningClock) in ms; times of samples are ns
// since the Unix epoch. Lost records name their epoch in full, since they
// outlive its row; n is their order of age.
//
// tally has what all blocks with keys up to upto add up to. Each transaction
// that deletes renews it, and one a minute, so that Open counts no more than
// the blocks of a minute.
const schema1 = `
CREATE TABLE epoch (
	base INTEGER PRIMARY KEY,
	uuid BLOB NOT NULL UNIQUE
) STRICT;
CREATE TABLE block (
	key       INTEGER PRIMARY KEY,
	count     INTEGER NOT NULL,
	min_time  INTEGER NOT NULL,
	max_time  INTEGER NOT NULL,
	crc       INTEGER NOT NULL,
	committed INTEGER NOT NULL,
	data      BLOB NOT NULL
) STRICT;
CREATE TABLE lost (
	n        INTEGER PRIMARY KEY,
	id       INTEGER NOT NULL UNIQUE,
	epoch    BLOB NOT NULL,
	ranges   TEXT NOT NULL,
	cause    TEXT NOT NULL,
	min_time INTEGER NOT NULL,
	max_time INTEGER NOT NULL
) STRICT;
CREATE TABLE tally (
	one        INTEGER PRIMARY KEY CHECK (one = 1),
	upto       INTEGER NOT NULL,
	blocks     INTEGER NOT NULL,
	samples    INTEGER NOT NULL,
	data_bytes INTEGER NOT NULL,
	running_ms INTEGER NOT NULL
) STRICT;
INSERT INTO tally VALUES (1, 0, 0, 0, 0, 0);
`

// schemaOf returns all statements of a version.
func schemaOf(version int) string { return scripts(schemas[:version]) }

func scripts(steps []schemaStep) string {
	var b strings.Builder
	for _, step := range steps {
		b.WriteString(step.script)
	}
	return b.String()
}

// migrate makes the tables of a new file, or adds those that an older one
// lacks, in one transaction. It makes sure that file and name survive a power
// cut: the first sync of a new file is in vain if its folder forgets it.
func (s *store) migrate(ctx context.Context) error {
	var version, id uint32
	if err := s.conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if err := s.conn.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return fmt.Errorf("read application id: %w", err)
	}
	if version == uint32(schemaVersion) && id == applicationID {
		return nil
	}
	made := version > 0 && version < uint32(schemaVersion) && id == applicationID
	if !made && (version != 0 || id != 0) { // inspect has seen another head than SQLite
		return fmt.Errorf("%w: its schema is %d, its application id %#x", errDamaged, version, id)
	}
	script := fmt.Sprintf("BEGIN IMMEDIATE; %s %s PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT",
		scripts(schemas[version:]), saveNeeds(), applicationID, schemaVersion)
	if _, err := s.conn.ExecContext(ctx, script); err != nil {
		_, _ = s.conn.ExecContext(context.Background(), "ROLLBACK") // fails where nothing was begun
		return fmt.Errorf("make tables: %w", err)
	}
	if made {
		return nil // durable with its commit, as any other
	}
	if _, err := s.checkpoint("TRUNCATE"); err != nil {
		return err
	}
	return folder.Sync(filepath.Dir(s.path))
}
