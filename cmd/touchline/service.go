package main

import (
	"github.com/spf13/cobra"

	"touchline/installer"
)

// serviceCommands handle the gateway as a service of this machine.
func serviceCommands() []*cobra.Command {
	operation := func(use, short string, run func(installer.Installer) error) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return run(installer.Installer{Out: cmd.OutOrStdout()})
			},
		}
	}
	return []*cobra.Command{
		operation("install", "Install the gateway as a service of this machine", installer.Installer.Install),
		operation("uninstall", "Remove the service; settings and buffer stay", installer.Installer.Uninstall),
		operation("start", "Start the installed service", installer.Installer.Start),
		operation("stop", "Stop the installed service", installer.Installer.Stop),
	}
}
