package buffer

import (
	"fmt"
	"math"
	"slices"

	"touchline"
	"touchline/wire"
)

// take puts a block into the store, unless its numbers are there.
func (v *salvage) take(of *candidate, block *wire.Block, committed int64) error {
	if v.saveErr != nil || v.done {
		return nil // the salvage is about to end, or was here before
	}
	if err := v.begin(); err != nil {
		return err
	}
	base, err := v.place(of, block)
	if err != nil || base < 0 {
		return err
	}
	key := base + int64(block.First)
	if occupied, err := v.occupied(key, int64(block.Count)); err != nil || occupied {
		return err
	}
	minTime, maxTime := timeSpan(v.samples) // what the row says of it has no CRC
	v.ran(committed)
	committed = min(max(committed, 0), v.runningMS)
	if v.report.Before {
		committed = 0 // as old as the store can say
	}
	if _, err := v.dst.insertBlock.ExecContext(v.ctx, key, int64(block.Count), minTime, maxTime, int64(block.CRC), committed, block.Data); err != nil {
		return fmt.Errorf("take in block: %w", err)
	}
	if err := v.doubt(v.samples); err != nil {
		return err
	}
	v.report.Blocks++
	v.report.Samples += int64(block.Count)
	v.blocks++
	v.bytes += int64(len(block.Data)) + blockOverheadBytes
	return nil
}

func timeSpan(samples []touchline.Sample) (from, to int64) {
	from, to = math.MaxInt64, math.MinInt64
	for i := range samples {
		from, to = min(from, samples[i].Time), max(to, samples[i].Time)
	}
	return from, to
}

// place returns the base of an epoch in the store, where a block of it proves
// that there is one. Where the epoch can't be placed without coming between
// others it returns -1, and its blocks stay where they are.
func (v *salvage) place(of *candidate, block *wire.Block) (int64, error) {
	i, known := v.there.index[of.epoch]
	if !known {
		base := of.base + v.shift
		if found, count, err := v.upTo(base); err != nil {
			return -1, err
		} else if count > 0 && found+count-1 > base || slices.Contains(v.there.bases, base) {
			v.damage(fmt.Errorf("epoch %s has no place", of.epoch))
			return -1, nil
		}
		if _, err := v.dst.insertEpoch.ExecContext(v.ctx, base, of.epoch[:]); err != nil {
			return -1, fmt.Errorf("take in epoch: %w", err)
		}
		i = v.there.insert(base, of.epoch)
	}
	base := v.there.bases[i]
	if i+1 < len(v.there.bases) && base+int64(block.Last()) > v.there.bases[i+1] {
		v.damage(fmt.Errorf("epoch %s has no place for %d", of.epoch, block.First))
		return -1, nil
	}
	return base, nil
}

// occupied says whether any of count numbers from key on are in the store.
func (v *salvage) occupied(key, count int64) (bool, error) {
	found, n, err := v.upTo(key + count - 1)
	return n > 0 && found+n > key, err
}

// upTo returns the last block that begins at key or before, zeros if none.
func (v *salvage) upTo(key int64) (found, count int64, err error) {
	found, count, err = seek(v.dst.lastUpTo, key)
	if err != nil {
		err = fmt.Errorf("look for block: %w", err)
	}
	return found, count, err
}

func (v *salvage) begin() error {
	if v.open {
		return nil
	}
	if _, err := v.dst.begin.ExecContext(v.ctx); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	v.open = true
	return nil
}

// pace commits when it is time; reached notes how far the salvage is.
func (v *salvage) pace(reached func()) error {
	if v.saveErr != nil {
		return v.saveErr
	}
	if err := v.ctx.Err(); err != nil {
		return err
	}
	v.work()
	if v.pages++; v.blocks < salvageBlocks && v.bytes < salvageBytes && v.pages < salvagePages {
		return nil
	}
	reached()
	taken := v.bytes
	if err := v.save(); err != nil || taken == 0 {
		return err
	}
	// What a round of this size takes must be there for the next one, and
	// twice that, since it is in the log first.
	if room, err := v.room(); err != nil {
		return err
	} else if room < 3*salvageBytes {
		return errNoRoom
	}
	return nil
}

// save commits, and then writes down how far it is: the other order could
// skip blocks.
func (v *salvage) save() error {
	if v.saveErr != nil {
		return v.saveErr
	}
	if err := v.begin(); err != nil {
		return err
	}
	// Blocks of any key were added: Open counts them anew.
	if _, err := v.dst.saveTally.ExecContext(v.ctx, 0, 0, 0, 0, v.runningMS); err != nil {
		return fmt.Errorf("tally blocks: %w", err)
	}
	if _, err := v.dst.commit.ExecContext(v.ctx); err != nil {
		return fmt.Errorf("commit salvaged blocks: %w", err)
	}
	v.open, v.blocks, v.bytes, v.pages = false, 0, 0, 0
	v.from.report = v.report
	if err := v.from.writeReport(); err != nil {
		v.from.report.Problem = "its report can't be written: " + err.Error()
	}
	return nil
}
