package credential

import (
	"crypto/ed25519"
	"errors"
	"fmt"

	"touchline"
)

// ErrProof is wrapped by the errors of Enrolment.Verify and KeyRoll.Verify.
var ErrProof = errors.New("the proof does not hold")

// maxNonceField bounds the nonce of an enrolment, which the cloud chose.
const maxNonceField = 256

// An Enrolment is what a new gateway sends, with its claim code, to have its
// key registered. The signature proves that it has the private half, now (the
// nonce) and for this code: one that was overheard is worth nothing without
// the key, and a key can't be registered by who has only seen it.
type Enrolment struct {
	Gateway   string            `json:"gateway"` // "" where the cloud names it
	Public    ed25519.PublicKey `json:"public_key"`
	Nonce     string            `json:"nonce"` // of the cloud
	Signature []byte            `json:"signature"`
}

// NewEnrolment signs an enrolment of key under the id gateway, or under the
// one that the cloud gives it where that is empty.
func NewEnrolment(c Claim, key ed25519.PrivateKey, gateway, nonce string) (Enrolment, error) {
	if len(key) != ed25519.PrivateKeySize {
		return Enrolment{}, errors.New("sign enrolment: there is no key")
	}
	e := Enrolment{Gateway: gateway, Public: PublicKey(key), Nonce: nonce}
	if err := e.check(); err != nil {
		return Enrolment{}, fmt.Errorf("sign enrolment: %w", err)
	}
	e.Signature = ed25519.Sign(key, e.signed(c.Hash()))
	return e, nil
}

// Verify checks the proof for the code with this hash. That the code is known,
// fresh and unused, and that the nonce is one of the cloud's, is for the
// caller to check: Nonces.Check, and the store, which takes the code and
// registers the key in one transaction.
func (e Enrolment) Verify(claimHash [32]byte) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("verify enrolment: %w: %w", ErrProof, err)
	}
	if !ed25519.Verify(e.Public, e.signed(claimHash), e.Signature) {
		return fmt.Errorf("verify enrolment of gateway %s: %w: its signature is not of this key, code and nonce", e.Gateway, ErrProof)
	}
	return nil
}

func (e Enrolment) check() error {
	if e.Gateway != "" { // else the cloud names it
		if err := touchline.CheckGateway(e.Gateway); err != nil {
			return err
		}
	}
	if len(e.Public) != ed25519.PublicKeySize {
		return fmt.Errorf("public key has %d bytes: want %d", len(e.Public), ed25519.PublicKeySize)
	}
	if e.Nonce == "" || len(e.Nonce) > maxNonceField {
		return fmt.Errorf("nonce has %d bytes: want 1 to %d", len(e.Nonce), maxNonceField)
	}
	return nil
}

func (e Enrolment) signed(claimHash [32]byte) []byte {
	return transcript("touchline enrolment v1", claimHash[:], []byte(e.Nonce), e.Public, []byte(e.Gateway))
}
