package buffer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

func TestAppend_SurvivesKill(t *testing.T) {
	opts := testOptions(t)
	var acked []int
	for range 3 {
		acked = append(acked, runKilledAppender(t, opts.Dir, len(acked)+200)...)
	}
	b := openBuffer(t, opts)
	blocks := readAll(t, b)
	wantDense(t, blocks)
	seen := map[int]int{}
	for _, v := range values(t, blocks) {
		seen[v]++
	}
	for _, v := range acked {
		if seen[v] != 1 {
			t.Fatalf("sample %d was acknowledged, and is there %d times", v, seen[v])
		}
	}
	for v, n := range seen {
		if n != 1 {
			t.Fatalf("sample %d is there %d times", v, n)
		}
	}
	if held, _ := b.Held(); len(held) != 3 {
		t.Fatalf("held %v, want an epoch for each of three killed runs", held)
	}
	if s := b.Stats(); s.Samples != int64(len(seen)) || s.Blocks != int64(len(blocks)) {
		t.Errorf("counted %d samples in %d blocks, there are %d in %d", s.Samples, s.Blocks, len(seen), len(blocks))
	}
}

// runKilledAppender runs this test binary as an appender, kills it in the
// middle of its work, and returns what it said was durable.
func runKilledAppender(t *testing.T, dir string, until int) []int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TOUCHLINE_TEST_APPENDER="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acked []int
	for len(acked) < until {
		var n int
		if _, err := fmt.Fscanln(out, &n); err != nil {
			t.Fatalf("appender ended after %d: %v", len(acked), err)
		}
		acked = append(acked, n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out) // what it had said before it died
	for _, line := range strings.SplitAfter(string(rest), "\n") {
		var n int
		if strings.HasSuffix(line, "\n") {
			if _, err := fmt.Sscan(line, &n); err == nil {
				acked = append(acked, n)
			}
		}
	}
	_ = cmd.Wait() // killed
	return acked
}

// appendUntilKilled appends from eight goroutines, and prints each sample's
// value when it is durable.
func appendUntilKilled(dir string) {
	die := func(err error) {
		fmt.Fprintln(os.Stderr, "appender:", err)
		os.Exit(1)
	}
	b, err := Open(context.Background(), Options{Dir: dir, MaxBytes: 1 << 30, WhenFull: EvictOldest}, slog.New(slog.DiscardHandler))
	if err != nil {
		die(err)
	}
	go func() { die(b.Run(context.Background())) }()
	var print sync.Mutex
	for g := range 8 {
		go func() {
			for i := 0; ; i++ {
				n := os.Getpid()*1_000_000 + i*8 + g
				if err := b.Append(context.Background(), numbered(n, 1)); err != nil {
					die(err)
				}
				print.Lock()
				fmt.Println(n)
				print.Unlock()
			}
		}()
	}
	select {}
}
