// Touchline is the edge gateway of a sports venue: it takes the samples of
// the sensors around it, keeps them on disk, and forwards them to the cloud.
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
	"touchline/installer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "touchline:", err)
		os.Exit(1)
	}
}

// settings are where the gateway's settings come from; every command has
// the two flags.
type settings struct {
	file string
	data string
}

func (s *settings) load() (touchline.Config, error) {
	flags := map[string]string{}
	if s.data != "" {
		flags["gateway.data"] = s.data
	}
	c, unused, err := touchline.LoadConfig(s.file, os.Environ(), flags)
	if err != nil {
		return c, fmt.Errorf("settings:\n%w", err)
	}
	for _, name := range unused {
		fmt.Fprintf(os.Stderr, "touchline: environment variable %s is no setting of the gateway: ignored\n", name)
	}
	return c, nil
}

// installed has a command be about the gateway that is installed on this
// machine, where nothing else was named. One that is run by hand is another.
func (s *settings) installed(command string) {
	file := installer.Installer{}.Place().Config
	if _, err := os.Stat(file); err == nil && s.file == "" && s.data == "" && command != "run" {
		s.file = file
	}
}

func command() *cobra.Command {
	var s settings
	root := &cobra.Command{
		Use:           "touchline",
		Short:         "The edge gateway of a sports venue",
		Long:          "touchline takes the samples of the sensors around it, keeps them on disk,\nand forwards them to the cloud, where each is recorded exactly once.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			s.installed(cmd.Name())
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command, such as `touchline run`")
		},
	}
	root.PersistentFlags().StringVar(&s.file, "config", "", "settings that differ from the defaults, a TOML `FILE` (where a gateway is installed: its, but for run)")
	root.PersistentFlags().StringVar(&s.data, "data", "", "folder of the buffer, a `DIR` (gateway.data)")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(&s), checkCommand(&s), statusCommand(&s), bufferCommand(&s), keyCommand(&s), uplinkCommand(&s), sensorCommand(&s), enrollCommand(&s), preflightCommand(&s), simulateCommand(), versionCommand())
	root.AddCommand(serviceCommands()...)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "touchline", touchline.Version)
		},
	}
}
