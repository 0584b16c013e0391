package cloud

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// ingest is the uplink's side of a Server: it lets gateways in and hands what
// they send to the batcher.
type ingest struct {
	opts     Options
	timing   timing
	store    Store
	batcher  *batcher
	roster   *roster
	stats    *counters
	log      *slog.Logger
	upgrader websocket.Upgrader
	warned   atomic.Int64 // ns since the Unix epoch of the last warning about a stranger
}

// An idle gateway has 1 KiB to read with (a large frame is read straight into
// its own buffer), a write buffer borrowed for each message, and no net/http
// buffers, since the handler returns: 6 KB of heap, measured, and two stacks.
// Compression stays off: blocks are compressed, and gorilla's read limit counts
// compressed bytes only.
func newUpgrader() websocket.Upgrader {
	return websocket.Upgrader{
		ReadBufferSize:   1 << 10,
		WriteBufferSize:  4 << 10,
		WriteBufferPool:  &sync.Pool{},
		HandshakeTimeout: 5 * time.Second,
		Subprotocols:     []string{wire.Subprotocol},
		// CheckOrigin stays nil: a browser's Origin must be this host, and gateways send none.
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			problem(w, status, strings.TrimPrefix(reason.Error(), "websocket: "))
		},
	}
}

// serveUplink upgrades a request whose gateway is known to be who it says,
// and returns while the session lives: net/http's buffers are freed with it.
func (in *ingest) serveUplink(w http.ResponseWriter, r *http.Request) {
	if !websocket.IsWebSocketUpgrade(r) {
		in.stats.handshake(handshakeMalformed)
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		problem(w, http.StatusUpgradeRequired, "this is the uplink of gateways: it speaks WebSocket with the subprotocol "+wire.Subprotocol)
		return
	}
	gateway, ok := in.authenticate(w, r)
	if !ok {
		return
	}
	if !offers(r, wire.Subprotocol) {
		in.stats.handshake(handshakeMalformed)
		problem(w, http.StatusBadRequest, fmt.Sprintf("Sec-WebSocket-Protocol is %q: it must offer %s",
			strings.Join(websocket.Subprotocols(r), ", "), wire.Subprotocol))
		return
	}
	if err := in.roster.admit(); err != nil {
		in.stats.handshake(handshakeUnavailable)
		w.Header().Set("Retry-After", "10")
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	conn, err := in.upgrader.Upgrade(w, r, nil)
	if err != nil {
		in.roster.leave(nil)
		in.stats.handshake(handshakeMalformed)
		in.log.Debug("an upgrade was refused", "gateway", gateway, "remote", r.RemoteAddr, "error", err)
		return
	}
	in.stats.handshake(handshakeAccepted)
	s := newSession(in, conn, gateway)
	in.roster.enter(s)
	go func() { // the roster waits for it
		defer in.roster.leave(s)
		s.run()
	}()
}

func offers(r *http.Request, subprotocol string) bool {
	for _, p := range websocket.Subprotocols(r) {
		if p == subprotocol {
			return true
		}
	}
	return false
}

// authenticate returns the gateway whose token the request has, or answers the
// request and returns false.
//
// The token is looked up by its SHA-256. That needs no comparison in constant
// time: what the time of the lookup tells is about a hash, whose bits nobody can
// choose; and tokens are random, so a plain hash can't be guessed back.
func (in *ingest) authenticate(w http.ResponseWriter, r *http.Request) (gateway string, ok bool) {
	token, ok := bearer(r)
	if !ok {
		in.unauthorized(w, "the header Authorization must be \"Bearer\" and the gateway's token; touchline-cloud gateway add makes one")
		return "", false
	}
	ctx, cancel := context.WithTimeout(r.Context(), in.timing.hello)
	defer cancel()
	gateway, err := in.store.GatewayByToken(ctx, sha256.Sum256([]byte(token)))
	if errors.Is(err, ErrUnknownToken) {
		in.unauthorized(w, "no gateway has this token; touchline-cloud gateway add makes one")
		in.warn(r, "an uplink came with an unknown token", "")
		return "", false
	}
	if err != nil {
		in.stats.handshake(handshakeUnavailable)
		in.log.Error("look up token", "error", err)
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "the record store does not answer")
		return "", false
	}
	if names := r.Header.Values(wire.HeaderGateway); len(names) != 1 || names[0] != gateway {
		in.stats.handshake(handshakeForbidden)
		detail := fmt.Sprintf("the header %s names %q, but the token is of gateway %q", wire.HeaderGateway, claimed(r), gateway)
		in.warn(r, "an uplink came with the token of another gateway", gateway)
		problem(w, http.StatusForbidden, detail)
		return "", false
	}
	return gateway, true
}

// warn logs a refusal, and what can be had at will, the next ones within a second,
// at a level that is usually off.
func (in *ingest) warn(r *http.Request, message, gateway string) {
	level, now, last := slog.LevelDebug, time.Now().UnixNano(), in.warned.Load()
	// A clock that was set back must not silence it.
	if (now-last >= int64(time.Second) || now < last) && in.warned.CompareAndSwap(last, now) {
		level = slog.LevelWarn
	}
	in.log.Log(r.Context(), level, message, "remote", r.RemoteAddr, "claims", claimed(r), "gateway", gateway)
}

func (in *ingest) unauthorized(w http.ResponseWriter, detail string) {
	in.stats.handshake(handshakeUnauthorized)
	w.Header().Set("WWW-Authenticate", `Bearer realm="touchline-cloud"`)
	problem(w, http.StatusUnauthorized, detail)
}

// claimed returns the gateway that a request says it is of, cut to what a log can bear.
func claimed(r *http.Request) string {
	name := strings.Join(r.Header.Values(wire.HeaderGateway), ", ")
	return name[:min(len(name), touchline.MaxNameBytes)]
}

// bearer returns the token of RFC 6750, section 2.1.
func bearer(r *http.Request) (token string, ok bool) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != ""
}
