package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// metric is what the cloud's /metrics says of one, without labels.
func (s *site) metric(name string) float64 {
	s.t.Helper()
	for line := range strings.Lines(string(s.get(s.cloudPort, "/metrics"))) {
		if value, ok := strings.CutPrefix(line, "touchline_cloud_"+name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				s.t.Fatalf("metric %s: %v", name, err)
			}
			return n
		}
	}
	s.t.Fatalf("there is no metric %s", name)
	return 0
}

// TestOutage_OfTheStoreUnderLoad ends PostgreSQL while a gateway sends through the
// queue. The node accepts until the stream is full, and then has the gateway
// pause; a gateway that is killed meanwhile comes in again; when PostgreSQL
// is back all goes on by itself, and nothing is lost or there twice. The long
// form's outage is ten minutes.
func TestOutage_OfTheStoreUnderLoad(t *testing.T) {
	outage, blob := time.Duration(0), 12<<10 // some MB a second: the stream is full in seconds
	if long() {
		outage, blob = 10*time.Minute, 900 // in some minutes
	}
	s, server := newSiteOn(t, engine{postgres: true, queue: true}, "max_bytes = \"16MiB\"\n")
	s.startCloud()
	s.startGateway()
	c := s.publish(
		clientOptions{transport: "http", samples: 2, blob: blob, window: 8, pace: 1},
		clientOptions{transport: "mqtt5", qos: 1, samples: 2, blob: blob, window: 16, pace: 1},
		clientOptions{transport: "ws", samples: 5, window: 32, pace: 1},
	)
	c.more(t, 500)
	waitFor(t, "the first samples to be stored", func() bool { return s.metric("samples_stored_total") > 0 })
	full := s.metric("window_bytes")

	server.Crash(t)
	began := time.Now()
	accepted, acknowledged := s.metric("blocks_accepted_total"), c.count()
	ready := func() bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", s.cloudPort))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	waitFor(t, "blocks to be accepted without the store", func() bool { return s.metric("blocks_accepted_total") > accepted+20 })
	if !ready() {
		t.Error("a node that accepts blocks is not ready")
	}
	s.gateway.kill()
	s.startGateway()
	waitFor(t, "a gateway that was killed to come in without the store", func() bool {
		st, err := s.tryStatus()
		return err == nil && st.Uplink.State == "connected"
	})
	for before := s.metric("window_bytes"); before == full; before = s.metric("window_bytes") { // however long that takes
		pause(t.Context(), 100*time.Millisecond)
		if time.Since(began) > outage+patience {
			t.Fatal("the stream does not get full")
		}
	}
	shrunk, taken := time.Since(began), s.metric("blocks_accepted_total")-accepted
	pause(t.Context(), outage-time.Since(began))
	if lost := s.status().Buffer.Evicted; lost > 0 {
		t.Fatalf("the gateway's buffer evicted %d samples: this test is too large for it", lost)
	}
	away, sensors := time.Since(began), c.count()-acknowledged
	if sensors == 0 {
		t.Error("sensors were acknowledged nothing while the store was away")
	}
	server.Resume(t)

	c.more(t, 500)
	c.finish(t)
	s.drainedWithin(t, 2*patience)
	waitFor(t, "the window to be what it was", func() bool { return s.metric("window_bytes") == full })
	back := time.Since(began) - away
	repeats := s.metric("block_repeats_total")
	if v := s.audit(c); !v.holds() || v.acked != v.sent {
		t.Error(v)
	} else {
		t.Logf("MEASURED PostgreSQL away for %s: %.0f blocks accepted into a stream of 16 MiB in %s, then windows shrank; sensors were acknowledged %d samples meanwhile; all stored and windows whole %s after it was back, %.0f blocks came twice; %s",
			away.Round(time.Second), taken, shrunk.Round(time.Second), sensors, back.Round(time.Second), repeats, v)
	}
}

// drainedWithin is drained with another patience.
func (s *site) drainedWithin(t *testing.T, patience time.Duration) {
	t.Helper()
	for began := time.Now(); s.status().Buffer.Samples > 0; pause(t.Context(), 100*time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("the buffer holds %d samples after %s", s.status().Buffer.Samples, patience)
		}
	}
}

// A node that drains goes on recording what its own queue holds: its gateways are
// told what is stored until the last of them has left.
func TestQueue_ANodeThatDrainsRecordsOn(t *testing.T) {
	s, _ := newSiteOn(t, engine{queue: true}, "[balancer]\ndrain_delay = \"5m\"\n")
	s.startCloud()
	s.startGateway()
	c := s.publish(clientOptions{transport: "ws", samples: 5, window: 32, pace: 1})
	waitFor(t, "the first samples to be stored", func() bool { return s.metric("samples_stored_total") > 0 })
	if err := s.cloud.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the node to drain", func() bool { return s.metric("draining") == 1 })
	c.more(t, 100)
	c.finish(t)
	s.drained()
}
