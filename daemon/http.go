package daemon

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler routes what sensors send and what people and Prometheus read.
//
// Each request has a deadline for its body from the start, so that a refusal
// that nobody sends the rest for does not hold its connection; the handlers
// of samples set their own.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v1/samples", d.samples)
	mux.Handle("/v1/samples/stream", d.samples)
	mux.Handle("GET /v1/status", d.samples.ForStatus(timed(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, d.Status()) })))
	mux.Handle("GET /metrics", d.samples.ForStatus(timed(promhttp.HandlerFor(d.metrics(), promhttp.HandlerOpts{}).ServeHTTP)))
	mux.Handle("GET /healthz", timed(func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	}))
	mux.Handle("GET /readyz", timed(d.ready))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		mux.ServeHTTP(w, r)
	})
}

// ready says whether samples can be taken: the last commit worked. Being
// offline is not unready, it is what the gateway is for.
func (d *Daemon) ready(w http.ResponseWriter, _ *http.Request) {
	b := d.bufferStatus()
	status := http.StatusOK
	if b.State == "error" {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, map[string]string{"buffer": b.State, "error": b.LastError})
}

// timed bounds how long a reader may take; the streams of sensors have
// deadlines of their own.
func timed(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(statusTimeout))
		next(w, r)
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false) // six bytes for each < of a sensor's name, and no page shows this
	_ = out.Encode(v)        // a reader that went away has no use for an error
}
