package installer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kardianos/service"

	"touchline/systemd"
)

// place is named by the unit, too.
func place() Place {
	return Place{
		Program: "/usr/local/bin/touchline", Config: "/etc/touchline/touchline.toml",
		Data: "/var/lib/touchline", Unit: "/etc/systemd/system/touchline.service",
	}
}

// ErrNoSystemd says that this machine does not run systemd.
var ErrNoSystemd = errors.New("this machine does not run systemd, the only service manager of Linux that this version installs to; run `touchline run --config FILE` under yours")

var errPackage = errors.New("the gateway was installed as a package: remove it with `apt remove touchline` (apt purge: settings and buffer, too) or `dnf remove touchline`")

// ready says whether this machine and user can install at all. Saying what
// would be done needs no rights.
func (i Installer) ready() error {
	if i.Root == "" {
		if _, err := os.Stat("/run/systemd/system"); err != nil {
			return ErrNoSystemd
		}
	}
	if !i.DryRun && os.Geteuid() != 0 {
		return errors.New("installing needs root: call it with sudo")
	}
	return nil
}

func (i Installer) installed() (bool, error) { return exists(i.Place().Unit) || i.packaged(), nil }

// packageUnits are where packages have the unit: Debian's and RPM's.
var packageUnits = []string{"/lib/systemd/system/touchline.service", "/usr/lib/systemd/system/touchline.service"}

// packaged says whether the service of this machine is a package's.
func (i Installer) packaged() bool {
	return i.Root == "" && slices.ContainsFunc(packageUnits, exists)
}

func (i Installer) account(p Place) []step {
	if i.Root != "" {
		return []step{textFile{path: filepath.Join(i.Root, "/usr/lib/sysusers.d/touchline.conf"), text: systemd.GatewayUser, mode: 0o644}}
	}
	return []step{
		act{what: "create user " + name, so: hasUser, enact: func() error {
			return command("useradd", "--system", "--home-dir", p.Data, "--no-create-home", "--shell", "/usr/sbin/nologin", "--user-group", name)
		}},
		// systemd would make it, too; a gateway is enrolled before its first start.
		act{what: fmt.Sprintf("create folder %s, of user %s alone", p.Data, name), so: func() (bool, error) { return exists(p.Data), nil }, enact: func() error {
			if err := os.MkdirAll(p.Data, 0o700); err != nil {
				return err
			}
			return command("chown", name+":"+name, p.Data)
		}},
	}
}

func hasUser() (bool, error) {
	_, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		return false, nil
	}
	return err == nil, err
}

func (i Installer) forgetAccount() []step {
	if i.Root != "" {
		return []step{gone{path: filepath.Join(i.Root, "/usr/lib/sysusers.d/touchline.conf")}}
	}
	return []step{act{what: "remove user " + name, so: func() (bool, error) { has, err := hasUser(); return !has, err }, enact: func() error {
		return command("userdel", name)
	}}}
}

// program is what runs now. That of a package is the package's: it is not
// copied beside it, where it would go before it.
func (i Installer) program(p Place) []step {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return []step{act{what: "find own program", so: func() (bool, error) { return false, err }}}
	}
	if self == p.Program || i.Root == "" && self == "/usr/bin/touchline" {
		return nil
	}
	return []step{copied{from: self, to: p.Program, previous: p.previous()}}
}

// service puts the unit in place, byte for byte, and enables it.
func (i Installer) service(p Place) []step {
	if self, err := os.Executable(); err == nil && self == "/usr/bin/touchline" && i.packaged() {
		return []step{i.enabled()} // the package's unit
	}
	unit := unitFile{textFile{path: p.Unit, text: systemd.Gateway, mode: 0o644}, i}
	if i.Root != "" {
		link := filepath.Join(i.Root, "/etc/systemd/system/multi-user.target.wants/touchline.service")
		return []step{unit, act{what: "enable " + name, so: func() (bool, error) { return exists(link), nil }, enact: func() error {
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil { // #nosec G301 -- as systemd makes it
				return err
			}
			return os.Symlink("/etc/systemd/system/touchline.service", link)
		}}}
	}
	return []step{unit, i.enabled()}
}

func (i Installer) enabled() step {
	return act{what: "enable " + name, so: func() (bool, error) {
		return exec.Command("systemctl", "is-enabled", "--quiet", name+".service").Run() == nil, nil
	}, enact: func() error { return command("systemctl", "enable", name+".service") }}
}

// unitFile is a unit that the service manager has to hear of.
type unitFile struct {
	textFile
	i Installer
}

func (u unitFile) do() error {
	if u.i.Root != "" || exists(u.path) {
		if err := u.textFile.do(); err != nil || u.i.Root != "" {
			return err
		}
		return command("systemctl", "daemon-reload")
	}
	return u.i.ask(service.Service.Install) // which refuses to write over one
}

func (i Installer) remove(p Place) []step {
	if i.Root != "" {
		return []step{gone{path: filepath.Join(i.Root, "/etc/systemd/system/multi-user.target.wants/touchline.service")}, gone{path: p.Unit}}
	}
	if i.packaged() && !exists(p.Unit) {
		return []step{act{so: func() (bool, error) { return false, errPackage }}}
	}
	return []step{
		act{what: "stop " + name, so: func() (bool, error) {
			return !exists(p.Unit) || exec.Command("systemctl", "is-active", "--quiet", name+".service").Run() != nil, nil
		}, enact: func() error { return i.ask(service.Service.Stop) }},
		act{what: "disable service and remove " + p.Unit, so: func() (bool, error) { return !exists(p.Unit), nil }, enact: func() error {
			return i.ask(service.Service.Uninstall)
		}},
	}
}

func serviceConfig(Place) *service.Config {
	return &service.Config{Name: name, Option: service.KeyValue{"SystemdScript": systemd.Gateway}}
}

// outlives returns an error where a gateway that is ready dies soon after, and
// again. systemd starts it each time, so that it looks alive whenever one looks.
func (i Installer) outlives() error {
	before, active, err := i.restarts()
	now, last := before, liveSeconds
	for n := 1; err == nil && n <= last; n++ {
		time.Sleep(time.Second)
		now, active, err = i.restarts()
		if last == liveSeconds && (now != before || !active) {
			last = n + moreSeconds
		}
	}
	if err == nil && (!active || now > before+1) {
		err = errors.New("it started, and died again and again")
	}
	return err
}

// restarts returns how often systemd started the service again since it was
// told to start it, and whether it runs.
func (i Installer) restarts() (n int, active bool, err error) {
	out, err := exec.Command("systemctl", "show", "--property", "ActiveState,NRestarts", name+".service").Output()
	if err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(out)) {
		switch key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key {
		case "ActiveState":
			active = value == "active"
		case "NRestarts":
			if n, err = strconv.Atoi(value); err != nil {
				return 0, false, fmt.Errorf("ask systemd for restarts: %w", err)
			}
		}
	}
	return n, active, nil
}

// Logs returns the command that shows what the service wrote, the newest last.
func (i Installer) Logs(lines int, follow bool) *exec.Cmd {
	args := []string{"--unit", name, "--lines", fmt.Sprint(lines), "--no-pager", "--output", "cat"}
	if follow {
		args = append(args, "--follow")
	}
	return exec.Command("journalctl", args...) // #nosec G204 -- a number and flags, and no shell
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil { // #nosec G204 -- words of this package, and no shell
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
