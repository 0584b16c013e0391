package faultvfs

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// sector is what a disk writes as a whole: a write that a power cut tears is
// there in some of its sectors, and not in others.
const sector = 512

// A Mode says what became of the writes that no sync had covered.
type Mode uint8

// The modes. In all but Kept and Lost, chance decides for each.
const (
	Kept      Mode = iota // all reached the disk
	Lost                  // none did
	Torn                  // some did, some not, some in part
	Reordered             // some did, in another order than they were made
	Modes                 // how many there are
)

// String names the mode.
func (m Mode) String() string {
	return [Modes]string{"kept", "lost", "torn", "reordered"}[m]
}

// A Replay goes through a disk's log. Several may go through the same log at
// once, each in one goroutine.
type Replay struct {
	log   []op
	names []string // of files, by id

	at      int
	files   []content
	folder  map[string]int // name → file, durable
	changes []op           // of the folder, not yet durable
}

// content is a file's: what is surely there, and what was written since.
type content struct {
	durable []byte
	pending []pending
}

type pending struct {
	op
	dropped bool // a sync of it failed: no later one makes it durable
}

// Replay returns a replay of the log as it is now, at its beginning.
func (d *Disk) Replay() *Replay {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &Replay{log: d.log[:len(d.log):len(d.log)], files: make([]content, len(d.files)), folder: make(map[string]int)}
	for _, f := range d.files {
		r.names = append(r.names, f.name)
	}
	return r
}

// Len is the highest position.
func (r *Replay) Len() int { return len(r.log) }

// Boundaries returns the positions just before and just after each sync.
func (r *Replay) Boundaries() []int {
	var all []int
	for i := range r.log {
		if k := r.log[i].kind; k == opSync || k == opSyncFailed || k == opSyncFolder {
			all = append(all, i, i+1)
		}
	}
	return slices.Compact(all)
}

// Count says how many writes, truncations and syncs the log has.
func (r *Replay) Count() (writes, truncations, syncs int) {
	for i := range r.log {
		switch r.log[i].kind {
		case opWrite:
			writes++
		case opTruncate:
			truncations++
		case opSync:
			syncs++
		}
	}
	return writes, truncations, syncs
}

// Advance goes on to a position, which is not before the one reached: the
// power is cut when the ops with lower positions were done.
func (r *Replay) Advance(position int) {
	if position < r.at || position > len(r.log) {
		panic(fmt.Sprintf("BUG: advance from %d to %d of %d", r.at, position, len(r.log)))
	}
	for ; r.at < position; r.at++ {
		r.step(r.log[r.at])
	}
}

func (r *Replay) step(o op) {
	switch o.kind {
	case opLoad:
		r.files[o.file].durable = slices.Clone(o.data)
		r.folder[r.names[o.file]] = o.file
	case opCreate, opDelete:
		r.changes = append(r.changes, o)
	case opWrite, opTruncate:
		f := &r.files[o.file]
		f.pending = append(f.pending, pending{op: o})
	case opSync:
		f := &r.files[o.file]
		for _, p := range f.pending {
			if !p.dropped {
				f.durable = p.apply(f.durable)
			}
		}
		f.pending = nil
	case opSyncFailed:
		// As Linux does it: what could not be written counts as written.
		f := &r.files[o.file]
		for i := range f.pending {
			f.pending[i].dropped = true
		}
	case opRewrite:
		r.files[o.file] = content{durable: slices.Clone(o.data)}
	case opSyncFolder:
		for _, c := range r.changes {
			r.change(r.folder, c)
		}
		r.changes = nil
	}
}

func (r *Replay) change(folder map[string]int, o op) {
	if o.kind == opCreate {
		folder[r.names[o.file]] = o.file
	} else {
		delete(folder, r.names[o.file])
	}
}

// apply does a write or a truncation.
func (o op) apply(to []byte) []byte {
	if o.kind == opTruncate {
		if int64(len(to)) > o.off {
			return to[:o.off]
		}
		return append(to, make([]byte, o.off-int64(len(to)))...)
	}
	if end := o.off + int64(len(o.data)); end > int64(len(to)) {
		to = append(to, make([]byte, end-int64(len(to)))...)
	}
	copy(to[o.off:], o.data)
	return to
}

// An Image is the content of a folder by name.
type Image map[string][]byte

// Cut returns what a power cut at the position reached leaves. Chance comes
// from random alone, so the same seed gives the same image.
func (r *Replay) Cut(mode Mode, random *rand.Rand) Image {
	// File systems with a journal keep the order of what changes a folder:
	// some of it is there, from the first on.
	folder, changed := maps.Clone(r.folder), len(r.changes)
	switch mode {
	case Lost:
		changed = 0
	case Torn, Reordered:
		changed = random.IntN(changed + 1)
	}
	for _, c := range r.changes[:changed] {
		r.change(folder, c)
	}
	image := make(Image)
	for _, name := range slices.Sorted(maps.Keys(folder)) {
		image[name] = r.files[folder[name]].cut(mode, random)
	}
	return image
}

func (c *content) cut(mode Mode, random *rand.Rand) []byte {
	image := slices.Clone(c.durable)
	if mode == Lost {
		return image
	}
	order := make([]int, len(c.pending))
	for i := range order {
		order[i] = i
	}
	if mode == Reordered {
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	for _, i := range order {
		o := c.pending[i].op
		if mode != Kept && random.IntN(2) == 0 {
			continue
		}
		if mode == Torn && o.kind == opWrite && random.IntN(2) == 0 {
			image = o.tear(image, random)
			continue
		}
		image = o.apply(image)
	}
	return image
}

// tear writes some of a write's sectors. They are those of the disk, counted
// from the file's beginning.
func (o op) tear(to []byte, random *rand.Rand) []byte {
	for data, off := o.data, o.off; len(data) > 0; {
		n := min(int64(len(data)), sector-off%sector)
		if random.IntN(2) == 0 {
			to = op{kind: opWrite, off: off, data: data[:n]}.apply(to)
		}
		data, off = data[n:], off+n
	}
	return to
}

// Sum tells images apart.
func (m Image) Sum(seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, name := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&h, "%s %d ", name, len(m[name]))
		h.Write(m[name]) // documented never to fail
	}
	return h.Sum64()
}

// Write puts the image into a folder in the place of the files that are there.
// They are new ones: SQLite knows files by their inodes.
func (m Image) Write(dir string) error {
	there, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	for _, f := range there {
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil {
			return fmt.Errorf("write image: %w", err)
		}
	}
	for name, data := range m {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("write image: %w", err)
		}
	}
	return nil
}
