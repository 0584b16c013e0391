package postgres

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline/cloud"
	"touchline/credential"
)

// schemaUsed knows which tokens of handshakes were used, at whichever node. In
// the order of until, what comes goes to the end of the index and what is over
// leaves its beginning.
const schemaUsed = `
CREATE TABLE used (
	until bigint NOT NULL,
	mark  bytea NOT NULL,
	PRIMARY KEY (until, mark)
);
`

const (
	// usedSlack is how much longer a mark is kept than it must be by the clock
	// of who deletes it: others may be behind by as much, or that clock set
	// back. 500 handshakes a second, for 150 s and this, are 105,000 rows.
	usedSlack = time.Minute

	// Marks that are over are deleted by each node once in sweepUsedEvery, the
	// oldest maxUsedSwept: 10,000 a second, twenty times what may come.
	sweepUsedEvery = time.Second
	maxUsedSwept   = 10_000
)

// usedSweeps are when this process deleted marks last.
type usedSweeps struct {
	mu   sync.Mutex // covers last
	last time.Time
}

// due says whether it is time again, once.
func (u *usedSweeps) due(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if since := now.Sub(u.last); since >= 0 && since < sweepUsedEvery {
		return false
	}
	u.last = now
	return true
}

// Redeem implements cloud.Access. Each is a statement and a commit of its own:
// the server syncs those that come together at once.
func (s *Store) Redeem(ctx context.Context, h credential.Handshake) error {
	added, err := s.pool.Exec(ctx, `INSERT INTO used (until, mark) VALUES ($1, $2) ON CONFLICT DO NOTHING`, h.Until.UnixNano(), h.Mark[:])
	if err == nil && added.RowsAffected() == 0 {
		err = credential.ErrReplayed
	}
	if err != nil {
		return fmt.Errorf("use up a token of gateway %s: %w", h.Gateway, err)
	}
	if now := time.Now(); s.usedSweeps.due(now) {
		// What stays does no harm, and the gateway has come in.
		if err := s.sweepUsed(ctx, now); err != nil {
			s.logger.Warn("forget tokens that are over", "error", err)
		}
	}
	return nil
}

func (s *Store) sweepUsed(ctx context.Context, now time.Time) error {
	_, err := s.pool.Exec(ctx, `
		DELETE FROM used WHERE (until, mark) IN (SELECT until, mark FROM used WHERE until < $1 ORDER BY until, mark LIMIT $2 FOR UPDATE SKIP LOCKED)`,
		now.Add(-usedSlack).UnixNano(), maxUsedSwept)
	return err
}

// NonceSecret implements cloud.Access.
func (s *Store) NonceSecret() []byte { return slices.Clone(s.nonceSecret) }

func parseNonceSecret(text string) ([]byte, error) {
	secret, err := hex.DecodeString(text)
	if err != nil || len(secret) < credential.MinNonceSecret {
		return nil, fmt.Errorf("read secret of nonces: it is not %d bytes in hexadecimal digits", credential.MinNonceSecret)
	}
	return secret, nil
}

// RemoveGatewayKey takes one key of a gateway away, named by its thumbprint,
// for good: neither handshakes nor archives that are signed with it count from
// then on, and no roll brings it back. cloud.ErrUnknownKey is in the error where the gateway has no such
// key, cloud.ErrLastKey where it has no other that counts now.
func (s *Store) RemoveGatewayKey(ctx context.Context, gateway, thumbprint string) error {
	err := s.change(ctx, func(tx pgx.Tx) error {
		if _, err := lockGateway(ctx, tx, gateway, ""); err != nil {
			return fmt.Errorf("%w: %w", cloud.ErrUnknownKey, err)
		}
		keys, err := handshakeKeys(ctx, tx, gateway)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(keys, func(k credential.GatewayKey) bool { return credential.Thumbprint(k.Public) == thumbprint })
		if i < 0 {
			return cloud.ErrUnknownKey
		}
		now := time.Now()
		others := slices.Delete(slices.Clone(keys), i, i+1)
		if keys[i].Counts(now) && !slices.ContainsFunc(others, func(k credential.GatewayKey) bool { return k.Counts(now) }) {
			return cloud.ErrLastKey
		}
		if _, err := tx.Exec(ctx, `UPDATE gateway_key SET not_after = $2 WHERE key = $1`, []byte(keys[i].Public), int64(removedKey)); err != nil {
			return err
		}
		return takeAway(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("remove key of gateway %s: %w", gateway, err)
	}
	return nil
}
