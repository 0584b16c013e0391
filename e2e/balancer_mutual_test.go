package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

const certHeader = "X-SSL-Client-Cert"

// TestBalancer_NobodyWritesTheHeaderOfCertificates: with the files of deploy/ a
// client's own word for its certificate is dropped, and with their lines for client
// certificates in place, that of its connection is handed on.
func TestBalancer_NobodyWritesTheHeaderOfCertificates(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string]struct{ asItIs, handsOn func(c *cluster, ca string) }{
		"haproxy": {
			func(c *cluster, _ string) { c.haproxy() },
			func(c *cluster, ca string) {
				_, verify, _ := strings.Cut(deployed(t, "haproxy.cfg"), "\t#   verify ")
				verify, _, _ = strings.Cut(verify, "\n")
				c.haproxy("alpn http/1.1\n", "alpn http/1.1 verify "+strings.Replace(verify, "/etc/haproxy/gateways.pem", ca, 1)+"\n",
					"#   http-request set-header "+certHeader, "http-request set-header "+certHeader)
			},
		},
		"nginx": {
			func(c *cluster, _ string) { c.nginx() },
			func(c *cluster, _ string) {
				c.nginx(certHeader+` "";`, certHeader+" $ssl_client_escaped_cert;", "#   ssl_verify_client optional_no_ca;\n", "",
					"\t\tinclude nginx-site.conf;\n", "\t\tinclude nginx-site.conf;\n\t\tssl_verify_client optional_no_ca;\n")
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			crt, key := selfSigned(t, "arena")
			pair, err := tls.X509KeyPair([]byte(crt), []byte(key))
			if err != nil {
				t.Fatal(err)
			}
			ca := filepath.Join(t.TempDir(), "ca.pem")
			writeFile(t, ca, crt)
			c := newCluster(t, onSQLite(t), 1, fmt.Sprintf("[tls]\nclient_ca = %q\nclient_cert_header = %q", ca, certHeader))
			store, err := c.store.open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := store.AddGateway(t.Context(), "arena", sha256.Sum256([]byte("token-of-arena"))); err != nil {
				t.Fatal(err)
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			try := func(what, at string, config *tls.Config, says string, want int) {
				t.Helper()
				header := http.Header{"Authorization": {"Bearer token-of-arena"}, wire.HeaderGateway: {"arena"}}
				if says != "" {
					header.Set(certHeader, says)
				}
				dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, HandshakeTimeout: patience, TLSClientConfig: config}
				conn, resp, err := dialer.Dial(at+wire.UplinkPath, header)
				if err == nil {
					conn.Close()
				} else if resp == nil {
					t.Fatal(err)
				}
				if resp.StatusCode != want {
					t.Errorf("%s: %s, want %d", what, resp.Status, want)
				}
			}
			stranger := &tls.Config{RootCAs: c.roots, MinVersion: tls.VersionTLS12}
			gateway := stranger.Clone()
			gateway.Certificates = []tls.Certificate{pair}
			forged := url.PathEscape(crt)
			front := fmt.Sprintf("wss://127.0.0.1:%d", c.port)

			c.startNodes(0)
			try("the word of a trusted proxy", fmt.Sprintf("ws://127.0.0.1:%d", c.nodes[0].port), nil, forged, http.StatusSwitchingProtocols)
			lines.asItIs(c, ca)
			try("a stranger's word", front, stranger, forged, http.StatusForbidden)
			c.endBalancer()
			lines.handsOn(c, ca)
			try("a stranger's word where certificates are handed on", front, stranger, forged, http.StatusForbidden)
			try("a gateway with its certificate", front, gateway, "", http.StatusSwitchingProtocols)
			try("…that adds a header", front, gateway, forged, http.StatusSwitchingProtocols)
		})
	}
}
