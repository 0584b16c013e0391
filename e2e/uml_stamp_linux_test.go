package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"touchline/internal/uml"
)

// stampTolerance: a clock that was set is noticed within a second.
const stampTolerance = 2 * time.Second

// TestUML_SamplesOf1970GetTheirTimes boots a machine without a clock, lets the
// gateway stamp samples there, before and after a restart, sent before and
// after the clock is set, and holds that in the end each has the time at which
// it came.
func TestUML_SamplesOf1970GetTheirTimes(t *testing.T) {
	if !uml.Inside() {
		needGuests(t)
		boot(t, guestOptions{shared: t.TempDir()}).finish()
		return
	}
	began := time.Now() // with the monotonic clock
	truth := func() time.Time { return began.Round(0).Add(time.Since(began)) }
	if err := uml.SetClock(time.Unix(0, 0).Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "[buffer]\nfree_reserve = \"1MiB\"\n")
	var posts []stamped
	post := func(n int) {
		for range n {
			p := stamped{from: truth()}
			url := fmt.Sprintf("http://127.0.0.1:%d/v1/samples?sensor=belt", s.http)
			resp, err := http.Post(url, "application/json", strings.NewReader(fmt.Sprintf(`{"n":%d}`, len(posts))))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusNoContent {
				t.Fatalf("post: %s", resp.Status)
			}
			p.to = truth()
			posts = append(posts, p)
		}
	}
	s.startGateway()
	post(50) // kept until there is a cloud
	s.startCloud()
	s.drained()
	post(50) // sent at once, with a wrong time
	s.drained()
	s.gateway.terminate()
	s.startGateway()
	post(50) // by another process of the same boot
	s.drained()
	if wrong := s.wrongTimes(posts); wrong != len(posts) {
		t.Fatalf("%d of %d samples have a wrong time before the clock is set: want all", wrong, len(posts))
	}
	if err := uml.SetClock(truth()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the times to be corrected", func() bool { return s.wrongTimes(posts) == 0 })
	post(50)
	s.drained()
	if wrong := s.wrongTimes(posts); wrong > 0 {
		t.Errorf("%d of %d samples have a wrong time", wrong, len(posts))
	}
	t.Logf("MEASURED a boot in 1970: %d samples stamped by the gateway, before the clock was set and after, 0 with a wrong time in the end", len(posts))
}

// A stamped sample came between two times.
type stamped struct{ from, to time.Time }

// wrongTimes counts the samples that the cloud has with another time than that
// at which they came. Each must be there once.
func (s *site) wrongTimes(posts []stamped) (wrong int) {
	s.t.Helper()
	seen := make([]int, len(posts))
	s.eachRow(func(r []string) {
		n, err := strconv.Atoi(r[5])
		at, timeErr := strconv.ParseInt(r[0], 10, 64)
		if err != nil || timeErr != nil || n < 0 || n >= len(posts) {
			s.t.Fatalf("the cloud has %q", r)
		}
		seen[n]++
		stamp := time.Unix(0, at)
		if stamp.Before(posts[n].from.Add(-stampTolerance)) || stamp.After(posts[n].to.Add(stampTolerance)) {
			wrong++
		}
	})
	for n, times := range seen {
		if times != 1 {
			s.t.Errorf("sample %d is in the cloud %d times", n, times)
		}
	}
	return wrong
}
