// Package installer makes the gateway a service of the operating system. It
// is the only package that knows kardianos/service. Every operation may be
// repeated; Uninstall keeps configuration and buffer.
package installer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"

	"github.com/kardianos/service"

	"touchline/systemd"
)

// Where an installed gateway lives. The unit names the same places.
const (
	name       = "touchline"
	program    = "/usr/local/bin/touchline"
	configFile = "/etc/touchline/touchline.toml"
	dataFolder = "/var/lib/touchline"
	unitFile   = "/etc/systemd/system/touchline.service"
)

// firstConfig is written where there is no configuration yet.
const firstConfig = `# Settings of this gateway that differ from the defaults.
# ` + "`touchline check --config " + configFile + "`" + ` says what is wrong with them.

[gateway]
data = "` + dataFolder + `"

# [uplink]
# urls = ["wss://cloud.example.org"]
# token_file = "/etc/touchline/token"    # chown root:touchline, chmod 0640
`

// ErrNoSystemd says that this machine does not run systemd.
var ErrNoSystemd = errors.New("this machine does not run systemd, the only service manager that this version installs to; run `touchline run --config FILE` under yours")

// An Installer reports what it does, a line each, to Out.
type Installer struct{ Out io.Writer }

// Install puts program, user, configuration and unit in place and enables the
// service; it does not start it. What is there already is left as it is, but
// for the program, which is replaced, and a unit that is older.
func (i Installer) Install() error {
	if err := ready(); err != nil {
		return err
	}
	for _, step := range []func() error{i.user, i.program, i.config, i.unit} {
		if err := step(); err != nil {
			return err
		}
	}
	i.say("next: edit %s, then `touchline start`, then `touchline status`", configFile)
	return nil
}

// Uninstall stops the service and removes unit and program. Configuration
// and buffer stay where they are.
func (i Installer) Uninstall() error {
	if err := ready(); err != nil {
		return err
	}
	if _, err := os.Stat(unitFile); errors.Is(err, os.ErrNotExist) {
		i.say("no unit %s: nothing to uninstall", unitFile)
		return nil
	}
	if err := i.Stop(); err != nil {
		return err
	}
	if err := i.service(service.Service.Uninstall); err != nil {
		return fmt.Errorf("uninstall service: %w", err)
	}
	if err := os.Remove(program); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove program: %w", err)
	}
	i.say("removed %s and %s; kept %s and %s", unitFile, program, filepath.Dir(configFile), dataFolder)
	return nil
}

// Start starts the service; one that runs goes on.
func (i Installer) Start() error {
	if err := i.installed(); err != nil {
		return err
	}
	if err := i.service(service.Service.Start); err != nil {
		return fmt.Errorf("start service: %w (see `journalctl -u %s`)", err, name)
	}
	i.say("started %s", name)
	return nil
}

// Stop stops the service and waits until it has ended.
func (i Installer) Stop() error {
	if err := i.installed(); err != nil {
		return err
	}
	if err := i.service(service.Service.Stop); err != nil {
		return fmt.Errorf("stop service: %w (see `journalctl -u %s`)", err, name)
	}
	i.say("stopped %s", name)
	return nil
}

func (i Installer) installed() error {
	if err := ready(); err != nil {
		return err
	}
	if _, err := os.Stat(unitFile); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no unit %s: run `touchline install` first", unitFile)
	}
	return nil
}

func (i Installer) say(format string, args ...any) { fmt.Fprintf(i.Out, format+"\n", args...) }

// ready says whether this machine and user can install at all.
func ready() error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return ErrNoSystemd
	}
	if os.Geteuid() != 0 {
		return errors.New("installing needs root: call it with sudo")
	}
	return nil
}

func (i Installer) user() error {
	if _, err := user.Lookup(name); err == nil {
		return nil
	}
	out, err := exec.Command("useradd", "--system", "--home-dir", dataFolder, "--no-create-home",
		"--shell", "/usr/sbin/nologin", "--user-group", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("create user %s: %w: %s", name, err, out)
	}
	i.say("created user %s", name)
	return nil
}

// program copies the running program, by way of a new file so that a service
// that runs it now is not disturbed.
func (i Installer) program() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	if self == program {
		return nil
	}
	src, err := os.Open(self)
	if err != nil {
		return fmt.Errorf("read own program: %w", err)
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil { // #nosec G301 -- everybody may run the program
		return fmt.Errorf("create program folder: %w", err)
	}
	fresh, err := os.CreateTemp(filepath.Dir(program), ".touchline-*")
	if err != nil {
		return fmt.Errorf("write program: %w", err)
	}
	defer os.Remove(fresh.Name())
	_, err = io.Copy(fresh, src)
	err = errors.Join(err, fresh.Chmod(0o755), fresh.Sync(), fresh.Close())
	if err == nil {
		err = os.Rename(fresh.Name(), program)
	}
	if err != nil {
		return fmt.Errorf("write program: %w", err)
	}
	i.say("installed %s", program)
	return nil
}

func (i Installer) config() error {
	if err := os.MkdirAll(filepath.Dir(configFile), 0o755); err != nil { // #nosec G301 -- the settings hold no secret
		return fmt.Errorf("create configuration folder: %w", err)
	}
	file, err := os.OpenFile(configFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // #nosec G302 -- the settings hold no secret
	if errors.Is(err, os.ErrExist) {
		i.say("kept %s", configFile)
		return nil
	}
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = file.WriteString(firstConfig)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	i.say("wrote %s", configFile)
	return nil
}

func (i Installer) unit() error {
	old, err := os.ReadFile(unitFile)
	if err == nil && string(old) == systemd.Gateway {
		i.say("kept %s", unitFile)
		return nil
	}
	if err == nil { // kardianos refuses to write over a unit
		if err := os.Remove(unitFile); err != nil {
			return fmt.Errorf("replace unit: %w", err)
		}
	}
	if err := i.service(service.Service.Install); err != nil {
		return fmt.Errorf("install service: %w", err)
	}
	i.say("installed and enabled %s", unitFile)
	return nil
}

func (i Installer) service(operation func(service.Service) error) error {
	s, err := service.New(nothing{}, &service.Config{
		Name:   name,
		Option: service.KeyValue{"SystemdScript": systemd.Gateway},
	})
	if err != nil {
		return err
	}
	return operation(s)
}

// nothing stands for the program where only its service is handled: the
// service manager runs `touchline run`, which needs no kardianos on Linux.
type nothing struct{}

func (nothing) Start(service.Service) error { return nil }
func (nothing) Stop(service.Service) error  { return nil }
