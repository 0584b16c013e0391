package cloud_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline/cloud"
	"touchline/internal/netlab"
	"touchline/wire"
)

// A mutualCA signs what the clients of these tests show.
type mutualCA struct {
	t   *testing.T
	dir string
	*netlab.Authority
}

func newMutualCA(t *testing.T, name string) *mutualCA {
	t.Helper()
	a, err := netlab.NewAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	return &mutualCA{t: t, dir: t.TempDir(), Authority: a}
}

// file is the CA's certificate.
func (ca *mutualCA) file() string {
	ca.t.Helper()
	name := filepath.Join(ca.dir, "ca.crt")
	if err := os.WriteFile(name, ca.PEM(), 0o600); err != nil {
		ca.t.Fatal(err)
	}
	return name
}

func (ca *mutualCA) issue(c netlab.Certificate) (pair tls.Certificate, text string) {
	ca.t.Helper()
	cert, key, err := ca.Issue(ca.dir, c)
	if err != nil {
		ca.t.Fatal(err)
	}
	if pair, err = tls.LoadX509KeyPair(cert, key); err != nil {
		ca.t.Fatal(err)
	}
	data, err := os.ReadFile(cert)
	if err != nil {
		ca.t.Fatal(err)
	}
	return pair, string(data)
}

// A shown certificate is one that a client comes with, and what it is told: ""
// is let in.
type shown struct {
	pair tls.Certificate
	text string
	want string
}

func shownCertificates(t *testing.T, ca *mutualCA) map[string]shown {
	t.Helper()
	cases := make(map[string]shown)
	add := func(name, want string, by *mutualCA, c netlab.Certificate) {
		pair, text := by.issue(c)
		cases[name] = shown{pair, text, want}
	}
	add("its own", "", ca, netlab.Certificate{Name: "arena"})
	add("another gateway's", `is of "gym"`, ca, netlab.Certificate{Name: "gym"})
	add("expired", "has expired", ca, netlab.Certificate{Name: "arena", Until: time.Now().Add(-time.Hour)})
	add("of another CA", "signed by unknown authority", newMutualCA(t, "strangers"), netlab.Certificate{Name: "arena"})
	add("of a CA of the same name", "signed by unknown authority", newMutualCA(t, "gateways"), netlab.Certificate{Name: "arena"})
	add("a server's", "incompatible key usage", ca, netlab.Certificate{Name: "arena", Hosts: []string{"arena"}})
	return cases
}

// request asks to be let in to the uplink, as a POST: what a handshake is
// refused with is the same, and can be read.
func request(t *testing.T, client *http.Client, to string, more http.Header) (status int, said string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, to+wire.ArchivePath, strings.NewReader("no archive"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header("arena")
	for name, values := range more {
		req.Header[name] = values
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// checkLetIn: what is no archive is a 4xx too, but not 403.
func checkLetIn(t *testing.T, status int, said, want string) {
	t.Helper()
	if want == "" {
		if status == http.StatusForbidden || status == http.StatusUnauthorized {
			t.Errorf("it was refused: %d %s", status, said)
		}
		return
	}
	if status != http.StatusForbidden || !strings.Contains(strings.ReplaceAll(said, `\"`, `"`), want) || !strings.Contains(said, "gateways show a client certificate here") {
		t.Errorf("the answer is %d %s, want a 403 with %q", status, said, want)
	}
}

func TestMutual_TheConnectionsCertificateDecides(t *testing.T) {
	ca := newMutualCA(t, "gateways")
	var log bytes.Buffer
	opts := options()
	certFile, keyFile, err := ca.Issue(ca.dir, netlab.Certificate{Name: "cloud", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	opts.CertFile, opts.KeyFile, opts.ClientCA = certFile, keyFile, ca.file()
	server, err := cloud.New(opts, newMemory("arena"), slog.New(slog.NewTextHandler(&lockedWriter{w: &log}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	n := run(t, server)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	ask := func(t *testing.T, own *tls.Certificate, path string) (int, string) {
		config := &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if own == nil {
				return &tls.Certificate{}, nil
			}
			return own, nil
		}}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		if path != "" {
			resp, err := client.Get("https://" + n.addr + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode, ""
		}
		return request(t, client, "https://"+n.addr, nil)
	}
	for name, c := range shownCertificates(t, ca) {
		t.Run(name, func(t *testing.T) {
			status, said := ask(t, &c.pair, "")
			checkLetIn(t, status, said, c.want)
		})
	}
	status, said := ask(t, nil, "")
	checkLetIn(t, status, said, "showed none")
	if status, _ := ask(t, nil, "/healthz"); status != http.StatusOK {
		t.Errorf("a health check without a certificate: %d", status)
	}
	n.end() // and with it the log
	if !strings.Contains(log.String(), "without the client certificate of its gateway") || !strings.Contains(log.String(), "gateway=arena") {
		t.Errorf("the cloud's log does not say whom it refused: %s", log.String())
	}
}

func TestMutual_ATrustedProxyNamesTheCertificate(t *testing.T) {
	const name = "X-Ssl-Client-Cert"
	ca := newMutualCA(t, "gateways")
	opts := options()
	opts.ClientCA, opts.ClientCertHeader = ca.file(), "x-ssl-client-cert"
	opts.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	n := start(t, opts, newMemory("arena"))
	from := func(addr string) *http.Client {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
		return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	}
	proxy, stranger := from("127.0.0.2"), from("127.0.0.1")
	dropped := uint64(0)
	for what, c := range shownCertificates(t, ca) {
		t.Run(what, func(t *testing.T) {
			for _, escaped := range []string{
				url.PathEscape(c.text),
				strings.ReplaceAll(url.QueryEscape(c.text), "+", "%20"), // as nginx does
				strings.NewReplacer("BEGIN ", "BEGIN%20", "END ", "END%20", "\n", "%0A").Replace(c.text), // as HAProxy is told to
			} {
				status, said := request(t, proxy, "http://"+n.addr, http.Header{name: {escaped}})
				checkLetIn(t, status, said, c.want)
				status, said = request(t, stranger, "http://"+n.addr, http.Header{name: {escaped}})
				checkLetIn(t, status, said, "showed none")
				if dropped++; n.server.Stats().ForeignHeaders != dropped {
					t.Errorf("%d headers of strangers are counted, want %d", n.server.Stats().ForeignHeaders, dropped)
				}
			}
		})
	}
	_, good := ca.issue(netlab.Certificate{Name: "arena"})
	for what, c := range map[string]struct {
		values []string
		want   string
	}{
		"none":       {nil, "showed none"},
		"empty":      {[]string{""}, "showed none"},
		"twice":      {[]string{url.PathEscape(good), url.PathEscape(good)}, "more than once"},
		"nonsense":   {[]string{"nonsense"}, "want URL-escaped PEM"},
		"bad escape": {[]string{"%zz"}, "can't be read"},
		"bad DER":    {[]string{url.PathEscape("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")}, "can't be read"},
		"six":        {[]string{url.PathEscape(strings.Repeat(good, 5))}, "more than 4 certificates"},
	} {
		t.Run(what, func(t *testing.T) {
			status, said := request(t, proxy, "http://"+n.addr, http.Header{name: c.values})
			checkLetIn(t, status, said, c.want)
		})
	}
	if n.server.Stats().ForeignHeaders != dropped {
		t.Error("headers of the trusted proxy are counted as a stranger's")
	}
}

func TestForwardedFor_IsBelievedOfATrustedProxyOnly(t *testing.T) {
	opts := options()
	opts.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("10.0.0.0/8")}
	n := start(t, opts, newMemory("arena"))
	for _, c := range []struct{ from, forwarded, want string }{
		{"127.0.0.2", "203.0.113.9", "203.0.113.9"},
		{"127.0.0.2", "198.51.100.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"}, // what a client adds comes first
		{"127.0.0.2", "203.0.113.9:4711", "203.0.113.9"},
		{"127.0.0.2", "[2001:db8::1]:4711", "2001:db8::1"},
		{"127.0.0.2", "::ffff:203.0.113.9", "203.0.113.9"},
		{"127.0.0.2", "unknown", "127.0.0.2:"},
		{"127.0.0.1", "203.0.113.9", "127.0.0.1:"},
	} {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.from)}}
		h := header("arena")
		h.Set("X-Forwarded-For", c.forwarded)
		dialer := websocket.Dialer{NetDialContext: d.DialContext, Subprotocols: []string{wire.Subprotocol}}
		conn, _, err := dialer.Dial("ws://"+n.addr+wire.UplinkPath, h)
		if err != nil {
			t.Fatal(err)
		}
		g := &gateway{t: t, conn: conn, id: "arena"}
		g.say(&wire.Hello{Gateway: "arena", Clock: "set"})
		next[*wire.Welcome](g)
		if got := n.remote("arena"); !strings.HasPrefix(got, c.want) {
			t.Errorf("from %s for %q the session is of %s, want %s", c.from, c.forwarded, got, c.want)
		}
		conn.Close()
		eventually(t, "the session ends", func() bool { return n.server.Stats().Connections == 0 })
	}
}

// remote says from where the session of a gateway is, as readers see it.
func (n *node) remote(id string) string {
	n.t.Helper()
	_, _, body := n.get("/v1/gateways")
	answer := unmarshal[struct {
		Gateways []struct {
			ID      string
			Session *struct{ Remote string }
		}
	}](n.t, body)
	for _, g := range answer.Gateways {
		if g.ID == id && g.Session != nil {
			return g.Session.Remote
		}
	}
	n.t.Fatalf("%s has no session: %s", id, body)
	return ""
}
