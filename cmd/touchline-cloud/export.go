package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
	"touchline/cloud/sqlite"
)

// exportFlags are what the command line says.
type exportFlags struct {
	format, time      string
	compress          bool
	spreadsheet       bool
	output            string
	force, incomplete bool
	gateway, from, to string
	sensor, metric    string
	table             export.Options
	query             cloud.Query
}

func exportCommand(s *settings) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export [--format csv|parquet] [-o FILE]",
		Short: "Write samples in full resolution as CSV or Parquet",
		Long: `Writes the samples that the record store has when the command begins, in the
order of their times (ties by gateway, epoch and number), to standard output or
to a file, which is there as a whole or not at all. It works beside running
clouds, needs no key, and needs memory that does not grow with the samples.

Times are RFC 3339, nanoseconds since 1970, or a day, which begins at midnight
in UTC; --from is included and --to is not. docs/store.md tells the columns.

CSV tells every value exactly. Spreadsheets round numbers of more than 15
digits, take at most 1,048,576 rows, and take a text that begins with = for a
formula: --spreadsheet writes such texts with an apostrophe in front.`,
		Example: `  touchline-cloud export -o match.parquet --from '2026-05-30 15:00:00Z' --to '2026-05-30 17:00:00Z'
  touchline-cloud export -o may.csv.gz --gateway arena-1 --metric heart_rate --from 2026-05-01 --to 2026-06-01
  touchline-cloud export --sensor player-007 | head
  duckdb -c "SELECT sensor, avg(value) FROM 'match.parquet' WHERE metric = 'heart_rate' GROUP BY sensor"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return s.export(cmd, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", "", "`csv` or parquet (what FILE's name says, else csv)")
	flags.StringVarP(&f.output, "output", "o", "", "write to `FILE` (standard output)")
	flags.BoolVar(&f.force, "force", false, "replace FILE where it is there")
	flags.StringVar(&f.from, "from", "", "samples of this `TIME` and later")
	flags.StringVar(&f.to, "to", "", "samples before this `TIME`")
	flags.StringVar(&f.gateway, "gateway", "", "samples of one gateway, `ID`")
	flags.StringVar(&f.sensor, "sensor", "", "samples of one sensor, `NAME`")
	flags.StringVar(&f.metric, "metric", "", "samples of one metric, `NAME`")
	flags.BoolVar(&f.compress, "compress", false, "compress CSV with gzip (where FILE's name ends in .gz)")
	flags.StringVar(&f.time, "time", export.RFC3339, "times in CSV: `rfc3339`, or ns since 1970")
	flags.BoolVar(&f.spreadsheet, "spreadsheet", false, "write CSV to be opened by hand")
	flags.BoolVar(&f.incomplete, "incomplete", false, "keep FILE also where stored blocks are damaged; the status is 1 all the same")
	return cmd
}

// check reads the flags, and says what is wrong with them.
func (f *exportFlags) check() (err error) {
	named, compressed := export.ByName(f.output)
	switch {
	case f.format != "":
	case named != "":
		f.format = named
	case filepath.Ext(f.output) != "" && filepath.Ext(f.output) != ".gz":
		return fmt.Errorf("the name %s says no format that is known: end it in .csv, .csv.gz or .parquet, or say --format", f.output)
	default:
		f.format = export.CSV
	}
	if named != "" && named != f.format {
		return fmt.Errorf("--format %s and the name %s do not agree", f.format, f.output)
	}
	f.table = export.Options{Format: f.format, Time: f.time, Compress: f.compress || compressed, Spreadsheet: f.spreadsheet, Version: touchline.Version}
	if err := f.table.Check(); err != nil {
		return fmt.Errorf("--%w", err)
	}
	typed := map[string]string{"gateway": f.gateway, "sensor": f.sensor, "metric": f.metric, "from": f.from, "to": f.to}
	if f.query, err = cloud.NewQuery(typed); err != nil {
		return fmt.Errorf("--%w", err)
	}
	if f.output == "" && f.force {
		return errors.New("--force is for a file: name it with -o")
	}
	return nil
}

// export writes what was asked for, and says on standard error what it was.
func (s *settings) export(cmd *cobra.Command, f *exportFlags) error {
	// A write to a pipe that nobody reads is to return, so that it is told.
	signal.Ignore(syscall.SIGPIPE)
	if f.output == "" && (f.table.Format == export.Parquet || f.table.Compress) && term.IsTerminal(int(os.Stdout.Fd())) {
		return errors.New("this is not for a terminal: name a file with -o, or redirect standard output")
	}
	c, err := s.load()
	if err != nil {
		return err
	}
	if err := mustExist(&c); err != nil {
		return err
	}
	store, err := openStore(cmd.Context(), &c, slog.New(slog.DiscardHandler)) // what is damaged is in the error
	if err != nil {
		return err
	}
	f.table.Properties = properties(store.ID(), f.query)
	var summary export.Summary
	fill := func(w io.Writer) (keep bool, err error) {
		summary, err = export.Copy(cmd.Context(), store, f.query, export.New(w, f.table))
		return f.incomplete && errors.Is(err, cloud.ErrIncomplete), err
	}
	where := "standard output"
	if f.output == "" {
		_, err = fill(os.Stdout)
	} else {
		where = f.output
		var bytes int64
		bytes, err = export.File{Path: f.output, Force: f.force}.Write(cmd.Context(), fill)
		where = fmt.Sprintf("%s (%d bytes)", where, bytes)
	}
	if err = f.explain(cmd.Context(), err); err == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", where, describe(summary))
	}
	if cmd.Context().Err() != nil && c.Store != "" {
		return err // the process ends, and to end a connection on which nothing comes takes a quarter of a minute
	}
	return errors.Join(err, store.Close())
}

// mustExist refuses a folder without a store, which opening would make: an
// export of nothing is a mistake.
func mustExist(c *cloud.Config) error {
	if c.Store != "" {
		return nil
	}
	file := filepath.Join(c.Data, sqlite.FileName)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no record store at %s: name its folder with --data, or the settings with --config", file)
	} else if err != nil {
		return err
	}
	return nil
}

// properties say in the file itself what it is.
func properties(store string, q cloud.Query) map[string]string {
	moment := func(t *int64) string {
		if t == nil {
			return ""
		}
		return time.Unix(0, *t).UTC().Format(time.RFC3339Nano)
	}
	selection, err := json.Marshal(map[string]string{
		"gateway": q.Gateway, "sensor": q.Sensor, "metric": q.Metric, "from": moment(q.From), "to": moment(q.To),
	})
	if err != nil {
		panic("BUG: marshal strings: " + err.Error())
	}
	return map[string]string{
		"touchline.store": store, "touchline.version": touchline.Version,
		"touchline.selection": string(selection), "touchline.exported": time.Now().UTC().Format(time.RFC3339),
	}
}

// explain says what an error means where it does not say so itself.
func (f *exportFlags) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPIPE):
		return errors.New("whoever read standard output has closed it before the end: the table is cut off")
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: the table is not whole, and no file is left of it (%w)", err)
	case errors.Is(err, cloud.ErrIncomplete) && !f.incomplete:
		return fmt.Errorf("%w: --incomplete keeps a file of all the others", err)
	}
	return err
}

func describe(s export.Summary) string {
	if s.Samples == 0 {
		return "no samples"
	}
	moment := func(t int64) string { return time.Unix(0, t).UTC().Format(time.RFC3339Nano) }
	return fmt.Sprintf("%d samples from %s to %s", s.Samples, moment(s.First), moment(s.Last))
}
