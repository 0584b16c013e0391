package cloud

import (
	"context"
	"errors"
	"time"

	"touchline"
	"touchline/credential"
	"touchline/identity"
)

// Access is the record store as what decides who may speak sees it. Each
// method sees what another process committed before the call, and what it
// changes is durable when it returns nil.
type Access interface {
	// HandshakeKeys returns the keys of a gateway, oldest first; none for one
	// that is unknown or revoked.
	HandshakeKeys(ctx context.Context, gateway string) ([]credential.GatewayKey, error)
	// Credentials returns, in no order, all that GatewayByToken and HandshakeKeys
	// go by, of all gateways that are not revoked.
	Credentials(ctx context.Context) ([]GatewayCredentials, error)
	// Enrol uses a claim code up and registers the key. A repeat of the same
	// has the same answer. The errors are ErrClaim, ErrClaimExpired and
	// ErrTaken.
	Enrol(ctx context.Context, e Enrolment) (Enrolled, error)
	// RollKeys replaces the keys of a gateway by what roll makes of them, in
	// one transaction. An error of roll changes nothing and is in the chain.
	RollKeys(ctx context.Context, gateway string, roll func([]credential.GatewayKey) ([]credential.GatewayKey, error)) error
	// Opened notes that a gateway said hello from this opening of its buffer,
	// and says whether it was at a later one before: then two boxes have its
	// identity. It has the fence of Recorder.Clock: an older session that is late
	// would pass for the other box.
	Opened(ctx context.Context, gateway string, session uint64, epoch touchline.Epoch) (cloned bool, err error)
	// Redeem uses the token of a handshake up: the first call for its Mark and
	// Until, of all processes, returns nil once that is durable, and for every
	// other one credential.ErrReplayed is in the error. Of any other error it is
	// not known whether the token is used up: its gateway signs another. It is
	// forgotten some time after Until. What a store has to bear is the caller's
	// to bound.
	Redeem(ctx context.Context, h credential.Handshake) error
	// NonceSecret returns 32 random bytes, drawn when the store was made, that
	// every process which has it open knows.
	NonceSecret() []byte
	// AccessRevision returns a number that rises when a gateway's token or key
	// is taken away, by any process.
	AccessRevision(ctx context.Context) (uint64, error)
	// APIKey returns the API key with this id, or ErrUnknownKey.
	APIKey(ctx context.Context, id string) (APIKey, error)
	// APIKeyUsed notes when a key was last used.
	APIKeyUsed(ctx context.Context, id string, at time.Time) error
}

// Errors of Enrol, to branch on. A stranger is not told whether a code that
// it guessed was once good.
var (
	ErrClaim        = errors.New("the claim code is unknown or was used")
	ErrClaimExpired = errors.New("the claim code has expired")
	ErrTaken        = errors.New("taken")
)

// ErrLastKey says that a gateway could not come in without the key.
var ErrLastKey = errors.New("it is the last key of the gateway that counts")

// ErrRemovedKey says that a roll is to a key that was taken away: only a person,
// or a claim code, brings it back.
var ErrRemovedKey = errors.New("the key was removed")

// ErrExists is wrapped by the errors of a record store for what is registered
// already: a gateway's id, a token, a key, the name of an API key.
var ErrExists = errors.New("exists already")

// An Enrolment is a gateway's wish to have its key registered, its proof checked.
type Enrolment struct {
	Claim   [32]byte // credential.Claim's Hash
	Gateway string   // "": the store names it
	Key     identity.PublicKey
}

// Enrolled is what became of it.
type Enrolled struct{ Gateway, Venue, Store string }

// A Claim is a claim code as the store knows it: by its hash.
type Claim struct {
	Hash    [32]byte
	Venue   string
	Gateway string // "": a new one; else this one, whose other keys and token count no more once the code is used
	Expires time.Time
}

// An APIKey is a key of a person or a program that uses the cloud, as the
// store knows it.
type APIKey struct {
	ID       string
	Hash     [32]byte
	Name     string
	Scopes   credential.Scopes
	Created  time.Time
	Expires  time.Time // zero: never
	LastUsed time.Time // to a minute; zero: never
	Revoked  bool
}

// Counts says whether the key is good at that time.
func (k *APIKey) Counts(at time.Time) bool {
	return !k.Revoked && (k.Expires.IsZero() || at.Before(k.Expires))
}
