package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// post has the gateway acknowledge n samples of a heart rate, one a second from
// a time on.
func (s *site) post(from, n, value int) {
	s.t.Helper()
	var body strings.Builder
	for i := range n {
		fmt.Fprintf(&body, `,{"n":"heart_rate","v":%d,"t":%d}`, value, from+i)
	}
	pack := `[{"bn":"vest-7/"` + "," + body.String()[2:] + "]"
	resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/samples", s.http), "application/senml+json", strings.NewReader(pack))
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		s.t.Fatalf("POST: %s", resp.Status)
	}
}

// values counts the samples that the cloud shows, by their values.
func (s *site) values(query string) map[string]int {
	s.t.Helper()
	found := make(map[string]int)
	for i, line := range strings.Split(strings.TrimSpace(string(s.get(s.cloudPort, "/v1/samples?"+query))), "\n") {
		if i > 0 {
			found[strings.Split(line, ",")[5]]++
		}
	}
	return found
}

// TestReplace_ADockedRecordingStandsForTheLiveOne: one gateway received a vest
// live, and takes its recording after the match; it is in the same epoch. The
// command finds both, and a mask shows the recording in the match and what was
// live around it, also of what comes late, until it is revoked.
func TestReplace_ADockedRecordingStandsForTheLiveOne(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	const kickoff = 1_780_000_000
	s.post(kickoff-50, 200, 1)
	s.drained()
	s.post(kickoff, 100, 2)
	s.drained()

	cloud := func(args ...string) string {
		t.Helper()
		out, stderr, status := run(t, "touchline-cloud", append(args, "--config", s.cloudConfig)...)
		if status != 0 {
			t.Fatalf("touchline-cloud %v: %s", args, stderr)
		}
		return strings.TrimSpace(out)
	}
	where := []string{"--gateway", "venue-1", "--sensor", "vest-7", "--from", fmt.Sprint(kickoff * int64(1e9)), "--to", fmt.Sprint((kickoff + 100) * int64(1e9))}
	listed := cloud(append([]string{"replace", "sources"}, where...)...)
	sources := regexp.MustCompile(`(?m)^([0-9a-f]{32}:(\d+)-(\d+)) +venue-1 +100 +0 `).FindAllStringSubmatch(listed, -1)
	if len(sources) != 2 {
		t.Fatalf("replace sources lists\n%s\nwant two of 100 samples", listed)
	}
	live, _ := strconv.Atoi(sources[0][3])
	docked, _ := strconv.Atoi(sources[1][2])
	if live >= docked {
		t.Errorf("what was live ends with %d, and the recording begins with %d", live, docked)
	}
	number := cloud(append([]string{"replace", "add", "--keep", sources[1][1], "--by", "physio", "--reason", "match 12"}, where...)...)
	if number != "1" {
		t.Errorf("the mask has the number %q", number)
	}
	want := func(step string, query string, live, docked int) {
		t.Helper()
		if got := s.values(query); got["1"]+got["3"] != live || got["2"] != docked {
			t.Errorf("%s: /v1/samples?%s has %v, want %d live and %d of the recording", step, query, got, live, docked)
		}
	}
	want("masked", "", 100, 100)
	want("masked", "replaced=true", 200, 100)
	s.post(kickoff+20, 30, 3) // of a backlog somewhere
	s.drained()
	want("late", "", 100, 100)
	want("late", "replaced=true", 230, 100)
	list := cloud("replace", "list")
	if !strings.Contains(list, "physio") || !strings.Contains(list, "match 12") || !strings.Contains(list, sources[1][1]) {
		t.Errorf("replace list says\n%s", list)
	}
	if out := cloud("replace", "revoke", "1"); out != "2" {
		t.Errorf("the revocation has the number %q", out)
	}
	want("revoked", "", 230, 100)
	if _, stderr, status := run(t, "touchline-cloud", "replace", "revoke", "1", "--config", s.cloudConfig); status == 0 || !strings.Contains(stderr, "replace list") {
		t.Errorf("revoked again: status %d, %s", status, stderr)
	}
	for _, bad := range [][]string{{"replace", "add"}, {"replace", "add", "--keep", "x"}, {"replace", "revoke", "x"}, {"replace"}} {
		if _, stderr, status := run(t, "touchline-cloud", append(bad, "--config", s.cloudConfig)...); status == 0 || !strings.Contains(stderr, "touchline-cloud") {
			t.Errorf("%v: status %d, %s", bad, status, stderr)
		}
	}
}
