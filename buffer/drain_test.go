package buffer

import (
	"os"
	"testing"
	"time"
)

// What an outage made of the file is given back when the cloud has it all, or
// when that was kept for its time: all but what the next outage of a while
// takes, by an idle gateway, without a restart.
func TestRun_FileShrinksAfterADrain(t *testing.T) {
	const (
		outage = 64 << 20
		most   = keepFreePages*pageBytes + 2*vacuumPages*pageBytes // the file and its log
	)
	for _, test := range []struct {
		name string
		keep time.Duration
	}{{"not kept", 0}, {"kept for 36 h", 36 * time.Hour}} {
		t.Run(test.name, func(t *testing.T) {
			opts, clock := testOptions(t), new(testClock)
			opts.Dir = memoryFolder(t) // 64 MiB of syncs are not what is looked at
			opts.KeepStored, opts.clock, opts.tick = test.keep, clock.elapsed, time.Millisecond
			b := startBuffer(t, opts)
			for range outage >> 17 {
				mustAppend(t, b, bulky(1<<17-100))
			}
			size := func(suffix string) int64 {
				info, err := os.Stat(b.store.path + suffix)
				if err != nil {
					t.Fatal(err)
				}
				return info.Size()
			}
			if err := b.Ack(ackOf(readAll(t, b)...), nil); err != nil {
				t.Fatal(err)
			}
			evict(t, b)
			full, log := size(""), size("-wal")
			if test.keep > 0 {
				if s := b.Stats(); s.KeptBytes < outage || full+log < outage {
					t.Fatalf("%d bytes are kept in a file of %d and a log of %d, want all", s.KeptBytes, full, log)
				}
				clock.advance(test.keep + test.keep/markSlots + time.Second)
			}
			waitUntil(t, func() bool { return size("")+size("-wal") <= most })
			t.Logf("MEASURED file after a drain, %s: %.1f MiB and a log of %.1f MiB became %.1f MiB and %.1f MiB",
				test.name, mib(full), mib(log), mib(size("")), mib(size("-wal")))
			if s := b.Stats(); s.Blocks+s.KeptBlocks > 0 {
				t.Errorf("%d blocks are held, want none", s.Blocks+s.KeptBlocks)
			}
			mustAppend(t, b, numbered(0, 10))
		})
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
