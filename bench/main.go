// Bench is the yardstick: it loads a gateway and its cloud, as processes of
// their own, with hundreds of MQTT connections at QoS 1, and prints what they
// reach and what that costs; beside them, in the same run, Debian's mosquitto
// with a bridge to a second one. It ends with status 1 if a message that was
// acknowledged is not stored, or one is stored twice, and leaves neither
// processes nor files behind, also when it is interrupted. With the argument
// cloud it measures a node of the cloud by itself (cloud.go).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	touchlineName = "touchline"
	mosquittoName = "mosquitto"
	nullName      = "null"
)

// settings are the flags.
type settings struct {
	touchline, cloud string
	subjects         []string
	dir, json        string
	connections      int
	window           int
	rate             float64
	duration         time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := 0
	if err := command(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		status = 1
	}
	stop()
	os.Exit(status)
}

func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case cloudCommand:
			return runCloud(ctx, args[1:])
		case gatewaysCommand: // of cloudCommand
			return holdGateways(ctx, os.Stdin, os.Stdout)
		}
	}
	return run(ctx, args)
}

func parseSettings(args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&s.touchline, "touchline", "bin/touchline", "gateway program")
	flags.StringVar(&s.cloud, "cloud", "bin/touchline-cloud", "cloud program")
	subjects := flags.String("run", "null,touchline,mosquitto", "what to measure, of null (the load's own limit), touchline and mosquitto")
	flags.StringVar(&s.dir, "dir", "", "folder on the disk to measure (default the system's for temporary files)")
	flags.StringVar(&s.json, "json", "", "file for the figures as JSON")
	flags.IntVar(&s.connections, "connections", 300, "MQTT connections")
	flags.IntVar(&s.window, "window", 64, "messages in flight on each connection")
	flags.Float64Var(&s.rate, "rate", 100_000, "messages/s of the paced phase")
	flags.DurationVar(&s.duration, "duration", 10*time.Second, "how long each of the two main phases is measured")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	var errs []error
	for _, name := range strings.Split(*subjects, ",") {
		s.subjects = append(s.subjects, name)
		if !slices.Contains([]string{nullName, touchlineName, mosquittoName}, name) {
			errs = append(errs, fmt.Errorf("-run %q: want null, touchline, mosquitto or several with commas", name))
		}
	}
	for _, check := range []struct {
		ok   bool
		what string
	}{
		{flags.NArg() == 0, fmt.Sprintf("unexpected argument %q", flags.Arg(0))},
		{s.connections >= 1 && s.connections <= 10_000, "-connections: want 1 to 10000"},
		{s.window >= 1 && s.window <= maxLoadWindow, fmt.Sprintf("-window: want 1 to %d", maxLoadWindow)},
		{s.rate > 0 && s.rate <= 10e6, "-rate: want more than 0, and at most 10 million"},
		{s.duration >= time.Second, "-duration: want 1s or more"},
	} {
		if !check.ok {
			errs = append(errs, errors.New(check.what))
		}
	}
	return s, errors.Join(errs...)
}

func run(ctx context.Context, args []string) error {
	s, err := parseSettings(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "touchline-bench-")
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &report{Connections: s.connections, Window: s.window, Samples: samplesPerMessage, Subjects: []subjectReport{}}
	if r.Machine, err = describeMachine(dir); err != nil {
		return err
	}
	r.Machine.print(os.Stdout)
	problems := s.measure(ctx, dir, r)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	r.print(os.Stdout)
	if s.json != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(s.json, append(text, '\n'), 0o644)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("write -json: %w", err))
		}
	}
	return errors.Join(problems...)
}

// measure fills in the report. A subject that fails does not keep the others
// from being measured.
func (s *settings) measure(ctx context.Context, dir string, r *report) (problems []error) {
	for _, name := range s.subjects {
		if ctx.Err() != nil {
			return problems
		}
		if name == nullName {
			null, err := s.measureNull(ctx)
			if err != nil {
				problems = append(problems, fmt.Errorf("null: %w", err))
				continue
			}
			r.Null = &null
			continue
		}
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o700); err != nil {
			return append(problems, err)
		}
		result, err := s.measureSubject(ctx, name, own)
		if err != nil {
			result.Problem = err.Error()
			// What mosquitto loses is its own affair, and so is its absence.
			if name == touchlineName {
				problems = append(problems, fmt.Errorf("%s: %w", name, err))
			}
		}
		r.Subjects = append(r.Subjects, result)
	}
	return problems
}

// measureNull returns what the load itself can do.
func (s *settings) measureNull(ctx context.Context) (nullFigures, error) {
	say("null: flat out")
	broker, err := startNullBroker()
	if err != nil {
		return nullFigures{}, err
	}
	defer broker.close()
	l, err := connectLoad(ctx, loadOptions{address: broker.address(), connections: s.connections, window: s.window})
	if err != nil {
		return nullFigures{}, err
	}
	defer l.close()
	l.publish()
	if err := sleep(ctx, time.Second); err != nil {
		return nullFigures{}, err
	}
	_, acked0 := l.counts()
	cpu0, err := ownCPUSeconds()
	began := time.Now()
	if err := errors.Join(err, sleep(ctx, min(s.duration, 3*time.Second))); err != nil {
		return nullFigures{}, err
	}
	_, acked1 := l.counts()
	cpu1, err := ownCPUSeconds()
	acked := float64(acked1 - acked0)
	_, finishErr := l.finish(ackTimeout)
	return nullFigures{
		Acknowledged: number(acked / time.Since(began).Seconds()),
		CPU:          ratio((cpu1-cpu0)*1e6, acked),
	}, errors.Join(err, finishErr)
}

// newSubject finds the programs of a subject, and says their version.
func (s *settings) newSubject(name, dir string) (subject, string, error) {
	if name == mosquittoName {
		site, err := newMosquittoSite(dir)
		if err != nil {
			return nil, "", err
		}
		return site, firstLine(site.program, "-h"), nil
	}
	site, err := newTouchlineSite(s.touchline, s.cloud, dir)
	if err != nil {
		return nil, "", err
	}
	return site, firstLine(site.gatewayPath, "version"), nil
}

// firstLine returns the first line that a program prints, whatever its status.
func firstLine(program string, args ...string) string {
	out, _ := exec.Command(program, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// measureSubject runs the phases. Each begins when all before it has arrived.
func (s *settings) measureSubject(ctx context.Context, name, dir string) (out subjectReport, err error) {
	out = subjectReport{Name: name}
	subject, version, err := s.newSubject(name, dir)
	if err != nil {
		return out, err
	}
	out.Version = version
	defer subject.Stop()
	say("%s: %s starts", name, version)
	if err := subject.Start(ctx); err != nil {
		return out, err
	}
	b := &bench{
		subject: subject,
		load:    loadOptions{connections: s.connections, window: s.window},
		warmUp:  min(warmUp, s.duration/2),
	}
	defer func() { out.Totals = b.total }()
	steps := []struct {
		name string
		run  func() error
	}{
		{"cloud stopped, then back", func() (err error) {
			out.Backlog, err = b.withoutCloud(ctx, s.rate, max(s.duration/2, time.Second))
			return err
		}},
		{fmt.Sprintf("%.0f messages/s", s.rate), func() (err error) {
			out.Paced, err = b.run(ctx, s.rate, s.duration)
			return err
		}},
		{"flat out", func() (err error) {
			out.FlatOut, err = b.run(ctx, 0, s.duration)
			return err
		}},
		{"syncs", func() (err error) {
			out.Syncs, err = b.countSyncs(ctx, dir, s.rate/2, min(s.duration, 4*time.Second))
			return err
		}},
	}
	for _, step := range steps {
		say("%s: %s", name, step.name)
		err := step.run()
		if err == nil {
			err = b.drain(ctx)
		}
		if err != nil {
			return out, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return out, b.total.audit()
}

// say tells what goes on, on standard error, beside the report.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
