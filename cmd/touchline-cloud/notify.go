package main

import (
	"context"
	"time"

	"touchline/cloud"
	"touchline/systemd"
)

// stopSpare is what a stop takes beside [balancer]: the last gateways have 10 s,
// requests under way and the last batch 20 s.
const stopSpare = 30 * time.Second

// notify tells the service manager that the node serves, and when ctx ends for
// how long it drains: TimeoutStopSec= need not know [balancer]. It returns a
// function that waits for the latter to be said, or not needed any more.
func notify(ctx context.Context, c cloud.Config) (done func()) {
	_ = systemd.Notify(systemd.Ready, systemd.Status("Serving at %s", c.Listen)) // nobody listens: nobody waits
	wait := time.Duration(c.Balancer.DrainDelay) + time.Duration(c.Balancer.Drain) + stopSpare
	said := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(said)
		_ = systemd.Notify(systemd.Stopping, systemd.Extend(wait), systemd.Status("Draining: sends its gateways to other nodes, for %s at the most", wait))
	})
	return func() {
		if !stop() {
			<-said
		}
	}
}
