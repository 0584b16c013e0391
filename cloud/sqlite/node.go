package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"touchline/cloud"
)

// schemaNode lets the nodes of this store know of one another.
const schemaNode = `
CREATE TABLE node (
	id    TEXT PRIMARY KEY, -- drawn at each start of a node
	name  TEXT NOT NULL,
	seen  INTEGER NOT NULL,
	state TEXT NOT NULL     -- cloud.Node
) WITHOUT ROWID;
`

// Announce implements cloud.Directory.
func (s *Store) Announce(ctx context.Context, n cloud.Node) (list []cloud.Sighting, err error) {
	state, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("announce node: %w", err)
	}
	err = s.change(ctx, func(tx *sql.Tx) error {
		now := time.Now()
		_, err := tx.Exec(`DELETE FROM node WHERE seen < ? OR name = ? AND id <> ? AND seen < ? OR seen > ?`,
			now.Add(-cloud.NodeForgotten).UnixNano(), n.Name, n.ID, now.Add(-cloud.NodeLost).UnixNano(), now.Add(cloud.NodeLost).UnixNano())
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO node (id, name, seen, state) VALUES (?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, seen = excluded.seen, state = excluded.state`, n.ID, n.Name, now.UnixNano(), string(state))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("announce node: %w", err)
	}
	return s.Nodes(ctx)
}

// Nodes implements cloud.Directory.
func (s *Store) Nodes(ctx context.Context) (list []cloud.Sighting, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT seen, state FROM node ORDER BY name, id LIMIT ?`, cloud.MaxNodes)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var seen int64
		var state string
		var n cloud.Sighting
		if err := rows.Scan(&seen, &state); err != nil {
			return nil, fmt.Errorf("list nodes: %w", err)
		}
		if err := json.Unmarshal([]byte(state), &n.Node); err != nil {
			return nil, fmt.Errorf("list nodes: %w", err)
		}
		n.Age = time.Since(time.Unix(0, seen)).Abs()
		list = append(list, n)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	return list, nil
}

// Withdraw implements cloud.Directory.
func (s *Store) Withdraw(ctx context.Context, id string) error {
	err := s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM node WHERE id = ?`, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("withdraw node: %w", err)
	}
	return nil
}
