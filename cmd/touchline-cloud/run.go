package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"touchline/cloud"
)

func runCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the cloud until SIGTERM or Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			logger := c.Log.Logger(os.Stderr)
			store, err := openStore(cmd.Context(), &c, logger)
			if err != nil {
				return err
			}
			err = serve(cmd.Context(), c, store, logger)
			return errors.Join(err, store.Close())
		},
	}
}

// serve runs the cloud until ctx ends; then nobody uses the store any more.
func serve(ctx context.Context, c cloud.Config, store recordStore, logger *slog.Logger) error {
	server, err := cloud.New(c.Options(), store, logger)
	if err != nil {
		return err
	}
	if err := server.Listen(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if t, ok := store.(tender); ok {
		group.Go(func() error { return t.Run(ctx) })
	}
	group.Go(func() error { return server.Run(ctx) })
	return errors.Join(group.Wait(), server.Close())
}
