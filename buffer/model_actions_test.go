package buffer

import (
	"context"
	"errors"
	"slices"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"
	"pgregory.net/rapid"

	"touchline"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// onRun calls f in the goroutine of Run, after a commit.
func (m *model) onRun(f func()) {
	m.t.Helper()
	done := make(chan error, 1)
	m.b.mu.Lock()
	m.b.waiting.evicts = append(m.b.waiting.evicts, func(err error) { f(); done <- err })
	m.b.mu.Unlock()
	signal(m.b.work)
	if err := <-done; err != nil {
		m.t.Fatal(err)
	}
	m.applyBoots()
}

// Merge does what an idle second does, after some time. Its commit may fail,
// and then take place or not.
func (m *model) Merge(t *rapid.T) {
	m.lowRate(t)
	m.clock.advance(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
	fault := rapid.IntRange(0, 5).Draw(t, "fault")
	m.onRun(func() {
		switch fault {
		case 0:
			m.disk.Fail(faultvfs.Fault{Kind: faultvfs.Sync, N: 1})
		case 1:
			m.failOnce("commit", errors.New("the sync failed"))
		}
		m.b.afterRound(true)
		m.disk.Heal()
		m.b.opts.fault = nil
		unsure := m.b.unsure.Load()
		if unsure == 0 {
			return
		}
		m.found.mergesFailed++
		blocks, err := m.b.readBehind(touchline.Position{}, 1<<20)
		if err != nil {
			t.Errorf("what is before a failed merge is not read: %v", err)
		}
		for i := range blocks {
			if m.b.positionOf(&blocks[i]) >= unsure {
				t.Errorf("block %d is read while it is not known what it becomes", blocks[i].First)
			}
		}
	})
	m.evict()
	m.adopt(nil, nil)
	m.checkLimits()
}

// lowRate appends as a site of a low rate does: small blocks.
func (m *model) lowRate(t *rapid.T) {
	for range rapid.IntRange(0, 6).Draw(t, "small appends") {
		groups := m.groups([]int{rapid.IntRange(1, 10).Draw(t, "samples")})
		m.append(groups, nil)
		m.adopt(m.fresh(groups[0].samples), nil)
		m.clock.advance(time.Second)
	}
}

// failOnce lets a stage of a transaction with blocks fail, after it was done.
// It is called in the goroutine of Run.
func (m *model) failOnce(stage string, with error) {
	failed := false
	m.b.opts.fault = func(at string, err error) error {
		if at == stage && !failed && len(m.b.w.blocks) > 0 {
			failed = true
			return with
		}
		return err
	}
}

// Reconcile hears from a cloud that lost some of what it had.
func (m *model) Reconcile(t *rapid.T) {
	var stored []wire.EpochRanges
	for range rapid.IntRange(1, 2).Draw(t, "epochs") {
		if len(m.blocks) == 0 {
			break
		}
		block := &m.blocks[rapid.IntRange(0, len(m.blocks)-1).Draw(t, "block")]
		has := touchline.Ranges{}
		if set := m.cloud[block.Epoch]; set != nil {
			has = set.Clone()
		}
		first := rapid.Uint64Range(1, block.Last()).Draw(t, "first")
		lost := touchline.Range{First: first, Last: first + rapid.Uint64Range(0, 1000).Draw(t, "more")}
		sets := map[touchline.Epoch]*touchline.Ranges{block.Epoch: &has}
		without(sets, block.Epoch, touchline.Ranges{lost})
		m.cloud[block.Epoch] = &has
		for i := range m.blocks {
			if b := &m.blocks[i]; b.Epoch == block.Epoch && b.marked {
				for _, gap := range has.Missing(b.Range()) {
					addTo(m.lacks, b.Epoch, gap)
					m.found.lacked++
				}
			}
		}
		if acked := m.acked[block.Epoch]; acked != nil {
			var left touchline.Ranges
			for _, r := range *acked {
				var missing touchline.Ranges
				missing.AddAll(has.Missing(r))
				left.AddAll(missing.Missing(r))
			}
			*acked = left
		}
		stored = append(stored, wire.EpochRanges{Epoch: block.Epoch, Ranges: has.Clone()})
	}
	for i := range m.boots {
		m.boots[i].again = m.boots[i].confirmed && m.boots[i].best.State > touchline.ClockUnset
		m.boots[i].heard = false // it may have been heard by what is gone
	}
	if err := m.b.Reconcile(stored); err != nil {
		t.Fatal(err)
	}
	m.adopt(nil, nil)
}

// Fail lets a commit of samples fail. Its groups are there or not, as a whole;
// sent again, they are stored once.
func (m *model) Fail(t *rapid.T) {
	groups := m.groups(rapid.SliceOfN(rapid.IntRange(1, 300), 1, 3).Draw(t, "samples"))
	stage := rapid.SampledFrom([]string{"begin", "insert", "commit", "sync"}).Draw(t, "stage")
	m.fail(groups, func() {
		if stage == "sync" {
			m.disk.Fail(faultvfs.Fault{Kind: faultvfs.Sync, N: 1})
		} else {
			m.failOnce(stage, errors.New("the disk failed"))
		}
	})
}

// FillDisk lets it find the disk full: all may go, recorded. It is rare, or
// little else would be there.
func (m *model) FillDisk(t *rapid.T) {
	if rapid.IntRange(0, 3).Draw(t, "full") > 0 {
		m.Append(t)
		return
	}
	groups := m.groups([]int{rapid.IntRange(1, 300).Draw(t, "samples")})
	stage := rapid.SampledFrom([]string{"insert", "commit"}).Draw(t, "stage")
	free := rapid.Int64Range(0, 3<<20).Draw(t, "free")
	m.fail(groups, func() {
		m.failOnce(stage, sqlite3.Error{Code: sqlite3.ErrFull})
		m.free.Store(free)
		m.clock.advance(2 * freeInterval)
	})
}

// fail appends while the next commit fails, and goes on when that is over.
func (m *model) fail(groups []*modelGroup, fault func()) {
	var before, after uint64
	m.onRun(func() { before = m.b.w.nextSeq; fault() })
	m.append(groups, nil)
	if !slices.ContainsFunc(groups, func(g *modelGroup) bool { return g.err != nil }) {
		m.t.Fatal("the commit did not fail")
	}
	m.found.faults++
	at := m.b.clock.now()
	m.evict() // waits for it to be tried again
	m.free.Store(1 << 40)
	m.onRun(func() {
		m.disk.Heal()
		m.b.opts.fault = nil
		m.clock.advance(2 * freeInterval)
	})
	m.onRun(func() { m.tryBallast(); after = m.b.w.nextSeq })
	m.free.Store(0) // what was given up while it was full was given up for that
	m.adopt(nil, &uncertain{groups: groups})
	m.free.Store(1 << 40)
	var again []int
	for _, g := range groups {
		again = append(again, g.samples...)
	}
	for _, n := range again {
		if int(after-before) == len(again) || m.holds(n) {
			m.known[n] = at // it took place; what is gone again was evicted
		}
	}
	if err := m.b.Append(context.Background(), samplesOf(again)); err != nil {
		m.t.Fatal(err)
	}
	m.adopt(m.fresh(again), nil)
}

// tryBallast makes the ballast again.
func (m *model) tryBallast() {
	if err := m.b.makeBallast(); err != nil || m.b.w.ballast.missing() > 0 {
		m.t.Errorf("the ballast is not made again, and there is room: %v", err)
	}
}

func samplesOf(numbers []int) (samples []touchline.Sample) {
	for _, n := range numbers {
		samples = append(samples, sampleNumber(n))
	}
	return samples
}

// fresh returns those of some samples that the window does not have, and puts
// them there.
func (m *model) fresh(samples []int) (fresh []int) {
	oldest := m.b.clock.now() - m.b.opts.RepeatWindow.Milliseconds()
	for _, n := range samples {
		at, known := m.known[n]
		if known && at >= oldest && !m.stamped[n] {
			m.repeats++
			m.found.repeats++
			continue
		}
		m.known[n] = m.b.clock.now()
		fresh = append(fresh, n)
	}
	return fresh
}

// holds says whether the file has a sample.
func (m *model) holds(n int) bool {
	return slices.ContainsFunc(m.blocks, func(block modelBlock) bool { return slices.Contains(block.samples, n) })
}

// recall makes the window what an opening reads from the file.
func (m *model) recall() {
	m.known = make(map[int]int64)
	oldest := m.b.clock.now() - m.b.opts.RepeatWindow.Milliseconds()
	for i := range m.blocks {
		block := &m.blocks[i]
		var at int64
		key := m.b.known.bases[m.b.known.index[block.Epoch]] + int64(block.First)
		if err := m.b.store.readDB.QueryRow("SELECT committed FROM block WHERE key = ?", key).Scan(&at); err != nil {
			m.t.Fatal(err)
		}
		for _, n := range block.samples {
			if _, there := m.known[n]; at >= oldest && !there {
				m.known[n] = at
			}
		}
	}
}

// A modelBoot is a boot in which samples were stamped by a clock that nobody
// vouched for.
type modelBoot struct {
	best             touchline.Clock
	heard, confirmed bool // by the cloud; that is written down
	again            bool // to be told although it was
}

// doubt notes that samples were committed under the gateway's clock.
func (m *model) doubt(samples []int) {
	if m.now.State >= touchline.ClockSynchronised || !slices.ContainsFunc(samples, func(n int) bool { return m.stamped[n] }) ||
		slices.ContainsFunc(m.boots, func(b modelBoot) bool { return b.best.Boot == m.now.Boot }) {
		return
	}
	old := max(len(m.boots)-(maxClocks-1), 0)
	young := m.boots[old:]
	m.boots = append(slices.DeleteFunc(m.boots[:old:old], func(b modelBoot) bool { return b.confirmed }), young...)
	m.boots = append(m.boots, modelBoot{best: m.now, confirmed: true}) // a block says itself what is known now
}

// applyBoots is what the next transaction does.
func (m *model) applyBoots() {
	for i := range m.boots {
		b := &m.boots[i]
		b.confirmed = b.confirmed || b.heard
		if b.best.Boot == m.now.Boot && m.now.State > touchline.ClockUnset && m.now.State >= b.best.State && m.now != b.best {
			*b = modelBoot{best: m.now}
			m.found.corrected++
		}
	}
}

// takeBoots takes over what a power cut left: what the cloud confirmed just
// before may be told again.
func (m *model) takeBoots() {
	clocks := m.b.Clocks()
	for i := range m.boots {
		b := &m.boots[i]
		told := slices.Contains(clocks, b.best)
		b.heard, b.confirmed = b.heard && !told, b.confirmed && !told
	}
}

// SetClock makes the gateway's clock better, or sets it again; and the cloud
// confirms some of what it is told.
func (m *model) SetClock(t *rapid.T) {
	m.now.State = rapid.SampledFrom([]touchline.ClockState{touchline.ClockUnset, touchline.ClockSet, touchline.ClockSynchronised}[m.now.State:]).Draw(t, "state")
	m.now.Offset = rapid.Int64Range(0, 1<<60).Draw(t, "offset")
	m.b.SetClock(m.now)
	m.evict()
	m.adopt(nil, nil)
	var want []touchline.Clock
	for _, b := range m.boots {
		if (!b.confirmed && !b.heard || b.again) && len(want) < maxClocks {
			want = append(want, b.best)
		}
	}
	told := m.b.Clocks()
	if !slices.Equal(told, want) {
		t.Fatalf("the cloud is told the clocks %v, want %v", told, want)
	}
	for _, c := range told {
		if !rapid.Bool().Draw(t, "confirm") {
			continue
		}
		m.b.ConfirmClocks([]wire.ClockOffset{offsetOf(c)})
		for i := range m.boots {
			if m.boots[i].best == c {
				m.boots[i].heard, m.boots[i].again = true, false
			}
		}
	}
}
