package uplink

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	socks "golang.org/x/net/proxy"
)

// maxConnectBytes bounds a proxy's answer to CONNECT, whose page nobody reads.
const maxConnectBytes = 16 << 10

// A proxyChoice says by which proxy an address is reached, nil for none. The
// URL may hold a user and password: it is never shown as it is.
type proxyChoice func(to *url.URL) (*url.URL, error)

// chooseProxy returns the choice that the setting makes: "" for the
// environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), "direct", or an address.
func chooseProxy(setting string) (proxyChoice, error) {
	switch setting {
	case "":
		c := httpproxy.FromEnvironment()
		c.HTTPProxy, c.HTTPSProxy = readable(c.HTTPProxy), readable(c.HTTPSProxy)
		choose := c.ProxyFunc()
		return func(to *url.URL) (*url.URL, error) {
			u, err := choose(overHTTP(to))
			if err != nil || u != nil && u.Scheme == unreadable {
				return nil, errors.New("the proxy in HTTP_PROXY or HTTPS_PROXY is no address: want such as http://proxy.example:3128")
			}
			if u == nil {
				return nil, nil
			}
			return u, checkProxy(u, "HTTP_PROXY or HTTPS_PROXY")
		}, nil
	case "direct":
		return func(*url.URL) (*url.URL, error) { return nil, nil }, nil
	}
	u, err := url.Parse(setting)
	if err != nil {
		return nil, errors.New("uplink.proxy is no address: want such as http://proxy.example:3128 or socks5://proxy.example:1080") // without what may be a password
	}
	if err := checkProxy(u, "uplink.proxy"); err != nil {
		return nil, err
	}
	return func(*url.URL) (*url.URL, error) { return u, nil }, nil
}

// unreadable is the scheme of what stands for a proxy that is no address.
// Package httpproxy takes one for none: past a proxy that somebody set.
const unreadable = "unreadable"

func readable(proxy string) string {
	if _, err := url.Parse(proxy); err == nil {
		return proxy
	}
	if _, err := url.Parse("http://" + proxy); err == nil { // host:port is one
		return proxy
	}
	return unreadable + "://proxy"
}

func checkProxy(u *url.URL, where string) error {
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
	default:
		return fmt.Errorf("%s begins with %.20q: want http://, https:// or socks5://", where, u.Scheme)
	}
	if u.Hostname() == "" {
		return fmt.Errorf("%s has no host: want such as http://proxy.example:3128", where)
	}
	return nil
}

// overHTTP returns a WebSocket address as that of a plain request.
func overHTTP(u *url.URL) *url.URL {
	c := *u
	c.Scheme = strings.Replace(c.Scheme, "ws", "http", 1)
	return &c
}

// A ProxyError says that a proxy is not reached, or does not lead to the cloud.
type ProxyError struct {
	Proxy    string // its address
	Reached  bool   // it answered
	Password bool   // it wants a user and password, or another one
	err      error
}

func (e *ProxyError) Error() string { return e.err.Error() }

func (e *ProxyError) Unwrap() error { return e.err }

func unreached(proxy string, err error) error {
	return &ProxyError{Proxy: proxy, err: fmt.Errorf("reach proxy %s: %w", proxy, err)}
}

// through returns a dial that goes through the proxy at via.
func (r *Route) through(via *url.URL) dialFunc {
	port := map[string]string{"http": "80", "https": "443"}[via.Scheme]
	if port == "" {
		port = "1080"
	}
	if p := via.Port(); p != "" {
		port = p
	}
	address := net.JoinHostPort(via.Hostname(), port)
	if strings.HasPrefix(via.Scheme, "socks5") {
		return throughSOCKS(via, address, r.dial)
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := r.dial(ctx, network, address)
		if err != nil {
			return nil, unreached(address, err)
		}
		if via.Scheme == "https" { // its certificate is the site's, and the clock may not be set
			conn = tls.Client(conn, r.config(via.Hostname(), nil))
		}
		stop := closeWith(ctx, conn)
		err = connect(ctx, conn, via, addr)
		if !stop() || err != nil {
			conn.Close()
			return nil, errors.Join(err, ctx.Err())
		}
		return conn, nil
	}
}

// closeWith closes conn when ctx ends, until stop, which says whether it came
// before that.
func closeWith(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.Close() })
}

// connect asks the proxy at the other end of conn for a way to addr (RFC 9110,
// section 9.3.6).
func connect(ctx context.Context, conn net.Conn, via *url.URL, addr string) error {
	if by, ok := ctx.Deadline(); ok {
		conn.SetDeadline(by)
		defer conn.SetDeadline(time.Time{})
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if via.User != nil {
		password, _ := via.User.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(via.User.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return unreached(via.Host, err)
	}
	// Nothing follows the answer: the other side waits for us to speak.
	limited := &headOf{conn: conn, left: maxConnectBytes}
	resp, err := http.ReadResponse(bufio.NewReaderSize(limited, 16), req)
	if err != nil {
		return unreached(via.Host, err)
	}
	defer resp.Body.Close()
	refused := &ProxyError{Proxy: via.Host, Reached: true}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusProxyAuthRequired:
		refused.Password = true
		refused.err = fmt.Errorf("proxy %s answered %s: it wants a user and password (uplink.proxy_password_file)", via.Host, status(resp))
	default:
		refused.err = fmt.Errorf("proxy %s answered %s to CONNECT %s", via.Host, status(resp), addr)
	}
	return refused
}

// headOf reads a head byte by byte, so that nothing behind it is taken, and no
// more than left.
type headOf struct {
	conn net.Conn
	left int
}

func (h *headOf) Read(p []byte) (int, error) {
	if h.left == 0 {
		return 0, errors.New("its answer is too long")
	}
	h.left--
	return h.conn.Read(p[:1])
}

func throughSOCKS(via *url.URL, address string, dial dialFunc) dialFunc {
	var auth *socks.Auth
	if via.User != nil {
		password, _ := via.User.Password()
		auth = &socks.Auth{User: via.User.Username(), Password: password}
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		d, err := socks.SOCKS5(network, address, auth, contextDialer{ctx, func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, unreached(address, err)
			}
			return conn, nil
		}})
		if err != nil {
			return nil, unreached(address, err)
		}
		conn, err := d.(socks.ContextDialer).DialContext(ctx, network, addr)
		var known *ProxyError
		if err == nil || errors.As(err, &known) {
			return conn, err
		}
		// The library has no other mark of it.
		password := strings.Contains(err.Error(), "authentication")
		err = fmt.Errorf("by proxy %s: %w", address, err)
		if password {
			err = fmt.Errorf("%w: it wants a user and password (uplink.proxy_password_file)", err)
		}
		return nil, &ProxyError{Proxy: address, Reached: true, Password: password, err: err}
	}
}

// A contextDialer is a dialFunc as package proxy takes it.
type contextDialer struct {
	ctx  context.Context
	dial dialFunc
}

func (d contextDialer) Dial(network, addr string) (net.Conn, error) {
	return d.dial(d.ctx, network, addr)
}

func (d contextDialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return d.dial(ctx, network, addr)
}
