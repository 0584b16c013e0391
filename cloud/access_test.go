package cloud_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// A box is a gateway with a key of its own.
type box struct {
	t   testing.TB
	n   *node
	id  string
	key ed25519.PrivateKey

	audience string // "": as of a gateway that knows no store yet
}

func newBox(t testing.TB, n *node) *box { return &box{t: t, n: n, key: credential.NewGatewayKey()} }

func (n *node) nonce() string {
	n.t.Helper()
	status, _, body := n.get(wire.NoncePath)
	if status != http.StatusOK {
		n.t.Fatalf("nonce: %d %s", status, body)
	}
	return unmarshal[wire.Nonce](n.t, body).Nonce
}

// postJSON returns status, header and body of a POST of v as JSON.
func (n *node) postJSON(path string, v any, h http.Header) (int, http.Header, string) {
	n.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		n.t.Fatal(err)
	}
	return n.postBytes(path, data, h)
}

func (n *node) postBytes(path string, data []byte, h http.Header) (int, http.Header, string) {
	n.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+n.addr+path, bytes.NewReader(data))
	if err != nil {
		n.t.Fatal(err)
	}
	for name, values := range h {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(body)
}

// enrolment is what the box sends to have its key registered as id's.
func (b *box) enrolment(code credential.Claim, id string) wire.Enrol {
	b.t.Helper()
	e, err := credential.NewEnrolment(code, b.key, id, b.n.nonce())
	if err != nil {
		b.t.Fatal(err)
	}
	return wire.Enrol{Code: code.Reveal(), Gateway: id, PublicKey: identity.Public(b.key).String(), Nonce: e.Nonce, Proof: e.Signature, Software: "test/1"}
}

// enrol posts an enrolment, again where its address has sent too many.
func (n *node) enrol(v any) (status int, body string) {
	n.t.Helper()
	eventually(n.t, "the limit of enrolments lets one through", func() bool {
		status, _, body = n.postJSON(wire.EnrolPath, v, nil)
		return status != http.StatusTooManyRequests
	})
	return status, body
}

func (b *box) enrol(code credential.Claim, id string) wire.Enrolled {
	b.t.Helper()
	status, body := b.n.enrol(b.enrolment(code, id))
	if status != http.StatusOK {
		b.t.Fatalf("enrol: %d %s", status, body)
	}
	done := unmarshal[wire.Enrolled](b.t, body)
	b.id = done.Gateway
	return done
}

func (b *box) token(nonce string) string {
	b.t.Helper()
	token, err := credential.NewToken(credential.TokenRequest{Gateway: b.id, Key: b.key, Audience: cmp.Or(b.audience, wire.Audience), Nonce: nonce})
	if err != nil {
		b.t.Fatal(err)
	}
	return token.Reveal()
}

func (b *box) header() http.Header {
	return http.Header{"Authorization": {"Bearer " + b.token(b.n.nonce())}, wire.HeaderGateway: {b.id}}
}

// join dials with a fresh token, says hello from epoch, and returns the welcome.
func (b *box) join(epoch touchline.Epoch) (*gateway, *wire.Welcome) {
	b.t.Helper()
	conn, resp, err := dial(b.n, b.header(), wire.Subprotocol)
	if err != nil {
		status := ""
		if resp != nil {
			body, _ := io.ReadAll(resp.Body)
			status = resp.Status + " " + string(body)
		}
		b.t.Fatalf("dial as %s: %v %s", b.id, err, status)
	}
	b.t.Cleanup(func() { conn.Close() })
	g := &gateway{t: b.t, conn: conn, id: b.id}
	g.say(&wire.Hello{Gateway: b.id, Software: "test/1", Clock: "set", Epoch: epoch})
	return g, next[*wire.Welcome](g)
}

// refused wants the handshake with this header to end with an HTTP status.
func (n *node) refused(h http.Header, status int) http.Header {
	n.t.Helper()
	conn, resp, err := dial(n, h, wire.Subprotocol)
	if err == nil {
		conn.Close()
		n.t.Fatal("it was let in")
	}
	if resp == nil || resp.StatusCode != status {
		n.t.Fatalf("the handshake ended with %v %v, want %d", err, resp, status)
	}
	return resp.Header
}

func claim(t testing.TB, store *sqlite.Store, venue, gateway string) credential.Claim {
	t.Helper()
	code := credential.NewClaim()
	err := store.AddClaim(context.Background(), cloud.Claim{Hash: code.Hash(), Venue: venue, Gateway: gateway, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func TestEnrol_AKeyOpensTheUplink(t *testing.T) {
	store := openSQLite(t, t.TempDir())
	n := start(t, options(), store)
	b := newBox(t, n)
	code := claim(t, store, "north", "")
	done := b.enrol(code, "")
	if done.Gateway != "north-1" || done.Venue != "north" || done.Store != store.ID() {
		t.Fatalf("enrolled as %+v", done)
	}
	if again := b.enrol(code, ""); again != done {
		t.Errorf("the repeat of an answer that was lost: %+v", again)
	}
	g, welcome := b.join(touchline.NewEpoch())
	if welcome.Store != done.Store {
		t.Errorf("welcome from store %s", welcome.Store)
	}
	sent := blocks(t, 3)
	g.send(sent...)
	g.stored(sent...)

	if second := newBox(t, n); second.enrol(claim(t, store, "north", ""), "").Gateway != "north-2" {
		t.Errorf("the second gateway is %s", second.id)
	}
	named := newBox(t, n)
	if done := named.enrol(claim(t, store, "north", ""), "north-stand"); done.Gateway != "north-stand" {
		t.Errorf("the named gateway is %s", done.Gateway)
	}
}

// TestEnrol_ReplacesABox: a claim code for a known gateway takes its token and
// other keys away, and its session ends.
func TestEnrol_ReplacesABox(t *testing.T) {
	store := openSQLite(t, t.TempDir(), "arena")
	n := start(t, options(), store)
	old, _ := n.join("arena") // with a token
	first := newBox(t, n)
	first.enrol(claim(t, store, "north", "arena"), "")
	old.closed(wire.CloseUnauthorized)
	n.refused(header("arena"), http.StatusUnauthorized)
	g, _ := first.join(touchline.NewEpoch())

	second := newBox(t, n)
	second.enrol(claim(t, store, "north", "arena"), "arena")
	g.closed(wire.CloseUnauthorized)
	n.refused(first.header(), http.StatusUnauthorized)
	second.join(touchline.NewEpoch())
}

func TestEnrol_RefusesWhatIsNotRight(t *testing.T) {
	store := openSQLite(t, t.TempDir(), "arena")
	n := start(t, options(), store)
	expired := credential.NewClaim()
	if err := store.AddClaim(t.Context(), cloud.Claim{Hash: expired.Hash(), Venue: "north", Expires: time.Now().Add(-time.Second)}); err != nil {
		t.Fatal(err)
	}
	used := claim(t, store, "north", "")
	newBox(t, n).enrol(used, "")
	good, forOther := claim(t, store, "north", ""), claim(t, store, "north", "south-1")
	b := newBox(t, n)
	stranger := newBox(t, n)
	change := func(e wire.Enrol, do func(*wire.Enrol)) wire.Enrol { do(&e); return e }
	for _, c := range []struct {
		name   string
		sent   any
		status int
	}{
		{"a code that was used by another", b.enrolment(used, ""), http.StatusUnauthorized},
		{"a code that expired", b.enrolment(expired, ""), http.StatusUnauthorized},
		{"a code that is made up", b.enrolment(credential.NewClaim(), ""), http.StatusUnauthorized},
		{"a code with a typo", change(b.enrolment(good, ""), func(e *wire.Enrol) { e.Code = "AAAAA" + e.Code[5:] }), http.StatusBadRequest},
		{"a gateway that is there", b.enrolment(good, "arena"), http.StatusConflict},
		{"a code for another gateway", b.enrolment(forOther, "north-9"), http.StatusConflict},
		{"another's key", change(b.enrolment(good, ""), func(e *wire.Enrol) { e.PublicKey = identity.Public(stranger.key).String() }), http.StatusUnauthorized},
		{"a nonce of one's own", change(b.enrolment(good, ""), func(e *wire.Enrol) { e.Nonce = strings.Repeat("A", 54) }), http.StatusUnauthorized},
		{"a proof for another gateway", change(b.enrolment(good, ""), func(e *wire.Enrol) { e.Gateway = "north-7" }), http.StatusUnauthorized},
		{"no key", change(b.enrolment(good, ""), func(e *wire.Enrol) { e.PublicKey = "" }), http.StatusBadRequest},
		{"something else", []int{1}, http.StatusBadRequest},
	} {
		if status, body := n.enrol(c.sent); status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, status, body, c.status)
		}
	}
	gateways, err := store.Gateways(t.Context())
	if err != nil || len(gateways) != 2 {
		t.Errorf("the attacker got: %+v %v, want arena and the gateway that enrolled", gateways, err)
	}
	b.enrol(good, "") // none of it used the code up
}

func TestHandshake_ATokenHoldsOnceAndForItsGatewayOnly(t *testing.T) {
	store := openSQLite(t, t.TempDir())
	n := start(t, options(), store)
	a, b := newBox(t, n), newBox(t, n)
	a.enrol(claim(t, store, "north", ""), "")
	b.enrol(claim(t, store, "north", ""), "")

	once := a.header()
	conn, _, err := dial(n, once, wire.Subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	n.refused(once, http.StatusUnauthorized) // replayed

	swapped := a.header()
	swapped[wire.HeaderGateway] = []string{b.id}
	n.refused(swapped, http.StatusForbidden)

	forged := &box{t: t, n: n, id: a.id, key: b.key} // says it is a, signs with b's key
	n.refused(forged.header(), http.StatusUnauthorized)

	none := strings.Split(a.token(n.nonce()), ".")
	none[0] = "eyJhbGciOiJub25lIiwidHlwIjoidG91Y2hsaW5lLWhhbmRzaGFrZStqd3QifQ" // {"alg":"none",…}
	for _, token := range []string{strings.Join(none, "."), none[0] + "." + none[1] + ".", "..", "a.b.c"} {
		n.refused(http.Header{"Authorization": {"Bearer " + token}, wire.HeaderGateway: {a.id}}, http.StatusUnauthorized)
	}

	// Of a gateway that does not know this store: it says that a nonce is wanted.
	stale := http.Header{"Authorization": {"Bearer " + a.token("")}, wire.HeaderGateway: {a.id}}
	if challenge := n.refused(stale, http.StatusUnauthorized).Get("WWW-Authenticate"); !strings.Contains(challenge, "clock") {
		t.Errorf("the challenge is %q", challenge)
	}
}

// TestRevoke_EndsASessionFromAnotherProcess: the command works on the same
// file while the cloud runs.
func TestRevoke_EndsASessionFromAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	store := openSQLite(t, dir, "arena")
	n := start(t, options(), store)
	b := newBox(t, n)
	b.enrol(claim(t, store, "north", ""), "")
	byKey, _ := b.join(touchline.NewEpoch())
	byToken, _ := n.join("arena")

	other := openSQLite(t, dir)
	began := time.Now()
	for _, id := range []string{b.id, "arena"} {
		if err := other.RevokeGateway(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	byKey.closed(wire.CloseUnauthorized)
	byToken.closed(wire.CloseUnauthorized)
	t.Logf("MEASURED both sessions ended %s after the revocation", time.Since(began).Round(time.Millisecond))
	n.refused(b.header(), http.StatusUnauthorized)
	n.refused(header("arena"), http.StatusUnauthorized)
}

func TestKeyRoll_BothKeysCountForAWhile(t *testing.T) {
	store := openSQLite(t, t.TempDir())
	n := start(t, options(), store)
	b := newBox(t, n)
	b.enrol(claim(t, store, "north", ""), "")
	old := *b
	b.key = credential.NewGatewayKey()
	roll, err := credential.NewKeyRoll(b.id, old.key, b.key, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := credential.NewKeyRoll(b.id, credential.NewGatewayKey(), credential.NewGatewayKey(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := n.postJSON(wire.RollPath, stranger, old.header()); status != http.StatusForbidden {
		t.Errorf("a roll by a stranger's key: %d %s", status, body)
	}
	for range 2 { // the answer to the first was lost
		status, _, body := n.postJSON(wire.RollPath, roll, old.header())
		if status != http.StatusOK {
			t.Fatalf("roll: %d %s", status, body)
		}
		ends := unmarshal[wire.Rolled](t, body).OldKeyEnds
		if left := time.Until(ends); left < credential.RollOverlap-time.Hour || left > credential.RollOverlap {
			t.Errorf("the old key counts for another %s", left)
		}
	}
	old.join(touchline.NewEpoch())
	b.join(touchline.NewEpoch())
	keys, err := store.HandshakeKeys(t.Context(), b.id)
	if err != nil || len(keys) != 2 || !keys[1].Public.Equal(credential.PublicKey(b.key)) || keys[0].NotAfter.IsZero() {
		t.Errorf("the keys are %+v %v", keys, err)
	}
}

// TestClone_BothBoxesGetTheirTurnAndNothingIsLost: two boxes with one key.
func TestClone_BothBoxesGetTheirTurnAndNothingIsLost(t *testing.T) {
	store := openSQLite(t, t.TempDir())
	n := start(t, options(), store)
	b := newBox(t, n)
	b.enrol(claim(t, store, "north", ""), "")
	one, two := blocks(t, 3), blocks(t, 3)
	deliver := func(list []wire.Block) *gateway {
		g, _ := b.join(list[0].Epoch)
		g.send(list...)
		g.stored(list...)
		return g
	}
	deliver(one[:1])
	again := deliver(one[1:2]) // lost its connection, no more
	if c := n.server.Stats().Cloned; c != 0 {
		t.Fatalf("%d clones were seen where there is one box", c)
	}
	first := deliver(two[:1])
	again.closed(wire.CloseSuperseded)
	second := deliver(one[2:])
	first.closed(wire.CloseSuperseded)
	deliver(two[1:])
	second.closed(wire.CloseSuperseded)
	if c := n.server.Stats().Cloned; c != 2 {
		t.Errorf("clones were seen %d times, want 2", c)
	}
	gateways, err := store.Gateways(t.Context())
	if err != nil || len(gateways) != 1 || gateways[0].Cloned == nil || gateways[0].Samples != 60 || gateways[0].KeptAside != 0 {
		t.Errorf("the store has %+v %v, want all 60 samples and a clone", gateways, err)
	}
}

func addAPIKey(t testing.TB, store *sqlite.Store, name string, scopes credential.Scopes, expires time.Time) credential.APIKey {
	t.Helper()
	key := credential.NewAPIKey()
	err := store.AddAPIKey(context.Background(), cloud.APIKey{ID: key.ID(), Hash: key.Hash(), Name: name, Scopes: scopes, Created: time.Now(), Expires: expires})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestRead_NeedsAKeyWithItsScope(t *testing.T) {
	store := openSQLite(t, t.TempDir(), "arena")
	opts := options()
	opts.Listen = "0.0.0.0:0"
	n := start(t, opts, store)
	n.addr = strings.Replace(n.addr, "[::]", "127.0.0.1", 1)
	samples := addAPIKey(t, store, "samples", credential.ReadSamples, time.Time{})
	status := addAPIKey(t, store, "status", credential.ReadStatus, time.Now().Add(time.Hour))
	over := addAPIKey(t, store, "over", credential.Admin, time.Now().Add(-time.Second))
	gone := addAPIKey(t, store, "gone", credential.Admin, time.Time{})
	if err := store.RevokeAPIKey(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, authorization string
		status              int
	}{
		{"/v1/samples", "", 401},
		{"/v1/samples", "Bearer " + samples.Reveal(), 200},
		{"/v1/samples", "Bearer " + status.Reveal(), 403},
		{"/v1/gateways", "Bearer " + status.Reveal(), 200},
		{"/metrics", "Bearer " + status.Reveal(), 200},
		{"/metrics", "Bearer " + samples.Reveal(), 403},
		{"/v1/samples", "Bearer " + over.Reveal(), 401},
		{"/v1/samples", "Bearer " + gone.Reveal(), 401},
		{"/v1/samples", "Bearer " + credential.NewAPIKey().Reveal(), 401},
		{"/v1/samples", "Bearer " + samples.Reveal()[:len(samples.Reveal())-1] + "!", 401},
		{"/v1/samples", "Bearer " + token("arena"), 401},
		{"/v1/samples", "Basic " + samples.Reveal(), 401},
	} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+n.addr+c.path, nil)
		if c.authorization != "" {
			req.Header.Set("Authorization", c.authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s with %.20s…: %d, want %d", c.path, c.authorization, resp.StatusCode, c.status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	k, err := store.APIKey(t.Context(), samples.ID())
	if err != nil || k.LastUsed.IsZero() {
		t.Errorf("the use of a key is not noted: %+v %v", k, err)
	}
}

func TestRead_WithoutAKeyIsForProgramsOfThisMachine(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	for name, value := range map[string]string{"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "cloud.example.org", "Forwarded": "for=203.0.113.9", "Sec-Fetch-Site": "cross-site", "Authorization": "Bearer nonsense"} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+n.addr+"/v1/samples", nil)
		req.Header.Set(name, value)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden {
			t.Errorf("with %s: %d", name, resp.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
