package wire

import (
	"fmt"
	"testing"

	"touchline"
)

// shapes are the data and block sizes that the benchmarks run on.
func shapes(b *testing.B, run func(b *testing.B, blocks [][]touchline.Sample)) {
	for _, name := range recordings {
		for _, size := range []int{1000, 10000} {
			samples := recording(b, name)
			var blocks [][]touchline.Sample
			for len(samples) > 0 {
				n := min(size, len(samples))
				blocks = append(blocks, samples[:n])
				samples = samples[n:]
			}
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) { run(b, blocks) })
		}
	}
	round := matchRound()
	b.Run(fmt.Sprintf("match/%d", len(round)), func(b *testing.B) { run(b, [][]touchline.Sample{round}) })
}

func BenchmarkEncode(b *testing.B) {
	shapes(b, func(b *testing.B, blocks [][]touchline.Sample) {
		b.ReportAllocs()
		e := NewEncoder()
		var dst []byte
		var samples, size int
		for b.Loop() {
			for _, block := range blocks {
				got, err := e.Encode(dst[:0], block)
				if err != nil || got.Count != len(block) {
					b.Fatal(got.Count, err)
				}
				dst = got.Data
				samples += len(block)
				size += len(dst)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
		b.ReportMetric(float64(size)/float64(samples), "B/sample")
	})
}

func BenchmarkDecode(b *testing.B) {
	shapes(b, func(b *testing.B, blocks [][]touchline.Sample) {
		b.ReportAllocs()
		var encoded [][]byte
		for _, block := range blocks {
			got, err := NewEncoder().Encode(nil, block)
			if err != nil {
				b.Fatal(err)
			}
			encoded = append(encoded, got.Data)
		}
		d := NewDecoder()
		var dst []touchline.Sample
		var samples int
		for b.Loop() {
			for _, data := range encoded {
				var err error
				if dst, err = d.Decode(dst[:0], data); err != nil {
					b.Fatal(err)
				}
				samples += len(dst)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
	})
}
