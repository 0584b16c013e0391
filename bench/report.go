package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// report is the whole outcome, as -json writes it.
type report struct {
	Machine     machine         `json:"machine"`
	Connections int             `json:"connections"`
	Window      int             `json:"window"`
	Samples     int             `json:"samples_per_message"`
	Null        *nullFigures    `json:"null_broker,omitempty"`
	Subjects    []subjectReport `json:"subjects"`
}

// nullFigures are the load's own limit; the CPU is of both sides.
type nullFigures struct {
	Acknowledged number `json:"acknowledged_messages_per_s"`
	CPU          number `json:"cpu_s_per_million"`
}

// subjectReport is what is known of one subject.
type subjectReport struct {
	Name    string   `json:"name"`
	Version string   `json:"version,omitempty"`
	Backlog *backlog `json:"backlog"` // null, as the next three, where the phase was not reached
	Paced   *figures `json:"paced"`
	FlatOut *figures `json:"flat_out"`
	Syncs   *syncs   `json:"syncs"`
	Totals  totals   `json:"messages"`
	Problem string   `json:"problem,omitempty"` // why the audit failed, or the run ended early
}

// row is one line of the table: how a figure is found and written.
type row struct {
	name  string
	value func(*figures) number
	scale float64
	form  string
}

// of returns the figure as it is written.
func (r *row) of(f *figures) number {
	if f == nil {
		return unknown
	}
	return r.value(f) * number(r.scale)
}

var rows = []row{
	{"messages/s offered", func(f *figures) number { return f.Offered }, 1, "%.0f"},
	{"messages/s acknowledged", func(f *figures) number { return f.Acknowledged }, 1, "%.0f"},
	{"messages/s stored", func(f *figures) number { return f.Stored }, 1, "%.0f"},
	{"CPU s/million: gateway", func(f *figures) number { return f.GatewayCPU }, 1, "%.2f"},
	{"CPU s/million: cloud", func(f *figures) number { return f.CloudCPU }, 1, "%.2f"},
	{"CPU s/million: load", func(f *figures) number { return f.LoadCPU }, 1, "%.2f"},
	{"publish to ack p50, ms", func(f *figures) number { return f.AckP50 }, 1e3, "%.1f"},
	{"publish to ack p99, ms", func(f *figures) number { return f.AckP99 }, 1e3, "%.1f"},
	{"publish to stored p50, ms", func(f *figures) number { return f.StoredP50 }, 1e3, "%.1f"},
	{"publish to stored p99, ms", func(f *figures) number { return f.StoredP99 }, 1e3, "%.1f"},
	{"uplink bytes/message", func(f *figures) number { return f.Wire }, 1, "%.1f"},
	{"uplink bytes/sample", func(f *figures) number { return f.Wire }, 1.0 / samplesPerMessage, "%.2f"},
	{"gateway writes bytes/message", func(f *figures) number { return f.Written }, 1, "%.1f"},
	{"cloud writes bytes/message", func(f *figures) number { return f.CloudWritten }, 1, "%.1f"},
	{"gateway commits/s", func(f *figures) number { return f.Commits }, 1, "%.0f"},
	{"gateway peak MiB so far", func(f *figures) number { return f.PeakMiB }, 1, "%.1f"},
	{"cloud peak MiB so far", func(f *figures) number { return f.CloudPeakMiB }, 1, "%.1f"},
}

// wholeRow is one line about a whole run.
type wholeRow struct {
	name  string
	value func(*subjectReport) number
	form  string
}

var wholeRows = []wholeRow{
	{"buffer files: bytes/message", func(s *subjectReport) number { return s.backlog().DiskBytes }, "%.1f"},
	{"buffer files: bytes/sample", func(s *subjectReport) number { return s.backlog().DiskBytes / samplesPerMessage }, "%.2f"},
	{"write-ahead log in that, MiB", func(s *subjectReport) number { return s.backlog().LogMiB }, "%.1f"},
	{"backlog of messages", func(s *subjectReport) number { return number(s.backlog().Messages) }, "%.0f"},
	{"backlog drained, messages/s", func(s *subjectReport) number { return s.backlog().Drained }, "%.0f"},
	{"gateway syncs/s (traced)", func(s *subjectReport) number { return s.syncs().GatewayPerSecond }, "%.1f"},
	{"messages/gateway sync (traced)", func(s *subjectReport) number { return s.syncs().MessagesPerGateway }, "%.0f"},
	{"cloud syncs/s (traced)", func(s *subjectReport) number { return s.syncs().CloudPerSecond }, "%.1f"},
	{"messages/cloud sync (traced)", func(s *subjectReport) number { return s.syncs().MessagesPerCloud }, "%.0f"},
	{"messages sent", func(s *subjectReport) number { return number(s.Totals.Sent) }, "%.0f"},
	{"messages acknowledged", func(s *subjectReport) number { return number(s.Totals.Acked) }, "%.0f"},
	{"messages stored", func(s *subjectReport) number { return number(s.Totals.Stored) }, "%.0f"},
}

func (s *subjectReport) backlog() backlog {
	if s.Backlog == nil {
		return backlog{DiskBytes: unknown, LogMiB: unknown, Drained: unknown}
	}
	return *s.Backlog
}

func (s *subjectReport) syncs() syncs {
	if s.Syncs == nil {
		return noSyncs("")
	}
	return *s.Syncs
}

func (m *machine) print(w io.Writer) {
	fmt.Fprintf(w, "%s, %d cores, %.1f GiB, Linux %s, %s\n", m.CPU, m.Cores, float64(m.MemoryGiB), m.Kernel, m.Go)
	fmt.Fprintf(w, "data on %s, appending and syncing 4 KiB takes %.2f ms (median)\n", m.FileSystem, float64(m.SyncP50)*1e3)
	if m.FileSystem == memoryFileSystem {
		fmt.Fprintf(w, "WARNING: on %s a sync costs nothing: choose a folder on a disk with -dir\n", memoryFileSystem)
	}
}

// print writes the tables. A ratio is the first subject by the second.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d MQTT connections at QoS 1, %d messages in flight on each, one JSON object of about 100 bytes with %d metrics a message\n",
		r.Connections, r.Window, r.Samples)
	if r.Null != nil {
		fmt.Fprintf(w, "the load alone, against a broker that only acknowledges: %.0f messages/s, %.2f CPU s/million for both\n",
			float64(r.Null.Acknowledged), float64(r.Null.CPU))
	}
	if slices.ContainsFunc(r.Subjects, func(s subjectReport) bool { return s.Backlog != nil }) { // else no phase was reached
		r.tables(w)
	}
	r.notes(w)
}

func (r *report) tables(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t)
	r.header(t, "paced")
	for _, row := range rows {
		r.line(t, row.name, row.form, func(s *subjectReport) number { return row.of(s.Paced) })
	}
	fmt.Fprintln(t, "\t")
	r.header(t, "flat out")
	for _, row := range rows {
		r.line(t, row.name, row.form, func(s *subjectReport) number { return row.of(s.FlatOut) })
	}
	fmt.Fprintln(t, "\t")
	r.header(t, "whole run")
	for _, row := range wholeRows {
		r.line(t, row.name, row.form, row.value)
	}
	t.Flush()
}

// nameForm makes names of equal width, which look aligned left in a table
// aligned right.
const nameForm = "%-31s"

func (r *report) header(w io.Writer, name string) {
	cells := []string{fmt.Sprintf(nameForm, name)}
	for _, s := range r.Subjects {
		cells = append(cells, s.Name)
	}
	if len(r.Subjects) == 2 {
		cells = append(cells, "ratio")
	}
	fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
}

func (r *report) line(w io.Writer, name, form string, value func(*subjectReport) number) {
	cells := []string{fmt.Sprintf(nameForm, name)}
	var values []number
	for i := range r.Subjects {
		v := value(&r.Subjects[i])
		values = append(values, v)
		cells = append(cells, v.text(form))
	}
	if len(values) == 2 {
		cells = append(cells, ratio(float64(values[0]), float64(values[1])).text("%.2f"))
	}
	fmt.Fprintln(w, strings.Join(cells, "\t")+"\t")
}

func (n number) text(form string) string {
	if math.IsNaN(float64(n)) {
		return "-"
	}
	return fmt.Sprintf(form, float64(n))
}

// notes say what the tables can't.
func (r *report) notes(w io.Writer) {
	fmt.Fprintln(w)
	for _, s := range r.Subjects {
		if why := s.syncs().WhyNot; why != "" {
			fmt.Fprintf(w, "%s: syncs were not counted: %s\n", s.Name, why)
		}
		if s.Name == mosquittoName {
			fmt.Fprintln(w, "mosquitto keeps what it acknowledged in memory only: a power cut or a SIGKILL loses it. Stored means, for mosquitto, delivered to a"+
				" subscriber of the second broker; its load's CPU has that subscriber in it, and its uplink bytes are the PUBLISH packets.")
		}
		if s.Name == touchlineName {
			fmt.Fprintln(w, "touchline acknowledges what is committed and synced. Stored means committed and synced by the cloud; latencies to that are the"+
				" upper bounds of the cloud's buckets, a quarter wide.")
			s.aims(w)
		}
	}
	for _, s := range r.Subjects {
		if s.Problem != "" {
			fmt.Fprintf(w, "PROBLEM with %s: %s\n", s.Name, s.Problem)
			continue
		}
		fmt.Fprintf(w, "%s: all %d acknowledged messages have arrived\n", s.Name, s.Totals.Acked)
	}
}

// aims compares touchline with what it is meant to reach, as far as the
// phases were reached.
func (s *subjectReport) aims(w io.Writer) {
	if s.Paced == nil || s.FlatOut == nil {
		return
	}
	aim := func(what string, got, want number, atLeast bool, form string) {
		verdict, bound := "missed", "at most"
		if atLeast {
			bound = "at least"
		}
		if atLeast && got >= want || !atLeast && got <= want {
			verdict = "reached"
		}
		fmt.Fprintf(w, "aim %s: %s %s, want %s %s\n", verdict, got.text(form), what, bound, want.text(form))
	}
	aim("messages/s acknowledged, flat out", s.FlatOut.Acknowledged, 100_000, true, "%.0f")
	aim("messages/s stored, flat out", s.FlatOut.Stored, 100_000, true, "%.0f")
	aim("s from publish to stored (p99), paced", s.Paced.StoredP99, 1, false, "%.3f")
	aim("CPU s/million in the gateway, paced", s.Paced.GatewayCPU, 15, false, "%.2f")
	aim("MiB peak in the gateway", s.FlatOut.PeakMiB, 128, false, "%.1f")
}
