package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
)

// Enrol implements cloud.Access.
func (s *Store) Enrol(ctx context.Context, e cloud.Enrolment) (done cloud.Enrolled, err error) {
	err = s.change(ctx, func(tx pgx.Tx) error {
		done, err = s.enrol(ctx, tx, e)
		return err
	})
	if err != nil {
		return cloud.Enrolled{}, fmt.Errorf("enrol: %w", err)
	}
	return done, nil
}

func (s *Store) enrol(ctx context.Context, tx pgx.Tx, e cloud.Enrolment) (done cloud.Enrolled, err error) {
	now := time.Now()
	var claim struct {
		venue, gateway string
		expires        int64
		usedBy         *int64
		key            []byte
	}
	// Locked: of two that use one code at once, on any nodes, one is first.
	row := tx.QueryRow(ctx, `SELECT venue, gateway, expires, used_by, key FROM claim WHERE sha256 = $1 FOR UPDATE`, e.Claim[:])
	if err := row.Scan(&claim.venue, &claim.gateway, &claim.expires, &claim.usedBy, &claim.key); errors.Is(err, pgx.ErrNoRows) {
		return done, cloud.ErrClaim
	} else if err != nil {
		return done, err
	}
	done = cloud.Enrolled{Venue: claim.venue, Store: s.id}
	if claim.usedBy != nil {
		// In a statement of its own: one that waited for the lock has the new row
		// of the claim, and would not see the gateway that was made with it.
		if err := tx.QueryRow(ctx, `SELECT name FROM gateway WHERE id = $1`, *claim.usedBy).Scan(&done.Gateway); err != nil {
			return done, err
		}
		if string(claim.key) != string(e.Key[:]) || e.Gateway != "" && e.Gateway != done.Gateway {
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
		if done.Gateway, err = freeName(ctx, tx, claim.venue); err != nil {
			return done, err
		}
	}
	id, err := enrolGateway(ctx, tx, done, claim.gateway != "")
	if err != nil {
		return done, err
	}
	if err := endKeys(ctx, tx, id, now); err != nil {
		return done, err
	}
	if err := putKey(ctx, tx, id, credential.GatewayKey{Public: e.Key[:]}, now); err != nil {
		return done, err
	}
	_, err = tx.Exec(ctx, `UPDATE claim SET used = $2, used_by = $3, key = $4 WHERE sha256 = $1`, e.Claim[:], now.UnixNano(), id, e.Key[:])
	if err != nil {
		return done, err
	}
	return done, takeAway(ctx, tx)
}

// enrolGateway makes the gateway's row, or takes its token away where the
// claim is for one that is there. The row is locked then.
func enrolGateway(ctx context.Context, tx pgx.Tx, e cloud.Enrolled, claimed bool) (id int64, err error) {
	if err := touchline.CheckGateway(e.Gateway); err != nil {
		return 0, err
	}
	conflict := `DO NOTHING`
	if claimed {
		conflict = `(name) DO UPDATE SET token_sha256 = excluded.token_sha256, venue = excluded.venue, revoked = NULL`
	}
	err = tx.QueryRow(ctx, `INSERT INTO gateway (name, token_sha256, added, venue) VALUES ($1, $2, $3, $4) ON CONFLICT `+conflict+` RETURNING id`,
		e.Gateway, noToken(), time.Now().UnixNano(), e.Venue).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("there is a gateway %s, and the claim code is not for it; `touchline-cloud gateway claim --gateway %s` makes one that is: %w",
			e.Gateway, e.Gateway, cloud.ErrTaken)
	}
	return id, err
}

// freeName returns the first of venue-1, venue-2 … that is no gateway's. Those
// who look at the same time do so one after the other.
func freeName(ctx context.Context, tx pgx.Tx, venue string) (string, error) {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1, hashtext($2))`, migrationLock, venue); err != nil {
		return "", err
	}
	for n := 1; n <= 1_000_000; n++ {
		name := fmt.Sprintf("%s-%d", venue, n)
		if _, err := gatewayID(ctx, tx, name); errors.Is(err, errNotRegistered) {
			return name, touchline.CheckGateway(name)
		} else if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("venue %s has a million gateways", venue)
}
