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
)

// A step is one thing that must be so. change says what has to be done for
// that, in a line or with a diff below it, and "" where it is so already.
type step interface {
	name() string
	change() (string, error)
	do() error
}

// carryOut does what is not so yet, in order, or only says it.
func (i Installer) carryOut(steps []step) error {
	for _, s := range steps {
		change, err := s.change()
		if err != nil {
			return err
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
				return err
			}
			first, _, _ := strings.Cut(change, "\n")
			i.say("done: %s", strings.TrimSuffix(first, ":"))
		}
	}
	return nil
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

func (f textFile) do() error {
	return replace(f.path, f.mode, func(w io.Writer) error {
		_, err := io.WriteString(w, f.text)
		return err
	})
}

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

// do goes by way of a new file, so that a service that runs the old one is not
// disturbed, and a power cut leaves one of the two.
func (c copied) do() error {
	if c.previous != "" {
		if err := os.Remove(c.previous); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep program: %w", err)
		}
		if err := os.Rename(c.to, c.previous); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep program: %w", err)
		}
	}
	return replace(c.to, 0o755, func(w io.Writer) error {
		from, err := os.Open(c.from)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, from)
		return errors.Join(err, from.Close())
	})
}

// replace writes a file as a whole, durable when it returns nil.
func replace(path string, mode fs.FileMode, fill func(io.Writer) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- programs, units and settings are nobody's secret
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".touchline-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(fill(f), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
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
	return "remove " + g.path, nil
}

func (g gone) do() error {
	remove := os.Remove
	if g.all {
		remove = os.RemoveAll
	}
	if err := remove(g.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", g.path, err)
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
