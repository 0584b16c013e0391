package buffer

import (
	"context"
	"maps"
	"slices"

	"touchline"
	"touchline/wire"
)

// maxMarkBlocks is how many blocks one transaction marks as stored at most:
// only their heads are read.
const maxMarkBlocks = 4096

// keepMS is for how long blocks are kept that the cloud stored, in ms.
func (b *Buffer) keepMS() int64 { return max(b.opts.KeepStored, b.opts.KeepAtLeast).Milliseconds() }

// storedAt is the time that a mark made now gets: rounded up, so that what is
// stored within a step is one mark.
func (b *Buffer) storedAt(now int64) int64 {
	step := b.keepMS() / markSlots
	if step == 0 {
		return now
	}
	return (now + step - 1) / step * step
}

// Reconcile compares what the cloud says that it has with what it called
// stored before: blocks that are still here, and that it lacks, are returned
// by Next again. Of each epoch named, the cloud has the ranges given and no
// others; nothing is said of epochs that are not named. A cloud that was
// restored from a backup gets back what it had, as far as KeepStored reaches,
// and is told the clocks again that it had confirmed (see Clocks).
// It does not wait for the disk, and keeps nothing of its argument.
func (b *Buffer) Reconcile(stored []wire.EpochRanges) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused != nil {
		return b.refused
	}
	b.boots.retell()
	var missing uint64
	for _, s := range stored {
		i, known := b.known.index[s.Epoch]
		if !known {
			continue
		}
		b.acks.keepOnly(i, s.Ranges)
		for _, r := range b.acks.inHand(i) {
			for _, gap := range s.Ranges.Missing(r) {
				add(b.unstored, i, gap)
			}
		}
		base, end := b.known.bases[i], b.known.end(i)
		for _, k := range b.marks[b.marks.from(base+1):] {
			if k.first > end {
				break
			}
			have := touchline.Range{First: uint64(max(k.first, base+1) - base), Last: uint64(min(k.last, end) - base)}
			for _, gap := range s.Ranges.Missing(have) {
				missing += gap.Count()
				add(b.unstored, i, gap)
			}
		}
	}
	b.status.lacked += missing
	if missing > 0 {
		b.log.Warn("the cloud lacks samples that it had called stored: they are sent again", "samples", missing)
		signal(b.work)
		close(b.arrived)
		b.arrived = make(chan struct{})
	}
	return nil
}

func add(sets map[int]*touchline.Ranges, epoch int, r touchline.Range) {
	if sets[epoch] == nil {
		sets[epoch] = new(touchline.Ranges)
	}
	sets[epoch].Add(r)
}

// keepOnly drops of what waits what is not in ranges.
func (a *acks) keepOnly(epoch int, ranges touchline.Ranges) {
	set := a.stored[epoch]
	if set == nil {
		return
	}
	var left touchline.Ranges
	for _, r := range *set {
		var missing touchline.Ranges
		missing.AddAll(ranges.Missing(r))
		left.AddAll(missing.Missing(r))
	}
	*set = left
}

// inHand returns what the transaction at hand marks.
func (a *acks) inHand(epoch int) touchline.Ranges {
	if set := a.applying[epoch]; set != nil {
		return *set
	}
	return nil
}

// drop takes back what waits of what the cloud lacks: it came from before the
// cloud said so, and was in a transaction meanwhile.
func (a *acks) drop(lacks map[int]*touchline.Ranges) {
	for epoch, set := range a.stored {
		if gaps := lacks[epoch]; gaps != nil {
			var left touchline.Ranges
			for _, r := range *set {
				left.AddAll(gaps.Missing(r))
			}
			*set = left
		}
	}
}

// isStored says whether a block was called stored, and the last number up to
// which all that follows is. b.mu is held.
func (b *Buffer) isStored(epoch int, r touchline.Range) (last uint64, stored bool) {
	for _, lacks := range []map[int]*touchline.Ranges{b.unstored, b.unstoring} {
		if set := lacks[epoch]; set != nil && set.Overlaps(r) {
			return 0, false
		}
	}
	if last, stored = b.acks.covering(epoch, r); stored {
		return last, true
	}
	base := b.known.bases[epoch]
	end, stored := b.marks.end(base+int64(r.First), base+int64(r.Last))
	if !stored {
		return 0, false
	}
	last = uint64(min(end, b.known.end(epoch)) - base)
	// What the cloud lacks is before the end of the run.
	for _, lacks := range []map[int]*touchline.Ranges{b.unstored, b.unstoring} {
		if set := lacks[epoch]; set != nil && set.Overlaps(touchline.Range{First: r.First, Last: last}) {
			last = r.Last
		}
	}
	return last, true
}

// unstore takes back marks of what the cloud lacks.
func (t *txn) unstore() error {
	b := t.b
	b.mu.Lock()
	b.unstoring, b.unstored = b.unstored, make(map[int]*touchline.Ranges)
	sets := b.unstoring
	b.mu.Unlock()
	for _, epoch := range slices.Sorted(maps.Keys(sets)) {
		for _, r := range *sets[epoch] {
			base := b.known.bases[epoch]
			if err := t.unmark(base+int64(r.First), b.known.key(epoch, r.Last)); err != nil {
				return err
			}
		}
	}
	return nil
}

// unmark takes the blocks that have any of the keys out of their marks.
func (t *txn) unmark(first, last int64) error {
	for i := t.marks.from(first); i < len(t.marks) && t.marks[i].first <= last; i = t.marks.from(first) {
		k := t.marks[i]
		t.marksChanged = true
		t.marks = slices.Delete(t.marks, i, i+1)
		// To the ends of the blocks in which the keys end.
		from, to := k.first, k.last
		if first > k.first {
			found, count, err := seek(t.b.store.lastUpTo, first)
			if err != nil {
				return err
			}
			from = first
			if count > 0 && found+count > first {
				from = max(found, k.first)
			}
		}
		if last < k.last {
			found, count, err := seek(t.b.store.lastUpTo, last)
			if err != nil {
				return err
			}
			to = min(max(last, found+count-1), k.last)
		}
		for _, side := range []mark{{first: k.first, last: from - 1, at: k.at}, {first: to + 1, last: k.last, at: k.at}} {
			if side.first > side.last {
				continue
			}
			n, err := t.b.store.countBlocks(side.first, side.last)
			if err != nil {
				return err
			}
			if n.blocks > 0 {
				side.totals = n
				t.marks.add(side)
			}
		}
		if first = to + 1; first > last {
			return nil
		}
	}
	return nil
}

// countBlocks adds up the blocks of a run of keys.
func (s *store) countBlocks(first, last int64) (n totals, err error) {
	if err = s.countRun.QueryRowContext(context.Background(), first, last).Scan(&n.blocks, &n.samples, &n.bytes); err != nil {
		return n, contentError(err)
	}
	n.bytes += n.blocks * blockOverheadBytes
	return n, nil
}

// forgetDue says whether blocks were kept long enough.
func (b *Buffer) forgetDue() bool {
	return len(b.marks) > 0 && b.marks[b.marks.oldest()].at+b.keepMS() <= b.clock.now()
}

// forget deletes blocks that the cloud stored: those that were kept long
// enough, and where a limit is reached, as many as it takes, in the order in
// which they were stored.
func (t *txn) forget(budget *deleteBudget) error {
	needed, err := t.needed()
	if err != nil {
		return err
	}
	due := t.clock - t.b.keepMS()
	forgot := t.forgot
	for len(t.marks) > 0 {
		i := t.marks.oldest()
		k := &t.marks[i]
		if k.at > due && needed <= 0 && len(t.marks) <= maxMarks {
			break
		}
		if budget.spent() {
			t.more = true
			break
		}
		all := k.at <= due || len(t.marks) > maxMarks
		end, err := t.forgetFrom(k, budget, func(v *victim) bool {
			take := all || needed > 0
			needed -= v.bytes
			return take
		})
		if err != nil {
			return err
		}
		if k.first = end + 1; k.blocks <= 0 || k.first > k.last {
			t.marks = slices.Delete(t.marks, i, i+1)
		}
		t.marksChanged = true
	}
	if t.forgot == forgot {
		return nil
	}
	_, err = t.b.store.sweepEpochs.ExecContext(context.Background(), t.b.known.base())
	return err
}

// forgetFrom deletes blocks from the beginning of a mark on, and returns the
// last key up to which there are none any more.
func (t *txn) forgetFrom(k *mark, budget *deleteBudget, take func(*victim) bool) (end int64, err error) {
	end = k.last
	var last int64
	n, err := t.victims(t.b.store.victimsIn, []any{k.first, k.last, budget.blocks}, func(v *victim) bool {
		if budget.spent() || !take(v) {
			end = v.key - 1
			return false
		}
		budget.take(v)
		t.probeDelete(v)
		t.forgot.add(v.totals())
		k.totals.subtract(v.totals())
		last = v.key
		return true
	})
	if err != nil || n == 0 {
		return end, err
	}
	if budget.blocks <= 0 && end == k.last { // the query ended there
		end = last
	}
	_, err = t.b.store.deleteBlocks.ExecContext(context.Background(), k.first, last)
	return end, err
}

// needed returns how many bytes are to be deleted for the limits' sake.
func (t *txn) needed() (int64, error) {
	b := t.b
	needed := t.excess()
	short, err := b.shortage()
	if err != nil {
		return 0, err
	}
	return max(needed, short, t.pressing()), nil
}

// excess returns how many bytes are beyond MaxBytes, and some more, so that
// not each commit has to delete.
func (t *txn) excess() int64 {
	excess := t.held().bytes + t.b.w.incoming - t.b.opts.MaxBytes
	if excess <= 0 {
		return 0
	}
	return excess + min(t.b.opts.MaxBytes/slackShare, slackMost)
}

// pressing returns how much of a full disk is still to be deleted.
func (t *txn) pressing() int64 {
	if !t.b.w.pressed {
		return 0
	}
	return max(2*t.b.w.incoming, pressedBytes) - t.forgot.bytes
}

// backlog is what is held and not stored.
func (b *Buffer) backlog() totals {
	n := b.held
	n.subtract(b.kept)
	return n
}
