package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
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
	// maxHeadBytes bounds the head of an answer, but for that to an upgrade,
	// which gorilla bounds.
	maxHeadBytes = 32 << 10
)

// dialSocket returns a connection that speaks wire.Subprotocol. It ends within
// HandshakeTimeout for the TCP connect and once more for TLS and upgrade, and
// at once when ctx ends.
func (u *Uplink) dialSocket(ctx context.Context, to *url.URL) (link, error) {
	head, err := u.head(ctx, to)
	if err != nil {
		return nil, err
	}
	if err := u.checkRoute(to); err != nil {
		return nil, err
	}
	g := &connGuard{}
	defer g.release()
	dialer := websocket.Dialer{
		NetDialContext:    g.watch(ctx, u.route.dialTo("ws")),
		NetDialTLSContext: g.watch(ctx, u.route.dialTLSTo("wss")),
		HandshakeTimeout:  u.opts.HandshakeTimeout,
		Subprotocols:      []string{wire.Subprotocol},
		ReadBufferSize:    readBufferBytes,
		WriteBufferSize:   writeBufferBytes,
	}
	conn, resp, err := dialer.DialContext(ctx, to.String(), head)
	switch {
	case ctx.Err() != nil:
		if conn != nil {
			conn.Close()
		}
		return nil, context.Cause(ctx)
	case errors.Is(err, websocket.ErrBadHandshake):
		return nil, u.refusal(to, resp)
	case err != nil:
		hint := ""
		if RefusedOurCertificate(err) {
			hint = "; what answers there wants another client certificate (uplink.client_cert)"
		}
		return nil, &failure{
			err:       fmt.Errorf("dial %s: %w%s", shown(to), err, hint),
			middlebox: errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF),
		}
	}
	if err := checkUpgrade(resp); err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial %s: %w", shown(to), err)
	}
	conn.SetReadLimit(wire.MaxMessageBytes)
	return &socket{conn}, nil
}

// checkRoute says what is wrong with the files and the proxy of the settings,
// which only a person can change.
func (u *Uplink) checkRoute(to *url.URL) error {
	_, err := u.route.TLS(to.Hostname())
	if err == nil {
		_, err = u.route.Proxy(to)
	}
	if err != nil {
		return &failure{err: err, floor: u.opts.refusedFor()}
	}
	return nil
}

// head returns what each request carries.
func (u *Uplink) head(ctx context.Context, to *url.URL) (http.Header, error) {
	token, err := u.credential(ctx, to)
	if err != nil {
		return nil, &failure{err: err, floor: u.opts.refusedFor()}
	}
	return http.Header{
		"Authorization":    {"Bearer " + token},
		wire.HeaderGateway: {u.opts.Gateway},
		"User-Agent":       {u.opts.Software},
	}, nil
}

// credential returns what Authorization carries. An error never shows it.
func (u *Uplink) credential(ctx context.Context, to *url.URL) (string, error) {
	if u.opts.Credential != nil {
		token, err := u.opts.Credential(ctx, Nonce{
			Wanted: u.wantsNonce.Load(),
			Fetch:  func(ctx context.Context) (string, error) { return u.fetchNonce(ctx, to) },
		})
		if err == nil && token == "" {
			err = errors.New("it is empty")
		}
		if err != nil {
			return "", fmt.Errorf("make credential: %w", err)
		}
		return token, nil
	}
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

// maxNonceBytes bounds the answer that has a nonce.
const maxNonceBytes = 4 << 10

// fetchNonce asks the cloud for a nonce, for a gateway whose clock says nothing.
func (u *Uplink) fetchNonce(ctx context.Context, to *url.URL) (string, error) {
	if err := u.checkRoute(to); err != nil {
		return "", err
	}
	transport := u.route.Transport()
	transport.DisableKeepAlives = true
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 2*u.opts.HandshakeTimeout)
	defer cancel()
	at := overHTTP(to)
	at.Path = strings.TrimSuffix(at.Path, wire.UplinkPath) + wire.NoncePath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", u.opts.Software)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("ask %s for a nonce: %w", shown(at), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", u.refusal(at, resp)
	}
	var n wire.Nonce
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxNonceBytes)).Decode(&n); err != nil || n.Nonce == "" {
		return "", fmt.Errorf("ask %s for a nonce: its answer has none: is this address a touchline cloud?", shown(at))
	}
	return n.Nonce, nil
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

// refusal describes an answer that is no upgrade, and closes its body.
func (u *Uplink) refusal(to *url.URL, resp *http.Response) *failure {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBodyShown))
	resp.Body.Close()
	f := &failure{floor: retryAfter(resp.Header, time.Now())}
	f.told = f.floor > 0
	ours := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json")
	hint := ""
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		f.stale = wantsNonce(resp.Header) && u.opts.Credential != nil
		if other := u.refusedByAnother(resp.Header); other != nil {
			other.floor = max(other.floor, f.floor)
			return other
		}
		fallthrough
	case http.StatusForbidden:
		hint = "; " + u.who()
		f.floor = max(f.floor, u.opts.refusedFor())
		f.middlebox = resp.StatusCode == http.StatusForbidden && !ours
	case http.StatusNotFound:
		hint = "; check the path in uplink.urls"
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		// Not followed: it would take the token to wherever it points.
		hint = fmt.Sprintf("; it points to %.200q: put the right address into uplink.urls", resp.Header.Get("Location"))
	case http.StatusSwitchingProtocols:
		hint = "; its upgrade is not a WebSocket's"
		f.middlebox = true
	case http.StatusTooManyRequests:
		f.floor = max(f.floor, overloadLeast)
	case http.StatusOK, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusUpgradeRequired,
		http.StatusNotImplemented, http.StatusBadGateway:
		f.middlebox = !ours
	}
	after := ""
	if f.floor > 0 && resp.Header.Get("Retry-After") != "" {
		after = fmt.Sprintf(", Retry-After %v", f.floor)
	}
	f.err = fmt.Errorf("dial %s: server answered %s%s%s%s", shown(to), status(resp), after, hint, said(body))
	return f
}

// wantsNonce says whether a 401 is about our clock (RFC 6750, section 3).
func wantsNonce(h http.Header) bool {
	challenge := strings.ToLower(h.Get("WWW-Authenticate"))
	return strings.Contains(challenge, `error="invalid_token"`) && strings.Contains(challenge, "clock")
}

// who is what a person is to check where we are refused.
func (u *Uplink) who() string {
	if u.opts.Credential != nil {
		return "is this gateway enrolled there (touchline enroll CODE)?"
	}
	return "check gateway.id and uplink.token_file"
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
