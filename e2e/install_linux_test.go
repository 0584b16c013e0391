package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstall_ABundleNeedsNoLine installs into an image what a site gets that
// has no line yet: the gateway takes samples, enrols by itself when the cloud is
// reached, and delivers them.
func TestInstall_ABundleNeedsNoLine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may install")
	}
	t.Parallel()
	s := newSite(t, "")
	bundle := filepath.Join(t.TempDir(), "stadium.bundle")
	mqtt := fmt.Sprintf("127.0.0.1:%d", s.mqtt)
	web := fmt.Sprintf("127.0.0.1:%d", s.http)
	extra := filepath.Join(t.TempDir(), "extra.toml")
	writeFile(t, extra, fmt.Sprintf("[sensors.mqtt]\nlisten = %q\n[sensors.http]\nlisten = %q\n", mqtt, web))
	if _, stderr, status := run(t, "touchline-cloud", "gateway", "claim", "--config", s.cloudConfig, "--venue", "stadium", "--for", "720h",
		"--bundle", bundle, "--url", fmt.Sprintf("ws://127.0.0.1:%d", s.cloudPort), "--settings", extra); status != 0 {
		t.Fatalf("claim: %s", stderr)
	}
	if info, err := os.Stat(bundle); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the bundle: %v %v", info, err)
	}
	root := t.TempDir()
	for range 2 { // twice is fine
		if out, stderr, status := run(t, "touchline", "install", "--root", root, "--bundle", bundle); status != 0 {
			t.Fatalf("install: %s%s", out, stderr)
		}
	}
	s.gatewayConfig, s.gatewayData = filepath.Join(root, "etc/touchline/touchline.toml"), filepath.Join(root, "var/lib/touchline")
	begin := func() *program {
		p := start(t, filepath.Join(root, "usr/local/bin/touchline"), "run", "--config", s.gatewayConfig, "--data", s.gatewayData)
		s.waitReady("touchline", p, s.http)
		return p
	}
	s.gateway = begin()
	resp, err := http.Post("http://"+web+"/v1/samples?sensor=belt-1", "application/json", strings.NewReader(`{"v":1}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("a sample is answered %s", resp.Status)
	}
	waitFor(t, "the status to say that it is not enrolled", func() bool { return strings.HasPrefix(s.status().Uplink.LastError, "not enrolled yet: ") })
	s.startCloud()
	s.gateway.expected = true
	if status := s.gateway.exit(); status != 1 || !strings.Contains(s.gateway.log.String(), "enrolled now") {
		t.Fatalf("it ended with status %d", status)
	}
	s.gateway = begin()
	s.drained()
	out, _, _ := run(t, "touchline", "status", "--config", s.gatewayConfig, "--data", s.gatewayData)
	if !strings.Contains(out, "gateway   stadium-1,") {
		t.Errorf("the status is\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(s.gatewayData, "claim.pending")); !os.IsNotExist(err) {
		t.Errorf("the claim was not forgotten: %v", err)
	}
}

// What would not do is found before anything is changed.
func TestInstall_ChecksBeforeItChanges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may install")
	}
	t.Parallel()
	root := t.TempDir()
	broken := filepath.Join(t.TempDir(), "bundle")
	writeFile(t, broken, `{"touchline_bundle":1,"cloud":["wss://c.example"],"claim":"x","config":"[sensors]\nmax_payload = \"soon\""}`)
	later := filepath.Join(t.TempDir(), "bundle")
	writeFile(t, later, `{"touchline_bundle":7,"cloud":["wss://c.example"],"claim":"x"}`)
	typo := filepath.Join(t.TempDir(), "bundle")
	writeFile(t, typo, `{"touchline_bundle":1,"cloud":["wss://c.example"],"claim":"ABCDEFGHJKMNPQRSTVWX"}`)
	for want, args := range map[string][]string{
		"max_payload":           {"--bundle", broken},
		"has a typo":            {"--bundle", typo},
		"it has form 7":         {"--bundle", later},
		"--cloud wss://HOST":    {"--claim", "x"},
		"leave out --claim":     {"--bundle", broken, "--claim", "x"},
		"no address of a cloud": {"--cloud", "cloud.example"},
	} {
		if _, stderr, status := run(t, "touchline", append([]string{"install", "--root", root}, args...)...); status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%v: status %d, %s", args, status, stderr)
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("something was changed: %v %v", left, err)
	}
}
