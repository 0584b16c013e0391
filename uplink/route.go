package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"syscall"
	"time"
)

// A Route is how everything that goes to the cloud goes there: sessions and
// their fallback, enrolment, the archives of other gateways, and preflight. It
// opens nothing before it is asked to; its methods may be called by any
// goroutine. Files that a Network names are read at each connection.
type Route struct {
	network Network
	config  func(host string, roots *x509.CertPool) *tls.Config
	choose  proxyChoice
	dial    dialFunc // one TCP connection, without a proxy
	timeout time.Duration
}

// NewRoute returns the route of a gateway that uses n. config is as
// Options.TLS. The error names every setting that is wrong.
func NewRoute(n Network, config func(host string, roots *x509.CertPool) *tls.Config) (*Route, error) {
	if err := n.validate(); err != nil {
		return nil, err
	}
	o := Defaults()
	o.Network, o.TLS = n, config
	return newRoute(&o)
}

func newRoute(o *Options) (*Route, error) {
	choose, err := chooseProxy(o.Network.Proxy)
	if err != nil {
		return nil, err
	}
	r := &Route{network: o.Network, config: o.TLS, choose: choose, dial: netDialer(o), timeout: o.HandshakeTimeout}
	if r.config == nil {
		r.config = systemTLS
	}
	return r, nil
}

// systemTLS is for wss: by the system's clock, and nothing older than TLS 1.2.
func systemTLS(host string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, RootCAs: roots}
}

// Interface returns the network interface that is used; "" is any.
func (r *Route) Interface() string { return r.network.Interface }

// Proxy returns by which proxy to is reached, nil for none. The URL may hold a
// user and password: it is not to be shown as it is.
func (r *Route) Proxy(to *url.URL) (*url.URL, error) { return r.choose(to) }

// Dial returns a TCP connection to the host of to, a ws, wss, http or https
// URL, through the proxy where there is one. A *ProxyError in its error says
// that it was the proxy.
func (r *Route) Dial(ctx context.Context, to *url.URL) (net.Conn, error) {
	dial, err := r.dialer(to)
	if err != nil {
		return nil, err
	}
	port := to.Port()
	if port == "" {
		port = map[string]string{"ws": "80", "http": "80", "wss": "443", "https": "443"}[to.Scheme]
	}
	return dial(ctx, "tcp", net.JoinHostPort(to.Hostname(), port))
}

// dialTo is Dial as gorilla and net/http want it; addr is of a URL with scheme.
func (r *Route) dialTo(scheme string) dialFunc {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		return r.Dial(ctx, &url.URL{Scheme: scheme, Host: addr})
	}
}

// dialTLSTo is dialTo with DialTLS.
func (r *Route) dialTLSTo(scheme string) dialFunc {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		return r.DialTLS(ctx, &url.URL{Scheme: scheme, Host: addr})
	}
}

// dialer returns what Dial uses. It ends within the timeout, the proxy's answer
// included: some callers give a context without an end.
func (r *Route) dialer(to *url.URL) (dialFunc, error) {
	via, err := r.choose(to)
	if err != nil {
		return nil, err
	}
	dial := r.dial
	if via != nil {
		dial = r.through(via)
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, r.timeout)
		defer cancel()
		return dial(ctx, network, addr)
	}, nil
}

// TLS returns what a connection to host is encrypted by: own roots and pins,
// our certificate, certificates judged as the route was told, and HTTP/1.1,
// since a WebSocket is an upgrade of it. A *PinError from its handshake says
// that the key is not in uplink.pin.
func (r *Route) TLS(host string) (*tls.Config, error) {
	roots, err := r.network.roots()
	if err != nil {
		return nil, err
	}
	c := r.config(host, roots)
	c.NextProtos = []string{"http/1.1"}
	return c, r.network.amend(c)
}

// DialTLS is Dial with the handshake of TLS.
func (r *Route) DialTLS(ctx context.Context, to *url.URL) (net.Conn, error) {
	config, err := r.TLS(to.Hostname())
	if err != nil {
		return nil, err
	}
	conn, err := r.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return &alertConn{Conn: secure}, nil
}

// An alertConn says why a write failed. In TLS 1.3 the other side looks at our
// certificate after the handshake has ended for us: its alert may be here, unread,
// while what we write is answered with a reset.
type alertConn struct {
	*tls.Conn
	heard atomic.Bool // the other side has spoken: what it sends is the reader's
}

// Read implements net.Conn.
func (c *alertConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, err
}

// Write implements net.Conn.
func (c *alertConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if !c.heard.Load() && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		_ = c.SetReadDeadline(time.Now().Add(time.Second)) // the connection is lost: nothing else comes
		if _, why := c.Conn.Read(make([]byte, 1)); RefusedOurCertificate(why) {
			return n, why
		}
	}
	return n, err
}

// idleTimeout is how long a connection is kept for the next request. Most
// networks remember it for longer.
const idleTimeout = 30 * time.Second

// Transport returns what sends requests by this route, for http and https URLs
// alike. The caller may change it before its first use, and closes its idle
// connections after the last.
func (r *Route) Transport() *http.Transport {
	return &http.Transport{
		DialContext:            r.dialTo("http"),
		DialTLSContext:         r.dialTLSTo("https"),
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeadBytes,
	}
}

// Client returns a client of Transport. It follows no redirect, which would
// take a credential to wherever it points, and has no timeout but the
// connection's: that is the request's context.
func (r *Route) Client() *http.Client {
	return &http.Client{
		Transport:     r.Transport(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
