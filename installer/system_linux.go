package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	if i.Root != "" {
		return i.withinImage()
	}
	return nil
}

// withinImage refuses an image of which a link leads to files of this machine:
// an absolute one, which means something else once the image has booted.
func (i Installer) withinImage() error {
	root, err := filepath.EvalSymlinks(i.Root)
	if err == nil {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return fmt.Errorf("--root: %w", err)
	}
	p := i.Place()
	for _, path := range []string{p.Program, p.Config, p.Data, p.Unit, filepath.Join(i.Root, "/usr/lib/sysusers.d")} {
		for at := path; at != filepath.Clean(i.Root); at = filepath.Dir(at) {
			to, err := filepath.EvalSymlinks(at)
			if errors.Is(err, os.ErrNotExist) && !exists(at) {
				continue // what is not there leads nowhere; its folder may
			}
			if err == nil {
				to, err = filepath.Abs(to)
			}
			if inside, relErr := filepath.Rel(root, to); err != nil || relErr != nil || !filepath.IsLocal(inside) {
				return fmt.Errorf("--root %s: %s is a link that leads out of the image: mount what it is meant to lead to, or make the link relative", i.Root, at)
			}
			break
		}
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
		// By itself: useradd writes the user before his group, and a power cut
		// between the two leaves a service that can't be started.
		act{what: "create group " + name, so: hasGroup, enact: func() error {
			args := []string{"--system", name}
			if u, err := user.Lookup(name); err == nil {
				args = []string{"--gid", u.Gid, name}
			}
			return command("groupadd", args...)
		}},
		act{what: "create user " + name, so: hasUser, enact: func() error {
			return command("useradd", "--system", "--home-dir", p.Data, "--no-create-home", "--shell", "/usr/sbin/nologin", "--gid", name, name)
		}},
		// systemd would make it, too; a gateway is enrolled before its first start.
		act{what: fmt.Sprintf("create folder %s, of user %s alone", p.Data, name), so: func() (bool, error) { return given(p.Data) }, enact: func() error {
			if err := os.MkdirAll(p.Data, 0o700); err != nil {
				return err
			}
			return command("chown", name+":"+name, p.Data)
		}},
	}
}

// given says whether the folder is somebody's. One of root's that is empty was
// just made; what is in others changes hands with them, when systemd starts the
// service.
func given(dir string) (bool, error) {
	info, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != 0 {
		return true, nil
	}
	names, err := os.ReadDir(dir)
	return len(names) > 0, err
}

func hasGroup() (bool, error) {
	_, err := user.LookupGroup(name)
	var unknown user.UnknownGroupError
	if errors.As(err, &unknown) {
		return false, nil
	}
	return err == nil, err
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
	}}, act{what: "remove group " + name, so: func() (bool, error) { has, err := hasGroup(); return !has, err }, enact: func() error {
		return command("groupdel", name) // userdel does it where groups are users'
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
	return []step{unit, i.heard(), i.enabled()}
}

func (i Installer) enabled() step {
	return act{what: "enable " + name, so: func() (bool, error) {
		return is("is-enabled"), nil
	}, enact: func() error { return command("systemctl", "enable", name+".service") }}
}

// unitFile is a unit that the service manager has to hear of.
type unitFile struct {
	textFile
	i Installer
}

func (u unitFile) do() error {
	if u.i.Root == "" && !exists(u.path) {
		if err := u.i.ask(service.Service.Install); err != nil { // which refuses to write over one
			return err
		}
	}
	// As a whole and durable: an empty unit, which a power cut leaves of one that
	// was just written, is one that systemd takes for masked.
	return u.textFile.do()
}

// heard is so where systemd has read the unit that is there: an installation
// that was cut between the two is mended by the next.
func (i Installer) heard() step {
	return act{what: "have systemd read the unit", so: func() (bool, error) {
		out, err := exec.Command("systemctl", "show", "--property", "NeedDaemonReload", "--value", name+".service").Output()
		if err != nil || !exists(i.Place().Unit) {
			return true, err
		}
		return strings.TrimSpace(string(out)) == "no", nil
	}, enact: func() error { return command("systemctl", "daemon-reload") }}
}

// removable says what keeps an installation from being removed as a whole.
func (i Installer) removable(purge bool) error {
	switch {
	case !i.packaged():
		return nil
	case !i.ownUnit():
		return errPackage
	case purge:
		return errors.New("the gateway is installed as a package, too, and would be left without settings and user: leave out --purge, and then `apt purge touchline`")
	}
	return nil
}

// ownUnit says whether the unit is one that Install wrote: a link there is of
// `systemctl mask`, or of a package that was removed.
func (i Installer) ownUnit() bool {
	info, err := os.Lstat(i.Place().Unit)
	return err == nil && info.Mode().IsRegular()
}

// halt ends the service, also one that is on its way up or waits for its next try.
func (i Installer) halt(Place) []step {
	if i.Root != "" {
		return nil
	}
	return []step{act{what: "stop " + name, so: func() (bool, error) { return !i.ownUnit() || i.idle(), nil }, enact: func() error { return i.ask(service.Service.Stop) }}}
}

// idle says whether nothing of the service runs or will by itself.
func (i Installer) idle() bool {
	out, err := exec.Command("systemctl", "show", "--property", "ActiveState", "--value", name+".service").Output()
	state := strings.TrimSpace(string(out))
	return err == nil && (state == "inactive" || state == "failed")
}

func (i Installer) remove(p Place) []step {
	if i.Root != "" {
		return []step{gone{path: filepath.Join(i.Root, "/etc/systemd/system/multi-user.target.wants/touchline.service")}, gone{path: p.Unit}}
	}
	return []step{act{what: "disable service and remove " + p.Unit, so: func() (bool, error) { return !i.ownUnit(), nil }, enact: func() error {
		return i.ask(service.Service.Uninstall)
	}}}
}

// handOver leaves the service to the package that is beside the installation
// and comes into its own, enabled and running if it was so until now.
func (i Installer) handOver() []step {
	if !i.packaged() {
		return nil
	}
	enabled, ran := is("is-enabled"), !i.idle()
	return []step{
		act{what: "enable " + name + " of the package", so: func() (bool, error) { return !enabled || is("is-enabled"), nil }, enact: func() error {
			return command("systemctl", "enable", name+".service")
		}},
		act{what: "start " + name + " of the package", so: func() (bool, error) { return !ran || !i.idle(), nil }, enact: func() error {
			return i.ask(service.Service.Start)
		}},
	}
}

// is asks systemd one of its questions about the service.
func is(question string) bool {
	return exec.Command("systemctl", question, "--quiet", name+".service").Run() == nil // #nosec G204 -- words of this package, and no shell
}

func serviceConfig(Place) *service.Config {
	return &service.Config{Name: name, Option: service.KeyValue{"SystemdScript": systemd.Gateway}}
}

// outlives returns an error where a gateway that is ready dies soon after, and
// again. systemd starts it each time, so that it looks alive whenever one looks.
func (i Installer) outlives(ctx context.Context) error {
	before, active, err := i.restarts()
	now, last := before, liveSeconds
	for n := 1; err == nil && n <= last; n++ {
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
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
func (i Installer) Logs(ctx context.Context, l Log) *exec.Cmd {
	args := []string{"--unit", name, "--lines", fmt.Sprint(l.Lines), "--no-pager", "--output", "cat"}
	if l.Follow {
		args = append(args, "--follow")
	}
	return exec.CommandContext(ctx, "journalctl", args...) // #nosec G204 -- a number and flags, and no shell
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil { // #nosec G204 -- words of this package, and no shell
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
