package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// enrolled registers the gateway by a claim code in place of its token, and
// returns the code.
func (s *site) enrolled() (code string) {
	s.t.Helper()
	code, stderr, status := run(s.t, s.cloudProgram, "gateway", "claim", "--venue", "north", "--gateway", "venue-1", "--config", s.cloudConfig)
	if status != 0 {
		s.t.Fatalf("gateway claim: %s", stderr)
	}
	code = strings.TrimSpace(code)
	s.touchline("enroll", code)
	text, err := os.ReadFile(s.gatewayConfig)
	if err != nil {
		s.t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "token_file") {
			kept = append(kept, line)
		}
	}
	writeFile(s.t, s.gatewayConfig, strings.Join(kept, ""))
	return code
}

// clone returns a second box with a copy of the gateway's disk, which is
// stopped.
func (s *site) clone() *site {
	s.t.Helper()
	two := *s
	two.gateway, two.gatewayData = nil, s.t.TempDir()
	copyFolder(s.t, s.gatewayData, two.gatewayData)
	// A copy of a disk keeps modes; a key that others can read is refused.
	if err := os.Chmod(filepath.Join(two.gatewayData, "gateway.key"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	text, err := os.ReadFile(s.gatewayConfig)
	if err != nil {
		s.t.Fatal(err)
	}
	two.mqtt, two.http = freePort(s.t), freePort(s.t)
	config := string(text)
	for was, is := range map[string]string{
		fmt.Sprintf("%q", s.gatewayData): fmt.Sprintf("%q", two.gatewayData),
		fmt.Sprintf(":%d\"", s.mqtt):     fmt.Sprintf(":%d\"", two.mqtt),
		fmt.Sprintf(":%d\"", s.http):     fmt.Sprintf(":%d\"", two.http),
	} {
		config = strings.Replace(config, was, is, 1)
	}
	two.gatewayConfig = s.gatewayConfig + "-two"
	writeFile(s.t, two.gatewayConfig, config)
	return &two
}

// TestClone_IsNoticedNamedAndLosesNothing copies the disk of a gateway that
// still holds samples, key and all, and runs both boxes: each gets its turns,
// the cloud and the boxes say what is wrong, and what both had, and each took
// since, is stored once.
func TestClone_IsNoticedNamedAndLosesNothing(t *testing.T) {
	t.Parallel()       // it waits for turns
	const share = 1000 // samples of one deposit
	s := newSite(t, "")
	s.startCloud()
	s.enrolled()
	s.startGateway()
	s.deposit(0, share, false)
	s.drained()
	s.cloud.terminate()
	s.deposit(share, 2*share, false) // both boxes will have these
	s.gateway.terminate()
	two := s.clone()
	s.startCloud()
	two.cloud = s.cloud
	turns := 1
	if long() {
		turns = 3 // the waits double: 10, 20, 40 s and as much at random
	}

	s.startGateway()
	s.drained()
	two.startGateway()
	two.deposit(2*share, 3*share, false)
	two.drained() // it took over
	n := 3
	for range turns {
		waitFor(t, "the first box to have lost its turn", func() bool { return s.status().Uplink.State != "connected" })
		if said := s.status().Uplink.LastError; !strings.Contains(said, "used by another box too") {
			t.Errorf("the first box says %q", said)
		}
		for _, box := range []*site{s, two} {
			box.deposit(n*share, (n+1)*share, false)
			n++
			box.drained() // its turn came
		}
	}
	waitFor(t, "the clone to be named in the log", func() bool { return strings.Contains(s.cloud.log.String(), "two boxes have this gateway's identity") })
	list, stderr, status := run(t, "touchline-cloud", "gateway", "list", "--config", s.cloudConfig)
	if status != 0 || !strings.Contains(list, "cloned: two boxes had its identity") {
		t.Errorf("gateway list: %d %s\n%s", status, stderr, list)
	}
	if text := string(s.get(s.cloudPort, "/v1/gateways")); !strings.Contains(text, `"cloned"`) {
		t.Errorf("/v1/gateways does not name it: %s", text)
	}
	seen := 0
	for line := range strings.Lines(string(s.get(s.cloudPort, "/metrics"))) {
		if _, err := fmt.Sscanf(line, "touchline_cloud_cloned_hellos_total %d", &seen); err == nil {
			break
		}
	}
	if seen < turns {
		t.Errorf("the metrics count %d", seen)
	}
	s.hasOnce(n * share)
	t.Logf("MEASURED clone: two boxes with one disk had %d turns each, were seen %d times, %d samples stored once; the one that is waiting says: %s",
		turns+1, seen, n*share, s.status().Uplink.LastError)
	first, second := s.gateway.terminate(), two.gateway.terminate()
	if first != 0 || second != 0 {
		t.Errorf("they ended with %d and %d", first, second)
	}
	s.cloud.terminate()
	v := &verdict{stored: uint64(n * share)}
	s.auditFile(v)
	if !v.holds() {
		t.Error(v)
	}
}
