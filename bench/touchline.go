package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// touchlineSite is a gateway and a cloud of touchline.
type touchlineSite struct {
	gatewayPath, cloudPath string // programs
	dir                    string

	mqtt, http, listen string // addresses: sensors, the gateway's own, the cloud's
	gateway, cloud     *process
}

const gatewayID = "bench"

func newTouchlineSite(gatewayPath, cloudPath, dir string) (*touchlineSite, error) {
	s := &touchlineSite{dir: dir}
	for _, p := range []struct {
		from string
		to   *string
	}{{gatewayPath, &s.gatewayPath}, {cloudPath, &s.cloudPath}} {
		path, err := filepath.Abs(p.from)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return nil, fmt.Errorf("find program (make build makes it; -touchline and -cloud name another): %w", err)
		}
		*p.to = path
	}
	for _, address := range []*string{&s.mqtt, &s.http, &s.listen} {
		var err error
		if *address, err = freeAddress(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *touchlineSite) Address() string                      { return s.mqtt }
func (s *touchlineSite) Processes() (gateway, cloud *process) { return s.gateway, s.cloud }
func (s *touchlineSite) BufferDir() string                    { return filepath.Join(s.dir, "gateway") }
func (s *touchlineSite) path(name string) string              { return filepath.Join(s.dir, name) }

// Start writes the settings, registers the gateway and starts both. All
// settings but names, addresses and folders are the defaults.
func (s *touchlineSite) Start(ctx context.Context) error {
	cloud := fmt.Sprintf("listen = %q\ndata = %q\n", s.listen, s.path("cloud"))
	gateway := fmt.Sprintf("[gateway]\nid = %q\ndata = %q\n[sensors.mqtt]\nlisten = %q\n[sensors.http]\nlisten = %q\n"+
		"[uplink]\nurls = [%q]\ntoken_file = %q\n",
		gatewayID, s.BufferDir(), s.mqtt, s.http, "ws://"+s.listen, s.path("token"))
	if err := errors.Join(
		os.WriteFile(s.path("cloud.toml"), []byte(cloud), 0o600),
		os.WriteFile(s.path("gateway.toml"), []byte(gateway), 0o600),
	); err != nil {
		return err
	}
	add := exec.CommandContext(ctx, s.cloudPath, "gateway", "add", gatewayID, "--data", s.path("cloud"))
	add.Dir = s.dir
	var complaint strings.Builder
	add.Stderr = &complaint
	token, err := add.Output()
	if err != nil {
		return fmt.Errorf("touchline-cloud gateway add: %w: %s", err, complaint.String())
	}
	if err := os.WriteFile(s.path("token"), token, 0o600); err != nil {
		return err
	}
	if err := s.StartCloud(ctx); err != nil {
		return err
	}
	s.gateway, err = startProcess(s.dir, "touchline", s.gatewayPath, "run", "--config", s.path("gateway.toml"), "--data", s.BufferDir())
	if err != nil {
		return err
	}
	if err := until(ctx, s.gateway, "did not listen", func() error { return listening(s.mqtt) }); err != nil {
		return err
	}
	return s.waitConnected(ctx)
}

// waitConnected returns when the uplink is up.
func (s *touchlineSite) waitConnected(ctx context.Context) error {
	return until(ctx, s.gateway, "did not connect to the cloud", func() error {
		var status struct{ Uplink struct{ State string } }
		if err := getJSON(ctx, "http://"+s.http+"/v1/status", &status); err != nil {
			return err
		}
		if status.Uplink.State != "connected" {
			return fmt.Errorf("its uplink is %q", status.Uplink.State)
		}
		return nil
	})
}

func (s *touchlineSite) StartCloud(ctx context.Context) (err error) {
	s.cloud, err = startProcess(s.dir, "touchline-cloud", s.cloudPath, "run", "--config", s.path("cloud.toml"), "--data", s.path("cloud"))
	if err != nil {
		return err
	}
	return until(ctx, s.cloud, "did not listen", func() error { return listening(s.listen) })
}

func (s *touchlineSite) StopCloud() { s.cloud.stop() }

func (s *touchlineSite) Stop() {
	s.gateway.stop()
	s.cloud.stop()
}

// Mark reads /metrics of both, and /proc.
func (s *touchlineSite) Mark(ctx context.Context) (mark, error) {
	var m mark
	cloud, err := scrape(ctx, "http://"+s.listen+"/metrics")
	if err != nil {
		return m, err
	}
	gateway, err := scrape(ctx, "http://"+s.http+"/metrics")
	if err != nil {
		return m, err
	}
	samples, err := cloud.value("touchline_cloud_samples_stored_total")
	m.stored = samples / samplesPerMessage
	var errs [3]error
	m.ages, errs[0] = cloud.histogram("touchline_cloud_sample_age_seconds")
	m.wireBytes, errs[1] = cloud.value("touchline_cloud_frame_bytes_total")
	m.commits, errs[2] = gateway.value("touchline_buffer_commits_total")
	return m, errors.Join(err, errors.Join(errs[:]...), m.addProcesses(s.gateway, s.cloud))
}

// Stored asks the record store, whose count outlives the process.
func (s *touchlineSite) Stored(ctx context.Context) (float64, error) {
	var answer struct {
		Gateways []struct {
			ID      string
			Samples float64
		}
	}
	if err := getJSON(ctx, "http://"+s.listen+"/v1/gateways", &answer); err != nil {
		return 0, err
	}
	for _, g := range answer.Gateways {
		if g.ID == gatewayID {
			return g.Samples / samplesPerMessage, nil
		}
	}
	return 0, fmt.Errorf("the cloud does not know the gateway %q", gatewayID)
}
