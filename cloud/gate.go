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
	"touchline/credential"
	"touchline/wire"
)

// ingest is the uplink's side of a Server: it lets gateways in and hands what
// they send to the batcher.
type ingest struct {
	queue    Queue // nil is none
	opts     Options
	timing   timing
	store    Store
	batcher  *batcher
	roster   *roster
	stats    *counters
	log      *slog.Logger
	upgrader websocket.Upgrader
	verifier *credential.Verifier
	nonces   *credential.Nonces
	from     addresses
	mutual   mutual
	warned   atomic.Int64 // ns since the Unix epoch of the last warning about a stranger

	// Handshakes of all gateways, and of each: those whose credential held, so
	// that no stranger uses them up.
	handshakes *turnstile
	each       *buckets

	revision atomic.Uint64 // of who may speak, as the sentry saw it last
	outage   outage        // of the record store
}

// An idle gateway has 128 bytes to read with: a whole control frame (RFC 6455,
// section 5.5), while what is larger is read straight into where it goes. It has, a write buffer borrowed for each message, and no net/http
// buffers, since the handler returns.
// Compression stays off: blocks are compressed, and gorilla's read limit counts
// compressed bytes only.
func newUpgrader() websocket.Upgrader {
	return websocket.Upgrader{
		ReadBufferSize:   128,
		WriteBufferSize:  4 << 10,
		WriteBufferPool:  &sync.Pool{},
		HandshakeTimeout: 5 * time.Second, // for 200 bytes to an empty socket
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
	p, ok := in.authenticate(w, r)
	if !ok {
		return
	}
	if !offers(r, wire.Subprotocol) {
		in.stats.handshake(handshakeMalformed)
		problem(w, http.StatusBadRequest, fmt.Sprintf("Sec-WebSocket-Protocol is %q: it must offer %s",
			strings.Join(websocket.Subprotocols(r), ", "), wire.Subprotocol))
		return
	}
	if !in.admit(w, p) {
		return
	}
	conn, err := in.upgrader.Upgrade(w, r, nil)
	if err != nil {
		in.roster.leave(nil)
		in.stats.handshake(handshakeMalformed)
		in.log.Debug("an upgrade was refused", "gateway", p.gateway, "remote", in.from.shown(r), "error", err)
		return
	}
	in.stats.handshake(handshakeAccepted)
	s := newSession(in, p, in.from.shown(r))
	s.link = newSocket(conn, s)
	in.begin(s)
}

// begin runs a session that was admitted.
func (in *ingest) begin(s *session) {
	in.roster.enter(s)
	go s.run() // the roster waits for it
}

// admit takes a place for a session, or answers why there is none.
func (in *ingest) admit(w http.ResponseWriter, p pass) bool {
	now := time.Now()
	if after, ok := in.each.take(p.gateway, now); !ok {
		in.stats.handshake(handshakeTooMany)
		retryAfter(w, after)
		problem(w, http.StatusTooManyRequests, fmt.Sprintf("this gateway makes more than %d handshakes a minute", in.opts.GatewayHandshakes))
		return false
	}
	if after, ok := in.handshakes.take(now); !ok {
		in.stats.handshake(handshakeTooMany)
		retryAfter(w, after)
		problem(w, http.StatusServiceUnavailable, "many gateways come at once; this one's turn is after Retry-After")
		return false
	}
	if err := in.roster.admit(); err != nil {
		in.stats.handshake(handshakeUnavailable)
		after := "10"
		if errors.Is(err, errDraining) {
			after = "1" // the next attempt is led to another node
		}
		w.Header().Set("Retry-After", after)
		problem(w, http.StatusServiceUnavailable, err.Error())
		return false
	}
	return true
}

func offers(r *http.Request, subprotocol string) bool {
	for _, p := range websocket.Subprotocols(r) {
		if p == subprotocol {
			return true
		}
	}
	return false
}

// A pass is what let a gateway in, so that it can be seen later whether it
// still would.
type pass struct {
	gateway  string
	token    [32]byte // hash of its token; unused where keyID is not empty
	keyID    string   // of the key that signed
	keyEnds  time.Time
	revision uint64 // of who may speak, read before the pass was checked
	unasked  bool   // it was checked without the record store, which was away
}

// authenticate returns the pass of a request, or answers it and returns false.
//
// A token is looked up by its SHA-256. That needs no comparison in constant
// time: what the time of the lookup tells is about a hash, whose bits nobody can
// choose; and tokens are random, so a plain hash can't be guessed back.
func (in *ingest) authenticate(w http.ResponseWriter, r *http.Request) (p pass, ok bool) {
	p.revision = in.revision.Load()
	token, ok := bearer(r)
	if !ok {
		in.unauthorized(w, "", "the header Authorization must be \"Bearer\" and the gateway's token")
		return pass{}, false
	}
	ctx, cancel := context.WithTimeout(r.Context(), in.timing.ask)
	defer cancel()
	var err error
	var h credential.Handshake
	if strings.Count(token, ".") == 2 {
		h, err = in.verifier.Verify(token, func(gateway string) ([]credential.GatewayKey, error) {
			return in.handshakeKeys(ctx, gateway, &p)
		})
		p.gateway, p.keyID, p.keyEnds = h.Gateway, h.KeyID, h.KeyEnds
	} else {
		p.token = sha256.Sum256([]byte(token))
		p.gateway, err = in.gatewayByToken(ctx, &p)
	}
	if p.unasked && errors.Is(err, credential.ErrRefused) && !errors.Is(err, credential.ErrAudience) {
		err = errNotKnown // its key may be a new one
	}
	if err != nil {
		in.refuse(w, r, err)
		return pass{}, false
	}
	if names := r.Header.Values(wire.HeaderGateway); len(names) != 1 || names[0] != p.gateway {
		in.stats.handshake(handshakeForbidden)
		detail := fmt.Sprintf("the header %s names %q, but the token is of gateway %q", wire.HeaderGateway, claimed(r), p.gateway)
		in.warn(r, "an uplink came with the token of another gateway", p.gateway, nil)
		problem(w, http.StatusForbidden, detail)
		return pass{}, false
	}
	if err := in.mutual.check(r, p.gateway); err != nil {
		in.stats.handshake(handshakeForbidden)
		in.warn(r, "an uplink came without the client certificate of its gateway", p.gateway, err)
		problem(w, http.StatusForbidden, fmt.Sprintf("gateways show a client certificate here, whose common name is their id (%s): %.300s", p.gateway, err.Error()))
		return pass{}, false
	}
	if p.keyID != "" { // at last: who is refused anyway costs no write
		if err := in.redeem(ctx, h, &p); err != nil {
			in.refuse(w, r, err)
			return pass{}, false
		}
	}
	return p, true
}

// refuse answers a request whose credential does not hold. A stranger is told
// nothing about which part of it does not.
func (in *ingest) refuse(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, ErrUnknownToken):
		in.warn(r, "an uplink came with an unknown token", "", nil)
		in.unauthorized(w, `error="invalid_token"`, "no gateway has this token; touchline-cloud gateway add or gateway claim makes one that does")
	case errors.Is(err, credential.ErrStale):
		in.unauthorized(w, `error="invalid_token", error_description="the token is not fresh by the cloud's clock: fetch a nonce"`,
			"the token is not fresh by the cloud's clock: fetch a nonce from "+wire.NoncePath+" and sign a token with it")
	case errors.Is(err, credential.ErrAudience): // and its signature holds
		w.Header().Set(wire.HeaderStore, in.store.ID())
		in.warn(r, "an uplink came with a token for another record store", "", err)
		in.unauthorized(w, `error="invalid_token"`, "the token is for another record store than "+in.store.ID()+", which this cloud has: `touchline uplink accept-store` agrees to it, where that is meant")
	case errors.Is(err, credential.ErrReplayed), errors.Is(err, credential.ErrRefused):
		in.warn(r, "an uplink came with a token that does not hold", "", err)
		in.unauthorized(w, `error="invalid_token"`, "the token is not signed with a key that counts for this gateway, or was used before; `touchline enroll` registers a key")
	default:
		in.stats.handshake(handshakeUnavailable)
		if !errors.Is(err, credential.ErrFull) {
			in.log.Error("look up a gateway's credential", "error", err)
		}
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "the gateway's credential can't be checked now")
	}
}

// warn logs a refusal, and what can be had at will, the next ones within a second,
// at a level that is usually off.
func (in *ingest) warn(r *http.Request, message, gateway string, err error) {
	level, now, last := slog.LevelDebug, time.Now().UnixNano(), in.warned.Load()
	// A clock that was set back must not silence it.
	if (now-last >= int64(time.Second) || now < last) && in.warned.CompareAndSwap(last, now) {
		level = slog.LevelWarn
	}
	args := []any{"remote", in.from.of(r), "claims", claimed(r), "gateway", gateway}
	if err != nil {
		args = append(args, "reason", fmt.Sprintf("%.300s", err.Error()))
	}
	in.log.Log(r.Context(), level, message, args...)
}

func (in *ingest) unauthorized(w http.ResponseWriter, params, detail string) {
	in.stats.handshake(handshakeUnauthorized)
	challenge := `Bearer realm="touchline-cloud"`
	if params != "" {
		challenge += ", " + params
	}
	w.Header().Set("WWW-Authenticate", challenge)
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
