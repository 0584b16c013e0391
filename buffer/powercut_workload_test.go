package buffer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"touchline"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// querier is a connection or a pool.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// A workload is a gateway's life with its buffer: openings, appends of all
// sizes, reads, acknowledgements, evictions, checkpoints.
type workload struct {
	openings, steps int
	synchronous     string // what SQLite is told after the buffer opened; "" leaves it
	early           bool   // acknowledge to the sensor before the commit: a fault of the harness itself
}

// A life is a workload while it runs.
type life struct {
	*workload
	*ledger
	t      *testing.T
	random *rand.Rand
	opts   Options
	clock  *testClock
	free   int64
	b      *Buffer
	after  touchline.Position // what was read
	read   []wire.Block       // …and not acknowledged
}

// record lives a workload on a disk of its own, and returns what is known of it.
func (w *workload) record(t *testing.T, seed uint64) *ledger {
	t.Helper()
	disk, err := faultvfs.New(defaultVFS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(disk.Close)
	dir := memoryFolder(t)
	var l *ledger
	// In a bubble: Run's ticks come when all else has been done.
	synctest.Test(t, func(t *testing.T) {
		l = newLedger(disk)
		x := &life{workload: w, ledger: l, t: t, random: rand.New(rand.NewPCG(seed, 0)), clock: new(testClock), free: 1 << 40}
		x.opts = Options{Dir: dir, MaxBytes: 1 << 30, MaxAge: time.Hour, KeepStored: 30 * time.Minute, FreeReserve: 1, WhenFull: EvictOldest,
			ballast: 64 << 10, clock: x.clock.elapsed, free: func(string) (int64, error) { return x.free, nil }, vfs: disk.Name()}
		for i := range w.openings {
			x.open(i)
			if i == 1 {
				x.toVersion1()
			}
		}
	})
	return l
}

func (x *life) open(n int) {
	t := x.t
	b, err := Open(context.Background(), x.opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	x.b = b
	// Small enough for all of it to happen within some hundred steps.
	x.exec("PRAGMA wal_autocheckpoint = 40")
	if x.synchronous != "" {
		x.exec("PRAGMA synchronous = " + x.synchronous)
	}
	if n > 0 {
		b.opts.MaxBytes = 40_000
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	for i := range x.steps {
		if i == x.steps/2 {
			x.fillDisk()
		}
		x.step()
		if err := x.observe(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	x.merged += b.Stats().Merged
	x.kept += b.kept.blocks
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// toVersion1 makes the closed file what version 1 would have left: the next
// opening migrates it.
func (x *life) toVersion1() {
	x.t.Helper()
	uri := (&url.URL{Scheme: "file", Path: x.b.store.path}).String()
	db, err := sql.Open("sqlite3", uri+"?vfs="+x.opts.vfs+"&_journal_mode=WAL&_synchronous=FULL")
	if err != nil {
		x.t.Fatal(err)
	}
	script := "BEGIN IMMEDIATE; "
	for _, table := range strings.Split(schemaOf(schemaVersion)[len(schema1):], "CREATE TABLE ")[1:] {
		name, _, _ := strings.Cut(table, " ")
		script += "DROP TABLE " + name + "; "
	}
	_, err = db.Exec(script + "PRAGMA user_version = 1; COMMIT")
	if err := errors.Join(err, db.Close()); err != nil {
		x.t.Fatal(err)
	}
}

func (x *life) exec(query string) {
	x.t.Helper()
	if _, err := x.b.store.conn.ExecContext(context.Background(), query); err != nil {
		x.t.Fatalf("%s: %v", query, err)
	}
}

func (x *life) step() {
	switch n := x.random.IntN(100); {
	case n < 50:
		x.append(1+x.random.IntN(3), 1+x.random.IntN(20), nil)
	case n < 56:
		x.append(1, 300+x.random.IntN(400), nil) // more than a page
	case n < 60:
		x.append(1, 5, nil)
		x.append(1, 5, func() {
			x.clock.advance(5 * time.Minute)
			if err := x.b.merge(); err != nil {
				x.t.Errorf("merge: %v", err)
			}
		})
	case n < 68:
		mode := []string{"PASSIVE", "RESTART", "TRUNCATE"}[x.random.IntN(3)]
		x.append(1, 5, func() {
			if _, err := x.b.store.checkpoint(mode); err != nil {
				x.t.Errorf("checkpoint: %v", err)
			}
		})
	case n < 80:
		x.next()
	case n < 94:
		x.ack()
	case n < 98:
		x.clock.advance(20 * time.Minute)
		x.evict()
	default: // unused pages are given back
		x.free = 0
		x.clock.advance(time.Minute)
		x.evict()
		x.free = 1 << 40
		x.clock.advance(time.Minute)
		x.evict()
	}
}

// append hands over groups of samples at once and waits for their answers.
// last runs in the goroutine of Run, when all is committed and answered.
func (x *life) append(groups, count int, last func()) {
	var answered sync.WaitGroup
	for i := range groups {
		samples, first := x.numberedAnew(count)
		if x.early {
			x.durable(first, count)
		}
		answered.Add(1)
		err := x.b.AppendAsync(context.Background(), touchline.Arrival{Samples: samples}, func(err error) {
			defer answered.Done()
			if err != nil {
				x.t.Errorf("append: %v", err)
				return
			}
			if !x.early {
				x.durable(first, count)
			}
			if last != nil && i == groups-1 {
				last()
			}
		})
		if err != nil {
			x.t.Fatal(err)
		}
	}
	answered.Wait()
}

// next reads on, or from the beginning, as an uplink does after a new session.
func (x *life) next() {
	if x.random.IntN(4) == 0 {
		x.after, x.read = touchline.Position{}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	blocks, err := x.b.Next(ctx, x.after, 1+x.random.IntN(8000))
	if ctx.Err() != nil {
		return // there is none
	}
	if err != nil {
		x.t.Fatal(err)
	}
	x.handedOut(blocks)
	last := &blocks[len(blocks)-1]
	x.after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
	x.read = append(x.read, blocks...)
}

// ack acknowledges some of what was read, some of it in part, and losses.
func (x *life) ack() {
	_, losses := x.b.Held()
	if err := x.observe(x.b); err != nil { // they are announced now
		x.t.Fatal(err)
	}
	var confirmed []uint64
	for i := range losses {
		if x.random.IntN(2) == 0 {
			confirmed = append(confirmed, losses[i].ID)
		}
	}
	x.acknowledge(touchline.Epoch{}, nil, confirmed)
	var stored []wire.EpochRanges
	for len(x.read) > 0 && x.random.IntN(5) > 0 {
		i := x.random.IntN(len(x.read))
		epoch, r := x.read[i].Epoch, x.read[i].Range()
		if r.Count() > 1 && x.random.IntN(4) == 0 {
			r.Last-- // not the whole block
		} else {
			x.read = append(x.read[:i:i], x.read[i+1:]...)
		}
		x.acknowledge(epoch, touchline.Ranges{r}, nil)
		stored = append(stored, wire.EpochRanges{Epoch: epoch, Ranges: touchline.Ranges{r}})
	}
	if err := x.b.Ack(stored, confirmed); err != nil {
		x.t.Fatal(err)
	}
	if x.random.IntN(2) == 0 {
		x.evict()
	}
}

// fillDisk lets a commit find the disk full: the ballast is given back, all
// that is held may go, and the ballast is made again. It is no part of what a
// power cut is tried on: nothing depends on what is in it, and whatever size it
// has after one is tried apart.
func (x *life) fillDisk() {
	x.append(1, 5, func() {
		full := true
		x.b.opts.fault = func(stage string, err error) error {
			if stage == "insert" && full {
				full = false
				return sqlite3.Error{Code: sqlite3.ErrFull}
			}
			return err
		}
	})
	if err := x.observe(x.b); err != nil { // before it is given up
		x.t.Fatal(err)
	}
	samples, _ := x.numberedAnew(5)
	if err := x.b.Append(context.Background(), samples); err == nil {
		x.t.Error("a full disk took samples")
	}
	if s := x.b.Stats(); !s.BallastGiven {
		x.t.Error("the disk is full, and the ballast is there")
	}
	x.evict() // which waits until it is tried again
	x.append(1, 5, func() {
		x.b.opts.fault = nil
		x.clock.advance(2 * freeInterval)
		if err := x.b.makeBallast(); err != nil || x.b.w.ballast.missing() > 0 {
			x.t.Errorf("there is room, and the ballast is not made again: %v", err)
		}
	})
	x.filled++
}

func (x *life) evict() {
	if err := x.b.Evict(context.Background()); err != nil {
		x.t.Fatal(err)
	}
}

func (w *workload) String() string {
	s := "synchronous=FULL"
	if w.synchronous != "" {
		s = "synchronous=" + w.synchronous
	}
	if w.early {
		s += ", acknowledged before the commit"
	}
	return fmt.Sprintf("%s, %d openings of %d steps", s, w.openings, w.steps)
}
