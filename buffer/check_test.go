package buffer

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline"
	"touchline/wire"
)

// checkFolder checks a file that nobody has open, and fails if that changed
// anything.
func checkFolder(t testing.TB, dir string) Report {
	t.Helper()
	before := contentOf(t, dir, databaseName)
	r, err := OpenToRead(testContext(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Check(testContext(t))
	if err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if after := contentOf(t, dir, databaseName); !maps.Equal(before, after) {
		for name := range after {
			if was, there := before[name]; !there || was != after[name] {
				t.Errorf("checking changed %s: %d bytes, was %d (there %t)", name, len(after[name]), len(was), there)
			}
		}
		t.Errorf("checking changed the folder: %d files, was %d", len(after), len(before))
	}
	return report
}

// TestCheck_CountsWhatIsThere: in a file that was closed, in one with a log
// that lost its power, and in one that a gateway has open.
func TestCheck_CountsWhatIsThere(t *testing.T) {
	closed, crashed := makeImages(t)
	for name, img := range map[string]*image{"closed": closed, "crashed": crashed} {
		opts := img.write(t)
		report := checkFolder(t, opts.Dir)
		if !report.OK() || report.Samples != int64(len(img.has)) || report.Running || report.Bytes < report.Data {
			t.Errorf("%s: %+v, want %d samples and no problem", name, report, len(img.has))
		}
		var samples int64
		for _, e := range report.Epochs {
			samples += e.Samples
			if len(e.Ranges) != 1 || e.Ranges.Count() != uint64(e.Samples) || e.Cut || e.MaxTime.Before(e.MinTime) || e.MinTime.Year() != 2023 {
				t.Errorf("%s: epoch %+v", name, e)
			}
		}
		if samples != report.Samples {
			t.Errorf("%s: the epochs have %d samples, the file %d", name, samples, report.Samples)
		}
		b := startBuffer(t, opts)
		mustAppend(t, b, numbered(0, 7))
		running, err := b.Check(testContext(t))
		if err != nil || !running.OK() || !running.Running || running.Samples != report.Samples+7 || len(running.Epochs) != len(report.Epochs)+1 {
			t.Errorf("%s, running: %v %+v", name, err, running)
		}
		b.Close()
	}
}

// TestCheck_FindsWhatIsWrong damages a file in each way that SQLite itself
// does not see, and in some that it does.
func TestCheck_FindsWhatIsWrong(t *testing.T) {
	closed, _ := makeImages(t)
	const anyBlock = "(SELECT key FROM block ORDER BY key LIMIT 1 OFFSET 7)"
	const tallyAll = "UPDATE tally SET (upto, blocks, samples, data_bytes) = (SELECT max(key), count(*), sum(count), sum(length(data)) FROM block); "
	for name, tc := range map[string]struct{ statement, want string }{
		"data":           {"UPDATE block SET data = zeroblob(length(data)) WHERE key = " + anyBlock, "is damaged: CRC"},
		"data, reported": {"UPDATE block SET data = zeroblob(length(data)), committed = -5 WHERE key = " + anyBlock, "it is recorded as lost"},
		"crc":            {"UPDATE block SET crc = crc + 1 WHERE key = " + anyBlock, "is damaged: CRC"},
		"count":          {"UPDATE block SET count = 0 WHERE key = " + anyBlock, "has a count of 0"},
		"time span":      {"UPDATE block SET min_time = 5 WHERE key = " + anyBlock, "says it is from 5"},
		"numbers":        {"UPDATE block SET key = key + 1 WHERE key = " + anyBlock, "is damaged: CRC"},
		"block missing":  {tallyAll + "DELETE FROM block WHERE key = " + anyBlock, "the tally says"},
		"tally":          {"UPDATE tally SET samples = samples + 1", "the tally says"},
		"lost, ranges":   {"INSERT INTO lost VALUES (1, 5, zeroblob(16), '[[9,1]]', 'damage', 0, 0)", "the next start of the gateway sets it aside"},
		"lost, cause":    {"INSERT INTO lost VALUES (1, 5, zeroblob(16), '[[1,9]]', 'weather', 0, 0)", "out of bounds"},
		"epoch missing":  {"DELETE FROM epoch", "belongs to no epoch"},
		"index": {"PRAGMA writable_schema = 1; UPDATE sqlite_schema SET rootpage = 3 WHERE name = 'sqlite_autoindex_epoch_1'; PRAGMA user_version = " + fmt.Sprint(schemaVersion),
			"buffer.db"},
	} {
		t.Run(name, func(t *testing.T) {
			img := &image{files: sqlFile(t, closed.db(), tc.statement)}
			opts := img.write(t)
			report := checkFolder(t, opts.Dir)
			found := false
			for _, p := range report.Problems {
				found = found || strings.Contains(p, tc.want)
			}
			if report.OK() || !found {
				t.Errorf("problems %q, want one with %q", report.Problems, tc.want)
			}
		})
	}
}

// TestCheck_NeverFailsForDamage: what would be set aside is left where it is.
func TestCheck_NeverFailsForDamage(t *testing.T) {
	closed, crashed := makeImages(t)
	for name, img := range map[string]*image{
		"head":          {files: map[string][]byte{"": append(make([]byte, 4096), closed.db()[4096:]...)}},
		"truncated":     {files: map[string][]byte{"": closed.db()[:len(closed.db())/2+100]}},
		"emptied":       {files: map[string][]byte{"": nil, "-wal": crashed.log()}},
		"newer":         {files: sqlFile(t, closed.db(), "PRAGMA user_version = 99; DROP TABLE tally")},
		"another's":     {files: sqlFile(t, nil, "CREATE TABLE x (y)")},
		"pages of zero": {files: map[string][]byte{"": append(closed.db()[:3*4096:3*4096], make([]byte, len(closed.db())-3*4096)...)}},
	} {
		t.Run(name, func(t *testing.T) {
			opts := img.write(t)
			if report := checkFolder(t, opts.Dir); report.OK() || len(report.Aside) != 0 {
				t.Errorf("%+v, want a problem, and nothing set aside", report)
			}
			r, err := OpenToRead(testContext(t), opts.Dir)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			blocks := 0
			if _, err := r.Export(testContext(t), false, func(b []wire.Block) error { blocks += len(b); return nil }); err == nil && blocks > len(closed.has) {
				t.Errorf("%d blocks exported of a damaged file", blocks)
			}
		})
	}
}

func TestOpenToRead_LeavesEverythingElseAlone(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenToRead(testContext(t), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v, want os.ErrNotExist", err)
	}
	if _, err := OpenToRead(testContext(t), dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v, want os.ErrNotExist", err)
	}
	opts := testOptions(t)
	b := startBuffer(t, opts)
	var locked *LockedError
	if _, err := OpenToRead(testContext(t), opts.Dir); !errors.As(err, &locked) || locked.PID != os.Getpid() {
		t.Errorf("while a buffer has it: %v, want a LockedError", err)
	}
	mustAppend(t, b, numbered(0, 3))
	b.Close()
	r, err := OpenToRead(testContext(t), opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := Open(testContext(t), opts, testLogger(t)); !errors.As(err, &locked) {
		t.Errorf("a buffer was opened while its file is read: %v", err)
	}
	if pid, err := os.ReadFile(filepath.Join(opts.Dir, lockName)); err != nil || len(pid) == 0 {
		t.Errorf("the lock file lost its number: %q %v", pid, err)
	}
}

// TestReport_StaysBounded: a file in which every second block is gone.
func TestReport_StaysBounded(t *testing.T) {
	var r Report
	for n := range 3 * maxListed {
		b := wire.Block{Epoch: touchline.Epoch{1}, First: uint64(2*n + 1), Count: 1}
		r.add(&b, 1, 2)
		r.problem("%d", n)
	}
	if e := r.Epochs[0]; len(e.Ranges) != maxListed || !e.Cut || e.Samples != 3*maxListed {
		t.Errorf("%d ranges, cut %t, %d samples", len(e.Ranges), e.Cut, e.Samples)
	}
	if len(r.Problems) != maxProblems || r.More != 3*maxListed-maxProblems {
		t.Errorf("%d problems and %d more", len(r.Problems), r.More)
	}
}
