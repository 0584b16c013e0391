package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"touchline/simulator"
)

type simulation struct {
	to        string
	players   int
	rate      float64
	duration  time.Duration
	recording string
	speed     string
	maxRate   float64
	json      bool
}

func simulateCommand() *cobra.Command {
	var s simulation
	cmd := &cobra.Command{
		Use:   "simulate --to URL",
		Short: "Be a stadium of real clients, or replay a recording",
		Long: `Sends to a gateway as sensors do, each over a connection of its own, until all
is acknowledged. Without --recording, players move over a pitch and send heart
rate, position, speed and acceleration.`,
		Example: `  touchline simulate --to mqtt://127.0.0.1:1883 --players 22 --rate 10 --for 90m
  touchline simulate --to ws://127.0.0.1:8080 --recording match.csv.gz --speed max`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&s.to, "to", "", "the gateway: mqtt://HOST:PORT, ws://HOST:PORT or http://HOST:PORT")
	f.IntVar(&s.players, "players", 22, "players, each a connection of its own")
	f.Float64Var(&s.rate, "rate", 10, "messages a second of each player, in `HZ`")
	f.DurationVar(&s.duration, "for", 0, "how long they play (0: until Ctrl-C)")
	f.StringVar(&s.recording, "recording", "", "replay this `FILE`.csv or .csv.gz with the columns time_unix_ns,sensor,metric,unit,value")
	f.StringVar(&s.speed, "speed", "1", "times as fast as it was recorded, or \"max\"")
	f.Float64Var(&s.maxRate, "max-rate", 0, "at most so many samples a second of a recording (0: no limit)")
	f.BoolVar(&s.json, "json", false, "print the result as JSON")
	return cmd
}

func (s *simulation) run(cmd *cobra.Command) error {
	if s.to == "" {
		return errors.New("--to is missing: name the gateway, such as --to mqtt://127.0.0.1:1883")
	}
	level := slog.LevelInfo
	var progress func(simulator.Progress)
	if term.IsTerminal(int(os.Stderr.Fd())) && !s.json {
		level = slog.LevelWarn // the progress line says the rest
		progress = func(p simulator.Progress) { printProgress(os.Stderr, p) }
		defer fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	result, err := s.simulate(cmd.Context(), progress, logger)
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if progress != nil {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
	return s.print(cmd.OutOrStdout(), result)
}

func (s *simulation) simulate(ctx context.Context, progress func(simulator.Progress), logger *slog.Logger) (simulator.Result, error) {
	if s.recording == "" {
		return simulator.Stadium(ctx, simulator.StadiumOptions{
			To: s.to, Players: s.players, RateHz: s.rate, For: s.duration,
			Seed: uint64(time.Now().UnixNano()), Progress: progress,
		}, logger)
	}
	speed := 0.0
	if s.speed != "max" {
		var err error
		if speed, err = strconv.ParseFloat(s.speed, 64); err != nil || !(speed > 0) {
			return simulator.Result{}, fmt.Errorf("--speed %q: want a number above 0, or max", s.speed)
		}
	}
	return simulator.Replay(ctx, simulator.ReplayOptions{
		To: s.to, File: s.recording, Speed: speed, MaxRate: s.maxRate, Progress: progress,
	}, logger)
}

func (s *simulation) print(out io.Writer, r simulator.Result) error {
	if s.json {
		return json.NewEncoder(out).Encode(r)
	}
	seconds := r.Duration.Seconds()
	fmt.Fprintf(out, "%d samples acknowledged in %d messages from %d sensors in %.1f s (%.0f samples/s)\n",
		r.Samples, r.Messages, r.Sensors, seconds, float64(r.Samples)/max(seconds, 1e-9))
	if r.ResentMessages > 0 || r.Reconnects > 0 {
		fmt.Fprintf(out, "%d reconnects, %d messages (%d samples) sent again for want of an acknowledgement\n", r.Reconnects, r.ResentMessages, r.ResentSamples)
	}
	if r.Skipped > 0 {
		fmt.Fprintf(out, "%d samples never sent: the gateway was away for longer than a player remembers\n", r.Skipped)
	}
	if r.Unacknowledged > 0 {
		fmt.Fprintf(out, "%d samples without acknowledgement when it was stopped\n", r.Unacknowledged)
	}
	return nil
}

func printProgress(out io.Writer, p simulator.Progress) {
	total := ""
	if p.Total > 0 {
		total = fmt.Sprintf(" of %d (%.0f %%)", p.Total, 100*float64(p.Samples)/float64(p.Total))
	}
	fmt.Fprintf(out, "\r\x1b[K%d of %d sensors connected, %d samples%s acknowledged, %.0f/s", p.Connected, p.Sensors, p.Samples, total, p.PerSecond)
}
