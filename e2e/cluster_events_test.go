package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// events are what can happen to a league, by the names that a plan has.
func (l *league) events() map[string]func() {
	return map[string]func(){
		"kill":  func() { l.happens("kill -9 of a node", l.killNode) },
		"drain": func() { l.happens("a node drains", l.drainNode) },
		"add":   func() { l.addNodes(3, 4) },
		"nats":  l.killNATS,
		"database": func() {
			l.happens("PostgreSQL is stopped and started", func() { l.server.Stop(l.t); l.server.Resume(l.t) })
		},
		"recorder": func() { l.happens("kill -9 of a recorder, and it comes back", l.killRecorder) },
		"reload":   l.reload,

		// Worse: more than one thing at once, or for longer.
		"away":     l.databaseAway,
		"quorum":   l.loseQuorum,
		"balancer": l.killBalancer,
		"storm": func() {
			l.happens("worse: a node, a nats-server, PostgreSQL and a recorder at once", func() {
				l.killNode()
				l.queue.kill(0)
				l.server.Crash(l.t)
				r := l.recorders[0]
				r.program.expected = true
				r.program.kill()
				l.server.Resume(l.t)
				l.queue.start(0)
				l.queue.await(l.queue.servers[0])
				r.start(l.t) // a service manager tries until it finds database and queue
			})
		},
	}
}

// anyNode returns one that runs.
func (l *league) anyNode() *clusterNode {
	l.t.Helper()
	var running []*clusterNode
	for _, n := range l.nodes {
		if n.program != nil && n.program.running() {
			running = append(running, n)
		}
	}
	if len(running) == 0 {
		l.t.Fatal("no node is left: the plan is wrong")
	}
	return running[l.random.IntN(len(running))]
}

func (l *league) killNode() {
	l.t.Helper()
	p := l.anyNode().program
	p.expected = true
	p.kill()
}

func (l *league) drainNode() {
	l.t.Helper()
	p := l.anyNode().program
	if status := p.terminate(); status != 0 {
		l.t.Errorf("a node that drained ended with status %d", status)
	}
	if strings.Contains(p.log.String(), "gateways did not leave") {
		l.t.Log("MEASURED a drain: gateways had to be closed")
	}
}

// killNATS kills the server that leads most streams, and starts it when the
// others have gone on without it.
func (l *league) killNATS() {
	l.t.Helper()
	leads := make([]int, natsCount)
	for _, i := range l.queue.state().leaders {
		leads[i]++
	}
	victim := slices.Index(leads, slices.Max(leads))
	l.happens("kill -9 of a nats-server", func() { l.queue.kill(victim) })
	l.happens("it comes back", func() {
		l.queue.start(victim)
		l.queue.await(l.queue.servers[victim])
	})
}

func (l *league) killRecorder() {
	l.t.Helper()
	r := l.recorders[l.random.IntN(len(l.recorders))]
	r.program.expected = true
	r.program.kill()
	r.start(l.t)
}

// addNodes starts nodes. In the long form it waits until no node has much more
// than its share: a node sheds one gateway of a hundred in each second.
func (l *league) addNodes(indices ...int) {
	l.t.Helper()
	begin := time.Now()
	h := l.happens(fmt.Sprintf("%d nodes are added", len(indices)), func() { l.startNodes(indices...) })
	if !long() {
		return
	}
	waitFor(l.t, "the nodes to have their shares", l.even) // patience is the two minutes that it may take
	h.even, h.spread = time.Since(begin), l.spread()
	l.t.Logf("MEASURED %s: even after %.1f s: %v", h.what, h.even.Seconds(), h.spread)
}

// even says whether no node has a quarter more gateways than the mean.
func (l *league) even() bool {
	sum, most, nodes := 0, 0, 0
	for _, n := range l.spread() {
		if n >= 0 {
			sum, most, nodes = sum+n, max(most, n), nodes+1
		}
	}
	return nodes > 1 && 4*most*nodes <= 5*sum
}

// awayFor is how long something stays away.
func awayFor() time.Duration {
	if long() {
		return time.Minute
	}
	return 10 * time.Second
}

// databaseAway stops PostgreSQL for a while. What is accepted waits in the queue.
func (l *league) databaseAway() {
	l.t.Helper()
	l.happens("worse: PostgreSQL is away for "+awayFor().String(), func() {
		l.server.Stop(l.t)
		l.calm(awayFor())
		l.server.Resume(l.t)
	})
}

// loseQuorum kills two of three nats-servers: nothing can be accepted until one
// of them is back, and gateways keep what they have.
func (l *league) loseQuorum() {
	l.t.Helper()
	l.happens("worse: two of three nats-servers are away for "+awayFor().String(), func() {
		l.queue.kill(0)
		l.queue.kill(1)
		l.calm(awayFor())
		l.queue.start(1)
		l.queue.start(0)
		l.queue.await(l.queue.servers[0])
		l.queue.await(l.queue.servers[1])
	})
}

// killBalancer kills the load balancer with all its workers, and starts it again:
// all connections are gone at once.
func (l *league) killBalancer() {
	l.t.Helper()
	l.happens("worse: the load balancer is killed and comes back", func() {
		l.balancer.expected = true
		l.endBalancer()
		l.front.begin(l)
	})
}

// reload has the load balancer read its file again: no WebSocket moves.
func (l *league) reload() {
	l.t.Helper()
	before := l.sessions()
	l.happens("the load balancer is reloaded", func() {
		if err := l.balancer.cmd.Process.Signal(l.front.reload); err != nil {
			l.t.Fatal(err)
		}
		if l.front.reload == syscall.SIGUSR2 {
			waitFor(l.t, "HAProxy to have begun anew", func() bool { return strings.Count(l.balancer.log.String(), "Loading success") >= 2 })
		}
	})
	for i, n := range l.sessions() {
		v := l.arenas[i]
		sent := strings.Contains(v.uplink.Stats().LastError, "goaway: rebalance") // by a node that has more than its share still
		if !v.requests && !sent && n != before[i] {
			l.t.Errorf("%s had to connect anew when the load balancer was reloaded", v.id)
		}
	}
}
