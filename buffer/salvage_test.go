package buffer

import (
	"context"
	"errors"
	"fmt"
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
	"touchline/internal/faultvfs"
)

// manyBlocks returns the files of a buffer whose salvage takes several commits.
func manyBlocks(t *testing.T) *image {
	t.Helper()
	dir := memoryFolder(t)
	opts := testOptions(t)
	opts.tick = time.Hour // or small blocks are merged on a slow machine
	opts.Dir = dir
	img := &image{files: map[string][]byte{}, has: map[touchline.Position]int{}}
	b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	seq := uint64(1)
	for n := range 3 * salvageBlocks {
		count := 1 + n%7
		if err := b.Append(t.Context(), noisy(int(seq), count)); err != nil {
			t.Fatal(err)
		}
		for range count {
			img.has[touchline.Position{Epoch: b.epoch, Seq: seq}] = int(seq)
			seq++
		}
	}
	if err := errors.Join(b.Close(), <-ended); err != nil {
		t.Fatal(err)
	}
	if img.files[""], err = os.ReadFile(filepath.Join(dir, databaseName)); err != nil {
		t.Fatal(err)
	}
	return img
}

// writeTo puts the files into a folder.
func (img *image) writeTo(t testing.TB, dir string) Options {
	t.Helper()
	for suffix, content := range img.files {
		if err := os.WriteFile(filepath.Join(dir, databaseName+suffix), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opts := testOptions(t)
	opts.Dir = dir
	return opts
}

// damageBlock changes the data of the n-th block in the tree, and returns its
// numbers. There is no other version of it.
func (img *image) damageBlock(t testing.TB, n int) touchline.Range {
	t.Helper()
	var found touchline.Range
	seen := 0
	v := salvage{src: img.raw(t), whole: true}
	v.readEpochs(v.roots())
	_ = v.walk(v.roots()["block"], 0, func(c *cell) error {
		var row [7]column
		if seen++; seen != n {
			return nil
		}
		if _, whole := columns(c.record, row[:]); !whole {
			t.Fatal("the block can't be read as it is")
		}
		first := uint64(c.key - v.candidates[0].base)
		found = touchline.Range{First: first, Last: first + uint64(row[1].number) - 1}
		for at := strings.Index(string(img.db()), string(row[6].bytes)); at >= 0; at = strings.Index(string(img.db()), string(row[6].bytes)) {
			img.db()[at+len(row[6].bytes)/2] ^= 0x10
		}
		return nil
	})
	if found.First == 0 {
		t.Fatalf("there is no block %d", n)
	}
	return found
}

// A salvage that is cut short looks at what it took again, where it had met
// damage: that may be gigabytes, and the service manager hears of each block.
func TestOpen_SalvageShowsThatItWorks(t *testing.T) {
	img := manyBlocks(t)
	img.damageBlock(t, 100)
	clear(img.db()[:64])
	opts := img.writeTo(t, memoryFolder(t))
	ctx, cut := context.WithCancel(t.Context())
	defer cut()
	signs := 0
	opts.Working = func() {
		if signs++; signs == 5*salvageBlocks/2 {
			cut()
		}
	}
	if b, err := Open(ctx, opts, slog.New(slog.DiscardHandler)); err == nil {
		_ = b.Close()
		t.Fatalf("the salvage of %d blocks ended after %d signs of work", 3*salvageBlocks, signs)
	}
	signs = math.MinInt32 // it is not cut again
	b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if signs -= math.MinInt32; signs < 3*salvageBlocks {
		t.Errorf("%d signs of work for %d blocks", signs, 3*salvageBlocks)
	}
}

// A salvage that finds too little space stops, and the next opening goes on. A
// block that the first part found damaged is told the cloud as lost when all
// has been looked at, once.
func TestOpen_SalvageGoesOnWhenThereIsSpace(t *testing.T) {
	img := manyBlocks(t)
	var lost []touchline.Range
	for _, n := range []int{100, 2 * salvageBlocks} {
		lost = append(lost, img.damageBlock(t, n))
	}
	clear(img.db()[:64])
	dir := memoryFolder(t)
	opts := img.writeTo(t, dir)
	opts.FreeReserve = 1
	free := int64(0)
	opts.free = func(string) (int64, error) { return free, nil }
	partly := 0
	for opening := 0; ; opening++ {
		b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		_, losses := b.Held()
		s := b.Stats()
		blocks := readAll(t, b)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if len(s.Aside) != 1 {
			t.Fatalf("set aside: %+v", s.Aside)
		}
		img.wantUnchanged(t, s.Aside[0])
		got := img.got(t, blocks)
		if s.Aside[0].State == statePartly {
			if partly++; partly > 2 {
				free = 1 << 40
			}
			if len(losses) > 0 {
				t.Errorf("opening %d: %v is told as lost, before all was looked at", opening, losses)
			}
			if opening > 10 {
				t.Fatal("it goes on for ever")
			}
			continue
		}
		if partly == 0 {
			t.Fatal("there was never too little space")
		}
		missing := 0
		for _, r := range lost {
			missing += int(r.Count())
		}
		if len(got) != len(img.has)-missing {
			t.Errorf("%d of %d samples were salvaged, %d are damaged", len(got), len(img.has), missing)
		}
		var told touchline.Ranges
		for _, l := range losses {
			for _, r := range l.Ranges {
				told.Add(r)
			}
		}
		if want := touchline.Ranges(lost); !slices.Equal(told, want) {
			t.Errorf("told as lost: %v, want %v", told, want)
		}
		break
	}
	t.Logf("MEASURED salvage with too little space: %d openings stopped early, 0 samples lost but the damaged", partly)
}

// A salvage that is killed is gone on with: what each kill leaves has all
// samples after the next opening, each once.
func TestOpen_SalvageGoesOnAfterAKill(t *testing.T) {
	img := manyBlocks(t)
	clear(img.db()[:64])
	dir, left := memoryFolder(t), memoryFolder(t)
	opts := img.writeTo(t, dir)
	opts.FreeReserve = 1
	kills := 0
	copyNow := func() {
		kills++
		if err := os.CopyFS(filepath.Join(left, fmt.Sprint(kills)), os.DirFS(dir)); err != nil {
			t.Error(err)
		}
	}
	// In the middle of a salvage the free space is looked at behind each commit.
	opts.free = func(string) (int64, error) { copyNow(); return 1 << 40, nil }
	opts.steps = func(string) error { copyNow(); return nil }
	b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range kills {
		opts := testOptions(t)
		opts.Dir = filepath.Join(left, fmt.Sprint(n+1))
		b, blocks := recoveredWith(t, opts, slog.New(slog.DiscardHandler))
		if got := img.got(t, blocks); len(got) != len(img.has) {
			t.Errorf("kill %d: %d of %d samples", n+1, len(got), len(img.has))
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if kills < 4 {
		t.Errorf("%d kills: the salvage is too short", kills)
	}
	t.Logf("MEASURED kills during a salvage: %d, 0 samples lost, 0 twice", kills)
}

// The power is cut at every sync boundary of a salvage.
func TestOpen_SalvageSurvivesPowerCuts(t *testing.T) {
	seed := testSeed(t, 0)
	img := smallImage(t)
	if long() {
		_, img = makeImages(t)
		img = img.clone()
	}
	clear(img.db()[:100])
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	dir := memoryFolder(t)
	opts := img.writeTo(t, dir)
	opts.vfs = disk.Name()
	b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	// What was set aside was durable before the new file was begun. Its report
	// comes later, and a power cut may leave none.
	aside := contentOf(t, dir, databaseName+".damaged-")
	maps.DeleteFunc(aside, func(name, _ string) bool { return strings.HasSuffix(name, reportSuffix) })
	points, cutDir := 0, memoryFolder(t)
	r := disk.Replay()
	for _, c := range cuts(r, seed) {
		r.Advance(c.position)
		if err := r.Cut(c.mode, rand.New(rand.NewPCG(seed, uint64(c.index)))).Write(cutDir); err != nil {
			t.Fatal(err)
		}
		for name, content := range aside {
			if err := os.WriteFile(filepath.Join(cutDir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		opts := testOptions(t)
		opts.Dir = cutDir
		b, blocks := recoveredWith(t, opts, slog.New(slog.DiscardHandler))
		if got := img.got(t, blocks); len(got) != len(img.has) {
			t.Fatalf("cut at %d, unsynced writes %s: %d of %d samples", c.position, c.mode, len(got), len(img.has))
		}
		if s := b.Stats(); len(s.Aside) != 1 {
			t.Fatalf("cut at %d, unsynced writes %s: set aside %+v", c.position, c.mode, s.Aside)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		points++
	}
	t.Logf("MEASURED power cuts during a salvage: %d crash points, 0 samples lost, 0 twice", points)
	if points < 20 {
		t.Errorf("%d crash points: want more", points)
	}
}

// What the cloud has not confirmed as lost is told it after the file was
// damaged, too, under the same number.
func TestOpen_TakesOverLostRecords(t *testing.T) {
	opts := testOptions(t)
	opts.MaxBytes = MinMaxBytes
	b := startBuffer(t, opts)
	for n := range 40 {
		mustAppend(t, b, noisy(10_000*n, 10_000))
	}
	if err := b.Evict(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, want := b.Held()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if len(want) == 0 {
		t.Fatal("nothing was evicted")
	}
	path := filepath.Join(opts.Dir, databaseName)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(content[:64])
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for opening := range 2 {
		b := openBuffer(t, opts)
		if _, lost := b.Held(); !slices.EqualFunc(lost, want, equalLost) {
			t.Errorf("opening %d: lost %v, want %v", opening, lost, want)
		}
		if s := b.Stats(); len(s.Aside) != 1 {
			t.Errorf("opening %d: set aside %+v", opening, s.Aside)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The power is cut before each step of taking a newer file back in turn.
func TestOpen_TakesBackWhateverStepThePowerIsCutAt(t *testing.T) {
	_, img := makeImages(t)
	cut := errors.New("power is cut")
	for n, done := 0, false; !done; n++ {
		opts := testOptions(t)
		newerPath := filepath.Join(opts.Dir, databaseName+".newer-1-20261122T120000Z")
		for suffix, content := range img.files {
			if err := os.WriteFile(newerPath+suffix, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		step := 0
		opts.steps = func(string) error {
			if step++; step > n {
				return cut
			}
			return nil
		}
		b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
		switch {
		case err == nil:
			done = true
			b.Close()
		case !errors.Is(err, cut):
			t.Fatal(err)
		}
		opts.steps = nil
		b, blocks := recovered(t, opts)
		if got := img.got(t, blocks); len(got) != len(img.has) {
			t.Fatalf("cut before step %d: %d of %d samples", n+1, len(got), len(img.has))
		}
		s := b.Stats()
		if len(s.Aside) != 1 || s.Aside[0].Kind != string(taken) {
			t.Fatalf("cut before step %d: set aside %+v", n+1, s.Aside)
		}
		img.wantUnchanged(t, s.Aside[0])
		b.Close()
		if done && n < 3 {
			t.Fatalf("only %d steps were seen", n)
		}
	}
}

// A folder, or a pipe, in the database's place is moved away as it is.
func TestOpen_SetsAsideWhatIsNoFile(t *testing.T) {
	opts := testOptions(t)
	path := filepath.Join(opts.Dir, databaseName)
	if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "note"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	b, blocks := recovered(t, opts)
	s := b.Stats()
	if len(s.Aside) != 1 || s.Aside[0].Kind != string(foreign) || len(blocks) > 0 {
		t.Fatalf("set aside %+v, %d blocks", s.Aside, len(blocks))
	}
	if note, err := os.ReadFile(filepath.Join(s.Aside[0].Path, "note")); err != nil || string(note) != "x" {
		t.Errorf("the folder is not what it was: %q, %v", note, err)
	}
	mustAppend(t, b, numbered(0, 1))
}

// An I/O error, wherever it comes while the buffer is opened, is an error and
// says nothing about the file.
func TestOpen_AnIOErrorSetsNothingAside(t *testing.T) {
	crashed := smallImage(t)
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	tried := 0
	for _, kind := range []faultvfs.Kind{faultvfs.Read, faultvfs.Write, faultvfs.Sync} {
		for n := 1; ; n++ {
			opts := crashed.writeTo(t, memoryFolder(t))
			opts.vfs = disk.Name()
			disk.Fail(faultvfs.Fault{Kind: kind, N: n, ForGood: true})
			b, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
			hits := disk.Failed()
			disk.Heal()
			if err == nil {
				b.Close()
			}
			if hits == 0 {
				break
			}
			tried++
			if aside := contentOf(t, opts.Dir, databaseName+"."); len(aside) > 0 {
				t.Fatalf("%s %d fails: %v was set aside (%v)", kind, n, slices.Sorted(maps.Keys(aside)), err)
			}
			opts.vfs = ""
			b, blocks := recoveredWith(t, opts, slog.New(slog.DiscardHandler))
			if got := crashed.got(t, blocks); len(got) != len(crashed.has) {
				t.Fatalf("%s %d fails: %d of %d samples", kind, n, len(got), len(crashed.has))
			}
			b.Close()
		}
	}
	t.Logf("MEASURED I/O errors while opening: %d, 0 files set aside, 0 samples lost", tried)
	if tried < 5 {
		t.Errorf("%d were tried", tried)
	}
}
