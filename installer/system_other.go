//go:build !linux && !darwin && !windows

package installer

import (
	"context"
	"errors"
	"os/exec"

	"github.com/kardianos/service"
)

func place() Place {
	return Place{Program: "/usr/local/bin/touchline", Config: "/usr/local/etc/touchline/touchline.toml", Data: "/var/db/touchline"}
}

func (i Installer) ready() error {
	return errors.New("this version installs on Linux with systemd, Windows and macOS; run `touchline run --config FILE` under the service manager of this system")
}
func (i Installer) installed() (bool, error) { return false, nil }
func (i Installer) account(Place) []step     { return nil }
func (i Installer) forgetAccount() []step    { return nil }
func (i Installer) program(Place) []step     { return nil }
func (i Installer) service(Place) []step     { return nil }
func (i Installer) removable(bool) error     { return nil }
func (i Installer) halt(Place) []step        { return nil }
func (i Installer) remove(Place) []step      { return nil }
func (i Installer) handOver() []step         { return nil }
func serviceConfig(Place) *service.Config    { return &service.Config{Name: name} }
func (i Installer) Logs(ctx context.Context, _ Log) *exec.Cmd {
	return exec.CommandContext(ctx, "false")
}
func (i Installer) outlives(context.Context) error { return nil }
