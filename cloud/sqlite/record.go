package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/rollup"
)

// Record implements cloud.Recorder. It costs one sync, one insert for each
// new block, and one update for each epoch and each gateway of the batch. It
// waits while another process writes, for half a minute at most. Where ctx
// ends before the commit began, the batch is rolled back and the error is
// that of ctx; a commit is not interrupted.
func (s *Store) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	if len(batch) == 0 {
		return nil, nil
	}
	s.recording.Lock()
	defer s.recording.Unlock()
	outcomes, err := s.record(ctx, batch)
	if err != nil {
		s.known.clear() // it may say what was rolled back
		if ctx.Err() != nil {
			err = ctx.Err() // and not that the transaction is closed
		}
		return nil, fmt.Errorf("record %d blocks: %w", len(batch), unavailable(err))
	}
	s.known.trim()
	return outcomes, nil
}

func (s *Store) record(ctx context.Context, batch []cloud.Delivery) (_ []cloud.Outcome, err error) {
	if err := s.inPlace(); err != nil {
		return nil, err
	}
	tx, err := s.beginWrite(ctx)
	if err != nil {
		return nil, err
	}
	defer rollback(tx, &err)
	version := fileVersion{connection: s.writeConn.opened.Load()}
	if err := tx.QueryRow(`PRAGMA data_version`).Scan(&version.dataVersion); err != nil {
		return nil, fmt.Errorf("read data version: %w", err)
	}
	s.known.keepIf(version)

	r := recording{tx: tx, known: &s.known, changed: make(map[*cursor]struct{}), tallies: make(map[int64]*tally)}
	outcomes := make([]cloud.Outcome, len(batch))
	for i := range batch {
		// Statements get no context: each takes µs, and a goroutine to watch
		// a context costs more. A transaction whose context ended refuses
		// the next statement.
		if outcomes[i], err = r.deliver(&batch[i]); err != nil {
			b := &batch[i].Block
			return nil, fmt.Errorf("block %s/%d+%d of %s: %w", b.Epoch, b.First, b.Count, batch[i].Gateway, err)
		}
	}
	if err := r.update(); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if err := s.inPlace(); err != nil { // or what was committed is gone already
		return nil, err
	}
	return outcomes, nil
}

// A recording is the work on one batch.
type recording struct {
	tx      *sql.Tx
	known   *cursorCache
	changed map[*cursor]struct{} // to be written
	tallies map[int64]*tally     // by gateway, to be added
	added   rollup.Spans
}

// A tally is what a batch adds to a gateway's counters.
type tally struct {
	samples, blocks, keptAside int64
	lastStored                 int64 // ns since the Unix epoch
}

// deliver stores one block, among the samples or aside, unless it is there.
func (r *recording) deliver(d *cloud.Delivery) (cloud.Outcome, error) {
	b := &d.Block
	if b.Count == 0 || !b.Range().Valid() {
		return cloud.Outcome{}, errors.New("its numbers are out of bounds") // ingest checks them
	}
	gateway, err := r.known.gateway(r.tx, d.Gateway)
	if err != nil {
		return cloud.Outcome{}, err
	}
	cur, err := r.known.cursor(r.tx, b.Epoch, gateway)
	if err != nil {
		return cloud.Outcome{}, err
	}
	// The usual block is in order and whole.
	if cur.gateway == gateway && d.Problem == "" && len(d.Samples) == int(b.Count) && !cur.ranges.Overlaps(b.Range()) {
		return cloud.Outcome{}, r.store(d, cur)
	}
	if outcome, err := r.repeat(d, cur, gateway); err != nil || outcome.Repeat {
		return outcome, err
	}
	reason, err := r.reasonAside(d, cur, gateway)
	if err != nil {
		return cloud.Outcome{}, err
	}
	return cloud.Outcome{KeptAside: true, Reason: reason}, r.keepAside(d, cur, gateway, reason)
}

func (r *recording) store(d *cloud.Delivery, cur *cursor) error {
	b := &d.Block
	place := placed{Span: merge.SpanOf(d.Samples), gateway: cur.gateway}
	result, err := r.tx.Exec(`
		INSERT INTO block (cursor, first, count, crc, received, filter, data) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		cur.id, int64(b.First), b.Count, b.CRC, d.Received.UnixNano(), merge.NewNameFilter(d.Samples), nonNil(b.Data))
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	id, err := result.LastInsertId()
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	place.block = id
	if cloud.Doubted(d.Clock, d.Samples) {
		if err := r.doubt(d, &place); err != nil {
			return err
		}
	}
	if err := place.insert(r.tx); err != nil {
		return err
	}
	r.added.AddSamples(place.gateway, d.Samples, place.by)
	t := r.markStored(d, cur, cur.gateway)
	t.samples += int64(b.Count)
	t.blocks++
	return nil
}

// doubt notes that a block's samples can be corrected, and places it by what is
// known of its boot.
func (r *recording) doubt(d *cloud.Delivery, place *placed) error {
	boot, err := bootOf(r.tx, place.gateway, d.Clock.Boot)
	if err != nil {
		return err
	}
	row := doubt{block: place.block, by: d.Clock.Clock, stamps: merge.StampsOf(d.Samples)}
	place.by = cloud.Correct(row.by, boot.known)
	place.Span = row.stamps.By(place.by)
	return row.insert(r.tx, boot.id)
}

// repeat says whether exactly this block (bounds and CRC) is stored, among
// the samples or aside.
func (r *recording) repeat(d *cloud.Delivery, cur *cursor, gateway int64) (cloud.Outcome, error) {
	b := &d.Block
	var found int
	if cur.gateway == gateway {
		err := r.tx.QueryRow(`SELECT 1 FROM block WHERE cursor = ? AND first = ? AND count = ? AND crc = ?`,
			cur.id, int64(b.First), b.Count, b.CRC).Scan(&found)
		if err == nil {
			return cloud.Outcome{Repeat: true}, nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return cloud.Outcome{}, fmt.Errorf("look for repeat: %w", err)
		}
	}
	var reason string
	err := r.tx.QueryRow(`SELECT reason FROM aside WHERE cursor = ? AND first = ? AND gateway = ? AND count = ? AND crc = ?`,
		cur.id, int64(b.First), gateway, b.Count, b.CRC).Scan(&reason)
	if errors.Is(err, sql.ErrNoRows) {
		return cloud.Outcome{}, nil
	}
	if err != nil {
		return cloud.Outcome{}, fmt.Errorf("look for repeat aside: %w", err)
	}
	return cloud.Outcome{Repeat: true, KeptAside: true, Reason: reason}, nil
}

// reasonAside says why a block that is no repeat can't stand among the samples.
func (r *recording) reasonAside(d *cloud.Delivery, cur *cursor, gateway int64) (string, error) {
	b := &d.Block
	switch {
	case cur.gateway != gateway:
		var owner string
		if err := r.tx.QueryRow(`SELECT name FROM gateway WHERE id = ?`, cur.gateway).Scan(&owner); err != nil {
			return "", fmt.Errorf("read owner of epoch: %w", err)
		}
		return fmt.Sprintf("the epoch belongs to gateway %s", owner), nil
	case d.Problem != "":
		return shorten(d.Problem), nil
	case len(d.Samples) != int(b.Count):
		return fmt.Sprintf("it decodes to %d samples where its count is %d", len(d.Samples), b.Count), nil
	}
	stored := b.Range().Count()
	for _, missing := range cur.ranges.Missing(b.Range()) {
		stored -= missing.Count()
	}
	return fmt.Sprintf("%d of its numbers %d to %d are stored from other blocks", stored, b.First, b.Last()), nil
}

// keepAside stores the block outside the samples. Numbers of the gateway's
// own epoch are stored then. Those of another gateway's are not touched: what
// one gateway claims must not make the store refuse what the owner still has.
func (r *recording) keepAside(d *cloud.Delivery, cur *cursor, gateway int64, reason string) error {
	b := &d.Block
	_, err := r.tx.Exec(`
		INSERT INTO aside (cursor, gateway, first, count, crc, received, reason, data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		cur.id, gateway, int64(b.First), b.Count, b.CRC, d.Received.UnixNano(), reason, nonNil(b.Data))
	if err != nil {
		return fmt.Errorf("insert aside: %w", err)
	}
	r.markStored(d, cur, gateway).keptAside++
	return nil
}

// markStored puts the block's numbers into the cursor where it is the
// gateway's own, and returns the gateway's tally.
func (r *recording) markStored(d *cloud.Delivery, cur *cursor, gateway int64) *tally {
	if cur.gateway == gateway {
		r.known.add(cur, d.Block.Range())
		r.changed[cur] = struct{}{}
	}
	t := r.tallies[gateway]
	if t == nil {
		t = &tally{}
		r.tallies[gateway] = t
	}
	t.lastStored = max(t.lastStored, d.Received.UnixNano())
	return t
}

// update writes the cursors and counters that the batch changed, each once.
func (r *recording) update() error {
	if err := r.writeCursors(); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(r.tallies)) {
		t := r.tallies[id]
		_, err := r.tx.Exec(`
			UPDATE gateway SET samples = samples + ?1, blocks = blocks + ?2, kept_aside = kept_aside + ?3,
				last_stored = max(coalesce(last_stored, ?4), ?4)
			WHERE id = ?5`,
			t.samples, t.blocks, t.keptAside, t.lastStored, id)
		if err != nil {
			return fmt.Errorf("update counters: %w", err)
		}
	}
	return note(r.tx, &r.added)
}

// shorten bounds what is stored of a text that comes from outside.
func shorten(s string) string {
	const maxTextBytes = 1000
	return strings.ToValidUTF8(s[:min(len(s), maxTextBytes)], "")
}

// nonNil makes an empty blob of nil, which would be NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
