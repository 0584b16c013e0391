package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// cloudCommand is the argument with which the bench measures a node of the
// cloud by itself: what compression saves, what it records, and what a connection costs.
const cloudCommand = "cloud"

// The parts of that.
const (
	compressionPart = "compression"
	recordPart      = "record"
	idlePart        = "idle"
)

// cloudSettings are its flags.
type cloudSettings struct {
	cloud, testdata string
	parts, stores   []string
	dir, json       string
	connections     int
	collections     int
	gateways        int
	duration        time.Duration
}

// cloudReport is the whole outcome, as -json writes it.
type cloudReport struct {
	Machine     machine         `json:"machine"`
	Compression []compression   `json:"compression_bytes_per_sample"`
	Record      []recordFigures `json:"record"`
	Idle        []idleFigures   `json:"idle"`
}

func parseCloudSettings(args []string) (cloudSettings, error) {
	var s cloudSettings
	flags := flag.NewFlagSet("bench "+cloudCommand, flag.ContinueOnError)
	flags.StringVar(&s.cloud, "cloud", "bin/touchline-cloud", "cloud program")
	flags.StringVar(&s.testdata, "testdata", "testdata", "folder of the recordings")
	parts := flags.String("run", strings.Join([]string{compressionPart, recordPart, idlePart}, ","), "what to measure")
	stores := flags.String("stores", sqliteName+","+postgresName, "record stores")
	flags.StringVar(&s.dir, "dir", "", "folder on the disk to measure (default the system's for temporary files)")
	flags.StringVar(&s.json, "json", "", "file for the figures as JSON")
	flags.IntVar(&s.connections, "connections", 18_000, "idle gateways; two processes have a half of them each, and the node one file for each")
	flags.IntVar(&s.collections, "collections", restCollections, "garbage collections until an idle node is at rest, of up to two minutes each; 0 is at once")
	flags.IntVar(&s.gateways, "gateways", 16, "gateways that send blocks")
	flags.DurationVar(&s.duration, "duration", 10*time.Second, "how long each rate is measured")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	var errs []error
	list := func(flag, given string, known ...string) []string {
		names := strings.Split(given, ",")
		for _, name := range names {
			if !slices.Contains(known, name) {
				errs = append(errs, fmt.Errorf("-%s %q: want %s, or several with commas", flag, name, strings.Join(known, " or ")))
			}
		}
		return names
	}
	s.parts = list("run", *parts, compressionPart, recordPart, idlePart)
	s.stores = list("stores", *stores, sqliteName, postgresName)
	for _, check := range []struct {
		ok   bool
		what string
	}{
		{flags.NArg() == 0, fmt.Sprintf("unexpected argument %q", flags.Arg(0))},
		{s.connections >= holders && s.connections <= 100_000, fmt.Sprintf("-connections: want %d to 100000", holders)},
		{s.collections >= 0 && s.collections <= 100, "-collections: want 0 to 100"},
		{s.gateways >= 1 && s.gateways <= 1000, "-gateways: want 1 to 1000"},
		{s.duration >= 100*time.Millisecond, "-duration: want 100ms or more"},
	} {
		if !check.ok {
			errs = append(errs, errors.New(check.what))
		}
	}
	return s, errors.Join(errs...)
}

func runCloud(ctx context.Context, args []string) error {
	s, err := parseCloudSettings(args)
	if err != nil {
		return err
	}
	dir, err := makeFolder(s.dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := &cloudReport{}
	if r.Machine, err = describeMachine(dir); err != nil {
		return err
	}
	r.Machine.print(os.Stdout)
	problem := s.measure(ctx, dir, r)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	r.print(os.Stdout)
	if s.json != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(s.json, append(text, '\n'), 0o644)
		}
		problem = errors.Join(problem, err)
	}
	return problem
}

// makeFolder makes one that PostgreSQL can pass through, which runs as its own user.
func makeFolder(in string) (dir string, err error) {
	if dir, err = os.MkdirTemp(in, "touchline-bench-"); err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	return dir, nil
}

// measure fills in the report. A part that fails does not keep the others from
// being measured.
func (s *cloudSettings) measure(ctx context.Context, dir string, r *cloudReport) error {
	var problems []error
	failed := func(part, store string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("%s %s: %w", part, store, err))
		}
	}
	if slices.Contains(s.parts, compressionPart) {
		for _, name := range recordings {
			c, err := measureCompression(s.testdata, name)
			failed(compressionPart, name, err)
			r.Compression = append(r.Compression, c)
		}
	}
	if slices.Contains(s.parts, recordPart) {
		blocks, err := packRecordings(s.testdata)
		if err != nil {
			return errors.Join(append(problems, err)...)
		}
		for _, store := range s.stores {
			own, err := subfolder(dir, recordPart+"-"+store)
			if err != nil {
				return errors.Join(append(problems, err)...)
			}
			f, err := s.measureRecord(ctx, own, store, blocks)
			failed(recordPart, store, err)
			r.Record = append(r.Record, f)
		}
	}
	if slices.Contains(s.parts, idlePart) {
		for _, store := range s.stores {
			own, err := subfolder(dir, idlePart+"-"+store)
			if err != nil {
				return errors.Join(append(problems, err)...)
			}
			f, err := s.measureIdle(ctx, own, store)
			failed(idlePart, store, err)
			r.Idle = append(r.Idle, f)
		}
	}
	return errors.Join(problems...)
}

func subfolder(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	return path, os.Mkdir(path, 0o711)
}

func (r *cloudReport) print(w io.Writer) {
	printCompression(w, r.Compression)
	printRecords(w, r.Record)
	printIdle(w, r.Idle)
}

// A table has a name and a column for each of what is compared.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, title string) table {
	fmt.Fprintf(w, "\n%s\n", title)
	return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)}
}

func (t table) row(name string, cells ...string) {
	fmt.Fprintf(t.w, nameForm+"\t", name)
	for _, cell := range cells {
		fmt.Fprintf(t.w, "%s\t", cell)
	}
	fmt.Fprintln(t.w)
}

func (t table) header(columns ...string) { t.row("", columns...) }
func (t table) section(name string)      { t.row(name) }

func (t table) line(name, form string, values ...number) {
	var cells []string
	for _, v := range values {
		cells = append(cells, v.text(form))
	}
	t.row("  "+name, cells...)
}

func (t table) flush() { t.w.Flush() }
