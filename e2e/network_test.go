package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"
)

// The tests of this file's family, network_*_test.go, put a network between a
// gateway and its cloud that does what venue networks do. All publish while it
// does, and all end with the audit of the cloud's store: each sample once.

// heartbeat is the shortest that a gateway accepts; tests set it in the cloud so
// that a dead link is found in two seconds.
const heartbeat = time.Second

// networkCrowd sends what a small venue does, through transports that need no
// session, and some of it in blocks that take a slow link a while.
func networkCrowd(blob int) []clientOptions {
	return []clientOptions{
		{transport: "ws", samples: 5, window: 32, pace: 1},
		{transport: "http", samples: 10, blob: blob, window: 4, pace: 1},
	}
}

// tuneNetwork makes a site's cloud ask for pings at an interval; nothing runs yet.
func (s *site) tuneNetwork(interval time.Duration) {
	s.t.Helper()
	editFile(s.t, s.cloudConfig, "listen =", fmt.Sprintf("heartbeat = %q\nlisten =", interval))
}

// uplinkTo gives the gateway other addresses; nothing runs yet.
func (s *site) uplinkTo(urls ...string) {
	s.t.Helper()
	list := ""
	for i, u := range urls {
		if i > 0 {
			list += ", "
		}
		list += strconv.Quote(u)
	}
	editFile(s.t, s.gatewayConfig, fmt.Sprintf("\"ws://127.0.0.1:%d\"", s.cloudPort), list)
}

// session waits until the uplink is connected and returns its session's number.
func (s *site) session() uint64 {
	s.t.Helper()
	return s.sessionAfter(0)
}

// sessionAfter waits for a session newer than that.
func (s *site) sessionAfter(old uint64) (session uint64) {
	s.t.Helper()
	waitFor(s.t, fmt.Sprintf("a session after number %d", old), func() bool {
		st, err := s.tryStatus()
		session = st.Uplink.Session
		return err == nil && st.Uplink.State == "connected" && session > old
	})
	return session
}

// lost waits until the gateway knows that this session is over.
func (s *site) lost(session uint64) {
	s.t.Helper()
	waitFor(s.t, fmt.Sprintf("session %d to be given up", session), func() bool {
		st, err := s.tryStatus()
		return err == nil && (st.Uplink.State != "connected" || st.Uplink.Session != session)
	})
}

// settle lets a crowd finish and the buffer drain, and demands that the cloud
// has each sample once.
func (s *site) settle(c *crowd) *verdict {
	s.t.Helper()
	c.finish(s.t)
	s.drained()
	st := s.status()
	v := s.audit(c)
	if !v.holds() || v.acked != v.sent || v.acked == 0 {
		s.t.Errorf("%s", v)
	}
	s.t.Logf("MEASURED %s: %s; %d sessions, %d dials, %d blocks sent again, worst round trip %.0f ms",
		s.t.Name(), v, st.Uplink.Sessions, st.Uplink.Dials, st.Uplink.Resent, 1000*st.Uplink.RTTWorst)
	return v
}

// postBacklog gives the gateway samples that hardly compress: 8 bytes each are
// the worst that a number can be.
func (s *site) postBacklog(samples int) {
	s.t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	const perPost = 10_000 // about 600 KB
	for first := 0; first < samples; first += perPost {
		var body bytes.Buffer
		for i := first; i < first+perPost; i++ {
			separator := byte(',')
			if i == first {
				separator = '['
			}
			body.WriteByte(separator)
			fmt.Fprintf(&body, `{"n":"backlog/v","t":%d.%03d,"v":%g}`, messageTime(0)/1e9+int64(i/1000), i%1000, random.Float64())
		}
		body.WriteByte(']')
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/samples?sensor=backlog", s.http), "application/senml+json", &body)
		if err != nil {
			s.t.Fatal(err)
		}
		said, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			s.t.Fatalf("POST of the backlog: %s: %s", resp.Status, said)
		}
	}
}

// networkSeed returns the seed of TOUCHLINE_NETWORK_SEED, else a new one, and
// names it where the test fails.
func networkSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("TOUCHLINE_NETWORK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TOUCHLINE_NETWORK_SEED: %v", err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("TOUCHLINE_NETWORK_SEED=%d repeats what the network did", seed)
		}
	})
	return seed
}

// times returns n in the long form, and short otherwise.
func times(short, n int) int {
	if long() {
		return n
	}
	return short
}

// since is how tests print times, which they never assert.
func since(begin time.Time) string { return fmt.Sprintf("%.1f s", time.Since(begin).Seconds()) }

// quantile of a list that is sorted and not empty.
func quantile(sorted []float64, q float64) float64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
