package daemon

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline"
	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// registry is the part of a cloud that enrols, by the rules of
// docs/protocol.md: what a gateway sends is verified as the cloud does.
type registry struct {
	nonces *credential.Nonces
	claim  credential.Claim
	used   string // public key that the code was used with
	asked  wire.Enrol
}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	refuse := func(status int, detail string) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"detail": detail})
	}
	switch q.URL.Path {
	case wire.NoncePath:
		writeJSON(w, http.StatusOK, wire.Nonce{Nonce: r.nonces.New()})
	case wire.EnrolPath:
		if err := json.NewDecoder(q.Body).Decode(&r.asked); err != nil {
			refuse(http.StatusBadRequest, err.Error())
			return
		}
		claim, err := credential.ParseClaim(r.asked.Code)
		if err != nil || claim.Hash() != r.claim.Hash() || r.used != "" && r.used != r.asked.PublicKey {
			refuse(http.StatusUnauthorized, "the claim code is not known")
			return
		}
		key, err := identity.ParsePublic(r.asked.PublicKey)
		_, fresh := r.nonces.Check(r.asked.Nonce)
		proof := credential.Enrolment{Gateway: r.asked.Gateway, Public: key[:], Nonce: r.asked.Nonce, Signature: r.asked.Proof}
		if err != nil || !fresh || proof.Verify(claim.Hash()) != nil {
			refuse(http.StatusUnauthorized, "the proof does not hold")
			return
		}
		r.used = r.asked.PublicKey
		writeJSON(w, http.StatusOK, wire.Enrolled{Gateway: "north", Venue: "stadium", Store: "s"})
	default:
		http.NotFound(w, q)
	}
}

func newRegistry(t *testing.T) (*registry, *httptest.Server) {
	t.Helper()
	nonces, err := credential.NewNonces()
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{nonces: nonces, claim: credential.NewClaim()}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	return r, server
}

func folderAt(dir string) *Folder {
	return &Folder{config: touchline.Config{Gateway: touchline.GatewayConfig{Data: dir, ID: "box"}}}
}

func TestEnrol_RegistersTheKeyThatSignsEachHandshakeFromThenOn(t *testing.T) {
	r, server := newRegistry(t)
	f := folderAt(filepath.Join(t.TempDir(), "data"))
	typed := strings.ToLower(strings.ReplaceAll(r.claim.Reveal(), "-", " "))
	for range 2 { // the answer may have been lost
		done, err := f.Enrol(t.Context(), EnrolOptions{Code: typed, Cloud: "ws" + strings.TrimPrefix(server.URL, "http")})
		if err != nil || done.Gateway != "north" || done.Venue != "stadium" {
			t.Fatalf("%+v %v", done, err)
		}
	}
	for name, mode := range map[string]os.FileMode{identity.FileName: 0o600, touchline.GatewayIDFile: 0o644} {
		if info, err := os.Stat(filepath.Join(f.config.Gateway.Data, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want mode %o", name, info, err, mode)
		}
	}
	c, _, err := touchline.LoadConfig("", nil, map[string]string{"gateway.data": f.config.Gateway.Data})
	if err != nil || c.Gateway.ID != "north" {
		t.Fatalf("the gateway is called %q after it, %v", c.Gateway.ID, err)
	}

	// Its token is for the store that enrolled it, and no other cloud's.
	if id, err := knownStore(c.Gateway.Data); err != nil || id != "s" {
		t.Errorf("the store that it delivers to is %q, %v", id, err)
	}
	verifier, err := credential.NewVerifier(r.nonces, "s")
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.ParsePublic(r.used)
	if err != nil {
		t.Fatal(err)
	}
	known := func(gateway string) ([]credential.GatewayKey, error) {
		if gateway != "north" {
			return nil, nil
		}
		return []credential.GatewayKey{{Public: key[:]}}, nil
	}
	first, err := mint(c, r.nonces.New())
	if err != nil {
		t.Fatal(err)
	}
	if h, err := verifier.Verify(first, known); err != nil || h.Gateway != "north" {
		t.Errorf("the handshake's token: %+v %v", h, err)
	}
	if second, err := uplinkToken(c, ""); err != nil || second == first {
		t.Errorf("a second handshake has the token of the first: %v", err)
	}
}

// TestEnrol_ChangesNoStoreThatIsKnown: what was sent to the one before is not
// in the other, so a person has to say so.
func TestEnrol_ChangesNoStoreThatIsKnown(t *testing.T) {
	r, server := newRegistry(t)
	f := folderAt(t.TempDir())
	if err := keepStore(f.config.Gateway.Data, "until-now"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Enrol(t.Context(), EnrolOptions{Code: r.claim.Reveal(), Cloud: server.URL}); err != nil {
		t.Fatal(err)
	}
	if id, err := knownStore(f.config.Gateway.Data); err != nil || id != "until-now" {
		t.Errorf("the store is %q %v", id, err)
	}
}

// TestMint_ANewcomerNeedsANonce: a folder that knows no store, such as one of
// a gateway whose key was registered by hand.
func TestMint_ANewcomerNeedsANonce(t *testing.T) {
	nonces, err := credential.NewNonces()
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := credential.NewSharedVerifier(nonces, "store-1", wire.Audience)
	if err != nil {
		t.Fatal(err)
	}
	c := folderAt(t.TempDir()).config
	key, err := identity.LoadOrMake(c.Gateway.Data)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(nonce string) error {
		token, err := mint(c, nonce)
		if err != nil {
			t.Fatal(err)
		}
		_, err = verifier.Verify(token, func(string) ([]credential.GatewayKey, error) {
			return []credential.GatewayKey{{Public: credential.PublicKey(key)}}, nil
		})
		return err
	}
	if err := verify(""); !errors.Is(err, credential.ErrStale) {
		t.Errorf("without a nonce: %v", err)
	}
	if err := verify(nonces.New()); err != nil {
		t.Errorf("with one: %v", err)
	}
	if err := keepStore(c.Gateway.Data, "store-1"); err != nil {
		t.Fatal(err)
	}
	if err := verify(""); err != nil {
		t.Errorf("once the store is known: %v", err)
	}
	if err := keepStore(c.Gateway.Data, "store-2"); err != nil {
		t.Fatal(err)
	}
	if err := verify(nonces.New()); !errors.Is(err, credential.ErrAudience) {
		t.Errorf("where it delivers to another: %v", err)
	}
}

func TestEnrol_TrustsTheRootsOfTheUplink(t *testing.T) {
	r, _ := newRegistry(t)
	server := httptest.NewTLSServer(r)
	defer server.Close()
	f := folderAt(t.TempDir())
	o := EnrolOptions{Code: r.claim.Reveal(), Cloud: "wss" + strings.TrimPrefix(server.URL, "https")}
	if done, err := f.Enrol(t.Context(), o); err == nil {
		t.Fatalf("a certificate of unknown roots was taken: %+v", done)
	}
	f.config.Uplink.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(f.config.Uplink.CAFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if done, err := f.Enrol(t.Context(), o); err != nil || done.Gateway != "north" {
		t.Errorf("with uplink.ca_file: %+v %v", done, err)
	}
}

func TestEnrol_SaysWhatIsWrong(t *testing.T) {
	r, server := newRegistry(t)
	other := credential.NewClaim().Reveal()
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	defer elsewhere.Close()
	redirect := httptest.NewServer(http.RedirectHandler(server.URL, http.StatusTemporaryRedirect))
	defer redirect.Close()
	for name, c := range map[string]struct{ code, cloud, want string }{
		"typo":           {r.claim.Reveal()[:22] + "?", server.URL, "claim code"},
		"unknown code":   {other, server.URL, "the claim code is not known"},
		"no cloud":       {r.claim.Reveal(), elsewhere.URL, "is this the address of a touchline cloud?"},
		"a redirect":     {r.claim.Reveal(), redirect.URL, "it points to"},
		"nobody there":   {r.claim.Reveal(), "http://127.0.0.1:1", "touchline preflight"},
		"no address":     {r.claim.Reveal(), "ftp://x", "is no address of a cloud"},
		"without TLS":    {r.claim.Reveal(), "ws://cloud.example.org", "has no TLS"},
		"password in it": {r.claim.Reveal(), "wss://a:b@cloud.example.org", "is no address of a cloud"},
	} {
		f := folderAt(t.TempDir())
		_, err := f.Enrol(t.Context(), EnrolOptions{Code: c.code, Cloud: c.cloud})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", name, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), r.claim.Reveal()) || strings.Contains(err.Error(), other)) {
			t.Errorf("%s: the code is in the error: %v", name, err)
		}
	}
}
