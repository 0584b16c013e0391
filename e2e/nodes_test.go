package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// handshake shows a token at a cloud and returns the status.
func handshake(t *testing.T, port int, gateway, token string) int {
	t.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, HandshakeTimeout: patience}
	conn, resp, err := dialer.Dial(fmt.Sprintf("ws://127.0.0.1:%d%s", port, wire.UplinkPath),
		http.Header{"Authorization": {"Bearer " + token}, wire.HeaderGateway: {gateway}})
	if err == nil {
		conn.Close()
	} else if resp == nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// TestNodes_AnEnrolledGatewayAndWhoSawItsTokens: two processes of the cloud on
// one record store, a gateway that enrolled with a code, and an attacker who
// has what it showed to one of them. Then its key is replaced and removed by
// hand while all of it runs.
func TestNodes_AnEnrolledGatewayAndWhoSawItsTokens(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	other := filepath.Join(t.TempDir(), "cloud.toml")
	otherPort := freePort(t)
	writeFile(t, other, fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n", otherPort, s.cloudData))
	second := start(t, "touchline-cloud", "run", "--config", other)
	s.waitReady("touchline-cloud", second, otherPort)

	code, stderr, status := run(t, "touchline-cloud", "gateway", "claim", "--venue", "north", "--gateway", "venue-1", "--config", s.cloudConfig)
	if status != 0 {
		t.Fatalf("claim: %s", stderr)
	}
	settings, err := os.ReadFile(s.gatewayConfig)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(settings), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "token_file") {
			lines[i] = ""
		}
	}
	writeFile(t, s.gatewayConfig, strings.Join(lines, "\n"))
	if out, stderr, status := run(t, "touchline", "enroll", strings.TrimSpace(code), "--config", s.gatewayConfig); status != 0 || !strings.Contains(out, "venue-1") {
		t.Fatalf("enroll: %s %s", out, stderr)
	}
	s.startGateway()
	waitFor(t, "the gateway to be connected", func() bool { return s.status().Uplink.State == "connected" })

	key, err := identity.Load(s.gatewayData)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(s.gatewayData, "cloud.store"))
	if err != nil {
		t.Fatal(err)
	}
	token := func(nonce string) string {
		t.Helper()
		secret, err := credential.NewToken(credential.TokenRequest{Gateway: "venue-1", Key: key, Audience: strings.TrimSpace(string(kept)), Nonce: nonce})
		if err != nil {
			t.Fatal(err)
		}
		return secret.Reveal()
	}
	var fetched wire.Nonce
	if err := json.Unmarshal(s.get(s.cloudPort, wire.NoncePath), &fetched); err != nil {
		t.Fatal(err)
	}
	nonce := fetched.Nonce
	for name, tokens := range map[string][2]string{
		"one token":                 twice(token("")),
		"two tokens with one nonce": {token(nonce), token(nonce)},
	} {
		if status := handshake(t, otherPort, "venue-1", tokens[0]); status != http.StatusSwitchingProtocols {
			t.Errorf("%s, at the other process than the nonce is of: %d", name, status)
		}
		for _, port := range []int{s.cloudPort, otherPort} {
			if status := handshake(t, port, "venue-1", tokens[1]); status != http.StatusUnauthorized {
				t.Errorf("%s, again: the attacker got %d", name, status)
			}
		}
	}
	used := token("")
	if status := handshake(t, otherPort, "venue-1", used); status != http.StatusSwitchingProtocols {
		t.Errorf("a token before the cloud dies: %d", status)
	}
	second.expected = true
	second.kill()
	second = start(t, "touchline-cloud", "run", "--config", other)
	s.waitReady("touchline-cloud", second, otherPort)
	if status := handshake(t, otherPort, "venue-1", used); status != http.StatusUnauthorized {
		t.Errorf("after it was killed: the attacker got %d", status)
	}
	waitFor(t, "the gateway to be connected", func() bool { return s.status().Uplink.State == "connected" })

	// The key is replaced by hand, and the one that the gateway uses removed.
	print := credential.Thumbprint(credential.PublicKey(key))
	if _, stderr, status := run(t, "touchline-cloud", "gateway", "key", "venue-1", "--remove", print, "--config", s.cloudConfig); status == 0 || !strings.Contains(stderr, "gateway revoke venue-1") {
		t.Errorf("the last key was removed: %s", stderr)
	}
	next := credential.NewGatewayKey()
	if _, stderr, status := run(t, "touchline-cloud", "gateway", "key", "venue-1", identity.Public(next).String(), "--config", s.cloudConfig); status != 0 {
		t.Fatalf("register a key: %s", stderr)
	}
	out, _, _ := run(t, "touchline-cloud", "gateway", "key", "venue-1", "--config", s.cloudConfig)
	if !strings.Contains(out, print) || !strings.Contains(out, identity.Public(next).String()) || strings.Count(out, "for ever") != 2 {
		t.Errorf("its keys are listed as\n%s", out)
	}
	removed := time.Now()
	if _, stderr, status := run(t, "touchline-cloud", "gateway", "key", "venue-1", "--remove", print, "--config", s.cloudConfig); status != 0 {
		t.Fatalf("remove a key: %s", stderr)
	}
	waitFor(t, "its session to end", func() bool {
		st := s.status().Uplink
		return st.State != "connected" && strings.Contains(st.LastError, "401")
	})
	t.Logf("MEASURED the gateway was out %s after its key was removed", time.Since(removed).Round(time.Millisecond))
	if status := handshake(t, otherPort, "venue-1", token("")); status != http.StatusUnauthorized {
		t.Errorf("with the removed key: %d", status)
	}
	key = next
	if status := handshake(t, otherPort, "venue-1", token("")); status != http.StatusSwitchingProtocols {
		t.Errorf("with the other: %d", status)
	}
}

func twice(token string) [2]string { return [2]string{token, token} }
