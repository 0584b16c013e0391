package buffer

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

// An image is the files of a real buffer, and what was appended to it with
// success.
type image struct {
	files map[string][]byte // by suffix: "", "-wal"
	has   map[touchline.Position]int
	wal   map[touchline.Position]bool // of has: in the log alone
}

func (img *image) clone() *image {
	c := &image{files: make(map[string][]byte), has: img.has, wal: img.wal}
	for suffix, content := range img.files {
		c.files[suffix] = bytes.Clone(content)
	}
	return c
}

func (img *image) db() []byte  { return img.files[""] }
func (img *image) log() []byte { return img.files["-wal"] }

// noisy returns samples of which each is different, and which do not compress.
func noisy(from, count int) []touchline.Sample {
	samples := numbered(from, count)
	for i := range samples {
		samples[i].Value = noise(from + i)
	}
	return samples
}

func noise(n int) touchline.Value {
	h := fnv.New64a()
	h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	return touchline.NumberValue(math.Float64frombits(h.Sum64() &^ (1 << 62)))
}

// makeImages returns the files of a buffer that was closed, and of one that
// was opened again and lost its power then: with blocks in the database and
// in the log. Blocks are of 1 to 900 samples, that is, on one page and on many.
func makeImages(t testing.TB) (closed, crashed *image) {
	t.Helper()
	opts := testOptions(t)
	opts.tick = time.Hour // upkeep, on a slow machine, would leave unused pages at the end of the file
	path := filepath.Join(opts.Dir, databaseName)
	next := 0
	fill := func(img *image, b *Buffer, blocks int) {
		seq := uint64(1)
		for i := range blocks {
			count := []int{1, 10, 40, 150, 900}[i%5]
			mustAppend(t, b, noisy(next, count))
			for range count {
				img.has[touchline.Position{Epoch: b.epoch, Seq: seq}] = next
				next++
				seq++
			}
		}
	}
	read := func(img *image) {
		for _, suffix := range []string{"", "-wal"} {
			content, err := os.ReadFile(path + suffix)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if len(content) > 0 {
				img.files[suffix] = content
			}
		}
	}
	closed = &image{files: map[string][]byte{}, has: map[touchline.Position]int{}}
	for range 2 {
		b := startBuffer(t, opts)
		fill(closed, b, 60)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Err(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	read(closed)
	if len(closed.log()) != 0 {
		t.Fatalf("the log of a closed file has %d bytes", len(closed.log()))
	}
	crashed = &image{files: map[string][]byte{}, has: maps.Clone(closed.has), wal: map[touchline.Position]bool{}}
	b := startBuffer(t, opts)
	fill(crashed, b, 60)
	for at := range crashed.has {
		if at.Epoch == b.epoch {
			crashed.wal[at] = true
		}
	}
	read(crashed)
	if len(crashed.log()) < 100*frameBytes {
		t.Fatalf("the log has %d bytes only", len(crashed.log()))
	}
	return closed, crashed
}

// write puts the files into a new folder.
func (img *image) write(t testing.TB) Options {
	t.Helper()
	opts := testOptions(t)
	for suffix, content := range img.files {
		if err := os.WriteFile(filepath.Join(opts.Dir, databaseName+suffix), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return opts
}

// raw opens the files of an image to find places in it.
func (img *image) raw(t testing.TB) *rawFile {
	t.Helper()
	f, err := openRaw(filepath.Join(img.write(t).Dir, databaseName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.close() })
	return f
}

// page returns a page of the database that pick accepts, by its content.
func (img *image) page(t testing.TB, pick func(n int, page []byte) bool) []byte {
	t.Helper()
	for n := 2; n*pageBytes <= len(img.db()); n++ {
		if page := img.db()[(n-1)*pageBytes:][:pageBytes]; pick(n, page) {
			return page
		}
	}
	t.Fatal("there is no such page")
	return nil
}

// blockRoot returns the page at which the tree of blocks begins.
func (img *image) blockRoot(t testing.TB) []byte {
	v := salvage{src: img.raw(t), whole: true}
	n := v.roots()["block"]
	return img.db()[(n-1)*pageBytes:][:pageBytes]
}

// got reads all that a buffer hands out, and fails for anything that was not
// appended exactly so, or comes twice.
func (img *image) got(t testing.TB, blocks []wire.Block) map[touchline.Position]bool {
	t.Helper()
	got := make(map[touchline.Position]bool)
	decoder := wire.NewDecoder()
	for _, block := range blocks {
		if err := block.Check(); err != nil {
			t.Fatal(err)
		}
		samples, err := decoder.Decode(nil, block.Data)
		if err != nil || len(samples) != int(block.Count) {
			t.Fatalf("%d samples of %d: %v", len(samples), block.Count, err)
		}
		for i, s := range samples {
			at := touchline.Position{Epoch: block.Epoch, Seq: block.First + uint64(i)}
			n, known := img.has[at]
			if want := noisy(n, 1)[0]; !known || s != want {
				t.Fatalf("%v is %+v, which was not appended there", at, s)
			}
			if got[at] {
				t.Fatalf("%v is there twice", at)
			}
			got[at] = true
		}
	}
	return got
}

// recovered opens a buffer and reads everything, as a service does that is
// started again when it ends, and returns it running.
func recovered(t testing.TB, opts Options) (*Buffer, []wire.Block) {
	t.Helper()
	return recoveredWith(t, opts, testLogger(t))
}

func recoveredWith(t testing.TB, opts Options, logger *slog.Logger) (*Buffer, []wire.Block) {
	t.Helper()
	for range 4 {
		b, err := Open(testContext(t), opts, logger)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- b.Run(context.Background()) }()
		blocks, err := tryReadAll(b)
		if err == nil {
			err = b.Evict(testContext(t)) // a commit, which reads other pages
		}
		if err == nil {
			t.Cleanup(func() {
				b.Close()
				if err := <-done; err != nil {
					t.Error("run:", err)
				}
			})
			return b, blocks
		}
		if b.damageFound() == nil {
			b.Close()
			t.Fatalf("reading failed, and not for damage: %v", err)
		}
		var damage *DamageError
		if ended := <-done; !errors.As(ended, &damage) {
			t.Fatalf("reading failed (%v), and Run ended with %v", err, ended)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("each start finds damage again")
	return nil, nil
}

func tryReadAll(b *Buffer) (all []wire.Block, err error) {
	var after touchline.Position
	for {
		blocks, err := b.readBehind(after, 1<<20)
		if err != nil || len(blocks) == 0 {
			return all, err
		}
		all = append(all, blocks...)
		last := blocks[len(blocks)-1]
		after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
	}
}

// contentOf returns the files of a folder whose names have the prefix.
func contentOf(t testing.TB, dir, prefix string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && !e.IsDir() {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[e.Name()] = string(content)
		}
	}
	return all
}

// wantAside fails unless exactly one file was set aside, as it was before.
func (img *image) wantAside(t testing.TB, opts Options, s Stats, want kind) {
	t.Helper()
	if want == sound {
		if len(s.Aside) != 0 {
			t.Errorf("%+v was set aside, want nothing", s.Aside)
		}
		return
	}
	if len(s.Aside) != 1 || s.Aside[0].Kind != string(want) {
		t.Fatalf("set aside: %+v, want one file as %s", s.Aside, want)
	}
	a := s.Aside[0]
	if a.Why == "" || a.When.IsZero() {
		t.Errorf("%+v does not say why and when", a)
	}
	img.wantUnchanged(t, a)
}

func (img *image) wantUnchanged(t testing.TB, a Aside) {
	t.Helper()
	var size int64
	for suffix, before := range img.files {
		now, err := os.ReadFile(a.Path + suffix)
		if err != nil || !bytes.Equal(now, before) {
			t.Errorf("%s%s is not what it was (%d bytes, was %d; %v)", a.Path, suffix, len(now), len(before), err)
		}
		size += int64(len(before))
	}
	if a.Bytes != size {
		t.Errorf("%s is said to have %d bytes, want %d", a.Path, a.Bytes, size)
	}
}

// wantWorking fails unless the buffer takes samples, and another opening finds
// all and changes nothing that was set aside.
func (img *image) wantWorking(t testing.TB, b *Buffer, had map[touchline.Position]bool) {
	t.Helper()
	if err := b.Append(testContext(t), numbered(1_000_000, 10)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	before := contentOf(t, b.opts.Dir, databaseName+".")
	again, blocks := recovered(t, b.opts)
	if after := contentOf(t, b.opts.Dir, databaseName+"."); !maps.Equal(before, after) {
		t.Errorf("the second opening changed what was set aside: %v, was %v", slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
	}
	n := len(blocks) - 1
	if n < 0 || blocks[n].Epoch != b.epoch || blocks[n].Count != 10 {
		t.Fatalf("what was appended after the damage is not there: %d blocks", len(blocks))
	}
	if got := img.got(t, blocks[:n]); !maps.Equal(got, had) {
		t.Errorf("the second opening has %d samples, the first had %d", len(got), len(had))
	}
	again.Close()
	checkFile(t, again)
}

func fillRandom(r *rand.Rand, data []byte) []byte {
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

// sqlFile returns the files of a database that the statements make, as they
// are while it is in use.
func sqlFile(t testing.TB, base []byte, statements ...string) map[string][]byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	if base != nil {
		if err := os.WriteFile(path, base, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	files := make(map[string][]byte)
	for _, suffix := range []string{"", "-wal"} {
		if content, err := os.ReadFile(path + suffix); err == nil && len(content) > 0 {
			files[suffix] = content
		}
	}
	return files
}

func TestOpen_DamageTable(t *testing.T) {
	closed, crashed := makeImages(t)
	const all = 1.0
	flip := func(data []byte, at int) { data[at] ^= 0x10 }
	// Of blocks: those of the small tables are mostly empty.
	isLeaf := func(n int, page []byte) bool {
		return page[0] == leafTable && page[3] == 0 && page[4] > 2 && page[5] < 8
	}
	for _, test := range []struct {
		name   string
		from   *image
		damage func(t *testing.T, img *image)
		aside  kind
		least  float64 // share of the samples that must survive
		most   float64 // and that can
	}{
		{"nothing, closed", closed, func(*testing.T, *image) {}, sound, all, all},
		{"nothing, crashed", crashed, func(*testing.T, *image) {}, sound, all, all},
		{"truncated to 50 bytes", closed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:50] }, damaged, 0, 0},
		{"truncated to a page", closed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:pageBytes] }, damaged, 0, 0},
		{"truncated to a page, with its log", crashed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:pageBytes] }, damaged, 0.3, 0.6},
		{"truncated by half", closed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:len(img.db())/2] }, damaged, 0.35, 0.6},
		{"truncated by half, with its log", crashed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:len(img.db())/2] }, damaged, 0.55, 0.8},
		{"truncated by a page", closed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:len(img.db())-pageBytes] }, damaged, 0.9, 1},
		{"truncated within a page", closed, func(_ *testing.T, img *image) { img.files[""] = img.db()[:len(img.db())-100] }, damaged, 0.9, 1},
		{"zeroed header", closed, func(_ *testing.T, img *image) { clear(img.db()[:100]) }, damaged, all, all},
		{"zeroed header, with its log", crashed, func(_ *testing.T, img *image) { clear(img.db()[:100]) }, damaged, all, all},
		{"zeroed first page", closed, func(_ *testing.T, img *image) { clear(img.db()[:pageBytes]) }, damaged, all, all},
		{"flipped page size", closed, func(_ *testing.T, img *image) { flip(img.db(), 16) }, damaged, all, all},
		{"flipped file format", closed, func(_ *testing.T, img *image) { flip(img.db(), 18) }, damaged, all, all},
		{"flipped application id", closed, func(_ *testing.T, img *image) { flip(img.db(), 70) }, damaged, all, all},
		{"flipped schema version", closed, func(_ *testing.T, img *image) { flip(img.db(), 63) }, damaged, all, all},
		{"flipped schema text", closed, func(_ *testing.T, img *image) {
			flip(img.db(), bytes.Index(img.db(), []byte("CREATE TABLE block"))+3)
		}, damaged, all, all},
		{"flipped column name", closed, func(_ *testing.T, img *image) {
			flip(img.db(), bytes.Index(img.db(), []byte("committed INTEGER")))
		}, damaged, all, all},
		{"zeroed root of the blocks", closed, func(t *testing.T, img *image) { clear(img.blockRoot(t)) }, damaged, all, all},
		{"flipped child in the root of the blocks", closed, func(t *testing.T, img *image) {
			root := img.blockRoot(t)
			flip(root, int(root[12])<<8|int(root[13])+2)
		}, damaged, all, all},
		{"zeroed leaf of blocks", closed, func(t *testing.T, img *image) { clear(img.page(t, isLeaf)) }, damaged, 0.6, 0.999},
		{"flipped type of a leaf", closed, func(t *testing.T, img *image) { flip(img.page(t, isLeaf), 0) }, damaged, 0.6, 0.999},
		{"flipped number of entries of a leaf", closed, func(t *testing.T, img *image) { flip(img.page(t, isLeaf), 3) }, damaged, 0.6, 1},
		{"zeroed table of epochs", closed, func(t *testing.T, img *image) { clear(img.epochPage(t, leafTable)) }, damaged, all, all},
		{"zeroed index of epochs", closed, func(t *testing.T, img *image) { clear(img.epochPage(t, leafIndex)) }, damaged, all, all},
		{"emptied, a log", crashed, func(_ *testing.T, img *image) { img.files[""] = nil }, damaged, 0.3, 0.6},
		{"missing, a log", crashed, func(_ *testing.T, img *image) { delete(img.files, "") }, damaged, 0.3, 0.6},
		{"flipped head of the log", crashed, func(_ *testing.T, img *image) { flip(img.log(), 5) }, damaged, all, all},
		{"flipped salt in the head of the log", crashed, func(_ *testing.T, img *image) { flip(img.log(), 17) }, damaged, all, all},
		{"zeroed head of the log", crashed, func(_ *testing.T, img *image) { clear(img.log()[:logHeadBytes]) }, damaged, all, all},
		{"flipped head of a frame", crashed, func(_ *testing.T, img *image) { flip(img.log(), logHeadBytes+20*frameBytes+1) }, damaged, 0.9, 1},
		{"flipped checksum of a frame", crashed, func(_ *testing.T, img *image) { flip(img.log(), logHeadBytes+20*frameBytes+17) }, damaged, all, all},
		{"flipped page of a frame", crashed, func(_ *testing.T, img *image) { flip(img.log(), logHeadBytes+20*frameBytes+3000) }, damaged, 0.9, 1},
		{"flipped first frame", crashed, func(_ *testing.T, img *image) { flip(img.log(), logHeadBytes+3000) }, damaged, 0.9, 1},
		{"log truncated within a frame", crashed, func(_ *testing.T, img *image) { img.files["-wal"] = img.log()[:len(img.log())-1000] }, sound, 0.9, 1},
		{"random bytes", closed, func(_ *testing.T, img *image) { fillRandom(rand.New(rand.NewPCG(1, 2)), img.db()) }, damaged, 0, 0},
		{"a text", closed, func(_ *testing.T, img *image) { img.files[""] = []byte(strings.Repeat("text ", 1000)) }, damaged, 0, 0},
		{"another program's database", closed, func(t *testing.T, img *image) {
			img.files = sqlFile(t, nil, "CREATE TABLE customer (name TEXT)", "INSERT INTO customer VALUES ('x')")
		}, foreign, 0, 0},
		{"another program's database, all in its log", closed, func(t *testing.T, img *image) {
			img.files = sqlFile(t, nil, "PRAGMA page_size = 4096", "PRAGMA journal_mode = WAL", "CREATE TABLE customer (name TEXT)")
			if len(img.log()) == 0 {
				t.Fatal("there is no log")
			}
		}, foreign, 0, 0},
		{"newer schema", closed, func(t *testing.T, img *image) {
			img.files = sqlFile(t, img.db(), "CREATE TABLE more (x)", fmt.Sprintf("PRAGMA user_version = %d", schemaVersion+1), "PRAGMA wal_checkpoint(TRUNCATE)")
			delete(img.files, "-wal")
		}, newer, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			img := test.from.clone()
			test.damage(t, img)
			opts := img.write(t)
			b, blocks := recovered(t, opts)
			got := img.got(t, blocks)
			s := b.Stats()
			img.wantAside(t, opts, s, test.aside)
			share := float64(len(got)) / float64(len(img.has))
			if share < test.least || share > test.most {
				t.Errorf("%d of %d samples survived, want %.2f to %.2f", len(got), len(img.has), test.least, test.most)
			}
			if test.aside == damaged {
				a := s.Aside[0]
				if a.Samples != int64(len(got)) || a.Blocks != int64(len(blocks)) || a.State != stateSalvaged {
					t.Errorf("stats %+v, salvaged were %d samples in %d blocks", a, len(got), len(blocks))
				}
				if a.Problem == "" && share < 1 {
					t.Error("stats do not say what was wrong")
				}
			}
			if int64(len(got)) != s.Samples {
				t.Errorf("counted %d samples, handed out %d", s.Samples, len(got))
			}
			img.wantWorking(t, b, got)
		})
	}
}

// epochPage returns the page of the table of epochs, or of its index.
func (img *image) epochPage(t testing.TB, kind byte) []byte {
	var epoch touchline.Epoch
	for at := range img.has {
		epoch = at.Epoch
	}
	return img.page(t, func(_ int, page []byte) bool { return page[0] == kind && bytes.Contains(page, epoch[:]) })
}

// A damaged block in a sound file stays where it is; the rest is handed out,
// and the cloud is told once, however often the file is opened.
func TestNext_DamagedBlockIsKeptAndReportedOnce(t *testing.T) {
	closed, _ := makeImages(t)
	img := closed.clone()
	f := img.raw(t)
	var key, length int64
	v := salvage{src: f, whole: true}
	v.readEpochs(v.roots())
	_ = v.walk(v.roots()["block"], 0, func(c *cell) error {
		if n, _ := columns(c.record, make([]column, 7)); key == 0 && n == 7 && len(c.record) > 1000 {
			key, length = c.key, int64(len(c.record))
			part := bytes.Clone(c.record[100:200]) // on the leaf, of which there may be older versions
			for at := bytes.Index(img.db(), part); at >= 0; at = bytes.Index(img.db(), part) {
				img.db()[at+50] ^= 1
			}
		}
		return nil
	})
	t.Logf("damaged block %d of %d bytes", key, length)
	opts := img.write(t)
	var first wire.Lost
	for opening := range 3 {
		b, blocks := recovered(t, opts)
		if s := b.Stats(); len(s.Aside) != 0 || s.Damaged != 1 || s.State != StateOK {
			t.Fatalf("opening %d: stats %+v", opening, s)
		}
		got := img.got(t, blocks)
		_, lost := b.Held()
		if len(lost) != 1 || lost[0].Cause != "damage" || int(lost[0].Ranges.Count()) != len(img.has)-len(got) {
			t.Fatalf("opening %d: lost %+v, and %d samples of %d are handed out", opening, lost, len(got), len(img.has))
		}
		if opening == 0 {
			first = lost[0]
			if s := b.Stats(); s.DamagedSamples != first.Ranges.Count() {
				t.Errorf("counted %d samples as lost, want %d", s.DamagedSamples, first.Ranges.Count())
			}
		} else if !equalLost(lost[0], first) {
			t.Fatalf("opening %d: lost %+v, was %+v", opening, lost[0], first)
		}
		b.Close()
	}
}

func TestOpen_TakesBackANewerFile(t *testing.T) {
	_, crashed := makeImages(t)
	opts := testOptions(t)
	path := filepath.Join(opts.Dir, databaseName)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(1_000_000, 10)) // there is a buffer in use by now
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for suffix, content := range crashed.files {
		if err := os.WriteFile(path+".newer-1-20261122T120000Z"+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, blocks := recovered(t, opts)
	if blocks[0].Epoch == b.epoch || blocks[0].Count != 10 {
		t.Fatalf("what was there is not first any more: %+v", blocks[0])
	}
	if got := crashed.got(t, blocks[1:]); len(got) != len(crashed.has) {
		t.Errorf("%d of %d samples were taken back", len(got), len(crashed.has))
	}
	s := b.Stats()
	if len(s.Aside) != 1 || s.Aside[0].Path != path+".taken-20261122T120000Z" || s.Aside[0].Samples != int64(len(crashed.has)) {
		t.Fatalf("set aside: %+v", s.Aside)
	}
	crashed.wantUnchanged(t, s.Aside[0])
	b.Close()
	_, again := recovered(t, opts)
	if len(again) != len(blocks) {
		t.Errorf("%d blocks after another opening, want %d", len(again), len(blocks))
	}
}

// The power is cut before each step of setting a file aside in turn.
func TestOpen_SetsAsideWhateverStepThePowerIsCutAt(t *testing.T) {
	_, crashed := makeImages(t)
	img := crashed.clone()
	clear(img.db()[:100])
	cut := errors.New("power is cut")
	for n, done := 0, false; !done; n++ {
		opts := img.write(t)
		step := 0
		opts.steps = func(string) error {
			if step++; step > n {
				return cut
			}
			return nil
		}
		if b, err := Open(testContext(t), opts, testLogger(t)); err == nil {
			done = true
			b.Close()
		} else if !errors.Is(err, cut) {
			t.Fatal(err)
		}
		opts.steps = nil
		b, blocks := recovered(t, opts)
		if got := img.got(t, blocks); len(got) != len(img.has) {
			t.Fatalf("cut before step %d: %d of %d samples survived", n+1, len(got), len(img.has))
		}
		s := b.Stats()
		if len(s.Aside) != 1 {
			t.Fatalf("cut before step %d: set aside %+v", n+1, s.Aside)
		}
		img.wantUnchanged(t, s.Aside[0])
		b.Close()
		if done && n < 4 {
			t.Fatalf("only %d steps were seen", n)
		}
	}
}

// Bytes flipped and ranges zeroed anywhere, in one file or both.
// A power cut may tear the first page of a file that is being made, beside the
// journal of its making. That was never committed, and is no damage; but only
// that journal says so.
func TestOpen_TornMakingIsNoDamage(t *testing.T) {
	journal := func(pages uint32) []byte {
		head := make([]byte, 512) // a sector
		copy(head, journalMagic)
		binary.BigEndian.PutUint32(head[16:], pages)
		binary.BigEndian.PutUint32(head[20:], 512)
		binary.BigEndian.PutUint32(head[24:], pageBytes)
		return head
	}
	torn := make([]byte, pageBytes)
	torn[pageBytes-1] = 1
	for name, tc := range map[string]struct {
		files map[string][]byte
		want  kind
	}{
		"of its making":       {map[string][]byte{"": torn, "-journal": journal(0)}, sound},
		"of later":            {map[string][]byte{"": torn, "-journal": journal(1)}, damaged},
		"none":                {map[string][]byte{"": torn}, damaged},
		"cut short":           {map[string][]byte{"": torn, "-journal": journal(0)[:19]}, damaged},
		"beside a large file": {map[string][]byte{"": append(torn, make([]byte, madeBytes)...), "-journal": journal(0)}, damaged},
	} {
		t.Run(name, func(t *testing.T) {
			opts := (&image{files: tc.files}).write(t)
			b, blocks := recovered(t, opts)
			if len(blocks) > 0 {
				t.Errorf("%d blocks are there", len(blocks))
			}
			mustAppend(t, b, numbered(0, 5))
			aside := b.Stats().Aside
			if tc.want == sound && len(aside) > 0 || tc.want != sound && (len(aside) != 1 || aside[0].Kind != string(tc.want)) {
				t.Errorf("set aside: %+v, want %q", aside, tc.want)
			}
		})
	}
}

func TestOpen_RandomDamage(t *testing.T) {
	rounds := 60
	if os.Getenv("TOUCHLINE_TEST_LONG") == "1" {
		rounds = 2000
	}
	closed, crashed := makeImages(t)
	seed := rand.Uint64()
	if os.Getenv("TOUCHLINE_TEST_SEED") != "" {
		seed = testSeed(t, 0)
	}
	t.Logf("seed %d (TOUCHLINE_TEST_SEED=%d repeats it)", seed, seed)
	asides, survived, had := 0, 0, 0
	for round := range rounds {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		img := []*image{closed, crashed}[r.IntN(2)].clone()
		for _, suffix := range slices.Sorted(maps.Keys(img.files)) {
			data := img.files[suffix]
			for range r.IntN(4) {
				at := r.IntN(len(data))
				if r.IntN(2) == 0 {
					data[at] ^= 1 << r.IntN(8)
				} else {
					clear(data[at:min(at+1+r.IntN(8192), len(data))])
				}
			}
		}
		opts := img.write(t)
		b, blocks := recovered(t, opts)
		got := img.got(t, blocks)
		s := b.Stats()
		for i, a := range s.Aside {
			if i == 0 {
				img.wantUnchanged(t, a)
			}
			asides++
		}
		survived, had = survived+len(got), had+len(img.has)
		err := b.Append(testContext(t), numbered(1_000_000, 10))
		b.Close()
		if err != nil { // damage that only a commit met
			b, _ = recovered(t, opts)
			mustAppend(t, b, numbered(1_000_000, 10))
			b.Close()
		}
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
	t.Logf("MEASURED random damage: %d files damaged, %d set aside, %.1f %% of their samples survived, 0 wrong, 0 twice",
		rounds, asides, 100*float64(survived)/float64(had))
}
