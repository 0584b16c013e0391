package simulator

import (
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"touchline"
)

// recordingColumns is the first line of a recording.
var recordingColumns = []string{"time_unix_ns", "sensor", "metric", "unit", "value"}

const (
	// maxRows bounds a recording. It is held in memory whole, 88 bytes a
	// sample: 2 million are 176 MB.
	maxRows = 2_000_000
	// maxSeries bounds the different (sensor, metric, unit) of a recording,
	// and with it the memory for names: 100,000 of 384 bytes are 38 MB.
	maxSeries = 100_000
	// maxLineBytes bounds what one line can make the reader allocate.
	maxLineBytes = 64 << 10
)

// A recording is what a file has, by sensor, each in the order of the file.
type recording struct {
	sensors map[string][]touchline.Sample
	samples int
	firstNs int64 // the earliest time
}

// readRecording reads a .csv or .csv.gz file with recordingColumns. Errors
// name file, line and column (a byte of the line, from 1).
func readRecording(file string) (*recording, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open recording: %w", err)
	}
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, fmt.Errorf("read recording %s: not a gzip file, as its name says: %w", file, err)
		}
		in = z
	}
	p := recordingParser{file: file, names: map[string]string{}}
	p.csv = csv.NewReader(&lineLimit{in: in})
	p.csv.ReuseRecord = true
	p.csv.FieldsPerRecord = -1 // counted below, for a better message
	return p.parse()
}

type recordingParser struct {
	file  string
	csv   *csv.Reader
	rec   recording
	names map[string]string // one copy of each name
}

func (p *recordingParser) parse() (*recording, error) {
	header, err := p.csv.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: the file is empty: want the columns %s", p.file, strings.Join(recordingColumns, ","))
	}
	if err != nil {
		return nil, p.readError(err)
	}
	if got, want := strings.Join(header, ","), strings.Join(recordingColumns, ","); got != want {
		return nil, fmt.Errorf("%s:1:1: the columns are %.200q: want %s", p.file, got, want)
	}
	p.rec = recording{sensors: map[string][]touchline.Sample{}, firstNs: math.MaxInt64}
	now := time.Now()
	for {
		fields, err := p.csv.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, p.readError(err)
		}
		if err := p.add(fields, now); err != nil {
			return nil, err
		}
	}
	if p.rec.samples == 0 {
		return nil, fmt.Errorf("%s: the recording has no samples behind its first line", p.file)
	}
	return &p.rec, nil
}

// add takes one line.
func (p *recordingParser) add(fields []string, now time.Time) error {
	if len(fields) != len(recordingColumns) {
		return p.errorAt(min(len(fields), len(recordingColumns))-1, "the line has %d columns: want %d (%s)",
			len(fields), len(recordingColumns), strings.Join(recordingColumns, ","))
	}
	if p.rec.samples == maxRows {
		return p.errorAt(0, "more than %d samples, which is all that a replay holds in memory: split the file", maxRows)
	}
	timeNs, err := parseTime(fields[0], now)
	if err != nil {
		return p.errorAt(0, "%v", err)
	}
	for i, check := range []func(string) error{touchline.CheckSensor, touchline.CheckMetric, touchline.CheckUnit} {
		if err := check(fields[i+1]); err != nil {
			return p.errorAt(i+1, "%v", err)
		}
	}
	value, err := strconv.ParseFloat(fields[4], 64)
	if err != nil || math.IsNaN(value) || math.IsInf(value, 0) {
		return p.errorAt(4, "value %.40q is not a finite decimal number, as SenML JSON needs it", fields[4])
	}
	sensor := p.intern(fields[1])
	if _, known := p.rec.sensors[sensor]; !known && len(p.rec.sensors) == maxSensors {
		return p.errorAt(1, "more than %d sensors, each of which is a connection: split the file", maxSensors)
	}
	sample := touchline.Sample{
		Sensor: sensor,
		Metric: p.intern(fields[2]),
		Unit:   p.intern(fields[3]),
		Time:   timeNs,
		Value:  touchline.NumberValue(value),
	}
	if len(p.names) > maxSeries {
		return p.errorAt(1, "more than %d different names: this is no recording of sensors", maxSeries)
	}
	p.rec.sensors[sensor] = append(p.rec.sensors[sensor], sample)
	p.rec.samples++
	p.rec.firstNs = min(p.rec.firstNs, timeNs)
	return nil
}

// senmlRelativeNs is where absolute times begin in SenML (RFC 8428, section
// 4.5.3): what is below 2^28 seconds is relative to now.
const senmlRelativeNs = (1 << 28) * int64(time.Second)

func parseTime(s string, now time.Time) (int64, error) {
	t, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("time %.40q is not a whole number of nanoseconds since 1970", s)
	}
	if err := touchline.CheckTime(t, now); err != nil {
		return 0, err
	}
	if t < senmlRelativeNs {
		return 0, fmt.Errorf("time %s is before July 1978, which SenML can't tell from a time relative to now (is the unit nanoseconds?)",
			time.Unix(0, t).UTC().Format(time.RFC3339))
	}
	return t, nil
}

// intern returns a copy of s that does not keep the line alive.
func (p *recordingParser) intern(s string) string {
	if name, ok := p.names[s]; ok {
		return name
	}
	name := strings.Clone(s)
	p.names[name] = name
	return name
}

// errorAt blames the given field of the current line.
func (p *recordingParser) errorAt(field int, format string, args ...any) error {
	line, column := p.csv.FieldPos(max(field, 0))
	return fmt.Errorf("%s:%d:%d: %s", p.file, line, column, fmt.Sprintf(format, args...))
}

func (p *recordingParser) readError(err error) error {
	if at := (*csv.ParseError)(nil); errors.As(err, &at) {
		return fmt.Errorf("%s:%d:%d: %w", p.file, at.Line, at.Column, at.Err)
	}
	return fmt.Errorf("read recording %s behind its sample %d: %w", p.file, p.rec.samples, err)
}

// lineLimit fails a reader that has no line end in maxLineBytes.
type lineLimit struct {
	in   io.Reader
	line int // bytes of the current line so far
}

func (l *lineLimit) Read(p []byte) (int, error) {
	n, err := l.in.Read(p[:min(len(p), maxLineBytes)])
	for _, c := range p[:n] {
		if l.line++; c == '\n' {
			l.line = 0
		}
		if l.line > maxLineBytes {
			return 0, fmt.Errorf("a line has more than %d bytes: this is no recording", maxLineBytes)
		}
	}
	return n, err
}
