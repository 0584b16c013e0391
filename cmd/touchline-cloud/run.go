package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"touchline/cloud"
	"touchline/cloud/jetstream"
	"touchline/systemd"
)

func runCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the cloud until SIGTERM or Ctrl-C",
		Long: `Runs the cloud until SIGTERM or Ctrl-C. SIGHUP has it read its settings again:
log.level counts at once, and what else has changed is named in the log and
needs a restart. Certificates are read again whenever their files change.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hup := hangups()
			c, err := s.load()
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
			var level slog.LevelVar
			level.Set(c.Log.SlogLevel())
			logger := c.Log.LoggerAt(systemd.Log(os.Stderr), &level)
			store, err := openStore(cmd.Context(), &c, logger)
			if err != nil {
				return err
			}
			queue, err := openQueue(cmd.Context(), &c, store.ID(), logger)
			if err != nil {
				return errors.Join(err, store.Close())
			}
			bus, err := openBus(&c, store.ID(), logger)
			if err != nil {
				return errors.Join(err, queue.Close(), store.Close())
			}
			reload := &reloader{hup: hup, load: s.load, level: &level, log: logger, began: c, does: "Serving at " + c.Listen}
			err = serve(cmd.Context(), c, parts{store, queue, bus, reload}, logger)
			return errors.Join(err, bus.Close(), queue.Close(), store.Close())
		},
	}
}

// gcPercent is how much garbage a node gathers beside what lives, in percent of
// that. Most of it lives long, in the sessions of idle gateways: with Go's default of 100
// each of 18,000 takes 14 KB, with 40 it takes 10. The environment's GOGC overrides it.
const gcPercent = 40

// parts are what a node stands on. queue and bus are nil where there is none.
type parts struct {
	store  recordStore
	queue  *jetstream.Queue
	bus    *jetstream.Bus
	reload *reloader
}

// serve runs the cloud until ctx ends; then nobody uses the parts any more.
func serve(ctx context.Context, c cloud.Config, p parts, logger *slog.Logger) error {
	var queue cloud.Queue // nil, and not a nil *jetstream.Queue
	if p.queue != nil {
		queue = p.queue
	}
	roller, err := newRoller(&c, p.store, logger)
	if err != nil {
		return err
	}
	tracer, err := openTracer(ctx, &c, logger)
	if err != nil {
		return err
	}
	defer closeTracer(tracer)
	opts := c.Options()
	opts.Rollups = roller.Stats
	if p.bus != nil {
		opts.Bus = p.bus
	}
	opts.Tracer = tracer
	server, err := cloud.NewQueued(opts, p.store, queue, logger)
	if err != nil {
		return err
	}
	if err := server.Listen(); err != nil {
		return err
	}
	defer notify(ctx, c)()
	defer p.reload.start()()
	group, ctx := errgroup.WithContext(ctx)
	// What the server stands on outlives it: gateways leave a node that drains when what they
	// sent is stored, and are told so.
	under, fold := context.WithCancel(context.WithoutCancel(ctx))
	if t, ok := p.store.(tender); ok {
		group.Go(func() error { return t.Run(under) })
	}
	if p.queue != nil {
		group.Go(func() error { return p.queue.Run(under) })
		if c.Queue.Record {
			group.Go(func() error { return server.Recording(p.queue).Run(under) })
		}
	}
	if p.bus != nil {
		group.Go(func() error { return p.bus.Run(under) })
	}
	group.Go(func() error { return roller.Run(ctx) })
	group.Go(func() error { defer fold(); return server.Run(ctx) })
	return errors.Join(group.Wait(), server.Close())
}
