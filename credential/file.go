package credential

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// partSuffix ends the name of a file on its way.
const partSuffix = ".part"

// writeFile replaces a file such that a power cut leaves the old content or
// the new, whole: temp, fsync, rename, fsync of the folder. Two writers of one
// file must be kept apart by the caller.
func writeFile(file string, data []byte, mode fs.FileMode) error {
	return placeFile(file, data, mode, os.Rename)
}

// createFile is writeFile for a file that must not be there yet: it never
// replaces one, also where two of them race. Its error wraps fs.ErrExist.
func createFile(file string, data []byte, mode fs.FileMode) error {
	return placeFile(file, data, mode, func(part, file string) error {
		return errors.Join(os.Link(part, file), os.Remove(part))
	})
}

func placeFile(file string, data []byte, mode fs.FileMode, place func(part, file string) error) (err error) {
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
	if err = errors.Join(err, giveToFolder(f), f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = place(part, file); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(file))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile reads a file of at most limit bytes.
func readFile(file string, limit int64) (data []byte, info fs.FileInfo, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("read %s: it is no regular file", file)
	}
	if data, err = io.ReadAll(io.LimitReader(f, limit+1)); err != nil {
		return nil, nil, err
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("read %s: it has more than %d bytes", file, limit)
	}
	return data, info, nil
}

// checkPrivate says whether a file that holds a secret is its owner's alone.
func checkPrivate(file string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s can be reached by other users (mode %04o): chmod 600 %s, and make a new one if somebody may have read it", file, mode, file)
	}
	return nil
}
