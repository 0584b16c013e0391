package buffer

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"touchline"
)

// later are the statements by which a later version of touchline would have
// brought a file to its schema.
func later(version string) []string {
	return []string{
		"CREATE TABLE later (n INTEGER PRIMARY KEY, what TEXT NOT NULL) STRICT",
		fmt.Sprintf("INSERT INTO needs (schema, version) VALUES (%d, '%s')", schemaVersion+1, version),
		fmt.Sprintf("PRAGMA user_version = %d", schemaVersion+1),
	}
}

// TestSchemas_SayWhichVersionReadsThem: no step is forgotten, and none claims
// a version that is still to come.
func TestSchemas_SayWhichVersionReadsThem(t *testing.T) {
	number := func(version string) (n int) {
		if !touchline.IsRelease(version) {
			t.Fatalf("%q is no version", version)
		}
		version, _, _ = strings.Cut(version, "-")
		for part := range strings.SplitSeq(version, ".") {
			one, err := strconv.Atoi(part)
			if err != nil {
				t.Fatal(err)
			}
			n = n*10_000 + one
		}
		return n
	}
	before := 0
	for i, step := range schemas {
		if now := number(step.since); now < before || now > number(touchline.Version) {
			t.Errorf("schema %d is of %s: want an ascending order, up to %s", i+1, step.since, touchline.Version)
		} else {
			before = now
		}
		if _, err := os.Stat(filepath.Join("testdata", fmt.Sprintf("version%d.db", i+1))); err != nil && i+1 < schemaVersion {
			t.Errorf("no file of schema %d is kept to try its migration: %v", i+1, err)
		}
	}
}

// TestOpen_NamesTheVersionThatTakesAFileBack: a file of a newer schema says in
// the log, in its report, in the status and to `buffer check` which version it
// needs, and is not touched.
func TestOpen_NamesTheVersionThatTakesAFileBack(t *testing.T) {
	closed, _ := makeImages(t)
	for _, inLog := range []bool{false, true} {
		statements := later("7.12.3")
		if !inLog {
			statements = append(statements, "PRAGMA wal_checkpoint(TRUNCATE)")
		}
		img := &image{files: sqlFile(t, closed.db(), statements...)}
		if has := len(img.log()) > 0; has != inLog {
			t.Fatalf("the file has a log: %t, want %t", has, inLog)
		}
		opts := img.write(t)
		const words = "touchline 7.12.3 or newer takes it back"
		if report := checkFolder(t, opts.Dir); report.OK() || !strings.Contains(report.Problems[0], words) || !strings.Contains(report.Problems[0], "sets it aside untouched") {
			t.Errorf("a check of the file finds %q", report.Problems)
		}
		for start := range 3 {
			var log bytes.Buffer
			b, err := Open(testContext(t), opts, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			s := b.Stats()
			if len(s.Aside) != 1 || s.Aside[0].Kind != string(newer) || s.Aside[0].Needs != "7.12.3" || !strings.HasPrefix(s.Aside[0].Why, words) || s.Aside[0].State != "untouched" {
				t.Fatalf("start %d: set aside %+v", start, s.Aside)
			}
			if start == 0 && strings.Count(log.String(), words) != 2 { // why, and what to do
				t.Errorf("the log says\n%s", log.String())
			}
			report, err := b.Check(testContext(t))
			if err != nil || !report.OK() || report.AsideReader[filepath.Base(s.Aside[0].Path)] != "touchline 7.12.3 or newer" {
				t.Errorf("start %d: a check finds %+v, %v", start, report, err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			for suffix, was := range img.files {
				if now, err := os.ReadFile(s.Aside[0].Path + suffix); err != nil || !bytes.Equal(now, was) {
					t.Errorf("start %d: the file%s was changed (%v)", start, suffix, err)
				}
			}
			reportName := s.Aside[0].Path + reportSuffix
			var kept struct{ Why, Needs string }
			switch start {
			case 0:
				if text, err := os.ReadFile(reportName); err != nil || json.Unmarshal(text, &kept) != nil || kept.Needs != "7.12.3" || !strings.HasPrefix(kept.Why, words) {
					t.Errorf("its report says %s, %v", text, err)
				}
			case 1: // without its report the file itself is asked
				if err := os.Remove(reportName); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestOpen_ANewerFileThatDoesNotSayItsVersion: whatever became of the table,
// the file is set aside as newer, and the number of its schema is what is left
// to say.
func TestOpen_ANewerFileThatDoesNotSayItsVersion(t *testing.T) {
	closed, _ := makeImages(t)
	newerBy := func(statements ...string) []string {
		return append(statements, fmt.Sprintf("PRAGMA user_version = %d", schemaVersion+1))
	}
	const more = "CREATE TABLE more (x)"
	next := schemaVersion + 1
	for name, c := range map[string]struct {
		statements []string
		damage     func(img *image, root int)
		needs      string
	}{
		"no row":        {statements: newerBy(more)},
		"no table":      {statements: newerBy(more, "CREATE TABLE again (x)", "DROP TABLE needs")},
		"another table": {statements: newerBy("DROP TABLE needs", "CREATE TABLE needs (a, b, c)", "INSERT INTO needs VALUES (4, 5.5, '7.0.0')")},
		"a view":        {statements: newerBy(more, "DROP TABLE needs", "CREATE VIEW needs AS SELECT 4, '7.0.0'")},
		"no version":    {statements: newerBy(more, fmt.Sprintf("INSERT INTO needs VALUES (%d, 'a\nb')", next))},
		"a huge one":    {statements: newerBy(more, fmt.Sprintf("INSERT INTO needs VALUES (%d, '7.0.0' || hex(zeroblob(90000)))", next))},
		"a huge table": {statements: newerBy(more, fmt.Sprintf(`WITH RECURSIVE n (n) AS (VALUES (%d) UNION ALL SELECT n + 1 FROM n LIMIT 100000)
			INSERT INTO needs SELECT n, '7.0.' || (n %% 1000) FROM n`, next)), needs: fmt.Sprintf("7.0.%d", next)},
		"two-page schema": {statements: newerBy(append(manyTables(80), fmt.Sprintf("INSERT INTO needs VALUES (%d, '7.0.0')", next))...), needs: "7.0.0"},
		"more columns": {statements: newerBy(more, "DROP TABLE needs", "CREATE TABLE needs (schema INTEGER PRIMARY KEY, version TEXT, why TEXT)",
			fmt.Sprintf("INSERT INTO needs VALUES (%d, '7.0.0', 'x')", next)), needs: "7.0.0"},
		"a page of zeros": {statements: append(newerBy(more), later("7.0.0")[1]), damage: func(img *image, root int) { clear(img.db()[(root-1)*pageBytes:][:pageBytes]) }},
		"a loop": {statements: append(newerBy(more), later("7.0.0")[1]), damage: func(img *image, root int) {
			page := img.db()[(root-1)*pageBytes:][:pageBytes]
			clear(page)
			page[0] = interiorTable
			binary.BigEndian.PutUint32(page[8:], uint32(root))
		}},
		"cut off": {statements: append(newerBy(more), later("7.0.0")[1]), damage: func(img *image, _ int) { img.files[""] = img.db()[:pageBytes+100] }},
	} {
		t.Run(name, func(t *testing.T) {
			img := &image{files: sqlFile(t, closed.db(), append(c.statements, "PRAGMA wal_checkpoint(TRUNCATE)")...)}
			delete(img.files, "-wal")
			if c.damage != nil {
				c.damage(img, rootOf(t, img, "needs"))
			}
			opts := img.write(t)
			b := openBuffer(t, opts)
			s := b.Stats()
			if len(s.Aside) != 1 || s.Aside[0].Kind != string(newer) || s.Aside[0].Needs != c.needs {
				t.Fatalf("set aside %+v, want one newer file of version %q", s.Aside, c.needs)
			}
			why := fmt.Sprintf("takes it back: its schema is %d, and touchline %s knows those up to %d", next, touchline.Version, schemaVersion)
			if !strings.Contains(s.Aside[0].Why, why) || strings.HasPrefix(s.Aside[0].Why, "a newer touchline ") != (c.needs == "") {
				t.Errorf("why is %q", s.Aside[0].Why)
			}
		})
	}
}

func manyTables(n int) (statements []string) {
	for i := range n {
		statements = append(statements, fmt.Sprintf("CREATE TABLE one_of_many_%d (x INTEGER NOT NULL, y INTEGER NOT NULL) STRICT", i))
	}
	return statements
}

// rootOf returns the page at which a table begins.
func rootOf(t testing.TB, img *image, table string) (root int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, img.db(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openRaw(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	f.rows(1, maxNeedsPages, func(c *cell) {
		var row [4]column
		if n, _ := columns(c.record, row[:]); n == len(row) && string(row[1].bytes) == table {
			root = int(row[3].number)
		}
	})
	if root == 0 {
		t.Fatalf("there is no table %s", table)
	}
	return root
}
