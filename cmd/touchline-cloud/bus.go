package main

import (
	"fmt"
	"log/slog"

	"touchline/cloud"
	"touchline/cloud/jetstream"
)

// openBus opens the bus between nodes that the settings name, for the record store of
// that id; nil is none. A queue that is embedded has one node, which is its own bus.
func openBus(c *cloud.Config, store string, logger *slog.Logger) (*jetstream.Bus, error) {
	opts := jetstream.BusOptions{Servers: c.Live.Bus, Store: store, CredentialsFile: c.Live.BusCredentials, CAFile: c.Live.BusCA}
	if opts.Servers == "" && c.Queue.NATS != cloud.EmbeddedQueue {
		opts.Servers, opts.CredentialsFile, opts.CAFile = c.Queue.NATS, c.Queue.NATSCredentials, c.Queue.NATSCA
	}
	if opts.Servers == "" {
		return nil, nil
	}
	bus, err := jetstream.OpenBus(opts, logger)
	if err != nil {
		return nil, fmt.Errorf("live.bus: %w", err)
	}
	return bus, nil
}
