package preflight_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"touchline/credential"
	"touchline/internal/netlab"
	"touchline/preflight"
	"touchline/uplink"
	"touchline/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A ca is one whose certificate the gateway knows, or not.
type ca struct {
	dir   string
	ca    *credential.CA
	roots *x509.CertPool
}

func newCA(t *testing.T, name string) *ca {
	t.Helper()
	dir := t.TempDir()
	made, err := credential.CreateCA(dir, credential.CAOptions{Name: name, Domains: credential.LocalDomains, Networks: credential.LocalNetworks})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(made.Certificate())
	return &ca{dir, made, roots}
}

// server returns the settings of a server with a certificate for hosts.
func (c *ca) server(t *testing.T, hosts ...string) *tls.Config {
	t.Helper()
	if err := c.ca.Issue(c.dir, hosts); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.dir, credential.ServerFile)
	certificate, err := credential.OpenCertificateFile(file, file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return credential.ServerTLS(certificate)
}

// cloud lets one token in, and answers pings.
func cloud(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != wire.UplinkPath {
		http.NotFound(w, r)
		return
	}
	if r.Header.Get("Authorization") != "Bearer good" {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"detail":"the token is not known"}`)
		return
	}
	upgrader := websocket.Upgrader{Subprotocols: []string{wire.Subprotocol}}
	conn, err := upgrader.Upgrade(w, r, http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)}})
	if err != nil {
		return
	}
	defer conn.Close()
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			return
		}
	}
}

func answers(status int, header, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Server", header)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// serve starts a server; without config it speaks no TLS.
func serve(t *testing.T, config *tls.Config, handler http.HandlerFunc) *url.URL {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	scheme := "ws"
	if config != nil { // StartTLS would show a certificate of httptest's own
		server.Listener, scheme = tls.NewListener(server.Listener, config), "wss"
	}
	server.Start()
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Scheme = scheme
	return u
}

// proxy is an HTTP proxy that tunnels, for who shows the password.
func proxy(t *testing.T, password string, status int) *url.URL {
	t.Helper()
	u := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || status != 0 {
			w.WriteHeader(status)
			return
		}
		if password != "" && r.Header.Get("Proxy-Authorization") != "Basic "+password {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer to.Close()
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		done := make(chan struct{})
		go func() { _, _ = io.Copy(to, buffered); _ = to.(*net.TCPConn).CloseWrite(); close(done) }()
		_, _ = io.Copy(conn, to)
		_ = conn.Close()
		<-done
	})
	u.Scheme = "http"
	return u
}

// socks is a SOCKS5 proxy.
func socks(t *testing.T, want netlab.Credentials) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := netlab.NewRelay(l, netlab.RelayOptions{Greet: netlab.GreetSOCKS(want), Dial: func(ctx context.Context, target string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", target)
	}})
	t.Cleanup(func() { r.Close() })
	return r.Addr()
}

// closed is an address at which nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

func find(t *testing.T, r preflight.Report, name string) preflight.Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name || strings.HasPrefix(c.Name, name+" ") {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, r.Checks)
	return preflight.Check{}
}

// A setup is what a case changes: options, and the network that their route is
// of.
type setup struct {
	preflight.Options
	network uplink.Network
}

// newSetup trusts own and uses no proxy.
func newSetup(t *testing.T, own *ca) *setup {
	t.Helper()
	s := &setup{network: uplink.Network{CAFile: filepath.Join(own.dir, credential.CACertFile), Proxy: "direct"}}
	s.Options = preflight.Options{
		Dir: t.TempDir(), Gateway: "venue-1", Software: "touchline/test",
		Token: func(string) (string, error) { return "good", nil },
		Route: func() (*uplink.Route, error) { return uplink.NewRoute(s.network, nil) },
	}
	return s
}

// TestRun_SaysWhatIsInTheWay has each thing that venues' networks do, with real
// servers.
func TestRun_SaysWhatIsInTheWay(t *testing.T) {
	own, middle := newCA(t, "the cloud's"), newCA(t, "Venue Firewall TLS Inspection")
	expired := expiredCertificate(t, own)
	for _, c := range []struct {
		name string
		to   func(t *testing.T, o *setup) string // the address
		step string                              // what fails; "" is nothing
		want []string
	}{
		{"all well", func(t *testing.T, o *setup) string {
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "", nil},
		{"without TLS", func(t *testing.T, o *setup) string { return serve(t, nil, cloud).String() }, "", nil},
		{"through a proxy", func(t *testing.T, o *setup) string {
			o.network.Proxy = proxy(t, "", 0).String()
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "", nil},
		{"proxy with password", func(t *testing.T, o *setup) string {
			via := proxy(t, "dTpw", 0)
			via.User = url.UserPassword("u", "p")
			o.network.Proxy = via.String()
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "", nil},
		{"proxy wants a password", func(t *testing.T, o *setup) string {
			o.network.Proxy = proxy(t, "dTpw", 0).String()
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "tcp", []string{"407", "user and password"}},
		{"proxy forbids", func(t *testing.T, o *setup) string {
			o.network.Proxy = proxy(t, "", 403).String()
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "tcp", []string{"answered 403 Forbidden to CONNECT", "allow connections (CONNECT)"}},
		{"proxy is gone", func(t *testing.T, o *setup) string {
			o.network.Proxy = "http://" + closed(t)
			return "wss://cloud.example.org"
		}, "tcp", []string{"reach proxy", "uplink.proxy"}},
		{"proxy with a bad address", func(t *testing.T, o *setup) string {
			t.Setenv("HTTPS_PROXY", "http://u:secret in it@%zz")
			o.network.Proxy = ""
			return "wss://cloud.example.org"
		}, "proxy", []string{"HTTPS_PROXY"}},
		{"closed port", func(t *testing.T, o *setup) string { return "wss://" + closed(t) }, "tcp", []string{"refused", "nothing listens there"}},
		{"no such name", func(t *testing.T, o *setup) string {
			o.Lookup = func(context.Context, string) ([]string, error) {
				return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
			}
			return "wss://cluod.example.org"
		}, "dns", []string{"cluod.example.org does not exist", "typo"}},
		{"no DNS server", func(t *testing.T, o *setup) string {
			server := closed(t)
			resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "tcp", server)
			}}
			o.Lookup = resolver.LookupHost
			return "wss://cloud.example.org"
		}, "dns", []string{"can't be resolved", "network cable"}},
		{"TLS is intercepted", func(t *testing.T, o *setup) string {
			return serve(t, middle.server(t, "127.0.0.1"), cloud).String()
		}, "tls", []string{"Venue Firewall TLS Inspection", "intercepted"}},
		{"another key than the pinned", func(t *testing.T, o *setup) string {
			o.network.CAFile, o.network.Pins = "", []string{base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))}
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "tls", []string{"not in uplink.pin: it is ", "confirms that this is its new key", "intercepted"}},
		{"SOCKS5 wants a password", func(t *testing.T, o *setup) string {
			o.network.Proxy = "socks5://" + socks(t, netlab.Credentials{User: "u", Password: "dTpw"})
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "tcp", []string{"no acceptable authentication methods", "uplink.proxy_password_file"}},
		{"SOCKS5 with another password", func(t *testing.T, o *setup) string {
			o.network.Proxy = "socks5://u:guessed@" + socks(t, netlab.Credentials{User: "u", Password: "dTpw"})
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "tcp", []string{"authentication failed", "uplink.proxy_password_file"}},
		{"SOCKS5 is gone", func(t *testing.T, o *setup) string {
			o.network.Proxy = "socks5://" + closed(t)
			return "wss://cloud.example.org"
		}, "tcp", []string{"reach proxy", "uplink.proxy"}},
		{"no such interface", func(t *testing.T, o *setup) string {
			o.network.Interface = "no-such-line"
			return serve(t, own.server(t, "127.0.0.1"), cloud).String()
		}, "tcp", []string{`uplink.interface "no-such-line"`, "ip link"}},
		{"bad pin in the settings", func(t *testing.T, o *setup) string {
			o.network.Pins = []string{"short"}
			return "wss://cloud.example.org"
		}, "cloud", []string{"uplink.pin", "[uplink]"}},
		{"a client certificate is wanted", func(t *testing.T, o *setup) string {
			config := own.server(t, "127.0.0.1")
			config.ClientAuth = tls.RequireAnyClientCert
			return serve(t, config, cloud).String()
		}, "authentication", []string{"certificate required", "uplink.client_cert"}},
		{"captive portal", func(t *testing.T, o *setup) string {
			return serve(t, own.server(t, "portal.local"), cloud).String()
		}, "tls", []string{"portal.local", "captive portal"}},
		{"certificate is over", func(t *testing.T, o *setup) string { return serve(t, expired, cloud).String() },
			"tls", []string{"and this clock shows", "clock"}},
		{"no TLS there", func(t *testing.T, o *setup) string { return "wss://" + serve(t, nil, cloud).Host }, "tls", []string{"TLS handshake", "breaks TLS"}},
		{"wrong credential", func(t *testing.T, o *setup) string {
			o.Token = func(string) (string, error) { return "guessed", nil }
			return serve(t, nil, cloud).String()
		}, "authentication", []string{"does not let venue-1 in", "the token is not known", "touchline enroll"}},
		{"no credential", func(t *testing.T, o *setup) string {
			o.Token = func(string) (string, error) { return "", errors.New("there is no token") }
			return serve(t, nil, cloud).String()
		}, "upgrade", []string{"there is no token", "touchline enroll"}},
		{"upgrade forbidden", func(t *testing.T, o *setup) string {
			return serve(t, nil, answers(403, "squid/6.1", "<html>Blocked</html>")).String()
		}, "upgrade", []string{"403", "not by the cloud", "squid/6.1", "allow WebSockets"}},
		{"upgrade required", func(t *testing.T, o *setup) string { return serve(t, nil, answers(426, "", "")).String() }, "upgrade", []string{"426"}},
		{"upgrade eaten", func(t *testing.T, o *setup) string {
			return serve(t, nil, answers(200, "portal", "<html>Welcome</html>")).String()
		}, "upgrade", []string{"200", "captive portal"}},
		{"no cloud", func(t *testing.T, o *setup) string { return serve(t, nil, http.NotFound).String() }, "upgrade", []string{"no touchline cloud"}},
		{"cut off after the upgrade", func(t *testing.T, o *setup) string {
			return serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
				upgrader := websocket.Upgrader{Subprotocols: []string{wire.Subprotocol}}
				if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
					conn.Close()
				}
			}).String()
		}, "round trip", []string{"cuts the connection off"}},
		{"no address", func(t *testing.T, o *setup) string { return "cloud.example.org" }, "cloud", []string{"is no address of a cloud"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSetup(t, own)
			s.URLs = []string{c.to(t, s)}
			r := preflight.Run(t.Context(), s.Options)
			if r.OK != (c.step == "") {
				t.Errorf("ok is %v: %+v", r.OK, r.Checks)
			}
			if text := fmt.Sprintf("%+v", r); strings.Contains(text, "guessed") || strings.Contains(text, "dTpw") || strings.Contains(text, "u:p@") || strings.Contains(text, "secret in it") {
				t.Errorf("a secret is in the report: %s", text)
			}
			if c.step == "" {
				for _, name := range []string{"folder", "sync", "space", "clock", "dns", "tcp", "upgrade", "round trip", "throughput"} {
					if check := find(t, r, name); check.Status == preflight.Fail {
						t.Errorf("%+v", check)
					}
				}
				t.Logf("MEASURED preflight on loopback: %s; %s", find(t, r, "round trip").Detail, find(t, r, "throughput").Detail)
				return
			}
			check := find(t, r, c.step)
			if check.Status != preflight.Fail {
				t.Errorf("%+v: want it to fail", check)
			}
			for _, want := range c.want {
				if !strings.Contains(check.Detail+" "+check.Do, want) {
					t.Errorf("%+v: want %q in it", check, want)
				}
			}
			if check.Do == "" {
				t.Errorf("%+v does not say what to do", check)
			}
		})
	}
}

func TestRun_ShowsThePinOfTheCloud(t *testing.T) {
	own := newCA(t, "own")
	to := serve(t, own.server(t, "127.0.0.1"), http.NotFound)
	conn, err := tls.Dial("tcp", to.Host, &tls.Config{RootCAs: own.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	pin := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	conn.Close()
	s := newSetup(t, own)
	s.URLs = []string{to.String()}
	r := preflight.Run(t.Context(), s.Options)
	if c := find(t, r, "tls"); c.Status != preflight.OK || !strings.Contains(c.Detail, "pin "+base64.StdEncoding.EncodeToString(pin[:])) {
		t.Errorf("%+v: want the pin %x in it", c, pin)
	}
}

// expiredCertificate is by own, and over for a day.
func expiredCertificate(t *testing.T, own *ca) *tls.Config {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(own.dir, credential.CAKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	caKey, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	certBlock, _ := pem.Decode(own.ca.Certificate())
	parent, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "old"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
	}, parent, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func TestRun_FolderThatCantKeepSamples(t *testing.T) {
	r := preflight.Run(t.Context(), preflight.Options{Dir: filepath.Join(t.TempDir(), "none")})
	if c := find(t, r, "folder"); r.OK || c.Status != preflight.Fail || c.Do == "" {
		t.Errorf("a folder that is not there: %+v", c)
	}
	r = preflight.Run(t.Context(), preflight.Options{Dir: t.TempDir(), FreeReserve: 1 << 60})
	if c := find(t, r, "space"); r.OK || c.Status != preflight.Fail || !strings.Contains(c.Do, "free_reserve") {
		t.Errorf("no space: %+v", c)
	}
	if dir, err := os.MkdirTemp("/dev/shm", "preflight-*"); err == nil {
		defer os.RemoveAll(dir)
		r = preflight.Run(t.Context(), preflight.Options{Dir: dir})
		if c := find(t, r, "folder"); r.OK || !strings.Contains(c.Detail, "in memory") {
			t.Errorf("a folder in memory: %+v", c)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("it left %v %v", left, err)
		}
	} else {
		t.Logf("no file system in memory here, so none is tried: %v", err)
	}
}

func TestRun_ListenersAnswerOrArePossible(t *testing.T) {
	own := newCA(t, "own")
	health := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusTeapot)
		}
	}
	mqtt := func(answer string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		t.Cleanup(func() { l.Close(); <-done })
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.ReadFull(bufio.NewReader(conn), make([]byte, 14))
				_, _ = io.WriteString(conn, answer)
				_, _ = conn.Read(make([]byte, 16))
				conn.Close()
			}
		}()
		return l.Addr().String()
	}
	plain, secure := serve(t, nil, health).Host, serve(t, own.server(t, "127.0.0.1"), health).Host
	_, port, _ := net.SplitHostPort(plain)
	for name, c := range map[string]struct {
		l       preflight.Listener
		running bool
		want    preflight.Status
		text    string
	}{
		"http":              {preflight.Listener{Address: plain, HTTP: true}, true, preflight.OK, "answers"},
		"http on all":       {preflight.Listener{Address: "0.0.0.0:" + port, HTTP: true}, true, preflight.OK, "answers"},
		"https":             {preflight.Listener{Address: secure, HTTP: true, TLS: true}, true, preflight.OK, "certificate until"},
		"https without":     {preflight.Listener{Address: plain, HTTP: true, TLS: true}, true, preflight.Fail, "TLS"},
		"mqtt":              {preflight.Listener{Address: mqtt("\x20\x02\x00\x00")}, true, preflight.OK, "answers"},
		"mqtt that refuses": {preflight.Listener{Address: mqtt("\x20\x02\x00\x05")}, true, preflight.OK, "answers"},
		"another protocol":  {preflight.Listener{Address: mqtt("HTTP/1.1 400")}, true, preflight.Fail, "does not speak MQTT"},
		"nobody":            {preflight.Listener{Address: closed(t)}, true, preflight.Fail, "does not answer"},
		"free":              {preflight.Listener{Address: closed(t)}, false, preflight.OK, "is free"},
		"taken":             {preflight.Listener{Address: plain, HTTP: true}, false, preflight.Fail, "in use"},
	} {
		c.l.Setting = "sensors.x.listen"
		r := preflight.Run(t.Context(), preflight.Options{Dir: t.TempDir(), Running: c.running, Listeners: []preflight.Listener{c.l}})
		if check := find(t, r, "sensors.x.listen"); check.Status != c.want || !strings.Contains(check.Detail, c.text) {
			t.Errorf("%s: %+v, want %s with %q", name, check, c.want, c.text)
		}
	}
}
