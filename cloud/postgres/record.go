package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/merge"
	"touchline/cloud/rollup"
)

// recordTimeout bounds one Record: a server that does not answer must not hold
// up what it would be told next.
const recordTimeout = 2 * time.Minute

// maxAttempts is how often a batch is recorded that met another transaction in
// the wrong order, which the server ends.
const maxAttempts = 3

var (
	errNotRegistered = errors.New("the gateway is not registered")
	errBounds        = errors.New("its numbers are out of bounds") // ingest checks them
)

// Record implements cloud.Recorder. Cursors are locked in the order of their
// epochs, so that two nodes that have blocks of one epoch record them one after
// the other; of different epochs they hinder one another once in an hour (see
// cover). It costs some round trips, whatever the batch, and one sync. Where
// ctx ends before the commit began, the batch is rolled back and the error is
// that of ctx; a commit is not interrupted.
func (s *Store) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	if len(batch) == 0 {
		return nil, nil
	}
	bounded, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	var outcomes []cloud.Outcome
	var err error
	for attempt := 1; ; attempt++ {
		err = s.change(bounded, func(tx pgx.Tx) error {
			r := &recording{tx: tx, store: s, batch: batch}
			outcomes, err = r.record(bounded)
			return err
		})
		var missing *missingPart
		switch {
		case attempt >= maxAttempts || err == nil:
		case errors.As(err, &missing): // Run has not been able to, or this is a new year's clock
			if err = s.makePart(bounded, missing.day); err == nil {
				continue
			}
		case isCode(err, codeDeadlock, codeSerialization):
			continue
		}
		break
	}
	if err == nil {
		return outcomes, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("record %d blocks: %w", len(batch), ctx.Err())
	}
	return nil, fmt.Errorf("record %d blocks: %w", len(batch), unavailable(err))
}

// A missingPart is an error that says which partition is to be made.
type missingPart struct{ day day }

func (e *missingPart) Error() string { return fmt.Sprintf("there is no partition for %s", e.day) }

// A recording is the work on one batch: it reads what the batch needs, decides
// in the order of the batch, and writes.
type recording struct {
	tx    pgx.Tx
	store *Store
	batch []cloud.Delivery

	day      day // of the server, now
	gateways map[string]int64
	cursors  map[touchline.Epoch]*cursor
	ids      []int64            // for new blocks
	known    map[blockKey]known // blocks that the batch repeats, and those of the batch
	boots    map[bootKey]*boot

	blocks, places, doubts [][]any // rows to be copied
	asides                 []*aside
	covers                 cover
	changed                map[*cursor]*touchline.Ranges // what is added to them
	tallies                map[int64]*tally              // by gateway, to be added
	added                  rollup.Spans
}

// A cursor says which numbers of an epoch are stored.
type cursor struct {
	id      int64
	gateway int64 // whose epoch it is
	owner   string
	begun   day
	session uint64 // highest of the batch
	ranges  touchline.Ranges
}

// A blockKey is what a repeat has in common with its first.
type blockKey struct {
	cursor, gateway int64
	first           uint64
	count, crc      uint32
}

type known struct {
	aside  bool
	reason string
}

// An aside is a row of table aside.
type aside struct {
	key      blockKey
	received int64
	reason   string
	data     []byte
}

// A tally is what a batch adds to a gateway's counters.
type tally struct {
	samples, blocks, keptAside int64
	lastStored                 int64 // ns since the Unix epoch
}

func (r *recording) record(ctx context.Context) ([]cloud.Outcome, error) {
	for i := range r.batch {
		if b := &r.batch[i].Block; b.Count == 0 || !b.Range().Valid() {
			return nil, r.blame(i, errBounds)
		}
	}
	for _, step := range []func(context.Context) error{r.lock, r.lookUp, r.readBoots} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	outcomes := make([]cloud.Outcome, len(r.batch))
	r.covers, r.changed, r.tallies = cover{}, make(map[*cursor]*touchline.Ranges), make(map[int64]*tally)
	for i := range r.batch {
		outcomes[i] = r.deliver(&r.batch[i])
	}
	return outcomes, r.write(ctx)
}

func (r *recording) blame(i int, err error) error {
	b := &r.batch[i].Block
	return fmt.Errorf("block %s/%d+%d of %s: %w", b.Epoch, b.First, b.Count, r.batch[i].Gateway, err)
}

func (r *recording) key(d *cloud.Delivery) (blockKey, *cursor) {
	cur := r.cursors[d.Block.Epoch]
	return blockKey{cur.id, r.gateways[d.Gateway], d.Block.First, d.Block.Count, d.Block.CRC}, cur
}

// usual says whether a block is in order and whole, and nothing of it is
// stored.
func usual(d *cloud.Delivery, cur *cursor, gateway int64) bool {
	b := &d.Block
	return cur.gateway == gateway && d.Problem == "" && len(d.Samples) == int(b.Count) && !cur.ranges.Overlaps(b.Range())
}

// deliver takes one block among the samples or aside, unless it is there.
func (r *recording) deliver(d *cloud.Delivery) cloud.Outcome {
	key, cur := r.key(d)
	cur.session = max(cur.session, d.Session)
	if usual(d, cur, key.gateway) {
		r.place(d, cur)
		r.known[key] = known{}
		return cloud.Outcome{}
	}
	if k, ok := r.known[key]; ok {
		return cloud.Outcome{Repeat: true, KeptAside: k.aside, Reason: k.reason}
	}
	reason := r.reasonAside(d, cur, key.gateway)
	r.asides = append(r.asides, &aside{key, d.Received.UnixNano(), reason, nonNil(d.Block.Data)})
	r.known[key] = known{aside: true, reason: reason}
	r.markStored(d, cur, key.gateway).keptAside++
	return cloud.Outcome{KeptAside: true, Reason: reason}
}

func (r *recording) place(d *cloud.Delivery, cur *cursor) {
	b := &d.Block
	id := r.ids[0]
	r.ids = r.ids[1:]
	span, by := merge.SpanOf(d.Samples), cloud.Correction{}
	if cloud.Doubted(d.Clock, d.Samples) {
		at, stamps := r.boots[bootKey{cur.gateway, d.Clock.Boot}], merge.StampsOf(d.Samples)
		by = cloud.Correct(d.Clock.Clock, at.known)
		span = stamps.By(by)
		r.doubts = append(r.doubts, []any{at.id, id, r.day.date(), int16(d.Clock.State), d.Clock.Offset,
			stamps.Stamped.From, stamps.Stamped.To, stamps.Own.From, stamps.Own.To})
	}
	r.blocks = append(r.blocks, []any{r.day.date(), id, cur.id, int64(b.First), int32(b.Count), int64(b.CRC), d.Received.UnixNano(),
		[]byte(merge.NewNameFilter(d.Samples)), nonNil(b.Data)})
	r.places = append(r.places, placeRow(r.day, id, span, cur.gateway, by, r.store.era))
	r.covers.add(r.day, span)
	r.added.AddSamples(cur.gateway, d.Samples, by)
	t := r.markStored(d, cur, cur.gateway)
	t.samples += int64(b.Count)
	t.blocks++
}

// reasonAside says why a block that is no repeat can't stand among the samples.
func (r *recording) reasonAside(d *cloud.Delivery, cur *cursor, gateway int64) string {
	b := &d.Block
	switch {
	case cur.gateway != gateway:
		return fmt.Sprintf("the epoch belongs to gateway %s", cur.owner)
	case d.Problem != "":
		return text(d.Problem)
	case len(d.Samples) != int(b.Count):
		return fmt.Sprintf("it decodes to %d samples where its count is %d", len(d.Samples), b.Count)
	}
	stored := b.Range().Count()
	for _, missing := range cur.ranges.Missing(b.Range()) {
		stored -= missing.Count()
	}
	return fmt.Sprintf("%d of its numbers %d to %d are stored from other blocks", stored, b.First, b.Last())
}

// markStored puts the block's numbers into the cursor where it is the
// gateway's own, and returns the gateway's tally. Those of another gateway's
// are not touched: what one gateway claims must not make the store refuse what
// the owner still has.
func (r *recording) markStored(d *cloud.Delivery, cur *cursor, gateway int64) *tally {
	if cur.gateway == gateway {
		cur.ranges.Add(d.Block.Range())
		if r.changed[cur] == nil {
			r.changed[cur] = &touchline.Ranges{}
		}
		r.changed[cur].Add(d.Block.Range())
	}
	t := r.tallies[gateway]
	if t == nil {
		t = &tally{}
		r.tallies[gateway] = t
	}
	t.lastStored = max(t.lastStored, d.Received.UnixNano())
	return t
}

// The columns in the order of their rows.
var (
	blockColumns = []string{"day", "id", "cursor", "first", "count", "crc", "received", "filter", "data"}
	placeColumns = []string{"day", "span", "min_time", "block", "max_time", "gateway", "shift", "vouched", "era"}
	doubtColumns = []string{"boot", "block", "day", "state", "clock_offset", "stamped_min", "stamped_max", "own_min", "own_max"}
)

func placeRow(d day, id int64, s merge.Span, gateway int64, by cloud.Correction, era int16) []any {
	return []any{d.date(), int16(s.Class()), s.From, id, s.To, gateway, by.Shift, by.Vouched, era}
}

// write writes what was decided. Rows are copied into the partitions
// themselves: their tables need not be asked where each belongs.
func (r *recording) write(ctx context.Context) error {
	for _, c := range []struct {
		table   string
		columns []string
		rows    [][]any
	}{
		{r.day.table("block"), blockColumns, r.blocks},
		{r.day.table("place"), placeColumns, r.places},
		{"doubt", doubtColumns, r.doubts},
	} {
		if len(c.rows) == 0 {
			continue
		}
		if _, err := r.tx.CopyFrom(ctx, pgx.Identifier{c.table}, c.columns, pgx.CopyFromRows(c.rows)); err != nil {
			return fmt.Errorf("copy into %s: %w", c.table, err)
		}
	}
	var batch pgx.Batch
	for _, a := range r.asides {
		batch.Queue(`INSERT INTO aside (cursor, gateway, first, count, crc, received, reason, data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			a.key.cursor, a.key.gateway, int64(a.key.first), int32(a.key.count), int64(a.key.crc), a.received, a.reason, a.data)
	}
	for cur, added := range r.changed {
		batch.Queue(`UPDATE cursor SET ranges = ranges + $2, session = greatest(session, $3) WHERE id = $1`, cur.id, multirangeOf(*added), int64(cur.session))
	}
	r.covers.queue(&batch)
	if !r.added.None() {
		batch.Queue(insertNote, r.added.Encode())
	}
	for _, id := range slices.Sorted(maps.Keys(r.tallies)) {
		t := r.tallies[id]
		batch.Queue(`
			UPDATE gateway SET samples = samples + $2, blocks = blocks + $3, kept_aside = kept_aside + $4, last_stored = greatest(last_stored, $5)
			WHERE id = $1`, id, t.samples, t.blocks, t.keptAside, t.lastStored)
	}
	if batch.Len() == 0 {
		return nil
	}
	if err := r.tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("update cursors and counters: %w", err)
	}
	return nil
}

// text bounds what is stored of a text that comes from outside, and leaves out
// what the server takes for none: NUL, and what is not UTF-8.
func text(s string) string {
	const maxTextBytes = 1000
	return strings.ReplaceAll(strings.ToValidUTF8(s[:min(len(s), maxTextBytes)], ""), "\x00", "")
}

// nonNil makes an empty blob of nil, which would be NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// sortedEpochs are those of the batch in the order in which they are locked.
func (r *recording) sortedEpochs() [][]byte {
	seen := make(map[touchline.Epoch]struct{})
	var epochs [][]byte
	for i := range r.batch {
		e := r.batch[i].Block.Epoch
		if _, ok := seen[e]; !ok {
			seen[e] = struct{}{}
			epochs = append(epochs, e[:])
		}
	}
	slices.SortFunc(epochs, func(a, b []byte) int { return cmp.Compare(string(a), string(b)) })
	return epochs
}
