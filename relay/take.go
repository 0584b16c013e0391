package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"touchline/archive"
	"touchline/internal/folder"
)

// Taken says what was taken in.
type Taken struct {
	Header  archive.Header
	Summary archive.Summary
	Known   bool // it waits here already: nothing was changed
}

// Take reads an archive to its end and keeps it, all of it or nothing: one that
// is cut, changed, or signed by a key that trust does not know leaves no trace.
// It is durable when Take returns nil. It leaves FreeReserve alone.
func Take(ctx context.Context, opts Options, from io.Reader, trust archive.Trust) (_ Taken, err error) {
	fail := func(err error) (Taken, error) { return Taken{}, fmt.Errorf("take in archive: %w", err) }
	if err := makeFolder(opts.Dir); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(opts.Dir, ".incoming-*") // 0600
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }() // what it holds has its own name by then
	to := archive.NewSparing(ctx, f, opts.Dir, opts.FreeReserve)
	var t Taken
	t.Header, t.Summary, err = archive.Verify(io.TeeReader(from, to), trust)
	if err = errors.Join(err, folder.Give(f), f.Sync(), f.Close()); err != nil {
		return fail(err)
	}
	name := filepath.Join(opts.Dir, t.Header.ID.String()+archive.Suffix)
	if _, gone := os.Stat(name); errors.Is(gone, os.ErrNotExist) {
		// A note of an earlier time is not of this one: a person takes an
		// archive in again because the cloud lacks it.
		if err := removeIfThere(name + progressSuffix); err != nil {
			return fail(err)
		}
	}
	err = os.Link(f.Name(), name) // unlike a rename, it replaces nothing
	if t.Known = errors.Is(err, os.ErrExist); err != nil && !t.Known {
		return fail(err)
	}
	if err := folder.Sync(opts.Dir); err != nil {
		return fail(err)
	}
	return t, nil
}

// Take is the function Take for this relay, which sends what it took soon.
func (r *Relay) Take(ctx context.Context, from io.Reader, trust archive.Trust) (Taken, error) {
	t, err := Take(ctx, r.opts, from, trust)
	if err != nil {
		return t, err
	}
	r.look()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	r.log.Info("archive of another gateway was taken in", "gateway", t.Header.Gateway, "archive", t.Header.ID.String(),
		"blocks", t.Summary.Blocks, "samples", t.Summary.Samples, "known", t.Known)
	return t, nil
}

// makeFolder makes the folder of archives within the data folder.
func makeFolder(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := folder.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(folder.Give(d), d.Close(), folder.Sync(filepath.Dir(dir)))
}

// Tidy removes what a Take left that was cut off by a crash. Nobody may be
// taking in an archive meanwhile.
func (r *Relay) Tidy() error {
	entries, err := os.ReadDir(r.opts.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("tidy archives: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".incoming-") {
			if err := os.Remove(filepath.Join(r.opts.Dir, e.Name())); err != nil {
				return fmt.Errorf("tidy archives: %w", err)
			}
		}
	}
	return nil
}
