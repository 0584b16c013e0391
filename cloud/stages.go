package cloud

import (
	"sync/atomic"
	"time"
)

// Stages is what a block's way from the socket to the record store takes, stage
// by stage, and what is sent again on it.
type Stages struct {
	SamplesReceived uint64 // as blocks say, those of repeats included
	BytesStored     uint64 // of the blocks among BlocksStored
	RepeatsWaiting  uint64 // blocks that came again while a copy waited; they are recorded once

	Messages, MessageBytes uint64 // sent to gateways: acks, windows and the like

	HelloSeconds Histogram // from a hello to its welcome: the record store's part of a handshake
	RTTSeconds   Histogram // of heartbeats over WebSockets
	BatchSamples Histogram // in one transaction
	BatchBytes   Histogram // of blocks in one transaction
	AcceptedLag  Histogram // seconds from a block's arrival at a node until the queue holds it
	StoredLag    Histogram // seconds from a block's arrival at a node until it is stored

	// Spans that ended, and those of them that a collector took.
	Spans, SpansExported uint64

	// StoreDown and QueueDown say that what was last brought there failed, or hangs.
	StoreDown, QueueDown bool
}

// stages is where Stages are counted.
type stages struct {
	samplesReceived, bytesStored, repeatsWaiting atomic.Uint64
	messages, messageBytes                       atomic.Uint64
	storeDown, queueDown                         atomic.Bool

	hello, rtt, batchSamples, batchBytes, acceptedLag, storedLag *histogram
}

func newStages() stages {
	return stages{
		// 1 ms to 16 s: a handshake has 10.
		hello: newHistogram(exponential(0.001, 2, 15)),
		// 0.5 ms (a local network) to 16 s, beyond which a heartbeat of 15 s has missed.
		rtt: newHistogram(exponential(0.0005, 2, 16)),
		// 1 to 262,144 (maxBatchSamples) by fours.
		batchSamples: newHistogram(exponential(1, 4, 10)),
		// 256 B to 4 MiB (maxBatchBytes) by fours.
		batchBytes: newHistogram(exponential(256, 4, 8)),
		// 1 ms to 65 s: gateways pause from 10 s on.
		acceptedLag: newHistogram(exponential(0.001, 2, 17)),
		// 1 ms to 73 hours, since the queue keeps a block for three days (queue.max_age).
		storedLag: newHistogram(exponential(0.001, 2, 29)),
	}
}

func (c *stages) fill(s *Stats) {
	s.SamplesReceived, s.BytesStored, s.RepeatsWaiting = c.samplesReceived.Load(), c.bytesStored.Load(), c.repeatsWaiting.Load()
	s.Messages, s.MessageBytes = c.messages.Load(), c.messageBytes.Load()
	s.StoreDown, s.QueueDown = c.storeDown.Load(), c.queueDown.Load()
	s.HelloSeconds, s.RTTSeconds = c.hello.snapshot(), c.rtt.snapshot()
	s.BatchSamples, s.BatchBytes = c.batchSamples.snapshot(), c.batchBytes.snapshot()
	s.AcceptedLag, s.StoredLag = c.acceptedLag.snapshot(), c.storedLag.snapshot()
}

// waited counts how long the blocks of a batch took from their arrival until
// now. What came out of a queue arrived by another machine's clock, which may
// be ahead: that is no time.
func waited(h *histogram, list []Delivery, now time.Time) {
	for i := range list {
		h.observe(max(0, now.Sub(list[i].Received).Seconds()))
	}
}

// noteHealth keeps for /metrics what Health says, which is asked where a batch
// ends and once a second, since one that hangs does not end.
func (b *batcher) noteHealth() {
	down := b.Health() != nil
	if b.into != nil {
		b.stats.queueDown.Store(down)
	} else {
		b.stats.storeDown.Store(down)
	}
}

// weighed counts how much one transaction had.
func (b *batcher) weighed(g batch) {
	bytes, samples := 0, 0
	for i := range g.deliveries {
		block := &g.deliveries[i].Block
		bytes += len(block.Data)
		samples += int(block.Count)
	}
	b.stats.batchBlocks.observe(float64(g.len()))
	b.stats.batchBytes.observe(float64(bytes))
	b.stats.batchSamples.observe(float64(samples))
}
