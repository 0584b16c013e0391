package clock

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"touchline"
	"touchline/internal/folder"
)

func fileIn(dir string) string { return filepath.Join(dir, "latest-time") }

// readLatest returns the time in the file in ns since the Unix epoch, and 0
// where there is none.
func readLatest(file string) (int64, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 100)) // a time has 20 bytes
	if err != nil {
		return 0, err
	}
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	if ns := t.UnixNano(); t.Year() >= 1970 && ns >= 0 && ns < touchline.Released+int64(lifetime) {
		return ns, nil
	}
	return 0, fmt.Errorf("%s: %s is no time that can have been", file, t)
}

// keepLatest writes the time down where somebody vouches for it and it was not
// written for so long. What a clock showed that nobody vouched for must not
// make the right time implausible later. A file that is lost costs little; one
// that can't be written is said once.
func (w *Watch) keepLatest(after time.Duration) {
	latest, due := w.latestDue(after)
	if !due {
		return
	}
	// Without w.mu: nobody who asks for the time waits for a disk.
	err := writeFile(w.file, time.Unix(0, latest).UTC().Format(time.RFC3339)+"\n")
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != w.trouble {
		w.log.Warn("the latest time can't be written down: after the next start the clock may count as unset for longer", "error", err)
	}
	w.trouble = text
}

// latestDue returns what is to be written down, if it is time to.
func (w *Watch) latestDue(after time.Duration) (latest int64, due bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	uptime := w.Uptime()
	if w.vouched == 0 || w.source == SourceNone || w.kept != 0 && uptime-w.kept < after {
		return 0, false
	}
	w.kept = uptime
	return w.latest(), true
}

// writeFile puts text into the file, whole or not at all.
func writeFile(file, text string) (err error) {
	part := file + ".part"
	f, err := folder.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write latest time: %w", err)
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync() // or a power cut may leave the name with nothing
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, file)
	}
	if err != nil {
		return fmt.Errorf("write latest time: %w", errors.Join(err, os.Remove(part)))
	}
	return nil
}
