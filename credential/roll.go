package credential

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"touchline"
)

// RollOverlap is how long the old key counts beside the new one: a gateway
// that was switched off in the middle of a roll comes back with either.
const RollOverlap = 7 * 24 * time.Hour

// A KeyRoll is a gateway's statement that another key is its own: signed by
// the newest key that the cloud knows, and by the new one, to prove that the
// gateway has it.
//
// A gateway writes the new key to disk before it sends the statement, sends
// the same one until the cloud confirms it, and only then uses the new key.
type KeyRoll struct {
	Gateway   string            `json:"gateway"`
	New       ed25519.PublicKey `json:"new_key"`
	ValidFrom time.Time         `json:"valid_from,omitzero"` // whole seconds; the zero time means at once
	ByOld     []byte            `json:"by_old"`
	ByNew     []byte            `json:"by_new"`
}

// NewKeyRoll signs the roll from old to next. validFrom is cut to seconds; a
// gateway whose clock can't be trusted gives the zero time.
func NewKeyRoll(gateway string, old, next ed25519.PrivateKey, validFrom time.Time) (KeyRoll, error) {
	if len(old) != ed25519.PrivateKeySize || len(next) != ed25519.PrivateKeySize {
		return KeyRoll{}, errors.New("sign key roll: a key is missing")
	}
	r := KeyRoll{Gateway: gateway, New: PublicKey(next)}
	if !validFrom.IsZero() {
		r.ValidFrom = time.Unix(validFrom.Unix(), 0).UTC()
	}
	if err := r.check(); err != nil {
		return KeyRoll{}, fmt.Errorf("sign key roll: %w", err)
	}
	if old.Equal(next) {
		return KeyRoll{}, errors.New("sign key roll: the new key is the old one")
	}
	signed := r.signed(PublicKey(old))
	r.ByOld, r.ByNew = ed25519.Sign(old, signed), ed25519.Sign(next, signed)
	return r, nil
}

// Verify checks the statement against the keys that the cloud has of the
// gateway, oldest first, and returns those that it has from now on: the new
// one, and before it the one that signed, for RollOverlap. Anything older is
// dropped, so there are never more than two. A repeat of the last roll returns
// the keys as they are. Only the newest key can sign: one that was stolen and
// rolled away from says nothing any more.
func (r KeyRoll) Verify(known []GatewayKey, now time.Time) ([]GatewayKey, error) {
	fail := func(format string, args ...any) ([]GatewayKey, error) {
		return nil, fmt.Errorf("verify key roll of gateway %s: %w: "+format, append([]any{r.Gateway, ErrProof}, args...)...)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("verify key roll: %w: %w", ErrProof, err)
	}
	if len(known) == 0 {
		return fail("the gateway has no key")
	}
	newest := known[len(known)-1]
	if newest.Public.Equal(r.New) {
		if len(known) < 2 || !r.holds(known[len(known)-2].Public) {
			return fail("the new key is known already, and the statement is not the one that brought it")
		}
		return known, nil
	}
	if !newest.NotAfter.IsZero() && !now.Before(newest.NotAfter) || len(newest.Public) != ed25519.PublicKeySize {
		return fail("the newest key counts no more")
	}
	if !r.holds(newest.Public) {
		return fail("it is not signed by the newest key and the new one")
	}
	from := now.UTC()
	if r.ValidFrom.After(from) {
		from = r.ValidFrom
	}
	if from.After(now.Add(RollOverlap)) {
		return fail("it begins at %s: at most %s ahead is allowed", from.Format(time.RFC3339), RollOverlap)
	}
	newest.NotAfter = from.Add(RollOverlap)
	return []GatewayKey{newest, {Public: r.New, NotBefore: from}}, nil
}

func (r KeyRoll) check() error {
	if err := touchline.CheckGateway(r.Gateway); err != nil {
		return err
	}
	if len(r.New) != ed25519.PublicKeySize {
		return fmt.Errorf("public key has %d bytes: want %d", len(r.New), ed25519.PublicKeySize)
	}
	if !r.ValidFrom.IsZero() && (r.ValidFrom.Unix() <= 0 || r.ValidFrom.Year() > 9999 || r.ValidFrom.Nanosecond() != 0) {
		return errors.New("its beginning is no whole second from 1970 to 9999")
	}
	return nil
}

func (r KeyRoll) holds(old ed25519.PublicKey) bool {
	signed := r.signed(old)
	return ed25519.Verify(old, signed, r.ByOld) && ed25519.Verify(r.New, signed, r.ByNew)
}

func (r KeyRoll) signed(old ed25519.PublicKey) []byte {
	var from uint64 // 0 is at once
	if !r.ValidFrom.IsZero() {
		from = uint64(r.ValidFrom.Unix())
	}
	return transcript("touchline key roll v1", []byte(r.Gateway), old, r.New, binary.BigEndian.AppendUint64(nil, from))
}
