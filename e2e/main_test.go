// Package e2e tests the whole product: the real programs, real SQLite files,
// real sockets and real clients, and at the end an audit of what the cloud's
// query API gives back. TOUCHLINE_TEST_LONG=1 runs the long forms.
package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bin is the folder of the programs under test, built once without -race.
var bin string

func TestMain(m *testing.M) {
	// A guest has no compiler: its programs come with it (see uml_linux_test.go).
	if bin = os.Getenv("TOUCHLINE_TEST_PROGRAMS"); bin != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "touchline-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "touchline/cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build programs: %v\n%s", err, out)
		os.Exit(1)
	}
	bin = dir
	// Tests that call Parallel wait for networks, most of their time: they are
	// limited by their number, not by the machine's cores.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func long() bool { return os.Getenv("TOUCHLINE_TEST_LONG") != "" }

// patience bounds every wait; it is far above what a busy machine needs.
const patience = 2 * time.Minute

// waitFor polls until ready says so; what names the wait in the failure.
// Polling is for what another process does, which gives no signal.
func waitFor(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %s for %s", patience, what)
		case <-tick.C:
		}
	}
}

// A program is one process under test.
type program struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{}
	err  error // of Wait, after done

	expected bool // its end was meant: its output explains no failure
}

// logBuffer collects output; it may be read while the process writes.
type logBuffer struct {
	mu  sync.Mutex // covers buf
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// programPath is where a program of bin is; an absolute path stays.
func programPath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(bin, name)
}

// start runs one of the programs, or the one at an absolute path; it is killed
// at the end of the test.
func start(t *testing.T, name string, args ...string) *program {
	t.Helper()
	return startBy(t, (*exec.Cmd).Start, name, args...)
}

// startBy is start by way of begin, which may change the command.
func startBy(t *testing.T, begin func(*exec.Cmd) error, name string, args ...string) *program {
	t.Helper()
	p := &program{t: t, name: name, cmd: exec.Command(programPath(name), args...), log: &logBuffer{}, done: make(chan struct{})}
	p.run(begin)
	return p
}

// run starts the process by way of begin; it is killed at the end of the test.
func (p *program) run(begin func(*exec.Cmd) error) {
	p.t.Helper()
	t := p.t
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if p.cmd.Dir == "" {
		p.cmd.Dir = t.TempDir()
	}
	if err := begin(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() && !p.expected {
			t.Logf("output of %s (last 4 KiB):\n%s", p.name, tail(p.log.String(), 4<<10))
		}
	})
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// kill ends the process with SIGKILL and waits for it.
func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// terminate ends the process with SIGTERM and returns its exit status.
func (p *program) terminate() int {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	return p.exit()
}

// exit waits for the process to end by itself.
func (p *program) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end; output:\n%s", p.name, tail(p.log.String(), 4<<10))
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *program) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// run runs a program to its end and returns standard output, standard error
// and the exit status.
func run(t *testing.T, name string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(programPath(name), args...)
	cmd.Dir = t.TempDir()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// portsGiven has what freePort returned.
var portsGiven sync.Map

// freePort returns a port on loopback that nobody used a moment ago. It is
// below those that the system gives to outgoing connections (from 32768, or
// 49152 elsewhere): one of these could take it while a killed program is away,
// a client's attempt to reach that program even with a connection to itself.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 16384 + rand.IntN(16384)
		if _, taken := portsGiven.LoadOrStore(port, true); taken {
			continue // by a test that runs beside this one and may not listen yet
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port found in 100 tries")
	return 0
}

// A site is one cloud and one gateway on fixed ports and folders, so that
// either can be ended and started again.
type site struct {
	t                          *testing.T
	venue                      string // the gateway's id
	cloudData, gatewayData     string
	cloudPort, mqtt, http      int
	cloudConfig, gatewayConfig string
	cloud, gateway             *program

	cloudProgram, gatewayProgram string // names in bin, or absolute paths
	beginCloud, beginGateway     func(*exec.Cmd) error
	evicts                       bool // its gateway may evict: epochs may have holes
	ledger                       *ledger
	storeURL                     string // of PostgreSQL, with its password; "": SQLite in cloudData
}

// newSite registers a gateway and writes both configurations; nothing runs.
// extra is laid into the gateway's configuration.
func newSite(t *testing.T, extra string) *site {
	t.Helper()
	return newSiteOf(t, "touchline-cloud", "touchline", extra)
}

// newSiteOf is newSite with other programs.
func newSiteOf(t *testing.T, cloud, gateway, extra string) *site {
	t.Helper()
	s := &site{t: t, venue: "venue-1", cloudProgram: cloud, gatewayProgram: gateway, beginCloud: (*exec.Cmd).Start, beginGateway: (*exec.Cmd).Start, cloudData: t.TempDir(), gatewayData: t.TempDir(), cloudPort: freePort(t), mqtt: freePort(t), http: freePort(t)}
	conf := t.TempDir()
	s.cloudConfig, s.gatewayConfig = filepath.Join(conf, "cloud.toml"), filepath.Join(conf, "touchline.toml")
	writeFile(t, s.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n", s.cloudPort, s.cloudData))
	token, stderr, status := run(t, cloud, "gateway", "add", "venue-1", "--config", s.cloudConfig)
	if status != 0 || len(strings.Fields(token)) != 1 {
		t.Fatalf("gateway add: status %d, %q, %s", status, token, stderr)
	}
	if !strings.Contains(extra, "[sensors]") {
		// The default is 10 s, which a busy machine may let pass before a
		// client gets to send again.
		extra += "[sensors]\ndedupe_window = \"2m\"\n"
	}
	tokenFile := filepath.Join(conf, "token")
	writeFile(t, tokenFile, token)
	s.configureGateway(extra, tokenFile)
	return s
}

// configureGateway writes the gateway's configuration, with extra laid into it.
func (s *site) configureGateway(extra, tokenFile string) {
	s.t.Helper()
	writeFile(s.t, s.gatewayConfig, fmt.Sprintf(`%s
[gateway]
id = %q
data = %q
[sensors.mqtt]
listen = "127.0.0.1:%d"
[sensors.http]
listen = "127.0.0.1:%d"
[uplink]
urls = ["ws://127.0.0.1:%d"]
token_file = %q
reconnect_min = "50ms"
reconnect_max = "200ms"
`, extra, s.venue, s.gatewayData, s.mqtt, s.http, s.cloudPort, tokenFile))
}

// moveGateway gives the gateway another data folder.
func (s *site) moveGateway(dir string) {
	s.t.Helper()
	editFile(s.t, s.gatewayConfig, fmt.Sprintf("%q", s.gatewayData), fmt.Sprintf("%q", dir))
	s.gatewayData = dir
}

func (s *site) startCloud() {
	s.t.Helper()
	s.cloud = startBy(s.t, s.beginCloud, s.cloudProgram, "run", "--config", s.cloudConfig)
	s.waitReady("touchline-cloud", s.cloud, s.cloudPort)
}

func (s *site) startGateway() {
	s.t.Helper()
	s.gateway = startBy(s.t, s.beginGateway, s.gatewayProgram, "run", "--config", s.gatewayConfig)
	s.waitReady("touchline", s.gateway, s.http)
	s.t.Cleanup(func() { // before the gateway is killed
		if s.t.Failed() && s.gateway.running() {
			st, err := s.tryStatus()
			s.t.Logf("status of the gateway at the end: %+v %v", st, err)
		}
	})
}

func (s *site) waitReady(name string, p *program, port int) {
	s.t.Helper()
	waitFor(s.t, name+" to be ready", func() bool {
		if !p.running() {
			s.t.Fatalf("%s ended with status %d:\n%s", name, p.exit(), p.log)
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", port))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// status is the part of the gateway's status that tests look at.
type status struct {
	Sensors struct {
		Samples uint64
		Raw     uint64
		Seen    []struct{ ID string }
	}
	Buffer struct {
		State        string
		Samples      uint64
		Blocks       uint64
		Evicted      uint64
		KeptSamples  uint64 `json:"kept_samples"`
		Lacked       uint64
		Appended     uint64
		CommitErrors uint64 `json:"commit_errors"`
		LastError    string `json:"last_error"`
	}
	Uplink struct {
		State     string
		Session   uint64
		LastError string  `json:"last_error"`
		RTTWorst  float64 `json:"rtt_worst_seconds"`
		URL       string  `json:"url"`
		Dials     uint64
		Sessions  uint64
		Resent    uint64 `json:"blocks_resent"`
		Stored    uint64 `json:"samples_stored"`
	}
}

func (s *site) status() status {
	s.t.Helper()
	st, err := s.tryStatus()
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *site) tryStatus() (st status, err error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v1/status", s.http))
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, fmt.Errorf("GET /v1/status: %s", resp.Status)
	}
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

func (s *site) get(port int, path string) []byte {
	s.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("GET %s: %s %v %s", path, resp.Status, err, body)
	}
	return body
}

// drained waits until the gateway's buffer is empty: all is stored.
func (s *site) drained() {
	s.t.Helper()
	waitFor(s.t, "the buffer to drain", func() bool { return s.status().Buffer.Samples == 0 })
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// editFile replaces old, which is there once.
func editFile(t *testing.T, name, old, new string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), old); n != 1 {
		t.Fatalf("%s has %q %d times", name, old, n)
	}
	writeFile(t, name, strings.Replace(string(text), old, new, 1))
}
