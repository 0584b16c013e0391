package installer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"touchline/internal/folder"
)

// A step is one thing that must be so. change says what has to be done for
// that, in a line or with a diff below it, and "" where it is so already.
type step interface {
	name() string
	change() (string, error)
	do() error
}

// carryOut does what is not so yet, in order, or only says it. It returns
// whether it did anything.
func (i Installer) carryOut(steps []step) (did bool, _ error) {
	for _, s := range steps {
		change, err := s.change()
		if err != nil {
			return did, err
		}
		switch {
		case change == "":
			if n := s.name(); n != "" {
				i.say("kept %s", n)
			}
		case i.DryRun:
			i.say("would %s", change)
		default:
			if err := s.do(); err != nil {
				return did, err
			}
			did = true
			first, _, _ := strings.Cut(change, "\n")
			i.say("done: %s", strings.TrimSuffix(first, ":"))
		}
	}
	return did, nil
}

// A textFile has a text. One that was edited is kept.
type textFile struct {
	path   string
	text   string
	mode   fs.FileMode
	edited func(text string) bool // nil: it is ours, and replaced
}

func (f textFile) name() string { return f.path }

func (f textFile) change() (string, error) {
	old, err := os.ReadFile(f.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "write " + f.path, nil
	case err != nil:
		return "", fmt.Errorf("look at %s: %w", f.path, err)
	case string(old) == f.text || f.edited != nil && f.edited(string(old)):
		return "", nil
	}
	return "change " + f.path + ":\n" + diff(string(old), f.text), nil
}

func (f textFile) do() error { return write(f.path, []byte(f.text), f.mode) }

// A copied file has the bytes of another one.
type copied struct {
	from, to string
	previous string // keeps what was there; "": nothing does
}

func (c copied) name() string { return c.to }

func (c copied) change() (string, error) {
	want, err := fileSum(c.from)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", c.from, err)
	}
	have, err := fileSum(c.to)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("copy %s to %s", c.from, c.to), nil
	case err != nil:
		return "", fmt.Errorf("look at %s: %w", c.to, err)
	case have == want:
		return "", nil
	}
	return fmt.Sprintf("replace %s by %s", c.to, c.from), nil
}

// do leaves a whole program under the name at any moment: a power cut in the
// middle of an upgrade must not leave a box without one. The file that it reads
// may be the one that was kept, which then changes places with the other.
func (c copied) do() error {
	program, err := os.ReadFile(c.from)
	if err != nil {
		return fmt.Errorf("read %s: %w", c.from, err)
	}
	if c.previous == "" || !exists(c.to) {
		return write(c.to, program, 0o755)
	}
	kept := c.previous + keptSuffix
	if err := errors.Join(gone{path: kept}.do(), aside(c.to, kept)); err != nil {
		return fmt.Errorf("keep program: %w", err)
	}
	keep := func() error {
		// A rename of one name of a file to its other name does nothing.
		if err := errors.Join(os.Rename(kept, c.previous), (gone{path: kept}).do()); err != nil {
			return fmt.Errorf("keep program: %w", err)
		}
		return nil
	}
	if same(c.from, c.previous) {
		if err := write(c.to, program, 0o755); err != nil {
			return errors.Join(err, gone{path: kept}.do())
		}
		return keep()
	}
	if err := keep(); err != nil {
		return err
	}
	return write(c.to, program, 0o755)
}

// keptSuffix ends the second name of a program that is about to be replaced.
const keptSuffix = ".kept"

// same says whether two names are of one file.
func same(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// write replaces a file as a whole, durable when it returns nil, and removes
// what one left that was killed as it wrote.
func write(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- programs, units and settings are nobody's secret
		return err
	}
	if err := folder.Tidy(path); err != nil {
		return err
	}
	return folder.Replace(path, data, mode)
}

// gone is a file, or with all a folder, that is not there.
type gone struct {
	path string
	all  bool
}

func (g gone) name() string { return "" }

func (g gone) change() (string, error) {
	if !exists(g.path) {
		return "", nil
	}
	if to := g.leadsTo(); to != "" {
		return fmt.Sprintf("remove %s and %s, to which it leads", g.path, to), nil
	}
	return "remove " + g.path, nil
}

// leadsTo returns the folder to which a link leads: data that was moved to
// another disk goes with it, or it would not be gone.
func (g gone) leadsTo() string {
	info, err := os.Lstat(g.path)
	if !g.all || err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return ""
	}
	to, err := filepath.EvalSymlinks(g.path)
	if err != nil {
		return "" // to nothing
	}
	return to
}

func (g gone) do() error {
	remove := os.Remove
	if g.all {
		remove = os.RemoveAll
	}
	for _, path := range []string{g.leadsTo(), g.path} {
		if path == "" {
			continue
		}
		if err := remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			if left, readErr := os.ReadDir(path); g.all && readErr == nil && len(left) == 0 {
				continue // a disk is mounted there, and is empty now
			}
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// An act is whatever else.
type act struct {
	what  string // as a command of one line
	so    func() (bool, error)
	enact func() error
}

func (a act) name() string { return "" }

func (a act) change() (string, error) {
	so, err := a.so()
	if err != nil || so {
		return "", err
	}
	return a.what, nil
}

func (a act) do() error {
	if err := a.enact(); err != nil {
		return fmt.Errorf("%s: %w", a.what, err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path) // #nosec G703 -- paths are those of Place, below the root that root names
	return err == nil
}

func sum(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:16])
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, f.Close())
}

// diff shows the lines that differ, by their longest common subsequence. Units
// and settings have some hundred lines: a table of 40,000 numbers.
func diff(old, fresh string) string {
	a, b := strings.Split(strings.TrimSuffix(old, "\n"), "\n"), strings.Split(strings.TrimSuffix(fresh, "\n"), "\n")
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []string
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			out = append(out, "  - "+a[i])
			i++
		default:
			out = append(out, "  + "+b[j])
			j++
		}
	}
	return strings.Join(out, "\n")
}
