package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
	"touchline/identity"
)

func gatewayKeyCommand(s *settings) *cobra.Command {
	var remove string
	cmd := &cobra.Command{
		Use:   "key ID [PUBLIC | --remove THUMBPRINT]",
		Short: "List a gateway's public keys, register one, or remove one",
		Long: `Lists the keys of a gateway, oldest first: what is signed with them is believed
to be of this gateway. With PUBLIC, which ` + "`touchline key`" + ` prints on the gateway, it
registers another one. With --remove it takes one away: neither handshakes nor
archives signed with it count from then on, and running clouds on this store
end the session that it opened within five seconds. The last one that counts
is taken away by ` + "`touchline-cloud gateway revoke ID`" + `. Either takes effect at once in
a running cloud.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) < 1 || len(args) > 2:
				return errors.New("name the gateway, and a key to register it: `touchline-cloud gateway key ID PUBLIC`")
			case len(args) == 2 && remove != "":
				return errors.New("either register a key or remove one: `touchline-cloud gateway key ID --remove THUMBPRINT`")
			}
			return touchline.CheckGateway(args[0])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				switch {
				case len(args) == 2:
					key, err := identity.ParsePublic(args[1])
					if err != nil {
						return err
					}
					return store.AddGatewayKey(cmd.Context(), args[0], key)
				case remove != "":
					return removeKey(cmd, store, args[0], remove)
				}
				return listKeys(cmd, store, args[0])
			})
		},
	}
	cmd.Flags().StringVar(&remove, "remove", "", "take away the key with this `THUMBPRINT`")
	return cmd
}

func listKeys(cmd *cobra.Command, store recordStore, gateway string) error {
	keys, err := store.HandshakeKeys(cmd.Context(), gateway)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "gateway %s has no key, or is unknown or revoked\n", gateway)
		return nil
	}
	table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "THUMBPRINT\tCOUNTS\tPUBLIC KEY")
	for _, k := range keys {
		fmt.Fprintf(table, "%s\t%s\t%s\n", credential.Thumbprint(k.Public), keyCounts(k, time.Now()), identity.PublicKey(k.Public))
	}
	return table.Flush()
}

// keyCounts says when a key does.
func keyCounts(k credential.GatewayKey, now time.Time) string {
	switch {
	case k.Counts(now):
		return until(k.NotAfter)
	case now.Before(k.NotBefore):
		return "from " + k.NotBefore.UTC().Format(time.RFC3339)
	}
	return "for archives only, since " + k.NotAfter.UTC().Format(time.RFC3339)
}

func removeKey(cmd *cobra.Command, store recordStore, gateway, thumbprint string) error {
	err := store.RemoveGatewayKey(cmd.Context(), gateway, thumbprint)
	switch {
	case errors.Is(err, cloud.ErrUnknownKey):
		return fmt.Errorf("gateway %s has no key with the thumbprint %.60q: `touchline-cloud gateway key %s` lists those it has", gateway, thumbprint, gateway)
	case errors.Is(err, cloud.ErrLastKey):
		return fmt.Errorf("it is the only key of gateway %s that counts: `touchline-cloud gateway revoke %s` takes it away, or "+
			"`touchline-cloud gateway claim --gateway %s` makes a code with which a new one takes its place", gateway, gateway, gateway)
	case err != nil:
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "the key counts no more; gateway %s has:\n", gateway)
	return listKeys(cmd, store, gateway)
}
