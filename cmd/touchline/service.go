package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/credential"
	"touchline/daemon"
	"touchline/installer"
)

// serviceCommands handle the gateway as a service of this machine.
func serviceCommands() []*cobra.Command {
	operation := func(use, short string, run func(installer.Installer) error) *cobra.Command {
		var dryRun bool
		cmd := &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return run(installer.Installer{Out: cmd.OutOrStdout(), DryRun: dryRun})
			},
		}
		cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
		return cmd
	}
	return []*cobra.Command{
		installCommand(), uninstallCommand(),
		operation("start", "Start the installed service", installer.Installer.Start),
		operation("stop", "Stop the installed service", installer.Installer.Stop),
		operation("restart", "Start the installed service again; sensors wait meanwhile, none is refused", installer.Installer.Restart),
		logsCommand(),
	}
}

// An installation is what `touchline install` was asked for.
type installation struct {
	installer.Installer
	start    bool
	claim    string
	cloud    []string
	caFile   string
	gateway  string
	bundle   string
	insecure bool

	expected touchline.Bundle // what all of that comes to
}

func installCommand() *cobra.Command {
	var o installation
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the gateway as a service of this machine, or bring an installed one up to date",
		Long: `Puts the program, its user, folders, configuration and service in place. Repeated,
or called by another version, it changes what differs: a configuration that was
edited and the buffer stay. The program that was there is kept as
touchline.previous; its own install goes back.

With --claim the gateway is enrolled and started as well, in this one line. A
bundle has cloud, claim, roots and settings in one file; where the cloud is not
reached, the gateway takes samples and enrols by itself once it is.`,
		Example: `  sudo ./touchline install --claim ABCD-EFGH-JKMN --cloud wss://cloud.example.org
  sudo ./touchline install --bundle stadium.bundle
  ./touchline install --dry-run`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return o.run(cmd)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would change, and change nothing")
	f.BoolVar(&o.start, "start", false, "start the service, or start it again")
	f.StringVar(&o.claim, "claim", "", "enrol with this `CODE` (- reads it from standard input), and start")
	f.StringSliceVar(&o.cloud, "cloud", nil, "`URL` of the cloud, for uplink.urls")
	f.StringVar(&o.caFile, "ca-file", "", "own roots of the cloud, a PEM `FILE`")
	f.StringVar(&o.gateway, "gateway", "", "`ID` to ask for; else what the cloud gives")
	f.StringVar(&o.bundle, "bundle", "", "`FILE` of `touchline-cloud gateway claim --bundle`, in place of all these")
	f.BoolVar(&o.insecure, "insecure", false, "send the code over a network without TLS")
	f.StringVar(&o.Root, "root", "", "install into the file system of an image at `DIR` (Linux); nothing is started")
	return cmd
}

func (o *installation) run(cmd *cobra.Command) error {
	if err := o.gather(cmd.InOrStdin()); err != nil {
		return err
	}
	b := &o.expected
	options := installer.Options{Cloud: b.Cloud, CA: []byte(b.CA), Extra: b.Config}
	if err := o.checkSettings(options); err != nil {
		return err
	}
	if err := o.Install(options); err != nil {
		return err
	}
	if o.DryRun {
		return nil
	}
	if b.Claim != "" {
		if err := o.enrol(cmd); err != nil {
			return err
		}
	}
	switch {
	case o.Root != "":
		fmt.Fprintf(o.Out, "next: boot the image\n")
	case o.start || b.Claim != "":
		if err := o.Restart(); err != nil {
			return err
		}
		fmt.Fprintln(o.Out, "next: `touchline status`; you need not log in again")
	default:
		fmt.Fprintf(o.Out, "next: edit %s, then `touchline restart`, then `touchline status`\n", o.Place().Config)
	}
	return nil
}

// gather makes one thing of flags and bundle.
func (o *installation) gather(in io.Reader) (err error) {
	if o.bundle != "" {
		if o.claim != "" || len(o.cloud) > 0 || o.caFile != "" || o.gateway != "" {
			return errors.New("--bundle has claim, cloud, roots and id in it: leave out --claim, --cloud, --ca-file and --gateway")
		}
		o.expected, err = touchline.ReadBundle(o.bundle)
		return err
	}
	if o.claim == "-" {
		if _, err := fmt.Fscan(in, &o.claim); err != nil {
			return fmt.Errorf("read the code from standard input: %w", err)
		}
	}
	o.expected = touchline.Bundle{Cloud: o.cloud, Claim: o.claim, Gateway: o.gateway}
	if o.caFile != "" {
		text, err := os.ReadFile(o.caFile)
		if err != nil {
			return fmt.Errorf("--ca-file: %w", err)
		}
		o.expected.CA = string(text)
	}
	return nil
}

// checkSettings finds out before anything is changed whether the settings will
// do: those that would be written, or those that a person wrote, which stay.
func (o *installation) checkSettings(options installer.Options) error {
	edited, err := o.Configured()
	if err != nil {
		return err
	}
	file := o.Place().Config
	if !edited {
		dir, err := os.MkdirTemp("", "touchline-install-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		file = filepath.Join(dir, "touchline.toml")
		if err := os.WriteFile(file, []byte(o.FirstConfig(options)), 0o600); err != nil {
			return err
		}
	}
	c, _, err := touchline.LoadConfig(file, nil, nil)
	if err != nil {
		return fmt.Errorf("the settings would not do:\n%w", err)
	}
	if o.expected.Claim != "" && len(c.Uplink.URLs) == 0 {
		if edited {
			return fmt.Errorf("%s was edited, and is not overwritten: write urls = [%q] into its [uplink], and repeat this", o.Place().Config, "wss://…")
		}
		return errors.New("where is the cloud? Name it with --cloud wss://HOST")
	}
	if o.expected.Claim != "" { // a typo is found now, and not by a gateway that nobody looks at
		_, err = credential.ParseClaim(o.expected.Claim)
	}
	return err
}

// enrol uses the claim, unless this gateway has a key that the cloud knows
// already; where the cloud is not reached a bundle's waits.
func (o *installation) enrol(cmd *cobra.Command) error {
	c, _, err := touchline.LoadConfig(o.Place().Config, nil, map[string]string{"gateway.data": o.Place().Data})
	if err != nil {
		return fmt.Errorf("settings:\n%w", err)
	}
	folder, err := daemon.OpenFolder(c)
	if err != nil {
		return err
	}
	defer folder.Close()
	claim := daemon.EnrolOptions{Code: o.expected.Claim, Cloud: c.Uplink.URLs[0], Gateway: o.expected.Gateway, Insecure: o.insecure}
	if o.Root != "" {
		return folder.EnrolLater(claim)
	}
	done, err := folder.Enrol(cmd.Context(), claim)
	switch {
	case err == nil:
		fmt.Fprintf(o.Out, "enrolled as %s, of the venue %s\n", done.Gateway, printable(done.Venue))
		return nil
	case o.bundle == "":
		return fmt.Errorf("the gateway is installed, and not enrolled: repeat this line once the reason is gone: %w", err)
	}
	if err := folder.EnrolLater(claim); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "not enrolled yet (%v): the gateway takes samples, and enrols by itself once it gets through, until %s\n",
		err, moment(o.expected.Expires))
	return nil
}

func uninstallCommand() *cobra.Command {
	var i installer.Installer
	var purge, lose bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the service and the program; settings and buffer stay",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i.Out = cmd.OutOrStdout()
			if purge && !lose && !i.DryRun {
				if err := nothingWaits(cmd, i.Place()); err != nil {
					return err
				}
			}
			return i.Uninstall(installer.Removal{Purge: purge})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&i.DryRun, "dry-run", false, "say what would change, and change nothing")
	f.BoolVar(&purge, "purge", false, "remove settings, key and buffer as well")
	f.BoolVar(&lose, "lose-samples", false, "with --purge: also where the buffer holds samples that the cloud has not")
	f.StringVar(&i.Root, "root", "", "of the image whose file system is at `DIR`")
	return cmd
}

// nothingWaits keeps --purge from deleting what nobody else has.
func nothingWaits(cmd *cobra.Command, p installer.Place) error {
	if _, err := os.Stat(p.Data); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c, _, err := touchline.LoadConfig(p.Config, nil, map[string]string{"gateway.data": p.Data})
	if errors.Is(err, os.ErrNotExist) {
		c, _, err = touchline.LoadConfig("", nil, map[string]string{"gateway.data": p.Data})
	}
	if err != nil {
		return fmt.Errorf("settings:\n%w", err)
	}
	folder, err := daemon.OpenFolder(c)
	if err != nil {
		return err
	}
	defer folder.Close()
	summary, err := folder.Export(cmd.Context(), false, io.Discard) // what the cloud has not
	if errors.Is(err, os.ErrNotExist) {
		return nil // it never ran
	}
	if err != nil {
		return fmt.Errorf("look what the buffer holds: %w (--lose-samples deletes it whatever it is)", err)
	}
	if n := summary.Samples; n > 0 {
		return fmt.Errorf("the buffer holds %d samples that the cloud has not: let the gateway deliver them (`touchline status`), or take them along (`touchline buffer export`); --lose-samples deletes them", n)
	}
	return nil
}

func logsCommand() *cobra.Command {
	var lines int
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show what the installed service has logged",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := installer.Installer{}.Logs(lines, follow)
			show.Stdout, show.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			if err := show.Run(); err != nil && cmd.Context().Err() == nil {
				return fmt.Errorf("show log: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 200, "how many `LINES`, the newest")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return cmd
}
