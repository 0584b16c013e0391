package sqlite

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
	"touchline/wire"
)

// The test binary runs itself as another process; this variable says as what.
const (
	childRole = "TOUCHLINE_TEST_ROLE"
	childDir  = "TOUCHLINE_TEST_DIR"
)

// runChild is the main function of the other process.
func runChild(role string) int {
	ctx := context.Background()
	s, err := Open(ctx, os.Getenv(childDir), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err == nil {
		switch role {
		case "add":
			err = errors.Join(s.AddGateway(ctx, "late", sha256.Sum256([]byte("late"))), s.Close())
		case "record":
			err = recordForever(ctx, s)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// recordForever records batches of two new epochs and says after each what
// was stored: epoch, first and last of each block.
func recordForever(ctx context.Context, s *Store) error {
	encoded, err := wire.NewEncoder().Encode(nil, recordertest.Series("belt", 1000, 7, 25))
	if err != nil {
		return err
	}
	samples, err := wire.NewDecoder().Decode(nil, encoded.Data)
	if err != nil {
		return err
	}
	epochs := []touchline.Epoch{touchline.NewEpoch(), touchline.NewEpoch()}
	next := make([]uint64, len(epochs))
	for n := 0; ; n++ {
		var batch []cloud.Delivery
		var said strings.Builder
		for i := range 1 + n%7 {
			e := i % len(epochs)
			b := wire.Block{Epoch: epochs[e], First: next[e] + 1, Count: 25, Data: encoded.Data}
			next[e] += 25
			d := cloud.Delivery{Gateway: "north", Block: b, Samples: samples, Received: recordertest.Received}
			if n%5 == 3 && i == 0 {
				d.Samples, d.Problem = nil, "made to be kept aside"
			}
			d.Block.CRC = d.Block.Sum()
			batch = append(batch, d)
			fmt.Fprintf(&said, "%s %d %d;", b.Epoch, b.First, b.Last())
		}
		if _, err := s.Record(ctx, batch); err != nil {
			return err
		}
		if _, err := fmt.Println(said.String()); err != nil {
			return err
		}
	}
}

func child(t *testing.T, dir, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role, childDir+"="+dir)
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// What Record returned for is there after the process was killed, and the
// store is whole: nothing half, nothing twice.
func TestRecord_SurvivesKill(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.AddGateway(t.Context(), "north", sha256.Sum256([]byte("north"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(5, 6))
	for round := range 8 {
		said := killedRecorder(t, dir, 1+random.IntN(60))
		s := open(t, dir)
		for _, line := range said {
			for _, block := range strings.Split(strings.TrimSuffix(line, ";"), ";") {
				var hex string
				var r touchline.Range
				if _, err := fmt.Sscan(block, &hex, &r.First, &r.Last); err != nil {
					t.Fatalf("read %q: %v", block, err)
				}
				epoch, err := touchline.ParseEpoch(hex)
				if err != nil {
					t.Fatal(err)
				}
				stored, err := s.Stored(t.Context(), "north", []touchline.Epoch{epoch})
				if err != nil {
					t.Fatal(err)
				}
				if len(stored) != 1 || !stored[0].Ranges.Contains(r) {
					t.Fatalf("round %d: Record returned for %s and %v are stored", round, block, stored)
				}
			}
		}
		found := audit(t, s)
		yielded := uint64(0)
		if err := s.Samples(t.Context(), cloud.Query{}, func(cloud.Record) error { yielded++; return nil }); err != nil {
			t.Fatal(err)
		}
		if yielded != found.Samples {
			t.Fatalf("round %d: a query yields %d samples of %d", round, yielded, found.Samples)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killedRecorder runs a recorder, kills it once it has said so many lines,
// and returns all that it said.
func killedRecorder(t *testing.T, dir string, lines int) []string {
	t.Helper()
	cmd := child(t, dir, "record")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	reader := bufio.NewReader(out)
	for {
		line, err := reader.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break // with a line that the kill cut off, which was not said
		}
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, strings.TrimSpace(line))
		if len(said) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); len(said) < lines {
		t.Fatalf("the recorder ended on its own: %v\n%s", err, cmd.Stderr)
	}
	return said
}

// touchline-cloud gateway add beside a running cloud: found at once.
func TestAddGateway_OfAnotherProcessIsFoundAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	token := sha256.Sum256([]byte("late"))
	if _, err := s.GatewayByToken(t.Context(), token); !errors.Is(err, cloud.ErrUnknownToken) {
		t.Fatalf("GatewayByToken: %v, want ErrUnknownToken", err)
	}
	cmd := child(t, dir, "add")
	if err := cmd.Run(); err != nil {
		t.Fatalf("add gateway: %v\n%s", err, cmd.Stderr)
	}
	if id, err := s.GatewayByToken(t.Context(), token); err != nil || id != "late" {
		t.Fatalf("GatewayByToken = %q, %v: want late", id, err)
	}
	if _, _, err := s.NewSession(t.Context(), "late"); err != nil {
		t.Fatal(err)
	}
	d := recordertest.NewDelivery(t, "late", touchline.NewEpoch(), 1, recordertest.Series("belt", 0, 1, 3))
	if _, err := s.Record(t.Context(), []cloud.Delivery{d}); err != nil {
		t.Fatal(err)
	}
	audit(t, s)
}

// A second recorder on the same file is not how the store is meant to be
// run, but must not break what it promises: each notices at its next batch
// that its cursors are old.
func TestRecord_NoticesAnotherRecorder(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	defer a.Close()
	defer b.Close()
	if err := a.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	epoch := touchline.NewEpoch()
	for i := range uint64(50) {
		d := recordertest.NewDelivery(t, "north", epoch, 1+10*i, recordertest.Series("belt", int64(i), 1, 10))
		across := recordertest.NewDelivery(t, "north", epoch, 6+10*i, recordertest.Series("belt", int64(i), 1, 5))
		first, second := a, b
		if i%3 == 0 {
			first, second = b, a
		}
		if got, err := first.Record(t.Context(), []cloud.Delivery{d}); err != nil || got[0] != (cloud.Outcome{}) {
			t.Fatalf("block %d: %+v, %v: want it stored", i, got, err)
		}
		got, err := second.Record(t.Context(), []cloud.Delivery{d, across})
		if err != nil || !got[0].Repeat || got[0].KeptAside || !got[1].KeptAside {
			t.Fatalf("block %d again: %+v, %v: want a repeat, and the overlap kept aside", i, got, err)
		}
	}
	audit(t, a)
}

// Another process that holds the write lock for long: Record waits for it, and
// gives up when its context ends.
func TestRecord_WaitsForAnotherWriter(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	defer s.Close()
	defer other.Close()
	if err := s.AddGateway(t.Context(), "north", [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	work := []cloud.Delivery{recordertest.NewDelivery(t, "north", touchline.NewEpoch(), 1, recordertest.Series("belt", 0, 1, 5))}
	tx, err := other.beginWrite(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*busyTurn)
	defer cancel()
	if _, err := s.Record(ctx, work); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Record while another process writes: %v, want the end of its context", err)
	}
	if took := time.Since(start); took > busyTimeout/2 {
		t.Fatalf("Record gave up after %s: it did not notice the end of its context", took)
	}
	done := make(chan error)
	go func() {
		_, err := s.Record(t.Context(), work)
		done <- err
	}()
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("Record after the other process was done: %v", err)
	}
	audit(t, s)
}
