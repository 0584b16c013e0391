package buffer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"touchline"
)

// lay puts a database and its log beside that of a folder.
func lay(t testing.TB, dir, name string, files map[string][]byte) {
	t.Helper()
	for suffix, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name+suffix), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// filesOf reads the database of a closed buffer.
func filesOf(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, databaseName))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"": content}
}

// TestOpen_KnowsWhatANewerTouchlineStoredLast: who goes back to an older
// version while sensors send meets what they were not told is stored. It is in
// the file that was set aside, and is not stored again.
func TestOpen_KnowsWhatANewerTouchlineStoredLast(t *testing.T) {
	opts, clock := repeatOptions(t)
	clock.advance(time.Hour)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 5))
	clock.advance(opts.RepeatWindow + time.Second)
	mustAppend(t, b, numbered(100, 10))
	key := touchline.Key{ID: touchline.DigestOf("a"), Body: touchline.DigestOf("b"), Count: 2, Again: true}
	long := touchline.Key{ID: touchline.DigestOf("c"), Body: touchline.DigestOf("d"), First: 2, Count: 2, Again: true, Long: true}
	named := touchline.Arrival{Samples: stampedSamples(200, 4), Keys: []touchline.Key{key, long}}
	if err := send(t, b, named); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	img := &image{files: sqlFile(t, filesOf(t, opts.Dir)[""], later("7.0.0")...)}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(filepath.Join(opts.Dir, databaseName+suffix))
	}
	lay(t, opts.Dir, databaseName, img.files)

	for start := range 2 {
		b = startBuffer(t, opts)
		mustAppend(t, b, numbered(100, 12)) // of which two are new, the first time
		if err := send(t, b, named); err != nil {
			t.Fatal(err)
		}
		if s := b.Stats(); len(s.Aside) != 1 || s.Aside[0].Kind != string(newer) || s.Samples != 2 || s.Repeats < 10 || s.RepeatsByKey != 4 {
			t.Fatalf("start %d: %d samples stored, want 2; %d repeats, %d of them by their names; set aside %+v", start, s.Samples, s.Repeats, s.RepeatsByKey, s.Aside)
		}
		img.wantUnchanged(t, b.Stats().Aside[0])
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b = startBuffer(t, opts) // in time it is forgotten
	clock.advance(opts.RepeatWindow + time.Millisecond)
	mustAppend(t, b, numbered(100, 10))
	if s := b.Stats(); s.Samples != 12 {
		t.Errorf("%d samples are stored after the window, want 12", s.Samples)
	}
}

// TestOpen_WhatComesBackIsOlderThanWhatIsHere: the running time of a file that
// was set aside ended before that of the one in use began. Nothing that was
// stored meanwhile becomes older by it, and is given up for its age; and it is
// still known.
func TestOpen_WhatComesBackIsOlderThanWhatIsHere(t *testing.T) {
	old, clock := repeatOptions(t)
	clock.advance(time.Minute)
	b := startBuffer(t, old)
	clock.advance(300 * time.Hour) // it has run for long
	mustAppend(t, b, numbered(0, 20))
	flush(t, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	opts, clock := repeatOptions(t)
	opts.MaxAge = 30 * time.Minute
	b = startBuffer(t, opts)
	clock.advance(time.Minute)
	mustAppend(t, b, numbered(100, 10))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	lay(t, opts.Dir, fmt.Sprintf("%s.newer-%d-20261122T120000Z", databaseName, schemaVersion), filesOf(t, old.Dir))

	b = startBuffer(t, opts)
	flush(t, b)
	mustAppend(t, b, numbered(100, 10)) // once more
	s := b.Stats()
	if s.Samples != 30 || s.Evicted["max_age"] != 0 || s.Repeats != 10 {
		t.Errorf("there are %d samples, %v were given up, %d known: want 30, none and 10", s.Samples, s.Evicted, s.Repeats)
	}
	if s.OldestAge > 2*time.Minute {
		t.Errorf("the oldest is %s old, in a file that has run for a minute", s.OldestAge)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startBuffer(t, opts)
	mustAppend(t, b, numbered(100, 10))
	if s := b.Stats(); s.Samples != 30 {
		t.Errorf("after another start %d samples are there, want 30", s.Samples)
	}
}
