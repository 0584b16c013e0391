package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// recordingMetrics are those of newRegistry that a Recording has; the others are of
// a node's uplinks and readers, and would be zero.
var recordingMetrics = []string{"blocks_stored_total", "samples_stored_total", "block_repeats_total", "blocks_kept_aside_total", "record_errors_total",
	"queue_refused_total", "queue_bytes", "queue_blocks", "batch_blocks", "batch_samples", "batch_bytes", "stored_bytes_total", "record_duration_seconds",
	"stored_lag_seconds", "sample_age_seconds", "store_up"}

// Answer serves /metrics, /livez and /readyz of a process that records only, until
// ctx is done, and then returns nil. It closes listener. It tells everybody
// who reaches the address.
func (r *Recording) Answer(ctx context.Context, listener net.Listener) error {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(
		&subset{&collector{stats: r.Stats}, recordingMetrics},
		&queueCollector{queue: r.source, bus: r.bus, stats: r.stats.queue},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", serveHealth)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := r.Health(); err != nil {
			writeJSON(w, "application/json", http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": err.Error()})
			return
		}
		writeJSON(w, "application/json", http.StatusOK, map[string]any{"ready": true})
	})
	// Requests have no body; a scrape asks the queue for depthPatience at most.
	web := &http.Server{Handler: sameOrigin(mux), ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: minHeaderBytes, ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { web.Close() })
	defer stop()
	if err := web.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return nil
}

// A subset is a collector of which only some metrics are shown.
type subset struct {
	prometheus.Collector
	names []string // without the prefix
}

// Describe implements prometheus.Collector.
func (s *subset) Describe(ch chan<- *prometheus.Desc) {
	filter(ch, s.Collector.Describe, s.shows)
}

// Collect implements prometheus.Collector.
func (s *subset) Collect(ch chan<- prometheus.Metric) {
	filter(ch, s.Collector.Collect, func(m prometheus.Metric) bool { return s.shows(m.Desc()) })
}

// shows goes by the text of a description, which alone has the name.
func (s *subset) shows(d *prometheus.Desc) bool {
	return slices.ContainsFunc(s.names, func(name string) bool { return strings.Contains(d.String(), `"touchline_cloud_`+name+`"`) })
}

// filter sends what produce sends, where keep says so.
func filter[T any](to chan<- T, produce func(chan<- T), keep func(T) bool) {
	all := make(chan T)
	go func() { // ends with produce, which this waits for
		defer close(all)
		produce(all)
	}()
	for v := range all {
		if keep(v) {
			to <- v
		}
	}
}

// ListenStatus acquires the address for Answer. Its errors say what to do.
func ListenStatus(address string) (net.Listener, error) {
	return listenOn(address, "queue.record_listen")
}
