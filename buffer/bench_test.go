package buffer

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"touchline"
)

// BenchmarkAppend measures durable appends: each is committed and synced
// before it counts. An operation is one sample.
//
//	samples/s    acknowledged
//	cpu-µs/sample  user and system time of the whole process, producers included
//	disk-B/sample  what the process caused to be written, logs and syncs included
//	file-B/sample  what the samples take in the buffer
//	commits/s
func BenchmarkAppend(b *testing.B) {
	for _, bench := range []struct {
		producers, window, each int
		interval                time.Duration
		repeats                 time.Duration // window
	}{
		{producers: 1, window: 1, each: 1},
		{producers: 1, window: 1, each: 1000},
		{producers: 300, window: 50, each: 1},
		{producers: 300, window: 50, each: 5},
		{producers: 300, window: 50, each: 1, interval: 10 * time.Millisecond},
		{producers: 300, window: 50, each: 5, interval: 10 * time.Millisecond},
		{producers: 300, window: 50, each: 5, interval: 10 * time.Millisecond, repeats: 10 * time.Second},
	} {
		name := fmt.Sprintf("producers=%d/window=%d/samples=%d/interval=%s/repeats=%s", bench.producers, bench.window, bench.each, bench.interval, bench.repeats)
		b.Run(name, func(b *testing.B) {
			opts := testOptions(b)
			opts.CommitInterval = bench.interval
			opts.MaxBytes = 8 << 30
			opts.RepeatWindow, opts.RepeatBytes = bench.repeats, 8<<20
			buffer := startBuffer(b, opts)
			b.ReportAllocs()
			cpu, written := cpuTime(b), writtenBytes(b)
			b.ResetTimer()
			var all sync.WaitGroup
			for g := range bench.producers {
				rounds := (b.N/bench.each + bench.producers - 1 - g) / bench.producers
				all.Go(func() { produce(b, buffer, producer{id: g, rounds: rounds, window: bench.window, each: bench.each}) })
			}
			all.Wait()
			b.StopTimer()
			s, elapsed := buffer.Stats(), b.Elapsed().Seconds()
			if s.Appended == 0 {
				return
			}
			samples := float64(s.Appended)
			b.ReportMetric(samples/elapsed, "samples/s")
			b.ReportMetric((cpuTime(b)-cpu).Seconds()*1e6/samples, "cpu-µs/sample")
			b.ReportMetric(float64(writtenBytes(b)-written)/samples, "disk-B/sample")
			b.ReportMetric(float64(s.Bytes)/samples, "file-B/sample")
			b.ReportMetric(float64(s.Commits)/elapsed, "commits/s")
		})
	}
}

type producer struct{ id, rounds, window, each int }

// produce appends like one connection: at most window messages wait for their
// commit at a time.
func produce(b *testing.B, buffer *Buffer, p producer) {
	tokens := make(chan struct{}, p.window)
	done := func(err error) {
		if err != nil {
			b.Error(err)
		}
		<-tokens
	}
	samples := make([]touchline.Sample, p.each)
	sensor := fmt.Sprintf("player-%03d", p.id)
	for i := range p.rounds {
		for j := range samples {
			n := i*p.each + j
			samples[j] = touchline.Sample{Sensor: sensor, Metric: "speed", Unit: "m/s",
				Time:  1_700_000_000_000_000_000 + int64(n)*10_000_000,
				Value: touchline.NumberValue(math.Round(400*math.Abs(math.Sin(float64(n)/90)))/100 + float64(n%7)/100)}
		}
		tokens <- struct{}{}
		if err := buffer.AppendAsync(b.Context(), touchline.Arrival{Samples: samples}, done); err != nil {
			b.Error(err)
			return
		}
	}
	for range p.window {
		tokens <- struct{}{}
	}
}

// BenchmarkDrain measures the way out: reading and acknowledging what a
// BenchmarkAppend put in, in blocks of one commit. An operation is one block.
func BenchmarkDrain(b *testing.B) {
	buffer := openBuffer(b, testOptions(b))
	insertSmallBlocks(b, buffer, b.N)
	runBuffer(b, buffer)
	b.ResetTimer()
	var after touchline.Position
	for n := 0; n < b.N; {
		blocks, err := buffer.Next(b.Context(), after, 256<<10)
		if err != nil {
			b.Fatal(err)
		}
		n += len(blocks)
		last := blocks[len(blocks)-1]
		after = touchline.Position{Epoch: last.Epoch, Seq: last.Last()}
		if err := buffer.Ack(ackOf(blocks...), nil); err != nil {
			b.Fatal(err)
		}
	}
	if err := buffer.Evict(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRecall measures what Open does to know what was stored last: as
// much as the default memory holds. An operation is one opening.
func BenchmarkRecall(b *testing.B) {
	opts := testOptions(b)
	opts.RepeatWindow, opts.RepeatBytes = 10*time.Minute, 8<<20
	buffer := startBuffer(b, opts)
	for i := range 150 {
		mustAppend(b, buffer, numbered(2000*i, 2000))
	}
	if err := buffer.Close(); err != nil {
		b.Fatal(err)
	}
	known := 0
	for b.Loop() {
		b.StopTimer()
		buffer = openBuffer(b, opts)
		buffer.w.repeats = newRepeats(&opts)
		b.StartTimer()
		if err := buffer.recall(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		known = buffer.w.repeats.window.Len()
		if err := buffer.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(known), "samples")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// writtenBytes returns what this process made the kernel write to a disk, 0
// where that is not known.
func writtenBytes(b *testing.B) int64 {
	f, err := os.Open("/proc/self/io")
	if err != nil {
		return 0
	}
	defer f.Close()
	var n int64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "write_bytes: "); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				b.Fatal(err)
			}
		}
	}
	return n
}
