package cloud_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"touchline"
	"touchline/credential"
	"touchline/wire"
)

// TestKeyEnds_ClosesItsSession: a session that a key opened ends with it, at
// the time that was set when it was rolled away from, or when it is removed by
// another process. That of the other key goes on.
func TestKeyEnds_ClosesItsSession(t *testing.T) {
	dir := t.TempDir()
	store := openSQLite(t, dir)
	n := start(t, options(), store)
	g := newBox(t, n)
	g.enrol(claim(t, store, "north", ""), "")
	byOld, _ := g.join(touchline.NewEpoch())

	// As a roll does, but for the seven days.
	next := credential.NewGatewayKey()
	ends := time.Now().Add(1500 * time.Millisecond)
	err := store.RollKeys(t.Context(), g.id, func(known []credential.GatewayKey) ([]credential.GatewayKey, error) {
		if len(known) != 1 {
			return nil, errors.New("not one key")
		}
		known[0].NotAfter = ends
		return []credential.GatewayKey{known[0], {Public: credential.PublicKey(next)}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	byOld.closed(wire.CloseUnauthorized)
	t.Logf("MEASURED the session ended %s after its key", time.Since(ends).Round(time.Millisecond))
	if time.Now().Before(ends) {
		t.Error("and before its key did")
	}
	n.refused(g.header(), http.StatusUnauthorized)

	g.key = next
	byNext, _ := g.join(touchline.NewEpoch())
	third := credential.NewGatewayKey()
	err = store.RollKeys(t.Context(), g.id, func(known []credential.GatewayKey) ([]credential.GatewayKey, error) {
		known[0].NotAfter = time.Now().Add(time.Hour)
		return append(known, credential.GatewayKey{Public: credential.PublicKey(third)}), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sent := blocks(t, 1)
	byNext.send(sent...)
	byNext.stored(sent...)
	other := openSQLite(t, dir)
	if err := other.RemoveGatewayKey(t.Context(), g.id, credential.Thumbprint(credential.PublicKey(next))); err != nil {
		t.Fatal(err)
	}
	removed := time.Now()
	byNext.closed(wire.CloseUnauthorized)
	t.Logf("MEASURED the session ended %s after its key was removed", time.Since(removed).Round(time.Millisecond))
	n.refused(g.header(), http.StatusUnauthorized)
	g.key = third
	g.join(touchline.NewEpoch())
}
