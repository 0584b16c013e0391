package credential_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"touchline/credential"
)

// must keeps the examples short.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func folder() string { return must(os.MkdirTemp("", "example")) }

// A handshake, both sides. The gateway's clock may never have been set: then
// the cloud refuses the first token as stale and hands out a nonce.
func Example_handshake() {
	key := credential.NewGatewayKey() // on the gateway: identity.LoadOrMake
	nonces := must(credential.NewNonces())
	verifier := must(credential.NewVerifier(nonces, "127.0.0.1"))
	registered := func(gateway string) ([]credential.GatewayKey, error) {
		if gateway != "north-stand" {
			return nil, nil // unknown, or revoked
		}
		return []credential.GatewayKey{{Public: credential.PublicKey(key)}}, nil
	}

	cloud := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		handshake, err := verifier.Verify(token, registered)
		switch {
		case err == nil:
			fmt.Println("cloud: hello,", handshake.Gateway)
		case errors.Is(err, credential.ErrStale):
			w.Header().Set("Touchline-Nonce", nonces.New())
			fallthrough
		case errors.Is(err, credential.ErrReplayed), errors.Is(err, credential.ErrRefused):
			w.WriteHeader(http.StatusUnauthorized)
		default: // ErrFull, or the lookup of keys failed
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer cloud.Close()

	connect := func(nonce string) *http.Response {
		token := must(credential.NewToken(credential.TokenRequest{Gateway: "north-stand", Key: key, Audience: "127.0.0.1", Nonce: nonce}))
		r := must(http.NewRequest(http.MethodGet, cloud.URL, nil))
		r.Header.Set("Authorization", "Bearer "+token.Reveal())
		response := must(http.DefaultClient.Do(r))
		response.Body.Close()
		return response
	}
	response := connect("")
	fmt.Println("gateway:", response.StatusCode)
	response = connect(response.Header.Get("Touchline-Nonce"))
	fmt.Println("gateway:", response.StatusCode)
	// Output:
	// gateway: 401
	// cloud: hello, north-stand
	// gateway: 200
}

// An operator wants a gateway in a venue, and a technician enrolls it.
func ExampleClaim() {
	// touchline-cloud gateway claim: shows the code once, keeps its hash.
	claim := credential.NewClaim()
	kept := claim.Hash()
	code := claim.Reveal()

	// touchline enroll CODE, on the gateway. A typo ends here.
	if _, err := credential.ParseClaim("00000-00000-00000-00000"); err != nil {
		fmt.Println(err)
	}
	typed := must(credential.ParseClaim(strings.ToLower(code)))
	nonces := must(credential.NewNonces())
	enrolment := must(credential.NewEnrolment(typed, credential.NewGatewayKey(), "north-stand", nonces.New()))

	// The cloud gets enrolment and code, finds the hash in its store, checks
	// the nonce and the proof, and takes the code and registers the key in one
	// transaction.
	received := must(credential.ParseClaim(typed.Reveal()))
	_, fresh := nonces.Check(enrolment.Nonce)
	fmt.Println(received.Hash() == kept, fresh, enrolment.Verify(kept))
	fmt.Println("in a log:", claim)
	// Output:
	// claim code: group 1 of 4 has a typo, or groups are exchanged
	// true true <nil>
	// in a log: [secret]
}

// A gateway takes a new key; both count for a week.
func ExampleKeyRoll() {
	old, next := credential.NewGatewayKey(), credential.NewGatewayKey()
	known := []credential.GatewayKey{{Public: credential.PublicKey(old)}}

	roll := must(credential.NewKeyRoll("north-stand", old, next, time.Time{}))

	now := time.Now()
	known = must(roll.Verify(known, now))
	for _, day := range []int{0, 6, 7} {
		at := now.Add(time.Duration(day) * 24 * time.Hour)
		fmt.Println("day", day, "old:", known[0].Counts(at), "new:", known[1].Counts(at))
	}
	// Output:
	// day 0 old: true new: true
	// day 6 old: true new: true
	// day 7 old: false new: true
}

// The store has an API key's id, hash, scopes and expiry.
func ExampleAPIKey() {
	key := credential.NewAPIKey()
	type row struct {
		hash    [32]byte
		scopes  credential.Scopes
		expires time.Time
	}
	store := map[string]row{key.ID(): {key.Hash(), credential.ReadSamples, time.Now().Add(time.Hour)}}

	shown, err := credential.ParseAPIKey(key.Reveal())
	if err != nil {
		fmt.Println(err)
		return
	}
	known, ok := store[shown.ID()]
	allowed := shown.Matches(known.hash) && ok && time.Now().Before(known.expires)
	fmt.Println("samples:", allowed && known.scopes.Allow(credential.ReadSamples))
	fmt.Println("gateways:", allowed && known.scopes.Allow(credential.ReadStatus))
	fmt.Println("the log names its id only:", strings.Contains(shown.String(), shown.ID()), len(shown.String()) < 20)
	// Output:
	// samples: true
	// gateways: false
	// the log names its id only: true true
}

// A sensor logs in, is asked about while it is connected, and is shut out by a
// command in another process.
func ExampleSensorKeys() {
	dir := folder()
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, credential.SensorKeysFile)
	keys := must(credential.OpenSensorKeys(file, slog.Default()))
	secret := must(keys.Add("belt-17", "given to the physio")) // touchline sensor add: print it once

	verdict, login := keys.Check("belt-17", secret.Reveal()) // MQTT user and password, HTTP Basic
	fmt.Println(verdict, keys.Admits(login))

	switch verdict, _ := keys.Check("belt-99", "what it came with"); verdict {
	case credential.LetIn:
	case credential.UnknownSensor: // if the settings say so
		fmt.Println("hold:", keys.Hold("belt-99", "what it came with"))
	default: // tell the sensor "not authorised", and the log the verdict
	}
	for _, s := range keys.List() {
		fmt.Println(s.Sensor, s.State)
	}
	if err := keys.Revoke("belt-17"); err != nil {
		fmt.Println(err)
	}
	fmt.Println(keys.Admits(login))
	// Output:
	// let in true
	// hold: <nil>
	// belt-17 admitted
	// belt-99 held
	// false
}

func ExampleACL() {
	acl := must(credential.NewACL([]credential.Rule{
		{Sensor: "display", Subscribe: []string{"sensors/+/heart_rate"}},
		{Sensor: credential.AnySensor, Subscribe: []string{"sensors/{sensor}/cues"}},
	}))
	fmt.Println(acl.MayPublish("belt-17", "sensors/belt-17/heart_rate"), acl.MayPublish("belt-17", "sensors/belt-18/heart_rate"))
	fmt.Println(acl.MaySubscribe("display", "sensors/belt-17/heart_rate"), acl.MaySubscribe("display", "sensors/#"))
	fmt.Println(acl.MaySubscribe("belt-17", "sensors/belt-17/cues"), acl.MaySubscribe("belt-17", "sensors/+/cues"))
	// Output:
	// true false
	// true false
	// true false
}

// touchline sensor ca, and the listener that serves what it issued.
func ExampleCA() {
	dir := folder()
	defer os.RemoveAll(dir)
	ca := must(credential.CreateCA(dir, credential.CAOptions{
		Name: "touchline sensors, north stand", Domains: credential.LocalDomains, Networks: credential.LocalNetworks,
	}))
	if err := ca.Issue(dir, []string{"gateway.local", "192.168.0.10"}); err != nil {
		fmt.Println(err)
	}
	file := filepath.Join(dir, credential.ServerFile)
	source := must(credential.OpenCertificateFile(file, file, slog.Default()))
	listener := must(tls.Listen("tcp", "127.0.0.1:0", credential.ServerTLS(source)))
	fmt.Println(listener.Close())
	// Output:
	// <nil>
}

func ExampleSecret() {
	settings := struct{ Password credential.Secret }{credential.NewSecret("correct horse")}
	fmt.Printf("%+v\n", settings)
	// Output:
	// {Password:[secret]}
}
