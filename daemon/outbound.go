package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/relay"
	"touchline/sensors"
	"touchline/uplink"
)

// An outbound is all that is between the buffer and the cloud. A reload puts a
// new one in its place: nothing in it is worth keeping but what the buffer and
// the cloud know.
type outbound struct {
	config touchline.Config
	proxy  string         // as it was read, with its password
	uplink *uplink.Uplink // nil: this gateway just buffers
	enrol  *enroller      // while it has no key, and a claim waits; nil: it does not
	relay  *relay.Relay
	roller *roller
}

// newOutbound starts nothing, and acquires nothing.
func (d *Daemon) newOutbound(c touchline.Config, logger *slog.Logger) (*outbound, error) {
	n, err := network(&c.Uplink)
	if err != nil {
		return nil, err
	}
	o := &outbound{config: c, proxy: n.Proxy}
	if o.enrol, err = d.newEnroller(c, logger); err != nil {
		return nil, err
	}
	if len(c.Uplink.URLs) > 0 && o.enrol == nil {
		if o.uplink, err = d.newUplink(c, logger); err != nil {
			return nil, err
		}
	}
	carrying := relayOptions(c)
	if carrying.Client, err = d.client(c); err != nil {
		return nil, err
	}
	if o.relay, err = relay.New(carrying, logger); err != nil {
		return nil, err
	}
	o.roller = d.newRoller(c, logger)
	return o, nil
}

// newEnroller returns nil where this gateway has a credential, or no claim.
func (d *Daemon) newEnroller(c touchline.Config, logger *slog.Logger) (*enroller, error) {
	if len(c.Uplink.URLs) == 0 || c.Uplink.TokenFile != "" {
		return nil, nil
	}
	claim, err := pending(c)
	if err != nil || claim == nil {
		return nil, err
	}
	return &enroller{config: c, claim: *claim, log: logger.With("component", "enrol"), since: time.Now(), last: "the cloud was not reached yet"}, nil
}

// run delivers until ctx ends.
func (o *outbound) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if o.uplink != nil {
		group.Go(func() error { return o.uplink.Run(ctx) })
	}
	if o.enrol != nil {
		group.Go(func() error { return o.enrol.run(ctx) })
	}
	group.Go(func() error { return o.relay.Run(ctx) })
	group.Go(func() error { return o.roller.run(ctx) })
	return group.Wait()
}

// uplinkTurns is what the manager looks at.
func (d *Daemon) uplinkTurns() (turns uint64, running bool) {
	o := d.out.get()
	if o.uplink == nil {
		return 0, false
	}
	return o.uplink.Turns(), true
}

// An inbound is the clients of the site's own brokers, replaced like outbound.
// The brokers keep their sessions, so that nothing is missed meanwhile.
type inbound struct {
	brokers   []*sensors.Broker
	passwords []string // as they were read, one for each
}

func (in inbound) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, broker := range in.brokers {
		group.Go(func() error { return broker.Run(ctx) })
	}
	group.Go(func() error { <-ctx.Done(); return nil }) // none is no end
	return group.Wait()
}

func (d *Daemon) newInbound(c touchline.Config, logger *slog.Logger) (in inbound, err error) {
	for i, b := range c.Sensors.Broker {
		password := ""
		if b.PasswordFile != "" {
			if password, err = firstLine(b.PasswordFile); err != nil {
				return inbound{}, fmt.Errorf("sensors.broker[%d] %s: password_file: %w", i, b.URL, err)
			}
		}
		broker, err := d.newBroker(c, b, password, logger)
		if err != nil {
			return inbound{}, fmt.Errorf("sensors.broker[%d] %s: %w", i, b.URL, err)
		}
		in.brokers, in.passwords = append(in.brokers, broker), append(in.passwords, password)
	}
	return in, nil
}
