package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/cloud"
)

func gatewayCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Add, list and revoke the gateways that may send, and their keys",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command: `touchline-cloud gateway claim --venue V`, `gateway list`, `gateway revoke ID`, `gateway add ID` or `gateway key ID`")
		},
	}
	cmd.AddCommand(gatewayClaimCommand(s), gatewayRevokeCommand(s), gatewayAddCommand(s), gatewayListCommand(s), gatewayKeyCommand(s))
	return cmd
}

func gatewayAddCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "add ID",
		Short: "Add a gateway and print its token, once",
		Long:  "Adds a gateway and prints its token on standard output. The token is not kept:\nthe store has its SHA-256 only. It takes effect at once in a running cloud.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name the gateway: `touchline-cloud gateway add ID`")
			}
			return touchline.CheckGateway(args[0])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			token := newToken()
			err := s.withStore(cmd, func(store recordStore) error {
				return store.AddGateway(cmd.Context(), args[0], sha256.Sum256([]byte(token)))
			})
			if errors.Is(err, cloud.ErrExists) {
				return fmt.Errorf("gateway %s is there already; its token was printed when it was added", args[0])
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			fmt.Fprintf(cmd.ErrOrStderr(), "added gateway %s; put its token into the file that uplink.token_file names on the gateway (readable by it alone)\n", args[0])
			return nil
		},
	}
}

// newToken returns 32 random bytes in base64url: no guess and no dictionary
// finds them, so a fast hash is enough for the store.
func newToken() string {
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		panic("BUG: crypto/rand failed: " + err.Error()) // documented never to happen
	}
	return base64.RawURLEncoding.EncodeToString(secret[:])
}

func gatewayListCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the gateways and what the store has of them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				gateways, err := store.Gateways(cmd.Context())
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "GATEWAY\tADDED\tLAST STORED\tSAMPLES\tBLOCKS\tKEPT ASIDE\tLOST\tVENUE\tLAST SEEN\tKEYS\tREMARKS")
				for _, g := range gateways {
					keys, err := store.PublicKeysOf(cmd.Context(), g.ID)
					if err != nil {
						return err
					}
					fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", g.ID, g.Added.UTC().Format(time.RFC3339), since(g.LastStored),
						g.Samples, g.Blocks, g.KeptAside, g.Lost, orDash(g.Venue), since(g.LastSeen), orDash(strings.Join(keys, " ")), orDash(remarks(&g)))
				}
				return table.Flush()
			})
		},
	}
}

// remarks are what an operator should know of a gateway.
func remarks(g *cloud.Gateway) string {
	var list []string
	if g.Revoked != nil {
		list = append(list, "revoked "+since(g.Revoked))
	}
	if g.Cloned != nil {
		list = append(list, "cloned: two boxes had its identity, last seen "+since(g.Cloned))
	}
	return strings.Join(list, "; ")
}

func since(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return moment(*t)
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
