package uplink

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
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// A proxyServer is an HTTP (CONNECT) or SOCKS5 proxy that counts its tunnels.
type proxyServer struct {
	t        testing.TB
	listener net.Listener
	auth     string // user:password, or none
	answer   string // to CONNECT, instead of a tunnel
	wg       sync.WaitGroup

	mu    sync.Mutex
	count int
	conns []net.Conn
}

func newProxyServer(t testing.TB, auth string, serve func(*proxyServer, net.Conn, *bufio.Reader) (string, error)) *proxyServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxyServer{t: t, listener: l, auth: auth}
	p.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.conns = append(p.conns, conn)
			p.mu.Unlock()
			p.wg.Go(func() { p.tunnel(conn, serve) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxyServer) tunnel(conn net.Conn, serve func(*proxyServer, net.Conn, *bufio.Reader) (string, error)) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	target, err := serve(p, conn, r)
	if err != nil {
		return
	}
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.count++
	p.conns = append(p.conns, up)
	p.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); io.Copy(up, r); up.Close() }()
	io.Copy(conn, up)
	conn.Close()
	<-done
}

func (p *proxyServer) tunnels() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func serveConnect(p *proxyServer, conn net.Conn, r *bufio.Reader) (string, error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return "", err
	}
	if p.answer != "" {
		io.WriteString(conn, p.answer)
		return "", errors.New("refused")
	}
	if req.Method != http.MethodConnect {
		p.t.Errorf("the proxy is asked to %s", req.Method)
	}
	if p.auth != "" && req.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(p.auth)) {
		io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
		return "", errors.New("refused")
	}
	_, err = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
	return req.Host, err
}

func serveSOCKS(p *proxyServer, conn net.Conn, r *bufio.Reader) (string, error) {
	read := func(n int) []byte {
		b := make([]byte, n)
		io.ReadFull(r, b)
		return b
	}
	methods := read(int(read(2)[1]))
	if p.auth != "" {
		if !strings.Contains(string(methods), "\x02") {
			conn.Write([]byte{5, 0xff})
			return "", errors.New("refused")
		}
		conn.Write([]byte{5, 2})
		user := read(int(read(2)[1]))
		password := read(int(read(1)[0]))
		if string(user)+":"+string(password) != p.auth {
			conn.Write([]byte{1, 1})
			return "", errors.New("refused")
		}
		conn.Write([]byte{1, 0})
	} else {
		conn.Write([]byte{5, 0})
	}
	head := read(4)
	var host string
	switch head[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	default:
		return "", errors.New("address type")
	}
	port := read(2)
	_, err := conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return net.JoinHostPort(host, fmt.Sprint(int(port[0])<<8|int(port[1]))), err
}

func TestProxy_LeadsToTheCloud(t *testing.T) {
	for _, c := range []struct {
		name, scheme, auth, given, wantErr string
		serve                              func(*proxyServer, net.Conn, *bufio.Reader) (string, error)
	}{
		{"CONNECT", "http://", "", "", "", serveConnect},
		{"CONNECT with Basic", "http://", "venue:s3cret-word", "venue:s3cret-word@", "", serveConnect},
		{"CONNECT without the password", "http://", "venue:s3cret-word", "", "407", serveConnect},
		{"SOCKS5", "socks5://", "", "", "", serveSOCKS},
		{"SOCKS5 with password", "socks5://", "venue:s3cret-word", "venue:s3cret-word@", "", serveSOCKS},
		{"SOCKS5 with a wrong one", "socks5://", "venue:s3cret-word", "venue:other-word@", "proxy", serveSOCKS},
	} {
		for _, requests := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, requests %v", c.name, requests), func(t *testing.T) {
				w := newWorld(t)
				p := newProxyServer(t, c.auth, c.serve)
				o := w.options()
				if requests {
					o.URLs = []string{newBridge(t, w.cloud).url()}
				}
				o.Network.Proxy = c.scheme + c.given + p.listener.Addr().String()
				w.source.add(blocks(touchline.NewEpoch(), 1, 10, 5, 1000)...)
				u := w.uplink(o)
				w.start(u)
				if c.wantErr != "" {
					awaitStats(t, u, "refused", func(st Stats) bool { return contains(st.LastError, c.wantErr) })
				} else {
					w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
					if p.tunnels() == 0 {
						t.Error("nothing went through the proxy")
					}
				}
				for _, secret := range []string{"s3cret-word", "other-word"} {
					if contains(w.logs.String(), secret) || contains(u.Stats().LastError, secret) {
						t.Errorf("the password %q is shown", secret)
					}
				}
			})
		}
	}
}

func TestProxy_StrangeAnswersAreErrors(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 407\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 999 \r\n\r\n", "SSH-2.0-x\r\n", "", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 2*maxConnectBytes),
	} {
		w := newWorld(t)
		p := newProxyServer(t, "", serveConnect)
		p.answer = answer + " "
		o := w.options()
		o.Network.Proxy = "http://" + p.listener.Addr().String()
		u := w.uplink(o)
		stop := w.start(u)
		awaitStats(t, u, "an error", func(st Stats) bool { return st.Dials > 1 && contains(st.LastError, "proxy") })
		stop()
	}
}

func TestProxy_SettingsAndEnvironment(t *testing.T) {
	to, _ := parseURL("wss://cloud.example.org")
	t.Setenv("HTTPS_PROXY", "http://user:pw@proxy.example:3128")
	t.Setenv("HTTP_PROXY", "")
	t.Setenv("NO_PROXY", "inside.example.org")
	choose, err := chooseProxy("")
	if err != nil {
		t.Fatal(err)
	}
	if u, err := choose(to); err != nil || u == nil || u.Host != "proxy.example:3128" {
		t.Errorf("HTTPS_PROXY gives %v %v", u, err)
	}
	inside, _ := parseURL("wss://inside.example.org")
	if u, err := choose(inside); err != nil || u != nil {
		t.Errorf("NO_PROXY gives %v %v", u, err)
	}
	t.Setenv("HTTPS_PROXY", "http://user:p4ssword in it@%zz")
	if choose, err = chooseProxy(""); err != nil {
		t.Fatal(err)
	} else if u, err := choose(to); err == nil || contains(err.Error(), "p4ssword") {
		t.Errorf("a proxy that is no address gives %v %v, not past it", u, err)
	} else if u, err := choose(inside); err != nil || u != nil {
		t.Errorf("NO_PROXY beside it gives %v %v", u, err)
	}
	if choose, err = chooseProxy("direct"); err != nil {
		t.Fatal(err)
	} else if u, err := choose(to); err != nil || u != nil {
		t.Errorf("direct gives %v %v", u, err)
	}
	for _, bad := range []string{"ftp://p4ssword@x", "http://", "p4ssword", "http://u:p4ssword@%zz"} {
		if _, err := chooseProxy(bad); err == nil || contains(err.Error(), "p4ssword") && bad != "p4ssword" {
			t.Errorf("proxy %q: %v", bad, err)
		}
	}
}

// pki is a root and a certificate of it for 127.0.0.1.
type pki struct {
	caFile, certFile, keyFile string
	pin                       string
	server                    tls.Certificate
	pool                      *x509.CertPool
}

func newPKI(t testing.TB, from, to time.Time) pki {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "cloud"}, NotBefore: from, NotAfter: to, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	dir := t.TempDir()
	file := func(name, kind string, data []byte) string {
		path := filepath.Join(dir, name)
		check(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600))
		return path
	}
	p := pki{caFile: file("ca.pem", "CERTIFICATE", caDER), certFile: file("cert.pem", "CERTIFICATE", der), keyFile: file("key.pem", "PRIVATE KEY", keyDER), pool: x509.NewCertPool()}
	p.server, err = tls.LoadX509KeyPair(p.certFile, p.keyFile)
	check(err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	check(err)
	sum := sha256.Sum256(spki)
	p.pin = base64.StdEncoding.EncodeToString(sum[:])
	root, err := x509.ParseCertificate(caDER)
	check(err)
	p.pool.AddCert(root)
	return p
}

func TestTLS_RootsPinsClientCertificatesAndTime(t *testing.T) {
	now := time.Now()
	good := newPKI(t, now.Add(-time.Hour), now.Add(time.Hour))
	old := newPKI(t, now.Add(-48*time.Hour), now.Add(-24*time.Hour))
	other := newPKI(t, now.Add(-time.Hour), now.Add(time.Hour))
	for _, c := range []struct {
		name    string
		server  pki
		mutual  bool
		network Network
		want    string    // in the error; "" is delivered
		at      time.Time // at which certificates are checked; zero is now
	}{
		{"own roots", good, false, Network{CAFile: good.caFile}, "", time.Time{}},
		{"other roots", good, false, Network{CAFile: other.caFile}, "certificate", time.Time{}},
		{"no roots", good, false, Network{}, "certificate", time.Time{}},
		{"pin", good, false, Network{Pins: []string{other.pin, good.pin}}, "", time.Time{}},
		{"another pin", good, false, Network{Pins: []string{other.pin}}, "uplink.pin", time.Time{}},
		{"pin and roots", good, false, Network{Pins: []string{good.pin}, CAFile: good.caFile}, "", time.Time{}},
		{"pin and other roots", good, false, Network{Pins: []string{good.pin}, CAFile: other.caFile}, "certificate", time.Time{}},
		{"another pin and roots", good, false, Network{Pins: []string{other.pin}, CAFile: good.caFile}, "uplink.pin", time.Time{}},
		{"client certificate", good, true, Network{CAFile: good.caFile, CertFile: good.certFile, KeyFile: good.keyFile}, "", time.Time{}},
		{"none", good, true, Network{CAFile: good.caFile}, "certificate", time.Time{}},
		{"expired", old, false, Network{CAFile: old.caFile}, "expired", time.Time{}},
		{"checked at the latest time known", old, false, Network{CAFile: old.caFile}, "", now.Add(-36 * time.Hour)},
		{"never not at all", good, false, Network{CAFile: good.caFile}, "expired", now.Add(48 * time.Hour)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			server := httptest.NewUnstartedServer(w.cloud)
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{c.server.server}}
			if c.mutual {
				server.TLS.ClientAuth, server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, c.server.pool
			}
			server.StartTLS()
			defer server.Close()
			defer server.CloseClientConnections()
			w.source.add(blocks(touchline.NewEpoch(), 1, 5, 5, 1000)...)
			o := w.options()
			o.URLs = []string{server.URL}
			o.Network = c.network
			if !c.at.IsZero() {
				o.TLS = func(host string, roots *x509.CertPool) *tls.Config {
					return &tls.Config{ServerName: host, RootCAs: roots, Time: func() time.Time { return c.at }}
				}
			}
			u := w.uplink(o)
			stop := w.start(u)
			defer stop()
			if c.want == "" {
				w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
				return
			}
			awaitStats(t, u, "refused", func(st Stats) bool { return contains(st.LastError, c.want) })
			if w.cloud.saw().sessions != 0 && !c.mutual {
				t.Error("a token was shown to a server that is not the cloud")
			}
		})
	}
}

func TestNetwork_BadSettingsAreSaid(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Network = Network{Proxy: "gopher://x", CertFile: "only", Pins: []string{"short"}}
	_, err := New(o, w.source, nil)
	for _, want := range []string{"uplink.proxy", "uplink.client_key", "uplink.pin"} {
		if err == nil || !contains(err.Error(), want) {
			t.Errorf("error %v lacks %s", err, want)
		}
	}
	o.Network = Network{CAFile: filepath.Join(t.TempDir(), "none")}
	if _, err := New(o, w.source, nil); err == nil || !contains(err.Error(), "uplink.ca_file") {
		t.Errorf("a missing ca_file: %v", err)
	}
}

func TestInterface_IsUsedOrMissing(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Network.Interface = "lo"
	if list, err := net.InterfaceByName("lo"); err != nil || list == nil {
		t.Skip("this machine has no network interface lo")
	}
	w.source.add(blocks(touchline.NewEpoch(), 1, 5, 5, 1000)...)
	stop := w.start(w.uplink(o))
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	stop()
	conn, err := dialFrom(context.Background(), "lo", &net.Dialer{}, w.cloud.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	o.Network.Interface = "no-such-line"
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "said", func(st Stats) bool {
		return contains(st.LastError, `uplink.interface "no-such-line": there is no such network interface`)
	})
}

// A cloud that refuses a credential because of our clock gives a nonce, and is
// dialed with it at once.
func TestCredential_FetchesANonceWhereTheClockIsRefused(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	nonces, refused := 0, 0
	w.cloud.refuse = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer with-n-1" {
			r.Header.Set("Authorization", "Bearer secret-token")
			return false
		}
		mu.Lock()
		refused++
		mu.Unlock()
		rw.Header().Set("WWW-Authenticate", `Bearer realm="touchline-cloud", error="invalid_token", error_description="the token is not fresh by the cloud's clock: fetch a nonce"`)
		rw.WriteHeader(http.StatusUnauthorized)
		return true
	}
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != wire.NoncePath {
			w.cloud.ServeHTTP(rw, r)
			return
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("a credential was shown where none is asked for")
		}
		mu.Lock()
		nonces++
		mu.Unlock()
		json.NewEncoder(rw).Encode(wire.Nonce{Nonce: "n-1", Time: time.Now()})
	}))
	defer front.Close()
	o := w.options()
	o.URLs = []string{front.URL}
	o.BackoffBase, o.BackoffCap = time.Hour, time.Hour // only what is dialed at once gets there
	o.Token = nil
	o.Credential = func(ctx context.Context, nonce Nonce) (string, error) {
		if !nonce.Wanted {
			return "without", nil
		}
		n, err := nonce.Fetch(ctx)
		return "with-" + n, err
	}
	u := w.uplink(o)
	stop := w.start(u)
	awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
	stop()
	mu.Lock()
	defer mu.Unlock()
	if nonces != 1 || refused != 1 {
		t.Errorf("%d nonces after %d refusals, want one of each", nonces, refused)
	}
}

// What another record store calls stored says nothing here: it gets nothing
// until a person agrees.
func TestStore_AnotherOneGetsNothingUntilAccepted(t *testing.T) {
	w := newWorld(t)
	kept := ""
	var mu sync.Mutex
	o := w.options()
	o.KnownStore = "store-0"
	o.KeepStore = func(id string) error { mu.Lock(); defer mu.Unlock(); kept = id; return nil }
	o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
	w.source.add(blocks(touchline.NewEpoch(), 1, 5, 5, 1000)...)
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "refused", func(st Stats) bool { return st.State == StoreChanged })
	st := u.Stats()
	if st.Store != "store-0" || st.Offered != "store-1" || st.Blocks != 0 || !contains(st.LastError, "touchline uplink accept-store store-1") {
		t.Errorf("stats %+v", st)
	}
	if w.source.left() != 5 {
		t.Error("blocks were forgotten")
	}
	if id, err := u.AcceptStore(""); err != nil || id != "store-1" {
		t.Fatalf("accepted %q: %v", id, err)
	}
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 }) // at once
	mu.Lock()
	defer mu.Unlock()
	if kept != "store-1" {
		t.Errorf("%q was kept", kept)
	}
	if _, err := u.AcceptStore(""); err == nil {
		t.Error("nothing is offered, and it is accepted")
	}
}

func TestStore_TheFirstOneIsKept(t *testing.T) {
	w := newWorld(t)
	kept := make(chan string, 1)
	o := w.options()
	o.KeepStore = func(id string) error { kept <- id; return nil }
	w.start(w.uplink(o))
	if id := <-kept; id != "store-1" {
		t.Errorf("kept %q", id)
	}
}
