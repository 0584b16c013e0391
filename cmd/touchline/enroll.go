package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/daemon"
)

func enrollCommand(s *settings) *cobra.Command {
	o := daemon.EnrolOptions{}
	cmd := &cobra.Command{
		Use:   "enroll CODE",
		Short: "Register this gateway with the cloud, by a claim code",
		Long: `Registers the key of this gateway (made in gateway.data, 0600, where there is none)
with the one-time code that ` + "`touchline-cloud gateway claim`" + ` printed. From then on the
gateway signs each connection with its key, and needs no uplink.token_file. Proxy,
interface, roots, pins and client certificate are those of [uplink].

CODE may be - to read it from standard input, so that it stands in no list of
processes and no history of a shell.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Code = args[0]
			if o.Code == "-" {
				if _, err := fmt.Fscan(cmd.InOrStdin(), &o.Code); err != nil {
					return fmt.Errorf("read the code from standard input: %w", err)
				}
			}
			return s.onFolder(func(f *daemon.Folder, c touchline.Config) error {
				if o.Cloud == "" {
					if len(c.Uplink.URLs) == 0 {
						return errors.New("where is the cloud? Name it with --cloud wss://HOST, or in uplink.urls")
					}
					o.Cloud = c.Uplink.URLs[0]
				}
				if host, _ := os.Hostname(); !cmd.Flags().Changed("gateway") && c.Gateway.ID != host {
					o.Gateway = c.Gateway.ID // a person named it; else the cloud does
				}
				done, err := f.Enrol(cmd.Context(), o)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				fmt.Fprintf(out, "enrolled  %s, of the venue %s\n", done.Gateway, printable(done.Venue))
				next := "start the gateway: `touchline run`"
				if f.Running() {
					next = "start the gateway again, so that it takes up its id"
				}
				if len(c.Uplink.URLs) == 0 {
					next = fmt.Sprintf("set urls = [%q] in [uplink], then %s", o.Cloud, next)
				}
				if c.Uplink.TokenFile != "" {
					next = "remove uplink.token_file from the settings, which goes before the key; then " + next
				}
				if c.Gateway.ID != done.Gateway && c.Gateway.ID == o.Gateway {
					next = fmt.Sprintf("set id = %q in [gateway], which says %q; then %s", done.Gateway, c.Gateway.ID, next)
				}
				fmt.Fprintf(out, "next      %s%s\n", strings.ToUpper(next[:1]), next[1:])
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&o.Cloud, "cloud", "", "`URL` of the cloud; else the first of uplink.urls")
	cmd.Flags().StringVar(&o.Gateway, "gateway", "", "`ID` to ask for; else gateway.id, or what the cloud gives")
	cmd.Flags().StringVar(&o.CAFile, "ca-file", "", "own roots, a PEM `FILE`; else uplink.ca_file, or the system's")
	cmd.Flags().BoolVar(&o.Insecure, "insecure", false, "send the code over a network without TLS")
	return cmd
}
