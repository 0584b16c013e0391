package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"touchline/internal/pgtest"
	"touchline/uplink"
)

// TestCluster_LosesNothingBehindHAProxy is the cloud as a cluster, each part of it
// a process of its own: nodes, HAProxy, PostgreSQL, three nats-servers, recorders,
// and gateways that replay recordings. One part after the other is killed, stopped, added or
// reloaded, under load. At the end what gateways were told is compared with
// what the store has, block by block. TOUCHLINE_CLUSTER_SEED chooses who is hit.
func TestCluster_LosesNothingBehindHAProxy(t *testing.T) {
	t.Parallel()
	testCluster(t, behindHAProxy)
}

// TestCluster_LosesNothingBehindNginx is the same behind nginx.
func TestCluster_LosesNothingBehindNginx(t *testing.T) {
	if !long() {
		t.Skip("TOUCHLINE_TEST_LONG is not set (make test-cluster sets it): the short form is behind HAProxy only")
	}
	testCluster(t, behindNginx)
}

// A front is a load balancer: how it begins, and how it is told to read its file again.
type front struct {
	begin  func(*league)
	reload syscall.Signal
}

var (
	behindHAProxy = front{func(l *league) {
		four := `server n4 "${TOUCHLINE_NODE4-10.0.0.14:8090}" agent-port "${TOUCHLINE_AGENT4-9777}"` + "\n"
		track := `server n4 "${TOUCHLINE_NODE4-10.0.0.14:8090}" track nodes/n4` + "\n"
		l.haproxy(four, four+"\t"+strings.ReplaceAll(strings.ReplaceAll(four, "n4", "n5"), "4", "5"),
			track, track+"\t"+strings.ReplaceAll(strings.ReplaceAll(track, "n4", "n5"), "4", "5"))
	}, syscall.SIGUSR2}
	behindNginx = front{func(l *league) { l.nginx() }, syscall.SIGHUP}
)

// A league is a cluster and all that it stands on, under load.
type league struct {
	*cluster
	front     front
	seed      uint64
	random    *rand.Rand
	server    *pgtest.Server
	url       string // of the database
	queue     *natsServers
	recorders []*recorder
	arenas    []*arena
	watch     *watch
	rows      []happening
	machine   machineTime // at the begin of the last event
	had       uint64      // samples called stored, at the last event
	repeats   uint64      // at the last event

	silent bool   // the touchline processes have nothing more to send
	finish func() // ends the load; may be called twice
	quit   func() // ends uplinks and watch; may be called twice
}

// A recorder is a process that takes from the queue.
type recorder struct {
	config  string
	program *program
}

// A leagueSize says how big it is.
type leagueSize struct {
	gateways, sites int
	interval        time.Duration // of a gateway's blocks
	calm            time.Duration // between events
	drain           string        // what nodes have in [balancer]
}

func leagueOf() leagueSize {
	if long() {
		// 500 blocks of 32 in 2 s are 8,000 samples a second, beside two cores' TLS, a
		// load balancer, five nodes, three queues and the database.
		return leagueSize{500, 3, 2 * time.Second, 15 * time.Second, "drain_delay = \"5s\"\ndrain = \"5s\"\nshed_above = 20\n"}
	}
	return leagueSize{23, 1, time.Second, 0, drainsBehindHAProxy + "\n"}
}

func newLeague(t *testing.T, f front) *league {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("TOUCHLINE_CLUSTER_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TOUCHLINE_CLUSTER_SEED: %v", err)
		}
	}
	t.Logf("TOUCHLINE_CLUSTER_SEED=%d repeats who is hit", seed)
	const shards = 4
	l := &league{front: f, seed: seed, random: rand.New(rand.NewPCG(seed, seed)), server: pgtest.Start(t, os.Getenv("TOUCHLINE_TEST_PGDIR"))}
	l.url = l.server.Database(t)
	l.queue = startNATS(t)
	store := onDatabase(t, l.url)
	l.cluster = newCluster(t, store, 5, leagueOf().drain)
	for _, n := range l.nodes {
		text, err := os.ReadFile(n.config)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, n.config, string(text)+l.queue.settings(shards, false))
	}
	for i := range 2 {
		r := &recorder{config: l.file(fmt.Sprintf("recorder%d.toml", i+1))}
		writeFile(t, r.config, store.settings+"\n"+l.queue.settings(shards, true))
		l.recorders = append(l.recorders, r)
	}
	return l
}

func (r *recorder) start(t *testing.T) {
	t.Helper()
	r.program = start(t, "touchline-cloud", "record", "--config", r.config)
}

// keepLogs writes what all processes have said to the folder that
// TOUCHLINE_CLUSTER_LOGS names.
func (l *league) keepLogs() {
	dir := os.Getenv("TOUCHLINE_CLUSTER_LOGS")
	if dir == "" {
		return
	}
	keep := func(name string, p *program) {
		if p != nil {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d.log", name, p.cmd.Process.Pid)), []byte(p.log.String()), 0o600); err != nil {
				l.t.Errorf("keep log: %v", err)
			}
		}
	}
	keep("balancer", l.balancer)
	for i, n := range l.nodes {
		keep(fmt.Sprintf("node%d", i+1), n.program)
	}
	for i, r := range l.recorders {
		keep(fmt.Sprintf("recorder%d", i+1), r.program)
	}
	for _, s := range l.queue.servers {
		keep("nats-"+s.name, s.program)
	}
}

// begin starts everything, and returns when all are connected.
func (l *league) begin(size leagueSize) {
	l.t.Helper()
	l.startNodes(0, 1, 2)
	for _, r := range l.recorders {
		r.start(l.t)
	}
	l.front.begin(l)
	l.addGateways(size.gateways, size.sites)
	l.watch = newWatch(l.arenas, l.queue)
	var parts sync.WaitGroup
	playing, finish := context.WithCancel(context.Background())
	running, quit := context.WithCancel(context.Background())
	l.finish = finish
	l.quit = func() {
		finish()
		quit()
		parts.Wait()
	}
	l.t.Cleanup(func() {
		l.quit()
		l.keepLogs()
	})
	begin := time.Now()
	for _, v := range l.arenas {
		parts.Go(func() {
			if err := v.uplink.Run(running); err != nil {
				l.t.Error(err)
			}
		})
	}
	for _, s := range l.sites {
		s.startGateway()
		l.crowds = append(l.crowds, s.publish(networkCrowd(500)...))
	}
	parts.Go(func() { l.play(playing, size.interval) })
	waitFor(l.t, "all gateways to be connected", func() bool { return l.without() == "" })
	parts.Go(func() { l.watch.run(running) })
	l.note(happening{what: "all have come", moved: len(l.arenas), whole: time.Since(begin), even: -1}, nil)
}

// without says who has no session; "" is nobody.
func (l *league) without() string {
	for _, v := range l.arenas {
		if st := v.uplink.Stats(); st.State != uplink.Connected {
			return fmt.Sprintf("%s, which is not connected: %+v", v.id, st)
		}
	}
	for _, s := range l.sites {
		if st, err := s.tryStatus(); err != nil || st.Uplink.State != "connected" {
			return fmt.Sprintf("%s, which is not connected: %+v %v", s.venue, st, err)
		}
	}
	return ""
}

// whole waits until all are connected, and have heard that what they had and the
// next block are stored: what was recorded before the event says little.
func (l *league) whole(what string) {
	l.t.Helper()
	var had []uint64
	for _, v := range l.arenas {
		next := v.played()
		if !l.silent {
			next++ // the first sample of the next block
		}
		had = append(had, next)
	}
	var before []uint64
	for _, s := range l.sites {
		before = append(before, s.status().Uplink.Stored)
	}
	left := "nobody"
	l.t.Cleanup(func() {
		if l.t.Failed() && left != "" {
			l.t.Logf("%s: it was waited for %s", what, left)
		}
	})
	waitFor(l.t, "all gateways to be connected and what they had to be stored: "+what, func() bool {
		left = l.without()
		for i, v := range l.arenas {
			if left == "" && !v.hasAll(had[i]) {
				left = fmt.Sprintf("%s, which had %d samples and was told that %v are stored: %+v", v.id, had[i]-1, v.told(), v.uplink.Stats())
			}
		}
		for i, s := range l.sites {
			if st, err := s.tryStatus(); left == "" && !l.silent && (err != nil || st.Uplink.Stored <= before[i]) {
				left = fmt.Sprintf("%s, of which nothing was stored since: %+v %v", s.venue, st, err)
			}
		}
		return left == ""
	})
}

// maxAway is how long a gateway may be without a session, whatever stops. One
// that has no WebSocket is tried at a node that drains until that is gone, where
// the load balancer can't send a POST once more (docs/scaling.md): it may be longer.
const maxAway = 5 * time.Second

// happens lets something happen under load, waits until all is whole again, and
// holds what gateways were told against the store.
func (l *league) happens(what string, do func()) *happening {
	l.t.Helper()
	l.watch.reset()
	l.machine = readMachine()
	sessions := l.sessions()
	begin := time.Now()
	do()
	l.whole(what)
	h := happening{what: what, whole: time.Since(begin), even: -1, limited: !strings.HasPrefix(what, "worse: ")}
	return l.note(h, sessions)
}

// note completes a row of the table. sessions were had before.
func (l *league) note(h happening, sessions []uint64) *happening {
	l.t.Helper()
	others := l.machine.others()
	now := l.sessions()
	for i := range sessions {
		if now[i] != sessions[i] {
			h.moved++
		}
	}
	seen := l.watch.reset()
	h.away, h.http, h.deep, h.spread = seen.longest, seen.requests, seen.deepest, l.spread()
	var stored uint64
	for _, v := range l.arenas {
		stored += v.told().Count()
	}
	h.stored, l.had = stored-l.had, stored
	repeats := l.compareTold()
	h.repeat, l.repeats = repeats-min(repeats, l.repeats), repeats
	l.rows = append(l.rows, h)
	l.t.Logf("MEASURED %s: %d gateways moved; without a session for %.2f s at most (%s), by HTTP %.2f s; whole after %.2f s; %d samples called stored, %d repeats dropped, %d blocks in the queue at most; at the nodes: %v; others had %.0f %% of this machine",
		h.what, h.moved, h.away.Seconds(), seen.who, h.http.Seconds(), h.whole.Seconds(), h.stored, h.repeat, h.deep, h.spread, 100*others)
	// What others take of the machine is not ours: with half of it all takes twice
	// as long.
	if limit := time.Duration(float64(maxAway) / (1 - others)); long() && h.limited && h.away > limit {
		l.t.Errorf("%s: a gateway had no session for %s, want at most %s (%s with what others had of this machine); %s", h.what, h.away, maxAway, limit, seen.who)
	}
	return &l.rows[len(l.rows)-1]
}

// calm lets the load go on for a while.
func (l *league) calm(d time.Duration) { pause(l.t.Context(), d) }

// TestCluster_LosesNothingWhenMuchIsAway is about the days on which more than
// one thing stops, or one for longer: gateways may lose their sessions then, and
// no sample.
func TestCluster_LosesNothingWhenMuchIsAway(t *testing.T) {
	if !long() {
		t.Skip("TOUCHLINE_TEST_LONG is not set (make test-cluster sets it): it takes some minutes")
	}
	testCluster(t, behindHAProxy, "away", "quorum", "balancer", "add", "storm")
}

func testCluster(t *testing.T, f front, plan ...string) {
	size := leagueOf()
	l := newLeague(t, f)
	l.begin(size)
	for i, n := range l.spread()[:3] {
		if n == 0 {
			t.Errorf("node %d has no gateway", i+1)
		}
	}
	if len(plan) == 0 {
		plan = l.plan()
	}
	for _, name := range plan {
		l.calm(size.calm)
		do := l.events()[name]
		if do == nil {
			t.Fatalf("no event is called %q", name)
		}
		do()
	}
	l.calm(size.calm)
	l.audit()
}

// plan is what happens: the nodes first, so that what follows finds the new ones at work.
// TOUCHLINE_CLUSTER_EVENTS is another plan: names of events, with commas; TOUCHLINE_CLUSTER_LOGS a
// folder for what processes say.
func (l *league) plan() []string {
	if text := os.Getenv("TOUCHLINE_CLUSTER_EVENTS"); text != "" {
		return strings.Split(text, ",")
	}
	rest := []string{"nats", "database", "recorder", "reload"}
	l.random.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return append([]string{"kill", "drain", "add"}, rest...)
}
