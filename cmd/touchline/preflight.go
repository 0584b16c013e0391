package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"touchline"
	"touchline/daemon"
	"touchline/preflight"
)

func preflightCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "preflight",
		Short: "Look for what would keep the gateway from its work: disk, clock, network, cloud, listeners",
		Long: `Looks, before a match, at the folder and its disk, the clock, each step of the way
to the cloud (proxy, DNS, TCP, TLS, upgrade, authentication, round trip,
throughput) and the listeners. It changes nothing, and may run beside the
gateway, as its user or as root. The exit status is 1 where something is red.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.onFolder(func(f *daemon.Folder, c touchline.Config) error {
				o, err := preflightOptions(cmd, f, c)
				if err != nil {
					return err
				}
				report := preflight.Run(cmd.Context(), o)
				if asJSON {
					out := json.NewEncoder(cmd.OutOrStdout())
					out.SetIndent("", "  ")
					if err := out.Encode(report); err != nil {
						return err
					}
				} else {
					printPreflight(cmd.OutOrStdout(), report)
				}
				if !report.OK {
					return fmt.Errorf("preflight: %d checks are red", report.Failed())
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func preflightOptions(cmd *cobra.Command, f *daemon.Folder, c touchline.Config) (preflight.Options, error) {
	at := daemon.ListenStatus{
		MQTT: c.Sensors.MQTT.Listen, MQTTTLS: c.Sensors.MQTT.TLSListen, HTTP: c.Sensors.HTTP.Listen, HTTPTLS: c.Sensors.HTTP.TLSListen,
	}
	if f.Running() { // it knows better: port 0, and settings that changed since
		status, err := f.Status(cmd.Context())
		if err != nil {
			return preflight.Options{}, err
		}
		at = status.Listen
	}
	o := preflight.Options{
		Dir: c.Gateway.Data, FreeReserve: int64(c.Buffer.FreeReserve), URLs: c.Uplink.URLs, Gateway: c.Gateway.ID,
		Software: "touchline/" + touchline.Version, Token: f.Credential, Route: f.Route, Running: f.Running(),
	}
	for _, l := range []preflight.Listener{
		{Setting: "sensors.mqtt.listen", Address: at.MQTT}, {Setting: "sensors.mqtt.tls_listen", Address: at.MQTTTLS, TLS: true},
		{Setting: "sensors.http.listen", Address: at.HTTP, HTTP: true}, {Setting: "sensors.http.tls_listen", Address: at.HTTPTLS, HTTP: true, TLS: true},
	} {
		if l.Address != "" && l.Address != "off" {
			o.Listeners = append(o.Listeners, l)
		}
	}
	return o, nil
}

// printPreflight writes a line for each check, in green and red where a person
// sees it.
func printPreflight(out io.Writer, r preflight.Report) {
	colour := map[preflight.Status]string{preflight.OK: "32", preflight.Warn: "33", preflight.Fail: "31", preflight.Skip: "2"}
	for _, c := range r.Checks {
		word := fmt.Sprintf("%-4s", c.Status)
		if coloured(out) {
			word = "\x1b[" + colour[c.Status] + "m" + word + "\x1b[0m"
		}
		fmt.Fprintf(out, "%s  %s: %s\n", word, c.Name, c.Detail)
		if c.Do != "" {
			fmt.Fprintf(out, "      → %s\n", c.Do)
		}
	}
	if r.OK {
		fmt.Fprintln(out, "ready")
	}
}

// coloured says whether out is a terminal whose user did not object
// (no-color.org).
func coloured(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	return term.IsTerminal(int(f.Fd()))
}
