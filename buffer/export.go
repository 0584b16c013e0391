package buffer

import (
	"context"
	"errors"
	"fmt"
	"math"

	"touchline"
	"touchline/wire"
)

// exportBytes of data are read at a time.
const exportBytes = 512 << 10

// errUnsure ends an export that would leave out what can't be read now.
var errUnsure = errors.New("the disk failed while blocks were merged, and the next commit has to settle it: export again when the buffer is ok")

// Export calls take with all blocks that are held now, in the order of Next,
// and returns the records of loss that the cloud has not confirmed. As those of
// Next, the blocks are frozen from then on, and the records never change.
// Blocks that the cloud has stored are left out unless all is true; damaged
// ones always are. What is committed while it runs is left out, so that it
// ends. Nothing is deleted. It ends with take's error, or ctx's.
func (b *Buffer) Export(ctx context.Context, all bool, take func([]wire.Block) error) ([]wire.Lost, error) {
	end, err := b.lastKeyHeld()
	if err != nil {
		return nil, fmt.Errorf("export buffer: %w", err)
	}
	walk := b.exportPending
	if all {
		walk = b.exportAll
	}
	if err := walk(ctx, end, take); err != nil {
		return nil, fmt.Errorf("export buffer: %w", err)
	}
	return b.freezeLost(), nil
}

// lastKeyHeld returns the key of the youngest block, 0 if there is none.
func (b *Buffer) lastKeyHeld() (int64, error) {
	b.readers.RLock()
	defer b.readers.RUnlock()
	if b.life.Err() != nil {
		return 0, ErrClosed
	}
	key, _, err := seek(b.store.upTo, math.MaxInt64)
	return key, err
}

// exportPending goes the way of Next, up to the block at key end.
func (b *Buffer) exportPending(ctx context.Context, end int64, take func([]wire.Block) error) error {
	return b.exportBehind(ctx, touchline.Position{}, end, take)
}

func (b *Buffer) exportBehind(ctx context.Context, after touchline.Position, end int64, take func([]wire.Block) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		blocks, err := b.readBehind(after, exportBytes)
		if err == nil && len(blocks) == 0 && b.unsure.Load() != 0 {
			return errUnsure // not the end: it is not known what follows
		}
		if err != nil || len(blocks) == 0 {
			return err
		}
		n := 0
		for n < len(blocks) && b.positionOf(&blocks[n]) <= end {
			n++
		}
		if n > 0 {
			if err := take(blocks[:n]); err != nil {
				return err
			}
			after = touchline.Position{Epoch: blocks[n-1].Epoch, Seq: blocks[n-1].Last()}
		}
		if n < len(blocks) {
			return nil
		}
	}
}

// exportAll also takes what the cloud has. Only blocks of this opening's epoch
// can still change: they are handed out as Next does, which freezes them, and
// are then read from the file with all others.
func (b *Buffer) exportAll(ctx context.Context, end int64, take func([]wire.Block) error) error {
	err := b.exportBehind(ctx, touchline.Position{Epoch: b.epoch}, end, func([]wire.Block) error { return nil })
	if err != nil {
		return err
	}
	for from := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		rows, err := b.readRows(ctx, from, exportBytes)
		if err != nil || len(rows) == 0 {
			return err
		}
		blocks := make([]wire.Block, 0, len(rows))
		for i := range rows {
			from = rows[i].key + 1
			if block, err := b.blockOf(&rows[i]); err == nil && rows[i].key <= end {
				blocks = append(blocks, block)
			}
		}
		if len(blocks) > 0 {
			if err := take(blocks); err != nil {
				return err
			}
		}
		if from > end {
			return nil
		}
	}
}

// freezeLost returns the records of loss, which never change again: what the
// cloud learns under a number is all that it is told under it.
func (b *Buffer) freezeLost() []wire.Lost {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lost []wire.Lost
	for _, r := range b.lost {
		if _, confirmed := b.acks.confirmed[r.ID]; confirmed || r.changing {
			continue // one that changes now is told later
		}
		r.announced = true
		l := r.Lost
		l.Ranges = l.Ranges.Clone()
		lost = append(lost, l)
	}
	return lost
}

// A row is one of the table of blocks, as it is there, damaged or not.
type row struct {
	key              int64
	count, crc       any
	minTime, maxTime any
	committed        any // running ms; below 0 for one whose loss is recorded
	data             []byte
}

// readRows reads rows from a key on, up to about so many bytes of data.
func (b *Buffer) readRows(ctx context.Context, from int64, maxBytes int) ([]row, error) {
	b.readers.RLock()
	defer b.readers.RUnlock()
	if b.life.Err() != nil {
		return nil, ErrClosed
	}
	rows, err := b.store.readDB.QueryContext(ctx,
		"SELECT key, count, min_time, max_time, crc, committed, data FROM block WHERE key >= ?1 ORDER BY key LIMIT ?2", from, maxNextBlocks)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []row
	for size := 0; size < maxBytes && rows.Next(); {
		var r row
		if err := rows.Scan(&r.key, &r.count, &r.minTime, &r.maxTime, &r.crc, &r.committed, &r.data); err != nil {
			return nil, contentError(err)
		}
		size += len(r.data)
		list = append(list, r)
	}
	return list, rows.Err()
}

// blockOf makes a block of a row, and says what is wrong with it.
func (b *Buffer) blockOf(r *row) (wire.Block, error) {
	i, first, known := b.known.of(r.key)
	if !known {
		return wire.Block{}, fmt.Errorf("block %d belongs to no epoch", r.key)
	}
	block := wire.Block{Epoch: b.known.uuids[i], First: first, Count: numberOf(r.count), CRC: numberOf(r.crc), Data: r.data}
	if block.Count == 0 || !block.Range().Valid() {
		return block, fmt.Errorf("block %s/%d has a count of %v", block.Epoch, first, r.count)
	}
	return block, block.Check()
}
