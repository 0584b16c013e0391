package postgres

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
)

// schemaAccess adds who may speak: venues, revoked gateways, the times of
// keys, claim codes and API keys. Of secrets there are hashes only.
const schemaAccess = `
ALTER TABLE gateway
	ADD COLUMN venue text NOT NULL DEFAULT '',
	ADD COLUMN revoked bigint, -- when; NULL: not
	ADD COLUMN cloned bigint,  -- when two boxes with its identity were seen last
	ADD COLUMN opening bytea;  -- epoch of the newest hello
ALTER TABLE gateway_key
	ADD COLUMN not_before bigint, -- NULL: at all times
	ADD COLUMN not_after bigint;

-- Epochs that gateways said hello from; the newest maxOpenings of each.
CREATE TABLE opening (
	gateway bigint NOT NULL REFERENCES gateway,
	epoch   bytea NOT NULL,
	seen    bigint NOT NULL,
	PRIMARY KEY (gateway, epoch)
);

CREATE TABLE claim (
	sha256  bytea PRIMARY KEY,
	venue   text NOT NULL,
	gateway text NOT NULL, -- '': a new one
	expires bigint NOT NULL,
	used    bigint,
	used_by bigint REFERENCES gateway,
	key     bytea -- that was registered with it
);

CREATE TABLE api_key (
	id        text PRIMARY KEY,
	sha256    bytea NOT NULL,
	name      text COLLATE "C" NOT NULL UNIQUE,
	scopes    text NOT NULL,
	created   bigint NOT NULL,
	expires   bigint,
	last_used bigint,
	revoked   bigint
);
`

// maxOpenings bounds what is remembered of a gateway's openings: a box that is
// switched on three times a day is known for a year.
const maxOpenings = 1024

// takeAway makes every node look again at who is connected.
func takeAway(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE meta SET value = (value::bigint + 1)::text WHERE key = 'access_revision'`)
	return err
}

// AccessRevision implements cloud.Access.
func (s *Store) AccessRevision(ctx context.Context) (revision uint64, err error) {
	err = s.pool.QueryRow(ctx, `SELECT value::bigint FROM meta WHERE key = 'access_revision'`).Scan(&revision)
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
	keys, err := handshakeKeys(ctx, s.pool, gateway)
	if err != nil {
		return nil, fmt.Errorf("read keys of gateway %s: %w", gateway, err)
	}
	return keys, nil
}

func handshakeKeys(ctx context.Context, q querier, gateway string) (keys []credential.GatewayKey, err error) {
	if touchline.CheckGateway(gateway) != nil {
		return nil, nil
	}
	rows, err := q.Query(ctx, `
		SELECT key, not_before, not_after FROM gateway_key JOIN gateway ON gateway.id = gateway_key.gateway
		WHERE gateway.name = $1 AND gateway.revoked IS NULL AND not_after IS DISTINCT FROM $2 ORDER BY gateway_key.added`, gateway, int64(removedKey))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var public []byte
		var notBefore, notAfter *int64
		if err := rows.Scan(&public, &notBefore, &notAfter); err != nil {
			return nil, err
		}
		if len(public) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("one has %d bytes", len(public))
		}
		keys = append(keys, credential.GatewayKey{Public: public, NotBefore: timeOf(notBefore), NotAfter: timeOf(notAfter)})
	}
	return keys, rows.Err()
}

// timeOf and nullable are the two directions of a time that may be missing.
func timeOf(ns *int64) time.Time {
	if ns == nil {
		return time.Time{}
	}
	return time.Unix(0, *ns).UTC()
}

func nullable(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	ns := t.UnixNano()
	return &ns
}

// RollKeys implements cloud.Access. Keys that roll leaves out count no more,
// but for archives that were signed with them.
func (s *Store) RollKeys(ctx context.Context, gateway string, roll func([]credential.GatewayKey) ([]credential.GatewayKey, error)) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		id, err := lockGateway(ctx, tx, gateway, "AND revoked IS NULL")
		if err != nil {
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
		if err := endKeys(ctx, tx, id, now); err != nil {
			return err
		}
		for i, k := range keys {
			var removed bool
			row := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM gateway_key WHERE key = $1 AND gateway = $2 AND not_after = $3)`, []byte(k.Public), id, int64(removedKey))
			if err := row.Scan(&removed); err != nil {
				return err
			}
			if removed {
				return cloud.ErrRemovedKey
			}
			// In the order of the list, whatever the clock did.
			if err := putKey(ctx, tx, id, k, now.Add(time.Duration(i))); err != nil {
				return err
			}
		}
		return takeAway(ctx, tx)
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

func endKeys(ctx context.Context, tx pgx.Tx, gateway int64, now time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE gateway_key SET not_after = $2 WHERE gateway = $1 AND (not_after IS NULL OR not_after > $2)`, gateway, now.UnixNano())
	return err
}

// putKey registers a key or sets the times of one that is. Of more than
// maxKeys, those that ended first are forgotten. The gateway's row is locked.
func putKey(ctx context.Context, tx pgx.Tx, gateway int64, k credential.GatewayKey, added time.Time) error {
	put, err := tx.Exec(ctx, `
		INSERT INTO gateway_key (key, gateway, added, not_before, not_after) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (key) DO UPDATE SET added = excluded.added, not_before = excluded.not_before, not_after = excluded.not_after
		WHERE gateway_key.gateway = excluded.gateway`,
		[]byte(k.Public), gateway, added.UnixNano(), nullable(k.NotBefore), nullable(k.NotAfter))
	if err != nil {
		return err
	}
	if put.RowsAffected() == 0 {
		return fmt.Errorf("the key is another gateway's: a box keeps the id it was enrolled with; to begin anew with another, move its data folder away when all of it is sent: %w", cloud.ErrTaken)
	}
	_, err = tx.Exec(ctx, `
		DELETE FROM gateway_key WHERE gateway = $1 AND not_after IS NOT NULL AND key NOT IN
		(SELECT key FROM gateway_key WHERE gateway = $1 ORDER BY not_after IS NULL DESC, not_after DESC LIMIT $2)`, gateway, maxKeys)
	return err
}

// AddClaim keeps a claim code.
func (s *Store) AddClaim(ctx context.Context, c cloud.Claim) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		if c.Gateway != "" {
			if err := touchline.CheckGateway(c.Gateway); err != nil {
				return err
			}
		}
		// A month after its end a code needs no better answer than "unknown".
		if _, err := tx.Exec(ctx, `DELETE FROM claim WHERE expires < $1`, time.Now().AddDate(0, -1, 0).UnixNano()); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO claim (sha256, venue, gateway, expires) VALUES ($1, $2, $3, $4)`, c.Hash[:], c.Venue, c.Gateway, c.Expires.UnixNano())
		return err
	})
	if err != nil {
		return fmt.Errorf("add claim for venue %s: %w", c.Venue, err)
	}
	return nil
}

// RevokeGateway takes a gateway's token and keys away, for good: it comes in
// again with a claim code that names it. What it stored stays.
func (s *Store) RevokeGateway(ctx context.Context, gateway string) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		id, err := lockGateway(ctx, tx, gateway, "")
		if err != nil {
			return err
		}
		now := time.Now()
		if _, err := tx.Exec(ctx, `UPDATE gateway SET revoked = coalesce(revoked, $2), token_sha256 = $3 WHERE id = $1`, id, now.UnixNano(), noToken()); err != nil {
			return err
		}
		if err := endKeys(ctx, tx, id, now); err != nil {
			return err
		}
		return takeAway(ctx, tx)
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
	id, err := gatewayID(ctx, s.pool, gateway)
	if err != nil {
		return fail(err)
	}
	err = s.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO session (gateway) VALUES ($1) ON CONFLICT DO NOTHING`, id)
		if err != nil {
			return err
		}
		var current []byte
		if err := tx.QueryRow(ctx, `SELECT opening FROM session WHERE gateway = $1 FOR UPDATE`, id).Scan(&current); err != nil {
			return err
		}
		if string(current) == string(epoch[:]) {
			return nil // it lost its connection, no more
		}
		if err := fenced(ctx, tx, id, session); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE session SET opening = $2 WHERE gateway = $1`, id, epoch[:]); err != nil {
			return err
		}
		now := time.Now().UnixNano()
		added, err := tx.Exec(ctx, `INSERT INTO opening (gateway, epoch, seen) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, id, epoch[:], now)
		if err != nil {
			return err
		}
		if cloned = added.RowsAffected() == 0; cloned {
			_, err := tx.Exec(ctx, `UPDATE gateway SET cloned = $2 WHERE id = $1`, id, now)
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM opening WHERE gateway = $1 AND epoch NOT IN
			(SELECT epoch FROM opening WHERE gateway = $1 ORDER BY seen DESC LIMIT $2)`, id, maxOpenings)
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
