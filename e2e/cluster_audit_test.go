package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"touchline"
)

// query reads rows from the database, past the product.
func (l *league) query(statement string, each func(pgx.Rows) error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, l.url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, statement)
	if err != nil {
		l.t.Fatalf("%s: %v", statement, err)
	}
	for rows.Next() {
		if err := each(rows); err != nil {
			l.t.Fatalf("%s: %v", statement, err)
		}
	}
	if err := rows.Err(); err != nil {
		l.t.Fatalf("%s: %v", statement, err)
	}
}

// compareTold holds what gateways were told until now against the cursors, while
// all goes on, and returns how many blocks were queued and found to be stored
// already.
func (l *league) compareTold() (repeats uint64) {
	l.t.Helper()
	told := map[touchline.Epoch]touchline.Ranges{}
	for _, v := range l.arenas {
		told[v.source.epoch] = v.told()
	}
	stored := map[touchline.Epoch]touchline.Ranges{}
	l.query(`SELECT epoch, lower(r), upper(r) - 1 FROM touchline.cursor, unnest(ranges) r`, func(rows pgx.Rows) error {
		var name []byte
		var r touchline.Range
		if err := rows.Scan(&name, &r.First, &r.Last); err != nil {
			return err
		}
		ranges := stored[touchline.Epoch(name)]
		ranges.Add(r)
		stored[touchline.Epoch(name)] = ranges
		return nil
	})
	for _, v := range l.arenas {
		for _, r := range told[v.source.epoch] {
			if lie := stored[v.source.epoch].Missing(r); len(lie) > 0 {
				l.t.Errorf("%s was told that %v is stored: it is not", v.id, lie)
			}
		}
	}
	// The queue is read before the store: what is recorded in between is no repeat.
	st := l.queue.state()
	var blocks uint64
	l.query(`SELECT count(*) FROM touchline.block`, func(rows pgx.Rows) error { return rows.Scan(&blocks) })
	return st.ever - min(st.ever, st.waiting+blocks)
}

// audit lets all send to the end, and demands that the store has each block of
// each gateway once, as it was sent.
func (l *league) audit() {
	t := l.t
	t.Helper()
	l.finish()
	v := &verdict{by: map[string]uint64{}}
	for i, s := range l.sites {
		l.crowds[i].finish(t)
		s.drained()
	}
	l.silent = true
	l.happens("the end: all that was sent is stored", func() {
		waitFor(t, "all blocks to be stored", func() bool {
			return !slices.ContainsFunc(l.arenas, func(v *arena) bool { return v.source.left() > 0 })
		})
	})
	node := slices.IndexFunc(l.nodes, func(n *clusterNode) bool { return n.program != nil && n.program.running() })
	for i, s := range l.sites {
		s.cloudPort = l.nodes[node].port
		s.tally(l.crowds[i], v)
	}
	l.compareValues(node)
	l.quit()
	for _, n := range l.nodes {
		if n.program != nil {
			n.program.kill() // stopping is a polite crash
		}
	}
	for _, r := range l.recorders {
		if status := r.program.terminate(); status != 0 {
			t.Errorf("a recorder ended with status %d", status)
		}
	}
	l.compareBlocks(v)
	l.store.audit(v)
	if !v.holds() || v.acked != v.sent || v.acked == 0 {
		t.Errorf("%s", v)
	}
	l.table()
	t.Logf("MEASURED %s: %d samples of %d gateways each stored once; of touchline processes: %s", t.Name(), v.stored, len(l.arenas)+len(l.sites), v)
}

// compareBlocks reads all blocks of the gateways in this process.
func (l *league) compareBlocks(v *verdict) {
	l.t.Helper()
	type key struct {
		gateway string
		first   uint64
	}
	byID := map[string]*arena{}
	for _, one := range l.arenas {
		byID[one.id] = one
		v.stored += one.played() - 1
	}
	there := map[key]bool{}
	l.query(`SELECT g.name, c.epoch, b.first, b.count, sha256(b.data)
		FROM touchline.block b JOIN touchline.cursor c ON c.id = b.cursor JOIN touchline.gateway g ON g.id = c.gateway`, func(rows pgx.Rows) error {
		var name string
		var epoch, sum []byte
		var first uint64
		var count uint32
		if err := rows.Scan(&name, &epoch, &first, &count, &sum); err != nil {
			return err
		}
		one := byID[name]
		if one == nil {
			return nil // a touchline process: its samples were read by the query API
		}
		sent, known := one.blocks[first]
		switch {
		case !known || !bytes.Equal(epoch, one.source.epoch[:]) || count != sent.count || [sha256.Size]byte(sum) != sent.sum:
			v.foreign += uint64(count)
			v.find("the store has a block %s %x/%d of %d that was not sent so", name, epoch, first, count)
		case there[key{name, first}]:
			v.doubled += uint64(count)
			v.find("the store has block %s/%d twice", name, first)
		}
		there[key{name, first}] = true
		return nil
	})
	for _, one := range l.arenas {
		for first, sent := range one.blocks {
			if !there[key{one.id, first}] {
				v.lost += uint64(sent.count)
				v.find("lost: the store has no block %s/%d", one.id, first)
			}
		}
	}
}

// compareValues reads some gateways' samples by the query API, and compares
// them with the recordings.
func (l *league) compareValues(node int) {
	l.t.Helper()
	for _, v := range l.arenas {
		if !v.keeps {
			continue
		}
		left := map[row]int{}
		for _, r := range v.read {
			left[r]++
		}
		s := &site{t: l.t}
		got := readRows(l.t, bytes.NewReader(s.get(l.nodes[node].port, fmt.Sprintf("/v1/samples?format=csv&gateway=%s", v.id))), true)
		for _, r := range got {
			left[r]--
		}
		wrong := 0
		for r, n := range left {
			if n != 0 && wrong < 3 {
				l.t.Errorf("%s: of %+v the query API gave %d too few", v.id, r, n)
			}
			if n != 0 {
				wrong++
			}
		}
		if len(got) != len(v.read) || wrong > 0 {
			l.t.Errorf("%s: the query API gave %d samples, %d were sent; %d differ", v.id, len(got), len(v.read), wrong)
		}
	}
}
