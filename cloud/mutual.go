package cloud

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"time"
)

// mutual says whose client certificate a request came with. It is checked
// here, for each request, and not by TLS: a gateway whose certificate does not
// hold is told why, once it has shown a token that does, where an alert of TLS says
// next to nothing on both sides. That the other side has the certificate's key is shown
// by TLS, or was to the proxy that hands the certificate on.
type mutual struct {
	roots  *x509.CertPool // nil: no certificate is asked for
	header string         // in which trusted proxies hand it on; "": in none
	from   addresses
	stats  *counters
}

// open reads the CA of client certificates.
func (m *mutual) open(file string) error {
	if file == "" {
		return nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the CA of client certificates: %w", err)
	}
	m.roots = x509.NewCertPool()
	if !m.roots.AppendCertsFromPEM(data) {
		return fmt.Errorf("%s holds no certificate (PEM)", file)
	}
	return nil
}

// strip takes the header away where it comes from anybody but a trusted proxy.
func (m *mutual) strip(next http.Handler) http.Handler {
	if m.header == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Values(m.header) != nil && !m.from.trusted(peer(r.RemoteAddr)) {
			r.Header.Del(m.header)
			m.stats.foreignHeaders.Add(1)
		}
		next.ServeHTTP(w, r)
	})
}

// check returns why the request is not let in as gateway: nil where no
// certificate is asked for, or where the one that it came with is the gateway's.
func (m *mutual) check(r *http.Request, gateway string) error {
	if m.roots == nil {
		return nil
	}
	chain, err := m.shown(r)
	if err != nil {
		return err
	}
	if len(chain) == 0 {
		return errors.New("this connection showed none")
	}
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		others.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: others, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return fmt.Errorf("the one of this connection, of %.60q, does not hold: %w", chain[0].Subject.CommonName, err)
	}
	if name := chain[0].Subject.CommonName; name != gateway {
		return fmt.Errorf("the one of this connection is of %.60q", name)
	}
	return nil
}

// shown returns the certificate and what came with it: that of the connection,
// or what a proxy says of the one that it forwards.
func (m *mutual) shown(r *http.Request) ([]*x509.Certificate, error) {
	if m.header != "" && m.from.trusted(peer(r.RemoteAddr)) {
		switch values := r.Header.Values(m.header); {
		case len(values) > 1: // one of them is not the proxy's
			return nil, fmt.Errorf("the header %s came more than once: the load balancer must replace what it is sent", m.header)
		case len(values) == 1 && values[0] != "":
			return parseForwarded(m.header, values[0])
		}
		return nil, nil // the connection's own would be the proxy's
	}
	if r.TLS == nil {
		return nil, nil
	}
	return r.TLS.PeerCertificates, nil
}

// maxForwarded bounds a chain; a leaf and an intermediate are usual.
const maxForwarded = 4

// parseForwarded reads PEM, URL-escaped as nginx's $ssl_client_escaped_cert is.
// A plus stands for itself, so that base64 need not be escaped.
func parseForwarded(header, value string) (chain []*x509.Certificate, err error) {
	fail := func(err error) ([]*x509.Certificate, error) {
		return nil, fmt.Errorf("the header %s of the load balancer can't be read: %w", header, err)
	}
	text, err := url.PathUnescape(value)
	if err != nil {
		return fail(err)
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fail(err)
		}
		if chain = append(chain, c); len(chain) > maxForwarded {
			return fail(fmt.Errorf("more than %d certificates", maxForwarded))
		}
	}
	if len(chain) == 0 {
		return fail(errors.New("want URL-escaped PEM"))
	}
	return chain, nil
}

// checkHeaderName refuses what is no name of a header, or one that means
// something else.
func checkHeaderName(name string) error {
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && (c == '-' || c >= '0' && c <= '9')) {
			return fmt.Errorf("%.60q is no name of a header: want letters, digits and -, such as X-SSL-Client-Cert", name)
		}
	}
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Authorization", "Host", "Upgrade", "Connection", "X-Forwarded-For", "X-Touchline-Gateway":
		return fmt.Errorf("%q means something else: use such as X-SSL-Client-Cert", name)
	}
	return nil
}
