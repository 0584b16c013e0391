package buffer

import (
	"context"
	"fmt"
	"slices"

	"touchline"
	"touchline/wire"
)

// clockTable has a row for each boot of the machine in which the gateway
// stamped samples by a clock that nobody vouched for; they may be held here or
// have gone to the cloud. state and offset are those of the best clock that is
// known of this boot, 0 where it never was set; confirmed is 1 where the cloud
// needs no telling. A row is 60 bytes. Those that are confirmed stay too, the
// youngest 64 with all others: a cloud that was restored from a backup gets
// back the blocks of a boot as they were stamped, and needs its clock again.
const clockTable = `
CREATE TABLE clock (
	n         INTEGER PRIMARY KEY,
	boot      BLOB NOT NULL UNIQUE,
	state     INTEGER NOT NULL,
	offset    INTEGER NOT NULL,
	confirmed INTEGER NOT NULL
) STRICT;
`

// maxClocks bounds the corrections that are announced at a time, and what is
// kept of those that are confirmed.
const maxClocks = 64

// A bootClock is a row of the table clock.
type bootClock struct {
	best      touchline.Clock // of which Boot is always set
	confirmed bool
}

// improves says whether c says more of its boot than is known. A better state
// counts, and of equal ones the later.
func (r *bootClock) improves(c touchline.Clock) bool {
	return c.State > touchline.ClockUnset && c.State >= r.best.State && c != r.best
}

// SetClock says what the gateway's clock is now. Where samples of this boot
// were stamped by a worse one, Clocks has it from the next transaction on,
// until it is confirmed, whatever happens between. A worse state than was said
// of this boot before changes nothing. It does not block.
func (b *Buffer) SetClock(c touchline.Clock) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if known := b.boots.known; known.Boot == c.Boot && known.State > c.State {
		return // it was known better, and may not be in the file yet
	}
	b.boots.known = c
	if b.boots.due() {
		signal(b.work)
	}
}

// Clocks returns the oldest clocks that the cloud has to be told, 64 at most.
func (b *Buffer) Clocks() []touchline.Clock {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []touchline.Clock
	for _, r := range b.boots.rows {
		_, heard := b.boots.heard[offsetOf(r.best)]
		_, again := b.boots.again[offsetOf(r.best)]
		if (!r.confirmed || again) && !heard && len(list) < maxClocks {
			list = append(list, r.best)
		}
	}
	return list
}

// ConfirmClocks says which of them the cloud has recorded. Repeats and others
// are ignored. It does not wait for the disk: what a power cut swallows is
// told once more.
func (b *Buffer) ConfirmClocks(confirmed []wire.ClockOffset) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range confirmed {
		delete(b.boots.again, c)
		for _, r := range b.boots.rows {
			if !r.confirmed && offsetOf(r.best) == c {
				b.boots.heard[c] = struct{}{}
			}
		}
	}
}

func offsetOf(c touchline.Clock) wire.ClockOffset {
	return wire.ClockOffset{Boot: c.Boot, Offset: c.Offset}
}

// boots is what is known of the clocks of the machine's boots. Buffer.mu
// covers it.
type boots struct {
	rows  []*bootClock                  // of the file, oldest first
	known touchline.Clock               // the gateway's clock now, as SetClock said
	heard map[wire.ClockOffset]struct{} // confirmed, and not yet written down
	again map[wire.ClockOffset]struct{} // confirmed before, and to be told in this session once more
}

// retell has the cloud told what it confirmed before: it may have been restored
// from a backup that is older than that, which what it has stored need not show.
func (s *boots) retell() {
	clear(s.again)
	for c := range s.heard {
		s.again[c] = struct{}{}
	}
	clear(s.heard)
	for _, r := range s.rows {
		if r.confirmed && r.best.State > touchline.ClockUnset {
			s.again[offsetOf(r.best)] = struct{}{}
		}
	}
}

// sweep drops what sweepClocks deletes: the rows that are confirmed, but for
// the youngest of all.
func (s *boots) sweep() {
	old := max(len(s.rows)-(maxClocks-1), 0)
	young := s.rows[old:]
	s.rows = append(slices.DeleteFunc(s.rows[:old:old], func(r *bootClock) bool { return r.confirmed }), young...)
}

func (s *boots) of(boot touchline.Boot) *bootClock {
	for _, r := range slices.Backward(s.rows) {
		if r.best.Boot == boot {
			return r
		}
	}
	return nil
}

// due says whether the file lacks what is known.
func (s *boots) due() bool {
	r := s.of(s.known.Boot)
	return r != nil && r.improves(s.known)
}

// doubtful returns the clock of a block that may have to be corrected, nil
// where the block's is as good as can be or stamped nothing.
func doubtful(samples []touchline.Sample, clock *wire.BlockClock) *touchline.Clock {
	if clock == nil || clock.State >= touchline.ClockSynchronised {
		return nil
	}
	if !slices.ContainsFunc(samples, func(s touchline.Sample) bool { return s.Stamped }) {
		return nil
	}
	return &clock.Clock
}

// doubt makes a row for the boot in which the block was stamped, unless there
// is one: in the block's transaction, so that no block is held of which it is
// forgotten that a correction is due.
func (t *txn) doubt(by *touchline.Clock) error {
	b := t.b
	row := bootClock{best: touchline.Clock{Boot: by.Boot}, confirmed: true}
	if by.State > touchline.ClockUnset {
		row.best = *by // which the block says itself
	}
	b.mu.Lock()
	there := b.boots.of(by.Boot) != nil
	if known := b.boots.known; known.Boot == by.Boot && known != *by && known.State >= by.State && known.State > touchline.ClockUnset {
		row = bootClock{best: known} // it became known while the samples waited
	}
	b.mu.Unlock()
	there = there || slices.ContainsFunc(t.clocks, func(c bootClock) bool { return c.best.Boot == by.Boot })
	if there {
		return nil
	}
	if _, err := b.store.sweepClocks.ExecContext(context.Background(), maxClocks-1); err != nil {
		return err
	}
	return t.saveClock(row)
}

// correct writes down the better clock that is known, and what the cloud
// confirmed.
func (t *txn) correct() error {
	b := t.b
	b.mu.Lock()
	var changes []bootClock
	for _, r := range b.boots.rows {
		to := *r
		if _, heard := b.boots.heard[offsetOf(r.best)]; heard {
			to.confirmed = true
		}
		if known := b.boots.known; known.Boot == r.best.Boot && r.improves(known) {
			to = bootClock{best: known}
		}
		if to != *r {
			changes = append(changes, to)
		}
	}
	b.mu.Unlock()
	for _, to := range changes {
		if err := t.saveClock(to); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) saveClock(to bootClock) error {
	t.clocks = append(t.clocks, to)
	return t.b.store.saveClock(to)
}

// saveClock makes or changes a row.
func (s *store) saveClock(r bootClock) error {
	_, err := s.putClock.ExecContext(context.Background(), r.best.Boot[:], int64(r.best.State), r.best.Offset, r.confirmed)
	if err != nil {
		return fmt.Errorf("save clock of boot %s: %w", r.best.Boot, err)
	}
	return nil
}

// applyClocks makes b.boots what the file has. b.mu is held.
func (b *Buffer) applyClocks(changes []bootClock) {
	s := &b.boots
	for _, c := range changes {
		r := s.of(c.best.Boot)
		if r == nil {
			s.sweep()
			r = new(bootClock)
			s.rows = append(s.rows, r)
		}
		*r = c
	}
	for c := range s.heard { // those of rows that are confirmed now, or say something else
		if !slices.ContainsFunc(s.rows, func(r *bootClock) bool { return !r.confirmed && offsetOf(r.best) == c }) {
			delete(s.heard, c)
		}
	}
	if s.due() { // it became better while the transaction ran
		signal(b.work)
	}
}

func (s *store) loadClocks(ctx context.Context, c *contents) error {
	rows, err := s.conn.QueryContext(ctx, "SELECT boot, state, offset, confirmed FROM clock ORDER BY n")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var boot []byte
		var state, offset, confirmed int64
		if err := rows.Scan(&boot, &state, &offset, &confirmed); err != nil {
			return err
		}
		r, ok := bootClockOf(boot, state, offset, confirmed)
		if !ok {
			return fmt.Errorf("%w: boot %x has the clock %d, %d", errDamaged, boot, state, offset)
		}
		c.clocks = append(c.clocks, &r)
	}
	return rows.Err()
}

// bootClockOf returns what a row says, if it can be one.
func bootClockOf(boot []byte, state, offset, confirmed int64) (bootClock, bool) {
	r := bootClock{best: touchline.Clock{State: touchline.ClockState(state), Offset: offset}, confirmed: confirmed != 0}
	ok := copy(r.best.Boot[:], boot) == len(r.best.Boot) && len(boot) == len(r.best.Boot) &&
		state >= 0 && state <= int64(touchline.ClockSynchronised) && (confirmed == 0 || confirmed == 1)
	return r, ok
}
