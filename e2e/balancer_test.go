package e2e

import (
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"
)

// fleetSize is how many gateways there are beside three processes.
func fleetSize() int {
	if long() {
		return 300
	}
	return 30
}

// TestBalancer_HAProxyMovesGatewaysAndLosesNothing has three nodes on one store
// behind HAProxy with the file of deploy/, and gateways over WebSockets and over
// HTTP: one node is drained, one is added, the load balancer is reloaded, and one
// node is killed.
func TestBalancer_HAProxyMovesGatewaysAndLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, onSQLite(t), 4, drainsBehindHAProxy)
	c.moveBehindHAProxy()
}

const drainsBehindHAProxy = "drain_delay = \"3s\"\ndrain = \"1s\""

func (c *cluster) moveBehindHAProxy() {
	t := c.t
	t.Helper()
	c.startNodes(0, 1, 2)
	c.haproxy()
	c.join(fleetSize(), 3)
	c.settle("at first")
	for i, n := range c.nodes[:3] {
		if n.connections() == 0 {
			t.Errorf("node %d has no gateway", i+1)
		}
	}

	// Drain: HAProxy hears of it from the agent, and sends nothing new from then on.
	leaving := c.nodes[0].program
	if err := leaving.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	out := func() bool {
		status := c.haproxyStat("nodes", "n1", "status")
		return strings.HasPrefix(status, "DRAIN") || strings.HasPrefix(status, "DOWN") || strings.HasPrefix(status, "MAINT")
	}
	waitFor(t, "HAProxy to leave node 1 out", out)
	sent := c.haproxyStat("nodes", "n1", "stot")
	c.addBlocks()
	if status := leaving.exit(); status != 0 {
		t.Errorf("a node that drained ended with status %d", status)
	}
	t.Logf("MEASURED the node drained; gateways had to be closed: %t", strings.Contains(leaving.log.String(), "gateways did not leave"))
	c.settle("after a drain")
	if now := c.haproxyStat("nodes", "n1", "stot"); now != sent {
		t.Errorf("HAProxy sent a node that drained %s sessions, and %s when it was out", now, sent)
	}

	// A node that is added takes load: those that have lost theirs come to it.
	c.startNodes(3)
	waitFor(t, "HAProxy to see node 4", func() bool { return strings.HasPrefix(c.haproxyStat("nodes", "n4", "status"), "UP") })

	// A reload keeps what is open, and new ones come in.
	before := c.at()
	if err := c.balancer.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "HAProxy to have begun anew", func() bool { return strings.Count(c.balancer.log.String(), "Loading success") >= 2 })
	c.settle("after a reload")
	c.stayed(before)

	c.nodes[1].program.expected = true
	c.nodes[1].program.kill()
	c.settle("after kill -9")
	waitFor(t, "node 4 to have gateways", func() bool { return c.nodes[3].connections() > 0 })
	c.audit()
}

// TestBalancer_NginxMovesGatewaysAndLosesNothing is the same behind nginx, which
// learns of its nodes from what becomes of requests.
func TestBalancer_NginxMovesGatewaysAndLosesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t, onSQLite(t), 4, "drain = \"1s\"")
	c.startNodes(0, 1, 2)
	c.nginx()
	c.join(fleetSize(), 3)
	c.settle("at first")
	for i, n := range c.nodes[:3] {
		if n.connections() == 0 {
			t.Errorf("node %d has no gateway", i+1)
		}
	}
	c.addBlocks()
	leaving := c.nodes[0].program
	if status := leaving.terminate(); status != 0 {
		t.Errorf("a node that drained ended with status %d", status)
	}
	t.Logf("MEASURED the node drained; gateways had to be closed: %t", strings.Contains(leaving.log.String(), "gateways did not leave"))
	c.settle("after a drain")

	c.startNodes(3)
	before := c.at()
	if err := c.balancer.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c.settle("after a reload")
	c.stayed(before)
	c.nodes[1].program.expected = true
	c.nodes[1].program.kill()
	c.settle("after kill -9")
	waitFor(t, "node 4 to have gateways", func() bool { return c.nodes[3].connections() > 0 })
	c.audit()
}

// TestBalancer_ConsistentHashKeepsAGatewayAtItsNode has the lines for affinity in
// place of those for the fewest connections.
func TestBalancer_ConsistentHashKeepsAGatewayAtItsNode(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(*cluster){
		"haproxy": func(c *cluster) {
			c.haproxy("\tbalance leastconn\n", "", "#   balance hdr(X-Touchline-Gateway)", "balance hdr(X-Touchline-Gateway)",
				"#   hash-type consistent\n", "hash-type consistent\n", "\tdefault-server weight 100 agent-check agent-inter 2s slowstart 30s\n", "")
		},
		"nginx": func(c *cluster) {
			c.nginx("\t\tleast_conn;\n", "", "#   hash $http_x_touchline_gateway", "hash $http_x_touchline_gateway")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, onSQLite(t), 4, "") // all of those in the file: until its first look HAProxy takes one that is not there for one that is
			c.startNodes(0, 1, 2, 3)
			begin(c)
			c.join(24, 0)
			c.settle("at first")
			before := c.at()
			used := map[int]bool{}
			for id, node := range before {
				if !c.overHTTP(id) {
					used[node] = true
				}
			}
			if len(used) < 2 {
				t.Errorf("all gateways are at %v of four nodes", used)
			}
			c.endBalancer()
			begin(c)
			c.settle("after they came again")
			after := c.at()
			maps.DeleteFunc(before, func(id string, _ int) bool { return c.overHTTP(id) })
			maps.DeleteFunc(after, func(id string, _ int) bool { return c.overHTTP(id) })
			if !maps.Equal(before, after) {
				t.Errorf("gateways were at %v and are at %v", before, after)
			}
		})
	}
}

// overHTTP says whether a gateway of the fleet is behind the middlebox: its
// session's id, and not its own, chooses its node.
func (c *cluster) overHTTP(id string) bool {
	for i := range c.fleet {
		if i%3 == 2 && id == fmt.Sprintf("fleet-%d", i) {
			return true
		}
	}
	return false
}

// stayed reports gateways of the fleet whose WebSocket is no more where it was
// before the load balancer was reloaded.
func (c *cluster) stayed(before map[string]int) {
	c.t.Helper()
	for id, node := range c.at() {
		if was, known := before[id]; known && was != node && strings.HasPrefix(id, "fleet-") && !c.overHTTP(id) {
			c.t.Errorf("%s moved from node %d to %d when the load balancer was reloaded", id, was+1, node+1)
		}
	}
}
