package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"touchline/cloud"
	"touchline/credential"
)

func keyCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Add, list and revoke the API keys of people and programs that read",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command: `touchline-cloud key add NAME --scope read`, `key list` or `key revoke NAME`")
		},
	}
	cmd.AddCommand(keyAddCommand(s), keyListCommand(s), keyRevokeCommand(s))
	return cmd
}

// scopes takes read for all that reads, beside the scopes' own names.
func scopes(list string) (credential.Scopes, error) {
	all := (credential.ReadSamples | credential.ReadLive | credential.ReadStatus).String()
	names := strings.Split(list, ",")
	for i, name := range names {
		if strings.TrimSpace(name) == "read" {
			names[i] = all
		}
	}
	return credential.ParseScopes(strings.Join(names, ","))
}

func keyAddCommand(s *settings) *cobra.Command {
	var scope, expires string
	cmd := &cobra.Command{
		Use:   "add NAME --scope read [--expires 90d]",
		Short: "Add an API key and print it, once",
		Long: `Adds an API key and prints it on standard output. It is not kept: the store has
its SHA-256 only. Send it as "Authorization: Bearer KEY". Scopes are read
(all of the following), read:samples, read:live, read:status and admin.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" || len(args[0]) > 128 {
				return errors.New("name the key, in at most 128 bytes: `touchline-cloud key add NAME --scope read`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			given, err := scopes(scope)
			if err != nil {
				return fmt.Errorf("--scope: %w", err)
			}
			life, err := days(expires)
			if err != nil {
				return fmt.Errorf("--expires: %w", err)
			}
			key := credential.NewAPIKey()
			k := cloud.APIKey{ID: key.ID(), Hash: key.Hash(), Name: args[0], Scopes: given, Created: now}
			if life > 0 {
				k.Expires = now.Add(life)
			}
			err = s.withStore(cmd, func(store recordStore) error { return store.AddAPIKey(cmd.Context(), k) })
			if errors.Is(err, cloud.ErrExists) {
				return fmt.Errorf("there is a key %s already: choose another name, since names stay in the list", args[0])
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), key.Reveal())
			fmt.Fprintf(cmd.ErrOrStderr(), "added API key %s with %s, %s\n", args[0], given, until(k.Expires))
			return nil
		},
	}
	cmd.Flags().StringVar(&scope, "scope", "read", "what the key may do, `SCOPES` with commas between them")
	cmd.Flags().StringVar(&expires, "expires", "", "how long it counts, such as 90d or 12h (for ever)")
	return cmd
}

// days reads a duration that may be in days; "" is none.
func days(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	var d time.Duration
	var err error
	if n, ok := strings.CutSuffix(s, "d"); ok {
		var count int
		if count, err = strconv.Atoi(n); err == nil && count > 0 && count <= 36_500 {
			return time.Duration(count) * 24 * time.Hour, nil
		}
	} else if d, err = time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%.40q is no time from now, such as 90d or 12h", s)
}

func until(t time.Time) string {
	if t.IsZero() {
		return "for ever"
	}
	return "until " + t.UTC().Format(time.RFC3339)
}

func keyListCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the API keys, those that count no more included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				keys, err := store.APIKeys(cmd.Context())
				if err != nil {
					return err
				}
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(table, "NAME\tKEY\tSCOPES\tADDED\tCOUNTS\tLAST USED")
				for _, k := range keys {
					counts := until(k.Expires)
					switch {
					case k.Revoked:
						counts = "revoked"
					case !k.Counts(time.Now()):
						counts = "over since " + k.Expires.UTC().Format(time.RFC3339)
					}
					fmt.Fprintf(table, "%s\ttlk_%s_…\t%s\t%s\t%s\t%s\n", k.Name, k.ID, k.Scopes, k.Created.Format(time.RFC3339), counts, moment(k.LastUsed))
				}
				return table.Flush()
			})
		},
	}
}

func keyRevokeCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Take an API key away; it counts no more from the next request on",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name the key: `touchline-cloud key revoke NAME`")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.withStore(cmd, func(store recordStore) error {
				err := store.RevokeAPIKey(cmd.Context(), args[0])
				if errors.Is(err, cloud.ErrUnknownKey) {
					return fmt.Errorf("there is no API key %s: `touchline-cloud key list` shows all", args[0])
				}
				return err
			})
		},
	}
}
