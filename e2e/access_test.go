package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sensorPost sends one sample as a sensor, and returns the status.
func sensorPost(t *testing.T, client *http.Client, url, sensor, key string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/samples", strings.NewReader(`{"hr":142}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if sensor != "" {
		req.SetBasicAuth(sensor, key)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestSensors_WithKeysFromTheCommandLine is a venue that lets in who has a key:
// keys are made, shown, admitted and revoked while the gateway runs, also with
// TLS, and no secret is left where another user could find it.
func TestSensors_WithKeysFromTheCommandLine(t *testing.T) {
	mqttTLS, httpTLS := freePort(t), freePort(t)
	s := newSite(t, "[sensors]\nallow_anonymous = false\nunknown = \"hold\"\n")
	config, err := os.ReadFile(s.gatewayConfig)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(config), "[sensors.mqtt]\n", fmt.Sprintf("[sensors.mqtt]\ntls_listen = \"127.0.0.1:%d\"\n", mqttTLS), 1)
	text = strings.Replace(text, "[sensors.http]\n", fmt.Sprintf("[sensors.http]\ntls_listen = \"127.0.0.1:%d\"\n", httpTLS), 1)
	writeFile(t, s.gatewayConfig, text)
	touchline := func(args ...string) (stdout, stderr string, status int) {
		t.Helper()
		return run(t, "touchline", append(args, "--config", s.gatewayConfig)...)
	}
	if _, stderr, status := touchline("check"); status != 1 || !strings.Contains(stderr, "touchline sensor ca") {
		t.Errorf("check without a certificate: %d %s", status, stderr)
	}
	if _, stderr, status := touchline("sensor", "ca", "127.0.0.1", "gateway.local"); status != 0 {
		t.Fatalf("sensor ca: %s", stderr)
	}
	key, stderr, status := touchline("sensor", "add", "belt-17", "--note", "the physio's")
	key = strings.TrimSpace(key)
	if status != 0 || !strings.HasPrefix(key, "tlsk_") || strings.Contains(stderr, key) {
		t.Fatalf("sensor add: %d %q %s", status, key, stderr)
	}
	if _, stderr, status := touchline("sensor", "add", "belt-17"); status != 1 || !strings.Contains(stderr, "renew") {
		t.Errorf("a second key: %d %s", status, stderr)
	}
	s.startCloud()
	s.startGateway()
	url := fmt.Sprintf("http://127.0.0.1:%d", s.http)
	for _, c := range []struct {
		sensor, key string
		want        int
	}{{"", "", 401}, {"belt-17", key, 204}, {"belt-17", key + "x", 401}, {"belt-18", key, 403}} { // the last one is held now
		if got := sensorPost(t, http.DefaultClient, url, c.sensor, c.key); got != c.want {
			t.Errorf("%s: %d, want %d", c.sensor, got, c.want)
		}
	}
	list, _, _ := touchline("sensor", "list")
	if !strings.Contains(list, "belt-17") || !strings.Contains(list, "the physio's") || !strings.Contains(list, "waits") || strings.Contains(list, key) {
		t.Errorf("sensor list:\n%s", list)
	}
	second, stderr, status := touchline("sensor", "admit", "belt-18", "--new-key")
	second = strings.TrimSpace(second)
	if status != 0 {
		t.Fatalf("sensor admit: %s", stderr)
	}
	waitFor(t, "the admitted sensor to come in", func() bool { return sensorPost(t, http.DefaultClient, url, "belt-18", second) == 204 })

	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(s.gatewayData, "sensor-ca.crt"))
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("the CA's certificate: %v", err)
	}
	secure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	if got := sensorPost(t, secure, fmt.Sprintf("https://127.0.0.1:%d", httpTLS), "belt-17", key); got != 204 {
		t.Errorf("with TLS: %d", got)
	}

	// The technician's look, beside the running gateway.
	out, stderr, status := touchline("preflight", "--json")
	var report struct {
		OK     bool
		Checks []struct{ Name, Status, Detail string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.OK || status != 0 {
		t.Errorf("preflight: %d %v %s\n%s", status, err, stderr, out)
	}
	seen := map[string]bool{}
	for _, c := range report.Checks {
		name, _, _ := strings.Cut(c.Name, " 127")
		seen[name] = true
		t.Logf("MEASURED preflight: %s %s: %s", c.Status, c.Name, c.Detail)
	}
	for _, want := range []string{"folder", "sync", "clock", "upgrade", "round trip", "throughput", "sensors.mqtt.listen", "sensors.mqtt.tls_listen", "sensors.http.listen", "sensors.http.tls_listen"} {
		if !seen[want] {
			t.Errorf("preflight did not look at %s", want)
		}
	}

	if _, stderr, status := touchline("sensor", "revoke", "belt-17"); status != 0 {
		t.Errorf("sensor revoke: %s", stderr)
	}
	waitFor(t, "the revoked sensor to be refused", func() bool { return sensorPost(t, http.DefaultClient, url, "belt-17", key) == 401 })
	s.drained()
	s.gateway.terminate()
	if _, stderr, status := touchline("preflight"); status != 0 {
		t.Errorf("preflight without a gateway: %d %s", status, stderr)
	}
	s.cloud.terminate()
	if out, _, status := touchline("preflight"); status != 1 || !strings.Contains(out, "nothing listens there") {
		t.Errorf("preflight without a cloud: %d\n%s", status, out)
	}

	// What is left: no key in a log or a file, and no secret that others can read.
	for _, secret := range []string{key, second} {
		if strings.Contains(s.gateway.log.String(), secret) || strings.Contains(s.cloud.log.String(), secret) {
			t.Error("a sensor's key is in a log")
		}
	}
	err = filepath.WalkDir(s.gatewayData, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if bytes.Contains(data, []byte(key)) || bytes.Contains(data, []byte(second)) {
			t.Errorf("a sensor's key is in %s", path)
		}
		if bytes.Contains(data, []byte("PRIVATE KEY")) || bytes.Contains(data, []byte("sha256:")) {
			if info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %o", path, info.Mode().Perm())
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
