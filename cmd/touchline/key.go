package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/daemon"
)

func keyCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the public key of this gateway, by which it speaks and signs exports",
		Long: `Prints the public half of the gateway's key on standard output; the first time,
the key is made. ` + "`touchline enroll CODE`" + ` registers it at the cloud, or there
` + "`touchline-cloud gateway key ID PUBLIC`" + `. Its thumbprint and age, and keys that
are on their way or were replaced, go to standard error.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.onFolder(func(f *daemon.Folder, _ touchline.Config) error {
				key, err := f.Key()
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), key); err != nil {
					return err
				}
				status, err := f.Keys(cmd.Context())
				if err != nil {
					return err
				}
				printKeys(cmd.ErrOrStderr(), status, time.Now())
				return nil
			})
		},
	}
	cmd.AddCommand(keyRollCommand(s))
	return cmd
}

func keyRollCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "roll",
		Short: "Give this gateway a new key, registered at the cloud with the old one",
		Long: `Makes a new key, has the cloud register it, signed with the old one, and takes it
up: the next connection is signed with it, and the one that is open stays. The
old key counts for another week. A gateway does so by itself when its key is as
old as uplink.key_max_age says; this is for one that somebody may have read.

Where the cloud is not reached the old key stays in use. The new one waits, and a
running gateway tries again; so does this command.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.onFolder(func(f *daemon.Folder, _ touchline.Config) error {
				done, err := f.RollKey(cmd.Context())
				if err != nil {
					return err
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), done.Key); err != nil {
					return err
				}
				note := cmd.ErrOrStderr()
				fmt.Fprintf(note, "this is the gateway's key now; the old one was %s\n", done.Old)
				if !done.OldEnds.IsZero() {
					fmt.Fprintf(note, "the cloud takes the old one until %s, and exports signed with it after that, too\n", done.OldEnds.Format(time.RFC3339))
				}
				fmt.Fprintln(note, "gateways that carry exports of this one (buffer.import_keys) must be told the new key as well")
				return nil
			})
		},
	}
}

func printKeys(out io.Writer, k daemon.KeyStatus, now time.Time) {
	since, due := "before anybody knew the time", ""
	if !k.Since.IsZero() {
		since = fmt.Sprintf("%s, %s ago", k.Since.UTC().Format(time.RFC3339), ago(now.Sub(k.Since)))
	}
	if !k.Due.IsZero() {
		due = "; a new one takes over in " + ago(k.Due.Sub(now))
	}
	fmt.Fprintf(out, "thumbprint %s, made %s%s\n", k.Thumbprint, since, due)
	if k.Next != "" {
		fmt.Fprintf(out, "next       %s: made, and not known to be registered at the cloud\n", k.Next)
	}
	if k.LastError != "" {
		fmt.Fprintf(out, "           last error: %s\n", k.LastError)
	}
	if k.Old != "" {
		fmt.Fprintf(out, "old        %s, until %s\n", k.Old, moment(k.OldEnds))
	}
}

func moment(t time.Time) string {
	if t.IsZero() {
		return "a time that is not known yet"
	}
	return t.UTC().Format(time.RFC3339)
}
