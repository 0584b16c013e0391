package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstall_WhoIsEnrolledOutlivesARefusedClaim: a bundle that another box has
// used waits on a gateway that has a key. It must not stand still for it.
func TestInstall_WhoIsEnrolledOutlivesARefusedClaim(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may install")
	}
	t.Parallel()
	s := newSite(t, "")
	s.startCloud()
	address := fmt.Sprintf("ws://127.0.0.1:%d", s.cloudPort)
	extra := filepath.Join(t.TempDir(), "extra.toml")
	writeFile(t, extra, fmt.Sprintf("[sensors.mqtt]\nlisten = \"127.0.0.1:%d\"\n[sensors.http]\nlisten = \"127.0.0.1:%d\"\n", s.mqtt, s.http))
	root := t.TempDir()
	s.gatewayConfig, s.gatewayData = filepath.Join(root, "etc/touchline/touchline.toml"), filepath.Join(root, "var/lib/touchline")
	install := func(code string) {
		t.Helper()
		bundle := filepath.Join(t.TempDir(), "bundle")
		writeFile(t, bundle, fmt.Sprintf(`{"touchline_bundle": 1, "cloud": [%q], "claim": %q, "config": %q}`, address, code, must(os.ReadFile(extra))))
		if out, stderr, status := run(t, "touchline", "install", "--root", root, "--bundle", bundle); status != 0 {
			t.Fatalf("install: %s%s", out, stderr)
		}
	}
	begin := func() {
		s.gateway = start(t, filepath.Join(root, "usr/local/bin/touchline"), "run", "--config", s.gatewayConfig, "--data", s.gatewayData)
	}
	ends := func(why string) {
		t.Helper()
		s.gateway.expected = true
		if status := s.gateway.exit(); status != 1 || !strings.Contains(s.gateway.log.String(), why) {
			t.Fatalf("it ended with status %d, want 1 and %q:\n%s", status, why, s.gateway.log)
		}
	}
	install(s.claim())
	begin()
	ends("enrolled now")

	used := s.claim()
	if _, stderr, status := run(t, "touchline", "enroll", used, "--data", t.TempDir(), "--cloud", address); status != 0 {
		t.Fatalf("another box: %s", stderr)
	}
	install(used)
	begin()
	ends("goes on by that")
	begin()
	s.waitReady("touchline", s.gateway, s.http)
	waitFor(t, "a session under the first id", func() bool { return s.status().Uplink.State == "connected" })
	if out, _, _ := run(t, "touchline", "status", "--config", s.gatewayConfig, "--data", s.gatewayData); !strings.Contains(out, "gateway   stadium-1,") {
		t.Errorf("the status is\n%s", out)
	}
}

// claim returns a new code of the cloud, for any gateway of the venue.
func (s *site) claim() string {
	s.t.Helper()
	code, stderr, status := run(s.t, "touchline-cloud", "gateway", "claim", "--config", s.cloudConfig, "--venue", "stadium")
	if status != 0 {
		s.t.Fatalf("claim: %s", stderr)
	}
	return strings.TrimSpace(code)
}

// What a person wrote stays. Where it is not what the installation is meant for,
// that is said, and nothing is changed: the claim would go to another cloud, or
// the key that it registers would not be used.
func TestInstall_SaysWhereSettingsAreNotMeantForIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may install")
	}
	t.Parallel()
	const code = "00000-00000-00000-00000" // of a form that is good
	roots := filepath.Join(t.TempDir(), "roots.pem")
	writeFile(t, roots, "no certificate")
	for _, c := range []struct{ settings, want string }{
		{"[uplink]\nurls = [\"wss://other.example\"]\n", `urls = ["wss://c.example"]`},
		{"[sensors]\nmax_payload = \"1KiB\"\n", `urls = ["wss://c.example"]`},
		{"[uplink]\nurls = [\"wss://c.example\"]\ntoken_file = \"/etc/touchline/token\"\n", "uplink.token_file"},
	} {
		root := t.TempDir()
		config := filepath.Join(root, "etc/touchline/touchline.toml")
		if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, config, c.settings)
		if _, stderr, status := run(t, "touchline", "install", "--root", root, "--claim", code, "--cloud", "wss://c.example"); status != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: status %d, %s, want %s", c.settings, status, stderr, c.want)
		}
		if _, err := os.Stat(filepath.Join(root, "usr")); !os.IsNotExist(err) {
			t.Errorf("%s: something was installed, %v", c.settings, err)
		}
	}
	for want, args := range map[string][]string{
		"its roots are none": {"--cloud", "wss://c.example", "--ca-file", roots},
		"name it with":       {"--ca-file", roots},
	} {
		if _, stderr, status := run(t, "touchline", append([]string{"install", "--root", t.TempDir()}, args...)...); status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%v: status %d, %s", args, status, stderr)
		}
	}
}

// What a site could not mend is found where its bundle is made, before there is
// a claim.
func TestBundle_IsCheckedWhereItIsMade(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	for settings, want := range map[string]string{
		"[sensors]\nmax_payload = \"soon\"\n":            "max_payload",
		"[uplink]\nurls = [\"wss://other.example\"]\n":   "--url",
		"[gateway]\nid = \"x\"\n":                        "no [gateway]",
		"uplink.proxy = \"http://proxy.example:3128\"\n": "begin with the line of a table",
	} {
		file, bundle := filepath.Join(t.TempDir(), "settings.toml"), filepath.Join(t.TempDir(), "bundle")
		writeFile(t, file, settings)
		_, stderr, status := run(t, "touchline-cloud", "gateway", "claim", "--config", s.cloudConfig, "--venue", "stadium", "--bundle", bundle, "--url", "wss://c.example", "--settings", file)
		if status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: status %d, %s", settings, status, stderr)
		}
		if _, err := os.Stat(bundle); !os.IsNotExist(err) {
			t.Errorf("%s: there is a bundle, %v", settings, err)
		}
	}
	file, bundle := filepath.Join(t.TempDir(), "settings.toml"), filepath.Join(t.TempDir(), "bundle")
	writeFile(t, file, "[uplink]\nproxy = \"http://proxy.example:3128\"\n")
	if _, stderr, status := run(t, "touchline-cloud", "gateway", "claim", "--config", s.cloudConfig, "--venue", "stadium", "--bundle", bundle, "--url", "wss://c.example", "--settings", file); status != 0 {
		t.Fatalf("a site with a proxy: %s", stderr)
	}
	root := t.TempDir()
	if _, stderr, status := run(t, "touchline", "install", "--dry-run", "--root", root, "--bundle", bundle); status != 0 {
		t.Errorf("it can't be installed: %s", stderr)
	}
}
