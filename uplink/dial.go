package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"touchline/wire"
)

const (
	// writeBufferBytes is the largest fragment that gorilla's client sends:
	// a message is split there, and a ping can go between two of them.
	writeBufferBytes = 64 << 10
	// readBufferBytes suits acks of a few hundred bytes.
	readBufferBytes = 4 << 10
	// maxBodyShown bounds how much of an answer that is not an upgrade gets
	// into the error: enough for a proxy's or load balancer's own words.
	maxBodyShown = 1 << 10
)

// dial returns a connection that speaks wire.Subprotocol. It ends within
// HandshakeTimeout for the TCP connect and once more for TLS and upgrade, and
// at once when ctx ends.
func (u *Uplink) dial(ctx context.Context, to *url.URL) (*websocket.Conn, error) {
	token, err := u.token()
	if err != nil {
		return nil, &failure{err: err, floor: u.opts.refusedFor()}
	}
	g := &connGuard{}
	defer g.release()
	dialer := websocket.Dialer{
		NetDialContext:   g.watch(ctx, u.netDial),
		TLSClientConfig:  u.tlsFor(to),
		HandshakeTimeout: u.opts.HandshakeTimeout,
		Subprotocols:     []string{wire.Subprotocol},
		ReadBufferSize:   readBufferBytes,
		WriteBufferSize:  writeBufferBytes,
	}
	conn, resp, err := dialer.DialContext(ctx, to.String(), http.Header{
		"Authorization":    {"Bearer " + token},
		wire.HeaderGateway: {u.opts.Gateway},
		"User-Agent":       {u.opts.Software},
	})
	switch {
	case ctx.Err() != nil:
		if conn != nil {
			conn.Close()
		}
		return nil, context.Cause(ctx)
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, u.refusal(to, resp)
	case err != nil:
		return nil, fmt.Errorf("dial %s: %w", shown(to), err)
	}
	if err := checkUpgrade(resp); err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial %s: %w", shown(to), err)
	}
	return conn, nil
}

// token reads the credential. An error never shows it.
func (u *Uplink) token() (string, error) {
	token, err := u.opts.Token()
	if err != nil {
		return "", fmt.Errorf("read uplink.token_file: %w", err)
	}
	token = strings.TrimSpace(token)
	if token == "" {
		return "", errors.New("uplink.token_file is empty: put the token there that touchline-cloud gateway add printed")
	}
	for i := range len(token) {
		if c := token[i]; c <= ' ' || c >= 0x7f {
			return "", fmt.Errorf("uplink.token_file holds the byte 0x%02x within the token: want one word of printable ASCII", c)
		}
	}
	return token, nil
}

// checkUpgrade refuses a server that upgraded to something else than we asked
// for. gorilla would compress if the server merely claims that we agreed to.
func checkUpgrade(resp *http.Response) error {
	if got := resp.Header.Get("Sec-Websocket-Protocol"); got != wire.Subprotocol {
		return fmt.Errorf("server chose the WebSocket subprotocol %.40q, want %q: is this address a touchline cloud?", got, wire.Subprotocol)
	}
	if got := resp.Header.Get("Sec-Websocket-Extensions"); got != "" {
		return fmt.Errorf("server uses the WebSocket extension %.80q, which was not offered", got)
	}
	return nil
}

// refusal describes an answer that is no upgrade.
func (u *Uplink) refusal(to *url.URL, resp *http.Response) *failure {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBodyShown))
	f := &failure{floor: retryAfter(resp.Header, time.Now())}
	hint := ""
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		hint = "; check gateway.id and uplink.token_file"
		f.floor = max(f.floor, u.opts.refusedFor())
	case http.StatusNotFound:
		hint = "; check the path in uplink.urls"
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		// Not followed: it would take the token to wherever it points.
		hint = fmt.Sprintf("; it points to %.200q: put the right address into uplink.urls", resp.Header.Get("Location"))
	case http.StatusSwitchingProtocols:
		hint = "; its upgrade is not a WebSocket's"
	}
	after := ""
	if f.floor > 0 && resp.Header.Get("Retry-After") != "" {
		after = fmt.Sprintf(", Retry-After %v", f.floor)
	}
	f.err = fmt.Errorf("dial %s: server answered %s%s%s%s", shown(to), status(resp), after, hint, said(body))
	return f
}

// status is the status line's part that a person wants, of bounded length.
func status(resp *http.Response) string {
	text := http.StatusText(resp.StatusCode)
	if text == "" {
		return fmt.Sprint(resp.StatusCode)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, text)
}

// said quotes a body, or returns "" where there is none.
func said(body []byte) string {
	text := strings.TrimSpace(string(body))
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; it said %q", text)
}

// netDialer returns what opens our TCP connections.
func netDialer(o *Options) func(ctx context.Context, network, addr string) (net.Conn, error) {
	d := &net.Dialer{
		Timeout: o.HandshakeTimeout,
		Control: func(_, _ string, raw syscall.RawConn) error { return tuneSocket(raw, 2*o.Heartbeat) },
	}
	return d.DialContext
}

// tlsFor returns what a wss connection is encrypted by.
func (u *Uplink) tlsFor(to *url.URL) *tls.Config {
	if u.opts.TLS != nil {
		return u.opts.TLS(to.Hostname())
	}
	return u.tls
}

// tlsConfig is for wss: the system's roots, and nothing older than TLS 1.2.
func tlsConfig() *tls.Config { return &tls.Config{MinVersion: tls.VersionTLS12} }

// A connGuard closes the connection of a dial when its context ends: gorilla
// lets go of the context once TCP is connected, and would wait for the answer
// until HandshakeTimeout.
type connGuard struct {
	mu   sync.Mutex    // covers what follows
	stop func() bool   // from context.AfterFunc
	done chan struct{} // closed when its function has returned
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

func (g *connGuard) watch(ctx context.Context, dial dialFunc) dialFunc {
	return func(dialCtx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(dialCtx, network, addr)
		if err != nil {
			return nil, err
		}
		done := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(done)
			conn.Close()
		})
		g.mu.Lock()
		g.stop, g.done = stop, done
		g.mu.Unlock()
		return conn, nil
	}
}

// release ends the watch and waits for it where it has begun to act.
func (g *connGuard) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stop != nil && !g.stop() {
		<-g.done
	}
}
