//go:build unix

package systemd

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Standard error may be the journal, a pipe of a shell, or the journal of
// somebody who started this program by hand.
func TestLog_TellsTheJournalWhatIsTrouble(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	write := func() string {
		t.Helper()
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := file.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		to := Log(file)
		o := &slog.HandlerOptions{Level: slog.LevelDebug}
		for _, log := range []*slog.Logger{slog.New(slog.NewTextHandler(to, o)), slog.New(slog.NewJSONHandler(to, o))} {
			log.Debug("one", "said", "level=ERROR")
			log.Info("two")
			log.Warn("three")
			log.Error("four")
		}
		text, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	t.Setenv("JOURNAL_STREAM", "")
	plain := write()
	if strings.Contains(plain, "<") {
		t.Errorf("without a journal: %s", plain)
	}
	t.Setenv("JOURNAL_STREAM", "8:1")
	if got := write(); strings.Contains(got, "<") {
		t.Errorf("with a journal elsewhere: %s", got)
	}
	t.Setenv("JOURNAL_STREAM", streamOf(file))
	lines := strings.Split(strings.TrimSpace(write()), "\n")
	for n, want := range []string{"<7>", "<6>", "<4>", "<3>", "<7>", "<6>", "<4>", "<3>"} {
		if n >= len(lines) || !strings.HasPrefix(lines[n], want) {
			t.Errorf("line %d of %q: want %s", n, lines, want)
		}
	}
}
