package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline/cloud"
	"touchline/credential"
)

// AddAPIKey keeps an API key. cloud.ErrExists is in the error where there is
// one of this name.
func (s *Store) AddAPIKey(ctx context.Context, k cloud.APIKey) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		added, err := tx.Exec(ctx, `INSERT INTO api_key (id, sha256, name, scopes, created, expires) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
			k.ID, k.Hash[:], k.Name, k.Scopes.String(), k.Created.UnixNano(), nullable(k.Expires))
		if err == nil && added.RowsAffected() == 0 {
			err = fmt.Errorf("it %w", cloud.ErrExists)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add API key %s: %w", k.Name, err)
	}
	return nil
}

const selectAPIKey = `SELECT id, sha256, name, scopes, created, expires, last_used, revoked FROM api_key ` // #nosec G101 -- columns, and no key

// APIKey implements cloud.Access.
func (s *Store) APIKey(ctx context.Context, id string) (cloud.APIKey, error) {
	k, err := scanAPIKey(s.pool.QueryRow(ctx, selectAPIKey+`WHERE id = $1`, text(id)))
	if errors.Is(err, pgx.ErrNoRows) {
		return cloud.APIKey{}, cloud.ErrUnknownKey
	}
	if err != nil {
		return cloud.APIKey{}, fmt.Errorf("read API key: %w", err)
	}
	return k, nil
}

// APIKeys returns all API keys by name, those that count no more included.
func (s *Store) APIKeys(ctx context.Context) (keys []cloud.APIKey, err error) {
	rows, err := s.pool.Query(ctx, selectAPIKey+`ORDER BY name`)
	if err == nil {
		keys, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (cloud.APIKey, error) { return scanAPIKey(row) })
	}
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
	}
	return keys, nil
}

func scanAPIKey(row pgx.Row) (k cloud.APIKey, err error) {
	var hash []byte
	var scopes string
	var created int64
	var expires, used, revoked *int64
	if err := row.Scan(&k.ID, &hash, &k.Name, &scopes, &created, &expires, &used, &revoked); err != nil {
		return k, err
	}
	if k.Scopes, err = credential.ParseScopes(scopes); err != nil {
		return k, fmt.Errorf("key %s: %w", k.Name, err)
	}
	if copy(k.Hash[:], hash) != len(k.Hash) {
		return k, fmt.Errorf("key %s: its hash has %d bytes", k.Name, len(hash))
	}
	k.Created, k.Expires, k.LastUsed, k.Revoked = time.Unix(0, created).UTC(), timeOf(expires), timeOf(used), revoked != nil
	return k, nil
}

// APIKeyUsed implements cloud.Access.
func (s *Store) APIKeyUsed(ctx context.Context, id string, at time.Time) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE api_key SET last_used = $2 WHERE id = $1`, text(id), at.UnixNano())
		return err
	})
	if err != nil {
		return fmt.Errorf("note use of API key: %w", err)
	}
	return nil
}

// RevokeAPIKey takes a key away, by name or by id, for good.
func (s *Store) RevokeAPIKey(ctx context.Context, name string) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		revoked, err := tx.Exec(ctx, `UPDATE api_key SET revoked = coalesce(revoked, $1) WHERE name = $2 OR id = $2`, time.Now().UnixNano(), text(name))
		if err == nil && revoked.RowsAffected() == 0 {
			err = cloud.ErrUnknownKey
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("revoke API key %s: %w", name, err)
	}
	return nil
}
