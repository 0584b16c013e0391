package buffer

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"

	"touchline"
	"touchline/wire"
)

const (
	// One transaction deletes at most so much, so that appends wait for some
	// tens of milliseconds at most while a long outage is forgotten.
	maxDeleteBlocks = 1024
	maxDeleteBytes  = 8 << 20

	// maxAckRanges waiting are applied at once, not within a second: what
	// waits is kept as ranges, 64 KiB of them at this limit.
	maxAckRanges = 4096
)

// acks is what was acknowledged and is not yet deleted from the file.
type acks struct {
	stored    map[int]*touchline.Ranges // waiting, by index of epoch
	applying  map[int]*touchline.Ranges // in the transaction at hand; not changed while there
	confirmed map[uint64]struct{}       // lost records, waiting
}

func newAcks() acks {
	return acks{stored: make(map[int]*touchline.Ranges), confirmed: make(map[uint64]struct{})}
}

// Ack takes note of what the cloud stored, and forgets the lost records that it
// confirmed. Blocks wholly within the ranges are not returned by Next any more,
// and are deleted when they were kept for KeepStored, or when their room is
// needed; one that is covered in part stays. Repeats,
// unknown epochs and unknown records are ignored. It does not wait for the
// disk: an acknowledgement that a power cut swallows means only that the
// block is sent again. It keeps nothing of its arguments.
func (b *Buffer) Ack(stored []wire.EpochRanges, lost []uint64) error {
	for _, s := range stored {
		for _, r := range s.Ranges {
			if !r.Valid() {
				return fmt.Errorf("acknowledge range [%d,%d] of epoch %s: no such range", r.First, r.Last, s.Epoch)
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused != nil {
		return b.refused
	}
	for _, s := range stored {
		if i, known := b.known.index[s.Epoch]; known && len(s.Ranges) > 0 {
			b.acks.add(i, s.Ranges)
			b.has(i, s.Ranges)
		}
	}
	for _, id := range lost {
		if b.announced(id) {
			b.acks.confirmed[id] = struct{}{}
		}
	}
	if b.acks.ranges() >= maxAckRanges || b.status.state() == StateFull {
		signal(b.work)
	}
	return nil
}

// has takes back that the cloud lacks samples. b.mu is held.
func (b *Buffer) has(epoch int, ranges touchline.Ranges) {
	lacks := b.unstored[epoch]
	if lacks == nil {
		return
	}
	var left touchline.Ranges
	for _, r := range *lacks {
		left.AddAll(ranges.Missing(r))
	}
	*lacks = left
}

func (a *acks) add(epoch int, ranges touchline.Ranges) {
	set := a.stored[epoch]
	if set == nil {
		set = new(touchline.Ranges)
		a.stored[epoch] = set
	}
	set.AddAll(ranges)
}

func (a *acks) ranges() int {
	n := 0
	for _, set := range a.stored {
		n += len(*set)
	}
	return n
}

// covering returns the end of the acknowledged range that holds all of r.
func (a *acks) covering(epoch int, r touchline.Range) (last uint64, ok bool) {
	for _, sets := range []map[int]*touchline.Ranges{a.stored, a.applying} {
		set := sets[epoch]
		if set == nil || !set.Contains(r) {
			continue
		}
		i, _ := slices.BinarySearchFunc(*set, r.First, func(have touchline.Range, first uint64) int {
			if have.Last < first {
				return -1
			}
			return 1
		})
		return (*set)[i].Last, true
	}
	return 0, false
}

// begin moves what waits into the transaction at hand.
func (a *acks) begin() map[int]*touchline.Ranges {
	a.applying, a.stored = a.stored, make(map[int]*touchline.Ranges)
	return a.applying
}

// applied ends a transaction that took place, but for what was left over.
func (a *acks) applied(left map[int]*touchline.Ranges) {
	a.applying = nil
	for epoch, set := range left {
		a.add(epoch, *set)
	}
}

// failed ends one that did not.
func (a *acks) failed() { a.applied(a.applying) }

// A victim is a block to be deleted.
type victim struct {
	key              int64
	epoch            int // index
	first            uint64
	count, bytes     int64
	minTime, maxTime int64
	committed        int64 // running ms
	reported         bool  // as damaged, and lost
}

// valid says whether the numbers can be those of a block.
func (v *victim) valid() bool {
	return v.count >= 1 && v.count <= wire.MaxBlockSamples && v.first >= 1 && v.last() <= touchline.MaxSeq
}

func (v *victim) last() uint64 { return v.first + uint64(v.count) - 1 }

func (v *victim) totals() totals {
	return totals{blocks: 1, samples: v.count, bytes: v.bytes}
}

// deleteBudget is what a transaction may still delete.
type deleteBudget struct {
	blocks int
	bytes  int64
}

func (d *deleteBudget) take(v *victim) {
	d.blocks--
	d.bytes -= v.bytes
}

func (d *deleteBudget) spent() bool { return d.blocks <= 0 || d.bytes <= 0 }

// applyAcks marks the blocks that were acknowledged as stored, up to
// maxMarkBlocks of them.
func (t *txn) applyAcks() error {
	b := t.b
	b.mu.Lock()
	sets := b.acks.begin()
	b.mu.Unlock()
	room := maxMarkBlocks
	for _, epoch := range slices.Sorted(maps.Keys(sets)) {
		for _, r := range *sets[epoch] {
			rest, err := t.ackRange(epoch, r, &room)
			if err != nil {
				return err
			}
			if rest.Valid() {
				if t.ackedLeft == nil {
					t.ackedLeft = make(map[int]*touchline.Ranges)
				}
				add(t.ackedLeft, epoch, rest)
				t.more = true
			}
		}
	}
	return nil
}

// ackRange marks the blocks within r and returns what is beyond the room;
// nothing is the zero Range.
func (t *txn) ackRange(epoch int, r touchline.Range, room *int) (rest touchline.Range, err error) {
	if *room == 0 {
		return r, nil
	}
	// Only the end is cut to what the epoch has: where it never had r.First,
	// nothing lies between.
	base := t.b.known.bases[epoch]
	var found marks // while t.marks is looked through
	t.marks.gaps(base+int64(r.First), t.b.known.key(epoch, r.Last), func(from, to int64) bool {
		k := mark{first: -1, at: t.b.storedAt(t.clock)}
		_, err = t.victims(t.b.store.ackVictims, []any{from, to, *room}, func(v *victim) bool {
			if k.first < 0 {
				k.first = v.key
			}
			k.last = max(v.key, v.key+v.count-1)
			k.totals.add(v.totals())
			*room--
			return true
		})
		if err != nil || k.first < 0 {
			return err == nil
		}
		found = append(found, k)
		if *room == 0 {
			rest = touchline.Range{First: uint64(k.last-base) + 1, Last: r.Last}
			return false
		}
		return true
	})
	for _, k := range found {
		t.b.handOut(k.last) // a cloud that stores what nobody sent it must not have that merged with more
		t.marks.add(k)
		t.marksChanged = true
		t.acked += k.samples
	}
	return rest, err
}

// probeDelete remembers a block by whose absence settle sees that the
// transaction took place.
func (t *txn) probeDelete(v *victim) {
	if t.probeKey == 0 {
		t.probeKey, t.probeWant = v.key, 0
	}
}

// victims calls take for the rows of a query in order until it returns false,
// and returns how many it took.
func (t *txn) victims(query *sql.Stmt, args []any, take func(*victim) bool) (taken int, err error) {
	rows, err := query.QueryContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var v victim
		if err := rows.Scan(&v.key, &v.count, &v.bytes, &v.minTime, &v.maxTime, &v.committed); err != nil {
			return taken, contentError(err)
		}
		v.reported, v.committed = v.committed < 0, runningOf(v.committed)
		known := false
		if v.epoch, v.first, known = t.b.known.of(v.key); !known {
			return taken, fmt.Errorf("%w: block %d belongs to no epoch", errDamaged, v.key)
		}
		v.bytes += blockOverheadBytes
		if !take(&v) {
			break
		}
		taken++
	}
	return taken, rows.Err()
}
