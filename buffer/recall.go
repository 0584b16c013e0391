package buffer

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"touchline"
	"touchline/buffer/seen"
	"touchline/wire"
)

// A past is a file in which what was stored last is looked up.
type past struct {
	conn   *sql.Conn
	known  epochs
	before int64 // ms of running time from its clock to that of the buffer
}

type recentBlock struct {
	wire.Block
	committed int64 // by the buffer's clock
}

// recall takes from the file what was committed within the last window before
// this opening: keys, and samples of the youngest blocks, as many as the window
// has room for. What went aside since a newer touchline wrote it was in use
// until this file was begun, and is looked up, too: what was not acknowledged
// before a sensor's gateway went back comes again. Once the newer one is there
// again, and has its samples back, its keys are still there alone: those that
// hold for a day. What can't be read is not known: that is no ground for not
// opening.
func (b *Buffer) recall(ctx context.Context, aside []asideFile) error {
	began := time.Now()
	room := int(b.opts.RepeatBytes / leastSeenBytes)
	blocks, err := b.recallFrom(ctx, past{conn: b.store.conn, known: b.known}, &room)
	if err == nil {
		err = b.recallRows(ctx)
	}
	for _, a := range slices.Backward(aside) { // the youngest of them
		if a.kind != newer && a.kind != taken {
			continue
		}
		var more []recentBlock
		if err == nil {
			more, err = b.recallAside(ctx, &a, &room)
		}
		blocks = append(more, blocks...)
		break
	}
	if ctx.Err() != nil {
		return fmt.Errorf("read what was stored last: %w", ctx.Err())
	}
	if err != nil {
		b.log.Warn("what was stored last can't be read: what is sent again is stored again", "error", err)
	}
	if b.w.repeats.window == nil {
		return nil
	}
	w, decoder := b.w.repeats.window, wire.NewDecoder()
	var samples []touchline.Sample
	for i := range blocks {
		decoded, err := decoder.Decode(samples[:0], blocks[i].Data)
		if err != nil {
			continue // it is for Next to find it damaged
		}
		samples = decoded
		for j := range samples {
			if !samples[j].Stamped {
				w.Fresh(&samples[j])
			}
		}
		w.Commit(blocks[i].committed)
	}
	b.countRepeats(nil)
	b.log.Debug("what was stored last is known", "blocks", len(blocks), "samples", w.Len(), "keys", b.w.repeats.keys.Len(), "took", time.Since(began))
	return nil
}

// leastSeenBytes is what a sample takes in the window, at least.
const leastSeenBytes = 24

// recallFrom returns the sound blocks of the last window, oldest first.
func (b *Buffer) recallFrom(ctx context.Context, p past, room *int) (blocks []recentBlock, err error) {
	if b.w.repeats.window == nil {
		return nil, nil
	}
	oldest := b.clock.now() - b.opts.RepeatWindow.Milliseconds()
	// Within an epoch keys ascend by age. Epochs that were taken back from a
	// file stand behind those that are younger.
	type recent struct {
		i         int
		committed int64
	}
	var list []recent
	for i := range p.known.bases {
		var committed int64
		row := p.conn.QueryRowContext(ctx, "SELECT committed FROM block WHERE key > ?1 AND key <= ?2 ORDER BY key DESC LIMIT 1", p.known.bases[i], p.known.end(i))
		switch err := row.Scan(&committed); {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return nil, err
		default:
			list = append(list, recent{i, runningOf(committed) - p.before})
		}
	}
	slices.SortStableFunc(list, func(x, y recent) int { return cmp.Compare(y.committed, x.committed) })
	for _, e := range list {
		if e.committed < oldest || *room <= 0 {
			break
		}
		if err := b.youngestOf(ctx, p, e.i, func(r recentBlock) bool {
			if r.committed < oldest || *room <= 0 {
				return false
			}
			*room -= int(r.Count)
			blocks = append(blocks, r)
			return true
		}); err != nil {
			return nil, err
		}
	}
	slices.Reverse(blocks)
	slices.SortStableFunc(blocks, func(x, y recentBlock) int { return cmp.Compare(x.committed, y.committed) })
	return blocks, nil
}

// youngestOf hands out the sound blocks of an epoch, youngest first, until take
// returns false.
func (b *Buffer) youngestOf(ctx context.Context, p past, epoch int, take func(recentBlock) bool) error {
	rows, err := p.conn.QueryContext(ctx, "SELECT key, count, crc, data, committed FROM block WHERE key > ?1 AND key <= ?2 ORDER BY key DESC", p.known.bases[epoch], p.known.end(epoch))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var key, committed int64
		var count, crc any // whatever a damaged row has there
		var r recentBlock
		if err := rows.Scan(&key, &count, &crc, &r.Data, &committed); err != nil {
			continue // it is for Next to find it damaged
		}
		r.committed = runningOf(committed) - p.before
		r.Epoch, r.First = p.known.uuids[epoch], uint64(key-p.known.bases[epoch])
		r.Count, r.CRC = numberOf(count), numberOf(crc)
		if r.Check() == nil && !take(r) {
			break
		}
	}
	return rows.Err()
}

// recallRows reads the table of keys. A row that can't be one is left out:
// its messages, sent again, are stored again.
func (b *Buffer) recallRows(ctx context.Context) error {
	keys, now := b.w.repeats.keys, b.clock.now()
	return b.eachRow(ctx, b.store.conn, func(row seen.Row, committed int64) error { return keys.Load(row, committed, now) })
}

func (b *Buffer) eachRow(ctx context.Context, conn *sql.Conn, take func(seen.Row, int64) error) error {
	rows, err := conn.QueryContext(ctx, "SELECT n, committed, keys FROM arrival ORDER BY n")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var row seen.Row
		var committed int64
		err := rows.Scan(&row.N, &committed, &row.Data)
		if err == nil {
			err = take(row, committed)
		}
		if err != nil {
			b.log.Warn("keys of messages left out", "error", err)
		}
	}
	return rows.Err()
}

// recallAside looks a file up that was set aside, without changing it. It was
// so as this buffer's clock began, or gave this one its clock (see
// salvage.ran). Its schema has the tables of ours, word for word (see schemas).
func (b *Buffer) recallAside(ctx context.Context, a *asideFile, room *int) (blocks []recentBlock, err error) {
	now := b.clock.now()
	gaveClock := !a.unknown() && a.report.State != "" && !a.report.Before
	if now > seen.LongSpan.Milliseconds() && !gaveClock {
		return nil, nil // all that it knows is over
	}
	st, err := connectToRead(ctx, a.path)
	defer func() { err = errors.Join(err, st.closeToRead()) }()
	if err != nil {
		return nil, err
	}
	var state contents
	if err := errors.Join(st.loadTotals(ctx, &state), st.loadEpochs(ctx, &state)); err != nil {
		return nil, err
	}
	p := past{conn: st.conn, known: state.epochs, before: state.runningMS}
	if gaveClock {
		p.before = 0
	}
	if a.unknown() { // else its blocks are here
		if blocks, err = b.recallFrom(ctx, p, room); err != nil {
			return nil, err
		}
	}
	return blocks, b.eachRow(ctx, st.conn, func(row seen.Row, committed int64) error {
		return b.w.repeats.keys.Recall(row, committed-p.before, now)
	})
}
