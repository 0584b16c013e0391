package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"touchline"
	"touchline/cloud"
	"touchline/identity"
	"touchline/wire"
)

// A querier is the pool or a transaction.
type querier interface {
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
}

// gatewayID returns a gateway's id, or errNotRegistered.
func gatewayID(ctx context.Context, q querier, name string) (id int64, err error) {
	if touchline.CheckGateway(name) != nil {
		return 0, errNotRegistered // the server takes no NUL, for one
	}
	err = q.QueryRow(ctx, `SELECT id FROM gateway WHERE name = $1`, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errNotRegistered
	}
	return id, err
}

// AddGateway registers a gateway with the SHA-256 of its token. It is durable
// when it returns nil, and every node knows the gateway from then on.
// cloud.ErrExists is in the error for an id or a token that is there.
func (s *Store) AddGateway(ctx context.Context, id string, tokenHash [32]byte) error {
	if err := touchline.CheckGateway(id); err != nil {
		return fmt.Errorf("add gateway: %w", err)
	}
	err := s.change(ctx, func(tx pgx.Tx) error {
		done, err := tx.Exec(ctx, `INSERT INTO gateway (name, token_sha256, added) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			id, tokenHash[:], time.Now().UnixNano())
		if err == nil && done.RowsAffected() == 0 {
			err = fmt.Errorf("it, or a gateway with this token, %w", cloud.ErrExists)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add gateway %s: %w", id, err)
	}
	return nil
}

// GatewayByToken implements cloud.Registry.
func (s *Store) GatewayByToken(ctx context.Context, sha256 [32]byte) (id string, err error) {
	err = s.pool.QueryRow(ctx, `SELECT name FROM gateway WHERE token_sha256 = $1 AND revoked IS NULL`, sha256[:]).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", cloud.ErrUnknownToken
	}
	if err != nil {
		return "", fmt.Errorf("look up token: %w", err)
	}
	return id, nil
}

// Gateways implements cloud.Archive.
func (s *Store) Gateways(ctx context.Context) (gateways []cloud.Gateway, err error) {
	rows, err := s.pool.Query(ctx, `
		SELECT name, venue, added, last_stored, began, revoked, cloned, samples, blocks, kept_aside, lost
		FROM gateway LEFT JOIN session ON session.gateway = gateway.id ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var g cloud.Gateway
		var added int64
		var lastStored, lastSeen, revoked, cloned *int64
		if err := rows.Scan(&g.ID, &g.Venue, &added, &lastStored, &lastSeen, &revoked, &cloned, &g.Samples, &g.Blocks, &g.KeptAside, &g.Lost); err != nil {
			return nil, fmt.Errorf("list gateways: %w", err)
		}
		g.Added = time.Unix(0, added).UTC()
		for to, from := range map[**time.Time]*int64{&g.LastStored: lastStored, &g.LastSeen: lastSeen, &g.Revoked: revoked, &g.Cloned: cloned} {
			if from != nil {
				t := timeOf(from)
				*to = &t
			}
		}
		gateways = append(gateways, g)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	return gateways, nil
}

// Stored implements cloud.Recorder. Epochs that the store does not know, or
// that are another gateway's, are left out. All answers are of one moment.
func (s *Store) Stored(ctx context.Context, gateway string, epochs []touchline.Epoch) ([]wire.EpochRanges, error) {
	if len(epochs) == 0 || touchline.CheckGateway(gateway) != nil {
		return nil, nil
	}
	asked := make([][]byte, len(epochs))
	for i := range epochs {
		asked[i] = epochs[i][:]
	}
	// Of another gateway's epoch it is what this one sent that is kept aside.
	rows, err := s.pool.Query(ctx, `
		SELECT c.epoch, CASE WHEN owner.name = $1 THEN c.ranges ELSE coalesce(kept.ranges, '{}') END
		FROM unnest($2::bytea[]) WITH ORDINALITY AS asked (epoch, n)
			JOIN cursor c ON c.epoch = asked.epoch
			JOIN gateway owner ON owner.id = c.gateway
			LEFT JOIN LATERAL (
				SELECT range_agg(int8range(a.first, a.first + a.count)) AS ranges FROM aside a JOIN gateway g ON g.id = a.gateway
				WHERE owner.name <> $1 AND a.cursor = c.id AND g.name = $1
			) kept ON true
		ORDER BY asked.n`, gateway, asked)
	if err != nil {
		return nil, fmt.Errorf("read cursors: %w", err)
	}
	var stored []wire.EpochRanges
	var epoch []byte
	var has multirange
	_, err = pgx.ForEachRow(rows, []any{&epoch, &has}, func() error {
		ranges, err := rangesOf(has)
		if err != nil {
			return fmt.Errorf("epoch %x: %w", epoch, err)
		}
		if len(ranges) > 0 {
			stored = append(stored, wire.EpochRanges{Epoch: touchline.Epoch(epoch), Ranges: ranges})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read cursors: %w", err)
	}
	return stored, nil
}

// Lost implements cloud.Recorder. A repeat is the same id of the same epoch:
// ids begin anew where a gateway's buffer file was replaced, epochs don't.
func (s *Store) Lost(ctx context.Context, gateway string, session uint64, lost wire.Lost) error {
	fail := func(err error) error { return fmt.Errorf("record loss %d of gateway %s: %w", lost.ID, gateway, err) }
	if lost.ID > touchline.MaxSeq {
		return fail(fmt.Errorf("the id is above %d", uint64(touchline.MaxSeq)))
	}
	err := s.change(ctx, func(tx pgx.Tx) error {
		id, err := gatewayID(ctx, tx, gateway)
		if err != nil {
			return err
		}
		added, err := tx.Exec(ctx, `
			INSERT INTO lost (gateway, epoch, id, ranges, cause, min_time, max_time, recorded)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
			id, lost.Epoch[:], int64(lost.ID), multirangeOf(lost.Ranges), text(lost.Cause), lost.MinTime, lost.MaxTime, time.Now().UnixNano())
		if err != nil || added.RowsAffected() == 0 {
			return err // or a repeat
		}
		if err := fenced(ctx, tx, id, session); err != nil {
			return err
		}
		// The sum stays where it is exact and no announcement can overflow it.
		_, err = tx.Exec(ctx, `UPDATE gateway SET lost = least(lost + $2, $3) WHERE id = $1`,
			id, int64(min(lost.Ranges.Count(), touchline.MaxSeq)), int64(touchline.MaxSeq))
		return err
	})
	if err != nil {
		return fail(err)
	}
	return nil
}

// maxKeys bounds the keys of one gateway: one in use, and some that it had.
const maxKeys = 16

// A key that was removed keeps its row, with a not_after of removedKey, so that
// no roll brings it back. To everything else it is not there.
const removedKey = 0

// AddGatewayKey registers a public key as a gateway's. It is durable when it
// returns nil, and every node knows it from then on. One that is registered as
// this gateway's is no error; one of another gateway is cloud.ErrExists.
func (s *Store) AddGatewayKey(ctx context.Context, gateway string, key identity.PublicKey) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		id, err := lockGateway(ctx, tx, gateway, "")
		if err != nil {
			return err
		}
		added, err := tx.Exec(ctx, `
			INSERT INTO gateway_key (key, gateway, added) VALUES ($1, $2, $3)
			ON CONFLICT (key) DO UPDATE SET added = excluded.added, not_before = NULL, not_after = NULL
			WHERE gateway_key.gateway = excluded.gateway AND gateway_key.not_after = $4`, key[:], id, time.Now().UnixNano(), int64(removedKey))
		if err != nil {
			return err
		}
		if added.RowsAffected() == 0 {
			var owner string
			row := tx.QueryRow(ctx, `SELECT name FROM gateway_key JOIN gateway ON gateway.id = gateway_key.gateway WHERE key = $1`, key[:])
			if err := row.Scan(&owner); err != nil || owner == gateway {
				return err
			}
			return fmt.Errorf("it is that of gateway %s and %w", owner, cloud.ErrExists)
		}
		var keys int
		if err := tx.QueryRow(ctx, `SELECT count(*) FROM gateway_key WHERE gateway = $1 AND not_after IS DISTINCT FROM $2`, id, int64(removedKey)).Scan(&keys); err != nil {
			return err
		}
		if keys > maxKeys {
			return fmt.Errorf("it has %d keys: no more are kept", maxKeys)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add key of gateway %s: %w", gateway, err)
	}
	return nil
}

// lockGateway returns a gateway's id and has its row until the transaction
// ends, if condition holds for it.
func lockGateway(ctx context.Context, tx pgx.Tx, name, condition string) (id int64, err error) {
	if touchline.CheckGateway(name) != nil {
		return 0, errNotRegistered
	}
	err = tx.QueryRow(ctx, `SELECT id FROM gateway WHERE name = $1 `+condition+` FOR NO KEY UPDATE`, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		err = errNotRegistered
	}
	return id, err
}

// GatewayKeys implements cloud.Registry.
func (s *Store) GatewayKeys(ctx context.Context, gateway string) ([]identity.PublicKey, error) {
	known, err := handshakeKeys(ctx, s.pool, gateway)
	if err != nil {
		return nil, fmt.Errorf("read keys of gateway %s: %w", gateway, err)
	}
	var keys []identity.PublicKey
	for _, k := range known {
		keys = append(keys, identity.PublicKey(k.Public))
	}
	return keys, nil
}
