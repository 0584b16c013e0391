package credential

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"time"
)

// NewGatewayKey draws a key (Ed25519, RFC 8032). The private half never leaves
// the gateway's data folder, where package identity keeps it; the cloud has the
// public half.
func NewGatewayKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic("BUG: crypto/rand failed: " + err.Error()) // documented never to happen
	}
	return key
}

// PublicKey returns the public half.
func PublicKey(key ed25519.PrivateKey) ed25519.PublicKey {
	return key.Public().(ed25519.PublicKey)
}

// decode64 decodes exactly n bytes of base64url without padding, in the one
// way they can be written. (Strict still skips line breaks: the length tells.)
func decode64(s string, n int) ([]byte, bool) {
	if len(s) != base64.RawURLEncoding.EncodedLen(n) {
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return b, err == nil && len(b) == n
}

// Thumbprint names a public key: RFC 7638 with RFC 8037, section 2, SHA-256 in
// base64url, 43 characters. People compare it, and kid in a token is it.
func Thumbprint(key ed25519.PublicKey) string {
	jwk := `{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(key) + `"}`
	sum := sha256.Sum256([]byte(jwk))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// A GatewayKey is a public key of a gateway, and when it counts. Zero times
// are no bounds.
type GatewayKey struct {
	Public    ed25519.PublicKey
	NotBefore time.Time
	NotAfter  time.Time // at this time it is over
}

// Counts says whether the key is to be believed at now.
func (k GatewayKey) Counts(now time.Time) bool {
	return len(k.Public) == ed25519.PublicKeySize && !now.Before(k.NotBefore) && (k.NotAfter.IsZero() || now.Before(k.NotAfter))
}
