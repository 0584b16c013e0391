package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"touchline/internal/netlab"
)

// TestNetwork_HarnessFindsAnUplinkThatForgetsTooSoon builds a gateway that
// forgets what it has sent, stored or not, and holds that the audit behind a
// network that swallows finds it out.
func TestNetwork_HarnessFindsAnUplinkThatForgetsTooSoon(t *testing.T) {
	t.Parallel()
	mutant := filepath.Join(t.TempDir(), "touchline")
	build := exec.Command("go", "build", "-tags", "mutant_stored_when_sent", "-o", mutant, "touchline/cmd/touchline")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s := newSiteOf(t, "touchline-cloud", mutant, forgetsAtOnce)
	s.tuneNetwork(heartbeat)
	r := relayTo(t, fmt.Sprintf("127.0.0.1:%d", s.cloudPort), netlab.RelayOptions{})
	s.uplinkTo("ws://" + r.Addr())
	s.startCloud()
	s.startGateway()
	session := s.session()
	c := s.publish(networkCrowd(500)...)
	c.more(t, 100)
	r.Set(netlab.Faults{Up: netlab.Flow{Blackhole: true}})
	c.more(t, 500)
	waitFor(t, "frames to vanish", func() bool { return r.Stats().Swallowed > 1000 })
	r.Set(netlab.Faults{})
	s.sessionAfter(session)
	c.more(t, 100)
	c.finish(t)
	s.drained()
	v := s.audit(c)
	if v.lost == 0 {
		t.Errorf("a gateway that forgets what was not stored came through: %s", v)
	}
	t.Logf("MEASURED network mutation check: %d of %d acknowledged samples lost, and found to be", v.lost, v.acked)
}
