package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
)

func gatewayClaimCommand(s *settings) *cobra.Command {
	var venue, gateway string
	var life time.Duration
	var bundle bundleFlags
	cmd := &cobra.Command{
		Use:   "claim --venue V [--gateway ID]",
		Short: "Print a one-time code with which a gateway enrols, once",
		Long: `Prints a code on standard output, which ` + "`touchline enroll CODE`" + ` takes on a gateway.
It is good for one gateway and for --for, and is not kept: the store has
its SHA-256 only. With --gateway it is for that one, new or known: a known
one's token and other keys count no more once the code is used. Without, the
gateway or the cloud names a new one.

With --bundle the code is in a file in place of standard output, together with
the cloud's addresses (--url), own roots and settings: ` + "`touchline install --bundle FILE`" + `
needs nothing else, and works at a site that has no line yet.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The cloud names gateways after their venue: V-1, V-2 …
			if err := touchline.CheckGateway(venue + "-1000000"); venue == "" || err != nil {
				return errors.New("name the venue: `touchline-cloud gateway claim --venue V`, of letters, digits and -._, at most 120")
			}
			if gateway != "" {
				if err := touchline.CheckGateway(gateway); err != nil {
					return err
				}
			}
			if life < time.Minute || life > maxClaimLife {
				return fmt.Errorf("--for %s: want 1m to %s", life, maxClaimLife)
			}
			code := credential.NewClaim()
			if err := bundle.read(); err != nil {
				return err
			}
			c := cloud.Claim{Hash: code.Hash(), Venue: venue, Gateway: gateway, Expires: time.Now().Add(life)}
			if err := s.withStore(cmd, func(store recordStore) error { return store.AddClaim(cmd.Context(), c) }); err != nil {
				return err
			}
			if bundle.file != "" {
				return bundle.write(cmd, c, code)
			}
			fmt.Fprintln(cmd.OutOrStdout(), code.Reveal())
			fmt.Fprintf(cmd.ErrOrStderr(), "good until %s for one gateway of venue %s; on that gateway run: touchline enroll CODE\n",
				c.Expires.UTC().Format(time.RFC3339), venue)
			return nil
		},
	}
	cmd.Flags().StringVar(&venue, "venue", "", "the venue that the gateway is of, `V`")
	cmd.Flags().StringVar(&gateway, "gateway", "", "the gateway that the code is for, `ID` (any new one)")
	cmd.Flags().DurationVar(&life, "for", credential.ClaimLife, "how long the code is good")
	bundle.add(cmd)
	return cmd
}

func gatewayRevokeCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Take a gateway's token and keys away",
		Long: `Takes a gateway's token and keys away, for good. Running clouds on this store end
its session within five seconds. What it stored stays. It comes in again with
a code of ` + "`touchline-cloud gateway claim --gateway ID`" + `.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name the gateway: `touchline-cloud gateway revoke ID`")
			}
			return touchline.CheckGateway(args[0])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			err := s.withStore(cmd, func(store recordStore) error { return store.RevokeGateway(cmd.Context(), args[0]) })
			if err == nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "gateway %s has no token and no key any more\n", args[0])
			}
			return err
		},
	}
}
