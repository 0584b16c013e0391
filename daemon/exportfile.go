package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"touchline/archive"
	"touchline/internal/folder"
)

// An ExportFile says where an export goes.
type ExportFile struct {
	Path  string
	All   bool // also what the cloud has
	Force bool // replaces a file that is there
}

// ExportTo writes an archive to a file that is there as a whole or not at all:
// under another name first, synced, read again, and then renamed. It leaves
// buffer.free_reserve alone where the file is on the buffer's disk.
func (f *Folder) ExportTo(ctx context.Context, to ExportFile) (_ archive.Summary, err error) {
	fail := func(err error) (archive.Summary, error) {
		return archive.Summary{}, fmt.Errorf("export to %s: %w", to.Path, err)
	}
	if err := to.free(); err != nil {
		return fail(err)
	}
	dir := filepath.Dir(to.Path)
	draft, err := os.CreateTemp(dir, "."+filepath.Base(to.Path)+".part-*") // 0600
	if err != nil {
		return fail(err)
	}
	renamed := false
	defer func() {
		if !renamed {
			err = errors.Join(err, os.Remove(draft.Name()))
		}
	}()
	reserve, err := f.reserveAt(dir)
	if err != nil {
		return fail(errors.Join(err, draft.Close()))
	}
	summary, err := f.Export(ctx, to.All, archive.NewSparing(ctx, draft, dir, reserve))
	if err == nil {
		err = draft.Sync()
	}
	if err == nil {
		err = readAgain(draft, summary)
	}
	if err = errors.Join(err, draft.Close(), ctx.Err()); err != nil {
		return fail(err)
	}
	if err := to.free(); err != nil { // it may have come meanwhile
		return fail(err)
	}
	if err := os.Rename(draft.Name(), to.Path); err != nil {
		return fail(err)
	}
	renamed = true
	if err := folder.Sync(dir); err != nil {
		return fail(err)
	}
	return summary, nil
}

// free says whether the name may be used.
func (to *ExportFile) free() error {
	info, err := os.Lstat(to.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is there and is no file: choose another name")
	case !to.Force:
		return errors.New("it is there already: choose another name, or say --force to replace it")
	}
	return nil
}

// readAgain reads what was written as whoever takes it in will.
func readAgain(file *os.File, want archive.Summary) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, got, err := archive.Verify(file, func(archive.Header) error { return nil })
	if err != nil {
		return fmt.Errorf("what was written does not read back: %w", err)
	}
	if got.Samples != want.Samples || got.Blocks != want.Blocks {
		return fmt.Errorf("what was written does not read back: it has %d samples, and %d were written", got.Samples, want.Samples)
	}
	return nil
}

// reserveAt returns what must stay free in a folder: on the disk of the buffer
// what its settings say, elsewhere nothing.
func (f *Folder) reserveAt(dir string) (int64, error) {
	same, err := sameDisk(f.config.Gateway.Data, dir)
	if err != nil || !same {
		return 0, err
	}
	return int64(f.config.Buffer.FreeReserve), nil
}
