package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/credential"
	"touchline/daemon"
	"touchline/installer"
)

// serviceCommands handle the gateway as a service of this machine.
func serviceCommands() []*cobra.Command {
	operation := func(use, short string, run func(installer.Installer, context.Context) error) *cobra.Command {
		var dryRun bool
		cmd := &cobra.Command{
			Use: use, Short: short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return run(installer.Installer{Out: cmd.OutOrStdout(), DryRun: dryRun}, cmd.Context())
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
		Example: `  sudo ./touchline install --claim - --cloud wss://cloud.example.org
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
		if err := o.Restart(cmd.Context()); err != nil {
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
		if len(o.cloud) == 0 {
			return errors.New("--ca-file has the roots of a cloud: name it with --cloud wss://HOST")
		}
	}
	return o.expected.CheckCA()
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
	b := &o.expected
	if edited {
		if err := o.fits(c); err != nil {
			return err
		}
	}
	if b.Claim == "" {
		return nil
	}
	if len(c.Uplink.URLs) == 0 {
		return errors.New("where is the cloud? Name it with --cloud wss://HOST")
	}
	if c.Uplink.TokenFile != "" {
		return fmt.Errorf("%s has uplink.token_file, which goes before the key that a claim registers: remove it, and repeat this", o.Place().Config)
	}
	_, err = credential.ParseClaim(b.Claim) // a typo is found now, and not by a gateway that nobody looks at
	return err
}

// fits says whether settings that a person wrote, which stay, are what this
// installation is meant for.
func (o *installation) fits(c touchline.Config) error {
	b, file := &o.expected, o.Place().Config
	stays := func(is, want string) error {
		return fmt.Errorf("%s was edited, and is not overwritten: %s; write %s into its [uplink], and repeat this", file, is, want)
	}
	if len(b.Cloud) > 0 && !slices.Equal(b.Cloud, c.Uplink.URLs) {
		return stays(fmt.Sprintf("it names the cloud %q, and not %q", c.Uplink.URLs, b.Cloud), fmt.Sprintf("urls = [\"%s\"]", strings.Join(b.Cloud, "\", \"")))
	}
	if b.Claim != "" && len(c.Uplink.URLs) == 0 {
		return stays("it names no cloud", "urls = [\"wss://HOST\"]")
	}
	if b.CA != "" && c.Uplink.CAFile != o.RootsFile() {
		return stays("it does not use the roots", fmt.Sprintf("ca_file = %q", o.RootsFile()))
	}
	return nil
}

// enrol uses the claim; where the cloud is not reached a bundle's waits.
func (o *installation) enrol(cmd *cobra.Command) error {
	c, err := o.settings()
	if err != nil {
		return err
	}
	folder, err := daemon.OpenFolder(c)
	if err != nil {
		return err
	}
	defer folder.Close()
	named, err := o.namedID()
	if err != nil {
		return err
	}
	claim := daemon.EnrolOptions{Code: o.expected.Claim, Cloud: c.Uplink.URLs[0], Gateway: o.expected.Gateway, Insecure: o.insecure}
	switch {
	case claim.Gateway == "":
		claim.Gateway = named
	case named != "" && named != claim.Gateway:
		return fmt.Errorf("%s says gateway.id = %q, and the claim is for %s: remove id from the settings, and repeat this", o.Place().Config, named, claim.Gateway)
	}
	if o.Root != "" {
		return folder.EnrolLater(claim)
	}
	was, err := folder.Enrolled()
	if err != nil {
		return err
	}
	done, err := folder.Enrol(cmd.Context(), claim)
	switch {
	case err == nil && named != "" && named != done.Gateway:
		return fmt.Errorf("enrolled as %s, and %s says gateway.id = %q: set id = %q there, then `touchline restart`", done.Gateway, o.Place().Config, named, done.Gateway)
	case err == nil:
		fmt.Fprintf(o.Out, "enrolled as %s, of the venue %s\n", done.Gateway, printable(done.Venue))
		return nil
	case was != "" && (o.bundle == "" || !errors.Is(err, daemon.ErrNotReached)):
		return fmt.Errorf("this gateway was enrolled before, as %s, and goes on as that (`touchline status` says whether it may): %w", was, err)
	case o.bundle == "" || !errors.Is(err, daemon.ErrNotReached) || cmd.Context().Err() != nil:
		return fmt.Errorf("the gateway is installed, and not enrolled: repeat this line once the reason is gone: %w", err)
	}
	if err := folder.EnrolLater(claim); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "not enrolled yet (%v): the gateway takes samples, and enrols by itself once it gets through, until %s\n",
		err, moment(o.expected.Expires))
	return nil
}

// settings are those that are installed now. In an image the data folder is that
// of the image.
func (o *installation) settings() (touchline.Config, error) {
	return installedSettings(o.Place(), o.Root)
}

func installedSettings(p installer.Place, root string) (touchline.Config, error) {
	c, _, err := touchline.LoadConfig(p.Config, nil, nil)
	if errors.Is(err, os.ErrNotExist) {
		c, _, err = touchline.LoadConfig("", nil, map[string]string{"gateway.data": p.Data})
		root = "" // it is in there
	}
	if err == nil && root != "" {
		c, _, err = touchline.LoadConfig(p.Config, nil, map[string]string{"gateway.data": filepath.Join(root, c.Gateway.Data)})
	}
	if err != nil {
		return c, fmt.Errorf("settings:\n%w", err)
	}
	if _, err := os.Stat(c.Gateway.Data); c.Gateway.Data != p.Data && err != nil {
		return c, fmt.Errorf("gateway.data of %s: %w: make the folder, of user touchline, 0700", p.Config, err)
	}
	return c, nil
}

// namedID returns the id that a person wrote into the settings, "" for none.
func (o *installation) namedID() (string, error) {
	// What stays, where no folder says how the cloud calls it, is the host's.
	c, _, err := touchline.LoadConfig(o.Place().Config, nil, map[string]string{"gateway.data": os.DevNull})
	if err != nil {
		return "", fmt.Errorf("settings:\n%w", err)
	}
	if host, err := os.Hostname(); err == nil && c.Gateway.ID == host {
		return "", nil
	}
	return c.Gateway.ID, nil
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
			removal := installer.Removal{Purge: purge}
			if purge && !lose && !i.DryRun {
				removal.Check = func() error { return nothingWaits(cmd, i) }
				if err := removal.Check(); err != nil { // before anything stops; what comes until then is seen by the second look
					return err
				}
			}
			return i.Uninstall(removal)
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
func nothingWaits(cmd *cobra.Command, i installer.Installer) error {
	p := i.Place()
	if _, err := os.Stat(p.Data); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	c, _, err := touchline.LoadConfig("", nil, map[string]string{"gateway.data": p.Data})
	if err != nil {
		return fmt.Errorf("settings:\n%w", err)
	}
	folder, err := daemon.OpenFolder(c)
	if err != nil {
		return err
	}
	defer folder.Close()
	waits, err := folder.Waiting(cmd.Context())
	if err != nil {
		return fmt.Errorf("look what the buffer holds: %w (--lose-samples deletes it whatever it is)", err)
	}
	if !waits.Nothing() {
		return fmt.Errorf("%s holds %s: let the gateway deliver them (`touchline status`), or take samples along (`touchline buffer export`); --lose-samples deletes all", p.Data, waits)
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
			show := installer.Installer{}.Logs(cmd.Context(), installer.Log{Lines: lines, Follow: follow})
			show.Stdout, show.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			err := show.Run()
			if errors.Is(err, exec.ErrNotFound) {
				return fmt.Errorf("show log: %w: this machine keeps none that %s can show; where `touchline run` writes its standard error is where the log is", err, cmd.CommandPath())
			}
			if err != nil && cmd.Context().Err() == nil {
				return fmt.Errorf("show log: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&lines, "lines", "n", 200, "how many `LINES`, the newest")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	return cmd
}
