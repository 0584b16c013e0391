package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"touchline/cloud"
	"touchline/cloud/sqlite"
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
			store, err := sqlite.Open(cmd.Context(), c.Data, logger)
			if err != nil {
				return fmt.Errorf("data %s: %w", c.Data, err)
			}
			err = serve(cmd.Context(), c, store, logger)
			return errors.Join(err, store.Close())
		},
	}
}

// serve runs the cloud until ctx ends; then nobody uses the store any more.
func serve(ctx context.Context, c cloud.Config, store *sqlite.Store, logger *slog.Logger) error {
	server, err := cloud.New(c.Options(), store, logger)
	if err != nil {
		return err
	}
	if err := server.Listen(); err != nil {
		return err
	}
	return errors.Join(server.Run(ctx), server.Close())
}
