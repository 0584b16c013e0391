package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// natsProgram builds nats-server, of the version that go.mod has, once.
var natsProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(bin, "nats-server")
	out, err := exec.Command("go", "build", "-o", path, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build nats-server: %w\n%s", err, out)
	}
	return path, nil
})

// natsServers are three processes that make a queue, each with the file of deploy/.
type natsServers struct {
	t       *testing.T
	servers []*natsServer
	client  http.Client // of their monitors
}

type natsServer struct {
	name          string
	port, monitor int
	config        string
	program       *program
}

const natsCount = 3

func startNATS(t *testing.T) *natsServers {
	t.Helper()
	t.Helper()
	path, err := natsProgram()
	if err != nil {
		t.Fatal(err)
	}
	q := &natsServers{t: t, client: http.Client{Timeout: 5 * time.Second}}
	t.Cleanup(q.client.CloseIdleConnections)
	routes, routeList := make([]int, natsCount), make([]string, natsCount)
	for i := range routes {
		routes[i] = freePort(t)
		routeList[i] = fmt.Sprintf("\"nats-route://127.0.0.1:%d\"", routes[i])
	}
	for i := range natsCount {
		s := &natsServer{name: fmt.Sprintf("n%d", i+1), port: freePort(t), monitor: freePort(t), config: filepath.Join(t.TempDir(), "nats-server.conf")}
		writeFile(t, s.config, deployed(t, "nats-server.conf",
			"server_name: n1", "server_name: "+s.name,
			`listen: "10.0.0.21:4222"`, fmt.Sprintf(`listen: "127.0.0.1:%d"`, s.port),
			`http: "10.0.0.21:8222"`, fmt.Sprintf(`http: "127.0.0.1:%d"`, s.monitor),
			"/var/lib/nats", filepath.Join(t.TempDir(), "nats"),
			`listen: "10.0.0.21:6222"`, fmt.Sprintf(`listen: "127.0.0.1:%d"`, routes[i]),
			`routes: ["nats-route://10.0.0.21:6222", "nats-route://10.0.0.22:6222", "nats-route://10.0.0.23:6222"]`, "routes: ["+strings.Join(routeList, ", ")+"]"))
		q.servers = append(q.servers, s)
		if out, err := exec.Command(path, "-t", "-c", s.config).CombinedOutput(); err != nil {
			t.Fatalf("nats-server -t: %v\n%s", err, out)
		}
		q.start(i)
	}
	for _, s := range q.servers {
		q.await(s)
	}
	return q
}

func (q *natsServers) start(i int) {
	q.t.Helper()
	path, err := natsProgram()
	if err != nil {
		q.t.Fatal(err)
	}
	q.servers[i].program = start(q.t, path, "-c", q.servers[i].config)
}

// await waits until a server has all that the others have.
func (q *natsServers) await(s *natsServer) {
	q.t.Helper()
	waitFor(q.t, "nats-server "+s.name+" to be well", func() bool {
		if !s.program.running() {
			q.t.Fatalf("nats-server %s ended with status %d:\n%s", s.name, s.program.exit(), s.program.log)
		}
		resp, err := q.client.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", s.monitor))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// kill ends a server with SIGKILL.
func (q *natsServers) kill(i int) {
	q.servers[i].program.expected = true
	q.servers[i].program.kill()
}

// settings are those of a node or recorder.
func (q *natsServers) settings(shards int, record bool) string {
	var urls, monitors []string
	for _, s := range q.servers {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", s.port))
		monitors = append(monitors, fmt.Sprintf("\"http://127.0.0.1:%d\"", s.monitor))
	}
	return fmt.Sprintf("[queue]\nnats = %q\nnats_monitors = [%s]\nreplicas = %d\nshards = %d\nrecord = %t\n",
		strings.Join(urls, ","), strings.Join(monitors, ", "), natsCount, shards, record)
}

// A queueState is what the streams hold, and ever held.
type queueState struct {
	waiting, ever uint64 // blocks
	leaders       map[string]int
}

// state asks the servers' monitors; of a stream the one counts that has most.
func (q *natsServers) state() queueState {
	type stream struct{ waiting, ever uint64 }
	streams := map[string]stream{}
	st := queueState{leaders: map[string]int{}}
	for i, s := range q.servers {
		if s.program == nil || !s.program.running() {
			continue
		}
		var answer struct {
			Accounts []struct {
				Streams []struct {
					Name    string
					Cluster struct{ Leader string }
					State   struct {
						Messages uint64
						LastSeq  uint64 `json:"last_seq"`
					}
				} `json:"stream_detail"`
			} `json:"account_details"`
		}
		resp, err := q.client.Get(fmt.Sprintf("http://127.0.0.1:%d/jsz?streams=true", s.monitor))
		if err != nil {
			continue // it is on its way up or down
		}
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if err != nil {
			continue
		}
		for _, a := range answer.Accounts {
			for _, one := range a.Streams {
				known := streams[one.Name]
				if one.State.LastSeq >= known.ever {
					streams[one.Name] = stream{one.State.Messages, one.State.LastSeq}
				}
				if one.Cluster.Leader == s.name {
					st.leaders[one.Name] = i
				}
			}
		}
	}
	for _, one := range streams {
		st.waiting, st.ever = st.waiting+one.waiting, st.ever+one.ever
	}
	return st
}
