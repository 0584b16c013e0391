package buffer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A GoneError ends Run: the database or its log was removed or replaced while
// it was open. SQLite would go on writing into files that nobody can open
// again, so nothing is acknowledged any more, and the process ends: started
// again, it takes what lies there, or begins anew.
type GoneError struct {
	Path string
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("%s was removed or replaced while it was in use: put it back as it was if you have it, and start again", e.Path)
}

// openFiles are the files that SQLite has open, as they were.
type openFiles map[string]os.FileInfo

// watch remembers the files of a store that was just opened.
func (s *store) watch() (openFiles, error) {
	files := make(openFiles)
	for _, path := range []string{s.path, s.path + "-wal"} {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("look at the open database: %w", err)
		}
		files[path] = info
	}
	return files, nil
}

// inPlace returns a GoneError unless the files that are open are still the
// ones in the folder. That they can't be looked at for another reason says
// nothing.
func (f openFiles) inPlace() error {
	for path, was := range f {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, was) {
			return &GoneError{Path: path}
		}
	}
	return nil
}

// noticeGone ends Run where the files are gone.
func (b *Buffer) noticeGone(err error) {
	var gone *GoneError
	if !errors.As(err, &gone) {
		return
	}
	b.mu.Lock()
	first := b.gone == nil
	b.gone = gone
	b.mu.Unlock()
	if first {
		b.log.Error("the buffer's file is gone: nothing is taken any more, and this process ends", "error", err)
	}
	b.stop()
}
