package jetstream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/wire"
)

// noise is n blocks of 20,000 bytes of a gateway.
func noise(gateway string, n int) (list []cloud.Delivery) {
	epoch := touchline.NewEpoch()
	for i := range uint64(n) {
		b := wire.Block{Epoch: epoch, First: 1 + i, Count: 1, Data: make([]byte, 20_000)}
		b.CRC = b.Sum()
		list = append(list, cloud.Delivery{Gateway: gateway, Block: b, Received: time.Now()})
	}
	return list
}

// onShard returns a gateway of a shard.
func onShard(shard, shards int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("gateway-%d", i); shardOf(name, shards) == shard {
			return name
		}
	}
}

// A shard that is full refuses its own part of a batch only, however often.
func TestPublish_FullShardTakesNothingFromTheOthers(t *testing.T) {
	opts := options(t.TempDir())
	opts.Shards, opts.MaxBytes = 2, 2<<20
	q := openQueue(t, opts)
	full, other := onShard(0, 2), onShard(1, 2)
	if err := q.Publish(t.Context(), noise(full, 100)); err == nil {
		t.Fatal("2 MB are in a stream of 1 MiB")
	}
	subscriptions := q.conn.NumSubscriptions()
	for range 3 {
		batch := append(noise(full, 50), noise(other, 5)...)
		var partly *cloud.PartlyHeldError
		if err := q.Publish(t.Context(), batch); !errors.As(err, &partly) {
			t.Fatalf("Publish: %v", err)
		}
		for i := range batch {
			if want := batch[i].Gateway == other; partly.Held[i] != want {
				t.Fatalf("block %d of %s: held is %v", i, batch[i].Gateway, partly.Held[i])
			}
		}
	}
	if n := q.conn.NumSubscriptions(); n != subscriptions {
		t.Errorf("%d subscriptions are left of three batches that failed: there were %d", n, subscriptions)
	}
}

// Once a disk has been full, the server's streams take nothing more, whatever
// room there is: the queue has them read again by itself.
func TestQueue_EmbeddedGoesOnWhenAFullDiskHasRoomAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a file system of the test's own")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("this machine does not let us mount: %s", strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount: %v: %s", err, out)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	q := openQueue(t, options(filepath.Join(dir, "queue")))
	before := noise("arena", 10)
	if err := q.Publish(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	// A recorder, whose store is away at first.
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	back, took := make(chan struct{}), make(chan error, 1)
	var mu sync.Mutex // covers came
	came := map[string]bool{}
	go func() {
		took <- q.Take(ctx, func(ctx context.Context, d cloud.Delivery, ticket cloud.Ticket) error {
			select {
			case <-back:
			case <-ctx.Done():
				return ctx.Err()
			}
			mu.Lock()
			defer mu.Unlock()
			came[named(d)] = true
			ticket.Done()
			return nil
		})
	}()
	var err error
	for range 100 {
		if err = q.Publish(t.Context(), noise("arena", 10)); err != nil {
			break
		}
	}
	if err == nil {
		t.Fatal("20 MB are on a disk of 4 MB")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	behind := noise("arena", 10)
	for deadline := time.Now().Add(patience); ; {
		if err = q.Publish(t.Context(), behind); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the disk has room, and the queue takes nothing: %v", err)
		}
	}

	// What it had accepted is there, and comes out.
	close(back)
	missing := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, d := range append(before, behind...) {
			if !came[named(d)] {
				n++
			}
		}
		return n
	}
	for ctx.Err() == nil && missing() > 0 {
		pause(ctx, 10*time.Millisecond)
	}
	cancel()
	if err := <-took; err != nil || missing() > 0 {
		t.Errorf("Take: %v; %d blocks did not come out", err, missing())
	}
}

func named(d cloud.Delivery) string { return fmt.Sprint(d.Block.Epoch, d.Block.First) }
