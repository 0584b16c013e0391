package systemd

import (
	"bytes"
	"io"
	"os"
)

// Log returns where a program's log goes: to file, which is its standard error.
// Where that is the journal (systemd.exec(5), JOURNAL_STREAM), each line bears
// its priority, so that `journalctl -p warning` shows trouble alone. Each Write
// is a record of slog.
func Log(file *os.File) io.Writer {
	if stream := os.Getenv("JOURNAL_STREAM"); stream == "" || stream != streamOf(file) {
		return file
	}
	return journal{file}
}

type journal struct{ to io.Writer }

// priorities are those of sd-daemon(3), by the first letter of slog's levels.
var priorities = map[byte]string{'D': "<7>", 'I': "<6>", 'W': "<4>", 'E': "<3>"}

// Write is one write, too, so that no other line comes between.
func (j journal) Write(record []byte) (int, error) {
	_, level, _ := bytes.Cut(record, []byte("level")) // the first one: no time has it
	level = bytes.TrimLeft(level, "=\":")
	if len(level) == 0 || priorities[level[0]] == "" {
		return j.to.Write(record)
	}
	prefix := priorities[level[0]]
	n, err := j.to.Write(append([]byte(prefix), record...))
	return max(0, n-len(prefix)), err
}
