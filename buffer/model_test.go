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
	b     *Buffer
	ended chan error

	next    int // number of the next sample
	blocks  []modelBlock
	acked   map[touchline.Epoch]*touchline.Ranges // since the buffer last looked at acknowledgements as a whole
	losses  map[uint64]wire.Lost                  // not confirmed
	openAt  int                                   // openings
	actions *int
}

// A modelBlock is one that is in the file, oldest first.
type modelBlock struct {
	wire.Block
	samples []int
}

func (m *model) open(dir string) {
	var err error
	if m.disk, err = faultvfs.New(defaultVFS); err != nil {
		m.t.Fatal(err)
	}
	m.opts.Dir, m.opts.vfs = dir, m.disk.Name()
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

// isAcked says whether the cloud has all of a block.
func (m *model) isAcked(block *wire.Block) bool {
	set := m.acked[block.Epoch]
	return set != nil && set.Contains(block.Range())
}

// adopt makes the file's blocks the model's, after it was checked that each
// that came is of the samples given and each that went was acknowledged, or is
// recorded as lost with all that was older.
func (m *model) adopt(came [][]int) {
	m.t.Helper()
	there, err := rawBlocks(m.b, m.b.store.readDB)
	if err != nil {
		m.t.Fatal(err)
	}
	before := make(map[blockAt]*modelBlock, len(m.blocks))
	for i := range m.blocks {
		before[blockAt{m.blocks[i].Epoch, m.blocks[i].First}] = &m.blocks[i]
	}
	want := make(map[int]bool)
	for _, group := range came {
		for _, n := range group {
			want[n] = true
		}
	}
	var now []modelBlock
	decoder := wire.NewDecoder()
	for _, block := range there {
		if old := before[blockAt{block.Epoch, block.First}]; old != nil {
			if old.CRC != block.CRC || old.Count != block.Count {
				m.t.Fatalf("block %s/%d changed", block.Epoch, block.First)
			}
			now = append(now, *old)
			delete(before, blockAt{block.Epoch, block.First})
			continue
		}
		samples, err := sampleNumbers(decoder, block)
		if err != nil {
			m.t.Fatalf("block %s/%d: %v", block.Epoch, block.First, err)
		}
		for _, n := range samples {
			if !want[n] {
				m.t.Fatalf("sample %d is in a new block, and was not appended now", n)
			}
			delete(want, n)
		}
		now = append(now, modelBlock{Block: block, samples: samples})
	}
	if len(want) > 0 {
		m.t.Fatalf("%d samples that were acknowledged are not there", len(want))
	}
	m.checkGone(before, now)
	m.blocks = now
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	if m.b.acks.ranges() == 0 { // applied: what covered a block in part is forgotten
		clear(m.acked)
	}
}

// checkGone holds what is no more in the file against acknowledgements and
// recorded losses.
func (m *model) checkGone(gone map[blockAt]*modelBlock, now []modelBlock) {
	m.t.Helper()
	lost := make(map[touchline.Epoch]*touchline.Ranges)
	m.b.mu.Lock()
	for _, r := range m.b.lost {
		if lost[r.Epoch] == nil {
			lost[r.Epoch] = new(touchline.Ranges)
		}
		lost[r.Epoch].AddAll(r.Ranges)
	}
	m.b.mu.Unlock()
	for at, block := range gone {
		set := lost[at.epoch]
		evicted := set != nil && set.Contains(block.Range())
		if !evicted && !m.isAcked(&block.Block) {
			m.t.Fatalf("block %s/%d is gone: nobody acknowledged it, and no loss is recorded", at.epoch, at.first)
		}
		if !evicted {
			continue
		}
		for i := range now {
			if set := lost[now[i].Epoch]; set != nil && set.Overlaps(now[i].Range()) {
				m.t.Fatalf("block %s/%d is recorded as lost, and there", now[i].Epoch, now[i].First)
			}
		}
		// The oldest goes first.
		for i := range m.blocks {
			older := &m.blocks[i]
			if older.Epoch == at.epoch && older.First == at.first {
				break
			}
			if gone[blockAt{older.Epoch, older.First}] == nil {
				m.t.Fatalf("block %s/%d was evicted, and %s/%d, which is older, was not", at.epoch, at.first, older.Epoch, older.First)
			}
		}
	}
}

// Append hands over some groups at once.
func (m *model) Append(t *rapid.T) {
	sizes := rapid.SliceOfN(rapid.IntRange(1, 400), 1, 4).Draw(t, "samples")
	groups, _ := m.append(sizes)
	m.adopt(groups)
}

// append returns the numbers of the samples, and at which position of the log
// each group was acknowledged.
func (m *model) append(sizes []int) (groups [][]int, told []int) {
	told = make([]int, len(sizes))
	var answered sync.WaitGroup
	for i, size := range sizes {
		var samples []touchline.Sample
		var group []int
		for range size {
			samples = append(samples, sampleNumber(m.next))
			group = append(group, m.next)
			m.next++
		}
		groups = append(groups, group)
		answered.Add(1)
		if err := m.b.AppendAsync(context.Background(), touchline.Arrival{Samples: samples}, func(err error) {
			if err != nil {
				m.t.Errorf("append: %v", err)
			}
			told[i] = m.disk.Now()
			answered.Done()
		}); err != nil {
			m.t.Fatal(err)
		}
	}
	answered.Wait()
	return groups, told
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
		if !m.isAcked(&m.blocks[i].Block) {
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
	}
	if size > maxBytes && len(got) > 1 {
		t.Fatalf("%d blocks of %d bytes, of which %d were asked for", len(got), size, maxBytes)
	}
	if next := len(got); next < len(want) && next < wire.MaxBlocksPerFrame && size+len(want[next].Data) <= maxBytes {
		t.Fatalf("read %d blocks of %d bytes, and the next fits into %d", next, size, maxBytes)
	}
}

// Ack acknowledges whole blocks, parts, what is gone, unknown epochs.
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
			if m.acked[epoch] == nil {
				m.acked[epoch] = new(touchline.Ranges)
			}
			m.acked[epoch].Add(r)
		}
		stored = append(stored, wire.EpochRanges{Epoch: epoch, Ranges: touchline.Ranges{r}})
	}
	for range rapid.IntRange(1, 2).Draw(t, "times") {
		if err := m.b.Ack(stored, nil); err != nil {
			t.Fatal(err)
		}
	}
	m.adopt(nil)
}

// highest returns the last number of an epoch that the file ever had, by its
// blocks.
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
	acked := make(map[blockAt]bool)
	for i := range m.blocks {
		acked[blockAt{m.blocks[i].Epoch, m.blocks[i].First}] = m.isAcked(&m.blocks[i].Block)
	}
	if err := m.b.Evict(context.Background()); err != nil {
		t.Fatal(err)
	}
	m.adopt(nil)
	for i := range m.blocks {
		if acked[blockAt{m.blocks[i].Epoch, m.blocks[i].First}] {
			t.Fatalf("block %s/%d is acknowledged, and still there", m.blocks[i].Epoch, m.blocks[i].First)
		}
	}
	if held := m.b.Stats().Bytes; held > m.b.opts.MaxBytes {
		t.Fatalf("%d bytes are held, above the limit", held)
	}
}

// Reopen ends the buffer politely.
func (m *model) Reopen(*rapid.T) {
	dir := m.opts.Dir
	m.close()
	m.open(dir)
	m.adopt(nil)
}

// Crash cuts the power in the middle of an append, and goes on with what is
// left: all but that append.
func (m *model) Crash(t *rapid.T) {
	before := m.disk.Now()
	groups, told := m.append(rapid.SliceOfN(rapid.IntRange(1, 300), 1, 3).Draw(t, "samples"))
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
	m.adopt(m.survivors(groups, told, position))
}

// survivors returns the groups that a power cut left: all that were
// acknowledged before it, and maybe more.
func (m *model) survivors(groups [][]int, told []int, position int) (left [][]int) {
	there, err := rawBlocks(m.b, m.b.store.readDB)
	if err != nil {
		m.t.Fatal(err)
	}
	decoder := wire.NewDecoder()
	has := make(map[int]bool)
	for _, block := range there {
		samples, err := sampleNumbers(decoder, block)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, n := range samples {
			has[n] = true
		}
	}
	for i, group := range groups {
		if told[i] <= position || has[group[0]] {
			left = append(left, group)
		}
	}
	return left
}

// check compares what does not depend on the action.
func (m *model) check(t *rapid.T) {
	*m.actions++
	var want totals
	held := make(map[touchline.Epoch]bool)
	for i := range m.blocks {
		want.add(totals{1, int64(m.blocks[i].Count), int64(len(m.blocks[i].Data)) + blockOverheadBytes})
		held[m.blocks[i].Epoch] = true
	}
	if s := m.b.Stats(); s.Blocks != want.blocks || s.Samples != want.samples || s.Bytes != want.bytes || s.State != StateOK || s.Damaged != 0 {
		t.Fatalf("counted %d blocks, %d samples, %d bytes, state %s, %d damaged: want %+v", s.Blocks, s.Samples, s.Bytes, s.State, s.Damaged, want)
	}
	epochs, _ := m.b.heldEpochs()
	if len(epochs) != len(held) {
		t.Fatalf("%d epochs are held, want %d", len(epochs), len(held))
	}
}

// The buffer does what a list in memory would, through crashes too.
func TestModel(t *testing.T) {
	checks, actions := "12", 0
	if long() {
		checks = "1000"
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.steps": "40", "rapid.seed": fmt.Sprint(testSeed(t, 0))} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	crashes := 0
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(root)
		m := &model{t: t, root: root, clock: new(testClock), actions: &actions,
			acked: make(map[touchline.Epoch]*touchline.Ranges), losses: make(map[uint64]wire.Lost)}
		// Nothing happens by itself.
		m.opts = Options{MaxBytes: 1 << 30, MaxAge: time.Hour, WhenFull: EvictOldest, ballast: -1, clock: m.clock.elapsed, tick: 24 * time.Hour}
		dir := filepath.Join(root, "0")
		m.open(dir)
		defer func() { m.close() }()
		t.Repeat(map[string]func(*rapid.T){
			"Append":  m.Append,
			"Read":    m.Read,
			"Ack":     m.Ack,
			"Confirm": m.Confirm,
			"Evict":   m.Evict,
			"Reopen":  m.Reopen,
			"Crash":   func(t *rapid.T) { m.Crash(t); crashes++ },
			"":        m.check,
		})
	})
	t.Logf("MEASURED buffer against its model: %d actions, %d of them crashes, no difference", actions, crashes)
	if actions < 200 || crashes == 0 {
		t.Errorf("%d actions, %d crashes: want more", actions, crashes)
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
