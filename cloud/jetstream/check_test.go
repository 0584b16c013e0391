package jetstream

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// A process starts while a minority of the queue's servers is away, and never
// with one that is seen not to sync.
func TestMonitors_AMinorityMayBeAway(t *testing.T) {
	monitor := func(syncs bool) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"version": "2.15.0", "jetstream": {"config": {"sync_always": %t}}}`, syncs)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	good, lax, away := monitor(true), monitor(false), gone.URL
	for _, c := range []struct {
		name    string
		servers []string
		starts  bool
	}{
		{"all there", []string{good, good, good}, true},
		{"one of three away", []string{good, away, good}, true},
		{"two of three away", []string{away, away, good}, false},
		{"one of two away", []string{good, away}, false},
		{"the only one away", []string{away}, false},
		{"one does not sync", []string{good, lax, good}, false},
		{"one away, one does not sync", []string{good, lax, away}, false},
	} {
		silent, err := checkMonitors(t.Context(), c.servers)
		if (err == nil) != c.starts {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.starts && (silent != nil) != (c.name == "one of three away") {
			t.Errorf("%s: said to be away: %v", c.name, silent)
		}
	}
}
