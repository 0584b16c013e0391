// Package tracing follows single blocks from a node's socket to the commit and
// back, and sends what it saw to an OpenTelemetry collector (OTLP over HTTP). It
// never makes a block wait: what the collector does not take in time is dropped and
// counted, and a block that is not followed costs a comparison. A Tracer is made by
// New, which connects to nothing, and ended by Close, which sends what waits.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"

	"touchline"
)

// Options are the settings of a Tracer.
type Options struct {
	Endpoint string  // http://HOST:4318/v1/traces, or https; headers and CA come from OTEL_EXPORTER_OTLP_…
	Ratio    float64 // of blocks that are followed, 0 to 1
	Node     string  // names this process among others
}

// CheckEndpoint says what is wrong with an endpoint. It never shows it: it may have
// a password in it.
func CheckEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return errors.New("is no address such as http://127.0.0.1:4318/v1/traces")
	case u.User != nil || u.RawQuery != "":
		return errors.New("has a user, a password or a query in it: put credentials into the environment, OTEL_EXPORTER_OTLP_HEADERS")
	}
	return nil
}

// Bounds of what waits for the collector: 2,048 spans of about 1 KB are 2 MB, and
// some 400 blocks.
const (
	maxWaiting    = 2048
	maxExport     = 512
	exportTimeout = 10 * time.Second
)

// A Tracer follows blocks. A nil Tracer follows none. Its methods may be called
// concurrently.
type Tracer struct {
	provider *trace.TracerProvider
	tracer   api.Tracer
	exporter *exporter
	bound    uint64 // a random number below it is a block to follow
}

// New returns a Tracer that sends to opts.Endpoint.
func New(ctx context.Context, opts Options, logger *slog.Logger) (*Tracer, error) {
	if err := CheckEndpoint(opts.Endpoint); err != nil {
		return nil, fmt.Errorf("trace blocks: the endpoint %w", err)
	}
	if !(opts.Ratio >= 0 && opts.Ratio <= 1) {
		return nil, fmt.Errorf("trace blocks: the ratio is %v: want 0 to 1", opts.Ratio)
	}
	logger = logger.With("component", "tracing")
	otlp, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(opts.Endpoint), otlptracehttp.WithTimeout(exportTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{})) // what a collector misses is not worth memory
	if err != nil {
		return nil, fmt.Errorf("trace blocks: %w", err)
	}
	// The library tells some of its troubles to whoever is here, and else to
	// standard error in a form of its own.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Debug("traces", "error", err) }))
	t := &Tracer{exporter: &exporter{next: otlp, log: logger}, bound: uint64(opts.Ratio * float64(1<<53))}
	t.provider = trace.NewTracerProvider(
		trace.WithSampler(trace.AlwaysSample()), // it is decided before, without a span
		trace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "touchline-cloud"), attribute.String("service.version", touchline.Version),
			attribute.String("service.instance.id", opts.Node))),
		trace.WithSpanProcessor(&t.exporter.ended),
		trace.WithBatcher(t.exporter, trace.WithMaxQueueSize(maxWaiting), trace.WithMaxExportBatchSize(maxExport), trace.WithExportTimeout(exportTimeout)),
	)
	t.tracer = t.provider.Tracer("touchline/cloud")
	return t, nil
}

// Sample says whether the next block is one to follow.
func (t *Tracer) Sample() bool { return t != nil && rand.Uint64()>>11 < t.bound }

// Counts returns how many spans ended and how many of them a collector took.
// Those between wait, at most 2,048, or were dropped.
func (t *Tracer) Counts() (ended, exported uint64) {
	if t == nil {
		return 0, 0
	}
	return t.exporter.ended.n.Load(), t.exporter.exported.Load()
}

// Close sends what waits, until ctx is done at the latest, and ends the Tracer.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("end traces: %w", err)
	}
	return nil
}

// An exporter hands spans to the collector, and says when that begins to fail
// and when it works again: once each.
type exporter struct {
	next     trace.SpanExporter
	log      *slog.Logger
	ended    counter
	exported atomic.Uint64
	failing  bool // used by the batcher's goroutine only
}

// ExportSpans implements trace.SpanExporter.
func (e *exporter) ExportSpans(ctx context.Context, spans []trace.ReadOnlySpan) error {
	err := e.next.ExportSpans(ctx, spans)
	switch {
	case err == nil:
		e.exported.Add(uint64(len(spans)))
		if e.failing {
			e.log.Info("the collector takes traces again")
		}
	case !e.failing:
		e.log.Warn("the collector takes no traces: they are dropped until it does; samples are not concerned", "error", err)
	}
	e.failing = err != nil
	return nil // it was said
}

// Shutdown implements trace.SpanExporter.
func (e *exporter) Shutdown(ctx context.Context) error { return e.next.Shutdown(ctx) }

// A counter is a trace.SpanProcessor that counts spans that ended.
type counter struct{ n atomic.Uint64 }

func (*counter) OnStart(context.Context, trace.ReadWriteSpan) {}
func (c *counter) OnEnd(trace.ReadOnlySpan)                   { c.n.Add(1) }
func (*counter) Shutdown(context.Context) error               { return nil }
func (*counter) ForceFlush(context.Context) error             { return nil }
