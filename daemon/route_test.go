package daemon_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/archive"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/daemon"
	"touchline/identity"
	"touchline/internal/netlab"
	"touchline/preflight"
	"touchline/wire"
)

// outside is a name that no DNS server knows (RFC 2606): only a proxy leads
// there.
const outside = "cloud.venue.invalid"

// A realCloud is touchline-cloud with TLS, and what its gateways need.
type realCloud struct {
	t     *testing.T
	store *sqlite.Store
	addr  string
	roots string // file
	pin   string
	log   *lockedBuffer
	ca    *netlab.Authority
}

// newRealCloud has a certificate for outside and 127.0.0.1; with mutual it wants
// client certificates of the CA that signed its own.
func newRealCloud(t *testing.T, mutual bool) *realCloud {
	t.Helper()
	dir := t.TempDir()
	ca, err := netlab.NewAuthority("venue operator")
	fatal(t, err)
	cert, key, err := ca.Issue(dir, netlab.Certificate{Name: "cloud", Hosts: []string{outside, "127.0.0.1"}, Until: time.Now().Add(30 * 24 * time.Hour)})
	fatal(t, err)
	c := &realCloud{t: t, roots: filepath.Join(dir, "roots.pem"), log: &lockedBuffer{}, ca: ca}
	fatal(t, os.WriteFile(c.roots, ca.PEM(), 0o600))
	pair, err := tls.LoadX509KeyPair(cert, key)
	fatal(t, err)
	sum := sha256.Sum256(pair.Leaf.RawSubjectPublicKeyInfo)
	c.pin = base64.StdEncoding.EncodeToString(sum[:])

	logger := slog.New(slog.NewTextHandler(c.log, nil))
	c.store, err = sqlite.Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	fatal(t, err)
	settings, _, err := cloud.LoadConfig("", nil, map[string]string{"listen": "127.0.0.1:0", "tls.cert": cert, "tls.key": key})
	fatal(t, err)
	o := settings.Options()
	if mutual {
		o.ClientCA = c.roots
	}
	server, err := cloud.New(o, c.store, logger)
	fatal(t, err)
	fatal(t, server.Listen())
	c.addr = server.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		fatal(t, errors.Join(<-ended, server.Close(), c.store.Close()))
	})
	return c
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (c *realCloud) claim() string {
	c.t.Helper()
	code := credential.NewClaim()
	fatal(c.t, c.store.AddClaim(c.t.Context(), cloud.Claim{Hash: code.Hash(), Venue: "arena", Expires: time.Now().Add(time.Hour)}))
	return code.Reveal()
}

// client returns the files of a certificate for a gateway.
func (c *realCloud) client(by *netlab.Authority, name string, until time.Time) (cert, key string) {
	c.t.Helper()
	cert, key, err := by.Issue(c.t.TempDir(), netlab.Certificate{Name: name, Until: until})
	fatal(c.t, err)
	return cert, key
}

// proxyTo is the only way out: wherever it is asked for, it leads to the cloud.
// asked says what it was asked for.
func (c *realCloud) proxyTo(greet func(net.Conn) (string, net.Conn, error)) (addr string, asked func() []string) {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(c.t, err)
	var mu sync.Mutex
	var targets []string
	r := netlab.NewRelay(l, netlab.RelayOptions{Greet: greet, Dial: func(ctx context.Context, target string) (net.Conn, error) {
		mu.Lock()
		targets = append(targets, target)
		mu.Unlock()
		return (&net.Dialer{}).DialContext(ctx, "tcp", c.addr)
	}})
	c.t.Cleanup(func() { r.Close() })
	return r.Addr(), func() []string { mu.Lock(); defer mu.Unlock(); return targets }
}

// carried is an archive of another gateway, whom the cloud knows.
func (c *realCloud) carried() (data []byte, trust string) {
	c.t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	var out bytes.Buffer
	w, err := archive.NewWriter(&out, key, archive.Header{Gateway: "gym"})
	fatal(c.t, err)
	e, err := wire.NewEncoder().Encode(nil, []touchline.Sample{{Sensor: "belt", Metric: "m", Time: 1_780_000_000_000_000_000, Value: touchline.NumberValue(1)}})
	fatal(c.t, err)
	b := wire.Block{Epoch: touchline.Epoch{1}, First: 1, Count: 1, Data: e.Data}
	b.CRC = b.Sum()
	fatal(c.t, w.Blocks([]wire.Block{b}))
	_, err = w.End()
	fatal(c.t, err)
	fatal(c.t, c.store.AddGateway(c.t.Context(), "gym", sha256.Sum256([]byte("unused"))))
	fatal(c.t, c.store.AddGatewayKey(c.t.Context(), "gym", identity.Public(key)))
	return out.Bytes(), "gym=" + identity.Public(key).String()
}

func folder(t *testing.T, c touchline.Config) *daemon.Folder {
	t.Helper()
	f, err := daemon.OpenFolder(c)
	fatal(t, err)
	t.Cleanup(f.Close)
	return f
}

// look is `touchline preflight`.
func look(t *testing.T, c touchline.Config) preflight.Report {
	t.Helper()
	f := folder(t, c)
	return preflight.Run(t.Context(), preflight.Options{
		Dir: c.Gateway.Data, URLs: c.Uplink.URLs, Gateway: c.Gateway.ID, Software: "touchline/test",
		Token: f.Credential, Route: f.Route, Running: f.Running(),
	})
}

// red returns the first check that failed.
func red(r preflight.Report) string {
	for _, c := range r.Checks {
		if c.Status == preflight.Fail {
			return c.Name + ": " + c.Detail + " → " + c.Do
		}
	}
	return ""
}

// TestRoute_AllThatGoesToTheCloudGoesOneWay enrols, looks, delivers and carries
// along each way, with a real cloud at its end. Without its settings the way
// does not lead there, and what each command says about it names what is missing.
func TestRoute_AllThatGoesToTheCloudGoesOneWay(t *testing.T) {
	guard := netlab.Credentials{User: "venue", Password: "s3cret word"}
	for _, c := range []struct {
		name    string
		mutual  bool
		greet   func(net.Conn) (string, net.Conn, error) // nil: no proxy
		scheme  string
		set     func(*realCloud) map[string]string // that make it lead there
		without string                             // one of them, which is left out…
		say     string                             // …and what preflight says then
	}{
		{name: "CONNECT with a password", greet: netlab.GreetCONNECT(guard), scheme: "http://", without: "uplink.proxy_password_file", say: "uplink.proxy_password_file"},
		{name: "SOCKS5 with a password", greet: netlab.GreetSOCKS(guard), scheme: "socks5://", without: "uplink.proxy_password_file", say: "uplink.proxy_password_file"},
		{name: "CONNECT without a proxy", greet: netlab.GreetCONNECT(netlab.Credentials{}), scheme: "http://", without: "uplink.proxy", say: "dns"},
		{name: "pin", set: func(c *realCloud) map[string]string {
			return map[string]string{"uplink.pin": c.pin, "uplink.ca_file": ""}
		},
			without: "uplink.pin", say: "uplink.ca_file"},
		{name: "own roots", without: "uplink.ca_file", say: "venue operator"},
		{name: "client certificate", mutual: true, set: func(c *realCloud) map[string]string {
			cert, key := c.client(c.ca, "north", time.Time{})
			return map[string]string{"uplink.client_cert": cert, "uplink.client_key": key}
		}},
		{name: "interface", set: func(*realCloud) map[string]string { return map[string]string{"uplink.interface": "lo"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cl := newRealCloud(t, c.mutual)
			change := map[string]string{
				"gateway.id": "north", "uplink.urls": "wss://" + cl.addr, "uplink.ca_file": cl.roots, "uplink.proxy": "direct",
				"uplink.reconnect_min": "10ms", "uplink.reconnect_max": "100ms",
			}
			var asked func() []string
			if c.greet != nil {
				password := filepath.Join(t.TempDir(), "password")
				fatal(t, os.WriteFile(password, []byte(guard.User+":"+guard.Password+"\n"), 0o600))
				addr := ""
				addr, asked = cl.proxyTo(c.greet)
				change["uplink.urls"], change["uplink.proxy"], change["uplink.proxy_password_file"] = "wss://"+outside, c.scheme+addr, password
			}
			if c.set != nil {
				for key, value := range c.set(cl) {
					change[key] = value
				}
			}
			good := settings(t, change)
			code := cl.claim()
			enrol := daemon.EnrolOptions{Code: code, Cloud: good.Uplink.URLs[0], Gateway: "north"}
			if c.without != "" {
				delete(change, c.without)
				if c.without == "uplink.proxy" {
					change[c.without] = "direct"
					delete(change, "uplink.proxy_password_file")
				}
				bad := settings(t, change)
				if done, err := folder(t, bad).Enrol(t.Context(), enrol); err == nil {
					t.Fatalf("without %s it is enrolled: %+v", c.without, done)
				} else if strings.Contains(err.Error(), guard.Password) {
					t.Errorf("the password is shown: %v", err)
				}
				if said := red(look(t, bad)); !strings.Contains(said, c.say) || strings.Contains(said, guard.Password) {
					t.Errorf("without %s preflight says %q, want %q in it", c.without, said, c.say)
				}
			}
			if done, err := folder(t, good).Enrol(t.Context(), enrol); err != nil || done.Gateway != "north" {
				t.Fatalf("enroll: %+v %v", done, err)
			}
			r := look(t, good)
			for _, step := range []string{"proxy", "dns", "tcp", "tls", "upgrade", "round trip", "throughput"} {
				if !slices.ContainsFunc(r.Checks, func(c preflight.Check) bool { return strings.HasPrefix(c.Name, step) && c.Status == preflight.OK }) {
					t.Errorf("preflight: %s is not green: %+v", step, r.Checks)
				}
			}
			d := run(t, good)
			data, trust := cl.carried()
			if _, err := folder(t, good).Import(t.Context(), []string{trust}, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			awaitStatus(t, d, "session and archive", func(s daemon.Status) bool {
				return s.Uplink.State == "connected" && s.Relay.Delivered == 1
			})
			if c.greet == nil {
				return
			}
			for _, target := range asked() {
				if target != outside+":443" {
					t.Errorf("the proxy was asked for %s: names are the proxy's to look up", target)
				}
			}
		})
	}
}

func awaitStatus(t *testing.T, d *daemon.Daemon, what string, ok func(daemon.Status) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); !ok(d.Status()); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not come: %+v %+v", what, d.Status().Uplink, d.Status().Relay)
		}
	}
}

// TestRoute_ClientCertificatesThatAreNotTaken has what the cloud, the uplink and preflight
// say of each.
func TestRoute_ClientCertificatesThatAreNotTaken(t *testing.T) {
	cl := newRealCloud(t, true)
	good := settings(t, map[string]string{"gateway.id": "north", "uplink.urls": "wss://" + cl.addr, "uplink.ca_file": cl.roots, "uplink.proxy": "direct"})
	if _, err := folder(t, good).Enrol(t.Context(), daemon.EnrolOptions{Code: cl.claim(), Cloud: good.Uplink.URLs[0], Gateway: "north"}); err != nil {
		t.Fatal(err) // enrolment needs none: the code is what counts there
	}
	stranger, err := netlab.NewAuthority("stranger")
	fatal(t, err)
	for _, c := range []struct {
		name, want string
		by         *netlab.Authority // nil: none is shown
		of         string
		until      time.Time
	}{
		{name: "missing", want: "this connection showed none"},
		{name: "of another gateway", by: cl.ca, of: "south", want: `of \"south\"`},
		{name: "expired", by: cl.ca, of: "north", until: time.Now().Add(-time.Hour), want: "has expired"},
		{name: "of another CA", by: stranger, of: "north", want: "signed by unknown authority"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good
			s.Uplink.ReconnectMin, s.Uplink.ReconnectMax = good.Uplink.ReconnectMax, good.Uplink.ReconnectMax
			if c.by != nil {
				s.Uplink.ClientCert, s.Uplink.ClientKey = cl.client(c.by, c.of, c.until)
			}
			plain := strings.ReplaceAll(c.want, `\"`, `"`)
			if said := red(look(t, s)); !strings.Contains(said, plain) || !strings.Contains(said, "uplink.client_cert") {
				t.Errorf("preflight says %q", said)
			}
			d := run(t, s)
			awaitStatus(t, d, "refusal", func(s daemon.Status) bool {
				return strings.Contains(s.Uplink.LastError, "403 Forbidden") && strings.Contains(strings.ReplaceAll(s.Uplink.LastError, `\`, ""), plain)
			})
		})
	}
	for _, want := range []string{"without the client certificate of its gateway", "gateway=north"} {
		if !strings.Contains(cl.log.String(), want) {
			t.Errorf("the cloud's log lacks %q: %s", want, cl.log.String())
		}
	}
}

// TestRoute_TLSOfALoadBalancerRefusesAClientCertificate has what stands before
// a cloud, such as HAProxy with "verify required": an alert of TLS is all that it says,
// after the handshake.
func TestRoute_TLSOfALoadBalancerRefusesAClientCertificate(t *testing.T) {
	cl := newRealCloud(t, false)
	config, err := cl.ca.ServerConfig("127.0.0.1")
	fatal(t, err)
	config.ClientAuth = tls.RequireAnyClientCert
	front, _ := cl.proxyTo(netlab.GreetTLS("", config))
	s := settings(t, map[string]string{"gateway.id": "north", "uplink.urls": "wss://" + front, "uplink.ca_file": cl.roots, "uplink.proxy": "direct"})
	if _, err := folder(t, s).Key(); err != nil {
		t.Fatal(err)
	}
	if said := red(look(t, s)); !strings.Contains(said, "certificate required") || !strings.Contains(said, "uplink.client_cert") {
		t.Errorf("preflight says %q", said)
	}
	d := run(t, s)
	awaitStatus(t, d, "refusal", func(s daemon.Status) bool { return strings.Contains(s.Uplink.LastError, "uplink.client_cert") })
}
