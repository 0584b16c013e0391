package credential

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const host = "cloud.example.org"

// gatewayKey returns the key that a seed makes.
func gatewayKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), ed25519.SeedSize)))
}

// a cloud knows the gateway "north" by its keys.
type cloud struct {
	*Verifier
	nonces *Nonces
	keys   []GatewayKey
	asked  int
	err    error
}

func newCloud(t testing.TB, secret ...[]byte) *cloud {
	t.Helper()
	nonces, err := NewNonces(secret...)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(nonces, "Cloud.Example.org", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	return &cloud{Verifier: v, nonces: nonces, keys: []GatewayKey{{Public: PublicKey(gatewayKey('n'))}}}
}

func (c *cloud) verify(token string) (Handshake, error) {
	return c.Verify(token, func(gateway string) ([]GatewayKey, error) {
		c.asked++
		if gateway != "north" {
			return nil, c.err
		}
		return c.keys, c.err
	})
}

func token(t testing.TB, nonce string) string {
	t.Helper()
	secret, err := NewToken(TokenRequest{Gateway: "north", Key: gatewayKey('n'), Audience: host, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	return secret.Reveal()
}

func TestVerify_TakesATokenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		time.Sleep(time.Minute)
		tok := token(t, "")
		h, err := c.verify(tok)
		if err != nil || h.Gateway != "north" || h.KeyID != Thumbprint(PublicKey(gatewayKey('n'))) {
			t.Fatal(h, err)
		}
		for range 15 { // until it is over by any clock that counts
			if _, err := c.verify(tok); !errors.Is(err, ErrReplayed) && !errors.Is(err, ErrStale) {
				t.Fatal("a token was taken twice:", err)
			}
			time.Sleep(10 * time.Second)
		}
		if _, err := c.verify(tok); !errors.Is(err, ErrStale) {
			t.Error("a token that is over:", err)
		}
		if h2, err := c.verify(token(t, "")); err != nil || h2.Mark == h.Mark {
			t.Error("the next token:", err)
		}
		if len(c.used.used) != 1 || len(c.used.expiry) != 1 || len(c.used.perName) != 1 {
			t.Error("what is over is remembered")
		}
	})
}

// The rule that a token counts once must not have a hole at its end: for each
// moment it is over, or remembered.
func TestVerify_NoGapBetweenRememberedAndOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, step := range []time.Duration{time.Second, 999 * time.Millisecond} {
			c := newCloud(t)
			time.Sleep(time.Minute + 123*time.Millisecond)
			for _, nonce := range []func() string{func() string { return "" }, c.nonces.New} {
				tok := token(t, nonce())
				if _, err := c.verify(tok); err != nil {
					t.Fatal(err)
				}
				for range 200 {
					if _, err := c.verify(tok); err == nil {
						t.Fatal("a token was taken twice")
					}
					time.Sleep(step)
				}
			}
		}
	})
}

// sign makes a token that differs from a good one.
func sign(t testing.TB, key any, method jwt.SigningMethod, change func(*jwt.Token, jwt.MapClaims)) string {
	t.Helper()
	now := time.Now()
	claims := jwt.MapClaims{"iss": "north", "sub": "north", "aud": host, "iat": now.Unix(), "exp": now.Add(TokenLife).Unix(), "jti": strings.Repeat("A", 22)}
	tok := jwt.NewWithClaims(method, claims)
	tok.Header["typ"], tok.Header["kid"] = tokenType, Thumbprint(PublicKey(gatewayKey('n')))
	change(tok, claims)
	text, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestVerify_RefusesWhatIsNotExactlyRight(t *testing.T) {
	good, other := gatewayKey('n'), gatewayKey('o')
	eddsa := jwt.SigningMethodEdDSA
	claim := func(name string, value any) func(*jwt.Token, jwt.MapClaims) {
		return func(_ *jwt.Token, c jwt.MapClaims) {
			if c[name] = value; value == nil {
				delete(c, name)
			}
		}
	}
	header := func(name string, value any) func(*jwt.Token, jwt.MapClaims) {
		return func(tok *jwt.Token, _ jwt.MapClaims) {
			if tok.Header[name] = value; value == nil {
				delete(tok.Header, name)
			}
		}
	}
	as := func(key any, m jwt.SigningMethod, change func(*jwt.Token, jwt.MapClaims)) func(*testing.T) string {
		return func(t *testing.T) string { return sign(t, key, m, change) }
	}
	same := func(*jwt.Token, jwt.MapClaims) {}
	cut := func(f func(parts []string) string) func(*testing.T) string {
		return func(t *testing.T) string { return f(strings.Split(sign(t, good, eddsa, same), ".")) }
	}
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	tests := []struct {
		name string
		make func(*testing.T) string
		want error
	}{
		{"the control", as(good, eddsa, same), nil},
		{"another key, kid of the right one", as(other, eddsa, same), ErrRefused},
		{"another key, its own kid", as(other, eddsa, header("kid", Thumbprint(PublicKey(other)))), ErrRefused},
		{"no kid", as(good, eddsa, header("kid", nil)), ErrRefused},
		{"kid is a number", as(good, eddsa, header("kid", 7)), ErrRefused},
		{"alg none", as(jwt.UnsafeAllowNoneSignatureType, jwt.SigningMethodNone, same), ErrRefused},
		{"HMAC with the public key as its secret", as([]byte(PublicKey(good)), jwt.SigningMethodHS256, same), ErrRefused},
		{"HMAC that calls itself EdDSA", func(t *testing.T) string {
			parts := strings.Split(sign(t, good, eddsa, same), ".")
			mac := hmac.New(sha256.New, PublicKey(good))
			mac.Write([]byte(parts[0] + "." + parts[1]))
			return parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
		}, ErrRefused},
		{"another type of token", as(good, eddsa, header("typ", "JWT")), ErrRefused},
		{"no type", as(good, eddsa, header("typ", nil)), ErrRefused},
		{"a critical extension", as(good, eddsa, header("crit", []string{"b64"})), ErrRefused},
		{"a key of its own in the header", as(other, eddsa, header("jwk", map[string]string{"kty": "OKP", "crv": "Ed25519",
			"x": base64.RawURLEncoding.EncodeToString(PublicKey(other))})), ErrRefused},
		{"another gateway", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["iss"], c["sub"] = "south", "south" }), ErrRefused},
		{"an id that no gateway has", as(good, eddsa, claim("iss", "no rth")), ErrRefused},
		{"no iss", as(good, eddsa, claim("iss", nil)), ErrRefused},
		{"sub of another", as(good, eddsa, claim("sub", "south")), ErrRefused},
		{"for another cloud", as(good, eddsa, claim("aud", "evil.example")), ErrRefused},
		{"for two clouds", as(good, eddsa, claim("aud", []string{host, "evil.example"})), ErrRefused},
		{"for nobody", as(good, eddsa, claim("aud", nil)), ErrRefused},
		{"no iat", as(good, eddsa, claim("iat", nil)), ErrRefused},
		{"no exp", as(good, eddsa, claim("exp", nil)), ErrRefused},
		{"good for too long", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["exp"] = at(TokenLife + time.Second) }), ErrRefused},
		{"good for ever", as(good, eddsa, claim("exp", 1e300)), ErrRefused},
		{"ends before it begins", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["exp"] = at(-time.Second) }), ErrRefused},
		{"no jti", as(good, eddsa, claim("jti", nil)), ErrRefused},
		{"a short jti", as(good, eddsa, claim("jti", "AAAA")), ErrRefused},
		{"a jti written in another way", as(good, eddsa, claim("jti", strings.Repeat("A", 21)+"B")), ErrRefused},
		{"issued ahead", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["iat"], c["exp"] = at(Leeway+time.Second), at(time.Minute) }), ErrStale},
		{"issued ahead within the leeway", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["iat"], c["exp"] = at(Leeway-time.Second), at(time.Minute) }), nil},
		{"expired", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["iat"], c["exp"] = at(-time.Minute), at(-Leeway) }), ErrStale},
		{"expired within the leeway", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["iat"], c["exp"] = at(-time.Minute), at(-Leeway+time.Second) }), nil},
		{"issued in 1970, by a clock that was never set", as(good, eddsa, func(_ *jwt.Token, c jwt.MapClaims) { c["iat"], c["exp"] = 10, 20 }), ErrStale},
		{"a nonce that was made up", as(good, eddsa, claim("nonce", strings.Repeat("A", 54))), ErrStale},
		{"empty", func(*testing.T) string { return "" }, ErrRefused},
		{"points", func(*testing.T) string { return ".." }, ErrRefused},
		{"a fourth part", cut(func(p []string) string { return strings.Join(p, ".") + "." }), ErrRefused},
		{"no signature", cut(func(p []string) string { return p[0] + "." + p[1] + "." }), ErrRefused},
		{"padding", cut(func(p []string) string { return strings.Join(p, ".") + "==" }), ErrRefused},
		{"a signature written in another way", cut(func(p []string) string {
			last := p[2][len(p[2])-1]
			return p[0] + "." + p[1] + "." + p[2][:len(p[2])-1] + string(last+1)
		}), ErrRefused},
		{"a line break", cut(func(p []string) string { return p[0] + "\n." + p[1] + "." + p[2] }), ErrRefused},
		{"a line break in the signature", cut(func(p []string) string { return p[0] + "." + p[1] + "." + p[2] + "\r\n" }), ErrRefused},
		{"too long", as(good, eddsa, claim("x", strings.Repeat("x", MaxTokenBytes))), ErrRefused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t)
				time.Sleep(time.Hour)
				tok := test.make(t)
				h, err := c.verify(tok)
				if !errors.Is(err, test.want) {
					t.Fatalf("got %v, want %v", err, test.want)
				}
				if err != nil && (h != Handshake{}) {
					t.Error("an error, and a handshake:", h)
				}
				if err != nil && len(tok) > 20 && strings.Contains(err.Error(), tok[len(tok)-20:]) {
					t.Error("the error quotes the token:", err)
				}
				if test.want == ErrRefused && len(c.used.used) != 0 {
					t.Error("a token that was refused is remembered")
				}
			})
		})
	}
}

// Each bit of a token is covered by its signature, or by its form.
func TestVerify_RefusesFlippedBits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		time.Sleep(time.Minute)
		tok := token(t, "")
		step := 5 // with 8 it has no common divisor: each bit has its turn in some byte
		if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
			step = 1
		}
		tried := 0
		for i := 0; i < len(tok)*8; i += step {
			tried++
			b := []byte(tok)
			b[i/8] ^= 1 << (i % 8)
			if _, err := c.verify(string(b)); err == nil {
				t.Fatalf("taken with bit %d flipped", i)
			}
		}
		if _, err := c.verify(tok); err != nil {
			t.Fatal(err)
		}
		t.Logf("MEASURED a token of %d bytes with %d of its bits flipped, one at a time: 0 taken", len(tok), tried)
	})
}

func TestVerify_ANonceStandsForTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		makeToken := func(nonce string) string {
			return sign(t, gatewayKey('n'), jwt.SigningMethodEdDSA, func(_ *jwt.Token, c jwt.MapClaims) {
				c["iat"], c["exp"], c["nonce"] = 10, 130, nonce
			})
		}
		c := newCloud(t)
		if _, err := c.verify(token(t, "")); !errors.Is(err, ErrStale) {
			t.Error("a token that may have been used before the restart:", err)
		}
		nonce := c.nonces.New()
		from1970 := makeToken(nonce)
		if h, err := c.verify(from1970); err != nil || h.Gateway != "north" {
			t.Fatal("a gateway without a clock, with a nonce:", err)
		}
		if _, err := c.verify(from1970); !errors.Is(err, ErrReplayed) {
			t.Error("the same token:", err)
		}
		for i := range len(nonce) * 8 {
			b := []byte(nonce)
			b[i/8] ^= 1 << (i % 8)
			if _, ok := c.nonces.Check(string(b)); ok {
				t.Fatalf("a nonce with bit %d flipped is taken", i)
			}
		}
		again := sign(t, gatewayKey('n'), jwt.SigningMethodEdDSA, func(_ *jwt.Token, c jwt.MapClaims) {
			c["jti"], c["nonce"] = strings.Repeat("B", 21)+"A", nonce
		})
		if _, err := c.verify(again); !errors.Is(err, ErrReplayed) {
			t.Error("another token with the same nonce:", err)
		}
		late := makeToken(c.nonces.New())
		time.Sleep(NonceLife)
		if _, err := c.verify(late); !errors.Is(err, ErrStale) {
			t.Error("a nonce that is over:", err)
		}
	})
}

func TestNonces_AreGoodAtEachNodeWithTheSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, shared := []byte(strings.Repeat("o", 32)), []byte(strings.Repeat("s", 32))
		a, b, rolling, alone := newCloud(t, shared), newCloud(t, shared), newCloud(t, old, shared), newCloud(t)
		tok := token(t, a.nonces.New())
		if _, err := alone.verify(tok); !errors.Is(err, ErrStale) {
			t.Error("a node with another secret:", err)
		}
		h, err := b.verify(tok)
		if err != nil {
			t.Error("a node with the same secret:", err)
		}
		atRolling, err := rolling.verify(tok)
		if err != nil {
			t.Error("a node that changes its secret:", err)
		}
		if h.Mark != atRolling.Mark || h.Until != atRolling.Until {
			t.Error("two nodes do not know one token again: a shared store could not refuse it")
		}
		time.Sleep(time.Second)
		restarted := newCloud(t, shared)
		if _, err := restarted.verify(tok); !errors.Is(err, ErrStale) {
			t.Error("a nonce that may have been used before the restart:", err)
		}
	})
}

func TestVerify_KeysCountInTheirTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		time.Sleep(time.Hour)
		next := GatewayKey{Public: PublicKey(gatewayKey('x'))}
		at := func(d time.Duration) time.Time { return time.Now().Add(d) }
		for _, test := range []struct {
			from, to time.Time
			ok       bool
		}{
			{ok: true}, {from: at(0), to: at(1), ok: true}, {from: at(1)}, {to: at(0)}, {from: at(-2), to: at(-1)},
		} {
			c.keys = []GatewayKey{next, {Public: PublicKey(gatewayKey('n')), NotBefore: test.from, NotAfter: test.to}}
			if _, err := c.verify(token(t, "")); (err == nil) != test.ok || err != nil && !errors.Is(err, ErrRefused) {
				t.Error(test, err)
			}
		}
		c.keys = nil
		if _, err := c.verify(token(t, "")); !errors.Is(err, ErrRefused) {
			t.Error("a gateway that was revoked:", err)
		}
	})
}

func TestVerify_PassesOnTheErrorOfTheLookup(t *testing.T) {
	c := newCloud(t)
	c.err = errors.New("the store is away")
	_, err := c.verify(token(t, ""))
	if !errors.Is(err, c.err) || errors.Is(err, ErrRefused) || c.asked != 1 {
		t.Error(err, c.asked)
	}
}

func TestVerify_OneGatewayCannotFillTheMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		time.Sleep(time.Minute)
		for range maxPerGateway {
			if _, err := c.verify(token(t, "")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.verify(token(t, "")); !errors.Is(err, ErrFull) {
			t.Error("one more:", err)
		}
		if err := c.used.use("south", [32]byte{1}, time.Now().Add(time.Second), time.Now()); err != nil {
			t.Error("another gateway:", err)
		}
		time.Sleep(handshakeMemory)
		if _, err := c.verify(token(t, "")); err != nil {
			t.Error("after the longest memory:", err)
		}
	})
}

func TestMemory_FullRefusesAndForgetsNothing(t *testing.T) {
	m, now := newMemory(1000), time.Unix(1_000_000, 0)
	mark := func(i int) [32]byte { return [32]byte{byte(i), byte(i >> 8)} }
	for i := range 1000 {
		if err := m.use(fmt.Sprint(i%20), mark(i), now.Add(time.Duration(1+i)*time.Second), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.use("new", mark(1000), now.Add(time.Hour), now); !errors.Is(err, ErrFull) {
		t.Error("a full memory:", err)
	}
	for i := range 1000 {
		if err := m.use("0", mark(i), now.Add(time.Hour), now); !errors.Is(err, ErrReplayed) {
			t.Fatal("a full memory let a replay in:", err)
		}
	}
	if err := m.use("new", mark(1000), now.Add(time.Hour), now.Add(time.Second+setBack)); err != nil {
		t.Error("one place is free again:", err)
	}
}

func TestNewToken_RefusesWhatNoCloudWouldTake(t *testing.T) {
	good := TokenRequest{Gateway: strings.Repeat("g", 128), Key: gatewayKey('n'), Audience: strings.Repeat("a", maxAudience), Nonce: strings.Repeat("n", 54)}
	tok, err := NewToken(good)
	if err != nil || len(tok.Reveal()) > MaxTokenBytes {
		t.Errorf("the largest token has %d bytes: %v", len(tok.Reveal()), err)
	}
	for name, change := range map[string]func(*TokenRequest){
		"gateway": func(r *TokenRequest) { r.Gateway = "a b" }, "key": func(r *TokenRequest) { r.Key = nil },
		"audience": func(r *TokenRequest) { r.Audience = "" }, "long audience": func(r *TokenRequest) { r.Audience += "a" },
		"nonce": func(r *TokenRequest) { r.Nonce = "x" },
	} {
		r := good
		if change(&r); r.Gateway != "" {
			if _, err := NewToken(r); err == nil {
				t.Error("taken:", name)
			}
		}
	}
	if _, err := NewNonces([]byte("short")); err == nil {
		t.Error("a short secret was taken")
	}
	if _, err := NewVerifier(nil); err == nil {
		t.Error("a verifier without a name was made")
	}
}

func FuzzVerify(f *testing.F) {
	c := newCloud(f)
	f.Add(token(f, ""))
	f.Add(token(f, c.nonces.New()))
	for _, header := range []any{nil, 7, map[string]any{"alg": "EdDSA", "typ": tokenType, "kid": []int{1}}} {
		h, _ := json.Marshal(header)
		f.Add(base64.RawURLEncoding.EncodeToString(h) + ".e30.AAAA")
	}
	good := map[string]bool{}
	f.Fuzz(func(t *testing.T, tok string) {
		h, err := c.verify(tok)
		if err == nil && (h.Gateway != "north" || good[tok]) {
			t.Fatalf("%q: %+v", tok, h)
		}
		good[tok] = err == nil
	})
}

func FuzzNonce(f *testing.F) {
	nonces, _ := NewNonces()
	other, _ := NewNonces()
	f.Add("")
	f.Add(nonces.New())
	f.Fuzz(func(t *testing.T, nonce string) {
		if _, ok := other.Check(nonce); ok {
			t.Fatalf("%q was taken", nonce)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c := newCloud(b)
	tok := token(b, c.nonces.New())
	b.ReportAllocs()
	for b.Loop() {
		_, err := c.verify(tok)
		if err != nil && !errors.Is(err, ErrReplayed) {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify_Stranger(b *testing.B) {
	c := newCloud(b)
	tok := sign(b, gatewayKey('o'), jwt.SigningMethodEdDSA, func(t *jwt.Token, _ jwt.MapClaims) { t.Header["kid"] = "x" })
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.verify(tok); !errors.Is(err, ErrRefused) {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewToken(b *testing.B) {
	for b.Loop() {
		token(b, "")
	}
}

func BenchmarkNonceNew(b *testing.B) {
	c := newCloud(b)
	for b.Loop() {
		c.nonces.New()
	}
}
