package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"touchline/internal/pgtest"
)

// withoutPassword is a URL as a cloud is given it.
func withoutPassword(url string) string { return strings.Replace(url, ":"+pgtest.Password+"@", "@", 1) }

// TestPostgres_IsARecordStoreLikeTheOther is a cloud on PostgreSQL from the
// first command to the answer of a query: gateways are added, claimed, listed
// and revoked, a key is made, samples come in, the server crashes and comes
// back, nothing is lost or there twice, and no secret is in what was printed.
func TestPostgres_IsARecordStoreLikeTheOther(t *testing.T) {
	server := pgtest.Start(t, "")
	url := withoutPassword(server.Database(t))
	s := newSite(t, "")
	conf := filepath.Dir(s.cloudConfig)
	password := filepath.Join(conf, "password")
	writeFile(t, password, pgtest.Password+"\n")
	writeFile(t, s.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\nstore = %q\nstore_password_file = %q\n", s.cloudPort, url, password))
	cloud := func(args ...string) string {
		t.Helper()
		out, stderr, status := run(t, "touchline-cloud", append(args, "--config", s.cloudConfig)...)
		if status != 0 || strings.Contains(out+stderr, pgtest.Password) {
			t.Fatalf("touchline-cloud %v: status %d, %s%s", args, status, out, stderr)
		}
		return strings.TrimSpace(out)
	}
	if out := cloud("check"); !strings.Contains(out, "store     "+url) {
		t.Errorf("check says %q", out)
	}
	s.configureGateway("", filepath.Join(conf, "token"))
	writeFile(t, filepath.Join(conf, "token"), cloud("gateway", "add", "venue-1"))
	cloud("gateway", "add", "venue-2")
	cloud("gateway", "claim", "--venue", "arena")
	cloud("gateway", "revoke", "venue-2")
	key := cloud("key", "add", "dashboard", "--scope", "read")
	if out := cloud("key", "list"); !strings.Contains(out, "dashboard") || strings.Contains(out, key) {
		t.Errorf("key list says %q", out)
	}

	s.startCloud()
	s.startGateway()
	gateway := fmt.Sprintf("http://127.0.0.1:%d", s.http)
	sent := 0
	send := func(n int) {
		t.Helper()
		for range n {
			sent++
			pack := fmt.Sprintf(`[{"bn":"belt-%d/","n":"hr","v":142}]`, sent)
			resp, err := http.Post(gateway+"/v1/samples", "application/senml+json", strings.NewReader(pack))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				t.Fatalf("the gateway answered %s", resp.Status)
			}
		}
	}
	lines := func() int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/v1/samples?gateway=venue-1", s.cloudPort), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return -1
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return -1
		}
		return strings.Count(string(body), "belt-")
	}
	send(5)
	waitFor(t, "the first samples to be stored", func() bool { return lines() == sent })
	server.Crash(t)
	send(5)
	server.Resume(t)
	waitFor(t, "what came meanwhile to be stored, once", func() bool { return lines() == sent })
	if out := cloud("gateway", "list"); !strings.Contains(out, "venue-1") || !strings.Contains(out, "revoked") {
		t.Errorf("gateway list says\n%s", out)
	}
	if status := s.cloud.terminate(); status != 0 {
		t.Errorf("the cloud ended with status %d", status)
	}
	if strings.Contains(s.cloud.log.String(), pgtest.Password) {
		t.Error("the password is in the log")
	}
}
