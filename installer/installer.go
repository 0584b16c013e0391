// Package installer makes the gateway a service of the operating system:
// systemd on Linux, the service control manager on Windows, launchd on macOS.
// It is the only package that knows kardianos/service. Every operation may be
// repeated, and can say what it would do instead of doing it. What a person
// wrote or a sensor sent is never overwritten: an edited configuration and the
// buffer stay, also over Uninstall, unless Purge is asked for.
package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kardianos/service"
)

// name is that of the service, of its user, and of the program.
const name = "touchline"

// A Place is where an installed gateway lives on this system.
type Place struct {
	Program string
	Config  string
	Data    string
	Unit    string // the service manager's file; "" where it keeps none
}

// An Installer handles the service of this machine. Out is required.
type Installer struct {
	Out    io.Writer // what is done, a line each
	DryRun bool      // say what would change, and change nothing
	Root   string    // of an image's file system, such as of a card; "": this machine. Its services are not asked
}

// Place returns where the gateway of this installer lives.
func (i Installer) Place() Place {
	p := place()
	for _, path := range []*string{&p.Program, &p.Config, &p.Data, &p.Unit} {
		if *path != "" && i.Root != "" {
			*path = filepath.Join(i.Root, *path)
		}
	}
	return p
}

// Options are what Install is told beside the defaults.
type Options struct {
	Cloud []string // addresses for a configuration that is not edited yet
	CA    []byte   // own roots (PEM) for it; nil: the system's
	Extra string   // TOML that goes into it, too
}

// Install puts user, folders, program, configuration and unit in place and
// enables the service; it does not start it. What is as it should be is left
// alone, and so is a configuration that was edited. The program that was there
// is kept beside the new one, as PROGRAM.previous: its own install goes back.
func (i Installer) Install(o Options) error {
	if err := i.ready(); err != nil {
		return err
	}
	p := i.Place()
	steps := i.account(p)
	steps = append(steps, i.program(p)...)
	if len(o.CA) > 0 {
		steps = append(steps, textFile{path: p.ca(), text: string(o.CA), mode: 0o644})
	}
	steps = append(steps, textFile{path: p.Config, text: p.firstConfig(o), mode: 0o644, edited: func(text string) bool {
		// Asked for nothing, it stays what an earlier installation made it.
		return len(o.Cloud) == 0 && len(o.CA) == 0 && o.Extra == "" || p.edited(text)
	}})
	steps = append(steps, i.service(p)...)
	_, err := i.carryOut(steps)
	return err
}

// FirstConfig is what Install writes where there is no configuration yet.
func (i Installer) FirstConfig(o Options) string { return i.Place().firstConfig(o) }

// RootsFile is where Install writes own roots of the cloud, as the service sees it.
func (i Installer) RootsFile() string { return place().ca() }

// Configured says whether there is a configuration that a person wrote.
func (i Installer) Configured() (bool, error) {
	p := i.Place()
	text, err := os.ReadFile(p.Config)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && p.edited(string(text)), err
}

// A Removal says what Uninstall takes away beside the service.
type Removal struct {
	Purge bool // configuration, data and user, too
	// Check is asked once the service has ended, and before anything is removed.
	// Its error is that of Uninstall, and the service runs again if it ran. Nil
	// asks nobody; a dry run does not ask.
	Check func() error
}

// Uninstall stops the service and removes unit and program. Configuration and
// data stay, unless they are to be purged.
func (i Installer) Uninstall(r Removal) error {
	if err := i.ready(); err != nil {
		return err
	}
	if err := i.removable(r.Purge); err != nil {
		return err
	}
	p := i.Place()
	handOver := i.handOver() // of what is so now
	ended, err := i.carryOut(i.halt(p))
	if err != nil {
		return err
	}
	if r.Check != nil && !i.DryRun {
		if err := r.Check(); err != nil {
			if ended {
				err = errors.Join(err, i.Start(context.Background()))
			}
			return err
		}
	}
	steps := i.remove(p)
	steps = append(steps, gone{path: p.Program}, gone{path: p.previous()}, gone{path: p.previous() + keptSuffix})
	steps = append(steps, handOver...)
	if r.Purge {
		steps = append(steps, gone{path: filepath.Dir(p.Config), all: true}, gone{path: p.Data, all: true})
		steps = append(steps, i.forgetAccount()...)
	}
	if _, err := i.carryOut(steps); err != nil {
		return err
	}
	if !r.Purge {
		i.say("kept %s and %s (--purge removes them)", filepath.Dir(p.Config), p.Data)
	}
	return nil
}

// Start starts the service; one that runs goes on. It returns when the gateway
// is ready and has lived for some seconds, or with what kept it from that.
func (i Installer) Start(ctx context.Context) error {
	return i.control(ctx, operation{"start", "started", service.Service.Start})
}

// Stop stops the service and waits until it has ended.
func (i Installer) Stop(ctx context.Context) error {
	return i.control(ctx, operation{"stop", "stopped", service.Service.Stop})
}

// Restart ends the service and starts it, also one that does not run.
func (i Installer) Restart(ctx context.Context) error {
	return i.control(ctx, operation{"restart", "restarted", service.Service.Restart})
}

// An operation is one that the service manager does.
type operation struct {
	what, done string
	do         func(service.Service) error
}

func (i Installer) control(ctx context.Context, o operation) error {
	if i.Root != "" {
		return fmt.Errorf("%s service: that of an image can't be: leave out --root", o.what)
	}
	if err := i.ready(); err != nil {
		return err
	}
	if installed, err := i.installed(); err != nil {
		return err
	} else if !installed {
		return fmt.Errorf("%s service: it is not installed: run `touchline install` first", o.what)
	}
	if i.DryRun {
		i.say("would %s %s", o.what, name)
		return nil
	}
	err := i.ask(o.do)
	if err == nil && o.what != "stop" {
		err = i.outlives(ctx)
	}
	if errors.Is(err, errUnwatched) {
		return fmt.Errorf("%s service: %w", o.what, err)
	}
	if err != nil {
		err = fmt.Errorf("%s service: %w (`touchline logs` shows why)", o.what, err)
		if previous := i.Place().previous(); o.what != "stop" && exists(previous) {
			err = fmt.Errorf("%w; to go back to the version before: `%s install --start`", err, previous)
		}
		return err
	}
	i.say("%s %s", o.done, name)
	return nil
}

// ask has the service manager do something, by kardianos/service.
func (i Installer) ask(do func(service.Service) error) error {
	s, err := service.New(nothing{}, serviceConfig(i.Place()))
	if err != nil {
		return err
	}
	return do(s)
}

// Log says what Logs shows.
type Log struct {
	Lines  int // the newest
	Follow bool
}

func (i Installer) say(format string, args ...any) { fmt.Fprintf(i.Out, format+"\n", args...) }

// nothing stands for the program where only its service is handled.
type nothing struct{}

func (nothing) Start(service.Service) error { return nil }
func (nothing) Stop(service.Service) error  { return nil }

func (p Place) previous() string { return p.Program + ".previous" }
func (p Place) ca() string       { return filepath.Join(filepath.Dir(p.Config), "cloud-ca.pem") }

// firstLine begins a configuration that nobody has edited: the rest is made of
// Options, and may be made again of others.
const firstLine = "# Settings of this gateway that differ from the defaults, as `touchline install` wrote them."

// unedited ends it: who edits the file leaves it or removes it, and what is
// between counts.
const unedited = "# end of what was installed"

// uplinkTable is the line that begins a table of TOML.
var uplinkTable = regexp.MustCompile(`(?m)^[ \t]*\[[ \t]*uplink[ \t]*\][ \t]*(#.*)?\r?$`)

// firstConfig is written where there is no configuration yet.
func (p Place) firstConfig(o Options) string {
	at := place() // in the image, not where the image is now
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n# `touchline check --config %s` says what is wrong with them.\n\n", firstLine, at.Config)
	fmt.Fprintf(&b, "[gateway]\ndata = %q\n", at.Data)
	extra := strings.TrimSpace(o.Extra)
	switch {
	case len(o.Cloud) > 0:
		uplink := fmt.Sprintf("urls = [%s]\n", quoted(o.Cloud))
		if len(o.CA) > 0 {
			uplink += fmt.Sprintf("ca_file = %q\n", at.ca())
		}
		// A table stands once: a site's proxy goes into the same.
		if header := uplinkTable.FindStringIndex(extra); header != nil {
			extra = extra[:header[1]] + "\n" + uplink + strings.TrimPrefix(extra[header[1]:], "\n")
		} else {
			fmt.Fprintf(&b, "\n[uplink]\n%s", uplink)
		}
	default:
		b.WriteString("\n# [uplink]\n# urls = [\"wss://cloud.example.org\"]   # then: touchline enroll CODE\n")
	}
	if extra != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(extra))
	}
	fmt.Fprintf(&b, "\n%s: %s\n", unedited, sum(b.String()))
	return b.String()
}

// edited says whether a person has changed what firstConfig wrote: its last
// line has the sum of the rest.
func (p Place) edited(text string) bool {
	at := strings.LastIndex(text, "\n"+unedited+": ")
	if at < 0 {
		return true
	}
	return text[at:] != "\n"+unedited+": "+sum(text[:at])+"\n"
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for n, s := range list {
		out[n] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}
