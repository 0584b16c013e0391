package e2e

import (
	"os"
	"testing"
)

// What the uplink can't do yet and a test is ready for. The one that builds it
// takes its name out of awaited, and the test runs.
const (
	liveFirst   = "new samples before the backlog"
	httpProxy   = "an HTTP proxy, by HTTPS_PROXY and HTTP_PROXY"
	socksProxy  = "a SOCKS5 proxy, by HTTPS_PROXY and HTTP_PROXY"
	fallback    = "HTTPS where upgrades are refused"
	backToFirst = "several addresses, back to the first"
)

var awaited = map[string]bool{}

// await skips a test of something that is awaited, unless
// TOUCHLINE_TEST_AWAITED is set.
func await(t *testing.T, capability string) {
	t.Helper()
	if awaited[capability] && os.Getenv("TOUCHLINE_TEST_AWAITED") == "" {
		t.Skipf("the uplink can't do this yet: %s (TOUCHLINE_TEST_AWAITED=1 tries it)", capability)
	}
}
