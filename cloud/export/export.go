// Package export writes samples in full resolution as a table, CSV or Parquet,
// a row for each sample in the order of the record store, so that a program
// loses nothing by it. A table is whole once its Close returned nil, and needs
// memory that does not grow with it (of Parquet, its index does: some 40 kB a
// million samples). Nothing runs between calls.
package export

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"touchline/cloud"
)

// A Table takes samples, in the order in which they are to stand.
type Table interface {
	// Add appends a row; the rows may be written later. After an error the
	// table can't be completed.
	Add(r *cloud.Record) error
	// Close writes what is left, and the end. It leaves the writer open.
	Close() error
}

// The formats of tables.
const (
	CSV     = "csv"
	Parquet = "parquet"
)

// The forms of times in CSV: RFC 3339 in UTC with nine digits, or integer
// nanoseconds since the Unix epoch. Parquet has TIMESTAMP(NANOS, UTC).
const (
	RFC3339     = "rfc3339"
	Nanoseconds = "ns"
)

// Options say what is written. All but the last two are for CSV.
type Options struct {
	Format   string // CSV or Parquet
	Time     string // RFC3339 or Nanoseconds
	Compress bool   // with gzip
	// Spreadsheet is for opening the file by hand: it begins with a byte order
	// mark, and what a spreadsheet would take for a formula has an apostrophe
	// in front, so that a sensor can't run one. Such texts are changed by it.
	Spreadsheet bool

	Properties map[string]string // of the file; CSV has none
	Version    string            // of the program
}

// Check says what is wrong with the options, to a person.
func (o *Options) Check() error {
	if o.Format != CSV && o.Format != Parquet {
		return fmt.Errorf("format %.40q is unknown: there are csv and parquet", o.Format)
	}
	if o.Time != RFC3339 && o.Time != Nanoseconds {
		return fmt.Errorf("time %.40q is unknown: there are rfc3339 and ns", o.Time)
	}
	if o.Format == Parquet {
		switch {
		case o.Compress:
			return errors.New("compress is for CSV: Parquet is compressed in itself")
		case o.Spreadsheet:
			return errors.New("spreadsheet is for CSV")
		case o.Time != RFC3339:
			return errors.New("time is for CSV: Parquet has timestamps in nanoseconds")
		}
	}
	return nil
}

// ByName returns the format that a file's name says, "" where it says none,
// and whether it is compressed.
func ByName(path string) (format string, compressed bool) {
	name := strings.ToLower(path)
	name, compressed = strings.CutSuffix(name, ".gz")
	switch {
	case strings.HasSuffix(name, ".csv"):
		return CSV, compressed
	case strings.HasSuffix(name, ".parquet") && !compressed:
		return Parquet, false
	}
	return "", compressed
}

// New begins a table on w, whose options were checked.
func New(w io.Writer, o Options) Table {
	if o.Format == Parquet {
		return newParquet(w, o)
	}
	return newCSV(w, o)
}
