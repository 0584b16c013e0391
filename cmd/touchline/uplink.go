package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/daemon"
)

func uplinkCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "uplink",
		Short: "Agree to what the uplink waits for",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command: `touchline uplink accept-store`")
		},
	}
	cmd.AddCommand(acceptStoreCommand(s))
	return cmd
}

func acceptStoreCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "accept-store [ID]",
		Short: "Deliver to another record store than until now",
		Long: `The gateway remembers the record store that the cloud showed first. Another one
is a cloud that was set up anew, or another cloud: it gets nothing until you
say so here, since what is stored there is not stored where it was before.
All that this gateway still holds and did not hear to be stored goes there.
Without an ID it is the one that the cloud shows now.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) > 0 {
				id = args[0]
			}
			return s.onFolder(func(f *daemon.Folder, _ touchline.Config) error {
				accepted, err := f.AcceptStore(cmd.Context(), id)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "This gateway delivers to record store %s from now on.\n", accepted)
				return nil
			})
		},
	}
}
