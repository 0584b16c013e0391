package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"touchline/internal/uml"
)

// clockHeartbeat is that of the session that the clock jumps under: long
// enough for a busy machine, short enough to wait for a few.
const clockHeartbeat = 3 * time.Second

// TestUML_ClockJumps lets the wall clock of the gateway's machine jump while
// clients publish: first with a backlog, which must not age by it, then under
// a session, which must not be dropped by it.
func TestUML_ClockJumps(t *testing.T) {
	if !uml.Inside() {
		needGuests(t)
		boot(t, guestOptions{shared: t.TempDir()}).finish()
		return
	}
	// A jump that counted as age would evict at once.
	s := newSite(t, "[buffer]\nmax_age = \"1h\"\nfree_reserve = \"1MiB\"\nwhen_full = \"evict_oldest\"\n")
	appendFile(t, s.cloudConfig, "heartbeat = \""+clockHeartbeat.String()+"\"\n")
	s.startGateway()
	c := s.publish(
		clientOptions{transport: "mqtt4", qos: 1, samples: 1, window: 16, pace: 1},
		clientOptions{transport: "mqtt5", qos: 2, samples: 1, window: 16, pace: 1},
		clientOptions{transport: "ws", samples: 2, window: 16, pace: 1},
		clientOptions{transport: "http", samples: 2, window: 4, pace: 1},
	)
	jumps := []struct {
		name string
		to   func(now time.Time) time.Time
	}{
		{"4 years on", func(now time.Time) time.Time { return now.AddDate(4, 0, 0) }},
		{"6 hours back", func(now time.Time) time.Time { return now.Add(-6 * time.Hour) }},
		// Linux takes no time that is less than it has been up.
		{"to 1970", func(time.Time) time.Time { return time.Unix(0, 0).Add(time.Hour) }},
		{"back to the present", nil},
	}
	began := time.Now() // with the monotonic clock, which does not jump
	truth := began.Round(0)
	jump := func(to func(time.Time) time.Time) {
		now := truth.Add(time.Since(began))
		if to != nil {
			now = to(now)
		}
		if err := uml.SetClock(now); err != nil {
			t.Fatal(err)
		}
		if off := time.Now().Round(0).Sub(now); off < 0 || off > time.Hour {
			t.Fatalf("the clock was set to %s, and is %s off", now, off)
		}
	}
	done := 0
	// With a backlog: the cloud was never there. Ages are looked at each
	// second.
	c.more(t, 200)
	for _, j := range jumps {
		jump(j.to)
		c.more(t, 200)
		pause(t.Context(), 2*time.Second)
		if st := s.clockStatus(); st.Buffer.Evicted != 0 || st.Buffer.CommitErrors != 0 {
			t.Fatalf("clock %s, with a backlog: %+v", j.name, st)
		}
		done++
	}
	// A gateway that starts in 1970 has the backlog of the present.
	jump(jumps[2].to)
	c.hold(t)
	s.gateway.terminate()
	s.startGateway()
	c.release()
	jump(nil)
	// Under a session.
	s.startCloud()
	waitFor(t, "a session", func() bool { return s.clockStatus().Uplink.State == "connected" })
	for range 2 {
		for _, j := range jumps {
			before := s.clockStatus()
			jump(j.to)
			c.more(t, 200)
			pause(t.Context(), 5*clockHeartbeat/2) // a peer that is taken for silent is dropped after two
			c.more(t, 1)
			after := s.clockStatus()
			if after.Uplink.State != "connected" || after.Uplink.Dials != before.Uplink.Dials || after.Uplink.Session != before.Uplink.Session {
				t.Errorf("clock %s: the session was dropped: before %+v, after %+v", j.name, before, after)
			}
			if after.Buffer.Evicted != 0 || after.Buffer.CommitErrors != 0 {
				t.Errorf("clock %s: %+v", j.name, after)
			}
			if after.Uplink.Stored <= before.Uplink.Stored {
				t.Errorf("clock %s: nothing was stored any more: before %+v, after %+v", j.name, before, after)
			}
			done++
		}
	}
	c.finish(t)
	s.drained()
	if log := s.gateway.log.String(); strings.Contains(log, "session ended") {
		t.Errorf("the gateway's log knows of a session that ended:\n%s", tail(log, 4<<10))
	}
	v := s.audit(c)
	if !v.holds() || v.acked != v.sent {
		t.Errorf("%s", v)
	}
	t.Logf("MEASURED clock jumps: %d (4 years on, 6 hours back, to 1970, back), 0 sessions dropped, 0 evicted: %s", done, v)
}

// clockStatus is what of the gateway's status a clock could change.
type clockStatus struct {
	Buffer struct {
		Evicted      uint64
		CommitErrors uint64 `json:"commit_errors"`
	}
	Uplink struct {
		State   string
		Session uint64
		Dials   uint64
		Stored  uint64 `json:"samples_stored"`
	}
}

func (s *site) clockStatus() (st clockStatus) {
	s.t.Helper()
	if err := json.Unmarshal(s.get(s.http, "/v1/status"), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// appendFile adds to a file.
func appendFile(t *testing.T, name, text string) {
	t.Helper()
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name, string(before)+text)
}
