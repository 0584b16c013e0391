package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline/cloud"
)

// schemaNode lets the nodes of this store know of one another. The table has no
// WAL: a row is written anew in seconds, so a crash of the server may empty it,
// and a commit of it costs no sync.
const schemaNode = `
CREATE UNLOGGED TABLE node (
	id    text PRIMARY KEY, -- drawn at each start of a node
	name  text NOT NULL,
	seen  timestamptz NOT NULL, -- by the server's clock
	state jsonb NOT NULL        -- cloud.Node
) WITH (fillfactor = 50);
`

// Announce implements cloud.Directory. It waits for no other node: rows that
// another one deletes at the moment are left to it.
func (s *Store) Announce(ctx context.Context, n cloud.Node) (list []cloud.Sighting, err error) {
	state, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("announce node: %w", err)
	}
	err = s.change(ctx, func(tx pgx.Tx) error {
		var batch pgx.Batch
		batch.Queue(`
			DELETE FROM node WHERE id IN (
				SELECT id FROM node
				WHERE seen < clock_timestamp() - $1::interval OR name = $2 AND id <> $3 AND seen < clock_timestamp() - $4::interval
					OR seen > clock_timestamp() + $4::interval
				FOR UPDATE SKIP LOCKED)`, cloud.NodeForgotten, n.Name, n.ID, cloud.NodeLost)
		batch.Queue(`
			INSERT INTO node (id, name, seen, state) VALUES ($1, $2, clock_timestamp(), $3)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, seen = excluded.seen, state = excluded.state`, n.ID, n.Name, string(state))
		if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
			return err
		}
		list, err = readNodes(ctx, tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("announce node: %w", err)
	}
	return list, nil
}

// Nodes implements cloud.Directory.
func (s *Store) Nodes(ctx context.Context) ([]cloud.Sighting, error) {
	list, err := readNodes(ctx, s.pool)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	return list, nil
}

// A lister is a transaction, or the pool.
type lister interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func readNodes(ctx context.Context, from lister) (list []cloud.Sighting, err error) {
	rows, err := from.Query(ctx, `SELECT greatest(clock_timestamp() - seen, seen - clock_timestamp()), state FROM node ORDER BY name, id LIMIT $1`, cloud.MaxNodes)
	if err != nil {
		return nil, err
	}
	var age time.Duration
	var state []byte
	_, err = pgx.ForEachRow(rows, []any{&age, &state}, func() error {
		n := cloud.Sighting{Age: age}
		if err := json.Unmarshal(state, &n.Node); err != nil {
			return err
		}
		list = append(list, n)
		return nil
	})
	return list, err
}

// Withdraw implements cloud.Directory.
func (s *Store) Withdraw(ctx context.Context, id string) error {
	if _, err := s.pool.Exec(ctx, `DELETE FROM node WHERE id = $1`, id); err != nil {
		return fmt.Errorf("withdraw node: %w", err)
	}
	return nil
}
