package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"touchline/daemon"
)

func checkCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the settings and print the addresses and folders that they name",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			if err := daemon.Check(c); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			off := func(s string) string {
				if s == "" {
					return "off"
				}
				return s
			}
			fmt.Fprintf(out, "gateway   %s, data in %s\n", c.Gateway.ID, c.Gateway.Data)
			fmt.Fprintf(out, "mqtt      %s\n", off(c.Sensors.MQTT.Listen))
			fmt.Fprintf(out, "http      %s\n", off(c.Sensors.HTTP.Listen))
			for _, b := range c.Sensors.Broker {
				fmt.Fprintf(out, "broker    %s %v\n", b.URL, b.Topics)
			}
			fmt.Fprintf(out, "buffer    at most %s, then %s\n", c.Buffer.MaxBytes, c.Buffer.WhenFull)
			if len(c.Uplink.URLs) == 0 {
				fmt.Fprintln(out, "uplink    none: samples stay in the buffer")
			}
			for _, u := range c.Uplink.URLs {
				fmt.Fprintf(out, "uplink    %s\n", u)
			}
			fmt.Fprintln(out, "settings are fine")
			return nil
		},
	}
}
