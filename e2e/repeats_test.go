package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// TestRepeats_ControlStoresThemTwice runs the crash harness with the window of
// repeats turned off: its audit must find what is there twice, or its zero
// means nothing.
func TestRepeats_ControlStoresThemTwice(t *testing.T) {
	const rounds, kills = 10, 8
	for seed := uint64(1); seed <= rounds; seed++ {
		s := newSite(t, "[sensors]\ndedupe_window = \"0s\"\n")
		s.startCloud()
		s.startGateway()
		k := newKiller(s, s.publish(
			clientOptions{transport: "mqtt4", qos: 1, samples: 20, window: 32, pace: 8},
			clientOptions{transport: "mqtt4", qos: 1, samples: 20, window: 32, pace: 8, bare: true, named: true},
			clientOptions{transport: "http", samples: 20, window: 16, pace: 8},
		), seed)
		for k.total() < kills {
			k.killAfterAck()
		}
		v := k.conclude()
		k.site.gateway.kill()
		if v.lost > 0 || v.doubled > 0 || v.foreign > 0 {
			t.Fatalf("seed %d: %s", seed, v)
		}
		if v.again > 0 {
			t.Logf("MEASURED repeats control, dedupe_window = \"0s\": found in round %d of at most %d, %d kills each: %d samples twice of %d",
				seed, rounds, kills, v.again, v.acked)
			return
		}
	}
	t.Errorf("nothing was twice in %d rounds of %d kills", rounds, kills)
}

// A belt that two receivers hear, a POST that is sent again, with and without
// a restart of the gateway in between: each is stored once, and acknowledged
// each time.
func TestRepeats_AreAcknowledgedAndStoredOnce(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%t", restart), func(t *testing.T) {
			s := newSite(t, "")
			s.startCloud()
			s.startGateway()
			post := func(key, body string) int {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
					fmt.Sprintf("http://127.0.0.1:%d/v1/samples?sensor=belt", s.http), bytes.NewReader([]byte(body)))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/json")
				if key != "" {
					req.Header.Set("Idempotency-Key", key)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Fatal(err)
				}
				return resp.StatusCode
			}
			send := func() {
				t.Helper()
				for _, request := range []struct{ key, body string }{
					{"", `{"t":1767225600000000000,"heart_rate":142}`},
					{"", `{"t":1767225600000000000,"heart_rate":142}`}, // the other receiver
					{`"8e03978e"`, `{"speed":7.5}`},
					{`"8e03978e"`, `{"speed":7.5}`},
				} {
					if status := post(request.key, request.body); status != http.StatusNoContent {
						t.Fatalf("%s was answered %d", request.body, status)
					}
				}
				if status := post(`"8e03978e"`, `{"speed":8}`); status != http.StatusUnprocessableEntity {
					t.Fatalf("a key with another body was answered %d", status)
				}
			}
			send()
			if restart {
				s.gateway.kill()
				s.startGateway()
			}
			send()
			s.drained()
			rows := readRows(t, bytes.NewReader(s.get(s.cloudPort, "/v1/samples?format=csv&gateway=venue-1")), true)
			if len(rows) != 2 {
				t.Errorf("the cloud has %d rows, want 2: %+v", len(rows), rows)
			}
		})
	}
}
