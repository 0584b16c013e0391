// Package folder writes files into a data folder such that a power cut leaves
// the old one or the new one, whole, and that what root's commands write there
// belongs to whom the folder belongs to: the gateway runs as a user of its own.
// It holds no state and starts nothing.
package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// partSuffix ends the name of a file on its way.
const partSuffix = ".part"

// Replace writes a file, or replaces it: durable when it returns nil. Two
// writers of one file must be kept apart by the caller.
func Replace(file string, data []byte, mode fs.FileMode) error {
	return place(file, data, mode, os.Rename)
}

// Create is Replace for a file that must not be there yet: it never replaces
// one, also where two of them race. Its error wraps fs.ErrExist.
func Create(file string, data []byte, mode fs.FileMode) error {
	return place(file, data, mode, func(part, file string) error {
		return errors.Join(os.Link(part, file), os.Remove(part))
	})
}

func place(file string, data []byte, mode fs.FileMode, put func(part, file string) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*"+partSuffix) // 0600 from the first byte
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	part := f.Name()
	defer func() {
		if err != nil {
			_ = os.Remove(part)
			err = fmt.Errorf("write %s: %w", file, err)
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, Give(f), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = put(part, file); err != nil {
		return err
	}
	return Sync(filepath.Dir(file))
}

// OpenFile is os.OpenFile for a file that is opened time and again, such as one
// to lock. A root's command works in a folder where its owner, a service that
// the network talks to, can put what it likes: no link is followed out of the
// folder, or root would open, and give away, whatever the owner had pointed at.
func OpenFile(file string, flag int, mode fs.FileMode) (_ *os.File, err error) {
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(filepath.Base(file), flag, mode)
	if err != nil {
		return nil, err
	}
	if flag&os.O_CREATE != 0 {
		if err := Give(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// Tidy removes what a process left of a file that was killed as it wrote it.
// The caller keeps others from writing it meanwhile.
func Tidy(file string) error {
	dir, name := filepath.Split(file)
	entries, err := os.ReadDir(filepath.Clean(dir))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+".") && strings.HasSuffix(e.Name(), partSuffix) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("tidy up after %s: %w", file, err)
	}
	return nil
}
