package buffer

import (
	"context"
	"errors"
	"slices"
	"testing"

	"touchline/wire"
)

// exported returns all that an export hands out.
func exported(t testing.TB, from interface {
	Export(context.Context, bool, func([]wire.Block) error) ([]wire.Lost, error)
}, all bool) ([]wire.Block, []wire.Lost) {
	t.Helper()
	var blocks []wire.Block
	lost, err := from.Export(testContext(t), all, func(b []wire.Block) error {
		blocks = append(blocks, b...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return blocks, lost
}

func TestExport_HandsOutWhatNextDoes(t *testing.T) {
	opts := testOptions(t)
	for n := range 3 {
		b := startBuffer(t, opts)
		for i := range 20 {
			mustAppend(t, b, numbered(200*n+10*i, 10))
		}
		if n < 2 {
			b.Close()
			continue
		}
		want := readAll(t, b)
		if blocks, _ := exported(t, b, false); !equalBlocks(blocks, want) || len(values(t, blocks)) != 600 {
			t.Errorf("%d blocks, want %d", len(blocks), len(want))
		}
		if blocks, _ := exported(t, b, true); !equalBlocks(blocks, want) {
			t.Errorf("all: %d blocks, want %d", len(blocks), len(want))
		}
		if s := b.Stats(); s.Samples != 600 {
			t.Errorf("%d samples are held after the export, want all 600", s.Samples)
		}
		b.Close()
		r, err := OpenToRead(testContext(t), opts.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, all := range []bool{false, true} {
			if blocks, _ := exported(t, r, all); !equalBlocks(blocks, want) {
				t.Errorf("stopped, all %t: %d blocks, want %d", all, len(blocks), len(want))
			}
		}
	}
}

func TestExport_LeavesOutWhatTheCloudHas(t *testing.T) {
	b := openBuffer(t, testOptions(t)) // does not run: what is acknowledged stays in the file
	insertSmallBlocks(t, b, 10)
	blocks := readAll(t, b)
	if err := b.Ack(ackOf(blocks[2], blocks[3]), nil); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(blocks[:2], blocks[4:])
	if got, _ := exported(t, b, false); !equalBlocks(got, want) {
		t.Errorf("%d blocks, want %d", len(got), len(want))
	}
	if got, _ := exported(t, b, true); !equalBlocks(got, blocks) {
		t.Errorf("all: %d blocks, want %d", len(got), len(blocks))
	}
}

func TestExport_LeavesOutDamagedBlocks(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	for i := range 4 {
		mustAppend(t, b, numbered(i, 1))
	}
	if _, err := b.store.conn.ExecContext(testContext(t), "UPDATE block SET data = zeroblob(length(data)) WHERE key IN (1, 3)"); err != nil {
		t.Fatal(err)
	}
	for _, all := range []bool{false, true} {
		if got, _ := exported(t, b, all); !slices.Equal(values(t, got), []int{1, 3}) {
			t.Errorf("all %t: %v", all, values(t, got))
		}
	}
}

// TestExport_Ends though samples keep coming while it runs: each block that it
// hands out makes two more.
func TestExport_Ends(t *testing.T) {
	for _, all := range []bool{false, true} {
		b := startBuffer(t, testOptions(t))
		for i := range 30 {
			mustAppend(t, b, numbered(i, 1))
		}
		n := 30
		var got []wire.Block
		_, err := b.Export(testContext(t), all, func(blocks []wire.Block) error {
			for range 2 * len(blocks) {
				mustAppend(t, b, numbered(n, 1))
				n++
			}
			got = append(got, blocks...)
			return nil
		})
		if err != nil || !slices.Equal(values(t, got), upTo(30)) {
			t.Errorf("all %t: %v, %d samples, want the 30 that were there", all, err, len(values(t, got)))
		}
	}
}

func TestExport_EndsWithItsTakerItsContextAndItsBuffer(t *testing.T) {
	b := startBuffer(t, testOptions(t))
	mustAppend(t, b, numbered(0, 1))
	full := errors.New("stick is full")
	for _, all := range []bool{false, true} {
		if _, err := b.Export(testContext(t), all, func([]wire.Block) error { return full }); !errors.Is(err, full) {
			t.Errorf("have %v, want what the taker said", err)
		}
		ctx, cancel := context.WithCancel(testContext(t))
		cancel()
		if _, err := b.Export(ctx, all, func([]wire.Block) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("have %v, want the context's error", err)
		}
	}
	b.Close()
	if _, err := b.Export(testContext(t), false, func([]wire.Block) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("have %v, want ErrClosed", err)
	}
	if _, err := b.Check(testContext(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("check: have %v, want ErrClosed", err)
	}
}

// TestExport_FreezesLostRecords: what is told under a number never changes.
func TestExport_FreezesLostRecords(t *testing.T) {
	clock := &testClock{}
	opts := testOptions(t)
	opts.MaxAge, opts.clock = MinMaxAge, clock.elapsed
	b := startBuffer(t, opts)
	mustAppend(t, b, numbered(0, 5))
	clock.advance(2 * MinMaxAge)
	evict(t, b)
	_, first := exported(t, b, false)
	if len(first) != 1 || first[0].Ranges.Count() != 5 {
		t.Fatalf("lost %+v, want 5 samples", first)
	}
	mustAppend(t, b, numbered(5, 3))
	clock.advance(2 * MinMaxAge)
	evict(t, b)
	_, second := exported(t, b, false)
	if len(second) != 2 || !equalLost(second[0], first[0]) || second[1].Ranges.Count() != 3 || second[1].ID == first[0].ID {
		t.Errorf("lost %+v, want %+v and another record", second, first)
	}
	if held, _ := b.Held(); len(held) != 0 {
		t.Errorf("held %+v", held)
	}
	report, err := b.Check(testContext(t))
	if err != nil || !report.OK() || report.LostRecords != 2 || report.LostSamples != 8 {
		t.Errorf("check: %v %+v", err, report)
	}
}
