package cloud

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A Depth is what a queue holds that is not recorded, in all its streams.
type Depth struct {
	Blocks, Bytes uint64
	MaxBytes      uint64
	Taken         uint64    // of Blocks, those that are with recorders
	Oldest        time.Time // when the oldest was accepted; zero where there is none

	Duplicates uint64 // blocks that this process published and the queue knew
}

// A gauged is a Queue or a Source that says how deep it is. It asks its servers.
type gauged interface {
	Depth(ctx context.Context) (Depth, error)
}

// A dropper is a Bus that counts what it did not carry.
type dropper interface {
	Dropped() uint64
}

// queueStats is what a Recording counts of the queue.
type queueStats struct {
	redelivered      atomic.Uint64
	acceptedToStored *histogram
}

func newQueueStats() *queueStats {
	// 1 ms to 9 h: an outage of a day is above the last, and in stream_oldest_seconds.
	return &queueStats{acceptedToStored: newHistogram(exponential(0.001, 2, 26))}
}

// depthPatience bounds what a scrape waits for the queue's servers.
const depthPatience = 2 * time.Second

// A queueCollector renders what is known of queue and bus, both of which may be nil.
type queueCollector struct {
	queue any
	bus   Bus
	stats *queueStats
}

var (
	streamUp      = desc("stream_up", "1 where the queue's servers said at this scrape what the streams hold.")
	streamBlocks  = desc("stream_blocks", "Blocks in the queue that are not recorded.")
	streamBytes   = desc("stream_bytes", "Bytes of the queue's streams.")
	streamMax     = desc("stream_max_bytes", "Bytes that the queue's streams may have; when they are full, windows shrink (queue.max_bytes).")
	streamTaken   = desc("stream_taken_blocks", "Blocks of the queue that are with recorders.")
	streamOldest  = desc("stream_oldest_seconds", "How long ago the oldest block in the queue was accepted; 0 where there is none.")
	duplicates    = desc("queue_duplicates_total", "Blocks published that the queue knew, since a gateway had sent them again.")
	redelivered   = desc("queue_redelivered_total", "Blocks that came out of the queue again, since whoever had them did not record them in time.")
	storedLagDesc = desc("accepted_to_stored_seconds", "From the moment in which the queue held a block to its commit in the record store.")
	busDropped    = desc("live_bus_dropped_total", "Blocks and messages that the bus between nodes did not carry in time; viewers missed them.")
)

// Describe implements prometheus.Collector.
func (c *queueCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{streamUp, streamBlocks, streamBytes, streamMax, streamTaken, streamOldest, duplicates, redelivered, storedLagDesc, busDropped} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *queueCollector) Collect(ch chan<- prometheus.Metric) {
	number := func(d *prometheus.Desc, kind prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(d, kind, v)
	}
	if b, ok := c.bus.(dropper); ok {
		number(busDropped, prometheus.CounterValue, float64(b.Dropped()))
	}
	if c.queue == nil {
		return
	}
	number(redelivered, prometheus.CounterValue, float64(c.stats.redelivered.Load()))
	ch <- constHistogram(storedLagDesc, c.stats.acceptedToStored.snapshot())
	g, ok := c.queue.(gauged)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), depthPatience)
	defer cancel()
	d, err := g.Depth(ctx)
	number(duplicates, prometheus.CounterValue, float64(d.Duplicates))
	if err != nil { // and a scrape has everything else
		number(streamUp, prometheus.GaugeValue, 0)
		return
	}
	number(streamUp, prometheus.GaugeValue, 1)
	number(streamBlocks, prometheus.GaugeValue, float64(d.Blocks))
	number(streamBytes, prometheus.GaugeValue, float64(d.Bytes))
	number(streamMax, prometheus.GaugeValue, float64(d.MaxBytes))
	number(streamTaken, prometheus.GaugeValue, float64(d.Taken))
	age := 0.0
	if !d.Oldest.IsZero() {
		age = max(0, time.Since(d.Oldest).Seconds())
	}
	number(streamOldest, prometheus.GaugeValue, age)
}
