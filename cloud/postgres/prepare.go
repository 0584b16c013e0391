package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"touchline"
	"touchline/cloud"
)

// lock reads what every batch needs, and locks the cursors until the
// transaction ends: nobody else records into their epochs meanwhile.
func (r *recording) lock(ctx context.Context) error {
	var names []string
	for i := range r.batch {
		if name := r.batch[i].Gateway; !slices.Contains(names, name) && touchline.CheckGateway(name) == nil {
			names = append(names, name)
		}
	}
	r.gateways, r.cursors = make(map[string]int64), make(map[touchline.Epoch]*cursor)
	epochs := r.sortedEpochs()
	var batch pgx.Batch
	var there bool
	batch.Queue(`SELECT now(), EXISTS (SELECT FROM part WHERE day = now()::date)`).QueryRow(func(row pgx.Row) error {
		var now time.Time
		err := row.Scan(&now, &there)
		r.day = dayOf(now)
		return err
	})
	batch.Queue(`SELECT nextval('block_id') FROM generate_series(1, $1::int)`, len(r.batch)).Query(func(rows pgx.Rows) (err error) {
		r.ids, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	batch.Queue(`SELECT name, id FROM gateway WHERE name = ANY ($1)`, names).Query(func(rows pgx.Rows) error {
		var name string
		var id int64
		_, err := pgx.ForEachRow(rows, []any{&name, &id}, func() error { r.gateways[name] = id; return nil })
		return err
	})
	batch.Queue(`SAVEPOINT unlocked`)
	batch.Queue(lockCursors, epochs).Query(r.readCursors)
	if err := r.tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("lock cursors: %w", err)
	}
	if !there {
		return &missingPart{r.day}
	}
	for i := range r.batch {
		if _, ok := r.gateways[r.batch[i].Gateway]; !ok {
			return r.blame(i, errNotRegistered)
		}
	}
	if len(r.cursors) == len(epochs) {
		return nil
	}
	return r.makeCursors(ctx, epochs)
}

const lockCursors = `
	SELECT c.epoch, c.id, c.gateway, g.name, c.begun, c.ranges FROM cursor c JOIN gateway g ON g.id = c.gateway
	WHERE c.epoch = ANY ($1) ORDER BY c.epoch FOR UPDATE OF c`

func (r *recording) readCursors(rows pgx.Rows) error {
	var epoch []byte
	var c cursor
	var begun time.Time
	var stored multirange
	_, err := pgx.ForEachRow(rows, []any{&epoch, &c.id, &c.gateway, &c.owner, &begun, &stored}, func() (err error) {
		made := c
		made.begun = dayOf(begun)
		if made.ranges, err = rangesOf(stored); err != nil {
			return fmt.Errorf("epoch %x: %w", epoch, err)
		}
		r.cursors[touchline.Epoch(epoch)] = &made
		return nil
	})
	return err
}

// makeCursors makes the cursors that are missing, for the gateways that are
// the first to use their epochs. A row is made before it is read, so that
// nobody else can make it in between; and before any is locked, since what
// somebody else made a moment ago may be locked by who waits for one of ours.
func (r *recording) makeCursors(ctx context.Context, epochs [][]byte) error {
	var missing [][]byte
	var owners []int64
	for _, e := range epochs {
		if r.cursors[touchline.Epoch(e)] != nil {
			continue
		}
		i := slices.IndexFunc(r.batch, func(d cloud.Delivery) bool { return d.Block.Epoch == touchline.Epoch(e) })
		missing, owners = append(missing, e), append(owners, r.gateways[r.batch[i].Gateway])
	}
	clear(r.cursors)
	var batch pgx.Batch
	batch.Queue(`ROLLBACK TO SAVEPOINT unlocked`)
	batch.Queue(`
		INSERT INTO cursor (epoch, gateway, begun) SELECT e, g, $3 FROM unnest($1::bytea[], $2::bigint[]) AS new (e, g) ORDER BY e
		ON CONFLICT DO NOTHING`, missing, owners, r.day.date())
	batch.Queue(lockCursors, epochs).Query(r.readCursors)
	if err := r.tx.SendBatch(ctx, &batch).Close(); err != nil {
		return fmt.Errorf("make cursors: %w", err)
	}
	return nil
}

// lookUp finds those blocks of the batch that are not usual and are stored
// already, exactly as they are (bounds and CRC), among the samples or aside.
func (r *recording) lookUp(ctx context.Context) error {
	r.known = make(map[blockKey]known)
	var own, all []blockKey
	begun := r.day
	for i := range r.batch {
		d := &r.batch[i]
		key, cur := r.key(d)
		if usual(d, cur, key.gateway) {
			continue
		}
		all = append(all, key)
		if cur.gateway == key.gateway && cur.ranges.Overlaps(d.Block.Range()) {
			own, begun = append(own, key), min(begun, cur.begun)
		}
	}
	if len(all) == 0 {
		return nil
	}
	if err := r.lookUpAside(ctx, all); err != nil {
		return err
	}
	return r.lookUpBlocks(ctx, own, begun)
}

func (r *recording) lookUpAside(ctx context.Context, keys []blockKey) error {
	var reason string
	err := r.match(ctx, `
		SELECT n, a.reason FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[], $5::bigint[]) WITH ORDINALITY AS w (cursor, gateway, first, count, crc, n)
			JOIN aside a USING (cursor, gateway, first, count, crc)`, keys, &reason, func(k blockKey) { r.known[k] = known{true, reason} })
	if err != nil {
		return fmt.Errorf("look for repeats aside: %w", err)
	}
	return nil
}

// lookUpBlocks asks the partitions one by one from the newest, since what is
// repeated was mostly sent a moment ago; none that is older than the epochs.
func (r *recording) lookUpBlocks(ctx context.Context, keys []blockKey, begun day) error {
	if len(keys) == 0 {
		return nil
	}
	// Locked, so that none is dropped on the way.
	rows, err := r.tx.Query(ctx, `SELECT day FROM part WHERE day BETWEEN $1 AND $2 ORDER BY day DESC FOR KEY SHARE`, begun.date(), r.day.date())
	if err != nil {
		return fmt.Errorf("look for repeats: %w", err)
	}
	dates, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return fmt.Errorf("look for repeats: %w", err)
	}
	for _, date := range dates {
		keys = slices.DeleteFunc(keys, func(k blockKey) bool { _, found := r.known[k]; return found })
		if len(keys) == 0 {
			return nil
		}
		var id int64
		err := r.match(ctx, repeatQuery(dayOf(date)), keys, &id, func(k blockKey) { r.known[k] = known{} })
		if err != nil {
			return fmt.Errorf("look for repeats: %w", err)
		}
	}
	return nil
}

func repeatQuery(d day) string {
	return `
	SELECT n, b.id FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[], $5::bigint[]) WITH ORDINALITY AS w (cursor, gateway, first, count, crc, n)
		JOIN ` + d.table("block") + ` b USING (cursor, first, count, crc)`
}

// match calls found for the keys that the query returns the places of, from 1,
// with what else it returns in to.
func (r *recording) match(ctx context.Context, query string, keys []blockKey, to any, found func(blockKey)) error {
	n := len(keys)
	cursors, gateways, firsts := make([]int64, n), make([]int64, n), make([]int64, n)
	counts, crcs := make([]int32, n), make([]int64, n)
	for i, k := range keys {
		cursors[i], gateways[i], firsts[i], counts[i], crcs[i] = k.cursor, k.gateway, int64(k.first), int32(k.count), int64(k.crc)
	}
	rows, err := r.tx.Query(ctx, query, cursors, gateways, firsts, counts, crcs)
	if err != nil {
		return err
	}
	var at int64
	_, err = pgx.ForEachRow(rows, []any{&at, to}, func() error { found(keys[at-1]); return nil })
	return err
}

// readBoots reads what is known of the clocks that stamped blocks of the
// batch, and makes their rows where there are none. They stay as they are until
// the transaction ends, so that a correction finds the blocks, or they it.
func (r *recording) readBoots(ctx context.Context) error {
	r.boots = make(map[bootKey]*boot)
	for i := range r.batch {
		if d := &r.batch[i]; cloud.Doubted(d.Clock, d.Samples) {
			r.boots[bootKey{r.gateways[d.Gateway], d.Clock.Boot}] = nil
		}
	}
	if len(r.boots) == 0 {
		return nil
	}
	var keys []bootKey
	for k := range r.boots {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b bootKey) int {
		return cmp.Or(cmp.Compare(a.gateway, b.gateway), cmp.Compare(string(a.boot[:]), string(b.boot[:])))
	})
	for _, k := range keys {
		b, err := bootOf(ctx, r.tx, k, "FOR SHARE")
		if err != nil {
			return err
		}
		r.boots[k] = &b
	}
	return nil
}
