package buffer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"touchline"
	"touchline/wire"
)

const (
	// A salvage commits, and saves how far it is, after so many blocks, their
	// bytes, or pages looked at (64 MiB): what a start that is cut short has
	// to do again is some seconds of it, however large the file.
	salvageBlocks = 1024
	salvageBytes  = 8 << 20
	salvagePages  = 64 << 20 / pageBytes

	// maxSuspects bounds the damaged blocks whose numbers are remembered:
	// beyond these they are counted with the file, and not told the cloud.
	maxSuspects = 65536
	// maxCandidates bounds the epochs that are tried for one block.
	maxCandidates = 4096
	// maxTreeDepth is what SQLite allows, too.
	maxTreeDepth = 20
)

// errNoRoom ends a salvage that would take the room of new samples.
var errNoRoom = errors.New("no room for more")

// salvage takes blocks out of a file that was set aside into a store, with
// their epochs and numbers. It only reads the file.
//
// It goes the way of the file's trees first, which is what SQLite would see.
// Where that way is damaged anywhere, it then looks for what it has not met on
// every page of the database and of the log: on lost branches, in frames
// behind a break, in older versions. A block is taken for one when its CRC
// holds, which covers its epoch and numbers, and when it decodes. What an
// older version brings back although the cloud has it is sent again as a
// repeat; numbers that are there already are never taken a second time.
type salvage struct {
	ctx  context.Context
	dst  *store
	src  *rawFile
	from *asideFile
	room func() (int64, error) // bytes that may still be taken in
	work func()                // called for each block and page

	there      epochs      // of the store
	candidates []candidate // epochs of the file, by base
	shift      int64       // from keys of the file to keys of the store
	whole      bool        // nothing damaged was met
	done       bool        // the block at hand was taken by an earlier start
	runningMS  int64
	suspects   []suspect

	decoder *wire.Decoder
	samples []touchline.Sample
	open    bool // in a transaction
	report  report
	blocks  int
	bytes   int64
	pages   int
	saveErr error // what the store said to an insertion: the end
}

// A candidate is something that looks like the row of an epoch. It is one
// when a block proves it.
type candidate struct {
	base  int64
	epoch touchline.Epoch
}

// A suspect is a block in the tree that is damaged: a loss, unless an older
// version of it is found.
type suspect struct {
	epoch            touchline.Epoch
	r                touchline.Range
	minTime, maxTime int64
}

// takeIn salvages the blocks of a file. It returns errNoRoom where it had to
// stop early; another error means that the store can't be written, or the file
// can't be read.
func (s *store) takeIn(ctx context.Context, from *asideFile, work func(), room func() (int64, error)) (err error) {
	src, err := openRaw(from.path)
	if err != nil {
		return fmt.Errorf("read %s: %w", from.path, err)
	}
	v := &salvage{ctx: ctx, dst: s, src: src, from: from, room: room, work: work, decoder: wire.NewDecoder(), report: from.report}
	v.whole = v.report.Problem == "" // an earlier start may have met damage where this one need not go
	defer func() {
		if v.open {
			_, _ = s.rollback.ExecContext(context.Background())
		}
		err = errors.Join(err, src.close())
	}()
	if err := v.prepare(); err != nil {
		return err
	}
	err = v.all()
	if errors.Is(err, errNoRoom) {
		v.report.State = statePartly
		return errors.Join(err, v.save())
	}
	if err != nil {
		return err
	}
	v.report.State = stateSalvaged
	return v.save()
}

// prepare finds out where blocks go.
func (v *salvage) prepare() error {
	state, err := v.dst.load(v.ctx)
	if err != nil {
		return err
	}
	v.there, v.shift, v.runningMS = state.epochs, state.lastKey, state.runningMS
	return nil
}

func (v *salvage) all() error {
	if v.src.log.damage != nil {
		v.damage(v.src.log.damage)
	}
	roots := v.roots()
	v.readEpochs(roots)
	if v.from.kind == newer && v.report.State == "" {
		v.report.Before = v.othersThere()
	}
	v.readTally(roots["tally"])
	if err := v.readTree(roots["block"]); err != nil {
		return err
	}
	if !v.whole || v.report.Page > 0 {
		if err := v.readEverywhere(); err != nil {
			return err
		}
	}
	if err := v.readLost(roots["lost"]); err != nil {
		return err
	}
	if err := v.readClocks(roots["clock"]); err != nil {
		return err
	}
	return v.recordSuspects()
}

// damage notes that the way of the trees can't be trusted.
func (v *salvage) damage(err error) {
	v.whole = false
	if v.report.Problem == "" {
		v.report.Problem = err.Error()
	}
}

// walk calls take for the entries of the tree at root that have a record, in
// order. Below an entry of a table it goes only where keys above after are.
func (v *salvage) walk(root uint32, after int64, take func(*cell) error) error {
	w := walker{v: v, after: after, take: take, seen: make([]byte, v.src.last()/8+1)}
	w.descend(root, 0)
	return w.err
}

type walker struct {
	v     *salvage
	after int64
	take  func(*cell) error
	seen  []byte // a bit for each page: a tree has none twice
	err   error  // of take: it ends the walk
}

func (w *walker) descend(n uint32, depth int) {
	if n == 0 || int(n/8) >= len(w.seen) || w.seen[n/8]&(1<<(n%8)) != 0 || depth > maxTreeDepth {
		w.v.damage(fmt.Errorf("page %d has no place in a tree", n))
		return
	}
	w.seen[n/8] |= 1 << (n % 8)
	page := make([]byte, pageBytes)
	live := w.v.src.live()
	if err := live.read(n, page); err != nil {
		w.v.damage(err)
		return
	}
	table := page[treeHead(n)] == interiorTable
	err := live.cells(n, page, func(c *cell) {
		if w.err == nil && c.left != 0 && !(table && c.key <= w.after) {
			w.descend(c.left, depth+1)
		}
		if w.err == nil && !table && (c.left == 0 || c.record != nil) {
			w.err = w.take(c)
		}
	})
	if err != nil {
		w.v.damage(err)
	}
}

// roots returns where the trees begin, by name.
func (v *salvage) roots() map[string]uint32 {
	roots := make(map[string]uint32)
	_ = v.walk(1, 0, func(c *cell) error {
		var row [5]column // type, name, table, root, text
		if _, whole := columns(c.record, row[:]); whole && row[3].number > 0 && row[3].number <= math.MaxUint32 {
			roots[string(row[1].bytes)] = uint32(row[3].number)
		}
		return nil
	})
	return roots
}

// readEpochs reads the table and its index, of which either may be damaged.
func (v *salvage) readEpochs(roots map[string]uint32) {
	for _, name := range []string{"epoch", "sqlite_autoindex_epoch_1"} {
		_ = v.walk(roots[name], math.MinInt64, func(c *cell) error {
			v.epochIn(c)
			return nil
		})
	}
	v.sortCandidates()
}

// epochIn looks whether a record is a row of the table of epochs (NULL for
// the key, and 16 bytes) or an entry of its index (16 bytes, and the key).
func (v *salvage) epochIn(c *cell) {
	var row [2]column
	if _, whole := columns(c.record, row[:]); !whole {
		return
	}
	if row[0].blob {
		row[0], row[1] = row[1], row[0]
		c.key = row[0].number
	}
	var found candidate
	if len(row[1].bytes) != len(found.epoch) || row[0].blob || c.key < 0 || c.key > math.MaxInt64/4 {
		return
	}
	found.base = c.key
	copy(found.epoch[:], row[1].bytes)
	if len(v.candidates) < maxCandidates {
		v.candidates = append(v.candidates, found)
	}
}

func (v *salvage) sortCandidates() {
	slices.SortFunc(v.candidates, func(a, b candidate) int {
		if a.base != b.base {
			return cmp.Compare(a.base, b.base)
		}
		return slices.Compare(a.epoch[:], b.epoch[:])
	})
	v.candidates = slices.Compact(v.candidates)
	for _, c := range v.candidates { // a salvage that is gone on with
		if i, known := v.there.index[c.epoch]; known {
			v.shift = v.there.bases[i] - c.base
		}
	}
}

// othersThere says whether the store has epochs that are not of this file, as
// one that was in use meanwhile does.
func (v *salvage) othersThere() bool {
	return slices.ContainsFunc(v.there.uuids, func(epoch touchline.Epoch) bool {
		return !slices.ContainsFunc(v.candidates, func(c candidate) bool { return c.epoch == epoch })
	})
}

// readTally takes over the running time, so that ages go on.
func (v *salvage) readTally(root uint32) {
	_ = v.walk(root, math.MinInt64, func(c *cell) error {
		var row [6]column
		if _, whole := columns(c.record, row[:]); whole {
			v.ran(row[5].number)
		}
		return nil
	})
}

// ran notes a running time, unless it is beyond belief (a century), or ended
// before that of the store began: to go on from there would make all that is
// in the store as old, and max_age would give it up.
func (v *salvage) ran(ms int64) {
	const century = 100 * 366 * 24 * 3600 * 1000
	if ms < century && !v.report.Before {
		v.runningMS = max(v.runningMS, ms)
	}
}

// readTree takes the blocks of the tree in their order. Where an earlier start
// met damage, what it did is looked at again, to know what it found damaged:
// that is recorded as lost when all has been looked at.
func (v *salvage) readTree(root uint32) error {
	var before suspect // a damaged block whose end is not known before the next
	from := v.report.Key
	if !v.whole {
		from = 0
	}
	err := v.walk(root, from, func(c *cell) error {
		v.done = c.key <= v.report.Key // by an earlier start, or out of order and found by its page
		if v.done && from > 0 {
			return nil
		}
		if before.r.First != 0 {
			v.suspect(before, c.key)
			before = suspect{}
		}
		if v.blockIn(c) == nil {
			before = v.suspectIn(c)
			v.damage(fmt.Errorf("block %d does not hold", c.key))
		}
		return v.pace(func() { v.report.Key = max(v.report.Key, c.key) })
	})
	v.done = false
	if before.r.First != 0 {
		v.suspect(before, math.MaxInt64)
	}
	if err == nil {
		err = v.saveErr
	}
	return err
}

// readEverywhere takes what is on any page, in any version.
func (v *salvage) readEverywhere() error {
	last := v.src.last()
	page := make([]byte, pageBytes)
	everywhere := func(from uint32, take func(view, uint32) error) error {
		for n := max(from, 1); n <= last; n++ {
			// The youngest version first: what is behind the break of a
			// log, then what is in force, then the database's.
			for _, frame := range slices.Backward(v.src.log.byPage[n]) {
				if v.src.log.readFrame(int(frame), page) == nil {
					if err := take(view{f: v.src, frames: v.src.log.end(int(frame))}, n); err != nil {
						return err
					}
				}
			}
			if v.src.readPage(n, page) != nil {
				continue
			}
			for _, frames := range []int{v.src.log.inForce, 0} {
				if err := take(view{f: v.src, frames: frames}, n); err != nil {
					return err
				}
			}
		}
		return nil
	}
	_ = everywhere(1, func(at view, n uint32) error {
		if kind := page[treeHead(n)]; kind == leafTable || kind == leafIndex || kind == interiorIndex {
			_ = at.cells(n, page, v.epochIn)
		}
		return nil
	})
	v.sortCandidates()
	return everywhere(v.report.Page, func(at view, n uint32) (err error) {
		if page[treeHead(n)] == leafTable {
			_ = at.cells(n, page, func(c *cell) { v.blockIn(c) })
		}
		return v.pace(func() { v.report.Page = n })
	})
}

// treeHead is where the head of a b-tree page is.
func treeHead(n uint32) int {
	if n == 1 {
		return 100
	}
	return 0
}

// blockIn takes the block in a cell, if it is one that holds. It returns its
// epoch then, whether it was taken or is there already.
func (v *salvage) blockIn(c *cell) *candidate {
	var row [7]column // NULL for the key, count, min_time, max_time, crc, committed, data
	if _, whole := columns(c.record, row[:]); !whole || !row[6].blob || row[1].number < 1 || row[1].number > wire.MaxBlockSamples {
		return nil
	}
	block := wire.Block{Count: uint32(row[1].number), CRC: uint32(row[4].number), Data: row[6].bytes}
	for i := v.below(c.key) - 1; i >= 0; i-- {
		of := &v.candidates[i]
		block.Epoch, block.First = of.epoch, uint64(c.key-of.base)
		if block.Check() != nil {
			continue
		}
		samples, err := v.decoder.Decode(v.samples[:0], block.Data)
		if err != nil || len(samples) != int(block.Count) {
			return nil
		}
		v.samples = samples
		if err := v.take(of, &block, runningOf(row[5].number)); err != nil && v.saveErr == nil {
			v.saveErr = err
		}
		clear(samples) // lets go of the strings
		return of
	}
	return nil
}

// below returns how many candidates have a base below key.
func (v *salvage) below(key int64) int {
	i, _ := slices.BinarySearchFunc(v.candidates, key, func(c candidate, key int64) int { return cmp.Compare(c.base, key) })
	return i
}
