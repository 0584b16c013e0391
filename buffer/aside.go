package buffer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"touchline/internal/folder"
)

// A database that can't be used is set aside: it and its log are renamed, and
// nothing of them is changed or deleted, then or later. Beside it lies a
// report. The names in the folder are all the state that there is:
//
//	buffer.db.damaged-20261122T203015Z        a damaged database
//	buffer.db.damaged-20261122T203015Z-wal    its log, where SQLite looks for it
//	buffer.db.damaged-20261122T203015Z.json   what became of its blocks
//	buffer.db.foreign-…, buffer.db.newer-9-…  another program's, one of schema 9
//	buffer.db.taken-…                         was newer-…, and its blocks were taken in
//	buffer.db.damaged-…Z.part                 a database on its way, whose log may not have moved yet
//	buffer.db.suspect                         damage was found while running: set the database aside
//
// A power cut may come between any two steps. The database moves first, to a
// name that says that the move is not over; then log, index and journal; then
// it gets its own name. Each step is durable before the next. So a log is
// never left beside another database, and no new one is begun before.
const (
	partSuffix   = ".part"
	reportSuffix = ".json"
	suspectName  = databaseName + ".suspect"
	asideLayout  = "20060102T150405Z"
)

// companions of a database, in the order in which they move.
var companions = []string{"-wal", "-journal", "-shm"}

// An asideFile is one database that was set aside.
type asideFile struct {
	path    string
	kind    kind
	version uint32    // of a newer one
	at      time.Time // by the clock of then
	n       int       // of those of the same second
	report  report
}

// A report is kept beside the file. It is a help and no more: where it is lost
// or can't be written, the next opening salvages again, and finds that
// everything is there.
type report struct {
	Why     string    `json:"why"`
	Needs   string    `json:"needs,omitempty"` // the version of touchline that takes a newer file back
	When    time.Time `json:"when"`
	State   string    `json:"state"` // salvaged, partly salvaged; "" where that has yet to be tried
	Blocks  int64     `json:"blocks_salvaged"`
	Samples int64     `json:"samples_salvaged"`
	Lost    int64     `json:"samples_lost"`      // that are known to be
	Problem string    `json:"problem,omitempty"` // the first one met while salvaging

	// Its blocks are from before all that was here as the salvage began: they
	// came back with a newer version, after an older one had begun this file.
	Before bool `json:"before,omitempty"`

	// How far it went, for the next opening to go on from.
	Key  int64  `json:"key,omitempty"`  // blocks up to here were looked at, in the order of their tree
	Page uint32 `json:"page,omitempty"` // and then so many pages, wherever they belong
}

const (
	stateSalvaged = "salvaged"
	statePartly   = "partly salvaged"
)

// asideSteps is called before each step that changes the folder, nil outside
// tests: a step that returns an error is where the power was cut.
type asideSteps func(step string) error

func (s asideSteps) rename(from, to string) error {
	if s != nil {
		if err := s("rename " + filepath.Base(from)); err != nil {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("set file aside: %w", err)
	}
	return folder.Sync(filepath.Dir(to))
}

// setAside moves the database at path and what belongs to it away.
func setAside(path string, found finding, steps asideSteps) (asideFile, error) {
	a := asideFile{kind: found.kind, version: found.version, at: time.Now().UTC().Truncate(time.Second)}
	a.report = report{Why: found.why, Needs: found.needs, When: a.at}
	for a.n = 1; ; a.n++ { // unique, whatever the clock says
		a.path = path + "." + a.name()
		if free, err := nameIsFree(a.path); err != nil {
			return a, fmt.Errorf("set file aside: %w", err)
		} else if free {
			break
		}
	}
	part := a.path + partSuffix
	err := steps.rename(path, part)
	if errors.Is(err, os.ErrNotExist) { // only its log is there
		var f *os.File
		if f, err = folder.OpenFile(part, os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			err = errors.Join(f.Close(), folder.Sync(filepath.Dir(part)))
		}
	}
	if err != nil {
		return a, err
	}
	return a, finishMove(path, part, steps)
}

// finishMove does what follows after the first step, from wherever it was cut.
func finishMove(path, part string, steps asideSteps) error {
	to := strings.TrimSuffix(part, partSuffix)
	for _, suffix := range companions {
		if err := steps.rename(path+suffix, to+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return steps.rename(part, to)
}

func nameIsFree(path string) (bool, error) {
	for _, suffix := range append([]string{"", partSuffix, reportSuffix}, companions...) {
		if _, err := os.Lstat(path + suffix); err == nil {
			return false, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}

// name is what follows after "buffer.db.".
func (a *asideFile) name() string {
	name := string(a.kind)
	if a.kind == newer {
		name += "-" + strconv.FormatUint(uint64(a.version), 10)
	}
	name += "-" + a.at.Format(asideLayout)
	if a.n > 1 {
		name += "-" + strconv.Itoa(a.n)
	}
	return name
}

// parseAside reads a name, and says whether it is one. A name that a person
// changed is none, and that file is left alone.
func parseAside(path string) (asideFile, bool) {
	a := asideFile{path: path, n: 1}
	rest, ok := strings.CutPrefix(filepath.Base(path), databaseName+".")
	parts := strings.Split(rest, "-")
	if !ok || len(parts) < 2 {
		return a, false
	}
	a.kind, parts = kind(parts[0]), parts[1:]
	if a.kind == newer {
		v, err := strconv.ParseUint(parts[0], 10, 32)
		if err != nil || len(parts) < 2 {
			return a, false
		}
		a.version, parts = uint32(v), parts[1:]
	}
	var err error
	if a.at, err = time.Parse(asideLayout, parts[0]); err != nil || len(parts) > 2 {
		return a, false
	}
	if len(parts) == 2 {
		if a.n, err = strconv.Atoi(parts[1]); err != nil {
			return a, false
		}
	}
	known := a.kind == damaged || a.kind == foreign || a.kind == newer || a.kind == taken
	return a, known && filepath.Base(path) == databaseName+"."+a.name()
}

// finishMoves ends what a power cut interrupted. It comes before anything
// looks at the database.
func finishMoves(path string, steps asideSteps) error {
	parts, err := filepath.Glob(globEscape(path) + ".*" + partSuffix)
	if err != nil {
		return fmt.Errorf("look for files set aside: %w", err)
	}
	for _, part := range parts {
		if _, ok := parseAside(strings.TrimSuffix(part, partSuffix)); ok {
			if err := finishMove(path, part, steps); err != nil {
				return err
			}
		}
	}
	reports, err := filepath.Glob(globEscape(path) + "." + string(newer) + "-*" + reportSuffix)
	if err != nil {
		return fmt.Errorf("look for files set aside: %w", err)
	}
	for _, name := range reports {
		a, ok := parseAside(strings.TrimSuffix(name, reportSuffix))
		if ok && a.readReport() == nil && a.report.State == stateSalvaged {
			if err := a.markTaken(steps); err != nil {
				return err
			}
		}
	}
	return nil
}

// globEscape keeps characters in the name of a folder from being a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// markTaken renames a newer file whose blocks are in this one. The report,
// which says so, comes last, so that any of it can be done again.
func (a *asideFile) markTaken(steps asideSteps) error {
	to := *a
	to.kind = taken
	to.path = filepath.Join(filepath.Dir(a.path), databaseName+"."+to.name())
	for _, suffix := range append(slices.Clone(companions), "", reportSuffix) {
		if err := steps.rename(a.path+suffix, to.path+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	*a = to
	return nil
}

// listAside returns all that was set aside, oldest first.
func listAside(path string) ([]asideFile, error) {
	names, err := filepath.Glob(globEscape(path) + ".*")
	if err != nil {
		return nil, fmt.Errorf("look for files set aside: %w", err)
	}
	var list []asideFile
	for _, name := range names {
		a, ok := parseAside(name)
		if !ok {
			continue
		}
		// Without its report all is as if nothing had been done yet.
		if a.readReport() != nil {
			a.report = report{When: a.at}
		}
		if a.unknown() && a.report.Needs == "" {
			a.whoNeeds()
		}
		list = append(list, a)
	}
	slices.SortStableFunc(list, func(x, y asideFile) int {
		if c := x.at.Compare(y.at); c != 0 {
			return c
		}
		return x.n - y.n
	})
	return list, nil
}

// unknown says whether it is of a schema that this version can't read.
func (a *asideFile) unknown() bool { return a.kind == newer && a.version > uint32(schemaVersion) }

// whoNeeds asks a newer file itself, where no report says it.
func (a *asideFile) whoNeeds() {
	f, err := openRaw(a.path)
	if err != nil {
		return // it is no worse off than without
	}
	defer f.close()
	by := newerSchema{a.version, f.needs(a.version)}
	a.report.Needs, a.report.Why = by.needs, by.String()
}

// pending says whether there may be blocks that are not here yet.
func (a *asideFile) pending() bool {
	mine := a.kind == damaged || a.kind == newer && !a.unknown()
	return mine && a.report.State != stateSalvaged
}

// bytes is what the file takes of the disk, with what belongs to it.
func (a *asideFile) bytes() int64 {
	var all int64
	for _, suffix := range append([]string{""}, companions...) {
		if info, err := os.Lstat(a.path + suffix); err == nil {
			all += info.Size()
		}
	}
	return all
}

func (a *asideFile) readReport() error {
	text, err := os.ReadFile(a.path + reportSuffix)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, &a.report)
}

// writeReport replaces the report, and makes it durable.
func (a *asideFile) writeReport() error {
	text, err := json.MarshalIndent(a.report, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(a.path+reportSuffix, append(text, '\n'))
}

// writeDurably replaces a file as a whole.
func writeDurably(path string, content []byte) error {
	// The name begins with a dot, so that nobody takes it for what it will be.
	draft := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	f, err := folder.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(draft))
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return folder.Sync(filepath.Dir(path))
}
