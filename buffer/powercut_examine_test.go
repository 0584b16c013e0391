package buffer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"testing"

	"touchline"
	"touchline/wire"
)

// A breach is a promise that was broken.
type breach struct {
	promise promise
	what    string
}

type promise string

const (
	promiseOpens        promise = "the buffer opens"
	promiseSound        promise = "the file is sound"
	promiseNothingLost  promise = "no acknowledged sample is lost"
	promiseNothingNew   promise = "nothing is there that was not appended, or twice"
	promiseDense        promise = "numbers are dense"
	promiseFreshEpoch   promise = "each opening draws an epoch"
	promiseFrozen       promise = "what was handed out does not change"
	promiseLossRecorded promise = "recorded losses stay"
	promiseStored       promise = "only what the cloud has is called stored"
	promiseCounted      promise = "counters are what the file has"
	promiseGoesOn       promise = "the buffer takes samples again"
)

func (f *breach) Error() string { return string(f.promise) + ": " + f.what }

func broke(p promise, format string, args ...any) error {
	return &breach{p, fmt.Sprintf(format, args...)}
}

// An examiner opens what is left in a folder, and holds it against a ledger.
// It is used by one goroutine.
type examiner struct {
	*ledger
	dir     string
	decoder *wire.Decoder
}

// examine returns the first promise that is broken by what is in the folder
// when the power was cut at a position.
func (e *examiner) examine(at int) (err error) {
	b, err := Open(context.Background(), Options{Dir: e.dir, MaxBytes: 1 << 30, WhenFull: EvictOldest, ballast: -1}, slog.New(slog.DiscardHandler))
	if err != nil {
		return broke(promiseOpens, "%v", err)
	}
	defer func() {
		if later := b.Close(); err == nil && later != nil {
			err = broke(promiseGoesOn, "%v", later)
		}
	}()
	if set, err := filepath.Glob(filepath.Join(e.dir, databaseName+".*")); err != nil || len(set) > 0 {
		return broke(promiseSound, "taken for damaged: %v (%v)", set, err)
	}
	if err := e.examineOpened(b, at); err != nil {
		return err
	}
	return e.goOn(b)
}

// examineOpened looks at a buffer that does not run.
func (e *examiner) examineOpened(b *Buffer, at int) error {
	var integrity string
	if err := b.store.conn.QueryRowContext(context.Background(), "PRAGMA integrity_check(1)").Scan(&integrity); err != nil || integrity != "ok" {
		return broke(promiseSound, "%s (%v)", integrity, err)
	}
	blocks, err := rawBlocks(b, b.store.conn)
	if err != nil {
		return broke(promiseSound, "%v", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.epochs[b.epoch] {
		return broke(promiseFreshEpoch, "epoch %s was used before", b.epoch)
	}
	there := make(map[int]int, len(e.tried)) // times that a sample is there
	held := totals{}
	for i := range blocks {
		block := &blocks[i]
		held.add(totals{1, int64(block.Count), int64(len(block.Data)) + blockOverheadBytes})
		samples, err := e.samplesOf(block)
		if err != nil {
			return broke(promiseSound, "block %s/%d: %v", block.Epoch, block.First, err)
		}
		for _, n := range samples {
			there[n]++
			if !e.tried[n] || there[n] > 1 {
				return broke(promiseNothingNew, "sample %d is there %d times", n, there[n])
			}
		}
	}
	if held != b.held {
		return broke(promiseCounted, "the file has %+v, and %+v was counted", held, b.held)
	}
	if served, err := allServed(b); err != nil || int64(served) != int64(len(blocks))-b.kept.blocks {
		return broke(promiseSound, "%d of %d blocks can be read, %d are kept (%v)", served, len(blocks), b.kept.blocks, err)
	}
	for _, check := range []func() error{
		func() error { return e.checkLost(b, at) },
		func() error { return e.checkDense(b, blocks, at) },
		func() error { return e.checkMarks(b, blocks, at) },
		func() error { return e.checkTold(b, there, at) },
		func() error { return e.checkFrozen(b, blocks, at) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (e *examiner) samplesOf(block *wire.Block) ([]int, error) {
	if i, known := e.newest[blockAt{block.Epoch, block.First}]; known {
		if k := &e.blocks[i]; k.Count == block.Count && k.CRC == block.CRC && bytes.Equal(k.Data, block.Data) {
			return k.samples, nil
		}
	}
	return sampleNumbers(e.decoder, *block)
}

// allServed returns how many blocks readers get.
func allServed(b *Buffer) (int, error) {
	n := 0
	for after := (touchline.Position{}); ; {
		blocks, err := b.readBehind(after, 1<<20)
		if err != nil || len(blocks) == 0 {
			return n, err
		}
		n += len(blocks)
		last := &blocks[len(blocks)-1]
		after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
	}
}

// gone returns the numbers of an epoch that may be missing: what the cloud
// acknowledged before the position, and what the file records as lost.
func (e *examiner) gone(b *Buffer, at int) map[touchline.Epoch]*touchline.Ranges {
	gone := make(map[touchline.Epoch]*touchline.Ranges)
	add := func(epoch touchline.Epoch, ranges touchline.Ranges) {
		if gone[epoch] == nil {
			gone[epoch] = new(touchline.Ranges)
		}
		gone[epoch].AddAll(ranges)
	}
	for _, a := range e.acked {
		if a.position <= at {
			add(a.epoch, a.ranges)
		}
	}
	for _, r := range b.lost {
		add(r.Epoch, r.Ranges)
	}
	for _, loss := range e.lost { // confirmed, and so forgotten
		if loss.confirmed <= at {
			add(loss.Epoch, loss.Ranges)
		}
	}
	return gone
}

// checkLost wants every loss that was recorded, and not the block as well.
func (e *examiner) checkLost(b *Buffer, at int) error {
	recorded := make(map[uint64]*lostRecord, len(b.lost))
	for _, r := range b.lost {
		recorded[r.ID] = r
	}
	for id, loss := range e.lost {
		if loss.position > at || loss.confirmed <= at {
			continue
		}
		r := recorded[id]
		if r == nil {
			return broke(promiseLossRecorded, "record %d of %v is gone", id, loss.Ranges)
		}
		for _, lost := range loss.Ranges {
			if !r.Ranges.Contains(lost) {
				return broke(promiseLossRecorded, "record %d had %v, and has %v", id, loss.Ranges, r.Ranges)
			}
		}
		if loss.announced && !slices.Equal(loss.Ranges, r.Ranges) {
			return broke(promiseLossRecorded, "record %d was announced with %v, and has %v", id, loss.Ranges, r.Ranges)
		}
	}
	return nil
}

// checkDense wants each number of an epoch up to its highest, unless it is gone.
func (e *examiner) checkDense(b *Buffer, blocks []wire.Block, at int) error {
	gone := e.gone(b, at)
	lost := make(map[touchline.Epoch]*touchline.Ranges)
	for _, r := range b.lost {
		if lost[r.Epoch] == nil {
			lost[r.Epoch] = new(touchline.Ranges)
		}
		lost[r.Epoch].AddAll(r.Ranges)
	}
	has := make(map[touchline.Epoch]*touchline.Ranges)
	for i := range blocks {
		block := &blocks[i]
		if has[block.Epoch] == nil {
			has[block.Epoch] = new(touchline.Ranges)
		}
		if has[block.Epoch].Overlaps(block.Range()) {
			return broke(promiseDense, "block %s/%d overlaps another", block.Epoch, block.First)
		}
		if l := lost[block.Epoch]; l != nil && l.Overlaps(block.Range()) {
			return broke(promiseLossRecorded, "block %s/%d is recorded as lost, and there", block.Epoch, block.First)
		}
		has[block.Epoch].Add(block.Range())
	}
	for epoch, ranges := range has {
		for _, hole := range ranges.Missing(touchline.Range{First: 1, Last: (*ranges)[len(*ranges)-1].Last}) {
			if g := gone[epoch]; g == nil || !g.Contains(hole) {
				return broke(promiseDense, "epoch %s lacks %v", epoch, hole)
			}
		}
	}
	return nil
}

// checkMarks wants the cloud to have called stored what is marked so, and the
// marks to count what they cover.
func (e *examiner) checkMarks(b *Buffer, blocks []wire.Block, at int) error {
	acked := make(map[touchline.Epoch]*touchline.Ranges)
	for _, a := range e.acked {
		if a.position > at {
			continue
		}
		if acked[a.epoch] == nil {
			acked[a.epoch] = new(touchline.Ranges)
		}
		acked[a.epoch].AddAll(a.ranges)
	}
	var kept totals
	for i := range blocks {
		block := &blocks[i]
		base := b.known.bases[b.known.index[block.Epoch]]
		if _, marked := b.marks.end(base+int64(block.First), base+int64(block.Last())); !marked {
			continue
		}
		kept.add(totals{1, int64(block.Count), int64(len(block.Data)) + blockOverheadBytes})
		if set := acked[block.Epoch]; set == nil || !set.Contains(block.Range()) {
			return broke(promiseStored, "block %s/%d", block.Epoch, block.First)
		}
	}
	if kept != b.kept {
		return broke(promiseCounted, "marks cover %+v, and count %+v", kept, b.kept)
	}
	return nil
}

// checkTold wants every sample that was acknowledged.
func (e *examiner) checkTold(b *Buffer, there map[int]int, at int) error {
	var missing []int
	for n, position := range e.told {
		if position <= at && there[n] == 0 {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	gone := e.gone(b, at)
	excused := make(map[int]bool)
	for i := range e.blocks {
		k := &e.blocks[i]
		if g := gone[k.Epoch]; g != nil && g.Contains(k.Range()) {
			for _, n := range k.samples {
				excused[n] = true
			}
		}
	}
	missing = slices.DeleteFunc(missing, func(n int) bool { return excused[n] })
	if len(missing) > 0 {
		sort.Ints(missing)
		return broke(promiseNothingLost, "%d are, such as %d", len(missing), missing[0])
	}
	return nil
}

// checkFrozen wants each block that was handed out as it was.
func (e *examiner) checkFrozen(b *Buffer, blocks []wire.Block, at int) error {
	there := make(map[blockAt]*wire.Block, len(blocks))
	for i := range blocks {
		there[blockAt{blocks[i].Epoch, blocks[i].First}] = &blocks[i]
	}
	var gone map[touchline.Epoch]*touchline.Ranges
	for i := range e.blocks {
		k := &e.blocks[i]
		if k.handed > at {
			continue
		}
		now := there[blockAt{k.Epoch, k.First}]
		if now == nil {
			if gone == nil {
				gone = e.gone(b, at)
			}
			if g := gone[k.Epoch]; g == nil || !g.Contains(k.Range()) {
				return broke(promiseFrozen, "block %s/%d is gone", k.Epoch, k.First)
			}
			continue
		}
		if now.Count != k.Count || now.CRC != k.CRC || !bytes.Equal(now.Data, k.Data) {
			return broke(promiseFrozen, "block %s/%d has %d samples and CRC %08x, and had %d and %08x", k.Epoch, k.First, now.Count, now.CRC, k.Count, k.CRC)
		}
	}
	return nil
}

// goOn appends to a buffer that came back.
func (e *examiner) goOn(b *Buffer) error {
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	before := b.backlog()
	err := b.Append(context.Background(), []touchline.Sample{sampleNumber(0)})
	if err != nil {
		err = broke(promiseGoesOn, "%v", err)
	} else if now := b.Stats(); now.Blocks != before.blocks+1 {
		err = broke(promiseGoesOn, "%d blocks, with a new one %d", before.blocks, now.Blocks)
	}
	if err == nil {
		first := touchline.Position{Epoch: b.epoch}
		if blocks, next := b.Next(context.Background(), first, 1<<20); next != nil || len(blocks) != 1 || blocks[0].First != 1 {
			err = broke(promiseGoesOn, "the new epoch has %d blocks (%v)", len(blocks), next)
		}
	}
	closed := b.Close()
	if run := errors.Join(closed, <-ended); err == nil && run != nil {
		err = broke(promiseGoesOn, "%v", run)
	}
	return err
}

// memoryRoot is a file system in memory where there is one.
func memoryRoot() string {
	if _, err := os.Stat("/dev/shm"); err == nil {
		return "/dev/shm"
	}
	return os.TempDir()
}

// memoryFolder returns a folder in memory for the time of the test.
func memoryFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newExaminer(t testing.TB, l *ledger) *examiner {
	return &examiner{ledger: l, dir: memoryFolder(t), decoder: wire.NewDecoder()}
}
