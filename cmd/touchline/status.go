package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"touchline"
	"touchline/config"
	"touchline/daemon"
)

func statusCommand(s *settings) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how the running gateway does",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			body, err := s.fetchStatus(cmd.Context(), c)
			if err != nil {
				return err
			}
			if asJSON {
				_, err := cmd.OutOrStdout().Write(body)
				return err
			}
			var status daemon.Status
			if err := json.Unmarshal(body, &status); err != nil {
				return fmt.Errorf("read status: %w", err)
			}
			printStatus(cmd.OutOrStdout(), status)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as GET /v1/status answers")
	return cmd
}

// fetchStatus asks over HTTP, and where that is off over the socket in the data
// folder.
func (s *settings) fetchStatus(ctx context.Context, c touchline.Config) (body []byte, err error) {
	if c.Sensors.HTTP.Listen != "" {
		return fetchStatus(ctx, c.Sensors.HTTP.Listen)
	}
	err = s.onFolder(func(f *daemon.Folder, _ touchline.Config) error {
		status, err := f.Status(ctx)
		if err != nil {
			return fmt.Errorf("sensors.http.listen is empty, so the gateway is asked over its data folder: %w", err)
		}
		body, err = json.Marshal(status)
		body = append(body, '\n')
		return err
	})
	return body, err
}

// maxStatusBytes holds 10,000 sensors of 128 bytes of name, each of which may
// take six in JSON, and 100 more.
const maxStatusBytes = 16 << 20

func fetchStatus(ctx context.Context, listen string) ([]byte, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no gateway answers at %s: is it running (`touchline run`), with the same --config? (%w)", listen, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatusBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	if len(body) > maxStatusBytes {
		return nil, fmt.Errorf("the status of %s has more than %s", listen, config.Size(maxStatusBytes))
	}
	if resp.StatusCode != http.StatusOK || !json.Valid(body) {
		return nil, fmt.Errorf("what answers at %s is no touchline gateway: it says %s", listen, resp.Status)
	}
	return body, nil
}

// shownSensors is how many sensors a person is shown.
const shownSensors = 30

func printStatus(out io.Writer, s daemon.Status) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%-10s"+format+"\n", append([]any{name}, args...)...)
	}
	line("gateway", "%s, version %s, up %s", s.Gateway, s.Version, ago(s.Time.Sub(s.Started)))
	line("listening", "mqtt %s, http %s", s.Listen.MQTT, s.Listen.HTTP)
	if s.Listen.MQTTTLS != "off" || s.Listen.HTTPTLS != "off" {
		line("with TLS", "mqtt %s, http %s", s.Listen.MQTTTLS, s.Listen.HTTPTLS)
	}
	line("sensors", "%d seen, %.0f samples/s, %d samples taken", len(s.Sensors.Seen), s.Sensors.SamplesPerSecond, s.Sensors.Samples)
	line("", "%d rejected, %d refused, %d kept as _raw", s.Sensors.Rejected, s.Sensors.Refused, s.Sensors.Raw)
	if c := s.Clock; c.State != "synchronised" || c.OffsetSeconds > 1 || c.OffsetSeconds < -1 {
		line("clock", "%s, by %s; what is stamped is %s ahead of the system's clock", c.State, c.Source,
			time.Duration(c.OffsetSeconds*float64(time.Second)).Round(time.Second))
		if c.Unconfirmed > 0 {
			line("", "%d corrections of it are on their way to the cloud", c.Unconfirmed)
		}
	}
	if s.Buffer.Blocks == 0 {
		line("buffer", "%s: empty", s.Buffer.State)
	} else {
		line("buffer", "%s: %d samples held (%s in blocks: %d), oldest %s", s.Buffer.State, s.Buffer.Samples,
			config.Size(s.Buffer.Bytes).Short(), s.Buffer.Blocks, ago(time.Duration(s.Buffer.OldestAgeSeconds*float64(time.Second))))
	}
	line("", "%d acknowledged by the cloud, %d evicted", s.Buffer.Acknowledged, s.Buffer.Evicted)
	if r := s.Buffer.Repeats; r.Samples["window"]+r.Samples["key"]+r.ForgottenEarly > 0 {
		line("", "%d samples sent again, not stored again", r.Samples["window"]+r.Samples["key"])
		if r.ForgottenEarly > 0 {
			line("", "%d samples left the window of repeats early: more sensors.dedupe_memory keeps them", r.ForgottenEarly)
		}
	}
	if s.Buffer.KeptBlocks > 0 {
		line("", "%d samples that the cloud has are kept (%s), in case it loses them", s.Buffer.KeptSamples, config.Size(s.Buffer.KeptBytes).Short())
	}
	if s.Buffer.BallastGiven {
		line("", "the disk was full: the ballast is given back, and made again when there is room; make space")
	}
	if w := s.Wear; w != nil {
		per := ""
		if w.BytesPerSample != nil {
			per = fmt.Sprintf(", %.0f bytes for each sample", *w.BytesPerSample)
		}
		line("disk", "%s written since the start, %s a day%s", config.Size(w.WrittenBytes).Short(), config.Size(int64(w.BytesPerDay)).Short(), per)
	}
	if s.Buffer.Damaged > 0 {
		line("", "%d blocks on disk are damaged (%d samples, told the cloud as lost)", s.Buffer.Damaged, s.Buffer.DamagedSamples)
	}
	for _, a := range s.Buffer.Aside {
		line("set aside", "%s (%s), %s: %s", a.Path, config.Size(a.Bytes).Short(), a.Kind, a.Why)
		line("", "%s: %d samples taken over, %d lost; delete it when you do not need it", a.State, a.Samples, a.Lost)
	}
	if s.Buffer.LastError != "" {
		line("", "last error: %s", s.Buffer.LastError)
	}
	printUplink(line, s)
	if s.Relay.Waiting > 0 {
		line("relay", "%d archives of other gateways (%s) wait for the cloud", s.Relay.Waiting, config.Size(s.Relay.Bytes).Short())
		if s.Relay.LastError != "" {
			line("", "last error: %s", s.Relay.LastError)
		}
	}
	printReload(line, s.Reload)
	for i, sensor := range s.Sensors.Seen {
		if i == shownSensors {
			fmt.Fprintf(out, "  … and %d more (--json has all)\n", len(s.Sensors.Seen)-i)
			break
		}
		fmt.Fprintf(out, "  %-24s %-7s %10d samples, last %s ago\n", printable(sensor.ID), sensor.Transport, sensor.Samples, ago(s.Time.Sub(sensor.LastSeen)))
	}
}

func printReload(line func(name, format string, args ...any), r daemon.ReloadStatus) {
	if r.Error != "" {
		line("settings", "the last reload was refused, and those of before hold: %s", r.Error)
	}
	if len(r.Restart) > 0 {
		line("settings", "changed, and need `touchline restart`: %s", strings.Join(r.Restart, ", "))
	}
}

func printUplink(line func(name, format string, args ...any), s daemon.Status) {
	u := s.Uplink
	if u.State == "off" {
		line("uplink", "off: uplink.urls is empty, samples stay in the buffer")
		return
	}
	way := ""
	if u.Requests {
		way = ", by HTTPS requests: something on the way refuses WebSockets"
	}
	line("uplink", "%s since %s, %s%s", u.State, ago(s.Time.Sub(u.Since)), u.URL, way)
	if u.Offered != "" {
		line("", "the cloud's record store is %s, and this gateway delivers to %s: nothing is sent", printable(u.Offered), printable(u.Store))
		line("", "if that is meant: touchline uplink accept-store %s", printable(u.Offered))
	}
	if u.BacklogFrom != nil {
		line("", "the backlog waits for its hours (uplink.backlog_hours), in %s", ago(u.BacklogFrom.Sub(s.Time)))
	}
	if u.Sessions > 0 {
		line("", "round trip %.1f ms (worst %.1f ms), %d samples stored, %d blocks sent again", u.RTT*1e3, u.RTTWorst*1e3, u.Stored, u.Resent)
	}
	if u.LastError != "" {
		line("", "last error: %s", u.LastError)
	}
	if !u.NextTry.IsZero() {
		line("", "next try in %s", ago(u.NextTry.Sub(s.Time)))
	}
	if k := s.Key; k.Next != "" {
		line("key", "%s is in use, and %s on its way to the cloud", k.Thumbprint, k.Next)
	}
	if s.Key.LastError != "" {
		line("key", "last error: %s", s.Key.LastError)
	}
}

// ago rounds to what a person reads: two units at most.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	d = d.Round(time.Minute)
	if days := d / (24 * time.Hour); days > 0 {
		return fmt.Sprintf("%dd%dh", days, d%(24*time.Hour)/time.Hour)
	}
	return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
}

// printable returns a name as it is where a terminal shows it as it is, and
// quoted otherwise: what sensors call themselves is not to be trusted.
func printable(name string) string {
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return strconv.QuoteToGraphic(name)
		}
	}
	return name
}
