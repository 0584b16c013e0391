package buffer

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"touchline"
	"touchline/wire"
)

func TestNext_GoesInOrderAcrossEpochs(t *testing.T) {
	opts := testOptions(t)
	for run := range 3 {
		b := startBuffer(t, opts)
		for i := range 4 {
			mustAppend(t, b, numbered(run*8+i*2, 2))
		}
		if run < 2 {
			b.Close()
			continue
		}
		wantValues(t, b, upTo(24))
		all := readAll(t, b)
		if len(all) != 12 {
			t.Fatalf("%d blocks, want 12", len(all))
		}
		// From each block on, the rest follows, whatever the size asked for.
		for i, from := range all {
			blocks, err := b.Next(testContext(t), touchline.Position{Epoch: from.Epoch, Seq: from.First - 1}, 1<<20)
			if err != nil || !equalBlocks(blocks, all[i:]) {
				t.Fatalf("from block %d: %d blocks (%v), want the %d that remain", i, len(blocks), err, len(all)-i)
			}
			one, err := b.Next(testContext(t), touchline.Position{Epoch: from.Epoch, Seq: from.First - 1}, 0)
			if err != nil || !equalBlocks(one, all[i:i+1]) {
				t.Fatalf("from block %d: %d blocks (%v), want one, even if it is larger than asked for", i, len(one), err)
			}
			// A position within a block is before it.
			if within, err := b.Next(testContext(t), touchline.Position{Epoch: from.Epoch, Seq: from.First}, 0); err != nil || !equalBlocks(within, one) {
				t.Fatalf("from within block %d: %v (%v)", i, within, err)
			}
		}
		unknown, err := b.Next(testContext(t), touchline.Position{Epoch: touchline.NewEpoch(), Seq: 7}, 1<<20)
		if err != nil || !equalBlocks(unknown, all) {
			t.Fatalf("behind an unknown epoch: %d blocks (%v), want all", len(unknown), err)
		}
	}
}

func equalBlocks(a, b []wire.Block) bool {
	return slices.EqualFunc(a, b, func(a, b wire.Block) bool {
		return a.Epoch == b.Epoch && a.First == b.First && a.Count == b.Count && a.CRC == b.CRC && string(a.Data) == string(b.Data)
	})
}

func TestNext_KeepsToItsSize(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	for range 10 {
		mustAppend(t, b, bulky(10_000))
	}
	blocks, err := b.Next(testContext(t), touchline.Position{}, 35_000)
	if err != nil || len(blocks) != 3 {
		t.Fatalf("%d blocks of 10,000 bytes (%v), want the 3 that 35,000 hold", len(blocks), err)
	}
}

func TestNext_WaitsForACommit(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	type result struct {
		blocks []wire.Block
		err    error
	}
	const readers = 3
	results := make(chan result)
	for range readers {
		go func() {
			blocks, err := b.Next(context.Background(), touchline.Position{}, 1<<20)
			results <- result{blocks, err}
		}()
	}
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error)
	go func() {
		_, err := b.Next(ctx, touchline.Position{}, 1<<20)
		gone <- err
	}()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("a reader whose context ended got %v", err)
	}
	mustAppend(t, b, numbered(0, 3))
	var last touchline.Position
	for range readers {
		r := <-results
		if r.err != nil || !slices.Equal(values(t, r.blocks), upTo(3)) {
			t.Fatalf("got %v (%v)", r.blocks, r.err)
		}
		last = touchline.Position{Epoch: r.blocks[0].Epoch, Seq: 3}
	}
	go func() {
		_, err := b.Next(context.Background(), last, 1<<20)
		gone <- err
	}()
	b.Close()
	if err := <-gone; !errors.Is(err, ErrClosed) {
		t.Errorf("a reader of a buffer that closed got %v", err)
	}
}

func TestNext_LeavesDamagedBlocksOutAndKeepsThem(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	for i := range 4 {
		mustAppend(t, b, numbered(i, 1))
	}
	if _, err := b.store.conn.ExecContext(testContext(t), "UPDATE block SET data = zeroblob(length(data)) WHERE key IN (1, 3)"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantValues(t, b, []int{1, 3})
	}
	if s := b.Stats(); s.Damaged != 2 || s.Blocks != 4 {
		t.Errorf("%d counted as damaged of %d held, want 2 of 4", s.Damaged, s.Blocks)
	}
}

func TestAck_ForgetsWholeBlocksOnly(t *testing.T) {
	opts := testOptions(t)
	b := startBuffer(t, opts)
	for i := range 5 {
		mustAppend(t, b, numbered(10*i, 10)) // 1-10, 11-20, …
	}
	epoch := b.Stats().Epoch
	ack := func(ranges ...touchline.Range) {
		t.Helper()
		if err := b.Ack([]wire.EpochRanges{{Epoch: epoch, Ranges: ranges}, {Epoch: touchline.NewEpoch(), Ranges: ranges}}, []uint64{4711}); err != nil {
			t.Fatal(err)
		}
	}
	firsts := func() []uint64 {
		var list []uint64
		for _, block := range readAll(t, b) {
			list = append(list, block.First)
		}
		return list
	}
	for i, step := range []struct {
		ack  touchline.Ranges
		want []uint64
	}{
		{touchline.Ranges{{First: 12, Last: 35}}, []uint64{1, 11, 31, 41}}, // of three, only one wholly
		{touchline.Ranges{{First: 12, Last: 35}}, []uint64{1, 11, 31, 41}}, // again
		{touchline.Ranges{{First: 1, Last: 10}, {First: 41, Last: 50}}, []uint64{11, 31}},
		{touchline.Ranges{{First: 31, Last: 1000}}, []uint64{11}},
	} {
		ack(step.ack...)
		if got := firsts(); !slices.Equal(got, step.want) { // at once
			t.Fatalf("step %d: %v remain, want %v", i, got, step.want)
		}
		if err := b.Evict(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if got := firsts(); !slices.Equal(got, step.want) { // and in the file
			t.Fatalf("step %d: %v remain in the file, want %v", i, got, step.want)
		}
	}
	if s := b.Stats(); s.Acked != 40 || s.Samples != 10 || s.Blocks != 1 {
		t.Errorf("stats %+v", s)
	}
	held, _ := b.Held()
	if len(held) != 1 || held[0].Oldest != 11 || held[0].Next != 21 {
		t.Errorf("held %+v", held)
	}
	mustAppend(t, b, numbered(50, 1))
	if got := firsts(); !slices.Equal(got, []uint64{11, 51}) {
		t.Errorf("%v, want numbers to go on at 51", got)
	}
	if err := b.Ack([]wire.EpochRanges{{Epoch: epoch, Ranges: touchline.Ranges{{First: 5, Last: 4}}}}, nil); err == nil {
		t.Error("a range that is none was taken")
	}
}

// An epoch's last number and the next epoch's base are the same key.
func TestAck_NeverReachesIntoAnotherEpoch(t *testing.T) {
	opts := testOptions(t)
	for i := range 3 {
		b := startBuffer(t, opts)
		mustAppend(t, b, numbered(i, 1))
		b.Close()
	}
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(3, 1))
	for _, block := range readAll(t, b) {
		beyond := []wire.EpochRanges{{Epoch: block.Epoch, Ranges: touchline.Ranges{{First: 2, Last: touchline.MaxSeq}}}}
		if err := b.Ack(beyond, nil); err != nil {
			t.Fatal(err)
		}
	}
	evict(t, b)
	wantValues(t, b, upTo(4))
	if err := b.Ack(ackOf(readAll(t, b)[1]), nil); err != nil {
		t.Fatal(err)
	}
	evict(t, b)
	wantValues(t, b, []int{0, 2, 3})
}

func TestAck_IsDurableWithoutAnythingElseHappening(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	mustAppend(t, b, numbered(0, 10))
	if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return b.Stats().Blocks == 0 })
}

func TestAck_ForgetsEpochsThatAreEmpty(t *testing.T) {
	opts := testOptions(t)
	for range 3 {
		b := startBuffer(t, opts)
		mustAppend(t, b, numbered(0, 10))
		b.Close()
	}
	b := startBuffer(t, opts)
	all := readAll(t, b)
	if err := b.Ack(ackOf(all[1:]...), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Evict(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if n, err := b.store.epochRows(); err != nil || n != 1 {
		t.Errorf("%d rows of epochs (%v), want that of the block that is left", n, err)
	}
	if held, _ := b.Held(); len(held) != 1 || held[0].Epoch != all[0].Epoch {
		t.Errorf("held %v", held)
	}
	// A position in an epoch that is gone still has its place.
	mustAppend(t, b, numbered(10, 1))
	for _, block := range all[1:] {
		blocks, err := b.Next(testContext(t), touchline.Position{Epoch: block.Epoch, Seq: block.Last()}, 1<<20)
		if err != nil || len(blocks) != 1 || blocks[0].Epoch != b.Stats().Epoch {
			t.Errorf("behind a forgotten epoch: %v (%v)", blocks, err)
		}
	}
	b.Close()
	b = openBuffer(t, opts)
	if held, _ := b.Held(); len(held) != 2 {
		t.Errorf("held after reopening: %v", held)
	}
}

func (s *store) epochRows() (n int, err error) {
	err = s.conn.QueryRowContext(context.Background(), "SELECT count(*) FROM epoch").Scan(&n)
	return n, err
}

// More than one transaction may delete, with appends in between.
func TestAck_OfManyBlocks(t *testing.T) {
	b := openBuffer(t, testOptions(t))
	blocks := 3*maxDeleteBlocks + 7
	insertSmallBlocks(t, b, blocks)
	b.opts.CommitInterval = 24 * time.Hour // deleting does not wait for it
	runBuffer(t, b)
	if got := len(readAll(t, b)); got != blocks {
		t.Fatalf("%d blocks", got)
	}
	if err := b.Ack([]wire.EpochRanges{{Epoch: b.epoch, Ranges: touchline.Ranges{{First: 1, Last: uint64(blocks) - 1}}}}, nil); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, b); len(got) != 1 || got[0].First != uint64(blocks) {
		t.Fatalf("%d blocks are left at once, want the last", len(got))
	}
	if err := b.Evict(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if s := b.Stats(); s.Blocks != 1 || s.Samples != 1 || s.Acked != uint64(blocks)-1 {
		t.Errorf("stats %+v", s)
	}
	if len(b.acks.stored) != 0 || b.acks.applying != nil {
		t.Errorf("acknowledgements are left over: %v", b.acks)
	}
}

// insertSmallBlocks fills a buffer that does not run yet with blocks of one
// sample each, in one transaction.
func insertSmallBlocks(t testing.TB, b *Buffer, n int) {
	t.Helper()
	var blocks []encoded
	for i := range n {
		b.w.nextSeq = uint64(i) + 1
		if err := b.encodeAll(&batch{samples: numbered(i, 1), entries: []entry{{count: 1}}}); err != nil {
			t.Fatal(err)
		}
		block := b.w.blocks[0]
		block.Data = slices.Clone(block.Data)
		blocks = append(blocks, block)
	}
	b.w.nextSeq, b.w.blocks = 1, blocks
	txn, err := b.begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := txn.fill(false); err != nil {
		t.Fatal(err)
	}
	if err := txn.commit(); err != nil {
		t.Fatal(err)
	}
}

func TestAck_SurvivesARollback(t *testing.T) {
	opts := testOptions(t)
	hold := newGate("insert")
	opts.fault = hold.fault
	opts.tick = time.Hour // so that only Evict applies what is acknowledged
	b := startBuffer(t, opts)
	answers := make(chan error, 1)
	appendOne := func(n int) {
		t.Helper()
		if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(n, 1)}, func(err error) { answers <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 2 {
		appendOne(n)
		<-hold.reached
		if n == 0 {
			hold.pass <- nil
			if err := <-answers; err != nil {
				t.Fatal(err)
			}
		}
	}
	// While the second is being inserted, the first is acknowledged; that is
	// applied together with the third, which fails.
	if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
		t.Fatal(err)
	}
	evicted := make(chan error, 1)
	go func() { evicted <- b.Evict(testContext(t)) }()
	waitUntil(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.waiting.evicts) == 1
	})
	appendOne(2)
	hold.pass <- nil
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	<-hold.reached
	hold.pass <- errors.New("injected")
	if err := <-answers; err == nil {
		t.Error("a failed commit was answered with success")
	}
	if err := <-evicted; err == nil {
		t.Error("a failed commit was answered with success")
	}
	wantValues(t, b, []int{1}) // the first is still acknowledged
	evict(t, b)
	if s := b.Stats(); s.Blocks != 1 || s.Acked != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestAck_SurvivesAFailedCommit(t *testing.T) {
	opts := testOptions(t)
	hold := newGate("commit")
	opts.fault = hold.fault
	b := startBuffer(t, opts)
	answer := make(chan error, 1)
	if err := b.AppendAsync(testContext(t), touchline.Arrival{Samples: numbered(0, 10)}, func(err error) { answer <- err }); err != nil {
		t.Fatal(err)
	}
	<-hold.reached
	hold.pass <- nil
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
		t.Fatal(err)
	}
	evicted := make(chan error, 1)
	go func() { evicted <- b.Evict(testContext(t)) }()
	<-hold.reached // the deletion is in the file now, and is said to have failed
	if got := readAll(t, b); len(got) != 0 {
		t.Error("an acknowledged block is read while the transaction lasts")
	}
	hold.pass <- errors.New("injected")
	if err := <-evicted; err == nil {
		t.Error("a failed commit was answered with success")
	}
	<-hold.reached // the disk is asked whether it is back
	hold.pass <- nil
	waitUntil(t, func() bool { return b.Stats().State == StateOK })
	if s := b.Stats(); s.Blocks != 0 || s.Bytes != 0 || s.Samples != 0 || s.Acked != 10 {
		t.Errorf("stats %+v: the file has nothing any more", s)
	}
}
