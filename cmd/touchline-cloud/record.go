package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"touchline/cloud"
	"touchline/cloud/jetstream"
	"touchline/systemd"
)

// openQueue opens the queue that the settings name, for the record store of that
// id; nil is none.
func openQueue(ctx context.Context, c *cloud.Config, store string, logger *slog.Logger) (*jetstream.Queue, error) {
	q := &c.Queue
	opts := jetstream.Options{
		Servers: q.NATS, Store: store, CredentialsFile: q.NATSCredentials, CAFile: q.NATSCA, Monitors: q.NATSMonitors, Confirmed: q.NATSConfirmed,
		Shards: q.Shards, Replicas: q.Replicas, MaxBytes: int64(q.MaxBytes), MaxAge: time.Duration(q.MaxAge),
		Duplicates: 2 * time.Minute, AckWait: 15 * time.Second,
	}
	switch q.NATS {
	case "":
		return nil, nil
	case cloud.EmbeddedQueue:
		opts.Servers, opts.Folder = "", filepath.Join(c.Data, "queue")
	}
	queue, err := jetstream.Open(ctx, opts, logger)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return queue, nil
}

func recordCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "record",
		Short: "Record what the queue holds, in a process of its own, until SIGTERM or Ctrl-C",
		Long: "record takes blocks out of the queue (queue.nats, a cluster) and commits them to the\n" +
			"record store. Any number of these may run, anywhere; what one of them had when it died\n" +
			"the others record after 15 s. Where queue.record_listen names an address, it answers\n" +
			"/metrics, /livez and /readyz there. SIGHUP has it read its settings again: log.level\n" +
			"counts at once, and what needs a restart is named.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hup := hangups()
			c, err := s.load()
			if err != nil {
				return err
			}
			if c.Queue.NATS == "" || c.Queue.NATS == cloud.EmbeddedQueue {
				return errors.New("queue.nats names no cluster: what is embedded in a node is recorded by that node")
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
			var status net.Listener // nil is none
			if c.Queue.RecordListen != "" {
				if status, err = cloud.ListenStatus(c.Queue.RecordListen); err != nil {
					return errors.Join(err, bus.Close(), queue.Close(), store.Close())
				}
			}
			tracer, err := openTracer(cmd.Context(), &c, logger)
			if err != nil {
				return errors.Join(err, bus.Close(), queue.Close(), store.Close())
			}
			recording := cloud.NewRecording(store, queue, cloud.RecordingOptions{QueueBytes: c.Queue.Bytes.Int(), Bus: bus}, logger).Trace(tracer)
			logger.Info("touchline-cloud records what the queue holds")
			const does = "Recording what the queue holds"
			_ = systemd.Notify(systemd.Ready, systemd.Status(does)) // nobody listens: nobody waits
			reload := &reloader{hup: hup, load: s.load, level: &level, log: logger, began: c, does: does}
			defer reload.start()()
			group, ctx := errgroup.WithContext(cmd.Context())
			if t, ok := store.(tender); ok {
				group.Go(func() error { return t.Run(ctx) })
			}
			group.Go(func() error { return recording.Run(ctx) })
			if status != nil {
				group.Go(func() error { return recording.Answer(ctx, status) })
			}
			group.Go(func() error { return bus.Run(ctx) }) // there is one: the queue is a cluster
			return errors.Join(group.Wait(), closeTracer(tracer), bus.Close(), queue.Close(), store.Close())
		},
	}
}
