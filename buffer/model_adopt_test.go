package buffer

import (
	"slices"

	"touchline"
	"touchline/wire"
)

// uncertain is what a fault leaves open: groups may be in the file or not, as
// a whole, and marks may be those of before.
type uncertain struct {
	groups   []*modelGroup
	position int // of the disk's log, up to which answers were believed
}

func addTo(sets map[touchline.Epoch]*touchline.Ranges, epoch touchline.Epoch, r touchline.Range) {
	if sets[epoch] == nil {
		sets[epoch] = new(touchline.Ranges)
	}
	sets[epoch].Add(r)
}

// without takes ranges out of a set.
func without(sets map[touchline.Epoch]*touchline.Ranges, epoch touchline.Epoch, ranges touchline.Ranges) {
	set := sets[epoch]
	if set == nil {
		return
	}
	var left touchline.Ranges
	for _, r := range *set {
		left.AddAll(ranges.Missing(r))
	}
	*set = left
}

// isStored says whether the cloud has all of a block, as far as it said.
func (m *model) isStored(block *modelBlock) bool {
	if lacks := m.lacks[block.Epoch]; lacks != nil && lacks.Overlaps(block.Range()) {
		return false
	}
	acked := m.acked[block.Epoch]
	return block.marked || acked != nil && acked.Contains(block.Range())
}

// applied says whether all that the cloud said is in the file.
func (m *model) applied() bool {
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	n := m.b.acks.ranges()
	for _, set := range m.b.unstored {
		n += len(*set)
	}
	return n == 0
}

// adopt makes the file's blocks the model's, after it was checked that each
// that came is of the samples given, or of blocks that it replaces, and that
// each that went was replaced, acknowledged, or is recorded as lost with all
// that was older.
func (m *model) adopt(came []int, maybe *uncertain) {
	m.t.Helper()
	there, err := rawBlocks(m.b, m.b.store.readDB)
	if err != nil {
		m.t.Fatal(err)
	}
	gone := make(map[blockAt]*modelBlock, len(m.blocks))
	for i := range m.blocks {
		gone[m.blocks[i].place()] = &m.blocks[i]
	}
	want := make(map[int]int) // sample → how often
	for _, n := range came {
		want[n]++
	}
	now := make([]modelBlock, 0, len(there))
	var fresh []*modelBlock
	var freshBytes int64
	decoder := wire.NewDecoder()
	for _, raw := range there {
		block := m.decode(decoder, raw)
		old := gone[block.place()]
		switch {
		case old != nil && old.CRC == block.CRC && old.Count == block.Count:
			now = append(now, *old)
			delete(gone, block.place())
			continue
		case old != nil:
			m.checkMerged(&block, gone)
		default:
			fresh = append(fresh, &block)
			freshBytes += int64(len(block.Data)) + blockOverheadBytes
		}
		now = append(now, block)
	}
	if maybe != nil {
		m.settle(maybe, fresh, want)
	}
	for _, block := range fresh {
		for _, n := range block.samples {
			if want[n]--; want[n] < 0 {
				m.t.Fatalf("sample %d is in a new block, and was not appended now", n)
			}
		}
	}
	for n, often := range want {
		if often > 0 {
			m.t.Fatalf("sample %d, which was acknowledged, is not there", n)
		}
	}
	m.adoptMarks(now, maybe != nil)
	m.checkGone(gone, now, freshBytes)
	m.blocks = now
	if maybe != nil && maybe.position > 0 || m.applied() { // what covered a block in part is forgotten
		clear(m.acked)
		clear(m.lacks)
	}
}

// decode reads a block and what is said of it.
func (m *model) decode(decoder *wire.Decoder, raw wire.Block) modelBlock {
	block := modelBlock{Block: raw}
	if err := raw.Check(); err != nil {
		m.t.Fatalf("block %s/%d: %v", raw.Epoch, raw.First, err)
	}
	samples, err := decoder.Decode(nil, raw.Data)
	if err != nil || len(samples) != int(raw.Count) {
		m.t.Fatalf("block %s/%d has %d samples of %d (%v)", raw.Epoch, raw.First, len(samples), raw.Count, err)
	}
	if c := decoder.Attributes().Clock; c != nil {
		block.clock = c.Clock
	}
	for _, s := range samples {
		n := int(s.Time - walkBegins)
		want := sampleNumber(n)
		want.Stamped = m.stamped[n]
		if s != want {
			m.t.Fatalf("sample %d came back as %+v", n, s)
		}
		block.samples = append(block.samples, n)
	}
	return block
}

// checkMerged wants a block that has the place of others to be those, and none
// of them to have been seen. It takes them out of gone.
func (m *model) checkMerged(block *modelBlock, gone map[blockAt]*modelBlock) {
	m.t.Helper()
	series := make(map[modelSeries][]int)
	next, count := block.First, 0
	for next <= block.Last() {
		old := gone[blockAt{block.Epoch, next}]
		if old == nil || old.Last() > block.Last() {
			m.t.Fatalf("block %s/%d has %d samples, and is none of those that were there", block.Epoch, block.First, block.Count)
		}
		if old.marked || old.Last() <= m.handed {
			m.t.Fatalf("block %s/%d was seen by somebody, and changed", old.Epoch, old.First)
		}
		if old.clock != block.clock {
			m.t.Fatalf("block %s/%d of clock %v became one of clock %v", old.Epoch, old.First, old.clock, block.clock)
		}
		for _, n := range old.samples {
			k := m.seriesOf(n)
			series[k] = append(series[k], n)
		}
		delete(gone, old.place())
		next, count = old.Last()+1, count+1
	}
	for _, n := range block.samples {
		k := m.seriesOf(n)
		if of := series[k]; len(of) == 0 || of[0] != n {
			m.t.Fatalf("block %s/%d: sample %d is not where it was in its series", block.Epoch, block.First, n)
		}
		series[k] = series[k][1:]
	}
	m.found.merged += count
}

// A modelSeries is what a block keeps in order: what the gateway stamped is a
// series apart.
type modelSeries struct {
	sensor  int
	stamped bool
}

func (m *model) seriesOf(n int) modelSeries { return modelSeries{n % 3, m.stamped[n]} }

// settle looks what became of groups of which it is not known, and adds to
// want those that are there. A group that was acknowledged is.
func (m *model) settle(maybe *uncertain, fresh []*modelBlock, want map[int]int) {
	has := make(map[int]bool)
	for _, block := range fresh {
		for _, n := range block.samples {
			has[n] = true
		}
	}
	for _, g := range maybe.groups {
		if g.err == nil && g.told <= maybe.position || has[g.samples[0]] {
			for _, n := range g.samples {
				want[n]++
			}
		}
	}
}

// adoptMarks takes over what is marked as stored, after it was checked that it
// is what the cloud said, or what was marked before where that is not written
// down yet, or may have been cut.
func (m *model) adoptMarks(now []modelBlock, cut bool) {
	m.t.Helper()
	applied := m.applied()
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	for i := range now {
		block := &now[i]
		epoch := m.b.known.index[block.Epoch]
		first, last := m.b.known.bases[epoch]+int64(block.First), m.b.known.key(epoch, block.Last())
		_, marked := m.b.marks.end(first, last)
		if stored := m.isStored(block); marked != stored && (applied && !cut || marked != block.marked) {
			m.t.Fatalf("block %s/%d is marked as stored (%v), was before (%v), and the cloud has it (%v)", block.Epoch, block.First, marked, block.marked, stored)
		}
		if block.marked = marked; marked {
			block.at = m.b.marks[m.b.marks.from(first)].at
		}
	}
}

// checkGone holds what is no more in the file against what the cloud stored
// and recorded losses.
func (m *model) checkGone(gone map[blockAt]*modelBlock, now []modelBlock, freshBytes int64) {
	m.t.Helper()
	lost := make(map[touchline.Epoch]*touchline.Ranges)
	early := make(map[touchline.Epoch]*touchline.Ranges) // not for their age
	m.b.mu.Lock()
	for _, r := range m.b.lost {
		for _, part := range r.Ranges {
			addTo(lost, r.Epoch, part)
			if r.Cause != maxAge.String() {
				addTo(early, r.Epoch, part)
			}
		}
	}
	m.b.mu.Unlock()
	contains := func(sets map[touchline.Epoch]*touchline.Ranges, block *modelBlock) bool {
		return sets[block.Epoch] != nil && sets[block.Epoch].Contains(block.Range())
	}
	pressed := m.free.Load() < 1<<40 // or the limit is reached
	held := freshBytes
	for i := range m.blocks {
		held += int64(len(m.blocks[i].Data)) + blockOverheadBytes
	}
	pressed = pressed || held > m.b.opts.MaxBytes
	firstKept := slices.IndexFunc(now, func(block modelBlock) bool { return block.marked })
	for _, block := range gone {
		if !contains(lost, block) {
			m.checkForgotten(block, now, pressed)
			continue
		}
		m.found.evicted++
		if contains(early, block) && firstKept >= 0 {
			m.t.Fatalf("block %s/%d was given up while %s/%d, which the cloud has, was kept", block.Epoch, block.First, now[firstKept].Epoch, now[firstKept].First)
		}
		for i := range now {
			if set := lost[now[i].Epoch]; set != nil && set.Overlaps(now[i].Range()) {
				m.t.Fatalf("block %s/%d is recorded as lost, and there", now[i].Epoch, now[i].First)
			}
		}
		// The oldest goes first, but for what is stored.
		for i := range now {
			older := &now[i]
			if older.Epoch == block.Epoch && older.First < block.First && !older.marked {
				m.t.Fatalf("block %s/%d was evicted, and %s/%d, which is older, was not", block.Epoch, block.First, older.Epoch, older.First)
			}
		}
	}
}

// checkForgotten wants the cloud to have a block that went, and its time to
// have come, or the room to have been needed.
func (m *model) checkForgotten(block *modelBlock, now []modelBlock, pressed bool) {
	m.t.Helper()
	if !m.isStored(block) {
		m.t.Fatalf("block %s/%d is gone: nobody acknowledged it, and no loss is recorded", block.Epoch, block.First)
	}
	m.found.kept++
	if block.marked && block.at+m.b.keepMS() <= m.b.clock.now() {
		return
	}
	if !pressed {
		m.t.Fatalf("block %s/%d was stored at %d, and forgotten at %d without need", block.Epoch, block.First, block.at, m.b.clock.now())
	}
	for i := range now {
		if now[i].marked && block.marked && now[i].at < block.at {
			m.t.Fatalf("block %s/%d of %d was forgotten, and %s/%d of %d, which was stored before, was not", block.Epoch, block.First, block.at, now[i].Epoch, now[i].First, now[i].at)
		}
	}
}
