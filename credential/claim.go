package credential

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ClaimLife is how long a claim code may be used.
const ClaimLife = 24 * time.Hour

// A code is four groups of five characters: four that are drawn, 20 bits a
// group and 80 in all, and one that checks its group.
const (
	claimGroups = 4
	claimDrawn  = 4
	claimGroup  = claimDrawn + 1
	claimLen    = claimGroups * claimGroup

	// maxClaimInput bounds what a person may type, spaces and dashes included.
	maxClaimInput = 128
)

// crockford is the alphabet of Crockford's base 32: no I, L, O and U.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// A Claim is the one-time code by which a new gateway of a venue shows that an
// operator wants it: 80 random bits that a person can read out over a
// telephone. It prints as [secret].
type Claim struct{ code Secret } // canonical: capitals, no dashes

// NewClaim draws a code. Reveal it once and keep its Hash.
func NewClaim() Claim {
	var drawn [claimGroups * claimDrawn]byte
	_, _ = rand.Read(drawn[:]) // never fails
	code := make([]byte, 0, claimLen)
	for g := range claimGroups {
		for _, b := range drawn[g*claimDrawn : (g+1)*claimDrawn] {
			code = append(code, crockford[b%32]) // 256 is a multiple of 32: drawn evenly
		}
		code = append(code, claimCheck(g, code[g*claimGroup:]))
	}
	return Claim{NewSecret(string(code))}
}

// ParseClaim reads a code as people type it: small letters, O for 0, I and L
// for 1, dashes and spaces anywhere or nowhere. A typo is found before
// anything is sent: one wrong character, or two exchanged in a group, always,
// anything else 31 times in 32. The error names the group and never quotes.
func ParseClaim(typed string) (Claim, error) {
	if len(typed) > maxClaimInput {
		return Claim{}, fmt.Errorf("claim code has %d characters: want %d in groups of %d", len(typed), claimLen, claimGroup)
	}
	code := make([]byte, 0, claimLen)
	for _, r := range strings.ToUpper(typed) {
		switch r {
		case ' ', '-', '\t':
			continue
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		if !strings.ContainsRune(crockford, r) {
			return Claim{}, fmt.Errorf("claim code: group %d has a character that is in no code (codes have digits and letters without I, L, O and U)", len(code)/claimGroup+1)
		}
		code = append(code, byte(r))
	}
	if len(code) != claimLen {
		return Claim{}, fmt.Errorf("claim code has %d characters: want %d in groups of %d; look which group is too short or too long", len(code), claimLen, claimGroup)
	}
	for g := range claimGroups {
		group := code[g*claimGroup : (g+1)*claimGroup]
		if claimCheck(g, group[:claimDrawn]) != group[claimDrawn] {
			return Claim{}, fmt.Errorf("claim code: group %d of %d has a typo, or groups are exchanged", g+1, claimGroups)
		}
	}
	return Claim{NewSecret(string(code))}, nil
}

// Reveal returns the code in groups, to show it to a person once or to send it
// to the cloud.
func (c Claim) Reveal() string {
	code := c.code.Reveal()
	if code == "" {
		return ""
	}
	var groups []string
	for i := 0; i < len(code); i += claimGroup {
		groups = append(groups, code[i:i+claimGroup])
	}
	return strings.Join(groups, "-")
}

// Hash is what the cloud keeps of a code and finds it by. Nobody tries 2^80
// codes within its day, so a fast hash is enough.
func (c Claim) Hash() [32]byte {
	return sha256.Sum256(transcript("touchline claim v1", []byte(c.code.Reveal())))
}

// Matches says in constant time whether the code has this hash.
func (c Claim) Matches(hash [32]byte) bool {
	own := c.Hash()
	return subtle.ConstantTimeCompare(own[:], hash[:]) == 1
}

// String returns [secret].
func (c Claim) String() string { return redacted }

// MarshalText returns an error: a code is sent where it is revealed on
// purpose, never because a struct happens to hold it.
func (c Claim) MarshalText() ([]byte, error) {
	return nil, errors.New("a claim code is marshalled: reveal it where that is meant")
}

// claimCheck returns the check character of group g: the sum, in the field of
// 32 elements (x^5 + x^2 + 1), of the characters' values times x^1 to x^4, plus
// x^(8+g). The factors differ and none is zero, so a wrong character and two
// that are exchanged change the sum, and so does another place of the group.
func claimCheck(g int, drawn []byte) byte {
	sum := power32(8 + g)
	for i, c := range drawn[:claimDrawn] {
		v := strings.IndexByte(crockford, c)
		for range i + 1 {
			v = double32(v)
		}
		sum ^= v
	}
	return crockford[sum]
}

func power32(n int) int {
	v := 1
	for range n {
		v = double32(v)
	}
	return v
}

// double32 multiplies by x in the field of 32 elements.
func double32(v int) int {
	if v <<= 1; v >= 32 {
		v ^= 0b100101
	}
	return v
}
