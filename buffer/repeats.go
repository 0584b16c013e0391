package buffer

import (
	"context"
	"fmt"
	"slices"
	"unsafe"

	"touchline"
	"touchline/buffer/seen"
)

// arrivalTable has the keys of messages (see seen.Keys), a row for each commit
// that has any. committed is running time, as a block's.
const arrivalTable = `
CREATE TABLE arrival (
	n         INTEGER PRIMARY KEY,
	committed INTEGER NOT NULL,
	keys      BLOB NOT NULL
) STRICT;
`

// repeats finds what was stored already. Only the goroutine of Run uses it, so
// the order in which samples are looked up is that in which they are stored:
// what is found was committed before, or is of the batch at hand and shares
// its fate. That is why a repeat may be answered with its batch.
type repeats struct {
	window *seen.Window // nil: off
	keys   *seen.Keys
	rest   batch          // the batch at hand without its repeats, where it has any
	drop   []seen.Verdict // by key of the entry at hand

	samples, byKey uint64 // found in the batch at hand
}

// repeatStats is what Stats says of repeats.
type repeatStats struct {
	samples, byKey, early, keysEarly uint64
	length                           int
}

func newRepeats(opts *Options) repeats {
	r := repeats{keys: seen.NewKeys(opts.RepeatWindow)}
	if opts.RepeatWindow > 0 {
		r.window = seen.NewWindow(opts.RepeatWindow, int(opts.RepeatBytes))
	}
	return r
}

// commit makes what was found in the batch at hand known for good.
func (r *repeats) commit(at int64) {
	if r.window != nil {
		r.window.Commit(at)
	}
	r.keys.Commit(at)
}

// takeBack forgets what the batch at hand added: it is not in the file, so its
// repeats have to be stored.
func (r *repeats) takeBack() {
	if r.window != nil {
		r.window.TakeBack()
	}
	r.keys.TakeBack()
}

// keyBytes is what a key takes while it waits.
const keyBytes = int64(unsafe.Sizeof(touchline.Key{}))

func cloneKeys(a touchline.Arrival) []touchline.Key {
	for i := range a.Keys {
		if k := &a.Keys[i]; k.First < 0 || k.Count < 0 || k.First+k.Count > len(a.Samples) || i > 0 && k.First < a.Keys[i-1].First+a.Keys[i-1].Count {
			panic(fmt.Sprintf("BUG: key of the samples %d to %d of %d", k.First, k.First+k.Count, len(a.Samples)))
		}
	}
	return slices.Clone(a.Keys)
}

// fresh returns the batch without what is not to be stored: the batch itself
// where that is nothing, as it mostly is.
func (b *Buffer) fresh(taken *batch) *batch {
	r := &b.w.repeats
	r.samples, r.byKey = 0, 0
	now := b.clock.now()
	if r.window != nil {
		r.window.Advance(now)
	}
	r.keys.Advance(now)
	r.clearRest()
	dropped, rest := false, taken.samples
	for i := range taken.entries {
		e := &taken.entries[i]
		mine := rest[:e.count]
		rest = rest[e.count:]
		r.judge(e)
		kept := 0
		for j, key := 0, 0; j < len(mine); j++ {
			for key < len(e.keys) && j >= e.keys[key].First+e.keys[key].Count {
				key++
			}
			named := key < len(e.keys) && j >= e.keys[key].First
			if named && r.drop[key] != seen.New || r.repeats(&mine[j]) {
				if named && r.drop[key] == seen.Repeated {
					r.byKey++
				}
				if !dropped { // all before it is kept
					dropped = true
					r.rest.samples = append(r.rest.samples, taken.samples[:len(taken.samples)-len(rest)-len(mine)+j]...)
					r.rest.entries = append(r.rest.entries, taken.entries[:i]...)
				}
				continue
			}
			kept++
			if dropped {
				r.rest.samples = append(r.rest.samples, mine[j])
			}
		}
		if dropped {
			r.rest.entries = append(r.rest.entries, *e)
			r.rest.entries[i].count = kept
		}
	}
	if dropped {
		return &r.rest
	}
	return taken
}

// repeats says whether the window has a sample, and puts it there.
func (r *repeats) repeats(s *touchline.Sample) bool {
	if r.window == nil || s.Stamped || r.window.Fresh(s) {
		return false
	}
	r.samples++
	return true
}

// clearRest lets go of what an earlier batch left.
func (r *repeats) clearRest() {
	if cap(r.rest.samples) > keepSamples {
		r.rest.samples, r.rest.entries = nil, nil
	}
	clear(r.rest.samples)
	clear(r.rest.entries)
	r.rest.samples, r.rest.entries = r.rest.samples[:0], r.rest.entries[:0]
}

// judge decides which messages of an append are dropped.
func (r *repeats) judge(e *entry) {
	r.drop = r.drop[:0]
	e.err = nil
	for i := range e.keys {
		verdict := r.keys.Judge(&e.keys[i])
		if verdict == seen.Reused {
			e.err = touchline.ErrKeyReused
		}
		r.drop = append(r.drop, verdict)
	}
}

// countRepeats adds what was found in a batch to the counters, unless the
// batch failed: then it will be found again.
func (b *Buffer) countRepeats(failed error) {
	r := &b.w.repeats
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.status.repeats
	if failed == nil {
		s.samples += r.samples
		s.byKey += r.byKey
	}
	r.samples, r.byKey = 0, 0
	s.keysEarly = r.keys.Early()
	if r.window != nil {
		s.early, s.length = r.window.Shortened(), r.window.Len()
	}
}

// saveKeys keeps the names of the batch's messages with their samples, and
// deletes those that are due while the table is at hand.
func (t *txn) saveKeys() error {
	ctx, keys := context.Background(), t.b.w.repeats.keys
	if !keys.Pending() {
		return nil
	}
	for _, due := range keys.Due() {
		if _, err := t.b.store.deleteKeys.ExecContext(ctx, due[0], due[1]); err != nil {
			return err
		}
	}
	for _, row := range keys.Unsaved() {
		if _, err := t.b.store.insertKeys.ExecContext(ctx, row.N, t.clock, row.Data); err != nil {
			return err
		}
	}
	t.named = true
	return nil
}
