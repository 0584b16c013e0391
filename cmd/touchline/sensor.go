package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/credential"
)

func sensorCommand(s *settings) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sensor",
		Short: "Give sensors keys, admit them, shut them out; make a local CA",
		Long: `Looks after who may send samples to this gateway. A running gateway sees each
change within about two seconds: a sensor whose key was revoked is disconnected.

A sensor shows its id and key as MQTT user name and password, or over HTTP with
Basic, or the key alone as bearer. It publishes under its own id.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command, such as `touchline sensor add ID`")
		},
	}
	cmd.AddCommand(sensorAddCommand(s), sensorListCommand(s), sensorAdmitCommand(s), sensorRenewCommand(s),
		sensorChange(s, "revoke", "Shut a sensor out; its id stays taken", (*credential.SensorKeys).Revoke),
		sensorChange(s, "remove", "Forget a sensor, so that its id is unknown again", (*credential.SensorKeys).Remove),
		sensorCACommand(s))
	return cmd
}

// sensorKeys opens the file of keys.
func (s *settings) sensorKeys() (*credential.SensorKeys, touchline.Config, error) {
	c, err := s.load()
	if err != nil {
		return nil, c, err
	}
	if info, err := os.Stat(c.Gateway.Data); err != nil || !info.IsDir() {
		return nil, c, fmt.Errorf("gateway.data %s is no folder yet: start the gateway once, or name another one (--data, --config)", c.Gateway.Data)
	}
	keys, err := credential.OpenSensorKeys(filepath.Join(c.Gateway.Data, credential.SensorKeysFile), slog.New(slog.DiscardHandler))
	return keys, c, err
}

// handOver shows a key: alone on standard output, so that it can be sent on,
// and what to do with it beside.
func handOver(cmd *cobra.Command, sensor string, key credential.Secret, c touchline.Config) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "The key of %s, shown this once:\n", printable(sensor))
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), key.Reveal()); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "MQTT: user name %s, the key as password. HTTP: Basic with the same, or the key as bearer.\n", printable(sensor))
	if c.Sensors.AllowAnonymous {
		fmt.Fprintln(cmd.ErrOrStderr(), "Nobody uses this id without the key from now on. Sensors without a key still come in under other ids\n"+
			"(sensors.allow_anonymous is true).")
	}
	return nil
}

func sensorAddCommand(s *settings) *cobra.Command {
	var note string
	cmd := &cobra.Command{
		Use:   "add ID",
		Short: "Make a key for a sensor, and print it this once",
		Long: `Makes a key for a sensor and prints it. The gateway keeps its SHA-256 only, in
sensors.keys of its data folder. A receiver that forwards other sensors needs a
table [[sensors.acl]] with publish_as in the settings as well.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, c, err := s.sensorKeys()
			if err != nil {
				return err
			}
			key, err := keys.Add(args[0], note)
			if errors.Is(err, credential.ErrSensorExists) {
				return fmt.Errorf("%w: `touchline sensor renew` makes another one", err)
			}
			if err != nil {
				return err
			}
			return handOver(cmd, args[0], key, c)
		},
	}
	cmd.Flags().StringVar(&note, "note", "", "`TEXT` to know the sensor by, in the list")
	return cmd
}

func sensorRenewCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "renew ID",
		Short: "Make another key for a sensor; the old one is worth nothing from then on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, c, err := s.sensorKeys()
			if err != nil {
				return err
			}
			key, err := keys.Renew(args[0])
			if err != nil {
				return err
			}
			return handOver(cmd, args[0], key, c)
		},
	}
}

func sensorAdmitCommand(s *settings) *cobra.Command {
	var newKey bool
	cmd := &cobra.Command{
		Use:   "admit ID",
		Short: "Let in a sensor that waits, or one that was revoked",
		Long: `Lets in a sensor with the key that it has shown. Whoever used the id first has
shown it, so compare the fingerprint in ` + "`touchline sensor list`" + `, or give it a new
key (--new-key). One that has shown none gets a key here, printed this once.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, c, err := s.sensorKeys()
			if err != nil {
				return err
			}
			if !newKey {
				err = keys.Admit(args[0])
			}
			if newKey || errors.Is(err, credential.ErrNoKeyShown) {
				key, err := keys.Add(args[0], "")
				if err != nil {
					return err
				}
				return handOver(cmd, args[0], key, c)
			}
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s comes in with the key that it has shown\n", printable(args[0]))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&newKey, "new-key", false, "make a key for it, whatever it has shown")
	return cmd
}

func sensorChange(s *settings, name, short string, change func(*credential.SensorKeys, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			keys, _, err := s.sensorKeys()
			if err != nil {
				return err
			}
			return change(keys, args[0])
		},
	}
}

// sensorLine is a sensor as --json shows it.
type sensorLine struct {
	Sensor      string    `json:"sensor"`
	State       string    `json:"state"`
	Since       time.Time `json:"since"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	Note        string    `json:"note,omitempty"`
}

func sensorListCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List sensors with a key, those that wait and those shut out",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, _, err := s.sensorKeys()
			if err != nil {
				return err
			}
			lines := []sensorLine{}
			for _, k := range keys.List() {
				l := sensorLine{Sensor: k.Sensor, State: k.State.String(), Since: k.Created, Note: k.Note}
				if k.Hash != [32]byte{} {
					l.Fingerprint = hex.EncodeToString(k.Hash[:6])
				}
				lines = append(lines, l)
			}
			for _, p := range keys.Problems() {
				fmt.Fprintln(cmd.ErrOrStderr(), "touchline: sensors.keys:", p)
			}
			if asJSON {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				return out.Encode(lines)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "SENSOR\tSTATE\tSINCE\tKEY\tNOTE")
			for _, l := range lines {
				state, key := l.State, l.Fingerprint
				if state == credential.Held.String() {
					state = "waits"
				}
				if key == "" {
					key = "none shown"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(l.Sensor), state, l.Since.Format(time.RFC3339), key, printable(l.Note))
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func sensorCACommand(s *settings) *cobra.Command {
	var domains []string
	cmd := &cobra.Command{
		Use:   "ca NAME…",
		Short: "Make a certificate for the listeners with TLS, and a CA for it where there is none",
		Long: `Makes a small CA in gateway.data, the first time, and with it a certificate for
the names and addresses by which sensors reach this gateway. Sensors are given
sensor-ca.crt; a running gateway takes a new certificate up by itself. The CA may
vouch for local names and addresses only (and --domain, when it is made), so who
steals its key can't use it against the internet.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, hosts []string) error {
			_, c, err := s.sensorKeys()
			if err != nil {
				return err
			}
			dir := c.Gateway.Data
			ca, err := credential.OpenCA(dir)
			if errors.Is(err, fs.ErrNotExist) {
				name := "touchline sensors, " + c.Gateway.ID
				ca, err = credential.CreateCA(dir, credential.CAOptions{
					Name: name[:min(len(name), 64)], Domains: append(domains, credential.LocalDomains...), Networks: credential.LocalNetworks,
				})
			} else if len(domains) > 0 && err == nil {
				return errors.New("there is a CA already, and what it may vouch for can't be changed: move sensor-ca.crt and sensor-ca.key away for a new one, whose certificate all sensors need")
			}
			if err != nil {
				return err
			}
			if err := ca.Issue(dir, hosts); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "certificate  %s, for %s\n", filepath.Join(dir, credential.ServerFile), strings.Join(hosts, ", "))
			fmt.Fprintf(out, "for sensors  %s, until %s\n", filepath.Join(dir, credential.CACertFile), ca.NotAfter().Format(time.DateOnly))
			if c.Sensors.MQTT.TLSListen == "" && c.Sensors.HTTP.TLSListen == "" {
				fmt.Fprintln(out, "Set tls_listen in [sensors.mqtt] or [sensors.http] to use it.")
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&domains, "domain", nil, "a further `DOMAIN` that the CA may vouch for, when it is made")
	return cmd
}
