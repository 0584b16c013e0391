package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A serviceManager speaks systemd's side of sd_notify(3) and sd_listen_fds(3):
// it hears what a service says, keeps the sockets that it stores, and hands
// them to the next process.
type serviceManager struct {
	t     *testing.T
	conn  *net.UnixConn
	path  string
	extra []string // for the environment of the service

	mu    sync.Mutex // covers what follows
	said  []string   // assignments, in order
	names []string
	kept  []*os.File
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	m := &serviceManager{t: t, path: filepath.Join(t.TempDir(), "notify")}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.listen()
	}()
	t.Cleanup(func() {
		m.conn.Close()
		<-ended
		for _, f := range m.kept {
			f.Close()
		}
	})
	return m
}

func (m *serviceManager) listen() {
	text, control := make([]byte, 64<<10), make([]byte, 4<<10)
	for {
		n, c, _, _, err := m.conn.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		lines := strings.Split(string(text[:n]), "\n")
		var fds []int
		if parts, err := syscall.ParseSocketControlMessage(control[:c]); err == nil && len(parts) == 1 {
			fds, _ = syscall.ParseUnixRights(&parts[0])
		}
		m.mu.Lock()
		m.said = append(m.said, lines...)
		name := ""
		for _, l := range lines {
			if v, ok := strings.CutPrefix(l, "FDNAME="); ok {
				name = v
			}
		}
		if slices.Contains(lines, "FDSTOREREMOVE=1") {
			for i := slices.Index(m.names, name); i >= 0; i = slices.Index(m.names, name) { // all of them, as systemd does
				m.kept[i].Close()
				m.names, m.kept = slices.Delete(m.names, i, i+1), slices.Delete(m.kept, i, i+1)
			}
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), name)
			if !slices.Contains(lines, "FDSTORE=1") { // that of BARRIER=1
				f.Close()
				continue
			}
			m.names, m.kept = append(m.names, name), append(m.kept, f)
		}
		m.mu.Unlock()
	}
}

// begin starts a service with what is kept. Only the service itself knows the
// number of its process, which it wants to be told, so a shell becomes it.
func (m *serviceManager) begin(cmd *exec.Cmd) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.Env = append(append(os.Environ(), "NOTIFY_SOCKET="+m.path,
		fmt.Sprintf("LISTEN_FDS=%d", len(m.kept)), "LISTEN_FDNAMES="+strings.Join(m.names, ":")), m.extra...)
	cmd.ExtraFiles = m.kept
	return cmd.Start()
}

// socket opens what a .socket unit with that FileDescriptorName= would.
func (m *serviceManager) socket(name, address string) (at string) {
	m.t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		m.t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names, m.kept = append(m.names, name), append(m.kept, f)
	return l.Addr().String()
}

// holds returns the names of what is kept, in order.
func (m *serviceManager) holds() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(slices.Values(m.names))
}

func (m *serviceManager) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.said)
}

// heard says whether an assignment was heard from place on.
func (m *serviceManager) heard(from int, want string) bool {
	return slices.ContainsFunc(m.all()[from:], func(s string) bool { return strings.HasPrefix(s, want) })
}

func (m *serviceManager) wait(from int, want string) {
	m.t.Helper()
	waitFor(m.t, "the service manager to hear "+want, func() bool { return m.heard(from, want) })
}

// TestService_NobodyIsRefusedWhileItRestarts ends the gateway in both ways, and
// connects to its ports while there is none: who does so is answered by the
// next one. All that was acknowledged arrives.
func TestService_NobodyIsRefusedWhileItRestarts(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	m := newServiceManager(t)
	s.beginGateway = m.begin
	s.startGateway()
	s.startCloud()
	c := s.publish(everyDoor...)
	c.more(t, 100)
	for _, end := range []func(){func() { s.gateway.kill() }, func() {
		if status := s.gateway.terminate(); status != 0 {
			t.Errorf("it ended with status %d", status)
		}
	}, func() { s.gateway.kill() }} {
		end()
		device, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.mqtt))
		if err != nil {
			t.Fatalf("a sensor is refused while the gateway is away: %v", err)
		}
		defer device.Close()
		if _, err := device.Write([]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a")); err != nil {
			t.Fatal(err)
		}
		page, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.http))
		if err != nil {
			t.Fatalf("a client of HTTP is refused while the gateway is away: %v", err)
		}
		defer page.Close()
		if _, err := io.WriteString(page, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		s.startGateway()
		connack := make([]byte, 4)
		if _, err := io.ReadFull(device, connack); err != nil || connack[0] != 0x20 || connack[3] != 0 {
			t.Errorf("the sensor that waited hears %x, %v", connack, err)
		}
		if answer, err := io.ReadAll(page); err != nil || !strings.Contains(string(answer), "200 OK") {
			t.Errorf("the client that waited hears %q, %v", answer, err)
		}
		c.more(t, 100)
	}
	c.finish(t)
	s.drained()
	if v := s.audit(c); !v.holds() {
		t.Error(v)
	} else {
		t.Logf("MEASURED 3 restarts with kept sockets, nobody refused; %s", v)
	}
}

// A port that the settings no longer name is closed, also at the service
// manager, and the one in its place is kept from its first life on. What is in
// the way of the new one goes before it: all interfaces have the port of one.
func TestService_GivesBackASocketThatIsNotUsed(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	m := newServiceManager(t)
	s.beginGateway = m.begin
	s.startGateway()
	old, fresh, port := fmt.Sprintf("127.0.0.1:%d", s.mqtt), "0.0.0.0:%d", freePort(t)
	move := func(from, to string) {
		t.Helper()
		s.gateway.terminate()
		editFile(t, s.gatewayConfig, from, to)
		s.startGateway()
		waitFor(t, "the service manager to keep both", func() bool { return slices.Equal(m.holds(), []string{"kept-http", "kept-mqtt"}) })
	}
	editFile(t, s.gatewayConfig, "[sensors]\n", "[sensors]\ninsecure = true\n")
	fresh = fmt.Sprintf(fresh, port)
	move(old, fresh)
	m.wait(0, "FDSTOREREMOVE=1")
	waitFor(t, "the old port to be closed", func() bool {
		conn, err := net.Dial("tcp", old)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	s.mqtt = port
	move(fresh, fmt.Sprintf("127.0.0.1:%d", port))
	s.gateway.kill()
	for _, port := range []int{s.mqtt, s.http} {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatalf("a sensor is refused while the gateway is away: %v", err)
		}
		conn.Close()
	}
}

// Sockets of units have the names of the listeners, and the address that the
// settings have: where they differ the gateway does not guess.
func TestService_TakesTheSocketsOfUnits(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	m := newServiceManager(t)
	m.socket("mqtt", fmt.Sprintf("127.0.0.1:%d", s.mqtt))
	m.socket("http", fmt.Sprintf("127.0.0.1:%d", s.http))
	s.beginGateway = m.begin
	s.startGateway()
	if m.heard(0, "FDSTORE=1") {
		t.Error("it gave sockets to the service manager that are the service manager's")
	}
	s.gateway.terminate()

	other := newServiceManager(t)
	at := other.socket("mqtt", "127.0.0.1:0")
	p := startBy(t, other.begin, s.gatewayProgram, "run", "--config", s.gatewayConfig)
	p.expected = true
	if status, said := p.exit(), p.log.String(); status != 1 || !strings.Contains(said, at) || !strings.Contains(said, "sensors.mqtt.listen") {
		t.Errorf("it ended with status %d and said %q", status, said)
	}
	other.wait(0, "STATUS=")
}

// TestService_IsWatched: READY after recovery, a line for people, and signs of
// life; and the end is announced.
func TestService_IsWatched(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	m := newServiceManager(t)
	m.extra = []string{"WATCHDOG_USEC=2000000"}
	s.beginGateway = m.begin
	s.startGateway()
	m.wait(0, "READY=1")
	m.wait(0, "STATUS=0 sensors (0 connections), 0 samples/s; nothing waits; cloud")
	m.wait(0, "WATCHDOG=1")
	s.gateway.terminate()
	m.wait(0, "STOPPING=1")
	said := m.all()
	if ready, watchdog := slices.Index(said, "READY=1"), slices.Index(said, "WATCHDOG=1"); watchdog < ready {
		t.Errorf("signs of life came before READY: %q", said)
	}
}

// TestService_ReloadsWithoutDroppingASensor sends SIGHUP: what can be taken up
// is, what needs a restart is named everywhere, what is wrong changes nothing.
func TestService_ReloadsWithoutDroppingASensor(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	m := newServiceManager(t)
	s.beginGateway = m.begin
	s.startGateway()
	s.startCloud()
	c := s.publish(everyDoor...)
	c.more(t, 100)
	device, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.mqtt))
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	exchange := func(send string, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.WriteString(device, send); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(device, got); err != nil || string(got) != want {
			t.Fatalf("the sensor hears %x, %v: want %x", got, err, want)
		}
	}
	exchange("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a", "\x20\x02\x00\x00")

	reload := func() reloadStatus {
		t.Helper()
		before, from := s.reloaded(), len(m.all())
		if err := s.gateway.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.wait(from, "READY=1")
		now := s.reloaded()
		if now.At == before.At {
			t.Fatalf("nothing was reloaded: %+v", now)
		}
		said := m.all()[from:]
		if i := slices.Index(said, "RELOADING=1"); i < 0 || i > slices.Index(said, "READY=1") || !strings.HasPrefix(said[i+1], "MONOTONIC_USEC=") {
			t.Errorf("the service manager heard %q", said)
		}
		return now
	}

	// Another address of the cloud counts at once, another port does not.
	front := freePort(t)
	editFile(t, s.gatewayConfig, fmt.Sprintf("ws://127.0.0.1:%d", s.cloudPort), fmt.Sprintf("ws://127.0.0.1:%d/v1/uplink", s.cloudPort))
	editFile(t, s.gatewayConfig, fmt.Sprintf("127.0.0.1:%d", s.http), fmt.Sprintf("127.0.0.1:%d", front))
	now := reload()
	if !slices.Equal(now.Changed, []string{"uplink.urls"}) || !slices.Equal(now.Restart, []string{"sensors.http.listen"}) || now.Error != "" {
		t.Errorf("after the reload: %+v", now)
	}
	waitFor(t, "a session by the new address", func() bool {
		st := s.status()
		return st.Uplink.State == "connected" && strings.HasSuffix(st.Uplink.URL, "/v1/uplink")
	})
	m.wait(0, "STATUS=restart for sensors.http.listen; ")
	exchange("\xc0\x00", "\xd0\x00") // PINGREQ on the same connection

	// What is wrong changes nothing.
	editFile(t, s.gatewayConfig, `reconnect_min = "50ms"`, `reconnect_min = "soon"`)
	if now = reload(); !strings.Contains(now.Error, "reconnect_min") {
		t.Errorf("a broken file: %+v", now)
	}
	editFile(t, s.gatewayConfig, `reconnect_min = "soon"`, `reconnect_min = "50ms"`)

	// Who may not come in any more is sent away, and nobody else.
	editFile(t, s.gatewayConfig, "[sensors]\n", "[sensors]\nallow_anonymous = false\n")
	c.finish(t)
	if now = reload(); !slices.Equal(now.Changed, []string{"sensors.allow_anonymous"}) || now.Error != "" {
		t.Errorf("after the reload: %+v", now)
	}
	if rest, err := io.ReadAll(device); err != nil {
		t.Logf("the sensor's connection ended with %x, %v", rest, err)
	}
	resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/samples?sensor=x", s.http), "application/json", strings.NewReader(`{"v":1}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger is answered %s", resp.Status)
	}
	editFile(t, s.gatewayConfig, "allow_anonymous = false\n", "")
	reload()
	s.drained()
	if v := s.audit(c); !v.holds() {
		t.Error(v)
	}
}

// TestService_ReloadsInFlightLoseNothing changes the cloud's address, time and
// again, while blocks are under way to it, and asks for more reloads than there
// are changes: each sample is recorded once.
func TestService_ReloadsInFlightLoseNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	s.startGateway()
	s.startCloud()
	c := s.publish(everyDoor...)
	short := fmt.Sprintf("ws://127.0.0.1:%d", s.cloudPort)
	long, rounds := short+"/v1/uplink", 15
	for range rounds {
		editFile(t, s.gatewayConfig, short, long)
		short, long = long, short
		for range 5 {
			if err := s.gateway.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			c.more(t, 20)
		}
	}
	waitFor(t, "a session by the last address", func() bool {
		st := s.status()
		return st.Uplink.State == "connected" && strings.TrimSuffix(st.Uplink.URL, "/") == short
	})
	c.finish(t)
	s.drained()
	count := s.reloaded().Count
	if v := s.audit(c); !v.holds() {
		t.Error(v)
	} else {
		t.Logf("MEASURED %d reloads, the cloud's address changed %d times; %s", count, rounds, v)
	}
}

type reloadStatus struct {
	Count            uint64
	At, Error        string
	Changed, Restart []string
}

// reloaded asks over the data folder, to which access rules do not apply.
func (s *site) reloaded() reloadStatus {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(s.gatewayData, "admin.sock"))
	}}}
	resp, err := client.Get("http://gateway/status")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	var st struct{ Reload reloadStatus }
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		s.t.Fatal(err)
	}
	return st.Reload
}

// A node of the cloud says for how long it drains, so that the service manager
// waits for what [balancer] says and not for less.
func TestService_TheCloudIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	editFile(t, s.cloudConfig, "listen = ", "balancer.drain_delay = \"1s\"\nbalancer.drain = \"2s\"\nlisten = ")
	m := newServiceManager(t)
	s.beginCloud = m.begin
	s.startCloud()
	m.wait(0, "READY=1")
	if status := s.cloud.terminate(); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
	m.wait(0, "STOPPING=1")
	m.wait(0, "EXTEND_TIMEOUT_USEC=33000000")
}

// TestService_TheCloudReloads sends SIGHUP to a node: no gateway loses its
// session, log.level counts, and the rest is named.
func TestService_TheCloudReloads(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	m := newServiceManager(t)
	s.beginCloud = m.begin
	s.startCloud()
	m.wait(0, "READY=1")
	s.startGateway()
	c := s.publish(everyDoor...)
	c.more(t, 100)
	waitFor(t, "a session", func() bool { return s.status().Uplink.State == "connected" })
	sessions := s.status().Uplink.Sessions
	reload := func() (words []string) {
		t.Helper()
		from := len(m.all())
		if err := s.cloud.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.wait(from, "READY=1")
		return m.all()[from:]
	}
	said := func(words []string, what string) {
		t.Helper()
		if !strings.Contains(strings.Join(words, "\n"), what) {
			t.Errorf("the service manager heard %q, want %q", words, what)
		}
	}
	editFile(t, s.cloudConfig, "listen = ", "limits.handshakes = 99\nlog.level = \"warn\"\nlisten = ")
	said(reload(), "; restart for limits.handshakes")
	editFile(t, s.cloudConfig, "limits.handshakes = 99", "limits.handshakes = \"many\"")
	said(reload(), "; SETTINGS NOT RELOADED")
	editFile(t, s.cloudConfig, "limits.handshakes = \"many\"\n", "")
	if words := reload(); strings.Contains(strings.Join(words, "\n"), ";") {
		t.Errorf("nothing differs any more, and the service manager heard %q", words)
	}
	c.more(t, 100)
	c.finish(t)
	s.drained()
	if v := s.audit(c); !v.holds() {
		t.Error(v)
	}
	if now := s.status().Uplink.Sessions; now != sessions {
		t.Errorf("the gateway has had %d sessions, %d before", now, sessions)
	}
	if log := s.cloud.log.String(); strings.Contains(log, "settings are reloaded") || !strings.Contains(log, "settings are not reloaded") {
		t.Error("log.level = \"warn\" does not count from the reload on")
	}
}

// A unit of Type=notify may start a recorder, too: one that never said that it
// is ready was ended after TimeoutStartSec=, again and again. One that is asked to
// reload goes on, as a node does.
func TestService_ARecorderIsReady(t *testing.T) {
	t.Parallel()
	queue, m := startNATS(t), newServiceManager(t)
	file := filepath.Join(t.TempDir(), "recorder.toml")
	writeFile(t, file, fmt.Sprintf("data = %q\n", t.TempDir())+queue.settings(4, true))
	p := startBy(t, m.begin, "touchline-cloud", "record", "--config", file)
	m.wait(0, "READY=1")
	editFile(t, file, "data = ", "limits.handshakes = 99\ndata = ")
	from := len(m.all())
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.wait(from, "READY=1")
	if said := strings.Join(m.all()[from:], "\n"); !strings.Contains(said, "; restart for limits.handshakes") {
		t.Errorf("after SIGHUP the service manager heard %q", said)
	}
	if status := p.terminate(); status != 0 {
		t.Errorf("it ended with status %d", status)
	}
}
