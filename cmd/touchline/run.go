package main

import (
	"errors"
	"os"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"touchline/daemon"
)

func runCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the gateway until SIGTERM or Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			d, err := daemon.Open(cmd.Context(), c, c.Log.Logger(os.Stderr))
			if err != nil {
				return err
			}
			// Recovery is done and the listeners are bound; without a service
			// manager that asked for it, this does nothing.
			_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyReady)
			err = d.Run(cmd.Context())
			_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
			return errors.Join(err, d.Close())
		},
	}
}
