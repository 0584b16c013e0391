package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
)

// schemaSession gives what changes with a session a table of its own. A batch
// locks the rows of gateway in which it counts until it is committed, and a node
// that stands still in one keeps them for idleTimeout: its gateways begin their
// sessions elsewhere meanwhile.
const schemaSession = `
CREATE TABLE session (
	gateway bigint PRIMARY KEY REFERENCES gateway,
	number  bigint NOT NULL DEFAULT 0, -- of the newest: the fence, it only rises
	node    text NOT NULL DEFAULT '',  -- that has it
	began   bigint,
	opening bytea                      -- epoch of the newest hello
) WITH (fillfactor = 50);
INSERT INTO session SELECT id, session, session_node, last_seen, opening FROM gateway;
ALTER TABLE gateway DROP COLUMN session, DROP COLUMN session_node, DROP COLUMN last_seen, DROP COLUMN opening;
`

// NewSession implements cloud.Registry. The number rises in one statement,
// whatever node asks, so that of two sessions of a gateway every node knows
// which is the older (see Overtaken).
func (s *Store) NewSession(ctx context.Context, gateway string) (store string, session uint64, err error) {
	if touchline.CheckGateway(gateway) != nil {
		return "", 0, fmt.Errorf("new session of gateway %s: %w", gateway, errNotRegistered)
	}
	err = s.change(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
			INSERT INTO session (gateway, number, node, began) SELECT id, 1, $2, $3 FROM gateway WHERE name = $1
			ON CONFLICT (gateway) DO UPDATE SET number = session.number + 1, node = excluded.node, began = excluded.began
			RETURNING number`, gateway, s.opts.Node, time.Now().UnixNano()).Scan(&session)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = errNotRegistered
	}
	if err != nil {
		return "", 0, fmt.Errorf("new session of gateway %s: %w", gateway, err)
	}
	return s.id, session, nil
}

// Overtaken implements cloud.Registry.
func (s *Store) Overtaken(ctx context.Context, sessions map[string]uint64) (gateways []string, err error) {
	var names []string
	var numbers []int64
	for name, number := range sessions {
		names, numbers = append(names, name), append(numbers, int64(number))
	}
	rows, err := s.pool.Query(ctx, `
		SELECT g.name FROM unnest($1::text[], $2::bigint[]) AS mine (name, number)
			JOIN gateway g ON g.name = mine.name JOIN session s ON s.gateway = g.id
		WHERE s.number > mine.number ORDER BY g.name`, names, numbers)
	if err == nil {
		gateways, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return nil, fmt.Errorf("look for overtaken sessions: %w", err)
	}
	return gateways, nil
}

// fenced is nil where no newer session of a gateway has begun than the one that
// asks for a change, 0 being none. It is a statement of its own, so that it sees
// what was committed before the caller had its lock; the caller has locked what
// is to be changed.
func fenced(ctx context.Context, tx pgx.Tx, gateway int64, session uint64) error {
	if session == 0 {
		return nil
	}
	var overtaken bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM session WHERE gateway = $1 AND number > $2)`, gateway, int64(session)).Scan(&overtaken)
	if err == nil && overtaken {
		err = fmt.Errorf("session %d: %w", session, cloud.ErrOvertaken)
	}
	return err
}
