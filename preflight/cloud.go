package preflight

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"touchline/uplink"
)

// A way is one address of the cloud, step by step.
type way struct {
	r    *Report
	o    *Options
	to   *url.URL
	lead *uplink.Route
	via  *url.URL // the proxy; nil for none
}

// steps of a way, in order; what comes after one that failed is skipped.
var steps = []struct {
	name string
	do   func(*way, context.Context, string) bool
}{
	{"proxy", (*way).proxy}, {"dns", (*way).dns}, {"tcp", (*way).tcp}, {"tls", (*way).tls}, {"upgrade", (*way).upgrade},
}

// clouds walks each address.
func (r *Report) clouds(ctx context.Context, o *Options) {
	if len(o.URLs) == 0 {
		return
	}
	lead, err := o.Route()
	if err != nil { // it names the setting
		r.add("cloud", Fail, err.Error(), "correct [uplink] in the settings: the gateway does not start like that")
		return
	}
	for _, u := range o.URLs {
		r.cloud(ctx, &way{r: r, o: o, lead: lead}, u)
	}
}

// cloud walks one address.
func (r *Report) cloud(ctx context.Context, w *way, address string) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "ws" && u.Scheme != "wss" {
		r.add("cloud", Fail, fmt.Sprintf("%q is no address of a cloud", address), "write such as \"wss://cloud.example.org\" into uplink.urls")
		return
	}
	w.to = u
	for i, s := range steps {
		step, cancel := context.WithTimeout(ctx, stepTimeout)
		ok := s.do(w, step, s.name+" "+u.Host)
		cancel()
		if ok {
			continue
		}
		for _, later := range steps[i+1:] {
			r.add(later.name+" "+u.Host, Skip, "not looked at, since "+s.name+" failed", "")
		}
		return
	}
}

// proxy finds out whether there is one.
func (w *way) proxy(_ context.Context, name string) bool {
	via, err := w.lead.Proxy(w.to)
	if err != nil { // which shows no password
		w.r.add(name, Fail, err.Error(), "look at uplink.proxy, or where that is empty at HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the gateway's environment")
		return false
	}
	if w.via = via; via == nil {
		w.r.ok(name, "none")
		return true
	}
	w.r.ok(name, "%s://%s", via.Scheme, via.Host)
	return true
}

// dns resolves the name; with a proxy, the proxy's, which resolves the cloud's.
func (w *way) dns(ctx context.Context, name string) bool {
	host, whose := w.to.Hostname(), ""
	if w.via != nil {
		host, whose = w.via.Hostname(), " (the proxy's)"
	}
	if net.ParseIP(host) != nil {
		w.r.ok(name, "%s%s is an address", host, whose)
		return true
	}
	lookup := w.o.Lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	began := time.Now()
	addresses, err := lookup(ctx, host)
	if err != nil || len(addresses) == 0 {
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			w.r.add(name, Fail, fmt.Sprintf("%s%s does not exist, says the DNS server", host, whose), "look for a typo in uplink.urls; if there is none, the venue's DNS hides it: ask its operator, or set another DNS server")
			return false
		}
		w.r.add(name, Fail, fmt.Sprintf("%s%s can't be resolved: %v", host, whose, err), "no DNS server answers: is the network cable in, is there an address (DHCP), is UDP port 53 allowed?")
		return false
	}
	w.r.ok(name, "%s%s is %s (%s)", host, whose, strings.Join(addresses[:min(3, len(addresses))], ", "), round(time.Since(began)))
	return true
}

// dial connects to the cloud, through the proxy and by the interface that the
// uplink has.
func (w *way) dial(ctx context.Context) (net.Conn, error) { return w.lead.Dial(ctx, w.to) }

func (w *way) tcp(ctx context.Context, name string) bool {
	began := time.Now()
	conn, err := w.dial(ctx)
	if err != nil {
		w.r.fail(name, err, tcpHint(err))
		return false
	}
	_ = conn.Close()
	by := ""
	if line := w.lead.Interface(); line != "" {
		by = " by " + line
	}
	w.r.ok(name, "%s is reached in %s%s", w.to.Host, round(time.Since(began)), by)
	return true
}

func tcpHint(err error) string {
	var proxy *uplink.ProxyError
	var line *uplink.InterfaceError
	var timeout net.Error
	switch {
	case errors.As(err, &line):
		return "plug it in, or correct uplink.interface: `ip link` lists those that there are"
	case errors.As(err, &proxy) && proxy.Password:
		return "the proxy wants a user and password: put them into a file, USER:PASSWORD, and name that in uplink.proxy_password_file"
	case errors.As(err, &proxy) && proxy.Reached:
		return "the proxy does not let this through: ask its operator to allow connections (CONNECT) to the cloud"
	case errors.As(err, &proxy):
		return "the proxy does not answer: look at its address in uplink.proxy, or in HTTP_PROXY and HTTPS_PROXY of the gateway's environment"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there, or a firewall refuses: look at the port in uplink.urls, and ask the network's operator"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer at all: a firewall swallows it; ask the network's operator to allow outgoing TCP to this address and port"
	}
	return "is there a route to the internet? Look at the gateway's address and default route"
}

// tls makes the handshake, and says who vouches for the cloud.
func (w *way) tls(ctx context.Context, name string) bool {
	if w.to.Scheme != "wss" {
		w.r.add(name, Warn, "none: the address begins with ws://", "whoever reads along gets credential and samples: use wss:// beyond a network of your own")
		return true
	}
	conn, err := w.dial(ctx)
	if err != nil {
		w.r.fail(name, err, tcpHint(err))
		return false
	}
	defer conn.Close()
	config, err := w.lead.TLS(w.to.Hostname())
	if err != nil {
		w.r.fail(name, err, "look at the files that [uplink] names")
		return false
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		w.r.fail(name, tlsError(err, w.to.Hostname()), tlsHint(err))
		return false
	}
	state := secure.ConnectionState()
	cert := state.PeerCertificates[0]
	pin := sha256.Sum256(cert.RawSubjectPublicKeyInfo) // as uplink.pin wants it
	detail := fmt.Sprintf("%s, certificate by %s until %s, pin %s", tls.VersionName(state.Version), issuer(cert), cert.NotAfter.Format(time.DateOnly),
		base64.StdEncoding.EncodeToString(pin[:]))
	if left := time.Until(cert.NotAfter); left < 7*24*time.Hour {
		w.r.add(name, Warn, detail, "it ends soon: tell the cloud's operator")
		return true
	}
	w.r.ok(name, "%s", detail)
	return true
}

func issuer(cert *x509.Certificate) string {
	if name := cert.Issuer.String(); name != "" {
		return fmt.Sprintf("%.200q", name)
	}
	return "nobody"
}

// tlsError says what was shown instead of the cloud's certificate.
func tlsError(err error, host string) error {
	var verification *tls.CertificateVerificationError
	if !errors.As(err, &verification) || len(verification.UnverifiedCertificates) == 0 {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	cert := verification.UnverifiedCertificates[0]
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("the certificate shown for %s is by %s, whom this machine does not know", host, issuer(cert))
	case errors.As(err, &name):
		return fmt.Errorf("the certificate shown is not of %s, but of %.200q, by %s", host, names(cert), issuer(cert))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the certificate holds from %s to %s, and this clock shows %s",
			cert.NotBefore.Format(time.DateTime), cert.NotAfter.Format(time.DateTime), time.Now().UTC().Format(time.DateTime))
	}
	return fmt.Errorf("the certificate shown, by %s, does not hold: %w", issuer(cert), verification.Err)
}

func names(cert *x509.Certificate) string {
	if len(cert.DNSNames) > 0 {
		return strings.Join(cert.DNSNames, ", ")
	}
	return cert.Subject.String()
}

const clientCertHint = "the cloud, or what stands before it, wants a client certificate of its CA that holds now: look at uplink.client_cert and client_key, and ask the cloud's operator for them"

func tlsHint(err error) string {
	var pin *uplink.PinError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case errors.As(err, &pin):
		return "if the cloud's operator confirms that this is its new key, put it into uplink.pin; if not, TLS is intercepted: ask the network's operator to except the cloud's address"
	case uplink.RefusedOurCertificate(err):
		return clientCertHint
	case errors.As(err, &unknown):
		return "TLS is intercepted by a proxy or firewall of that name: ask the network's operator to except the cloud's address. If it is the cloud's own CA, name that in uplink.ca_file"
	case errors.As(err, &name):
		return "a captive portal or another server answers: open a page in a browser on this network, and look at uplink.urls"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "set this machine's clock; if it is right, tell the cloud's operator"
	}
	return "something in between breaks TLS, or what answers is no cloud: look at the port in uplink.urls"
}
