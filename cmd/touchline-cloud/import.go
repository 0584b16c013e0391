package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"touchline/cloud"
)

func importCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE...",
		Short: "Take in what gateways exported to files",
		Long: `Records the files that ` + "`touchline buffer export`" + ` wrote, each sample once. A file is
taken in only as a whole, and only if it is signed with a key that
` + "`touchline-cloud gateway key`" + ` registered for its gateway. Doing it again changes
nothing, and it works beside a running cloud. The gateway forgets what is
stored when it is connected again.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("name the files: `touchline-cloud import FILE...`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				var errs []error
				for _, name := range args {
					if err := importFile(cmd, store, name); err != nil {
						errs = append(errs, fmt.Errorf("%s: %w", name, err))
					}
					if cmd.Context().Err() != nil {
						break
					}
				}
				return errors.Join(errs...)
			})
		},
	}
}

func importFile(cmd *cobra.Command, store recordStore, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	done, err := cloud.Import(cmd.Context(), store, f)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: gateway %s: %d samples stored in %d blocks, %d blocks were stored before, %d kept aside, %d records of loss\n",
		name, done.Gateway, done.Samples, done.Blocks, done.Repeats, done.KeptAside, done.Lost)
	if done.KeptAside > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: blocks are kept aside, not among the samples; the first because %s\n", name, done.Reason)
	}
	return nil
}
