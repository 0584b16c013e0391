package credential

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"
)

// NonceLife is how long a nonce may be used: it covers one more handshake on
// a line of 256 kbit/s through a proxy that answers slowly.
const NonceLife = 60 * time.Second

// A nonce is 8 bytes of expiry (ms since the Unix epoch, big endian), 16
// random bytes, and the first 16 bytes of an HMAC-SHA-256 over both.
const (
	nonceBody  = 8 + 16
	nonceBytes = nonceBody + 16
)

// MinNonceSecret is the least number of bytes of a secret for nonces.
const MinNonceSecret = 32

// Nonces makes nonces and knows its own again, without memory of any: a
// stranger who asks for a million costs a million HMACs (1 µs each) and no
// byte. That a nonce counts once for a gateway is held by the Verifier. Its
// methods may be called concurrently.
type Nonces struct{ keys [][]byte }

// NewNonces takes the secrets that nonces are made with, each of at least
// MinNonceSecret bytes: the first makes them, all are accepted, so that a
// secret can be changed on one node after the other. Nodes behind one load
// balancer need the same secret, or a nonce of one is refused by the others:
// it is best kept in the store that they share. With no secret at all one is
// drawn for this process.
func NewNonces(secrets ...[]byte) (*Nonces, error) {
	if len(secrets) == 0 {
		own := make([]byte, MinNonceSecret)
		_, _ = rand.Read(own) // never fails
		secrets = [][]byte{own}
	}
	n := &Nonces{}
	for i, secret := range secrets {
		if len(secret) < MinNonceSecret {
			return nil, fmt.Errorf("secret %d for nonces has %d bytes: want at least %d random ones", i+1, len(secret), MinNonceSecret)
		}
		mac := hmac.New(sha256.New, secret) // a key for this purpose alone, whatever else the secret is used for
		mac.Write([]byte("touchline nonce v1"))
		n.keys = append(n.keys, mac.Sum(nil))
	}
	return n, nil
}

// New returns a nonce: 54 characters of base64url, good for NonceLife.
func (n *Nonces) New() string {
	var b [nonceBytes]byte
	binary.BigEndian.PutUint64(b[:], uint64(time.Now().Add(NonceLife).UnixMilli()))
	_, _ = rand.Read(b[8:nonceBody]) // never fails
	copy(b[nonceBody:], nonceMAC(n.keys[0], b[:nonceBody]))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Check returns when the nonce expires. ok is false for one that was not made
// with these secrets, or is over.
func (n *Nonces) Check(nonce string) (expires time.Time, ok bool) {
	b, ok := decode64(nonce, nonceBytes)
	if !ok {
		return time.Time{}, false
	}
	ours := false
	for _, key := range n.keys {
		ours = hmac.Equal(nonceMAC(key, b[:nonceBody]), b[nonceBody:]) || ours
	}
	if !ours {
		return time.Time{}, false
	}
	expires = time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
	left := time.Until(expires)
	// One that is good for longer was made by a clock that is ahead of ours:
	// it would outlive what is remembered of its use.
	return expires, left > 0 && left <= NonceLife+Leeway
}

func nonceMAC(key, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	return mac.Sum(nil)[:nonceBytes-nonceBody]
}
