package credential

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"touchline"
)

// A handshake of the uplink carries a JWT (RFC 7519) that the gateway signs
// with its key (EdDSA, RFC 8037) for this handshake alone, as a bearer token.

const (
	// TokenLife is the longest time from iat to exp.
	TokenLife = 120 * time.Second

	// Leeway is how far the clocks of gateway and cloud may be apart. It is
	// small, since a gateway with a worse clock is told a nonce, and comes in
	// with that.
	Leeway = 10 * time.Second

	// MaxTokenBytes bounds a token before it is decoded: header 170 bytes, iss,
	// sub and aud of 128, 128 and 253, nonce and numbers 200, all by 4/3, and a
	// signature of 86: 1,260.
	MaxTokenBytes = 2048

	// maxAudience is the longest name of a host (RFC 1035).
	maxAudience = 253

	// tokenType keeps other JWTs signed with the key apart (RFC 8725, section 3.11).
	tokenType = "touchline-handshake+jwt"

	// handshakeMemory is the longest time that a handshake is remembered: exp
	// lies at most TokenLife and Leeway ahead of the verifier's clock, and counts
	// for another Leeway.
	handshakeMemory = TokenLife + 2*Leeway + setBack

	jtiBytes = 16
)

// Errors of Verify, to branch on. The cloud answers a handshake with 401 and a
// nonce for ErrStale, 401 for ErrReplayed and ErrRefused, and 503 for ErrFull
// and any other error, which is one of the lookup of keys.
var (
	ErrStale    = errors.New("the token is not fresh by this clock")
	ErrReplayed = errors.New("the token was used before")
	ErrRefused  = errors.New("the token is refused")

	// ErrAudience comes with ErrRefused for a token that holds in all but its
	// aud: its gateway means another cloud.
	ErrAudience = errors.New("the token is for another cloud")
)

// TokenRequest is what a gateway's token says.
type TokenRequest struct {
	Gateway  string
	Key      ed25519.PrivateKey
	Audience string // what the verifier goes by: another one can't use the token
	Nonce    string // of the cloud; "" unless it sent one. It makes the token fresh whatever this clock says
}

type handshakeClaims struct {
	jwt.RegisteredClaims
	Nonce string `json:"nonce,omitempty"`
}

// NewToken signs a token for one handshake. It is good for TokenLife by the
// system's clock.
func NewToken(r TokenRequest) (Secret, error) {
	if err := touchline.CheckGateway(r.Gateway); err != nil {
		return Secret{}, fmt.Errorf("make token: %w", err)
	}
	if r.Audience == "" || len(r.Audience) > maxAudience {
		return Secret{}, fmt.Errorf("make token: audience has %d bytes: want 1 to %d", len(r.Audience), maxAudience)
	}
	if n := base64.RawURLEncoding.EncodedLen(nonceBytes); r.Nonce != "" && len(r.Nonce) != n {
		return Secret{}, fmt.Errorf("make token: the cloud's nonce has %d characters: want %d", len(r.Nonce), n)
	}
	if len(r.Key) != ed25519.PrivateKeySize {
		return Secret{}, errors.New("make token: there is no key")
	}
	var id [jtiBytes]byte
	_, _ = rand.Read(id[:]) // never fails
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, handshakeClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: r.Gateway, Subject: r.Gateway, Audience: jwt.ClaimStrings{strings.ToLower(r.Audience)},
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(TokenLife)),
			ID: base64.RawURLEncoding.EncodeToString(id[:]),
		},
		Nonce: r.Nonce,
	})
	token.Header["typ"] = tokenType
	token.Header["kid"] = Thumbprint(PublicKey(r.Key))
	text, err := token.SignedString(r.Key)
	if err != nil {
		return Secret{}, fmt.Errorf("sign token: %w", err)
	}
	return NewSecret(text), nil
}

// A Handshake is what a token that held says.
type Handshake struct {
	Gateway string
	KeyID   string    // Thumbprint of the key that signed
	KeyEnds time.Time // when that counts no more; zero: not known yet

	// Mark and Until together are the same for two uses of one token, or of one
	// nonce, and for no others, and need not be kept after Until by any clock.
	// A Verifier remembers marks itself, in this process. Processes that share a
	// store put both into it, unique and durable, before they let the gateway in
	// (see NewSharedVerifier), and so refuse a token that was used at another one.
	Mark  [32]byte
	Until time.Time
}

// Verifier checks the tokens of handshakes. Its methods may be called
// concurrently.
type Verifier struct {
	audiences []string
	newcomer  string // of audiences, the one that a token may have with a nonce only; "": none
	nonces    *Nonces
	used      *memory
	started   time.Time // what was issued before may have been used at a process before this one; zero: that is known elsewhere
	parser    *jwt.Parser
}

// NewVerifier returns a Verifier for a cloud that is reached under the names
// in audiences. A process makes one and keeps it: tokens and nonces that could
// have been used before a restart are stale.
func NewVerifier(nonces *Nonces, audiences ...string) (*Verifier, error) {
	if len(audiences) == 0 || slices.Contains(audiences, "") {
		return nil, errors.New("make verifier: name the hosts under which gateways reach this cloud")
	}
	v := &Verifier{
		nonces: nonces, used: newMemory(maxRemembered), started: time.Now().Truncate(time.Millisecond),
		parser: jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation()),
	}
	for _, a := range audiences {
		v.audiences = append(v.audiences, strings.ToLower(a))
	}
	return v, nil
}

// NewSharedVerifier returns a Verifier for one of several processes that share
// a store, or for one that comes after another: the caller puts Mark and Until
// of each Handshake there, durably, before it lets the gateway in. So nothing
// is stale because this process is new, and what it remembers itself spares
// the store a write for most repeats.
//
// audience is the store's own name. newcomer, the same at all stores, is what
// a gateway writes that does not know that name yet. With it a token counts
// only if it has a nonce, which only this cloud takes: without, any cloud that
// it is shown to could use it up at another one.
func NewSharedVerifier(nonces *Nonces, audience, newcomer string) (*Verifier, error) {
	v, err := NewVerifier(nonces, audience, newcomer)
	if err != nil {
		return nil, err
	}
	v.newcomer, v.started = v.audiences[1], time.Time{}
	return v, nil
}

// Verify checks a token. keys is asked once for the keys of the gateway that
// the token claims to be of; its name is well formed, and nothing else is
// known of it yet. None for a gateway that is unknown or revoked. What keys
// returns as an error is in the chain of Verify's.
//
// A token holds once: for a second use the error is ErrReplayed. Freshness is
// by the clock, or, where the token carries a nonce, by that alone, so a
// gateway whose clock was never set can come in.
func (v *Verifier) Verify(token string, keys func(gateway string) ([]GatewayKey, error)) (Handshake, error) {
	if len(token) > MaxTokenBytes {
		return Handshake{}, fmt.Errorf("verify token: %w: it has %d bytes, at most %d are allowed", ErrRefused, len(token), MaxTokenBytes)
	}
	if strings.ContainsAny(token, "\r\n") { // encoding/base64 skips them
		return Handshake{}, fmt.Errorf("verify token: %w: it has a line break", ErrRefused)
	}
	now := time.Now()
	var claims handshakeClaims
	var h Handshake
	var lookup error // jwt wraps errors, but as one of the token
	_, err := v.parser.ParseWithClaims(token, &claims, func(t *jwt.Token) (any, error) {
		h.KeyID, _ = t.Header["kid"].(string)
		h.Gateway = claims.Issuer
		if _, critical := t.Header["crit"]; critical || t.Header["typ"] != tokenType {
			return nil, errors.New("it is no handshake token")
		}
		if err := touchline.CheckGateway(h.Gateway); err != nil {
			return nil, err
		}
		known, err := keys(h.Gateway)
		if err != nil {
			lookup = err
			return nil, err
		}
		for _, k := range known {
			if k.Counts(now) && Thumbprint(k.Public) == h.KeyID {
				h.KeyEnds = k.NotAfter
				return k.Public, nil
			}
		}
		return nil, fmt.Errorf("gateway %s has no such key at this time", h.Gateway)
	})
	if lookup != nil {
		return Handshake{}, fmt.Errorf("look up the keys of gateway %s: %w", h.Gateway, lookup)
	}
	if err != nil {
		return Handshake{}, fmt.Errorf("verify token: %w: %w", ErrRefused, err)
	}
	if err := v.checkClaims(&claims); err != nil {
		return Handshake{}, fmt.Errorf("verify token of gateway %s: %w: %w", h.Gateway, ErrRefused, err)
	}
	if err := v.checkFresh(&claims, &h, now); err != nil {
		return Handshake{}, fmt.Errorf("verify token of gateway %s: %w", h.Gateway, err)
	}
	if err := v.used.use(h.Gateway, h.Mark, h.Until, now); err != nil {
		return Handshake{}, fmt.Errorf("verify token of gateway %s: %w", h.Gateway, err)
	}
	return h, nil
}

// checkClaims checks what does not depend on the time.
func (v *Verifier) checkClaims(c *handshakeClaims) error {
	if c.Subject != c.Issuer {
		return errors.New("iss and sub differ")
	}
	if len(c.Audience) != 1 || !slices.Contains(v.audiences, c.Audience[0]) {
		return fmt.Errorf("%w: it is for %.300q, and this one is %q", ErrAudience, []string(c.Audience), v.audiences)
	}
	if c.IssuedAt == nil || c.ExpiresAt == nil {
		return errors.New("iat or exp is missing")
	}
	if life := c.ExpiresAt.Sub(c.IssuedAt.Time); life <= 0 || life > TokenLife {
		return fmt.Errorf("it is good for %s: at most %s are allowed", life, TokenLife)
	}
	if _, ok := decode64(c.ID, jtiBytes); !ok {
		return fmt.Errorf("jti is not %d bytes of base64url", jtiBytes)
	}
	return nil
}

// checkFresh checks what does, and says how to know the token again.
func (v *Verifier) checkFresh(c *handshakeClaims, h *Handshake, now time.Time) error {
	if c.Nonce != "" {
		expires, ok := v.nonces.Check(c.Nonce)
		if !ok || expires.Add(-NonceLife).Before(v.started) {
			return fmt.Errorf("%w: its nonce is over, or not of this cloud", ErrStale)
		}
		h.Mark, h.Until = sha256.Sum256(transcript("touchline used nonce v1", []byte(h.Gateway), []byte(c.Nonce))), expires
		return nil
	}
	issued, expires := c.IssuedAt.Time, c.ExpiresAt.Time
	switch {
	case c.Audience[0] == v.newcomer:
		return fmt.Errorf("%w: it is for no cloud in particular, and has no nonce of this one", ErrStale)
	case issued.Before(v.started.Add(Leeway)): // the gateway's clock may be ahead by that
		return fmt.Errorf("%w: it was issued at %s, before this cloud started, or too soon after", ErrStale, issued.UTC().Format(time.RFC3339))
	case issued.After(now.Add(Leeway)):
		return fmt.Errorf("%w: it was issued at %s, which is %s ahead", ErrStale, issued.UTC().Format(time.RFC3339), issued.Sub(now).Round(time.Second))
	case !expires.Add(Leeway).After(now):
		return fmt.Errorf("%w: it expired at %s, %s ago", ErrStale, expires.UTC().Format(time.RFC3339), now.Sub(expires).Round(time.Second))
	}
	h.Mark, h.Until = sha256.Sum256(transcript("touchline used token v1", []byte(h.Gateway), []byte(c.ID))), expires.Add(Leeway)
	return nil
}
