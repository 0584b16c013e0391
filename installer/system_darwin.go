package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/kardianos/service"
)

func place() Place {
	return Place{
		Program: "/usr/local/bin/touchline", Config: "/usr/local/etc/touchline/touchline.toml",
		Data: "/usr/local/var/touchline", Unit: "/Library/LaunchDaemons/touchline.plist",
	}
}

func (i Installer) ready() error {
	if !i.DryRun && os.Geteuid() != 0 {
		return errors.New("installing needs root: call it with sudo")
	}
	return nil
}

func (i Installer) installed() (bool, error) { return exists(i.Place().Unit), nil }

// account: launchd runs the gateway as root; macOS makes users of services by
// hand only.
func (i Installer) account(p Place) []step {
	return []step{act{what: "create folder " + p.Data, so: func() (bool, error) { return exists(p.Data), nil }, enact: func() error {
		return os.MkdirAll(p.Data, 0o700)
	}}}
}

func (i Installer) forgetAccount() []step { return nil }

func (i Installer) program(p Place) []step {
	self, err := os.Executable()
	if err != nil {
		return []step{act{what: "find own program", so: func() (bool, error) { return false, err }}}
	}
	if self == p.Program {
		return nil
	}
	return []step{copied{from: self, to: p.Program, previous: p.previous()}}
}

func (i Installer) service(p Place) []step {
	return []step{act{what: "write " + p.Unit, so: i.installed, enact: func() error { return i.ask(service.Service.Install) }}}
}

func (i Installer) removable(bool) error { return nil }
func (i Installer) halt(Place) []step    { return nil } // launchd ends what it forgets
func (i Installer) handOver() []step     { return nil }

func (i Installer) remove(p Place) []step {
	return []step{act{what: "stop service and remove " + p.Unit, so: func() (bool, error) { return !exists(p.Unit), nil }, enact: func() error {
		return i.ask(service.Service.Uninstall)
	}}}
}

// serviceConfig has launchd start the program again whenever it ends.
func serviceConfig(p Place) *service.Config {
	return &service.Config{
		Name: name, Executable: p.Program, Arguments: []string{"run", "--config", p.Config},
		Option: service.KeyValue{"KeepAlive": true, "RunAtLoad": true},
	}
}

// Logs returns the command that shows what the service wrote, the newest last.
func (i Installer) Logs(ctx context.Context, l Log) *exec.Cmd {
	args := []string{"-n", fmt.Sprint(l.Lines)}
	if l.Follow {
		args = append(args, "-F")
	}
	return exec.CommandContext(ctx, "tail", append(args, "/var/log/touchline.err.log")...)
}
