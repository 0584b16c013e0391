package cloud_test

import (
	"context"
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// A moody store fails half its transactions: half of those before it
// recorded the batch, and half after, when the caller can't know. It fails four
// in a row at most: one that failed a block more often would have it kept aside.
type moody struct {
	cloud.Store
	row int
}

func (m *moody) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	mood := rand.N(4)
	if m.row == 4 {
		mood = 3
	}
	if mood > 1 {
		m.row = 0
		return m.Store.Record(ctx, batch)
	}
	m.row++
	if mood == 1 {
		if _, err := m.Store.Record(ctx, batch); err != nil {
			return nil, err
		}
	}
	return nil, errStore
}

// A tenacious gateway has each block acknowledged, whatever it takes.
func tenacious(n *node, id string, buffer []wire.Block) {
	epoch := buffer[0].Epoch
	held := wire.Held{Epoch: epoch, Oldest: 1, Next: buffer[len(buffer)-1].Last() + 1}
	var stored touchline.Ranges
	for !stored.Contains(touchline.Range{First: 1, Last: held.Next - 1}) {
		g, welcome := n.join(id, held)
		for _, er := range welcome.Stored {
			stored.AddAll(er.Ranges)
		}
		var sending []wire.Block
		for _, b := range buffer {
			if !stored.Contains(b.Range()) || rand.N(10) == 0 { // and some again
				sending = append(sending, b)
			}
		}
		rand.Shuffle(len(sending), func(i, j int) { sending[i], sending[j] = sending[j], sending[i] })
		if len(sending) > 0 {
			g.send(sending...)
		}
		for patience := rand.N(4); patience > 0 && !stored.Contains(touchline.Range{First: 1, Last: held.Next - 1}); patience-- {
			m, err := g.hear()
			if err != nil {
				n.t.Errorf("gateway %s: %v", id, err)
				return
			}
			if ack, ok := m.(*wire.Ack); ok {
				for _, er := range ack.Stored {
					stored.AddAll(er.Ranges)
				}
			}
		}
		g.conn.Close() // without a word
	}
}

func TestUplink_EachSampleOnceWhateverFails(t *testing.T) {
	const gateways, perGateway = 8, 40
	ids := make([]string, gateways)
	for i := range ids {
		ids[i] = fmt.Sprintf("gateway-%d", i)
	}
	eachStore(t, func(t *testing.T, store cloud.Store) {
		n := start(t, options(), &moody{Store: store})
		want := map[string]bool{} // gateway, time
		var wg sync.WaitGroup
		for _, id := range ids {
			buffer := blocks(t, perGateway)
			for i := range buffer {
				samples, err := wire.NewDecoder().Decode(nil, buffer[i].Data)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range samples {
					want[fmt.Sprint(id, s.Time)] = true
				}
			}
			wg.Add(1)
			go func() {
				defer wg.Done()
				tenacious(n, id, buffer)
			}()
		}
		wg.Wait()
		_, _, body := n.get("/v1/samples")
		rows, err := csv.NewReader(strings.NewReader(body)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows[1:] {
			key := row[1] + row[0]
			if !want[key] {
				t.Errorf("%v is there twice, or was never sent", row)
			}
			delete(want, key)
		}
		if len(want) > 0 {
			t.Errorf("%d samples are missing", len(want))
		}
		st := n.server.Stats()
		t.Logf("%d blocks came, %d of them repeats; %d batches failed", st.Blocks, st.Repeats, st.RecordErrors)
		eventually(t, "all connections end", func() bool { return n.server.Stats().Connections == 0 })
	}, ids...)
}
