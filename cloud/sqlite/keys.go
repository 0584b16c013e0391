package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"touchline/cloud"
	"touchline/credential"
	"touchline/identity"
)

// schemaKeys adds the public keys of gateways. A gateway may have several,
// while one takes over from another; a key is of one gateway only.
const schemaKeys = `
CREATE TABLE gateway_key (
	key     BLOB PRIMARY KEY, -- Ed25519, the public half
	gateway INTEGER NOT NULL REFERENCES gateway,
	added   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX gateway_key_gateway ON gateway_key (gateway);
`

// A key that was removed keeps its row, with a not_after of removedKey, so that
// no roll brings it back. To everything else it is not there.
const removedKey = 0

// maxKeys bounds the keys of one gateway: one in use, and some that it had.
const maxKeys = 16

// AddGatewayKey registers a public key as a gateway's. It is durable when it
// returns nil, and every process that has the store open knows it from then
// on. One that is registered as this gateway's is no error; one of another
// gateway is cloud.ErrExists.
func (s *Store) AddGatewayKey(ctx context.Context, gateway string, key identity.PublicKey) (err error) {
	fail := func(err error) error { return fmt.Errorf("add key of gateway %s: %w", gateway, err) }
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return fail(err)
	}
	defer rollback(tx, &err)
	var id, keys int64
	row := tx.QueryRow(`SELECT id, (SELECT count(*) FROM gateway_key WHERE gateway = gateway.id AND not_after IS NOT ?) FROM gateway WHERE name = ?`, removedKey, gateway)
	if err := row.Scan(&id, &keys); errors.Is(err, sql.ErrNoRows) {
		return fail(errNotRegistered)
	} else if err != nil {
		return fail(err)
	}
	var owner string
	var removed bool
	row = tx.QueryRow(`SELECT name, not_after IS ? FROM gateway_key JOIN gateway ON gateway.id = gateway_key.gateway WHERE key = ?`, removedKey, key[:])
	switch err := row.Scan(&owner, &removed); {
	case err == nil && owner == gateway && !removed:
		return nil
	case err == nil && owner != gateway:
		return fail(fmt.Errorf("it is that of gateway %s and %w", owner, cloud.ErrExists))
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fail(err)
	}
	if keys >= maxKeys {
		return fail(fmt.Errorf("it has %d keys: no more are kept", keys))
	}
	if _, err := tx.Exec(`
		INSERT INTO gateway_key (key, gateway, added) VALUES (?, ?, ?)
		ON CONFLICT (key) DO UPDATE SET added = excluded.added, not_before = NULL, not_after = NULL`, key[:], id, time.Now().UnixNano()); err != nil {
		return fail(err)
	}
	if err := tx.Commit(); err != nil {
		return fail(err)
	}
	return nil
}

// GatewayKeys implements cloud.Registry.
func (s *Store) GatewayKeys(ctx context.Context, gateway string) ([]identity.PublicKey, error) {
	rows, err := s.read.QueryContext(ctx, `
		SELECT key FROM gateway_key JOIN gateway ON gateway.id = gateway_key.gateway
		WHERE gateway.name = ? AND gateway.revoked IS NULL AND not_after IS NOT ? ORDER BY gateway_key.added`, gateway, removedKey)
	if err != nil {
		return nil, fmt.Errorf("read keys of gateway %s: %w", gateway, err)
	}
	defer rows.Close()
	var keys []identity.PublicKey
	for rows.Next() {
		var raw []byte
		if err := rows.Scan(&raw); err != nil {
			return nil, fmt.Errorf("read keys of gateway %s: %w", gateway, err)
		}
		var key identity.PublicKey
		if copy(key[:], raw) != len(key) || len(raw) != len(key) {
			return nil, fmt.Errorf("read keys of gateway %s: one has %d bytes", gateway, len(raw))
		}
		keys = append(keys, key)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read keys of gateway %s: %w", gateway, err)
	}
	return keys, nil
}

// RemoveGatewayKey takes one key of a gateway away, named by its thumbprint,
// for good: neither handshakes nor archives that are signed with it count from
// then on, and no roll brings it back. cloud.ErrUnknownKey is in the error where the gateway has no such
// key, cloud.ErrLastKey where it has no other that counts now.
func (s *Store) RemoveGatewayKey(ctx context.Context, gateway, thumbprint string) error {
	err := s.change(ctx, func(tx *sql.Tx) error {
		keys, err := handshakeKeys(ctx, tx, gateway)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(keys, func(k credential.GatewayKey) bool {
			return credential.Thumbprint(k.Public) == thumbprint
		})
		if i < 0 {
			return cloud.ErrUnknownKey
		}
		now := time.Now()
		others := slices.Delete(slices.Clone(keys), i, i+1)
		if keys[i].Counts(now) && !slices.ContainsFunc(others, func(k credential.GatewayKey) bool { return k.Counts(now) }) {
			return cloud.ErrLastKey
		}
		if _, err := tx.Exec(`UPDATE gateway_key SET not_after = ? WHERE key = ?`, removedKey, []byte(keys[i].Public)); err != nil {
			return err
		}
		return takeAway(tx)
	})
	if err != nil {
		return fmt.Errorf("remove key of gateway %s: %w", gateway, err)
	}
	return nil
}
