package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"touchline/cloud"
	"touchline/cloud/tracing"
)

// openTracer makes the tracer that the settings name; nil is none.
func openTracer(ctx context.Context, c *cloud.Config, logger *slog.Logger) (*tracing.Tracer, error) {
	if c.Tracing.Endpoint == "" {
		return nil, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("read this machine's name: %w", err)
	}
	return tracing.New(ctx, tracing.Options{Endpoint: c.Tracing.Endpoint, Ratio: c.Tracing.Ratio, Node: host + " " + c.Listen}, logger)
}

// lastTraces is how long the end of a process waits for the collector.
const lastTraces = 2 * time.Second

// closeTracer sends what waits. A collector that is away is no reason to fail.
func closeTracer(t *tracing.Tracer) error {
	ctx, cancel := context.WithTimeout(context.Background(), lastTraces)
	defer cancel()
	return t.Close(ctx)
}
