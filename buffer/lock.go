package buffer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"touchline/internal/filelock"
	"touchline/internal/folder"
)

const lockName = "buffer.lock"

// lockFolder makes dir if it is missing and takes its lock, which is held
// until the file is closed or the process ends, however it ends. It comes
// before anything else, since two writers would each draw numbers that the
// other does not know of. The lock belongs to the open file (flock, not
// fcntl), so a second buffer in the same process is kept out too.
func lockFolder(dir string) (*os.File, error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	f, err := folder.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := filelock.Try(f); err != nil {
		defer f.Close()
		if errors.Is(err, filelock.ErrLocked) {
			return nil, &LockedError{Dir: dir, PID: readPID(f)}
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	// The number is for people only: a disk too full to write it is no
	// reason not to start.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// readPID returns the number in a lock file, 0 if there is none.
func readPID(f *os.File) int {
	text, err := io.ReadAll(io.LimitReader(f, 32)) // a pid has at most 10 digits
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// lockToRead takes the lock of a folder that is there, and writes nothing into
// it. Where the file system is read-only and has no lock file, nobody can have
// the lock.
func lockToRead(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := folder.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = folder.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
		if errors.Is(err, syscall.EROFS) {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := filelock.Try(f); err != nil {
		defer f.Close()
		if errors.Is(err, filelock.ErrLocked) {
			return nil, &LockedError{Dir: dir, PID: readPID(f)}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
