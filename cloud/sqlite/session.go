package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"touchline/cloud"
)

// NewSession implements cloud.Registry. The number is durable when it
// returns, so that no crash can make two sessions have the same.
func (s *Store) NewSession(ctx context.Context, gateway string) (store string, session uint64, err error) {
	fail := func(err error) (string, uint64, error) {
		return "", 0, fmt.Errorf("new session of gateway %s: %w", gateway, err)
	}
	// A transaction of its own, since a commit that fails on the way out of
	// a single RETURNING statement is easily missed.
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return fail(err)
	}
	defer rollback(tx, &err)
	var number int64
	row := tx.QueryRow(`UPDATE gateway SET session = session + 1, last_seen = ? WHERE name = ? RETURNING session`, time.Now().UnixNano(), gateway)
	if err := row.Scan(&number); errors.Is(err, sql.ErrNoRows) {
		return fail(errNotRegistered)
	} else if err != nil {
		return fail(err)
	}
	if err := tx.Commit(); err != nil {
		return fail(err)
	}
	return s.id, uint64(number), nil
}

// Overtaken implements cloud.Registry.
func (s *Store) Overtaken(ctx context.Context, sessions map[string]uint64) (gateways []string, err error) {
	fail := func(err error) ([]string, error) { return nil, fmt.Errorf("look for overtaken sessions: %w", err) }
	asked, err := json.Marshal(sessions) // numbers count handshakes: they are far below 2^53
	if err != nil {
		return fail(err)
	}
	rows, err := s.read.QueryContext(ctx, `
		SELECT gateway.name FROM json_each(?) AS mine CROSS JOIN gateway ON gateway.name = mine.key
		WHERE gateway.session > mine.value ORDER BY gateway.name`, string(asked))
	if err != nil {
		return fail(err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return fail(err)
		}
		gateways = append(gateways, name)
	}
	if err := rows.Err(); err != nil {
		return fail(err)
	}
	return gateways, nil
}

// fenced returns the id of a gateway for a change that one of its sessions asks
// for, 0 being none. The transaction has the write lock: no newer session begins
// until it ends.
func fenced(tx *sql.Tx, gateway string, session uint64) (id int64, err error) {
	var newest int64
	err = tx.QueryRow(`SELECT id, session FROM gateway WHERE name = ?`, gateway).Scan(&id, &newest)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, errNotRegistered
	case err != nil:
		return 0, err
	case session != 0 && uint64(newest) > session:
		return 0, fmt.Errorf("session %d: %w", session, cloud.ErrOvertaken)
	}
	return id, nil
}
