package cloud_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"touchline/internal/netlab"
	"touchline/wire"
)

// documented returns the lines that docs/protocol.md has for a load balancer,
// without its comments.
func documented(t *testing.T, balancer string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "### Behind a load balancer")
	_, block, ok2 := strings.Cut(section, "\n# "+balancer)
	if !ok || !ok2 {
		t.Fatalf("docs/protocol.md has no lines for %s", balancer)
	}
	end := strings.Index(block, "\n\n")
	if fence := strings.Index(block, "\n```"); end < 0 || fence < end {
		end = fence
	}
	return balancer + block[:end]
}

// balancer is one program, configured by what the docs say of it.
type balancer struct {
	program string
	args    func(config string) []string
	config  func(t *testing.T, at, cloud, dir, pem, ca string) string
}

var balancers = []balancer{
	{"nginx", func(config string) []string {
		return []string{"-e", "stderr", "-p", filepath.Dir(config), "-c", config}
	},
		func(t *testing.T, at, cloud, dir, pem, _ string) string {
			_, lines, _ := strings.Cut(documented(t, "nginx"), "\n")
			return fmt.Sprintf(`daemon off; master_process off; pid %s/pid; error_log stderr; worker_rlimit_nofile 1024;
events { worker_connections 100; }
http { access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
server { listen %s ssl; ssl_certificate %s; ssl_certificate_key %[3]s;
%s
proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; proxy_http_version 1.1;
location / { proxy_pass http://%s; } } }
`, dir, at, pem, lines, cloud)
		}},
	{"haproxy", func(config string) []string { return []string{"-db", "-f", config} },
		func(t *testing.T, at, cloud, _, pem, ca string) string {
			first, lines, _ := strings.Cut(documented(t, "HAProxy"), "\n")
			_, verify, _ := strings.Cut(first, " verify ")
			verify = regexp.MustCompile(`ca-file \S+`).ReplaceAllString(verify, "ca-file "+ca)
			return fmt.Sprintf(`defaults
 mode http
 timeout connect 10s
 timeout client 60s
 timeout server 60s
 timeout tunnel 60s
frontend f
 bind %s ssl crt %s verify %s
%s
 default_backend b
backend b
 server s %s
`, at, pem, verify, lines, cloud)
		}},
}

// TestMutual_BehindRealLoadBalancers has nginx and HAProxy end TLS, configured
// as docs/protocol.md says.
func TestMutual_BehindRealLoadBalancers(t *testing.T) {
	for _, b := range balancers {
		t.Run(b.program, func(t *testing.T) {
			path, err := exec.LookPath(b.program)
			if err != nil {
				if path = "/usr/sbin/" + b.program; exec.Command(path, "-v").Run() != nil {
					t.Skipf("%s is not installed; .ci/setup test installs it", b.program)
				}
			}
			ca := newMutualCA(t, "gateways")
			opts := options()
			opts.ClientCA, opts.ClientCertHeader = ca.file(), "X-SSL-Client-Cert"
			opts.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
			n := start(t, opts, newMemory("arena"))
			at := b.begin(t, path, n.addr, ca)
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(ca.PEM())
			config := func(pair tls.Certificate) *tls.Config {
				return &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
			}
			ask := func(pair tls.Certificate, more http.Header) (int, string) {
				client := &http.Client{Transport: &http.Transport{TLSClientConfig: config(pair), DisableKeepAlives: true}}
				return request(t, client, "https://"+at, more)
			}
			cases := shownCertificates(t, ca)
			for name, c := range cases {
				t.Run(name, func(t *testing.T) {
					status, said := ask(c.pair, nil)
					if name == "expired" && b.program == "nginx" { // which refuses that itself
						if status != http.StatusBadRequest || !strings.Contains(said, "certificate") {
							t.Errorf("the answer is %d %s", status, said)
						}
						return
					}
					checkLetIn(t, status, said, c.want)
				})
			}
			status, said := ask(tls.Certificate{}, nil)
			checkLetIn(t, status, said, "showed none")
			status, said = ask(tls.Certificate{}, http.Header{"X-Ssl-Client-Cert": {url.PathEscape(cases["its own"].text)}})
			checkLetIn(t, status, said, "showed none") // what a client sends is replaced

			dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, TLSClientConfig: config(cases["its own"].pair),
				NetDialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).DialContext}
			conn, resp, err := dialer.Dial("wss://"+at+wire.UplinkPath, header("arena"))
			if err != nil {
				t.Fatal(err, resp)
			}
			defer conn.Close()
			g := &gateway{t: t, conn: conn, id: "arena"}
			g.say(&wire.Hello{Gateway: "arena", Clock: "set"})
			next[*wire.Welcome](g)
			sent := blocks(t, 2)
			g.send(sent...)
			g.stored(sent...)
			if remote := n.remote("arena"); remote != "127.0.0.9" {
				t.Errorf("the session is of %s, want the client's address", remote)
			}
		})
	}
}

// begin starts the program and returns its address when it listens.
func (b *balancer) begin(t *testing.T, path, cloud string, ca *mutualCA) string {
	t.Helper()
	cert, key, err := ca.Issue(ca.dir, netlab.Certificate{Name: "balancer", Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	var both []byte
	for _, name := range []string{cert, key} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	pem, config := filepath.Join(ca.dir, "both.pem"), filepath.Join(ca.dir, "balancer.conf")
	for name, text := range map[string][]byte{pem: both, config: []byte(b.config(t, at, cloud, ca.dir, pem, filepath.Join(ca.dir, "ca.crt")))} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(path, b.args(config)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s says: %s", b.program, log.String())
		}
	})
	eventually(t, b.program+" listens", func() bool {
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", b.program, log.String())
		default:
		}
		conn, err := net.Dial("tcp", at)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return at
}
