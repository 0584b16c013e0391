package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

var errNotRegistered = errors.New("the gateway is not registered")

// AddGateway registers a gateway with the SHA-256 of its token. It is durable
// when it returns nil, and every process that has the store open knows the
// gateway from then on.
func (s *Store) AddGateway(ctx context.Context, id string, tokenHash [32]byte) (err error) {
	if err := touchline.CheckGateway(id); err != nil {
		return fmt.Errorf("add gateway: %w", err)
	}
	fail := func(err error) error { return fmt.Errorf("add gateway %s: %w", id, err) }
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return fail(err)
	}
	defer rollback(tx, &err)
	result, err := tx.Exec(`INSERT INTO gateway (name, token_sha256, added) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`,
		id, tokenHash[:], time.Now().UnixNano())
	if err != nil {
		return fail(err)
	}
	if added, err := result.RowsAffected(); err != nil {
		return fail(err)
	} else if added == 0 {
		return fail(fmt.Errorf("it, or a gateway with this token, %w", cloud.ErrExists))
	}
	if err := tx.Commit(); err != nil {
		return fail(err)
	}
	return nil
}

// GatewayByToken implements cloud.Registry.
func (s *Store) GatewayByToken(ctx context.Context, sha256 [32]byte) (string, error) {
	var id string
	err := s.read.QueryRowContext(ctx, `SELECT name FROM gateway WHERE token_sha256 = ? AND revoked IS NULL`, sha256[:]).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", cloud.ErrUnknownToken
	}
	if err != nil {
		return "", fmt.Errorf("look up token: %w", err)
	}
	return id, nil
}

// Gateways implements cloud.Archive.
func (s *Store) Gateways(ctx context.Context) (gateways []cloud.Gateway, err error) {
	rows, err := s.read.QueryContext(ctx, `
		SELECT name, venue, added, last_stored, last_seen, revoked, cloned, samples, blocks, kept_aside, lost FROM gateway ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var g cloud.Gateway
		var added int64
		var lastStored, lastSeen, revoked, cloned sql.NullInt64
		if err := rows.Scan(&g.ID, &g.Venue, &added, &lastStored, &lastSeen, &revoked, &cloned, &g.Samples, &g.Blocks, &g.KeptAside, &g.Lost); err != nil {
			return nil, fmt.Errorf("list gateways: %w", err)
		}
		g.Added = time.Unix(0, added).UTC()
		for to, from := range map[**time.Time]sql.NullInt64{&g.LastStored: lastStored, &g.LastSeen: lastSeen, &g.Revoked: revoked, &g.Cloned: cloned} {
			if from.Valid {
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
func (s *Store) Stored(ctx context.Context, gateway string, epochs []touchline.Epoch) (stored []wire.EpochRanges, err error) {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read cursors: %w", err)
	}
	defer rollback(tx, &err)
	for _, epoch := range epochs {
		ranges, err := storedOf(ctx, tx, gateway, epoch)
		if err != nil {
			return nil, fmt.Errorf("read cursor of epoch %s: %w", epoch, err)
		}
		if len(ranges) > 0 {
			stored = append(stored, wire.EpochRanges{Epoch: epoch, Ranges: ranges})
		}
	}
	return stored, nil
}

// storedOf returns the numbers of an epoch that were called stored to a gateway:
// those of the cursor where the epoch is its own, and those of the blocks that
// it sent and that were kept aside where it is another's.
func storedOf(ctx context.Context, tx *sql.Tx, gateway string, epoch touchline.Epoch) (touchline.Ranges, error) {
	var cursor int64
	var owner string
	var encoded []byte
	err := tx.QueryRowContext(ctx, `
		SELECT cursor.id, gateway.name, ranges FROM cursor JOIN gateway ON gateway.id = cursor.gateway
		WHERE cursor.epoch = ?`, epoch[:]).Scan(&cursor, &owner, &encoded)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if owner == gateway {
		return parseRanges(encoded)
	}
	rows, err := tx.QueryContext(ctx, `
		SELECT first, count FROM aside JOIN gateway ON gateway.id = aside.gateway
		WHERE aside.cursor = ? AND gateway.name = ? ORDER BY first`, cursor, gateway)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var ranges touchline.Ranges
	for rows.Next() {
		var first, count uint64
		if err := rows.Scan(&first, &count); err != nil {
			return nil, err
		}
		ranges.Add(touchline.Range{First: first, Last: first + count - 1})
	}
	return ranges, rows.Err()
}

// Lost implements cloud.Recorder. A repeat is the same id of the same epoch:
// ids begin anew where a gateway's buffer file was replaced, epochs don't.
func (s *Store) Lost(ctx context.Context, gateway string, session uint64, lost wire.Lost) (err error) {
	fail := func(err error) error { return fmt.Errorf("record loss %d of gateway %s: %w", lost.ID, gateway, err) }
	if lost.ID > touchline.MaxSeq {
		return fail(fmt.Errorf("the id is above %d", uint64(touchline.MaxSeq)))
	}
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return fail(err)
	}
	defer rollback(tx, &err)
	id, err := fenced(tx, gateway, session)
	if err != nil {
		return fail(err)
	}
	result, err := tx.Exec(`
		INSERT INTO lost (gateway, epoch, id, ranges, cause, min_time, max_time, recorded)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		id, lost.Epoch[:], int64(lost.ID), nonNil(appendRanges(nil, lost.Ranges)), shorten(lost.Cause), lost.MinTime, lost.MaxTime, time.Now().UnixNano())
	if err != nil {
		return fail(err)
	}
	if added, err := result.RowsAffected(); err != nil {
		return fail(err)
	} else if added == 0 {
		return nil // a repeat
	}
	// The sum stays where it is exact and no announcement can overflow it.
	if _, err := tx.Exec(`UPDATE gateway SET lost = min(lost + ?, ?) WHERE id = ?`,
		int64(lost.Ranges.Count()), int64(touchline.MaxSeq), id); err != nil {
		return fail(err)
	}
	if err := tx.Commit(); err != nil {
		return fail(err)
	}
	return nil
}
