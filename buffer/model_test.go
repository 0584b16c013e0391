package buffer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"touchline"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// A model is what a buffer should hold, and the buffer that is driven beside
// it. Each action leaves both in agreement.
type model struct {
	t     *rapid.T
	root  string
	disk  *faultvfs.Disk
	opts  Options
	clock *testClock
	free  atomic.Int64 // bytes on the disk
	b     *Buffer
	ended chan error

	next   int // number of the next sample
	blocks []modelBlock
	acked  map[touchline.Epoch]*touchline.Ranges // not yet written down as marks
	lacks  map[touchline.Epoch]*touchline.Ranges // that the cloud lost, not yet written down
	cloud  map[touchline.Epoch]*touchline.Ranges // what the cloud has
	losses map[uint64]wire.Lost                  // announced, not confirmed
	openAt int                                   // openings
	handed uint64                                // number of this epoch up to which blocks were handed out

	stamped map[int]bool    // samples
	known   map[int]int64   // samples in the window of repeats → running ms
	repeats uint64          // that were dropped since it was opened
	now     touchline.Clock // the gateway's
	boots   []modelBoot     // oldest first
	found   *modelCounts
}

// A modelBlock is one that is in the file, oldest first.
type modelBlock struct {
	wire.Block
	samples []int // in the block's order
	clock   touchline.Clock
	marked  bool  // as stored
	at      int64 // …then
}

func (block *modelBlock) place() blockAt { return blockAt{block.Epoch, block.First} }

// modelCounts says how much was tried.
type modelCounts struct {
	actions, crashes, merged, mergesFailed, lacked, repeats, corrected, faults, kept, evicted int
}

func newModel(t *rapid.T, root string, found *modelCounts) *model {
	m := &model{t: t, root: root, clock: new(testClock), found: found,
		acked: make(map[touchline.Epoch]*touchline.Ranges), lacks: make(map[touchline.Epoch]*touchline.Ranges),
		cloud: make(map[touchline.Epoch]*touchline.Ranges), losses: make(map[uint64]wire.Lost), stamped: make(map[int]bool),
		now: touchline.Clock{Boot: touchline.Boot{1}}}
	m.free.Store(1 << 40)
	// Nothing happens by itself.
	m.opts = Options{MaxBytes: 1 << 30, MaxAge: time.Hour, FreeReserve: 1 << 20, WhenFull: EvictOldest,
		KeepStored: rapid.SampledFrom([]time.Duration{0, 20 * time.Minute}).Draw(t, "keep stored"), KeepAtLeast: 5 * time.Minute,
		RepeatWindow: 5 * time.Minute, RepeatBytes: 8 << 20, Uptime: m.clock.elapsed,
		ballast: 64 << 10, clock: m.clock.elapsed, free: func(string) (int64, error) { return m.free.Load(), nil }, tick: 24 * time.Hour}
	return m
}

func (m *model) open(dir string) {
	var err error
	if m.disk, err = faultvfs.New(defaultVFS); err != nil {
		m.t.Fatal(err)
	}
	m.opts.Dir, m.opts.vfs = dir, m.disk.Name()
	for i := range m.boots {
		m.boots[i].again = false // known to the last opening only
	}
	if m.b, err = Open(context.Background(), m.opts, slog.New(slog.DiscardHandler)); err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.b.opts.MaxBytes = 30_000 // below what Open allows, so that it matters
	m.ended = make(chan error, 1)
	go func(b *Buffer, ended chan error) { ended <- b.Run(context.Background()) }(m.b, m.ended)
	if err := m.b.Append(context.Background(), nil); err != nil { // Run has begun
		m.t.Fatal(err)
	}
	m.openAt++
	m.handed, m.repeats = 0, 0
}

func (m *model) close() {
	if m.b == nil {
		return
	}
	if err := errors.Join(m.b.Close(), <-m.ended); err != nil {
		m.t.Errorf("close: %v", err)
	}
	m.disk.Close()
	m.b = nil
}

// A modelGroup is samples that are handed over together.
type modelGroup struct {
	samples []int
	told    int // position of the disk's log at which it was acknowledged
	err     error
}

// groups makes groups of samples that were never handed over.
func (m *model) groups(sizes []int) []*modelGroup {
	var groups []*modelGroup
	for _, size := range sizes {
		g := new(modelGroup)
		for range size {
			g.samples = append(g.samples, m.next)
			m.next++
		}
		groups = append(groups, g)
	}
	return groups
}

// append hands over groups, those with a clock stamped in part, and waits for
// their answers.
func (m *model) append(groups []*modelGroup, clock *touchline.Clock) {
	var answered sync.WaitGroup
	for _, g := range groups {
		var samples []touchline.Sample
		for _, n := range g.samples {
			s := sampleNumber(n)
			s.Stamped = m.stamped[n]
			samples = append(samples, s)
		}
		answered.Add(1)
		if err := m.b.AppendAsync(context.Background(), touchline.Arrival{Samples: samples, Clock: clock}, func(err error) {
			g.told, g.err = m.disk.Now(), err
			answered.Done()
		}); err != nil {
			m.t.Fatal(err)
		}
	}
	answered.Wait()
}

// Append hands over some groups at once, among them samples that were there
// before, under the gateway's clock or with times of their own.
func (m *model) Append(t *rapid.T) {
	groups := m.groups(rapid.SliceOfN(rapid.IntRange(1, 400), 1, 4).Draw(t, "samples"))
	var clock *touchline.Clock
	if rapid.Bool().Draw(t, "stamps") {
		now := m.now
		clock = &now
		for _, g := range groups {
			for _, n := range g.samples {
				m.stamped[n] = n%3 == 0
			}
		}
	}
	for _, g := range groups {
		if m.next > len(g.samples) && rapid.Bool().Draw(t, "repeats") {
			first := rapid.IntRange(max(g.samples[0]-2000, 0), g.samples[0]).Draw(t, "from")
			for n := first; n < min(first+50, g.samples[0]); n++ {
				g.samples = append(g.samples, n)
			}
		}
	}
	m.append(groups, clock)
	var came []int
	for _, g := range groups {
		if g.err != nil {
			t.Fatalf("append: %v", g.err)
		}
		came = append(came, m.fresh(g.samples)...)
	}
	if clock != nil {
		m.doubt(came)
	}
	m.adopt(came, nil)
}

// Read reads from any position, and wants just what follows there.
func (m *model) Read(t *rapid.T) {
	var after touchline.Position
	from := 0
	if len(m.blocks) > 0 && rapid.Bool().Draw(t, "from within") {
		i := rapid.IntRange(0, len(m.blocks)-1).Draw(t, "after")
		after, from = touchline.Position{Epoch: m.blocks[i].Epoch, Seq: m.blocks[i].Last()}, i+1
	}
	var want []wire.Block
	for i := from; i < len(m.blocks); i++ {
		if !m.isStored(&m.blocks[i]) {
			want = append(want, m.blocks[i].Block)
		}
	}
	maxBytes := rapid.IntRange(1, 20_000).Draw(t, "bytes")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if len(want) == 0 {
		cancel() // it would wait
	}
	got, err := m.b.Next(ctx, after, maxBytes)
	if len(want) == 0 {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%d blocks are read where there are none (%v)", len(got), err)
		}
		return
	}
	if err != nil || len(got) == 0 || len(got) > len(want) {
		t.Fatalf("read %d blocks of %d (%v)", len(got), len(want), err)
	}
	size := 0
	for i := range got {
		if got[i].Epoch != want[i].Epoch || got[i].First != want[i].First || got[i].CRC != want[i].CRC {
			t.Fatalf("block %d is %s/%d, want %s/%d", i, got[i].Epoch, got[i].First, want[i].Epoch, want[i].First)
		}
		size += len(got[i].Data)
		if got[i].Epoch == m.b.epoch {
			m.handed = max(m.handed, got[i].Last())
		}
	}
	if size > maxBytes && len(got) > 1 {
		t.Fatalf("%d blocks of %d bytes, of which %d were asked for", len(got), size, maxBytes)
	}
	if next := len(got); next < len(want) && next < wire.MaxBlocksPerFrame && size+len(want[next].Data) <= maxBytes {
		t.Fatalf("read %d blocks of %d bytes, and the next fits into %d", next, size, maxBytes)
	}
}

// Ack acknowledges whole blocks, parts, what is gone, what nobody was sent,
// unknown epochs.
func (m *model) Ack(t *rapid.T) {
	var stored []wire.EpochRanges
	for range rapid.IntRange(1, 5).Draw(t, "ranges") {
		epoch, r := touchline.NewEpoch(), touchline.Range{First: 1, Last: touchline.MaxSeq}
		if len(m.blocks) > 0 && rapid.IntRange(0, 9).Draw(t, "unknown") > 0 {
			i := rapid.IntRange(0, len(m.blocks)-1).Draw(t, "block")
			epoch = m.blocks[i].Epoch
			r.First = rapid.Uint64Range(max(m.blocks[i].First, 6)-5, m.blocks[i].First+1).Draw(t, "first")
			r.Last = max(r.First, rapid.Uint64Range(m.blocks[i].Last()-min(m.blocks[i].Last()-1, 1), m.blocks[i].Last()+500).Draw(t, "last"))
		}
		if last := m.highest(epoch); last > 0 {
			// Later numbers are not there to be acknowledged yet.
			r.First, r.Last = min(r.First, last), min(r.Last, last)
			addTo(m.acked, epoch, r)
			addTo(m.cloud, epoch, r)
			without(m.lacks, epoch, touchline.Ranges{r})
		}
		stored = append(stored, wire.EpochRanges{Epoch: epoch, Ranges: touchline.Ranges{r}})
	}
	for range rapid.IntRange(1, 2).Draw(t, "times") {
		if err := m.b.Ack(stored, nil); err != nil {
			t.Fatal(err)
		}
	}
	m.adopt(nil, nil)
}

// highest returns the last number of an epoch that is in the file.
func (m *model) highest(epoch touchline.Epoch) (last uint64) {
	for i := range m.blocks {
		if m.blocks[i].Epoch == epoch {
			last = max(last, m.blocks[i].Last())
		}
	}
	return last
}

// Confirm confirms losses that are announced.
func (m *model) Confirm(t *rapid.T) {
	_, lost := m.b.Held()
	var ids []uint64
	for i := range lost {
		if was, known := m.losses[lost[i].ID]; known && !slices.Equal(was.Ranges, lost[i].Ranges) {
			t.Fatalf("loss %d was announced as %v, and is as %v", lost[i].ID, was.Ranges, lost[i].Ranges)
		}
		m.losses[lost[i].ID] = lost[i]
		if rapid.Bool().Draw(t, "confirm") {
			ids = append(ids, lost[i].ID)
		}
	}
	if err := m.b.Ack(nil, ids); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		delete(m.losses, id)
	}
}

// Evict applies limits and acknowledgements, after some time.
func (m *model) Evict(t *rapid.T) {
	m.clock.advance(time.Duration(rapid.IntRange(0, 40).Draw(t, "minutes")) * time.Minute)
	m.evict()
	m.adopt(nil, nil)
	m.checkLimits()
}

func (m *model) evict() {
	if err := m.b.Evict(context.Background()); err != nil {
		m.t.Fatal(err)
	}
	m.applyBoots()
}

// checkLimits wants nothing there that is to be gone.
func (m *model) checkLimits() {
	now := m.b.clock.now()
	for i := range m.blocks {
		block := &m.blocks[i]
		if m.isStored(block) != block.marked {
			m.t.Fatalf("block %s/%d is acknowledged (%v), and marked (%v)", block.Epoch, block.First, !block.marked, block.marked)
		}
		if block.marked && block.at+m.b.keepMS() <= now {
			m.t.Fatalf("block %s/%d is stored since %d, and still there at %d", block.Epoch, block.First, block.at, now)
		}
	}
	if s := m.b.Stats(); s.Bytes+s.KeptBytes > m.b.opts.MaxBytes {
		m.t.Fatalf("%d bytes are held, above the limit", s.Bytes+s.KeptBytes)
	}
}

// Reopen ends the buffer politely, and may boot the machine.
func (m *model) Reopen(t *rapid.T) {
	dir := m.opts.Dir
	m.close()
	m.open(dir)
	m.applyBoots()
	if rapid.Bool().Draw(t, "boot") {
		m.now = touchline.Clock{Boot: touchline.Boot{1, byte(m.openAt), byte(m.openAt >> 8)}}
	}
	m.b.SetClock(m.now)
	m.adopt(nil, nil)
	m.recall()
}

// Crash cuts the power in the middle of an append or of a merge, and goes on
// with what is left: all but that.
func (m *model) Crash(t *rapid.T) {
	merging := rapid.Bool().Draw(t, "while merging")
	if merging {
		m.lowRate(t)
	}
	before := m.disk.Now()
	var groups []*modelGroup
	if merging {
		m.clock.advance(mergeSpan)
		m.onRun(func() { m.b.afterRound(true) })
	} else {
		groups = m.groups(rapid.SliceOfN(rapid.IntRange(1, 300), 1, 3).Draw(t, "samples"))
		m.append(groups, nil)
	}
	position := before + rapid.IntRange(0, 1000).Draw(t, "position")%(m.disk.Now()-before+1)
	mode := faultvfs.Mode(rapid.IntRange(0, int(faultvfs.Modes)-1).Draw(t, "mode"))
	r := m.disk.Replay()
	r.Advance(position)
	image := r.Cut(mode, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "chance"), 0)))
	m.close()
	dir := filepath.Join(m.root, strconv.Itoa(m.openAt))
	if err := errors.Join(os.Mkdir(dir, 0o700), image.Write(dir)); err != nil {
		t.Fatal(err)
	}
	m.open(dir)
	m.adopt(nil, &uncertain{groups: groups, position: position})
	m.recall()
	m.takeBoots()
	m.b.SetClock(m.now)
	m.evict()
	m.adopt(nil, nil)
	m.found.crashes++
}

// check compares what does not depend on the action.
func (m *model) check(t *rapid.T) {
	m.found.actions++
	var waiting, kept totals
	held := make(map[touchline.Epoch]bool)
	for i := range m.blocks {
		n := totals{1, int64(m.blocks[i].Count), int64(len(m.blocks[i].Data)) + blockOverheadBytes}
		if m.blocks[i].marked {
			kept.add(n)
		} else {
			waiting.add(n)
		}
		held[m.blocks[i].Epoch] = true
	}
	s := m.b.Stats()
	if got := (totals{s.Blocks, s.Samples, s.Bytes}); got != waiting || s.State != StateOK || s.Damaged != 0 {
		t.Fatalf("counted %+v, state %s, %d damaged: want %+v", got, s.State, s.Damaged, waiting)
	}
	if got := (totals{s.KeptBlocks, s.KeptSamples, s.KeptBytes}); got != kept {
		t.Fatalf("counted %+v that are kept, want %+v", got, kept)
	}
	if s.Repeats != m.repeats || s.ForgottenEarly != 0 {
		t.Fatalf("counted %d repeats, %d samples forgotten early: want %d and none", s.Repeats, s.ForgottenEarly, m.repeats)
	}
	epochs, _ := m.b.heldEpochs()
	if len(epochs) != len(held) {
		t.Fatalf("%d epochs are held, want %d", len(epochs), len(held))
	}
}

// The buffer does what a list in memory would, through crashes too.
func TestModel(t *testing.T) {
	checks := "12"
	if long() {
		checks = "300"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.steps": "60", "rapid.seed": fmt.Sprint(testSeed(t, 0))} {
		was := flag.Lookup(name).Value.String()
		t.Cleanup(func() { _ = flag.Set(name, was) })
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	var found modelCounts
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		m := newModel(t, root, &found)
		m.open(filepath.Join(root, "0"))
		defer func() { m.close() }()
		m.b.SetClock(m.now)
		m.recall()
		t.Repeat(map[string]func(*rapid.T){
			"Append":    m.Append,
			"Read":      m.Read,
			"Ack":       m.Ack,
			"Confirm":   m.Confirm,
			"Evict":     m.Evict,
			"Merge":     m.Merge,
			"Reconcile": m.Reconcile,
			"SetClock":  m.SetClock,
			"Fail":      m.Fail,
			"FillDisk":  m.FillDisk,
			"Reopen":    m.Reopen,
			"Crash":     m.Crash,
			"":          m.check,
		})
	})
	t.Logf("MEASURED buffer against its model: %d actions, %d of them crashes, %d faults of the disk; %d blocks merged, %d merges failed, %d kept blocks forgotten, %d lacked by the cloud, %d evicted, %d repeats dropped, %d clocks corrected: no difference",
		found.actions, found.crashes, found.faults, found.merged, found.mergesFailed, found.kept, found.lacked, found.evicted, found.repeats, found.corrected)
	if found.actions < 300 || slices.Contains([]int{found.crashes, found.faults, found.merged, found.mergesFailed, found.kept, found.lacked, found.evicted, found.repeats, found.corrected}, 0) {
		t.Errorf("%+v: want some of each", found)
	}
}

// Keys begin anew behind what the tally counted, also where all of that is
// gone. The model found this.
func TestOpen_CountsWhatFollowsForgottenBlocks(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 300))
	if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startBuffer(t, opts)
	mustAppend(t, b, numbered(300, 10))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if s := openBuffer(t, opts).Stats(); s.Blocks != 1 || s.Samples != 10 {
		t.Errorf("counted %d blocks and %d samples, want 1 and 10", s.Blocks, s.Samples)
	}
}

// An acknowledgement that ends within a block leaves that block to be read,
// also behind blocks that it covers. The model found this.
func TestNext_GoesOnWithABlockThatIsAcknowledgedInPart(t *testing.T) {
	opts := testOptions(t)
	opts.tick = time.Hour // it stays waiting
	b := startBuffer(t, opts)
	for i := range 3 {
		mustAppend(t, b, numbered(10*i, 10))
	}
	err := b.Ack([]wire.EpochRanges{{Epoch: b.epoch, Ranges: touchline.Ranges{{First: 1, Last: 15}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := b.Next(testContext(t), touchline.Position{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if blocks[0].First != 11 {
		t.Errorf("the first block that is read is %d, want 11: only a half of it is acknowledged", blocks[0].First)
	}
}
