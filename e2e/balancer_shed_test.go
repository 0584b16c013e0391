package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestBalancer_ANodeThatJoinsGetsItsShare adds a node to two that have all
// gateways: none of these would connect anew on its own.
func TestBalancer_ANodeThatJoinsGetsItsShare(t *testing.T) {
	if !long() {
		t.Skip("TOUCHLINE_TEST_LONG is not set: this waits for a minute, in which each node sends away a hundredth of its gateways a second; cloud: TestShed_… has the same nodes with a faster clock")
	}
	t.Parallel()
	const gateways = 120
	c := newCluster(t, onSQLite(t), 3, "shed_above = 20")
	c.startNodes(0, 1)
	c.haproxy()
	c.join(gateways-1, 1)
	c.settle("at two nodes")
	c.startNodes(2)
	joined := time.Now()
	slowly := time.NewTicker(200 * time.Millisecond) // three scrapes each
	defer slowly.Stop()
	var all []int
	waitFor(t, "each node to have its share", func() bool {
		<-slowly.C
		all = c.spread()
		for _, n := range all {
			if float64(n) > 1.2*gateways/3 {
				return false
			}
		}
		return all[0]+all[1]+all[2] >= gateways
	})
	t.Logf("MEASURED %d gateways at two nodes were even %s after a third one was ready: %v", gateways, since(joined), all)
	c.settle("at three nodes")
	waitFor(t, "the list to say what the nodes have", func() bool {
		rows, sessions := c.listed(), 0
		for _, r := range rows {
			sessions += r.Sessions
		}
		return len(rows) == 3 && sessions == gateways
	})
	c.nodes[2].program.expected = true
	c.nodes[2].program.kill()
	waitFor(t, "the list to say that one is lost", func() bool {
		states := map[string]int{}
		for _, r := range c.listed() {
			states[r.State]++
		}
		return states["ready"] == 2 && states["lost"] == 1
	})
	c.audit()
}

// A listed node is one as `touchline-cloud nodes --json` shows it.
type listed struct {
	Name, State string
	Sessions    int
	Age         *float64 `json:"age_seconds"`
}

func (c *cluster) listed() (rows []listed) {
	c.t.Helper()
	out, stderr, status := run(c.t, "touchline-cloud", "nodes", "--json", "--config", c.nodes[0].config)
	if err := json.Unmarshal([]byte(out), &rows); err != nil || status != 0 {
		c.t.Fatalf("nodes --json: %v, status %d\n%s%s", err, status, out, stderr)
	}
	return rows
}

func TestNodes_AreListedWhileTheyRun(t *testing.T) {
	t.Parallel()
	c := newCluster(t, onSQLite(t), 2, "")
	if rows := c.listed(); rows == nil || len(rows) != 0 {
		t.Errorf("nodes --json of a store without nodes: %v, want []", rows)
	}
	c.startNodes(0, 1)
	waitFor(t, "both to be listed", func() bool { return len(c.listed()) == 2 })
	for _, r := range c.listed() {
		if r.State != "ready" || r.Age == nil || *r.Age < 0 {
			t.Errorf("%+v: want ready, and when it was seen", r)
		}
	}
	table, _, status := run(t, "touchline-cloud", "nodes", "--config", c.nodes[0].config)
	if lines := strings.Split(table, "\n"); status != 0 || len(lines) != 4 || !strings.HasPrefix(lines[0], "NODE ") || !strings.Contains(table, " 0 of 10000 ") {
		t.Errorf("nodes: status %d\n%s", status, table)
	}
	for i, left := range []int{1, 0} {
		if status := c.nodes[i].program.terminate(); status != 0 {
			t.Errorf("a node that stopped ended with status %d", status)
		}
		if rows := c.listed(); len(rows) != left {
			t.Errorf("%d nodes run, and listed are %+v", left, rows)
		}
	}
}
