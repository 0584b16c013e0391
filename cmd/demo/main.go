// Demo is the whole product in one terminal: a cloud, a gateway, and a
// simulated match whose players are real MQTT clients. Every few seconds it
// prints what flows; u and Enter cut and mend the line to the cloud; Ctrl-C
// ends all and says what was acknowledged and what is stored.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/rollup"
	"touchline/cloud/sqlite"
	"touchline/daemon"
	"touchline/simulator"
)

const (
	gatewayID   = "stadium-1"
	players     = 22
	rateHz      = 10
	reportEvery = 3 * time.Second
	settle      = 15 * time.Second // for the rest to be stored when it ends
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := demo(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// A venue is what the demo runs.
type venue struct {
	out    io.Writer
	store  *sqlite.Store
	server *cloud.Server
	roller *rollup.Roller
	line   *line
	daemon *daemon.Daemon
}

func demo(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "touchline-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	v := &venue{out: out}
	defer func() { err = errors.Join(err, v.close()) }()
	if err := v.open(ctx, dir); err != nil {
		return err
	}
	v.greet(dir)
	return v.run(ctx)
}

// open takes everything in the order that it depends on one another.
func (v *venue) open(ctx context.Context, dir string) (err error) {
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if v.store, err = sqlite.Open(ctx, filepath.Join(dir, "cloud"), logger); err != nil {
		return err
	}
	token := rand.Text()
	if err := v.store.AddGateway(ctx, gatewayID, sha256.Sum256([]byte(token))); err != nil {
		return err
	}
	settings, _, err := cloud.LoadConfig("", nil, map[string]string{"listen": freeAddress("127.0.0.1:8090")})
	if err != nil {
		return err
	}
	if v.roller, err = rollup.New(rollup.Options{Enabled: settings.Rollups.Enabled, Limits: rollup.DefaultLimits}, v.store, logger); err != nil {
		return err
	}
	if v.server, err = cloud.New(settings.Options(), v.store, logger); err != nil {
		return err
	}
	if err := v.server.Listen(); err != nil {
		return err
	}
	if v.line, err = newLine(v.server.Addr().String()); err != nil {
		return err
	}
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte(token+"\n"), 0o600); err != nil {
		return err
	}
	config, _, err := touchline.LoadConfig("", nil, map[string]string{
		"gateway.id":           gatewayID,
		"gateway.data":         filepath.Join(dir, "gateway"),
		"sensors.mqtt.listen":  freeAddress("127.0.0.1:1883"),
		"sensors.http.listen":  freeAddress("127.0.0.1:8080"),
		"uplink.urls":          "ws://" + v.line.address(),
		"uplink.token_file":    tokenFile,
		"uplink.reconnect_max": "2s",
	})
	if err != nil {
		return err
	}
	v.daemon, err = daemon.Open(ctx, config, logger)
	return err
}

// freeAddress returns the address where nobody listens on it, else a free
// port.
func freeAddress(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "127.0.0.1:0"
	}
	l.Close()
	return address
}

func (v *venue) greet(dir string) {
	fmt.Fprintf(v.out, `
touchline demo: %d players, %d Hz, five metrics each

  sensors   mqtt://%s   http://%s/v1/samples
  status    http://%s/v1/status
  cloud     http://%s/v1/samples?format=csv   /v1/gateways   /metrics
  data      %s

Type u and Enter to cut the line to the cloud, and again to mend it. Ctrl-C ends the demo.

`, players, rateHz, v.daemon.MQTTAddr(), v.daemon.HTTPAddr(), v.daemon.HTTPAddr(), v.server.Addr(), dir)
}

// run plays until ctx ends, then lets the rest arrive and says what became
// of it.
func (v *venue) run(ctx context.Context) error {
	services, stopServices := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServices()
	group, groupCtx := errgroup.WithContext(services)
	group.Go(func() error { return v.server.Run(groupCtx) })
	group.Go(func() error { return v.roller.Run(groupCtx) })
	group.Go(func() error { return v.line.run(groupCtx) })
	group.Go(func() error { return v.daemon.Run(groupCtx) })

	play, stopPlay := context.WithCancel(ctx)
	defer stopPlay()
	context.AfterFunc(groupCtx, stopPlay) // a service that fails ends the match
	go v.listen(play)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		v.report(play)
	}()
	result, err := simulator.Stadium(play, simulator.StadiumOptions{
		To: "mqtt://" + v.daemon.MQTTAddr(), Players: players, RateHz: rateHz, Seed: 1,
	}, slog.New(slog.DiscardHandler))
	stopPlay()
	<-reported
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	if groupCtx.Err() == nil {
		v.settle(result)
	}
	stopServices()
	return errors.Join(err, group.Wait())
}

// listen reads commands until the input ends; it may outlive ctx by one read
// of standard input, which nothing can interrupt.
func (v *venue) listen(ctx context.Context) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() && ctx.Err() == nil {
		switch lines.Text() {
		case "u":
			if v.line.toggle() {
				fmt.Fprintln(v.out, "-- the line is cut: samples stay in the gateway's buffer (u and Enter to mend it)")
			} else {
				fmt.Fprintln(v.out, "-- the line is mended: the backlog flows")
			}
		case "":
		default:
			fmt.Fprintln(v.out, "-- u and Enter cut and mend the line, Ctrl-C ends")
		}
	}
}

// report prints what flows until ctx ends: soon after the start, and every
// few seconds then.
func (v *venue) report(ctx context.Context) {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			v.print()
			timer.Reset(reportEvery)
		}
	}
}

func (v *venue) print() {
	s, c := v.daemon.Status(), v.server.Stats()
	fmt.Fprintf(v.out, "%s  sensors %d, %.0f samples/s  |  gateway acknowledged %d, on its disk %d  |  uplink %s  |  cloud stored %d\n",
		s.Time.Format(time.TimeOnly), len(s.Sensors.Seen), s.Sensors.SamplesPerSecond, s.Sensors.Samples, s.Buffer.Samples, s.Uplink.State, c.SamplesStored)
}

// settle mends the line, waits for the buffer to drain, and compares.
func (v *venue) settle(result simulator.Result) {
	fmt.Fprintln(v.out, "\nending: the match is over, the rest flows to the cloud")
	v.line.set(false)
	deadline := time.NewTimer(settle)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for v.daemon.Status().Buffer.Samples > 0 {
		select {
		case <-ticker.C:
			continue
		case <-deadline.C:
		}
		break
	}
	taken, stored := v.daemon.Status().Buffer.Appended, v.server.Stats().SamplesStored
	fmt.Fprintf(v.out, "sensors were acknowledged %d samples, the gateway committed %d, the cloud has stored %d", result.Samples, taken, stored)
	if taken == stored && stored >= uint64(result.Samples) {
		fmt.Fprintln(v.out, ": nothing lost, nothing twice")
	} else {
		fmt.Fprintf(v.out, ": %d are still in the gateway's buffer\n", v.daemon.Status().Buffer.Samples)
	}
}

func (v *venue) close() error {
	var errs []error
	if v.daemon != nil {
		errs = append(errs, v.daemon.Close())
	}
	if v.server != nil {
		errs = append(errs, v.server.Close())
	}
	if v.store != nil {
		errs = append(errs, v.store.Close())
	}
	return errors.Join(errs...)
}
