package credential

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"touchline"
)

// maxSensorFile bounds what is read: MaxSensorKeys of the longest lines, and
// comments.
const maxSensorFile = 64 << 20

// maxLineProblems bounds what is kept of a file that is damaged all over.
const maxLineProblems = 100

const sensorFileHead = `# Keys of this gateway's sensors: sensor, state (admitted, held or revoked),
# time, SHA-256 of the key, note; tabs between them. Use ` + "`touchline sensor`" + `
# to change it; a running gateway sees changes within a second or two.
`

// sensorLines is a file as lines. Those that are not changed are written as
// they were read: comments, the order, and what can't be understood.
type sensorLines struct {
	lines    []string              // without line breaks; "" at the end of a file that ends in one
	first    map[string]int        // sensor -> its first line, known by the first field
	again    map[string][]int      // and those that are one too many
	sensors  map[string]*SensorKey // nil: damaged
	problems []LineProblem
	more     int
}

// parseSensorFile understands any text: what it does not, it reports.
func parseSensorFile(text string) *sensorLines {
	size := min(strings.Count(text, "\n")+1, MaxSensorKeys)
	f := &sensorLines{first: make(map[string]int, size), again: map[string][]int{}, sensors: make(map[string]*SensorKey, size)}
	if text != "" {
		f.lines = strings.Split(text, "\n")
	}
	for i, raw := range f.lines {
		line := strings.TrimSuffix(raw, "\r")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		s, err := parseSensorLine(line)
		first, twice := f.first[s.Sensor]
		if twice {
			f.again[s.Sensor] = append(f.again[s.Sensor], i)
		} else {
			f.first[s.Sensor] = i
		}
		switch {
		case err != nil:
			f.report(i+1, err.Error())
			f.sensors[s.Sensor] = nil
		case twice:
			f.report(i+1, fmt.Sprintf("sensor %s stands on line %d too: neither counts", s.Sensor, first+1))
			f.sensors[s.Sensor] = nil
		case len(f.sensors) >= MaxSensorKeys:
			f.report(i+1, fmt.Sprintf("more than %d sensors: sensor %s does not count", MaxSensorKeys, s.Sensor))
		default:
			f.sensors[s.Sensor] = &s
		}
	}
	return f
}

func (f *sensorLines) report(line int, text string) {
	if len(f.problems) >= maxLineProblems {
		f.more++
		return
	}
	f.problems = append(f.problems, LineProblem{line, text})
}

// table returns what counts.
func (f *sensorLines) table() *sensorTable {
	t := &sensorTable{sensors: f.sensors, byHash: make(map[[32]byte]string, len(f.sensors)), problems: f.problems, more: f.more}
	for _, s := range f.sensors {
		if s == nil {
			continue
		}
		if s.State == Held {
			t.held++
		}
		if s.Hash != [32]byte{} {
			name := s.Sensor
			if _, twice := t.byHash[s.Hash]; twice {
				name = ""
			}
			t.byHash[s.Hash] = name
		}
	}
	return t
}

// set gives a sensor one line in the place of its first, or at the end; nil
// takes its lines away.
func (f *sensorLines) set(sensor string, s *SensorKey) error {
	first, known := f.first[sensor]
	drop := f.again[sensor]
	switch {
	case s == nil && !known:
		return ErrUnknownSensor
	case s == nil:
		drop = append(drop, first)
	}
	if s != nil {
		if !known && len(f.first) >= MaxSensorKeys {
			return fmt.Errorf("there are %d sensors already: remove those that are not needed", MaxSensorKeys)
		}
		line, err := s.line()
		if err != nil {
			return err
		}
		if !known {
			f.lines = append(f.withoutEnd(), line, "")
			return nil
		}
		f.lines[first] = line
	}
	if len(drop) == 0 {
		return nil
	}
	dropped := make(map[int]bool, len(drop))
	for _, i := range drop {
		dropped[i] = true
	}
	kept := f.lines[:0]
	for i, line := range f.lines {
		if !dropped[i] {
			kept = append(kept, line)
		}
	}
	f.lines = kept
	return nil
}

// withoutEnd returns the lines without the empty one behind the last break.
func (f *sensorLines) withoutEnd() []string {
	if n := len(f.lines); n > 0 && f.lines[n-1] == "" {
		return f.lines[:n-1]
	}
	return f.lines
}

// text returns the file; its last line is ended where it was cut.
func (f *sensorLines) text() string { return strings.Join(append(f.withoutEnd(), ""), "\n") }

const hashPrefix = "sha256:"

// parseSensorLine reads one line. With an error, it returns the sensor that
// the line seems to be of.
func parseSensorLine(line string) (SensorKey, error) {
	fields := strings.Split(line, "\t")
	s := SensorKey{Sensor: fields[0]}
	bad := func(format string, args ...any) (SensorKey, error) {
		return s, fmt.Errorf("sensor %.40q counts for nothing: "+format, append([]any{s.Sensor}, args...)...)
	}
	if err := touchline.CheckSensor(s.Sensor); err != nil {
		return bad("%w", err)
	}
	if len(fields) != 4 && len(fields) != 5 {
		return bad("the line has %d fields: want 4 or 5 with tabs between", len(fields))
	}
	for state, name := range sensorStates {
		if fields[1] == name {
			s.State = state
		}
	}
	if s.State == 0 {
		return bad("its state is none of admitted, held and revoked")
	}
	created, err := time.Parse(time.RFC3339, fields[2])
	s.Created = created.UTC().Truncate(time.Second) // as it is written
	if year := s.Created.Year(); err != nil || year < 1 || year > 9999 {
		return bad("its time is not such as 2026-07-12T18:30:00Z")
	}
	if fields[3] != "-" || s.State == Admitted {
		digits, ok := strings.CutPrefix(fields[3], hashPrefix)
		if !ok || len(digits) != 2*len(s.Hash) {
			return bad("its hash is not %s and %d hexadecimal digits", hashPrefix, 2*len(s.Hash))
		}
		if _, err := hex.Decode(s.Hash[:], []byte(digits)); err != nil || s.Hash == [32]byte{} {
			return bad("its hash is not %s and %d hexadecimal digits", hashPrefix, 2*len(s.Hash))
		}
	}
	if len(fields) == 5 {
		if s.Note = fields[4]; checkNote(s.Note) != nil {
			return bad("%w", checkNote(s.Note))
		}
	}
	return s, nil
}

// line returns the line of a sensor.
func (s *SensorKey) line() (string, error) {
	if err := checkNote(s.Note); err != nil {
		return "", err
	}
	hash := "-"
	if s.Hash != [32]byte{} {
		hash = hashPrefix + hex.EncodeToString(s.Hash[:])
	}
	line := s.Sensor + "\t" + s.State.String() + "\t" + s.Created.UTC().Format(time.RFC3339) + "\t" + hash
	if s.Note != "" {
		line += "\t" + s.Note
	}
	return line, nil
}

func checkNote(note string) error {
	if len(note) > maxSensorNote || !utf8.ValidString(note) {
		return fmt.Errorf("the note is longer than %d bytes, or no UTF-8", maxSensorNote)
	}
	if strings.ContainsFunc(note, unicode.IsControl) {
		return errors.New("the note has a tab, a line break or another control character")
	}
	return nil
}
