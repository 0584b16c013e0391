package credential

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// newShared is one of the processes that share a store, which has the secret
// and what was used.
func newShared(t *testing.T, secret []byte, audience string) *cloud {
	t.Helper()
	nonces, err := NewNonces(secret)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewSharedVerifier(nonces, audience, "newcomer")
	if err != nil {
		t.Fatal(err)
	}
	return &cloud{Verifier: v, nonces: nonces, keys: []GatewayKey{{Public: PublicKey(gatewayKey('n')), NotAfter: time.Now().Add(time.Hour)}}}
}

func TestShared_ANewProcessTakesWhatWasSignedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := make([]byte, MinNonceSecret)
		first := newShared(t, secret, "Store-1")
		mint := func(audience, nonce string) string {
			tok, err := NewToken(TokenRequest{Gateway: "north", Key: gatewayKey('n'), Audience: audience, Nonce: nonce})
			if err != nil {
				t.Fatal(err)
			}
			return tok.Reveal()
		}
		bare, nonced := mint("store-1", ""), mint("store-1", first.nonces.New())
		newcomer := mint("newcomer", first.nonces.New())
		time.Sleep(time.Second)
		next := newShared(t, secret, "store-1")
		for name, tok := range map[string]string{"by the clock": bare, "by a nonce": nonced, "of a newcomer": newcomer} {
			a, err := first.verify(tok)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			b, err := next.verify(tok)
			if err != nil {
				t.Errorf("%s, at a new process: %v", name, err)
			}
			if a.Mark != b.Mark || !a.Until.Equal(b.Until) {
				t.Errorf("%s: the store could not know it again: %+v %+v", name, a, b)
			}
			if !a.KeyEnds.Equal(first.keys[0].NotAfter) {
				t.Errorf("%s: the key ends at %s", name, a.KeyEnds)
			}
		}
	})
}

func TestShared_ANewcomersTokenNeedsThisCloudsNonce(t *testing.T) {
	secret, other := make([]byte, MinNonceSecret), []byte("another store's secret, 32 bytes")
	here, elsewhere := newShared(t, secret, "store-1"), newShared(t, other, "store-2")
	for name, c := range map[string]struct {
		audience, nonce string
		want            error
	}{
		"no nonce":             {"newcomer", "", ErrStale},
		"another's nonce":      {"newcomer", elsewhere.nonces.New(), ErrStale},
		"ours":                 {"newcomer", here.nonces.New(), nil},
		"another's aud":        {"store-2", "", ErrAudience},
		"another's, our nonce": {"store-2", here.nonces.New(), ErrAudience},
	} {
		tok, err := NewToken(TokenRequest{Gateway: "north", Key: gatewayKey('n'), Audience: c.audience, Nonce: c.nonce})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := here.verify(tok.Reveal()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		} else if c.want == ErrAudience && !errors.Is(err, ErrRefused) {
			t.Errorf("%s is no refusal: %v", name, err)
		}
	}
	if _, err := NewSharedVerifier(here.nonces, "", "newcomer"); err == nil {
		t.Error("a store without a name")
	}
}
