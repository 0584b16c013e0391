package jetstream

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/cloud/sqlite"
	"touchline/wire"
)

// The test binary runs itself as another process, which has the embedded queue
// and the record store.
const (
	childRole = "TOUCHLINE_TEST_ROLE"
	childDir  = "TOUCHLINE_TEST_DIR"
)

func runChild() int {
	if err := publishForever(context.Background(), os.Getenv(childDir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

func openBoth(ctx context.Context, dir string) (*Queue, *sqlite.Store, error) {
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	opts := options(dir + "/queue")
	opts.AckWait = 500 * time.Millisecond // what a killed recorder had is free again after it
	opts.Shards = 2
	q, err := Open(ctx, opts, logger)
	if err != nil {
		return nil, nil, err
	}
	store, err := sqlite.Open(ctx, dir+"/store", logger)
	if err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	return q, store, nil
}

var gateways = []string{"north", "south", "east"}

// publishForever publishes blocks of new epochs, says after each batch what was
// accepted, and publishes some of it again; beside it a Recording records.
func publishForever(ctx context.Context, dir string) error {
	q, store, err := openBoth(ctx, dir)
	if err != nil {
		return err
	}
	encoded, err := wire.NewEncoder().Encode(nil, recordertest.Series("belt", 1000, 7, 25))
	if err != nil {
		return err
	}
	epochs := make([]touchline.Epoch, len(gateways))
	for i := range epochs {
		epochs[i] = touchline.NewEpoch()
	}
	recording := cloud.NewRecording(store, q, cloud.RecordingOptions{QueueBytes: 1 << 20}, slog.New(slog.DiscardHandler))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return recording.Run(ctx) })
	group.Go(func() error {
		var before []cloud.Delivery
		for n := uint64(0); ; n++ {
			var batch []cloud.Delivery
			var said strings.Builder
			for i := range 1 + n%5*7 {
				g := i % uint64(len(gateways))
				b := wire.Block{Epoch: epochs[g], First: 1 + 25*(1000*n+i), Count: 25, Data: encoded.Data}
				b.CRC = b.Sum()
				batch = append(batch, cloud.Delivery{Gateway: gateways[g], Block: b, Received: time.Now()})
				fmt.Fprintf(&said, "%s %s %d %d;", gateways[g], b.Epoch, b.First, b.Last())
			}
			if n%3 == 2 { // a gateway that lost its patience
				batch = append(batch, before...)
			}
			if err := q.Publish(ctx, batch); err != nil {
				return err
			}
			before = batch[:1]
			if _, err := fmt.Println(said.String()); err != nil {
				return err
			}
		}
	})
	return group.Wait()
}

// publishUntilKilled runs the other process, kills it once it has said so many
// lines, and returns all that it said.
func publishUntilKilled(t *testing.T, dir string, lines int) (said []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"=publish", childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		said = append(said, scanner.Text())
		if len(said) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if cmd.Wait() == nil || len(said) < lines {
		t.Fatalf("the other process ended by itself after %d batches", len(said))
	}
	return said
}

// The process is killed between accepting and committing, again and again, and
// no gateway sends anything a second time: each accepted block is stored once.
func TestQueue_AcceptedSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	q, store, err := openBoth(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range gateways {
		if err := store.AddGateway(t.Context(), id, sha256.Sum256([]byte(id))); err != nil {
			t.Fatal(err)
		}
	}
	closeBoth(t, q, store)

	rounds := 5
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		rounds = 60
	}
	var said []string
	unrecorded := 0
	random := rand.New(rand.NewPCG(3, 4))
	for range rounds {
		said = append(said, publishUntilKilled(t, dir, 1+random.IntN(60))...)
		unrecorded += waiting(t, dir)
	}
	q, store, err = openBoth(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	left, _, err := q.Waiting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	drain(t, q, store)
	blocks := uint64(0)
	for _, line := range said {
		for _, block := range strings.Split(strings.TrimSuffix(line, ";"), ";") {
			var gateway, hex string
			var r touchline.Range
			if _, err := fmt.Sscan(block, &gateway, &hex, &r.First, &r.Last); err != nil {
				t.Fatalf("read %q: %v", block, err)
			}
			epoch, err := touchline.ParseEpoch(hex)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := store.Stored(t.Context(), gateway, []touchline.Epoch{epoch})
			if err != nil {
				t.Fatal(err)
			}
			if len(stored) != 1 || !stored[0].Ranges.Contains(r) {
				t.Fatalf("%s was accepted, and %v are stored", block, stored)
			}
			blocks++
		}
	}
	found, err := store.Audit(t.Context())
	if err != nil {
		t.Fatalf("Audit: %v", err)
	}
	// A batch that was on its way when the process died may be there as well.
	if found.Blocks < blocks || found.Blocks > blocks+uint64(29*rounds) || found.KeptAside > 0 {
		t.Errorf("%d blocks were accepted, and the store has %+v", blocks, found)
	}
	if unrecorded == 0 {
		t.Error("nothing was ever accepted and not recorded when the process died: this test shows nothing")
	}
	t.Logf("MEASURED %d blocks accepted in %d lives of a process, all stored once; %d of them waited in the queue when it was killed last", blocks, rounds, left)
	closeBoth(t, q, store)
}

// waiting returns how many blocks the queue of a dead process holds.
func waiting(t *testing.T, dir string) int {
	t.Helper()
	q, store, err := openBoth(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBoth(t, q, store)
	n, _, err := q.Waiting(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// drain records until the queue is empty.
func drain(t *testing.T, q *Queue, store *sqlite.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	group, running := errgroup.WithContext(ctx)
	recording := cloud.NewRecording(store, q, cloud.RecordingOptions{QueueBytes: 64 << 20}, slog.New(slog.DiscardHandler))
	group.Go(func() error { return recording.Run(running) })
	group.Go(func() error {
		defer cancel()
		for pause(ctx, 5*time.Millisecond) {
			if n, _, err := q.Waiting(ctx); err != nil || n == 0 {
				return err
			}
		}
		return fmt.Errorf("the queue is not empty after %s", patience)
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

func closeBoth(t *testing.T, q *Queue, store *sqlite.Store) {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Errorf("close queue: %v", err)
	}
	if err := store.Close(); err != nil {
		t.Errorf("close store: %v", err)
	}
}
