package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline/uplink"
)

// A cluster is nodes on one record store behind a load balancer, which ends TLS.
type cluster struct {
	t        *testing.T
	store    clusterStore
	conf     string // folder
	nodes    []*clusterNode
	balancer *program
	port     int // of the load balancer
	stats    int // of HAProxy's numbers
	socket   string
	roots    *x509.CertPool
	blocked  *httptest.Server // a middlebox before the load balancer that lets no upgrade through

	fleet   []*member
	stop    context.CancelFunc
	running sync.WaitGroup
	sites   []*site
	crowds  []*crowd
}

type clusterNode struct {
	port, agent int
	config      string
	program     *program
}

// newCluster prepares nodes on a store, and the certificate; nothing runs. tune
// is laid into the nodes' [balancer]. Unless it says so, no node sends gateways to
// others for balance: these tests say who stays.
func newCluster(t *testing.T, store clusterStore, nodes int, tune string) *cluster {
	t.Helper()
	c := &cluster{t: t, store: store, conf: t.TempDir(), port: freePort(t), stats: freePort(t)}
	c.socket = filepath.Join(c.conf, "haproxy.sock")
	if !strings.Contains(tune, "shed_above") {
		tune = "shed_above = 0\n" + tune // first, since tune may go on to other tables
	}
	c.makeCertificate()
	for i := range nodes {
		n := &clusterNode{port: freePort(t), agent: freePort(t), config: filepath.Join(c.conf, fmt.Sprintf("node%d.toml", i+1))}
		writeFile(t, n.config, fmt.Sprintf(`listen = "127.0.0.1:%d"
%s
trusted_proxies = ["127.0.0.1"]
[balancer]
agent_listen = "127.0.0.1:%d"
%s
`, n.port, store.settings, n.agent, tune))
		c.nodes = append(c.nodes, n)
	}
	return c
}

// makeCertificate makes what the load balancer shows: crt, key, and both.pem.
func (c *cluster) makeCertificate() {
	c.t.Helper()
	crt, key := selfSigned(c.t, "balancer")
	writeFile(c.t, c.file("crt"), crt)
	writeFile(c.t, c.file("key"), key)
	writeFile(c.t, c.file("both.pem"), crt+key)
	c.roots = x509.NewCertPool()
	c.roots.AppendCertsFromPEM([]byte(crt))
}

// selfSigned returns a certificate for 127.0.0.1 and its key, in PEM.
func selfSigned(t *testing.T, name string) (crt, private string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}))
}

func (c *cluster) file(name string) string { return filepath.Join(c.conf, name) }

// startNodes starts nodes by index and waits until each is ready.
func (c *cluster) startNodes(indices ...int) {
	c.t.Helper()
	for _, i := range indices {
		n := c.nodes[i]
		n.program = start(c.t, "touchline-cloud", "run", "--config", n.config)
	}
	for _, i := range indices {
		(&site{t: c.t}).waitReady(fmt.Sprintf("node %d", i+1), c.nodes[i].program, c.nodes[i].port)
	}
}

// deployed returns a file of deploy/ with replacements, pairs of old and new,
// each of which is in it once.
func deployed(t *testing.T, name string, replacements ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	out := string(text)
	for i := 0; i < len(replacements); i += 2 {
		if strings.Count(out, replacements[i]) != 1 {
			t.Fatalf("deploy/%s has %q %d times, want once", name, replacements[i], strings.Count(out, replacements[i]))
		}
		out = strings.Replace(out, replacements[i], replacements[i+1], 1)
	}
	return out
}

// haproxy starts HAProxy as a service does, with the file of deploy/.
func (c *cluster) haproxy(replacements ...string) {
	c.t.Helper()
	config := c.file("haproxy.cfg")
	writeFile(c.t, config, deployed(c.t, "haproxy.cfg", replacements...))
	environment := append(os.Environ(), fmt.Sprintf("TOUCHLINE_BIND=127.0.0.1:%d", c.port), "TOUCHLINE_CERT="+c.file("both.pem"),
		fmt.Sprintf("TOUCHLINE_STATS=127.0.0.1:%d", c.stats), "TOUCHLINE_SOCKET="+c.socket)
	nobody := &clusterNode{port: freePort(c.t), agent: freePort(c.t)}
	lines := max(4, len(c.nodes)) // the file has four
	for i := range lines {
		n := nobody
		if i < len(c.nodes) {
			n = c.nodes[i]
		}
		environment = append(environment, fmt.Sprintf("TOUCHLINE_NODE%d=127.0.0.1:%d", i+1, n.port), fmt.Sprintf("TOUCHLINE_AGENT%d=%d", i+1, n.agent))
	}
	program := balancerProgram(c.t, "haproxy")
	c.checkConfig(exec.Command(program, "-c", "-f", config), environment)
	c.balancer = startBy(c.t, func(cmd *exec.Cmd) error {
		cmd.Env = environment
		return cmd.Start()
	}, program, "-W", "-f", config)
	c.t.Cleanup(c.endBalancer)
	c.awaitBalancer()
	// Until its first look it takes a node that is not there for one that is.
	waitFor(c.t, "HAProxy to have looked at all nodes", func() bool {
		for i := range lines {
			runs := i < len(c.nodes) && c.nodes[i].program != nil && c.nodes[i].program.running()
			if status := c.haproxyStat("nodes", fmt.Sprintf("n%d", i+1), "status"); runs != strings.HasPrefix(status, "UP") {
				return false
			}
		}
		return true
	})
}

// nginx starts nginx with the files of deploy/, and names and addresses in the
// two small ones.
func (c *cluster) nginx(replacements ...string) {
	c.t.Helper()
	writeFile(c.t, c.file("nginx.conf"), deployed(c.t, "nginx.conf", replacements...))
	var nodes strings.Builder
	for _, n := range c.nodes {
		fmt.Fprintf(&nodes, "server 127.0.0.1:%d max_fails=0;\n", n.port)
	}
	writeFile(c.t, c.file("nginx-nodes.conf"), nodes.String())
	writeFile(c.t, c.file("nginx-site.conf"), fmt.Sprintf("listen 127.0.0.1:%d ssl;\nssl_certificate %s;\nssl_certificate_key %s;\n", c.port, c.file("crt"), c.file("key")))
	program := balancerProgram(c.t, "nginx")
	own := fmt.Sprintf("pid %s;", c.file("nginx.pid"))
	c.checkConfig(exec.Command(program, "-t", "-c", c.file("nginx.conf"), "-g", own), os.Environ())
	c.balancer = start(c.t, program, "-c", c.file("nginx.conf"), "-g", own+" daemon off;")
	c.t.Cleanup(c.endBalancer)
	c.awaitBalancer()
}

// endBalancer ends the load balancer and its workers, which would outlive a
// SIGKILL of it.
func (c *cluster) endBalancer() {
	c.t.Helper()
	if c.balancer.running() {
		c.balancer.terminate()
	}
}

func balancerProgram(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin") {
		if path := filepath.Join(dir, name); exec.Command(path, "-v").Run() == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: .ci/setup test installs it", name)
	return ""
}

// checkConfig has the program check its file: no error and no warning.
func (c *cluster) checkConfig(check *exec.Cmd, environment []string) {
	c.t.Helper()
	check.Env = environment
	out, err := check.CombinedOutput()
	if err != nil || bytes.Contains(bytes.ToLower(out), []byte("warn")) || bytes.Contains(out, []byte("ALERT")) {
		c.t.Fatalf("%v: %v\n%s", check.Args, err, out)
	}
}

func (c *cluster) awaitBalancer() {
	c.t.Helper()
	client := c.client()
	defer client.CloseIdleConnections()
	waitFor(c.t, "the load balancer to lead to a node", func() bool {
		if !c.balancer.running() {
			c.t.Fatalf("the load balancer ended with status %d:\n%s", c.balancer.exit(), c.balancer.log)
		}
		resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/readyz", c.port))
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (c *cluster) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12}}}
}

// block starts the middlebox.
func (c *cluster) block() {
	c.t.Helper()
	to := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", c.port)}
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		FlushInterval: -1, Transport: c.client().Transport, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	c.blocked = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			http.Error(w, "blocked by policy", http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	c.t.Cleanup(c.blocked.Close)
}

// address returns where gateway i goes: each third one lets no upgrade through.
func (c *cluster) address(i int) string {
	if i%3 == 2 {
		return "ws://" + c.blocked.Listener.Addr().String()
	}
	return fmt.Sprintf("wss://127.0.0.1:%d", c.port)
}

// join makes gateways in this process and touchline processes; all publish.
// The store must not be in the hands of a test that counts who has it open.
func (c *cluster) join(fleet, processes int) {
	c.t.Helper()
	c.block()
	store, err := c.store.open(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	add := func(id string) (token string) {
		token = "token of " + id
		token = strings.ReplaceAll(token, " ", "-")
		if err := store.AddGateway(c.t.Context(), id, sha256.Sum256([]byte(token))); err != nil {
			c.t.Fatal(err)
		}
		return token
	}
	for i := range fleet {
		o := uplink.Defaults()
		o.Gateway, o.Software, o.URLs = fmt.Sprintf("fleet-%d", i), "touchline/cluster", []string{c.address(i)}
		token := add(o.Gateway)
		o.Token = func() (string, error) { return token, nil }
		o.TLS = func(server string, _ *x509.CertPool) *tls.Config {
			return &tls.Config{ServerName: server, RootCAs: c.roots, MinVersion: tls.VersionTLS12}
		}
		o.BackoffBase, o.BackoffCap = 100*time.Millisecond, time.Second
		m := &member{source: newMemorySource()}
		if m.uplink, err = uplink.New(o, m.source, slog.New(slog.DiscardHandler)); err != nil {
			c.t.Fatal(err)
		}
		c.fleet = append(c.fleet, m)
	}
	for i := range processes {
		c.addSite(i, add)
	}
	if err := store.Close(); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.t.Cleanup(c.leave)
	c.addBlocks()
	for _, m := range c.fleet {
		c.running.Go(func() {
			if err := m.uplink.Run(ctx); err != nil {
				c.t.Error(err)
			}
		})
	}
	for _, s := range c.sites {
		s.startGateway()
		c.crowds = append(c.crowds, s.publish(networkCrowd(500)...))
	}
}

// addSite makes a gateway that is a touchline process; it is not started. add
// registers an id and returns its token.
func (c *cluster) addSite(i int, add func(id string) (token string)) {
	c.t.Helper()
	s := &site{t: c.t, venue: fmt.Sprintf("venue-%d", i+1), gatewayProgram: "touchline", beginGateway: (*exec.Cmd).Start,
		gatewayData: c.t.TempDir(), gatewayConfig: c.file(fmt.Sprintf("gateway%d.toml", i)), mqtt: freePort(c.t), http: freePort(c.t)}
	token := c.file("token-" + s.venue)
	writeFile(c.t, token, add(s.venue))
	s.configureGateway("[sensors]\ndedupe_window = \"2m\"\n", token)
	editFile(c.t, s.gatewayConfig, "\"ws://127.0.0.1:0\"", strconv.Quote(c.address(i)))
	editFile(c.t, s.gatewayConfig, "reconnect_max =", fmt.Sprintf("ca_file = %q\nreconnect_max =", c.file("crt")))
	c.sites = append(c.sites, s)
}

// leave ends the fleet; it may be called twice.
func (c *cluster) leave() {
	c.stop()
	c.running.Wait()
}

func (c *cluster) addBlocks() {
	for _, m := range c.fleet {
		m.source.add(c.t)
	}
}

// settle gives every gateway something to send, and waits until each is
// connected and the fleet's blocks are stored.
func (c *cluster) settle(what string) {
	c.t.Helper()
	c.addBlocks()
	begin := time.Now()
	waitFor(c.t, "all gateways to be connected and their blocks stored "+what, func() bool {
		for _, m := range c.fleet {
			if m.source.left() > 0 || m.uplink.Stats().State != uplink.Connected {
				return false
			}
		}
		for _, s := range c.sites {
			if st, err := s.tryStatus(); err != nil || st.Uplink.State != "connected" {
				return false
			}
		}
		return true
	})
	c.t.Logf("MEASURED %s: all are connected and stored after %s; gateways at the nodes: %v", what, since(begin), c.spread())
}

// spread returns how many uplinks each node has; -1 for one that does not answer.
func (c *cluster) spread() (list []int) {
	for _, n := range c.nodes {
		list = append(list, n.connections())
	}
	return list
}

func (n *clusterNode) connections() int {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", n.port))
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "touchline_cloud_connections "); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err == nil {
				return int(v)
			}
		}
	}
	return -1
}

// at returns the node of each gateway that is connected.
func (c *cluster) at() map[string]int {
	c.t.Helper()
	at := map[string]int{}
	for i, n := range c.nodes {
		if n.program == nil || !n.program.running() {
			continue
		}
		var answer struct {
			Gateways []struct {
				ID        string
				Connected bool
			}
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/v1/gateways", n.port))
		if err != nil {
			c.t.Fatal(err)
		}
		err = json.NewDecoder(resp.Body).Decode(&answer)
		resp.Body.Close()
		if err != nil {
			c.t.Fatal(err)
		}
		for _, g := range answer.Gateways {
			if g.Connected {
				at[g.ID] = i
			}
		}
	}
	return at
}

// audit lets all publish to the end, stops the nodes and demands that the store
// has each sample once.
func (c *cluster) audit() {
	c.t.Helper()
	v := &verdict{by: map[string]uint64{}}
	for i, s := range c.sites {
		c.crowds[i].finish(c.t)
		s.drained()
	}
	c.settle("at the end")
	for i, s := range c.sites {
		for _, n := range c.nodes {
			if n.program != nil && n.program.running() {
				s.cloudPort = n.port
			}
		}
		s.tally(c.crowds[i], v)
	}
	c.leave()
	for _, m := range c.fleet {
		v.stored += m.source.next - 1
	}
	for _, n := range c.nodes {
		if n.program != nil {
			n.program.kill() // stopping is a polite crash
		}
	}
	c.store.audit(v)
	if !v.holds() || v.acked != v.sent || v.acked == 0 {
		c.t.Errorf("%s", v)
	}
	if want := len(c.fleet) + len(c.sites); v.epochs != want {
		c.t.Errorf("the store has %d epochs, want %d", v.epochs, want)
	}
	c.t.Logf("MEASURED %s: %s", c.t.Name(), v)
}

// haproxyStat returns a column of HAProxy's statistics of a server.
func (c *cluster) haproxyStat(backend, server, column string) string {
	c.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/;csv", c.stats))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimPrefix(string(body), "# "), "\n")
	names := strings.Split(lines[0], ",")
	for _, line := range lines[1:] {
		fields := strings.Split(line, ",")
		if len(fields) < len(names)-1 || fields[0] != backend || fields[1] != server {
			continue
		}
		for i, name := range names {
			if name == column {
				return fields[i]
			}
		}
	}
	c.t.Fatalf("HAProxy has no %s of %s/%s:\n%.500s", column, backend, server, body)
	return ""
}
