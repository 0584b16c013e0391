package jetstream

import (
	"fmt"
	"testing"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// BenchmarkPublish publishes batches as ingest does, of blocks of 1,000 samples,
// each batch synced: to see what the group costs and what a block.
func BenchmarkPublish(b *testing.B) {
	for _, size := range []int{1, 32, 512} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			opts := options(b.TempDir())
			opts.MaxBytes = 8 << 30
			q := openQueue(b, opts)
			batch := make([]cloud.Delivery, size)
			for i := range batch {
				batch[i] = recordertest.NewDelivery(b, "north", touchline.Epoch{1}, 1, recordertest.Series("belt", int64(i), 10, 1000))
			}
			b.ResetTimer()
			for n := 0; b.Loop(); n++ {
				for i := range batch {
					block := &batch[i].Block
					block.First = uint64(1 + 1000*(n*size+i))
					block.CRC = block.Sum()
				}
				if err := q.Publish(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "blocks/s")
		})
	}
}
