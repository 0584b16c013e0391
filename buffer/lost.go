package buffer

import (
	"context"
	"encoding/json"
	"math/rand/v2"

	"touchline"
	"touchline/wire"
)

const (
	// maxLostRanges is where a lost record is full: as a message it then has
	// at most 1,024 × 36 bytes, well below the 256 KiB that the wire allows.
	maxLostRanges = 1024

	// maxAnnounced bounds the lost records that are announced and not yet
	// confirmed. Those beyond stay open for merging, so that the table does
	// not grow with the length of an outage.
	maxAnnounced = 256
)

// A lostRecord is a row of the table lost.
type lostRecord struct {
	wire.Lost
	announced bool // Held returned it: it never changes again
	changing  bool // the transaction at hand changes it: Held waits with it
}

// A lostChange is what a transaction does to a record.
type lostChange struct {
	record *lostRecord
	to     wire.Lost // for a change
	is     changeKind
}

type changeKind uint8

const (
	added changeKind = iota
	changed
	removed
)

// lose records a loss: in the youngest record of the same epoch and cause if
// nobody has seen that yet, else in a new one.
func (t *txn) lose(why cause, l *loss) error {
	b, ctx := t.b, context.Background()
	epoch := b.known.uuids[l.epoch]
	if r := t.openRecord(epoch, why.String()); r != nil {
		to := t.latest(r)
		to.Ranges = to.Ranges.Clone()
		to.Ranges.AddAll(l.ranges)
		to.MinTime, to.MaxTime = min(to.MinTime, l.minTime), max(to.MaxTime, l.maxTime)
		t.lost = append(t.lost, lostChange{record: r, to: to, is: changed})
		ranges, err := json.Marshal(to.Ranges)
		if err != nil {
			return err
		}
		_, err = b.store.updateLost.ExecContext(ctx, int64(to.ID), string(ranges), to.MinTime, to.MaxTime)
		return err
	}
	// A random number is one that the cloud has not seen from this gateway,
	// whatever became of earlier files; below 2^53, for JSON readers.
	r := &lostRecord{Lost: wire.Lost{
		ID:      1 + rand.Uint64N(touchline.MaxSeq),
		Epoch:   epoch,
		Ranges:  l.ranges,
		Cause:   why.String(),
		MinTime: l.minTime,
		MaxTime: l.maxTime,
	}}
	t.lost = append(t.lost, lostChange{record: r, to: r.Lost, is: added})
	ranges, err := json.Marshal(r.Ranges)
	if err != nil {
		return err
	}
	_, err = b.store.insertLost.ExecContext(ctx, int64(r.ID), epoch[:], string(ranges), r.Cause, r.MinTime, r.MaxTime)
	return err
}

// openRecord returns a record that may still grow, and keeps Held from
// announcing it while this transaction lasts.
func (t *txn) openRecord(epoch touchline.Epoch, why string) *lostRecord {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	for i := len(t.b.lost) - 1; i >= 0; i-- {
		r := t.b.lost[i]
		if !r.announced && r.Epoch == epoch && r.Cause == why && len(r.Ranges) < maxLostRanges {
			r.changing = true
			return r
		}
	}
	return nil
}

// latest returns the record as this transaction has made it so far.
func (t *txn) latest(r *lostRecord) wire.Lost {
	for i := len(t.lost) - 1; i >= 0; i-- {
		if t.lost[i].record == r {
			return t.lost[i].to
		}
	}
	return r.Lost
}

// confirmLost deletes the records that the cloud confirmed.
func (t *txn) confirmLost() error {
	b := t.b
	b.mu.Lock()
	for _, r := range b.lost {
		if _, ok := b.acks.confirmed[r.ID]; ok {
			t.lost = append(t.lost, lostChange{record: r, is: removed})
		}
	}
	b.mu.Unlock()
	for _, change := range t.lost {
		if _, err := b.store.deleteLost.ExecContext(context.Background(), int64(change.record.ID)); err != nil {
			return err
		}
	}
	return nil
}

// announced says whether id is a record that Held returned. b.mu is held.
func (b *Buffer) announced(id uint64) bool {
	for _, r := range b.lost {
		if r.ID == id {
			return r.announced
		}
	}
	return false
}

// applyLost makes b.lost what the file has. b.mu is held.
func (b *Buffer) applyLost(changes []lostChange) {
	for _, c := range changes {
		switch c.is {
		case added:
			b.lost = append(b.lost, c.record)
		case changed:
			c.record.Lost, c.record.changing = c.to, false
		case removed:
			delete(b.acks.confirmed, c.record.ID)
			for i, r := range b.lost {
				if r == c.record {
					b.lost = append(b.lost[:i:i], b.lost[i+1:]...)
					break
				}
			}
		}
	}
}

// undoLost lets go of what a transaction that did not take place held. b.mu
// is held.
func (b *Buffer) undoLost(changes []lostChange) {
	for _, c := range changes {
		c.record.changing = false
	}
}
