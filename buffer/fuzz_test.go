package buffer

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"touchline"
	"touchline/wire"
)

// smallImage returns the files of a small buffer that lost its power: blocks
// in the database and in the log, on one page and on several. They are the same
// each time but for times and checksums, so that a failing input fails again.
func smallImage(f testing.TB) *image {
	f.Helper()
	img := &image{files: map[string][]byte{}, has: map[touchline.Position]int{}}
	opts := testOptions(f)
	next := 0
	for opening, counts := range [][]int{{1, 10, 300}, {5, 1, 250, 2}} {
		b, err := Open(context.Background(), opts, slog.New(slog.DiscardHandler))
		if err != nil {
			f.Fatal(err)
		}
		delete(b.known.index, b.epoch)
		b.epoch = touchline.Epoch{0xee, byte(opening)}
		b.known.uuids[b.known.current()], b.known.index[b.epoch] = b.epoch, b.known.current()
		go func() { _ = b.Run(context.Background()) }()
		seq := uint64(1)
		for _, count := range counts {
			mustAppend(f, b, noisy(next, count))
			for range count {
				img.has[touchline.Position{Epoch: b.epoch, Seq: seq}] = next
				next++
				seq++
			}
		}
		if opening == 1 {
			for _, suffix := range []string{"", "-wal"} {
				if img.files[suffix], err = os.ReadFile(filepath.Join(opts.Dir, databaseName+suffix)); err != nil {
					f.Fatal(err)
				}
			}
		}
		if err := b.Close(); err != nil {
			f.Fatal(err)
		}
	}
	return img
}

// patched applies an input to the files: each 8 bytes are a file (one bit), a
// place in it, how many bytes change, and by what. A length of 255 ends the
// file there.
func (img *image) patched(patch []byte) *image {
	img = img.clone()
	for ; len(patch) >= 8; patch = patch[8:] {
		suffix := []string{"", "-wal"}[patch[0]&1]
		content := img.files[suffix]
		if len(content) == 0 {
			continue
		}
		at := int(binary.BigEndian.Uint32(patch[1:]) % uint32(len(content)))
		if patch[5] == 255 {
			img.files[suffix] = content[:at]
			continue
		}
		for i := range min(1+int(patch[5]), len(content)-at) {
			content[at+i] ^= patch[6] + byte(i)*patch[7]
		}
	}
	return img
}

func patch(file byte, at uint32, count, by, step byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{file}, at), count, by, step)
}

// FuzzOpen damages the files of a buffer in any way and opens them: that never
// fails, and what comes out was appended so, each sample once.
func FuzzOpen(f *testing.F) {
	img := smallImage(f)
	f.Add([]byte{})
	random := rand.New(rand.NewPCG(1, 2))
	for page := range uint32(len(img.db()) / pageBytes) {
		f.Add(patch(0, page*pageBytes+uint32(random.IntN(16)), 3, 0xff, 0))
	}
	f.Add(patch(0, 20, 0, 1, 0))
	f.Add(patch(0, 60, 3, 1, 0))
	f.Add(patch(0, 0, 255, 0, 0))
	f.Add(patch(1, 40, 200, 1, 7))
	f.Add(append(patch(1, 24, 7, 5, 0), patch(0, pageBytes, 255, 0, 0)...))
	f.Fuzz(func(t *testing.T, change []byte) {
		dir, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		for suffix, content := range img.patched(change).files {
			if err := os.WriteFile(filepath.Join(dir, databaseName+suffix), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		opts := testOptions(t)
		opts.Dir = dir
		b, blocks := recoveredQuietly(t, opts)
		img.got(t, blocks)
		if err := b.Append(context.Background(), numbered(0, 1)); err != nil {
			t.Errorf("append: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzInspect looks at any two files as a database and its log: it says what
// they are, and reading them page by page ends.
func FuzzInspect(f *testing.F) {
	img := smallImage(f)
	f.Add(img.db()[:3*pageBytes], img.log()[:logHeadBytes+2*frameBytes])
	f.Add(img.db()[:pageBytes], []byte{})
	f.Add(img.db()[:100], img.log()[:logHeadBytes])
	f.Add([]byte{}, img.log()[:logHeadBytes+frameBytes])
	f.Add([]byte("SQLite format 3\x00"), []byte{0x37, 0x7f, 6, 0x82})
	newer := sqlFile(f, img.db(), append(later("7.0.0"), "PRAGMA wal_checkpoint(TRUNCATE)")...)[""]
	f.Add(newer[:12*pageBytes], []byte{})
	path := filepath.Join(memoryFolder(f), databaseName)
	f.Fuzz(func(t *testing.T, db, log []byte) {
		for suffix, content := range map[string][]byte{"": db, "-wal": log} {
			if err := os.WriteFile(path+suffix, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found, err := inspect(path)
		if err != nil || found.kind != sound && found.why == "" {
			t.Fatalf("%+v, %v", found, err)
		}
		raw, err := openRaw(path)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.close()
		for schema := range uint32(schemaVersion + 2) {
			if needs := raw.needs(schema); needs != "" && !touchline.IsRelease(needs) {
				t.Fatalf("schema %d needs %q", schema, needs)
			}
		}
		v := salvage{src: raw, whole: true}
		roots := v.roots()
		v.readEpochs(roots)
		v.readTally(roots["tally"])
		seen := 0
		_ = v.walk(roots["block"], 0, func(*cell) error { seen++; return nil })
		if most := (len(db) + len(log) + pageBytes) / 3; seen > most {
			t.Errorf("%d entries in %d bytes", seen, len(db)+len(log))
		}
	})
}

// FuzzReadLog reads any log: what is in force ends with a commit.
func FuzzReadLog(f *testing.F) {
	log := smallImage(f).log()
	f.Add(log[:logHeadBytes+4*frameBytes], uint32(3))
	f.Add(log[:logHeadBytes+2*frameBytes], uint32(1<<32-1))
	f.Add(log[:logHeadBytes+frameBytes-1], uint32(0))
	f.Fuzz(func(t *testing.T, log []byte, pages uint32) {
		l, err := readLog(bytes.NewReader(log), int64(len(log)), pages)
		if err != nil {
			t.Fatal(err)
		}
		if l.inForce > len(l.frames) || l.inForce > 0 && !l.frames[l.inForce-1].commit {
			t.Fatalf("%d of %d frames are in force", l.inForce, len(l.frames))
		}
		for page, frames := range l.byPage {
			if i := l.version(page, len(l.frames)); i != int(frames[len(frames)-1]) {
				t.Fatalf("page %d is in frame %d, want %v", page, i, frames)
			}
		}
	})
}

// FuzzPage reads any page of a tree and any record of it.
func FuzzPage(f *testing.F) {
	img := smallImage(f)
	for n := 1; n*pageBytes < len(img.db()); n++ {
		f.Add(img.db()[n*pageBytes:][:pageBytes])
	}
	db, err := os.Create(filepath.Join(memoryFolder(f), "pages"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { db.Close() })
	if _, err := db.Write(img.db()); err != nil {
		f.Fatal(err)
	}
	raw := &rawFile{db: db, pages: uint32(len(img.db()) / pageBytes), log: &rawLog{}}
	v := salvage{src: raw}
	f.Fuzz(func(t *testing.T, data []byte) {
		page := make([]byte, pageBytes)
		copy(page, data)
		if _, err := db.WriteAt(page, pageBytes); err != nil { // overflow pages may be this one
			t.Fatal(err)
		}
		_ = raw.live().cells(2, page, func(c *cell) {
			if len(c.record) > maxRecordBytes {
				t.Errorf("a record of %d bytes", len(c.record))
			}
			for _, wide := range []int{1, 2, 5, 7} {
				columns(c.record, make([]column, wide))
			}
			v.epochIn(c)
		})
	})
}

// FuzzAsideName reads names in the data folder: what is taken for a file that
// was set aside is named exactly so.
func FuzzAsideName(f *testing.F) {
	for _, name := range []string{
		"buffer.db.damaged-20261122T203015Z", "buffer.db.newer-2-20261122T203015Z-3", "buffer.db.newer-02-20261122T203015Z",
		"buffer.db.damaged-20261122T203015Z.json", "buffer.db.damaged-20269999T203015Z", "buffer.db.-", "buffer.db.taken-20261122T203015Z-1",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := parseAside(name)
		if ok && databaseName+"."+a.name() != filepath.Base(name) {
			t.Errorf("%q is read as %q", name, a.name())
		}
	})
}

// recoveredQuietly is recovered without a log, for thousands of openings.
func recoveredQuietly(t *testing.T, opts Options) (*Buffer, []wire.Block) {
	t.Helper()
	return recoveredWith(t, opts, slog.New(slog.DiscardHandler))
}
