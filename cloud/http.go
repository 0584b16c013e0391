package cloud

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"touchline/credential"
	"touchline/wire"
)

// handler routes the requests of a Server.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.UplinkPath, s.ingest.serveUplink)
	mux.HandleFunc("POST "+wire.ArchivePath, s.archives.serve)
	mux.HandleFunc("GET "+wire.NoncePath, s.enroller.serveNonce)
	mux.HandleFunc("POST "+wire.EnrolPath, s.enroller.serveEnrol)
	mux.HandleFunc("POST "+wire.RollPath, s.enroller.serveRoll)
	mux.HandleFunc("POST "+wire.FramesPath, s.pipes.serveFrames)
	mux.HandleFunc("GET "+wire.ListenPath, s.pipes.serveControl)
	mux.HandleFunc("GET /healthz", serveHealth)
	mux.HandleFunc("GET /readyz", s.serveReady)
	mux.Handle("GET /v1/samples", s.guard(credential.ReadSamples, s.reader.serveSamples))
	mux.Handle("GET "+livePath, s.guard(credential.ReadLive, s.serveLive))
	mux.Handle("GET /v1/gateways", s.guard(credential.ReadStatus, s.serveGateways))
	mux.Handle("GET /metrics", s.guard(credential.ReadStatus, promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}).ServeHTTP))
	return s.ingest.mutual.strip(s.bodyless(sameOrigin(problems(mux))))
}

// sameOrigin refuses what a page of another site has its visitor's browser
// send; programs send no Origin.
func sameOrigin(next http.Handler) http.Handler {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		problem(w, http.StatusForbidden, "a page of another site sent this")
	}))
	return guard.Handler(next)
}

// withBody are the paths that take a body, each bounded in size and time by its
// handler.
var withBody = []string{wire.ArchivePath, wire.EnrolPath, wire.RollPath, wire.FramesPath}

// bodyless refuses bodies elsewhere: one that trickles in would hold its
// connection.
func (s *Server) bodyless(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if r.ContentLength != 0 { // until a handler that knows its sender gives more time
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.opts.Timeouts.Login))
		}
		if r.ContentLength != 0 && !(r.Method == http.MethodPost && slices.Contains(withBody, r.URL.Path)) {
			w.Header().Set("Connection", "close")
			http.NewResponseController(w).SetReadDeadline(time.Now())
			problem(w, http.StatusRequestEntityTooLarge, "this address takes no request body")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// problems gives the mux's own 404 and 405 the form of all other errors.
func problems(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &statusProbe{header: http.Header{}}
		h.ServeHTTP(probe, r)
		for _, name := range []string{"Allow", "Location"} {
			if v := probe.header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		detail := fmt.Sprintf("there is no %.80q here: there are %s, /v1/samples, /v1/live, /v1/gateways, /healthz, /readyz and /metrics", r.URL.Path, wire.UplinkPath)
		if probe.status == http.StatusMethodNotAllowed {
			detail = fmt.Sprintf("%.80q takes %s only", r.URL.Path, probe.header.Get("Allow"))
		}
		problem(w, probe.status, detail)
	})
}

// A statusProbe learns what a handler would answer.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }

// serveHealth says that the process lives, and no more.
func serveHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, "application/json", http.StatusOK, map[string]string{"status": "ok"})
}

// serveReady says whether this node is of use to gateways.
func (s *Server) serveReady(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		writeJSON(w, "application/json", http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": err.Error()})
		return
	}
	writeJSON(w, "application/json", http.StatusOK, map[string]any{"ready": true})
}

// A gatewayView is a gateway as the store knows it, and its session here.
type gatewayView struct {
	Gateway
	Connected bool         `json:"connected"`
	Session   *sessionView `json:"session,omitempty"`
}

type sessionView struct {
	Number   uint64    `json:"number"`
	Remote   string    `json:"remote"`
	Since    time.Time `json:"since"`
	LastSeen time.Time `json:"last_seen"`
	RTT      float64   `json:"rtt_ms,omitempty"` // of the last ping
	Blocks   uint64    `json:"blocks"`           // received in this session
}

func (s *Server) serveGateways(w http.ResponseWriter, r *http.Request) {
	known, err := s.store.Gateways(r.Context())
	if err != nil {
		s.log.Error("list gateways", "error", err)
		problem(w, http.StatusInternalServerError, "the gateways can't be read; the log of touchline-cloud says why")
		return
	}
	views := make([]gatewayView, len(known))
	for i, g := range known {
		views[i].Gateway = g
		if session := s.ingest.roster.of(g.ID); session != nil {
			views[i].Connected = true
			views[i].Session = session.view()
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, "application/json", http.StatusOK, map[string]any{"gateways": views})
}

func (s *session) view() *sessionView {
	return &sessionView{
		Number: s.number, Remote: s.remote, Since: s.connected.UTC(), Blocks: s.blocks.Load(),
		LastSeen: time.Unix(0, s.lastSeen.Load()).UTC(), RTT: float64(s.rtt.Load()) / 1e6,
	}
}
