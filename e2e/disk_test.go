package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// smallMiB leaves room for a buffer, its log and a few MiB of samples: enough
// to see it work, little enough to fill it within a second.
const smallMiB = 16

// everyDoor has a client for each way in; the last carries much that does not
// compress.
var everyDoor = []clientOptions{
	{transport: "mqtt4", qos: 1, samples: 1, window: 16, pace: 4},
	{transport: "mqtt5", qos: 1, samples: 1, window: 16, pace: 4},
	{transport: "mqtt5", qos: 2, samples: 1, window: 16, pace: 4},
	{transport: "ws", samples: 2, window: 16, pace: 4},
	{transport: "http", samples: 2, blob: 16 << 10, window: 8, pace: 4},
}

// diskSite is a site whose gateway is on d.
func diskSite(t *testing.T, d *disk, whenFull string, reserve string) *site {
	t.Helper()
	s := newSite(t, fmt.Sprintf("[buffer]\nmax_bytes = \"1GiB\"\nwhen_full = %q\nfree_reserve = %q\n", whenFull, reserve))
	s.moveGateway(d.data())
	return s
}

// TestDiskFull_NothingAcknowledgedIsLost fills the gateway's disk under load,
// and gives the space back. The gateway must say that it is full, to the
// sensors and in its status and log, and go on by itself.
func TestDiskFull_NothingAcknowledgedIsLost(t *testing.T) {
	reserves := []string{"0B"}
	if long() {
		reserves = append(reserves, "1MiB")
	}
	for _, kind := range diskKinds {
		for _, policy := range []string{"refuse", "evict_oldest"} {
			for _, reserve := range reserves {
				t.Run(fmt.Sprintf("%s/%s/reserve=%s", kind.name, policy, reserve), func(t *testing.T) {
					d := kind.mount(t, smallMiB)
					s := diskSite(t, d, policy, reserve)
					s.evicts = policy == "evict_oldest"
					s.startCloud()
					s.startGateway()
					c := s.publish(everyDoor...)
					c.more(t, 500)
					d.fill()
					waitFor(t, "the status to say full", func() bool { return s.status().Buffer.State == "full" })
					waitFor(t, "every door to refuse", c.everyDoorRefused)
					before := c.count()
					d.empty()
					waitFor(t, "the status to say ok", func() bool { return s.status().Buffer.State == "ok" })
					c.more(t, 500)
					c.finish(t)
					s.drained()
					if !s.gateway.running() {
						t.Fatalf("the gateway ended with status %d", s.gateway.exit())
					}
					if log := s.gateway.log.String(); !strings.Contains(log, "state=full") || !strings.Contains(log, "accepts samples again") {
						t.Errorf("the log does not say that the buffer was full, or that it is no longer:\n%s", log)
					}
					evicted := s.status().Buffer.Evicted
					v := s.audit(c)
					if v.lost > evicted || evicted == 0 && !v.holds() || v.doubled > 0 || v.foreign > 0 {
						t.Errorf("%d evicted: %s", evicted, v)
					}
					t.Logf("MEASURED full disk, %s: refusals %v; %d samples acknowledged before space returned; %d evicted; %s",
						strings.TrimPrefix(t.Name(), "TestDiskFull_NothingAcknowledgedIsLost/"), c.refusals(), before, evicted, v)
				})
			}
		}
	}
}

// everyDoorRefused says whether each door did in its own words what it can
// do; MQTT 3.1.1 has no word for it but silence.
func (c *crowd) everyDoorRefused() bool {
	for _, one := range c.clients {
		how := map[string]string{"mqtt5": "mqtt5 0x97", "ws": "ws", "http": "http 503"}[one.transport]
		if how != "" && one.refused(how) == 0 {
			return false
		}
	}
	return true
}

func (c *crowd) refusals() map[string]int {
	all := map[string]int{}
	for _, one := range c.clients {
		one.mu.Lock()
		for how, n := range one.refusals {
			all[how] += n
		}
		one.mu.Unlock()
	}
	return all
}
