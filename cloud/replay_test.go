package cloud_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/wire"
)

// What an attacker does with a token that it saw, at each place where it could
// be worth something: it got nothing.

func bearing(gateway, token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}, wire.HeaderGateway: {gateway}}
}

// try makes the upgrade and returns its status.
func (n *node) try(h http.Header) int {
	n.t.Helper()
	conn, resp, err := dial(n, h, wire.Subprotocol)
	if err == nil {
		conn.Close()
	} else if resp == nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode
}

// twoNodes are two clouds with a connection to one store each, as two
// processes have, and a gateway that is enrolled.
func twoNodes(t *testing.T) (a, b *node, gateway *box) {
	dir := t.TempDir()
	store := openSQLite(t, dir)
	a = start(t, options(), store)
	b = start(t, options(), openSQLite(t, dir))
	gateway = newBox(t, a)
	gateway.enrol(claim(t, store, "north", ""), "")
	gateway.audience = store.ID()
	return a, b, gateway
}

func TestReplay_ATokenHoldsOnceAtAllNodes(t *testing.T) {
	a, b, g := twoNodes(t)
	nonce := a.nonce()
	for name, tokens := range map[string][2]string{
		"the same token":                        twice(g.token("")),
		"the same token with a nonce":           twice(g.token(a.nonce())),
		"two tokens with the same nonce of one": {g.token(nonce), g.token(nonce)},
	} {
		if status := b.try(bearing(g.id, tokens[0])); status != http.StatusSwitchingProtocols {
			t.Errorf("%s, at first: %d", name, status)
		}
		for _, n := range []*node{a, b, a} {
			if status := n.try(bearing(g.id, tokens[1])); status != http.StatusUnauthorized {
				t.Errorf("%s, again: %d", name, status)
			}
		}
	}
	// And for what is no session.
	roll, err := credential.NewKeyRoll(g.id, g.key, credential.NewGatewayKey(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	token := g.token("")
	if status := a.try(bearing(g.id, token)); status != http.StatusSwitchingProtocols {
		t.Fatalf("the handshake: %d", status)
	}
	if status, _, body := b.postJSON(wire.RollPath, roll, bearing(g.id, token)); status != http.StatusUnauthorized {
		t.Errorf("a key roll with the token of a handshake: %d %s", status, body)
	}
}

func twice(token string) [2]string { return [2]string{token, token} }

// TestReplay_ManyAtOnce: each token is shown to both nodes several times at
// the same moment, and lets in one.
func TestReplay_ManyAtOnce(t *testing.T) {
	a, b, g := twoNodes(t)
	const tokens, each = 20, 3
	var in [tokens]atomic.Int32
	var wg sync.WaitGroup
	for i := range tokens {
		token := g.token("")
		for _, n := range []*node{a, b} {
			for range each {
				wg.Go(func() {
					conn, resp, err := dial(n, bearing(g.id, token), wire.Subprotocol)
					if err == nil {
						conn.Close()
						in[i].Add(1)
					} else if resp == nil || resp.StatusCode != http.StatusUnauthorized {
						t.Errorf("%v %v", err, resp)
					}
				})
			}
		}
	}
	wg.Wait()
	for i := range in {
		if n := in[i].Load(); n != 1 {
			t.Errorf("token %d let in %d", i, n)
		}
	}
}

// TestReplay_NotAfterARestart: what a cloud remembered is in its store. And a
// gateway whose clock is right needs no nonce because the cloud is new.
func TestReplay_NotAfterARestart(t *testing.T) {
	dir := t.TempDir()
	store := openSQLite(t, dir)
	n := start(t, options(), store)
	g := newBox(t, n)
	g.enrol(claim(t, store, "north", ""), "")
	g.audience = store.ID()
	used, withNonce := g.token(""), g.token(n.nonce())
	for _, token := range []string{used, withNonce} {
		if status := n.try(bearing(g.id, token)); status != http.StatusSwitchingProtocols {
			t.Fatalf("at first: %d", status)
		}
	}
	signedBefore, nonceBefore := g.token(""), g.token(n.nonce())
	n.end()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	n = start(t, options(), openSQLite(t, dir))
	for _, token := range []string{used, withNonce} {
		if status := n.try(bearing(g.id, token)); status != http.StatusUnauthorized {
			t.Errorf("after the restart: %d", status)
		}
	}
	for _, token := range []string{signedBefore, nonceBefore} {
		if status := n.try(bearing(g.id, token)); status != http.StatusSwitchingProtocols {
			t.Errorf("what was not used before the restart: %d", status)
		}
	}
}

// TestReplay_NotAtAnotherCloud: the same gateway, by the same id and key, is
// enrolled at two. What it shows to one is worth nothing at the other.
func TestReplay_NotAtAnotherCloud(t *testing.T) {
	storeA, storeB := openSQLite(t, t.TempDir()), openSQLite(t, t.TempDir())
	a, b := start(t, options(), storeA), start(t, options(), storeB)
	g := newBox(t, a)
	g.enrol(claim(t, storeA, "north", "north-1"), "")
	g.n = b
	g.enrol(claim(t, storeB, "north", "north-1"), "")

	g.audience = storeA.ID()
	for name, token := range map[string]string{
		"for the other":                    g.token(""),
		"for the other, with our nonce":    g.token(b.nonce()),
		"for the other, with its nonce":    g.token(a.nonce()),
		"for nobody, with the other nonce": (&box{t: t, id: g.id, key: g.key}).token(a.nonce()),
		"for nobody, without a nonce":      (&box{t: t, id: g.id, key: g.key}).token(""),
	} {
		resp := b.refused(bearing(g.id, token), http.StatusUnauthorized)
		// It is told whose cloud this is if and only if its signature holds and
		// names another, so that a person can agree.
		if said, want := resp.Get(wire.HeaderStore), strings.HasPrefix(name, "for the other"); (said == storeB.ID()) != want || !want && said != "" {
			t.Errorf("%s: the store in the answer is %q", name, said)
		}
	}
	forged := &box{t: t, id: g.id, key: credential.NewGatewayKey(), audience: storeA.ID()}
	if said := b.refused(bearing(g.id, forged.token("")), http.StatusUnauthorized).Get(wire.HeaderStore); said != "" {
		t.Errorf("a stranger is told the store: %q", said)
	}
	// None of it was used up where it is good.
	if status := a.try(bearing(g.id, g.token(""))); status != http.StatusSwitchingProtocols {
		t.Errorf("at its own: %d", status)
	}
}

// TestReplay_AStoreThatCantRememberLetsNobodyIn: 503, and no session.
func TestReplay_AStoreThatCantRememberLetsNobodyIn(t *testing.T) {
	store := openSQLite(t, t.TempDir())
	n := start(t, options(), store)
	g := newBox(t, n)
	g.enrol(claim(t, store, "north", ""), "")
	n.end()
	forgetful := start(t, options(), forgetfulStore{store})
	if status := forgetful.try(bearing(g.id, g.token(forgetful.nonce()))); status != http.StatusServiceUnavailable {
		t.Errorf("it answers %d", status)
	}
}

type forgetfulStore struct{ *sqlite.Store }

func (forgetfulStore) Redeem(context.Context, credential.Handshake) error {
	return errors.New("no space is left")
}
