package e2e

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMutation_HarnessFindsBrokenPrograms builds the programs with one of
// their promises broken, and holds that the crash harness finds it out: a
// test that can't fail proves nothing. What each build tag breaks is in the
// files mutant_*.go. The programs as they are go through the same rounds, and
// must come out whole.
func TestMutation_HarnessFindsBrokenPrograms(t *testing.T) {
	// The window between a broken acknowledgement and its commit is as long
	// as the commit: hundreds of samples in each message make it some ms.
	heavy := []clientOptions{
		{transport: "ws", samples: 200, window: 32, pace: 8},
		{transport: "mqtt4", qos: 1, samples: 200, window: 32, pace: 8},
		{transport: "http", samples: 200, window: 16, pace: 4},
	}
	for _, tc := range []struct {
		tag, program string
		settings     string        // with which it is broken: others may mend what it does
		strike       func(*killer) // the kills that hurt this one most
		found        func(*verdict) bool
	}{
		{tag: "mutant_ack_first", program: "touchline", strike: (*killer).killAfterAck,
			found: func(v *verdict) bool { return v.lost > 0 }},
		{tag: "mutant_stored_when_sent", program: "touchline", settings: forgetsAtOnce, strike: (*killer).killReceiver,
			found: func(v *verdict) bool { return v.lost > 0 }},
		{tag: "mutant_cursor_later", program: "touchline-cloud", strike: (*killer).killBoth,
			found: func(v *verdict) bool { return v.doubled > 0 }},
	} {
		t.Run(tc.tag, func(t *testing.T) {
			broken := mutant(t, tc.program, tc.tag)
			const rounds, kills = 10, 8
			round := func(seed uint64, mutated bool) *verdict {
				programs := map[string]string{"touchline-cloud": "touchline-cloud", "touchline": "touchline"}
				settings := ""
				if mutated {
					programs[tc.program], settings = broken, tc.settings
				}
				s := newSiteOf(t, programs["touchline-cloud"], programs["touchline"], settings)
				s.startCloud()
				s.startGateway()
				k := newKiller(s, s.publish(heavy...), seed)
				for k.total() < kills {
					tc.strike(k)
				}
				v := k.conclude()
				k.site.gateway.kill()
				return v
			}
			if v := round(1, false); !v.holds() {
				t.Fatalf("the programs as they are, seed 1: %s", v)
			}
			for seed := uint64(1); seed <= rounds; seed++ {
				v := round(seed, true)
				if tc.found(v) {
					t.Logf("MEASURED mutation check: %s found in round %d of at most %d, %d kills each: %d lost, %d doubled of %d",
						tc.tag, seed, rounds, kills, v.lost, v.doubled, v.acked)
					return
				}
				t.Logf("seed %d: %s", seed, v)
			}
			t.Errorf("%s survived %d rounds of %d kills", tc.tag, rounds, kills)
		})
	}
}

// forgetsAtOnce are the settings of a gateway that keeps nothing of what is
// stored. One that does finds out with its next welcome that the cloud lacks
// what was never stored, and sends it again.
const forgetsAtOnce = "[buffer]\nkeep_stored = \"0s\"\n[sensors]\ndedupe_window = \"0s\"\n"

// mutant builds a program with one of its promises broken.
func mutant(t *testing.T, program, tag string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), program)
	build := exec.Command("go", "build", "-tags", tag, "-o", path, "touchline/cmd/"+program)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// killAfterAck kills the gateway in the moment in which a client hears an
// acknowledgement, with more on their way.
func (k *killer) killAfterAck() {
	k.t.Helper()
	k.crowd.more(k.t, 1+k.rand.IntN(5000))
	k.killGateway()
	k.restart()
}

// killReceiver kills the cloud under load.
func (k *killer) killReceiver() {
	k.t.Helper()
	waitFor(k.t, "the uplink to be back", k.connected)
	k.crowd.more(k.t, 1+k.rand.IntN(5000))
	k.killCloud()
	k.restart()
}

// killBoth kills the gateway under load, before it made durable what the
// cloud acknowledged a moment ago, then the cloud.
func (k *killer) killBoth() {
	k.t.Helper()
	waitFor(k.t, "the uplink to be back", k.connected)
	k.crowd.more(k.t, 1+k.rand.IntN(5000))
	k.pairs++
	k.killGateway()
	k.linger()
	k.killCloud()
	k.restart()
}

// restart starts what was killed, and waits until it is ready.
func (k *killer) restart() {
	k.t.Helper()
	if !k.site.cloud.running() {
		k.startCloud()
	}
	if !k.site.gateway.running() {
		k.startGateway()
	}
}
