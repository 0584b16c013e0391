package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
)

// maxClaimLife is how long a claim may lie in a bundle on its way to a site: a
// season's preparation. Who finds the file until then can be that gateway.
const maxClaimLife = 90 * 24 * time.Hour

// bundleFlags are what goes into a bundle beside the claim.
type bundleFlags struct {
	file               string
	urls               []string
	caFile, configFile string

	made touchline.Bundle
}

func (b *bundleFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&b.file, "bundle", "", "write the code and what follows into a new `FILE`")
	f.StringSliceVar(&b.urls, "url", nil, "for a bundle: `URL` by which gateways reach this cloud, wss://HOST")
	f.StringVar(&b.caFile, "ca-file", "", "for a bundle: own roots of that address, a PEM `FILE`")
	f.StringVar(&b.configFile, "settings", "", "for a bundle: settings of the gateway beside [gateway] and uplink.urls, a TOML `FILE`")
}

// read gathers it, and finds what is wrong before there is a claim.
func (b *bundleFlags) read() error {
	if b.file == "" {
		if len(b.urls) > 0 || b.caFile != "" || b.configFile != "" {
			return errors.New("--url, --ca-file and --settings are for a bundle: name it with --bundle FILE")
		}
		return nil
	}
	if _, err := os.Lstat(b.file); err == nil {
		return fmt.Errorf("--bundle %s: it is there already", b.file)
	}
	b.made = touchline.Bundle{Cloud: b.urls, Claim: "to come"}
	for _, part := range []struct {
		file string
		text *string
	}{{b.caFile, &b.made.CA}, {b.configFile, &b.made.Config}} {
		if part.file == "" {
			continue
		}
		text, err := os.ReadFile(part.file)
		if err != nil {
			return fmt.Errorf("read what goes into the bundle: %w", err)
		}
		*part.text = string(text)
	}
	if err := b.checkSettings(); err != nil {
		return fmt.Errorf("--settings %s:\n%w", b.configFile, err)
	}
	if len(b.urls) == 0 {
		return errors.New("by which address do gateways reach this cloud? Name it with --url wss://HOST")
	}
	return b.made.Check()
}

// checkSettings finds here what the site would find else, where nobody can mend it.
func (b *bundleFlags) checkSettings() error {
	if b.configFile == "" {
		return nil
	}
	c, _, err := touchline.LoadConfig(b.configFile, nil, nil)
	if err != nil {
		return err
	}
	switch {
	case len(c.Uplink.URLs) > 0:
		return errors.New("uplink.urls is what --url says: leave it out")
	case c.Uplink.CAFile != "" && b.caFile != "":
		return errors.New("uplink.ca_file is what --ca-file says: leave one of the two out")
	}
	// The installation puts a [gateway] of its own before it.
	whole, err := os.CreateTemp("", "touchline-bundle-*.toml")
	if err != nil {
		return err
	}
	defer os.Remove(whole.Name())
	_, err = whole.WriteString("[gateway]\n" + b.made.Config)
	if err := errors.Join(err, whole.Close()); err != nil {
		return err
	}
	if _, _, err := touchline.LoadConfig(whole.Name(), nil, nil); err != nil {
		return errors.New("it has to begin with the line of a table, such as [sensors], and to have no [gateway]: that is the installation's")
	}
	return nil
}

func (b *bundleFlags) write(cmd *cobra.Command, c cloud.Claim, code credential.Claim) error {
	b.made.Claim, b.made.Gateway, b.made.Expires = code.Reveal(), c.Gateway, c.Expires.UTC()
	if err := b.made.Write(b.file); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s, good until %s for one gateway of venue %s; at the site: sudo touchline install --bundle %s\n",
		b.file, c.Expires.UTC().Format(time.RFC3339), c.Venue, b.file)
	return nil
}
