package export_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/export"
)

// samples is a store that has n samples and then ends with an error.
type samples struct {
	n     int
	text  string // of each; "": numbers
	at    func(i int)
	ended error
}

func (s samples) Samples(ctx context.Context, _ cloud.Query, yield func(cloud.Record) error) error {
	for i := range s.n {
		if s.at != nil {
			s.at(i)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r := cloud.Record{Gateway: "arena-1", Seq: uint64(i + 1)}
		r.Sensor, r.Metric, r.Time, r.Value = "belt-7", "m", int64(i), touchline.NumberValue(float64(i))
		if s.text != "" {
			r.Value = touchline.TextValue(fmt.Sprint(i, s.text))
		}
		if err := yield(r); err != nil {
			return err
		}
	}
	return s.ended
}

// A list is a table in memory that breaks at a row, or at its end.
type list struct {
	records         []cloud.Record
	breaks          int // 0: never
	badEnd, isEnded bool
}

var errDisk = errors.New("the disk is full")

func (l *list) Add(r *cloud.Record) error {
	if l.records = append(l.records, *r); len(l.records) == l.breaks {
		return errDisk
	}
	return nil
}

func (l *list) Close() error {
	l.isEnded = true
	if l.badEnd {
		return errDisk
	}
	return nil
}

func TestCopy_HasAllInOrderAndEndsTheTable(t *testing.T) {
	big := string(bytes.Repeat([]byte("x"), 100_000))
	for _, from := range []samples{{n: 0}, {n: 1}, {n: 1023}, {n: 1024}, {n: 1025}, {n: 100_000}, {n: 100, text: big}} {
		var to list
		sum, err := export.Copy(t.Context(), from, cloud.Query{}, &to)
		if err != nil || !to.isEnded || sum.Samples != uint64(from.n) || len(to.records) != from.n {
			t.Fatalf("%d samples: %d came, %+v, ended %t (%v)", from.n, len(to.records), sum, to.isEnded, err)
		}
		for i, r := range to.records {
			if r.Time != int64(i) {
				t.Fatalf("row %d is sample %d", i, r.Time)
			}
		}
		if from.n > 0 && sum.Last != int64(from.n-1) {
			t.Errorf("the last time is %d", sum.Last)
		}
	}
}

func TestCopy_TellsWhoseFaultItWas(t *testing.T) {
	errStore := errors.New("the store is away")
	incomplete := fmt.Errorf("%w: one block", cloud.ErrIncomplete)
	for name, c := range map[string]struct {
		from  samples
		to    list
		want  error
		rows  int  // at least
		ended bool // the table
		write bool // it is a WriteError
	}{
		"the store at once":              {from: samples{ended: errStore}, want: errStore},
		"the store in the middle":        {from: samples{n: 5000, ended: errStore}, want: errStore},
		"damaged blocks":                 {from: samples{n: 5000, ended: incomplete}, want: cloud.ErrIncomplete, rows: 5000, ended: true},
		"the table at once":              {from: samples{n: 100_000}, to: list{breaks: 1}, want: errDisk, write: true},
		"the table in the middle":        {from: samples{n: 100_000}, to: list{breaks: 5000}, want: errDisk, write: true},
		"the table, then damaged blocks": {from: samples{n: 5000, ended: incomplete}, to: list{breaks: 5000}, want: errDisk, write: true},
		"the table at its end":           {from: samples{n: 10}, to: list{badEnd: true}, want: errDisk, rows: 10, ended: true, write: true},
	} {
		_, err := export.Copy(t.Context(), c.from, cloud.Query{}, &c.to)
		var fault *export.WriteError
		if !errors.Is(err, c.want) || errors.As(err, &fault) != c.write {
			t.Errorf("%s: %v", name, err)
		}
		if c.to.isEnded != c.ended || len(c.to.records) < c.rows {
			t.Errorf("%s: %d rows, ended %t", name, len(c.to.records), c.to.isEnded)
		}
	}
}

func TestCopy_EndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var to list
	_, err := export.Copy(ctx, samples{n: 1_000_000, at: func(i int) {
		if i == 10_000 {
			cancel()
		}
	}}, cloud.Query{}, &to)
	if !errors.Is(err, context.Canceled) || to.isEnded || len(to.records) > 10_000 {
		t.Errorf("%d rows, ended %t: %v", len(to.records), to.isEnded, err)
	}
}

// A file is there as a whole or not at all, and nothing else is left beside it.
func TestFile_IsWholeOrNotThere(t *testing.T) {
	for name, c := range map[string]struct {
		there      string // before
		force      bool
		fill       error
		keep       bool
		between    func(path string, cancel func()) // while it is being filled
		want       string                           // after; "": no file
		wantsError bool
	}{
		"new":                     {want: "table"},
		"there already":           {there: "mine", want: "mine", wantsError: true},
		"there, forced":           {there: "mine", force: true, want: "table"},
		"an error":                {fill: errDisk, wantsError: true},
		"an error, forced":        {there: "mine", force: true, fill: errDisk, want: "mine", wantsError: true},
		"incomplete":              {fill: cloud.ErrIncomplete, keep: true, want: "table", wantsError: true},
		"interrupted at the end":  {between: func(_ string, cancel func()) { cancel() }, wantsError: true},
		"one that came meanwhile": {between: func(path string, _ func()) { _ = os.WriteFile(path, []byte("theirs"), 0o600) }, want: "theirs", wantsError: true},
		"the folder went away":    {between: func(path string, _ func()) { _ = os.RemoveAll(filepath.Dir(path)) }, wantsError: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "x.csv")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if c.there != "" {
				if err := os.WriteFile(path, []byte(c.there), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			size, err := export.File{Path: path, Force: c.force}.Write(ctx, func(w io.Writer) (bool, error) {
				if _, err := io.WriteString(w, "table"); err != nil {
					t.Error(err)
				}
				if c.between != nil {
					c.between(path, cancel)
				}
				return c.keep, c.fill
			})
			if (err != nil) != c.wantsError || c.fill != nil && !errors.Is(err, c.fill) || err == nil && size != 5 {
				t.Errorf("%d bytes, error %v", size, err)
			}
			got, _ := os.ReadFile(path)
			if string(got) != c.want {
				t.Errorf("the file has %q, want %q", got, c.want)
			}
			left, _ := os.ReadDir(filepath.Dir(path))
			if len(left) > 1 || len(left) == 1 && c.want == "" {
				t.Errorf("%v is left", left)
			}
			if info, err := os.Stat(path); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("its mode is %v", info.Mode())
			}
		})
	}
}

func TestFile_IsNoDevice(t *testing.T) {
	before, err := os.Stat(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (export.File{Path: os.DevNull, Force: true}).Write(t.Context(), func(io.Writer) (bool, error) { return false, nil }); err == nil {
		t.Error("a device was replaced")
	}
	if after, err := os.Stat(os.DevNull); err != nil || !os.SameFile(before, after) {
		t.Errorf("%s is another file now (%v)", os.DevNull, err)
	}
}
