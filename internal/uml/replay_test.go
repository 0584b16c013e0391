//go:build linux

package uml

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// written is one entry of a log made for a test: a page of one letter.
type written struct {
	page   int
	letter byte // 0: no data
	flags  uint64
	mark   string
}

// logOf writes a log as the kernel does.
func logOf(t *testing.T, entries ...written) *WriteLog {
	t.Helper()
	var log bytes.Buffer
	pad := func() { log.Write(make([]byte, -log.Len()&(sector-1))) }
	put := func(numbers ...uint64) {
		for _, n := range numbers {
			log.Write(binary.LittleEndian.AppendUint64(nil, n))
		}
	}
	put(logMagic, logVersion, uint64(len(entries)), sector)
	pad()
	for _, e := range entries {
		sectors := uint64(0)
		if e.letter != 0 {
			sectors = page / sector
		}
		put(uint64(e.page*page/sector), sectors, e.flags, uint64(len(e.mark)))
		log.WriteString(e.mark)
		pad()
		if e.letter != 0 {
			log.Write(bytes.Repeat([]byte{e.letter}, page))
		}
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, log.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := OpenWriteLog(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestCut_TakesWhatNoFlushCovered(t *testing.T) {
	log := logOf(t,
		written{page: 0, letter: 'a'},
		written{page: 1, letter: 'b'},
		written{flags: flagFlush},
		written{page: 0, letter: 'c'},
		written{flags: flagMark, mark: "said"},
		written{page: 2, letter: 'd', flags: flagFUA},
		written{page: 3, letter: 'e', flags: flagFlush | flagFUA},
	)
	if mark := log.Entries[4].Mark; mark != "said" {
		t.Errorf("mark %q, want said", mark)
	}
	const base = "...."
	for _, tc := range []struct {
		position   int
		kept, lost string // the letters of the pages
	}{
		{0, base, base},
		{2, "ab..", base}, // not flushed
		{3, "ab..", "ab.."},
		{4, "cb..", "ab.."},
		{6, "cbd.", "abd."}, // d can't be lost, c can
		{7, "cbde", "cbde"},
	} {
		for loss, want := range map[Loss]string{Kept: tc.kept, Lost: tc.lost} {
			r := NewReplay(log, bytes.Repeat([]byte("."), len(base)*page))
			if err := r.Advance(tc.position); err != nil {
				t.Fatal(err)
			}
			if got := cutPages(t, r, loss); got != want {
				t.Errorf("cut at %d, %s: %q, want %q", tc.position, loss, got, want)
			}
		}
	}
}

// In some of many cuts each write that was not flushed is there, in others
// not, and only a torn one is there in part.
func TestCut_DrawsEveryOutcome(t *testing.T) {
	r := NewReplay(logOf(t, written{page: 0, letter: 'a'}, written{page: 1, letter: 'b'}), make([]byte, 2*page))
	if err := r.Advance(2); err != nil {
		t.Fatal(err)
	}
	seen := map[Loss]map[string]bool{Some: {}, Torn: {}}
	for range 200 {
		for loss := range seen {
			seen[loss][cutPages(t, r, loss)] = true
		}
	}
	for _, want := range []string{"ab", "a\x00", "\x00b", "\x00\x00"} {
		if !seen[Some][want] {
			t.Errorf("never %q of 200 cuts", want)
		}
	}
	if seen[Some]["?b"] || !seen[Torn]["?b"] {
		t.Errorf("torn: %v, some: %v", seen[Torn], seen[Some])
	}
}

var chance = rand.New(rand.NewPCG(1, 2))

// cutPages cuts, and returns a letter for each page: '?' where it has several.
func cutPages(t *testing.T, r *Replay, loss Loss) (letters string) {
	t.Helper()
	paths := []string{filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")}
	if err := r.Cut(loss, chance, paths...); err != nil {
		t.Fatal(err)
	}
	var image []byte
	for _, path := range paths {
		part, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		image = append(image, part...)
	}
	for ; len(image) > 0; image = image[page:] {
		if bytes.Count(image[:page], image[:1]) == page {
			letters += string(image[:1])
		} else {
			letters += "?"
		}
	}
	return letters
}
