package buffer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"touchline"
	"touchline/wire"
)

const (
	// maxNextBlocks bounds the result of Next: what one frame may carry.
	maxNextBlocks = wire.MaxBlocksPerFrame
	// maxHeldEpochs bounds the result of Held: as JSON 1,024 × 80 bytes,
	// below what a control message may have. Beyond are the youngest, which
	// the cloud learns of when their blocks arrive.
	maxHeldEpochs = 1024
)

// Next returns the blocks that follow after, oldest epoch first and by number
// within an epoch, as many as fit into maxBytes of data, at least one and at
// most wire.MaxBlocksPerFrame. Where there is none it waits until one is
// committed, ctx ends, or the buffer closes (ErrClosed). What it returns is
// committed and synced, belongs to the caller, and is frozen: asked again, it
// is the same to the last bit. Reading deletes nothing; blocks that were
// acknowledged are left out.
//
// The zero Position, or one whose epoch this opening never knew, is before
// everything. A block whose CRC does not hold is left out, counted, kept where
// it is until a limit takes it, and told the cloud as lost. An error other
// than ErrClosed and ctx's may be passing; where the file is damaged it is
// not, and Run ends with it too.
func (b *Buffer) Next(ctx context.Context, after touchline.Position, maxBytes int) ([]wire.Block, error) {
	for {
		// Taken before looking, so that a commit in between is not missed.
		b.mu.Lock()
		arrived := b.arrived
		b.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("wait for blocks: %w", err)
		}
		blocks, err := b.readBehind(after, maxBytes)
		if err != nil || len(blocks) > 0 {
			return blocks, err
		}
		select {
		case <-arrived:
		case <-b.life.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for blocks: %w", ctx.Err())
		}
	}
}

// readBehind reads without waiting. It reads with a context that can't end:
// a read is short, and interrupting one costs more than it.
func (b *Buffer) readBehind(after touchline.Position, maxBytes int) ([]wire.Block, error) {
	b.readers.RLock()
	defer b.readers.RUnlock()
	if b.life.Err() != nil {
		return nil, ErrClosed
	}
	from, err := b.locate(after)
	if err != nil {
		b.noticeDamage(err)
		return nil, fmt.Errorf("find position in buffer: %w", err)
	}
	for {
		blocks, next, err := b.readFrom(from, maxBytes)
		if err != nil {
			b.noticeDamage(err)
			return nil, fmt.Errorf("read buffer: %w", err)
		}
		if n := len(blocks); n > 0 {
			b.handOut(b.known.key(b.known.index[blocks[n-1].Epoch], blocks[n-1].Last()))
		}
		if len(blocks) > 0 || next == from {
			return blocks, nil
		}
		from = next // all that was read is to be left out
	}
}

// locate returns the key from which on blocks are behind after. A position
// within a block is before that block: a sample twice is no harm.
func (b *Buffer) locate(after touchline.Position) (int64, error) {
	i, known := b.known.index[after.Epoch]
	if !known {
		return 0, nil
	}
	key := b.known.key(i, after.Seq)
	found, count, err := seek(b.store.upTo, key)
	if err != nil {
		return 0, err
	}
	if count > 0 && found > b.known.bases[i] && found+count-1 > key {
		return found, nil
	}
	return key + 1, nil
}

// seek returns key and count of the one block that a query finds, or zeros.
func seek(query *sql.Stmt, key int64) (found, count int64, err error) {
	err = query.QueryRowContext(context.Background(), key).Scan(&found, &count)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, nil
	}
	if err != nil {
		err = contentError(err)
	}
	return found, count, err
}

// readFrom reads blocks from a key on. Without blocks it returns the key to go
// on from, which is the same if there is nothing behind it. What a failed merge
// may yet change is not there until a commit succeeds; what is before it is,
// for a disk that takes no commit any more can still be emptied into the cloud.
func (b *Buffer) readFrom(from int64, maxBytes int) (blocks []wire.Block, next int64, err error) {
	rows, err := b.store.read.QueryContext(context.Background(), from, maxNextBlocks)
	if err != nil {
		return nil, from, err
	}
	defer rows.Close()
	next = from
	unsure := b.unsure.Load()
	for size := 0; rows.Next(); {
		var key int64
		var count, crc, committed any // whatever a damaged row has there
		var block wire.Block
		if err := rows.Scan(&key, &count, &crc, &block.Data, &committed); err != nil {
			return nil, from, contentError(err)
		}
		if key < next {
			return nil, from, fmt.Errorf("%w: block %d is out of order", errDamaged, key)
		}
		if unsure != 0 && key >= unsure {
			break
		}
		next = key + 1
		i, first, known := b.known.of(key)
		if !known {
			return nil, from, fmt.Errorf("%w: block %d belongs to no epoch", errDamaged, key)
		}
		block.Epoch, block.First = b.known.uuids[i], first
		block.Count, block.CRC = numberOf(count), numberOf(crc)
		if r := block.Range(); !r.Valid() {
			block.Count = 0 // and so fails its check
		} else if end, acked := b.ackedEnd(i, r); acked {
			if len(blocks) == 0 {
				if err := rows.Close(); err != nil { // or two connections would be taken
					return nil, from, err
				}
				// Past all that is acknowledged at once, but not past a block of
				// which that is a part only.
				next, err := b.locate(touchline.Position{Epoch: block.Epoch, Seq: end})
				if err != nil {
					return nil, from, err
				}
				return nil, next, nil
			}
			continue
		}
		if err := block.Check(); err != nil {
			reported, _ := committed.(int64)
			b.countDamaged(damagedBlock{key: key, epoch: i, first: first, reported: reported < 0}, err)
			continue
		}
		if size += len(block.Data); size > maxBytes && len(blocks) > 0 {
			break
		}
		blocks = append(blocks, block)
	}
	return blocks, next, rows.Err()
}

func (b *Buffer) ackedEnd(epoch int, r touchline.Range) (uint64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.isStored(epoch, r)
}

// Held returns the epochs of which blocks are held, oldest first and 1,024 at
// most, and the oldest 256 lost records that are not confirmed. A record that
// was returned never changes; those beyond are returned when these are
// confirmed. After Close it returns nothing.
func (b *Buffer) Held() ([]wire.Held, []wire.Lost) {
	held, err := b.heldEpochs()
	if err != nil {
		b.noticeDamage(err)
		b.log.Error("epochs of the buffer can't be read", "error", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var lost []wire.Lost
	for _, r := range b.lost {
		if _, confirmed := b.acks.confirmed[r.ID]; confirmed || r.changing {
			continue
		}
		if len(lost) == maxAnnounced {
			break
		}
		r.announced = true
		l := r.Lost
		l.Ranges = l.Ranges.Clone()
		lost = append(lost, l)
	}
	return held, lost
}

// heldEpochs steps from epoch to epoch: two look-ups for each that has blocks.
func (b *Buffer) heldEpochs() ([]wire.Held, error) {
	b.readers.RLock()
	defer b.readers.RUnlock()
	if b.life.Err() != nil {
		return nil, nil
	}
	var held []wire.Held
	for from := int64(0); len(held) < maxHeldEpochs; {
		oldest, count, err := seek(b.store.after, from)
		if err != nil {
			return held, fmt.Errorf("read epochs: %w", err)
		}
		if count == 0 {
			break
		}
		i, first, known := b.known.of(oldest)
		if !known {
			return held, fmt.Errorf("read epochs: %w: block %d belongs to no epoch", errDamaged, oldest)
		}
		from = b.known.end(i)
		youngest, count, err := seek(b.store.upTo, from)
		if err != nil {
			return held, fmt.Errorf("read epochs: %w", err)
		}
		if youngest < oldest {
			continue // the epoch was forgotten in between
		}
		held = append(held, wire.Held{Epoch: b.known.uuids[i], Oldest: first, Next: uint64(youngest + count - b.known.bases[i])})
		if i == b.known.current() {
			break
		}
	}
	return held, nil
}
