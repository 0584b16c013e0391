package sqlite

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"touchline/credential"
)

// Version 5 knows which tokens of handshakes were used, at whichever process,
// and has the secret of nonces (in meta, key nonce_secret). In the order of
// until, what comes goes into the last pages and what is over leaves the first:
// a key of random bytes would write a page of its own for each token.
const schemaUsed = `
CREATE TABLE used (
	until INTEGER NOT NULL,
	mark  BLOB NOT NULL,
	PRIMARY KEY (until, mark)
) WITHOUT ROWID;
`

const (
	// maxRedeemed bounds the tokens of one transaction: a fiftieth of a second
	// at most, in which nothing is recorded.
	maxRedeemed = 1024

	// redeemPatience bounds how long a transaction of them may take. It is not
	// ended by who began it, since others wait for it too.
	redeemPatience = 10 * time.Second

	// usedSlack is how much longer a mark is kept than it must be by the clock
	// of who deletes it: others may be behind by as much, or that clock set
	// back. 500 handshakes a second, for 150 s and this, are 105,000 rows of 50
	// bytes. A process lets in 100,000 in that time at most (credential.ErrFull).
	usedSlack = time.Minute

	// Marks that are over are deleted once in sweepEvery, the oldest maxSwept:
	// 10,000 a second, twenty times what may come.
	sweepEvery = time.Second
	maxSwept   = 10_000
)

// redemptions are handshakes whose tokens are about to be used up. All that
// came while a transaction was syncing are in the next one, so that a storm of
// them waits for a few syncs and takes few turns from the recorder.
type redemptions struct {
	turn chan struct{} // one element while a transaction runs

	mu      sync.Mutex // covers what follows
	waiting []*redemption

	swept time.Time // when used was swept last; of who has the turn
}

type redemption struct {
	handshake credential.Handshake
	done      chan struct{} // closed when err is the answer
	err       error
}

func newRedemptions() *redemptions { return &redemptions{turn: make(chan struct{}, 1)} }

func (r *redemptions) add(h credential.Handshake) *redemption {
	one := &redemption{handshake: h, done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = append(r.waiting, one)
	return one
}

func (r *redemptions) remove(one *redemption) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = slices.DeleteFunc(r.waiting, func(o *redemption) bool { return o == one })
}

func (r *redemptions) take() []*redemption {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.waiting), maxRedeemed)
	batch := slices.Clone(r.waiting[:n])
	r.waiting = slices.Delete(r.waiting, 0, n)
	return batch
}

// Redeem implements cloud.Access.
func (s *Store) Redeem(ctx context.Context, h credential.Handshake) error {
	one := s.redemptions.add(h)
	for {
		select {
		case <-one.done: // in another's transaction
			if one.err != nil {
				return fmt.Errorf("use up a token of gateway %s: %w", h.Gateway, one.err)
			}
			return nil
		case <-ctx.Done():
			s.redemptions.remove(one)
			return fmt.Errorf("use up a token of gateway %s: %w", h.Gateway, ctx.Err())
		case s.redemptions.turn <- struct{}{}:
			func() {
				defer func() { <-s.redemptions.turn }() // whatever happens: everybody waits for it
				s.redeemWaiting(ctx)
			}()
		}
	}
}

// redeemWaiting uses up the tokens of all who wait, or as many as one
// transaction takes. The caller has the turn.
func (s *Store) redeemWaiting(ctx context.Context) {
	batch := s.redemptions.take()
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redeemPatience)
	defer cancel()
	err := s.change(ctx, func(tx *sql.Tx) error { return s.redeem(tx, batch, time.Now()) })
	for _, one := range batch {
		if err != nil {
			one.err = err // it is not known what became of it
		}
		close(one.done)
	}
}

func (s *Store) redeem(tx *sql.Tx, batch []*redemption, now time.Time) error {
	for _, one := range batch {
		result, err := tx.Exec(`INSERT INTO used (until, mark) VALUES (?, ?) ON CONFLICT DO NOTHING`,
			one.handshake.Until.UnixNano(), one.handshake.Mark[:])
		if err != nil {
			return err
		}
		if added, err := result.RowsAffected(); err != nil {
			return err
		} else if added == 0 {
			one.err = credential.ErrReplayed
		}
	}
	if since := now.Sub(s.redemptions.swept); since >= 0 && since < sweepEvery {
		return nil
	}
	s.redemptions.swept = now
	_, err := tx.Exec(`DELETE FROM used WHERE (until, mark) IN (SELECT until, mark FROM used WHERE until < ? ORDER BY until, mark LIMIT ?)`,
		now.Add(-usedSlack).UnixNano(), maxSwept)
	return err
}

// NonceSecret implements cloud.Access.
func (s *Store) NonceSecret() []byte { return slices.Clone(s.nonceSecret) }

// readNonceSecret reads what migrate drew.
func (s *Store) readNonceSecret(ctx context.Context) error {
	var text string
	if err := s.read.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'nonce_secret'`).Scan(&text); err != nil {
		return fmt.Errorf("read secret of nonces: %w", err)
	}
	secret, err := hex.DecodeString(text)
	if err != nil || len(secret) < credential.MinNonceSecret {
		return fmt.Errorf("read secret of nonces: it is not %d bytes in hexadecimal digits", credential.MinNonceSecret)
	}
	s.nonceSecret = secret
	return nil
}
