package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// maxEnrolBytes bounds the body of an enrolment or a key roll, which take 800
// bytes at most.
const maxEnrolBytes = 8 << 10

// Enrolments are rare, and each looks up a code that a stranger may have made
// up: one address has one a second and ten at once, and all together 50 and 100.
const (
	enrolAddressRate, enrolAddressBurst = 1, 10
	enrolRate, enrolBurst               = 50, 100
	maxAddresses                        = 10_000 // 1 MB
)

// An enroller lets new gateways in, and known ones change their keys.
type enroller struct {
	in   *ingest
	all  *bucket
	each *buckets // by network
}

func newEnroller(in *ingest) *enroller {
	return &enroller{in: in, all: newBucket(enrolRate, enrolBurst), each: newBuckets(enrolAddressRate, enrolAddressBurst, maxAddresses)}
}

func (e *enroller) serveNonce(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, "application/json", http.StatusOK, wire.Nonce{Nonce: e.in.nonces.New(), Time: time.Now().UTC()})
}

// serveEnrol registers the key of a gateway that has a claim code.
func (e *enroller) serveEnrol(w http.ResponseWriter, r *http.Request) {
	from, now := network(e.in.from.of(r)), time.Now()
	after, ok := e.each.take(from, now)
	if ok {
		after, ok = e.all.take(now)
	}
	if !ok {
		retryAfter(w, after)
		problem(w, http.StatusTooManyRequests, "too many enrolments come from this address, or at once")
		return
	}
	var q wire.Enrol
	if !e.readBody(w, r, &q) {
		return
	}
	claim, err := credential.ParseClaim(q.Code)
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error()) // which quotes nothing
		return
	}
	key, err := identity.ParsePublic(q.PublicKey)
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	if _, ok := e.in.nonces.Check(q.Nonce); !ok {
		problem(w, http.StatusUnauthorized, "the nonce is over or not of this cloud: fetch another from "+wire.NoncePath)
		return
	}
	proof := credential.Enrolment{Gateway: q.Gateway, Public: key[:], Nonce: q.Nonce, Signature: q.Proof}
	if err := proof.Verify(claim.Hash()); err != nil {
		problem(w, http.StatusUnauthorized, "the proof does not hold: it must be signed with the private half of public_key, over this code, nonce and gateway")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), e.in.timing.ask)
	defer cancel()
	done, err := e.in.store.Enrol(ctx, Enrolment{Claim: claim.Hash(), Gateway: q.Gateway, Key: key})
	switch {
	case errors.Is(err, ErrClaim):
		e.in.warn(r, "an enrolment came with an unknown claim code", q.Gateway, nil)
		problem(w, http.StatusUnauthorized, ErrClaim.Error()+": `touchline-cloud gateway claim` makes a new one")
	case errors.Is(err, ErrClaimExpired):
		problem(w, http.StatusUnauthorized, ErrClaimExpired.Error()+": `touchline-cloud gateway claim` makes a new one")
	case errors.Is(err, ErrTaken):
		problem(w, http.StatusConflict, err.Error())
	case err != nil:
		e.unavailable(w, "enrol gateway", err)
	default:
		e.in.log.Info("a gateway was enrolled", "gateway", done.Gateway, "venue", done.Venue, "key", credential.Thumbprint(key[:]),
			"remote", e.in.from.of(r), "software", fmt.Sprintf("%.128s", q.Software))
		writeJSON(w, "application/json", http.StatusOK, wire.Enrolled{Gateway: done.Gateway, Venue: done.Venue, Store: done.Store})
	}
}

// serveRoll lets a gateway change its key. The statement is signed by the
// newest key that is known, and the handshake's token by one that counts.
func (e *enroller) serveRoll(w http.ResponseWriter, r *http.Request) {
	p, ok := e.in.authenticate(w, r)
	if !ok {
		return
	}
	var roll credential.KeyRoll
	if !e.readBody(w, r, &roll) {
		return
	}
	if roll.Gateway != p.gateway || p.keyID == "" {
		problem(w, http.StatusForbidden, fmt.Sprintf("the key roll must be of the gateway %s, and the request signed with its key", p.gateway))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), e.in.timing.ask)
	defer cancel()
	var keys []credential.GatewayKey
	err := e.in.store.RollKeys(ctx, p.gateway, func(known []credential.GatewayKey) (_ []credential.GatewayKey, err error) {
		if len(known) == 1 && known[0].Public.Equal(roll.New) && p.keyID == credential.Thumbprint(roll.New) {
			// It did not hear the answer, and the old key has ended since: that it
			// has the new one it has just shown.
			keys = known
			return keys, nil
		}
		keys, err = roll.Verify(known, time.Now())
		return keys, err
	})
	switch {
	case errors.Is(err, credential.ErrProof):
		e.in.warn(r, "a key roll came that does not hold", p.gateway, err)
		problem(w, http.StatusForbidden, "the key roll must be signed by the newest key that the cloud has of this gateway, and by the new one")
	case errors.Is(err, ErrRemovedKey):
		e.in.warn(r, "a key roll came to a key that was removed", p.gateway, nil)
		problem(w, http.StatusForbidden, "the new key was removed here (`touchline-cloud gateway key`): only a claim code, or a person, registers it again")
	case errors.Is(err, ErrTaken):
		problem(w, http.StatusConflict, "the new key is another gateway's")
	case err != nil:
		e.unavailable(w, "roll keys", err)
	default:
		e.in.log.Info("a gateway has a new key", "gateway", p.gateway, "key", credential.Thumbprint(roll.New))
		writeJSON(w, "application/json", http.StatusOK, wire.Rolled{Gateway: p.gateway, OldKeyEnds: keys[0].NotAfter.UTC()})
	}
}

func (e *enroller) unavailable(w http.ResponseWriter, what string, err error) {
	e.in.log.Error(what, "error", err)
	w.Header().Set("Retry-After", "5")
	problem(w, http.StatusServiceUnavailable, "the record store does not answer")
}

// readBody reads a small JSON body, or answers why it can't.
func (e *enroller) readBody(w http.ResponseWriter, r *http.Request, v any) bool {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(e.in.opts.Timeouts.Login))
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEnrolBytes))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		problem(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", maxEnrolBytes))
		return false
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		problem(w, http.StatusBadRequest, "the body is not the JSON object that docs/protocol.md describes")
		return false
	}
	return true
}
