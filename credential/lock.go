package credential

import (
	"errors"
	"fmt"
	"os"
	"time"

	"touchline/internal/filelock"
	"touchline/internal/folder"
)

// Another process holds the lock for one read and one write of the file: some
// milliseconds, seconds on a card that is busy.
const (
	lockPatience = 10 * time.Second
	lockPause    = 5 * time.Millisecond
)

// lockFile takes a lock between processes, which ends with unlock or with the
// process. The file itself can't be locked: it is replaced by each change.
func lockFile(name string) (unlock func(), err error) {
	f, err := folder.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	for end := time.Now().Add(lockPatience); ; {
		err := filelock.Try(f)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, filelock.ErrLocked) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("lock %s: another process has held it for %s", name, lockPatience), f.Close())
		}
		time.Sleep(lockPause) // the system tells nobody when such a lock becomes free
	}
}
