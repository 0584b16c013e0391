package postgres

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"touchline/cloud"
	"touchline/credential"
)

// schemaName holds all that is the record store's, so that it can share a
// database with what reads it.
const schemaName = "touchline"

// migrationLock is the advisory lock of migrations and of partitions being
// made and dropped ("tlcr").
const migrationLock = 0x746c6372

// migrations bring the schema from version i to i+1. They are never changed
// once released, only added to.
var migrations = []migration{
	{"0.1.0", schema1},
	{"0.1.0", schemaAccess},
	{"0.1.0", schemaUsed},
	{"0.1.0", schemaSession},
	{"0.1.0", schemaNode},
	{"0.1.0", schemaMasks + schemaRollups},
}

// A migration says since which version of touchline-cloud there is its schema:
// what a person must run who wants to read it. The store repeats it, for older
// versions to tell.
type migration struct{ since, script string }

// Times are ns since the Unix epoch, days are the database server's in UTC.
// block, place and what hangs on them have no foreign keys: a check for each
// row costs as much as the row, and a partition that goes takes all of them.
// Audit checks what they would.
const schema1 = `
CREATE TABLE gateway (
	id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name          text COLLATE "C" NOT NULL UNIQUE,
	token_sha256  bytea NOT NULL UNIQUE,
	added         bigint NOT NULL,
	session       bigint NOT NULL DEFAULT 0, -- number of the newest: the fence, it only rises
	session_node  text NOT NULL DEFAULT '',  -- the node that has it
	last_seen     bigint,                    -- when it began
	last_stored   bigint,
	samples       bigint NOT NULL DEFAULT 0,
	blocks        bigint NOT NULL DEFAULT 0,
	kept_aside    bigint NOT NULL DEFAULT 0, -- blocks
	lost          bigint NOT NULL DEFAULT 0  -- samples
) WITH (fillfactor = 50); -- counted with each batch: new versions find room in their page

-- One row per epoch: which of its numbers are stored. Bound to the first
-- gateway that used the epoch. Never pruned: what it forgets could be stored
-- a second time.
CREATE TABLE cursor (
	id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	epoch   bytea NOT NULL UNIQUE,
	gateway bigint NOT NULL REFERENCES gateway,
	begun   date NOT NULL, -- no block of it is in an older partition
	session bigint NOT NULL DEFAULT 0, -- highest that recorded into it
	ranges  int8multirange NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);

CREATE SEQUENCE block_id AS bigint;

-- Blocks among the samples, in the partition of the day they were recorded.
CREATE TABLE block (
	day      date NOT NULL,
	id       bigint NOT NULL,
	cursor   bigint NOT NULL,
	first    bigint NOT NULL,
	count    integer NOT NULL,
	crc      bigint NOT NULL,
	received bigint NOT NULL,
	filter   bytea NOT NULL, -- merge.NameFilter
	data     bytea NOT NULL, -- as the gateway sent it
	PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE INDEX block_cursor ON block (cursor, first);
ALTER TABLE block ALTER data SET STORAGE EXTERNAL; -- it is compressed already
ALTER TABLE block ALTER filter SET STORAGE MAIN;

-- Where queries look for blocks: when their samples are of, as corrected. Rows
-- are versions: one is in force for a query whose snapshot sees xid and does
-- not see until. It stands in the partition of its block.
CREATE TABLE place (
	day      date NOT NULL,
	span     smallint NOT NULL, -- merge.Span.Class
	min_time bigint NOT NULL,
	block    bigint NOT NULL,
	max_time bigint NOT NULL,
	gateway  bigint NOT NULL, -- the cursor's
	shift    bigint NOT NULL, -- ns that are added to what the gateway stamped
	vouched  boolean NOT NULL, -- by a clock that was synchronised
	era      smallint NOT NULL, -- of xid and until: see eras
	xid      xid8 NOT NULL DEFAULT pg_current_xact_id(),
	until    xid8
) PARTITION BY RANGE (day);
CREATE INDEX place_time ON place (span, min_time, block);

-- The partitions of block and place.
CREATE TABLE part (day date PRIMARY KEY);

-- Hours since 1970 that the samples of a partition's blocks are of, by the
-- class of their spans: what tells a query the partitions that it needs.
CREATE TABLE part_hours (
	day   date NOT NULL REFERENCES part ON DELETE CASCADE,
	span  smallint NOT NULL,
	hours int4multirange NOT NULL,
	PRIMARY KEY (day, span)
);

-- Rows of place that are out of force, until they are swept.
CREATE TABLE retired (
	id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	at       timestamptz NOT NULL DEFAULT now(),
	day      date NOT NULL,
	span     smallint NOT NULL,
	min_time bigint NOT NULL,
	block    bigint NOT NULL,
	until    xid8 NOT NULL DEFAULT pg_current_xact_id()
);

-- Blocks that can't stand among the samples. Their numbers are in the cursor,
-- unless the epoch is another gateway's.
CREATE TABLE aside (
	id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	cursor   bigint NOT NULL REFERENCES cursor,
	gateway  bigint NOT NULL REFERENCES gateway, -- who sent it
	first    bigint NOT NULL,
	count    integer NOT NULL,
	crc      bigint NOT NULL,
	received bigint NOT NULL,
	reason   text NOT NULL,
	data     bytea NOT NULL,
	UNIQUE (cursor, first, gateway, count, crc)
);
ALTER TABLE aside ALTER data SET STORAGE EXTERNAL;

-- What gateways announced to be lost. Their ids begin anew with each buffer
-- file, hence the epoch in the key.
CREATE TABLE lost (
	gateway  bigint NOT NULL REFERENCES gateway,
	epoch    bytea NOT NULL,
	id       bigint NOT NULL,
	ranges   int8multirange NOT NULL,
	cause    text NOT NULL,
	min_time bigint NOT NULL,
	max_time bigint NOT NULL,
	recorded bigint NOT NULL,
	PRIMARY KEY (gateway, epoch, id)
);

-- What is known of a gateway's clock in one of its boots.
CREATE TABLE boot (
	id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	gateway      bigint NOT NULL REFERENCES gateway,
	boot         bytea NOT NULL,
	state        smallint NOT NULL DEFAULT 0, -- touchline.ClockState; 0: nothing is known
	clock_offset bigint NOT NULL DEFAULT 0,   -- ns
	recorded     bigint,
	UNIQUE (gateway, boot)
);

-- Blocks with samples that a clock message can correct: the clock that
-- stamped them, and merge.Stamps.
CREATE TABLE doubt (
	boot         bigint NOT NULL REFERENCES boot,
	block        bigint NOT NULL,
	day          date NOT NULL,
	state        smallint NOT NULL,
	clock_offset bigint NOT NULL,
	stamped_min  bigint NOT NULL,
	stamped_max  bigint NOT NULL,
	own_min      bigint NOT NULL,
	own_max      bigint NOT NULL,
	PRIMARY KEY (boot, block)
);
CREATE INDEX doubt_day ON doubt (day);

-- The public keys of gateways. A gateway may have several, while one takes
-- over from another; a key is of one gateway only.
CREATE TABLE gateway_key (
	key     bytea PRIMARY KEY, -- Ed25519, the public half
	gateway bigint NOT NULL REFERENCES gateway,
	added   bigint NOT NULL
);
CREATE INDEX gateway_key_gateway ON gateway_key (gateway);
`

// migrate brings the schema up to date in one transaction, and returns the
// store's id and era. Of two nodes that do it at once one waits for the other
// and finds nothing to do.
func (s *Store) migrate(ctx context.Context) error {
	before := 0
	err := s.change(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, migrationLock); err != nil {
			return fmt.Errorf("wait for the schema: %w", err)
		}
		version, err := schemaVersion(ctx, tx)
		if err != nil {
			return fmt.Errorf("read schema version: %w", err)
		}
		if version > len(migrations) {
			newer := &cloud.NewerStoreError{Schema: version, Known: len(migrations)}
			_ = tx.QueryRow(ctx, `SELECT value FROM meta WHERE key = 'needs'`).Scan(&newer.Needs) // which need not be there
			return newer
		}
		if version < len(migrations) {
			if err := upgrade(ctx, tx, version); err != nil {
				return err
			}
			before = version
		}
		return s.readIdentity(ctx, tx)
	})
	if err == nil && before > 0 {
		s.logger.Info("the record store is brought up to date: older versions of touchline-cloud refuse it now",
			"schema", len(migrations), "before", before, "needs", migrations[len(migrations)-1].since)
	}
	return err
}

// schemaVersion returns 0 where there is no schema.
func schemaVersion(ctx context.Context, tx pgx.Tx) (version int, err error) {
	var there bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, schemaName+".meta").Scan(&there); err != nil || !there {
		return 0, err
	}
	var text string
	if err := tx.QueryRow(ctx, `SELECT value FROM meta WHERE key = 'schema'`).Scan(&text); err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

func upgrade(ctx context.Context, tx pgx.Tx, version int) error {
	// An index on a large table takes its time.
	if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = 0`); err != nil {
		return err
	}
	if version == 0 {
		var id [16]byte
		var secret [credential.MinNonceSecret]byte
		_, _ = rand.Read(id[:]) // documented never to fail
		_, _ = rand.Read(secret[:])
		create := `
			CREATE SCHEMA IF NOT EXISTS ` + schemaName + `;
			CREATE TABLE meta (key text PRIMARY KEY, value text NOT NULL);
			INSERT INTO meta (key, value) VALUES ('schema', '0'), ('era', '0'), ('system', ''), ('swept', '0'), ('access_revision', '0'),
				('store', '` + hex.EncodeToString(id[:]) + `'), ('nonce_secret', '` + hex.EncodeToString(secret[:]) + `')`
		if _, err := tx.Exec(ctx, create); err != nil {
			return fmt.Errorf("make schema %s: %w", schemaName, err)
		}
	}
	for i, migration := range migrations[version:] {
		if _, err := tx.Exec(ctx, migration.script); err != nil {
			return fmt.Errorf("migrate schema to version %d: %w", version+i+1, err)
		}
	}
	if _, err := tx.Exec(ctx, `UPDATE meta SET value = $1 WHERE key = 'schema'`, strconv.Itoa(len(migrations))); err != nil {
		return fmt.Errorf("write schema version: %w", err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO meta (key, value) VALUES ('needs', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value`,
		migrations[len(migrations)-1].since); err != nil {
		return fmt.Errorf("write which version reads it: %w", err)
	}
	return nil
}

// readIdentity reads the store's id, and its era: transaction ids compare
// within one cluster only. Where the tables came into another one, from a dump
// or by pg_upgrade, those in place.xid mean nothing there, or something else.
// A new era begins then, and what is of an older one is settled: visible, or
// out of force and deleted here.
func (s *Store) readIdentity(ctx context.Context, tx pgx.Tx) error {
	meta := map[string]string{}
	rows, err := tx.Query(ctx, `SELECT key, value FROM meta`)
	if err != nil {
		return fmt.Errorf("read store id: %w", err)
	}
	var key, value string
	if _, err := pgx.ForEachRow(rows, []any{&key, &value}, func() error { meta[key] = value; return nil }); err != nil {
		return fmt.Errorf("read store id: %w", err)
	}
	era, err := strconv.ParseInt(meta["era"], 10, 16)
	if err != nil || meta["store"] == "" {
		return fmt.Errorf("read store id: the table %s.meta is damaged: restore it from a backup", schemaName)
	}
	if s.nonceSecret, err = parseNonceSecret(meta["nonce_secret"]); err != nil {
		return err
	}
	var system string
	if err := tx.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&system); err != nil {
		return fmt.Errorf("read the cluster's identity: %w", err)
	}
	if system != meta["system"] {
		if meta["system"] != "" {
			era++
		}
		if err := sweepRetired(ctx, tx, sweepAll); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `
			UPDATE meta SET value = CASE key WHEN 'era' THEN $1 WHEN 'system' THEN $2 ELSE '0' END WHERE key IN ('era', 'system', 'swept')`,
			strconv.FormatInt(era, 10), system)
		if err != nil {
			return fmt.Errorf("begin an era: %w", err)
		}
	}
	s.id, s.era, s.system = meta["store"], int16(era), system
	return nil
}
