package daemon

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// handler routes what sensors send and what people and Prometheus read.
//
// Each request has deadlines from the start, for its body and for its answer:
// neither who does not send the rest nor who does not read may hold its
// connection. The handlers of samples, which wait for the disk, set their own.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/v1/samples", d.samples)
	mux.Handle("/v1/samples/stream", d.samples)
	mux.Handle("GET /v1/status", d.samples.ForStatus(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, d.Status()) })))
	mux.Handle("GET /metrics", d.samples.ForStatus(promhttp.HandlerFor(d.metrics(), promhttp.HandlerOpts{})))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", d.ready)
	limits := &d.config.Sensors.Limits
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control, now := http.NewResponseController(w), time.Now()
		_ = control.SetReadDeadline(now.Add(time.Duration(limits.ReceiveTimeout)))
		_ = control.SetWriteDeadline(now.Add(time.Duration(limits.WriteTimeout)))
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

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false) // six bytes for each < of a sensor's name, and no page shows this
	_ = out.Encode(v)        // a reader that went away has no use for an error
}
