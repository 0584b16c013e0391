package credential

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
)

const (
	apiPrefix = "tlk_"

	// apiIDLen characters of base62 are 59 bits: among a million keys, two have
	// the same id once in a million. The store refuses the second.
	apiIDLen = 10

	apiKeyLen = len(apiPrefix) + apiIDLen + 1 + secretLen + 1 + checkLen
)

// APIKeyPattern finds API keys in text: for secret scanners.
const APIKeyPattern = `\btlk_[0-9A-Za-z]{10}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}\b` // #nosec G101 -- a pattern, and no key

// An APIKey lets a person or a program use the cloud:
// tlk_<id>_<256 random bits in base62>_<CRC-32 in base62>. It prints as its
// prefix and id, by which the store finds it and logs may name it. Its scopes
// and expiry are in the store.
type APIKey struct {
	id   string
	text Secret
}

// NewAPIKey draws a key. Reveal it once and keep its ID and Hash.
func NewAPIKey() APIKey {
	id := random62(apiIDLen)
	body := apiPrefix + id + "_" + random62(secretLen)
	return APIKey{id, NewSecret(body + "_" + check62(body))}
}

// ParseAPIKey reads a key. A checksum finds one that was cut or mistyped; the
// error does not quote it.
func ParseAPIKey(s string) (APIKey, error) {
	rest, ok := strings.CutPrefix(s, apiPrefix)
	if !ok {
		return APIKey{}, errors.New("API key does not begin with " + apiPrefix)
	}
	if len(s) != apiKeyLen {
		return APIKey{}, fmt.Errorf("API key has %d characters: want %d; was it copied whole?", len(s), apiKeyLen)
	}
	parts := strings.Split(rest, "_")
	if len(parts) != 3 || !is62(parts[0], apiIDLen) || !is62(parts[1], secretLen) || !is62(parts[2], checkLen) {
		return APIKey{}, errors.New("API key has a character that is in none, or one at the wrong place")
	}
	if check62(s[:len(s)-1-checkLen]) != parts[2] {
		return APIKey{}, errors.New("API key has a typo: its checksum does not hold")
	}
	return APIKey{strings.Clone(parts[0]), NewSecret(strings.Clone(s))}, nil
}

// ID returns the part that is no secret.
func (k APIKey) ID() string { return k.id }

// Reveal returns the key, to show it to a person once or to send it.
func (k APIKey) Reveal() string { return k.text.Reveal() }

// Hash is what the store keeps. No dictionary finds 256 random bits, so a fast
// hash is enough.
func (k APIKey) Hash() [32]byte { return sha256.Sum256([]byte(k.text.Reveal())) }

// Matches says in constant time whether the key has this hash. For an id that
// the store does not know, ask for the zero hash and refuse all the same.
func (k APIKey) Matches(hash [32]byte) bool {
	own := k.Hash()
	return subtle.ConstantTimeCompare(own[:], hash[:]) == 1
}

// String returns prefix and id.
func (k APIKey) String() string {
	if k.id == "" {
		return redacted
	}
	return apiPrefix + k.id + "_…"
}

// MarshalText returns what String does, never the key.
func (k APIKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
