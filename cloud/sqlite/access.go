package sqlite

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
)

// schemaAccess adds who may speak: venues, revoked gateways, the times of
// keys, claim codes and API keys. Of what
// gateways and people show there are hashes only.
const schemaAccess = `
ALTER TABLE gateway ADD COLUMN venue TEXT NOT NULL DEFAULT '';
ALTER TABLE gateway ADD COLUMN revoked INTEGER;   -- when; NULL: not
ALTER TABLE gateway ADD COLUMN last_seen INTEGER; -- when its newest session began
ALTER TABLE gateway ADD COLUMN cloned INTEGER;    -- when two boxes with its identity were seen last
ALTER TABLE gateway ADD COLUMN opening BLOB;      -- epoch of the newest hello
ALTER TABLE gateway_key ADD COLUMN not_before INTEGER; -- NULL: at all times
ALTER TABLE gateway_key ADD COLUMN not_after INTEGER;

-- Epochs that gateways said hello from; the newest maxOpenings of each.
CREATE TABLE opening (
	gateway INTEGER NOT NULL REFERENCES gateway,
	epoch   BLOB NOT NULL,
	seen    INTEGER NOT NULL,
	PRIMARY KEY (gateway, epoch)
) WITHOUT ROWID;

CREATE TABLE claim (
	sha256  BLOB PRIMARY KEY,
	venue   TEXT NOT NULL,
	gateway TEXT NOT NULL, -- '': a new one
	expires INTEGER NOT NULL,
	used    INTEGER,
	used_by INTEGER REFERENCES gateway,
	key     BLOB -- that was registered with it
) WITHOUT ROWID;

CREATE TABLE api_key (
	id        TEXT PRIMARY KEY,
	sha256    BLOB NOT NULL,
	name      TEXT NOT NULL UNIQUE,
	scopes    TEXT NOT NULL,
	created   INTEGER NOT NULL,
	expires   INTEGER,
	last_used INTEGER,
	revoked   INTEGER
) WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES ('access_revision', '0');
`

// maxOpenings bounds what is remembered of a gateway's openings: a box that is
// switched on three times a day is known for a year.
const maxOpenings = 1024

// change runs do in a write transaction; what it did is durable where change
// returns nil, and undone where it does not.
func (s *Store) change(ctx context.Context, do func(*sql.Tx) error) (err error) {
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return err
	}
	defer rollback(tx, &err)
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// takeAway makes every process look again at who is connected.
func takeAway(tx *sql.Tx) error {
	_, err := tx.Exec(`UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE key = 'access_revision'`)
	return err
}

// AccessRevision implements cloud.Access.
func (s *Store) AccessRevision(ctx context.Context) (revision uint64, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'access_revision'`).Scan(&revision)
	if err != nil {
		return 0, fmt.Errorf("read revision of access: %w", err)
	}
	return revision, nil
}

// noToken is the hash of a token that does not exist: to have one would be to
// invert SHA-256.
func noToken() []byte {
	var hash [32]byte
	_, _ = rand.Read(hash[:]) // documented never to fail
	return hash[:]
}

// HandshakeKeys implements cloud.Access.
func (s *Store) HandshakeKeys(ctx context.Context, gateway string) ([]credential.GatewayKey, error) {
	keys, err := handshakeKeys(ctx, s.read, gateway)
	if err != nil {
		return nil, fmt.Errorf("read keys of gateway %s: %w", gateway, err)
	}
	return keys, nil
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func handshakeKeys(ctx context.Context, q querier, gateway string) (keys []credential.GatewayKey, err error) {
	rows, err := q.QueryContext(ctx, `
		SELECT key, not_before, not_after FROM gateway_key JOIN gateway ON gateway.id = gateway_key.gateway
		WHERE gateway.name = ? AND gateway.revoked IS NULL AND not_after IS NOT ? ORDER BY gateway_key.added`, gateway, removedKey)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var public []byte
		var notBefore, notAfter sql.NullInt64
		if err := rows.Scan(&public, &notBefore, &notAfter); err != nil {
			return nil, err
		}
		keys = append(keys, credential.GatewayKey{Public: ed25519.PublicKey(public), NotBefore: timeOf(notBefore), NotAfter: timeOf(notAfter)})
	}
	return keys, rows.Err()
}

// timeOf and nullable are the two directions of a time that may be missing.
func timeOf(ns sql.NullInt64) time.Time {
	if !ns.Valid {
		return time.Time{}
	}
	return time.Unix(0, ns.Int64).UTC()
}

func nullable(t time.Time) sql.NullInt64 {
	if t.IsZero() {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: t.UnixNano(), Valid: true}
}

// RollKeys implements cloud.Access. Keys that roll leaves out count no more,
// but for archives that were signed with them.
func (s *Store) RollKeys(ctx context.Context, gateway string, roll func([]credential.GatewayKey) ([]credential.GatewayKey, error)) error {
	err := s.change(ctx, func(tx *sql.Tx) error {
		var id int64
		if err := tx.QueryRow(`SELECT id FROM gateway WHERE name = ? AND revoked IS NULL`, gateway).Scan(&id); errors.Is(err, sql.ErrNoRows) {
			return errNotRegistered
		} else if err != nil {
			return err
		}
		known, err := handshakeKeys(ctx, tx, gateway)
		if err != nil {
			return err
		}
		now := time.Now()
		keys, err := roll(counting(known, now))
		if err != nil {
			return err
		}
		if err := endKeys(tx, id, now); err != nil {
			return err
		}
		for i, k := range keys {
			var removed bool
			err := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM gateway_key WHERE key = ? AND gateway = ? AND not_after = ?)`, []byte(k.Public), id, removedKey).Scan(&removed)
			if err != nil {
				return err
			}
			if removed {
				return cloud.ErrRemovedKey
			}
			// In the order of the list, whatever the clock did.
			if err := putKey(tx, id, k, now.Add(time.Duration(i))); err != nil {
				return err
			}
		}
		return takeAway(tx)
	})
	if err != nil {
		return fmt.Errorf("roll keys of gateway %s: %w", gateway, err)
	}
	return nil
}

// counting leaves out the keys that are over.
func counting(keys []credential.GatewayKey, now time.Time) []credential.GatewayKey {
	var left []credential.GatewayKey
	for _, k := range keys {
		if k.NotAfter.IsZero() || now.Before(k.NotAfter) {
			left = append(left, k)
		}
	}
	return left
}

func endKeys(tx *sql.Tx, gateway int64, now time.Time) error {
	_, err := tx.Exec(`UPDATE gateway_key SET not_after = ? WHERE gateway = ? AND (not_after IS NULL OR not_after > ?)`,
		now.UnixNano(), gateway, now.UnixNano())
	return err
}

// putKey registers a key or sets the times of one that is. Of more than
// maxKeys, those that ended first are forgotten.
func putKey(tx *sql.Tx, gateway int64, k credential.GatewayKey, added time.Time) error {
	result, err := tx.Exec(`
		INSERT INTO gateway_key (key, gateway, added, not_before, not_after) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (key) DO UPDATE SET added = excluded.added, not_before = excluded.not_before, not_after = excluded.not_after
		WHERE gateway = excluded.gateway`,
		[]byte(k.Public), gateway, added.UnixNano(), nullable(k.NotBefore), nullable(k.NotAfter))
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return fmt.Errorf("the key is another gateway's: a box keeps the id it was enrolled with; to begin anew with another, move its data folder away when all of it is sent: %w", cloud.ErrTaken)
	}
	_, err = tx.Exec(`
		DELETE FROM gateway_key WHERE gateway = ?1 AND not_after IS NOT NULL AND key NOT IN
		(SELECT key FROM gateway_key WHERE gateway = ?1 ORDER BY not_after IS NULL DESC, not_after DESC LIMIT ?2)`, gateway, maxKeys)
	return err
}

// AddClaim keeps a claim code.
func (s *Store) AddClaim(ctx context.Context, c cloud.Claim) error {
	err := s.change(ctx, func(tx *sql.Tx) error {
		if c.Gateway != "" {
			if err := touchline.CheckGateway(c.Gateway); err != nil {
				return err
			}
		}
		// A month after its end a code needs no better answer than "unknown".
		if _, err := tx.Exec(`DELETE FROM claim WHERE expires < ?`, time.Now().AddDate(0, -1, 0).UnixNano()); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO claim (sha256, venue, gateway, expires) VALUES (?, ?, ?, ?)`, c.Hash[:], c.Venue, c.Gateway, c.Expires.UnixNano())
		return err
	})
	if err != nil {
		return fmt.Errorf("add claim for venue %s: %w", c.Venue, err)
	}
	return nil
}

// Enrol implements cloud.Access.
func (s *Store) Enrol(ctx context.Context, e cloud.Enrolment) (done cloud.Enrolled, err error) {
	err = s.change(ctx, func(tx *sql.Tx) error {
		done, err = s.enrol(tx, e, time.Now())
		return err
	})
	if err != nil {
		return cloud.Enrolled{}, fmt.Errorf("enrol: %w", err)
	}
	return done, nil
}

func (s *Store) enrol(tx *sql.Tx, e cloud.Enrolment, now time.Time) (done cloud.Enrolled, err error) {
	var claim struct {
		venue, gateway string
		expires        int64
		usedBy         sql.NullString
		key            []byte
	}
	row := tx.QueryRow(`SELECT claim.venue, claim.gateway, expires, gateway.name, key FROM claim LEFT JOIN gateway ON gateway.id = used_by WHERE sha256 = ?`, e.Claim[:])
	if err := row.Scan(&claim.venue, &claim.gateway, &claim.expires, &claim.usedBy, &claim.key); errors.Is(err, sql.ErrNoRows) {
		return done, cloud.ErrClaim
	} else if err != nil {
		return done, err
	}
	done = cloud.Enrolled{Venue: claim.venue, Store: s.id}
	if claim.usedBy.Valid {
		if done.Gateway = claim.usedBy.String; string(claim.key) != string(e.Key[:]) || e.Gateway != "" && e.Gateway != done.Gateway {
			return done, cloud.ErrClaim
		}
		return done, nil // its answer was lost
	}
	if now.UnixNano() >= claim.expires {
		return done, cloud.ErrClaimExpired
	}
	switch {
	case claim.gateway != "" && e.Gateway != "" && claim.gateway != e.Gateway:
		return done, fmt.Errorf("the claim code is for gateway %s, not %s: %w", claim.gateway, e.Gateway, cloud.ErrTaken)
	case claim.gateway != "":
		done.Gateway = claim.gateway
	case e.Gateway != "":
		done.Gateway = e.Gateway
	default:
		if done.Gateway, err = freeName(tx, claim.venue); err != nil {
			return done, err
		}
	}
	id, err := enrolGateway(tx, done, claim.gateway != "", now)
	if err != nil {
		return done, err
	}
	if err := endKeys(tx, id, now); err != nil {
		return done, err
	}
	if err := putKey(tx, id, credential.GatewayKey{Public: e.Key[:]}, now); err != nil {
		return done, err
	}
	if _, err := tx.Exec(`UPDATE claim SET used = ?, used_by = ?, key = ? WHERE sha256 = ?`, now.UnixNano(), id, e.Key[:], e.Claim[:]); err != nil {
		return done, err
	}
	return done, takeAway(tx)
}

// enrolGateway makes the gateway's row, or takes its token away where the
// claim is for one that is there.
func enrolGateway(tx *sql.Tx, e cloud.Enrolled, claimed bool, now time.Time) (id int64, err error) {
	var there bool
	if err := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM gateway WHERE name = ?)`, e.Gateway).Scan(&there); err != nil {
		return 0, err
	}
	if there && !claimed {
		return 0, fmt.Errorf("there is a gateway %s, and the claim code is not for it; `touchline-cloud gateway claim --gateway %s` makes one that is: %w",
			e.Gateway, e.Gateway, cloud.ErrTaken)
	}
	if err := touchline.CheckGateway(e.Gateway); err != nil {
		return 0, err
	}
	err = tx.QueryRow(`
		INSERT INTO gateway (name, token_sha256, added, venue) VALUES (?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256, venue = excluded.venue, revoked = NULL
		RETURNING id`, e.Gateway, noToken(), now.UnixNano(), e.Venue).Scan(&id)
	return id, err
}

// freeName returns the first of venue-1, venue-2 … that is no gateway's.
func freeName(tx *sql.Tx, venue string) (string, error) {
	for n := 1; n <= 1_000_000; n++ {
		name := fmt.Sprintf("%s-%d", venue, n)
		var there bool
		if err := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM gateway WHERE name = ?)`, name).Scan(&there); err != nil {
			return "", err
		}
		if !there {
			return name, nil
		}
	}
	return "", fmt.Errorf("venue %s has a million gateways", venue)
}

// RevokeGateway takes a gateway's token and keys away, for good: it comes in
// again with a claim code that names it. What it stored stays.
func (s *Store) RevokeGateway(ctx context.Context, gateway string) error {
	err := s.change(ctx, func(tx *sql.Tx) error {
		now := time.Now()
		var id int64
		err := tx.QueryRow(`UPDATE gateway SET revoked = coalesce(revoked, ?), token_sha256 = ? WHERE name = ? RETURNING id`,
			now.UnixNano(), noToken(), gateway).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return errNotRegistered
		}
		if err != nil {
			return err
		}
		return errors.Join(endKeys(tx, id, now), takeAway(tx))
	})
	if err != nil {
		return fmt.Errorf("revoke gateway %s: %w", gateway, err)
	}
	return nil
}

// Opened implements cloud.Access.
func (s *Store) Opened(ctx context.Context, gateway string, session uint64, epoch touchline.Epoch) (cloned bool, err error) {
	fail := func(err error) (bool, error) {
		return false, fmt.Errorf("note the opening of gateway %s: %w", gateway, err)
	}
	var current []byte
	err = s.read.QueryRowContext(ctx, `SELECT opening FROM gateway WHERE name = ?`, gateway).Scan(&current)
	if err != nil {
		return fail(err)
	}
	if string(current) == string(epoch[:]) {
		return false, nil // it lost its connection, no more
	}
	err = s.change(ctx, func(tx *sql.Tx) error {
		now := time.Now().UnixNano()
		id, err := fenced(tx, gateway, session)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`UPDATE gateway SET opening = ? WHERE id = ?`, epoch[:], id); err != nil {
			return err
		}
		result, err := tx.Exec(`INSERT INTO opening (gateway, epoch, seen) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, id, epoch[:], now)
		if err != nil {
			return err
		}
		if added, err := result.RowsAffected(); err != nil {
			return err
		} else if cloned = added == 0; cloned {
			_, err := tx.Exec(`UPDATE gateway SET cloned = ? WHERE id = ?`, now, id)
			return err
		}
		_, err = tx.Exec(`DELETE FROM opening WHERE gateway = ?1 AND epoch NOT IN
			(SELECT epoch FROM opening WHERE gateway = ?1 ORDER BY seen DESC LIMIT ?2)`, id, maxOpenings)
		return err
	})
	if err != nil {
		return fail(err)
	}
	return cloned, nil
}

// PublicKeysOf returns the fingerprints of the keys that count for handshakes now.
func (s *Store) PublicKeysOf(ctx context.Context, gateway string) (prints []string, err error) {
	keys, err := s.HandshakeKeys(ctx, gateway)
	if err != nil {
		return nil, err
	}
	for _, k := range counting(keys, time.Now()) {
		prints = append(prints, credential.Thumbprint(k.Public))
	}
	return prints, nil
}
