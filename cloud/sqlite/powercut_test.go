package sqlite

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"sync"
	"testing"

	"github.com/mattn/go-sqlite3"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/internal/faultvfs"
	"touchline/wire"
)

// A ledger is what gateways were told, each fact with the position of the
// disk's log at which it was: a power cut must not take it back.
type ledger struct {
	disk     *faultvfs.Disk
	gateways []string
	sent     []cloud.Delivery
	told     []int // for each of sent, when it was called stored
	sessions []toldSession
	losses   []toldLoss
	facts    []int // all positions, sorted
}

type toldSession struct {
	gateway  string
	number   uint64
	position int
}

type toldLoss struct {
	gateway  string
	lost     wire.Lost
	position int
}

// fact notes that something was learned now.
func (l *ledger) fact() int {
	now := l.disk.Now()
	l.facts = append(l.facts, now)
	return now
}

// record lives the life of a store: batches of several gateways, in order and
// out of order, repeats, blocks kept aside, sessions, losses, checkpoints and
// openings.
func record(t *testing.T, seed uint64, pragmas string) *ledger {
	t.Helper()
	disk, err := faultvfs.New("unix")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(disk.Close)
	l := &ledger{disk: disk, gateways: []string{"arena-1", "gym-2"}}
	random := rand.New(rand.NewPCG(seed, 0))
	dir := memoryFolder(t)
	var epochs [2]touchline.Epoch
	var next [2]uint64
	for opening := range 3 {
		s, err := openOn(t.Context(), disk.Name(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		withWriter(t, s, func(conn *sqlite3.SQLiteConn) {
			if _, err := conn.Exec("PRAGMA wal_autocheckpoint = 60; "+pragmas, nil); err != nil {
				t.Fatal(err)
			}
		})
		for g, gateway := range l.gateways {
			if opening == 0 {
				if err := s.AddGateway(t.Context(), gateway, [32]byte{byte(g)}); err != nil {
					t.Fatal(err)
				}
			}
			_, number, err := s.NewSession(t.Context(), gateway)
			if err != nil {
				t.Fatal(err)
			}
			l.sessions = append(l.sessions, toldSession{gateway, number, l.fact()})
			epochs[g], next[g] = touchline.NewEpoch(), 1
		}
		for range 25 {
			l.batch(t, s, random, &epochs, &next)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	sort.Ints(l.facts)
	return l
}

// batch records some blocks and, at times, a loss.
func (l *ledger) batch(t *testing.T, s *Store, random *rand.Rand, epochs *[2]touchline.Epoch, next *[2]uint64) {
	t.Helper()
	var batch []cloud.Delivery
	for range 1 + random.IntN(3) {
		g := random.IntN(2)
		if random.IntN(5) == 0 { // the next but one comes first, or this one is lost
			skipped := uint64(1 + random.IntN(20))
			if random.IntN(2) == 0 {
				lost := wire.Lost{ID: 1 + random.Uint64N(1<<50), Epoch: epochs[g], Cause: "max_bytes",
					Ranges: touchline.Ranges{{First: next[g], Last: next[g] + skipped - 1}}, MinTime: 1, MaxTime: 2}
				if err := s.Lost(t.Context(), l.gateways[g], 0, lost); err != nil {
					t.Fatal(err)
				}
				l.losses = append(l.losses, toldLoss{l.gateways[g], lost, l.fact()})
			}
			next[g] += skipped
		}
		if len(l.sent) > 0 && random.IntN(6) == 0 {
			batch = append(batch, l.sent[random.IntN(len(l.sent))]) // a repeat
			continue
		}
		if random.IntN(10) == 0 {
			batch = append(batch, recordertest.Undecodable(l.gateways[g], epochs[g], next[g], 3, "not a block "+strconv.Itoa(random.Int())))
			next[g] += 3
			continue
		}
		samples := make([]touchline.Sample, 1+random.IntN(200))
		for i := range samples {
			samples[i] = touchline.Sample{Sensor: "belt-" + strconv.Itoa(i%5), Metric: "position", Unit: "m",
				Time: int64(next[g]) + int64(i), Value: touchline.NumberValue(float64(random.Uint64N(1 << 52)))}
		}
		batch = append(batch, recordertest.NewDelivery(t, l.gateways[g], epochs[g], next[g], samples))
		next[g] += uint64(len(samples))
	}
	outcomes, err := s.Record(t.Context(), batch)
	if err != nil {
		t.Fatal(err)
	}
	now := l.fact()
	for i, outcome := range outcomes {
		if !outcome.Repeat {
			l.sent = append(l.sent, batch[i])
			l.told = append(l.told, now)
		}
	}
}

// examine opens what a power cut at a position left.
func (l *ledger) examine(dir string, at int) (err error) {
	ctx := context.Background()
	s, err := Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("the store does not open: %w", err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	audited, err := s.Audit(ctx)
	if err != nil {
		return err
	}
	there, err := l.checkStored(ctx, s, at)
	if err != nil {
		return err
	}
	if there != int(audited.Blocks+audited.KeptAside) {
		return fmt.Errorf("%d blocks and %d kept aside are there, of which %d were sent", audited.Blocks, audited.KeptAside, there)
	}
	for _, loss := range l.losses {
		var found int
		row := s.read.QueryRowContext(ctx, `SELECT count(*) FROM lost WHERE epoch = ? AND id = ?`, loss.lost.Epoch[:], int64(loss.lost.ID))
		if err := row.Scan(&found); err != nil {
			return err
		}
		if found == 0 && loss.position <= at {
			return fmt.Errorf("%w: loss %d", errLost, loss.lost.ID)
		}
	}
	return l.again(ctx, s, at)
}

// checkStored wants each block that was called stored, as it was sent and with
// its numbers in the cursor, and returns how many of those sent are there.
func (l *ledger) checkStored(ctx context.Context, s *Store, at int) (there int, err error) {
	for i := range l.sent {
		d := &l.sent[i]
		table := "block"
		if d.Problem != "" {
			table = "aside"
		}
		var found int
		row := s.read.QueryRowContext(ctx, `SELECT count(*) FROM `+table+` JOIN cursor ON cursor.id = cursor
			WHERE epoch = ? AND first = ? AND count = ? AND crc = ? AND data = ?`,
			d.Block.Epoch[:], int64(d.Block.First), d.Block.Count, d.Block.CRC, nonNil(d.Block.Data))
		if err := row.Scan(&found); err != nil {
			return there, err
		}
		there += found
		if l.told[i] > at {
			continue
		}
		if found != 1 {
			return there, fmt.Errorf("%w: block %s/%d was called stored, and is there %d times", errLost, d.Block.Epoch, d.Block.First, found)
		}
		stored, err := s.Stored(ctx, d.Gateway, []touchline.Epoch{d.Block.Epoch})
		if err != nil {
			return there, err
		}
		if len(stored) != 1 || !stored[0].Ranges.Contains(d.Block.Range()) {
			return there, fmt.Errorf("%w: the cursor of %s lacks %v", errLost, d.Block.Epoch, d.Block.Range())
		}
	}
	return there, nil
}

var errLost = errors.New("what was called stored is not there")

// again does what follows a power cut: a new session, and what was not called
// stored is sent again; all else comes a second time too. In the end each
// block is there once.
func (l *ledger) again(ctx context.Context, s *Store, at int) error {
	if !slices.ContainsFunc(l.told, func(position int) bool { return position <= at }) {
		return nil // the gateways may not be registered yet
	}
	for _, gateway := range l.gateways {
		_, number, err := s.NewSession(ctx, gateway)
		if err != nil {
			return err
		}
		for _, had := range l.sessions {
			if had.gateway == gateway && had.position <= at && had.number >= number {
				return fmt.Errorf("session %d of %s was given before", number, gateway)
			}
		}
	}
	outcomes, err := s.Record(ctx, l.sent)
	if err != nil {
		return err
	}
	for i, outcome := range outcomes {
		if l.told[i] <= at && !outcome.Repeat {
			return fmt.Errorf("%w: block %s/%d was taken a second time", errLost, l.sent[i].Block.Epoch, l.sent[i].Block.First)
		}
	}
	audited, err := s.Audit(ctx)
	if err != nil {
		return fmt.Errorf("after all was sent again: %w", err)
	}
	if int(audited.Blocks+audited.KeptAside) != len(l.sent) {
		return fmt.Errorf("after all was sent again %d blocks and %d kept aside are there, of %d", audited.Blocks, audited.KeptAside, len(l.sent))
	}
	return nil
}

func memoryFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(memoryRoot(), "touchline-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func memoryRoot() string {
	if _, err := os.Stat("/dev/shm"); err != nil {
		return os.TempDir()
	}
	return "/dev/shm"
}

// walked is what a walk over crash points found.
type walked struct {
	points, broken, lost int
	example              error
}

// walk cuts the power at every stride-th crash point: in every way just before
// and after each sync, and in one between any two calls.
func (l *ledger) walk(t *testing.T, seed uint64, stride int) walked {
	t.Helper()
	type cut struct {
		position, index int
		mode            faultvfs.Mode
	}
	var cuts []cut
	r := l.disk.Replay()
	boundaries := r.Boundaries()
	random := rand.New(rand.NewPCG(seed, 1))
	for position := range r.Len() + 1 {
		_, sync := slices.BinarySearch(boundaries, position)
		only := faultvfs.Mode(random.IntN(int(faultvfs.Modes)))
		for mode := range faultvfs.Modes {
			if sync || mode == only {
				cuts = append(cuts, cut{position, len(cuts), mode})
			}
		}
	}
	var result walked
	var mu sync.Mutex // covers result
	var all sync.WaitGroup
	sums := maphash.MakeSeed()
	workers := runtime.GOMAXPROCS(0)
	for i := range workers {
		mine, r, dir := cuts[i*len(cuts)/workers:(i+1)*len(cuts)/workers], l.disk.Replay(), memoryFolder(t)
		all.Add(1)
		go func() {
			defer all.Done()
			seen := make(map[[2]uint64]bool)
			for n, c := range mine {
				if n%stride != 0 {
					continue
				}
				r.Advance(c.position)
				image := r.Cut(c.mode, rand.New(rand.NewPCG(seed, uint64(c.index))))
				point := [2]uint64{image.Sum(sums), uint64(sort.SearchInts(l.facts, c.position+1))}
				if seen[point] {
					continue // the same image, and nothing more is known
				}
				seen[point] = true
				err := image.Write(dir)
				if err == nil {
					err = l.examine(dir, c.position)
				}
				mu.Lock()
				result.points++
				if err != nil {
					result.broken++
					if errors.Is(err, errLost) {
						result.lost++
					}
					if result.example == nil {
						result.example = fmt.Errorf("cut at %d, unsynced writes %s: %w", c.position, c.mode, err)
					}
				}
				mu.Unlock()
			}
		}()
	}
	all.Wait()
	return result
}

func testSeed(t *testing.T, round int) uint64 {
	t.Helper()
	seed := uint64(20261122)
	if text := os.Getenv("TOUCHLINE_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TOUCHLINE_TEST_SEED: %v", err)
		}
	}
	seed += uint64(round)
	t.Logf("seed %d (TOUCHLINE_TEST_SEED=%d repeats it)", seed, seed)
	return seed
}

func TestPowerCut_WhatWasCalledStoredIsThereOnce(t *testing.T) {
	rounds, stride := 1, 4
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		rounds, stride = 10, 1
	}
	for round := range rounds {
		seed := testSeed(t, round)
		l := record(t, seed, "")
		writes, truncations, syncs := l.disk.Replay().Count()
		result := l.walk(t, seed, stride)
		t.Logf("MEASURED power cuts in the record store (%d writes, %d truncations, %d syncs; %d blocks called stored): %d crash points; at %d of them something was lost, at %d lost, twice or damaged",
			writes, truncations, syncs, len(l.sent), result.points, result.lost, result.broken)
		if result.broken > 0 {
			t.Errorf("%d of %d crash points: %v", result.broken, result.points, result.example)
		}
		if result.points < 250 || len(l.losses) == 0 {
			t.Errorf("%d crash points, %d losses: want more", result.points, len(l.losses))
		}
	}
}

// The walk can fail.
func TestPowerCut_WithoutSyncsItIsLost(t *testing.T) {
	seed := testSeed(t, 0)
	l := record(t, seed, "PRAGMA synchronous = NORMAL")
	result := l.walk(t, seed, 8)
	t.Logf("MEASURED control (record store, synchronous=NORMAL): %d crash points, %d broken, %d lost what was called stored", result.points, result.broken, result.lost)
	if result.lost == 0 {
		t.Errorf("nothing was lost: the walk can't fail (%v)", result.example)
	}
}
