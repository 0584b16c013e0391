package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogs_NameGatewayAndSession reads the log of a node as a machine would: each
// line is JSON, and each about a session says whose and which one.
func TestLogs_NameGatewayAndSession(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	settings, err := os.ReadFile(s.cloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.cloudConfig, string(settings)+"[log]\nformat = \"json\"\nlevel = \"debug\"\n")
	s.startCloud()
	for range 2 { // two sessions
		s.startGateway()
		s.deposit(0, 100, false)
		s.drained()
		s.gateway.terminate()
	}
	waitFor(t, "both sessions to be over", func() bool { return strings.Count(s.cloud.log.String(), "gateway disconnected") == 2 })
	s.cloud.terminate()
	sessions, lines := map[float64][]string{}, 0
	for line := range strings.Lines(s.cloud.log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Errorf("no JSON: %s", line)
			continue
		}
		lines++
		message, _ := entry["msg"].(string)
		for _, key := range []string{"time", "level", "msg"} {
			if entry[key] == nil {
				t.Errorf("the line %s has no %s", line, key)
			}
		}
		// What differs from line to line is in attributes, where a machine finds it.
		if strings.Contains(message, s.venue) || strings.Contains(message, "127.0.0.1") {
			t.Errorf("the message %q is not constant", message)
		}
		if !strings.HasPrefix(message, "gateway ") {
			continue
		}
		session, ok := entry["session"].(float64)
		if entry["gateway"] != s.venue || !ok || entry["remote"] == nil {
			t.Errorf("the line %s does not say of which gateway, session and address", line)
		}
		sessions[session] = append(sessions[session], message)
	}
	if len(sessions) != 2 || lines < 5 {
		t.Errorf("%d lines are about the sessions %v", lines, sessions)
	}
	for session, messages := range sessions {
		if messages[0] != "gateway connected" || messages[len(messages)-1] != "gateway disconnected" {
			t.Errorf("session %v has the lines %q", session, messages)
		}
	}
}

// TestSecrets_OfEnginesAreNowhere gives a node the secrets of what it stands on, in
// every place where somebody might put them, right and wrong, with nothing of it
// there to connect to, and looks for them in all that it says.
func TestSecrets_OfEnginesAreNowhere(t *testing.T) {
	t.Parallel()
	const secret = "engine-secret-4720"
	dir := t.TempDir()
	password, creds := filepath.Join(dir, "password"), filepath.Join(dir, "queue.creds")
	writeFile(t, password, secret+"\n")
	writeFile(t, creds, "-----BEGIN NATS USER JWT-----\n"+secret+"\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\n"+secret+"\n------END USER NKEY SEED------\n")
	port := freePort(t) // where nobody listens
	for name, of := range map[string]struct{ settings, says string }{
		"a password in the address of the store":  {fmt.Sprintf("store = \"postgres://u:%s@127.0.0.1:%d/d\"", secret, port), "store_password_file"},
		"a password in its parameters":            {fmt.Sprintf("store = \"postgres://u@127.0.0.1:%d/d?password=%s\"", port, secret), "store_password_file"},
		"an address that can't be read":           {fmt.Sprintf("store = \"postgres://u:%s@127.0.0.1:port/d\"", secret), "PostgreSQL"},
		"a store that is away":                    {fmt.Sprintf("store = \"postgres://u@127.0.0.1:%d/d?connect_timeout=2\"\nstore_password_file = %q", port, password), "store"},
		"a password in the address of the queue":  {fmt.Sprintf("[queue]\nnats = \"nats://u:%s@127.0.0.1:%d\"", secret, port), "nats_credentials"},
		"a token in it":                           {fmt.Sprintf("[queue]\nnats = \"nats://%s@127.0.0.1:%d\"", secret, port), "nats_credentials"},
		"credentials of a queue that are damaged": {fmt.Sprintf("[queue]\nnats = \"nats://127.0.0.1:%d\"\nnats_confirmed = true\nnats_credentials = %q", port, creds), "queue"},
		"a password in the collector's address":   {fmt.Sprintf("[tracing]\nendpoint = \"http://u:%s@127.0.0.1:%d/v1/traces\"", secret, port), "OTEL_EXPORTER_OTLP_HEADERS"},
		"a key in it":                             {fmt.Sprintf("[tracing]\nendpoint = \"http://127.0.0.1:%d/v1/traces?key=%s\"", port, secret), "OTEL_EXPORTER_OTLP_HEADERS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := filepath.Join(t.TempDir(), "cloud.toml")
			writeFile(t, config, fmt.Sprintf("listen = \"127.0.0.1:0\"\ndata = %q\n%s\n[log]\nformat = \"json\"\nlevel = \"debug\"\n", t.TempDir(), of.settings))
			for _, command := range []string{"check", "run"} {
				stdout, stderr, status := run(t, "touchline-cloud", command, "--config", config)
				if said := stdout + stderr; strings.Contains(said, secret) {
					t.Errorf("%s shows the secret: %s", command, said)
				}
				if command == "run" && (status == 0 || !strings.Contains(stderr, of.says)) {
					t.Errorf("run ended with status %d and does not speak of %q: %s", status, of.says, stderr)
				}
			}
		})
	}
}
