// Touchline-cloud is the other end of the gateways' uplinks: it records what
// they send, each sample exactly once, and gives it back.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/cloud"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // a second signal ends what drains too long: stopping is a polite crash
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "touchline-cloud:", err)
		os.Exit(1)
	}
}

// settings are where the cloud's settings come from; every command has the
// two flags.
type settings struct {
	file string
	data string
}

func (s *settings) load() (cloud.Config, error) {
	flags := map[string]string{}
	if s.data != "" {
		flags["data"] = s.data
	}
	c, unused, err := cloud.LoadConfig(s.file, os.Environ(), flags)
	if err != nil {
		return c, fmt.Errorf("settings:\n%w", err)
	}
	for _, name := range unused {
		fmt.Fprintf(os.Stderr, "touchline-cloud: environment variable %s is no setting of the cloud: ignored\n", name)
	}
	return c, nil
}

// installedFile is where touchline-cloud.service has its settings.
const installedFile = "/etc/touchline-cloud/touchline-cloud.toml"

// installed has a command be about the node that is installed on this machine,
// where nothing else was named. One that is run by hand is another.
func (s *settings) installed(command string) {
	if _, err := os.Stat(installedFile); err == nil && s.file == "" && s.data == "" && command != "run" && command != "record" {
		s.file = installedFile
	}
}

func command() *cobra.Command {
	var s settings
	root := &cobra.Command{
		Use:           "touchline-cloud",
		Short:         "The cloud of the touchline gateways",
		Long:          "touchline-cloud records what the gateways of many venues send, each sample\nexactly once, and gives it back over HTTP.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			s.installed(cmd.Name())
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command, such as `touchline-cloud run`")
		},
	}
	root.PersistentFlags().StringVar(&s.file, "config", "", "settings that differ from the defaults, a TOML `FILE` (where a node is installed: its, but for run and record)")
	root.PersistentFlags().StringVar(&s.data, "data", "", "folder of the record store where it is SQLite, a `DIR` (data)")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(&s), recordCommand(&s), gatewayCommand(&s), keyCommand(&s), nodesCommand(&s), importCommand(&s), replaceCommand(&s), exportCommand(&s), checkCommand(&s), versionCommand())
	return root
}

func checkCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the settings and print the address and the record store that they name",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			store := "data      " + c.Data
			if c.Store != "" {
				store = "store     " + c.Store
			}
			fmt.Fprintf(cmd.OutOrStdout(), "listen    %s\n%s\nsettings are fine\n", c.Listen, store)
			return nil
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "touchline-cloud", touchline.Version)
		},
	}
}
