package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"touchline/internal/folder"
)

// A File says where a table goes.
type File struct {
	Path  string
	Force bool // replaces a file that is there
}

// Write has fill write the file, which is there as a whole or not at all: under
// another, hidden name first, which an error removes, then synced and renamed.
// It is readable by its owner only. Where fill returns keep with its error the
// file is put in place all the same.
func (f File) Write(ctx context.Context, fill func(io.Writer) (keep bool, err error)) (bytes int64, err error) {
	if err := f.free(); err != nil {
		return 0, fmt.Errorf("export to %s: %w", f.Path, err)
	}
	dir := filepath.Dir(f.Path)
	draft, err := os.CreateTemp(dir, "."+filepath.Base(f.Path)+".part-*") // 0600
	if err != nil {
		return 0, fmt.Errorf("export to %s: %w", f.Path, err)
	}
	keep, filling := fill(draft)
	if filling != nil && !keep {
		return 0, fmt.Errorf("export to %s: %w", f.Path, errors.Join(filling, draft.Close(), os.Remove(draft.Name())))
	}
	bytes, err = f.place(ctx, draft)
	if err != nil {
		err = errors.Join(err, os.Remove(draft.Name()))
	}
	if err = errors.Join(err, filling); err != nil {
		return bytes, fmt.Errorf("export to %s: %w", f.Path, err)
	}
	return bytes, nil
}

// place makes the draft durable and gives it its name, and closes it.
func (f File) place(ctx context.Context, draft *os.File) (bytes int64, err error) {
	bytes, err = draft.Seek(0, io.SeekEnd)
	if err == nil {
		err = draft.Sync()
	}
	if err = errors.Join(err, draft.Close(), ctx.Err()); err != nil {
		return 0, err
	}
	if err := f.free(); err != nil { // one may have come meanwhile
		return 0, err
	}
	if err := os.Rename(draft.Name(), f.Path); err != nil {
		return 0, err
	}
	return bytes, folder.Sync(filepath.Dir(f.Path))
}

// free says whether the name may be used.
func (f File) free() error {
	info, err := os.Lstat(f.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is there and is no file: choose another name, or leave -o out and redirect standard output")
	case !f.Force:
		return errors.New("it is there already: choose another name, or say --force to replace it")
	}
	return nil
}
