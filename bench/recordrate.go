package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// recordFigures are how one node records on one store, and, in the same run on the
// same disk, what the store's own means and the disk do with the same bytes.
type recordFigures struct {
	Store    string     `json:"store"`
	Gateways int        `json:"gateways"`
	FlatOut  recordPace `json:"flat_out"`
	// Paced are at parts of what it reached flat out.
	Paced []recordPace `json:"paced"`
	// CopyBlocks is PostgreSQL's COPY, by psql, of the same rows in transactions of
	// as many as the node had; CopySamples that of one row a sample.
	CopyBlocks  number `json:"copy_blocks_samples_per_s"`
	CopySamples number `json:"copy_samples_per_s"`
	// Disk is the same bytes written to a file and synced, in as many pieces.
	Disk    number `json:"disk_samples_per_s"`
	Samples int64  `json:"samples"` // in all, each of them stored once
	Problem string `json:"problem,omitempty"`
}

// recordPace is one phase.
type recordPace struct {
	Offered number `json:"offered_samples_per_s"` // null: flat out
	Stored  number `json:"stored_samples_per_s"`
	NodeCPU number `json:"node_cpu_s_per_million_samples"`
	Written number `json:"node_written_bytes_per_sample"` // PostgreSQL writes itself: null
	Batch   number `json:"blocks_per_transaction"`
	P50     number `json:"ingest_to_stored_p50_s"`
	P90     number `json:"ingest_to_stored_p90_s"`
	P99     number `json:"ingest_to_stored_p99_s"`
	P999    number `json:"ingest_to_stored_p999_s"`
	Max     number `json:"ingest_to_stored_max_s"`
}

// paces are parts of the rate that was reached flat out.
var paces = []float64{0.1, 0.5}

// recordMark is what a node has done by a time.
type recordMark struct {
	at                     time.Time
	samples, blocks, count float64 // count is of transactions
	cpu                    float64
	written                int64
}

func (n *cloudNode) recordMark(ctx context.Context) (recordMark, error) {
	m := recordMark{at: time.Now()}
	all, err := n.metrics(ctx)
	if err != nil {
		return m, err
	}
	var errs [5]error
	m.samples, errs[0] = all.value("touchline_cloud_samples_stored_total")
	m.blocks, errs[1] = all.value("touchline_cloud_batch_blocks_sum")
	m.count, errs[2] = all.value("touchline_cloud_batch_blocks_count")
	m.cpu, errs[3] = n.process.cpuSeconds()
	m.written, errs[4] = n.process.writtenBytes()
	return m, errors.Join(errs[:]...)
}

// measureRecord loads a new node, first with all that it takes.
func (s *cloudSettings) measureRecord(ctx context.Context, dir, store string, blocks []packed) (f recordFigures, err error) {
	f = recordFigures{Store: store, Gateways: s.gateways, CopyBlocks: unknown, CopySamples: unknown, Disk: unknown}
	n, err := startNode(ctx, s.cloud, dir, store, s.gateways)
	if err != nil {
		return f, err
	}
	defer n.stop()
	in, err := startIngest(ctx, n, blocks)
	if err != nil {
		return f, err
	}
	defer in.close()
	say("%s: %d gateways, flat out", store, s.gateways)
	if f.FlatOut, err = s.phase(ctx, n, in, 0); err != nil {
		return f, errors.Join(err, n.process.died())
	}
	perBlock := meanSamples(blocks)
	for _, part := range paces {
		say("%s: at %.0f %% of that", store, part*100)
		paced, err := s.phase(ctx, n, in, part*float64(f.FlatOut.Stored)/perBlock)
		if err != nil {
			return f, errors.Join(err, n.process.died())
		}
		paced.Offered = number(part) * f.FlatOut.Stored
		f.Paced = append(f.Paced, paced)
	}
	f.Samples = in.stored()
	if end, err := n.recordMark(ctx); err != nil || int64(end.samples) != f.Samples {
		return f, errors.Join(err, fmt.Errorf("gateways were told that %d samples are stored, and the node stored %.0f", f.Samples, end.samples))
	}
	in.close()
	say("%s: the disk, and COPY", store)
	return f, s.measureLimits(ctx, dir, n, blocks, &f)
}

// phase runs one pace, first to warm up, and measures it.
func (s *cloudSettings) phase(ctx context.Context, n *cloudNode, in *ingest, blocksPerSecond float64) (out recordPace, err error) {
	if _, err := in.run(ctx, pace{blocksPerSecond, time.Now().Add(min(warmUp, s.duration/2))}); err != nil {
		return out, err
	}
	before, err := n.recordMark(ctx)
	if err != nil {
		return out, err
	}
	latency, err := in.run(ctx, pace{blocksPerSecond, time.Now().Add(s.duration)})
	if err != nil {
		return out, err
	}
	after, err := n.recordMark(ctx)
	if err != nil {
		return out, err
	}
	samples, seconds := after.samples-before.samples, after.at.Sub(before.at).Seconds()
	spread := latency.cumulative()
	out = recordPace{
		Offered: unknown, Stored: number(samples / seconds), NodeCPU: ratio((after.cpu-before.cpu)*1e6, samples),
		Written: ratio(float64(after.written-before.written), samples), Batch: ratio(after.blocks-before.blocks, after.count-before.count),
		P50: number(spread.quantile(0.5)), P90: number(spread.quantile(0.9)), P99: number(spread.quantile(0.99)),
		P999: number(spread.quantile(0.999)), Max: number(spread.quantile(1)),
	}
	if n.pg != nil {
		out.Written = unknown
	}
	return out, nil
}

func meanSamples(blocks []packed) float64 {
	sum := 0
	for i := range blocks {
		sum += len(blocks[i].samples)
	}
	return float64(sum) / float64(len(blocks))
}

func printRecords(w io.Writer, list []recordFigures) {
	if len(list) == 0 {
		return
	}
	t := newTable(w, "one node records")
	var columns []string
	for i := range list {
		columns = append(columns, list[i].Store)
	}
	t.header(columns...)
	line := func(name, form string, of func(*recordFigures) number) {
		var values []number
		for i := range list {
			values = append(values, of(&list[i]))
		}
		t.line(name, form, values...)
	}
	phase := func(of func(*recordFigures) recordPace) {
		line("samples/s stored", "%.0f", func(f *recordFigures) number { return of(f).Stored })
		line("node's CPU s/million samples", "%.3f", func(f *recordFigures) number { return of(f).NodeCPU })
		line("node writes bytes/sample", "%.2f", func(f *recordFigures) number { return of(f).Written })
		line("blocks a transaction", "%.1f", func(f *recordFigures) number { return of(f).Batch })
		line("ingest to stored p50, ms", "%.1f", func(f *recordFigures) number { return of(f).P50 * 1e3 })
		line("ingest to stored p99, ms", "%.1f", func(f *recordFigures) number { return of(f).P99 * 1e3 })
		line("ingest to stored p99.9, ms", "%.1f", func(f *recordFigures) number { return of(f).P999 * 1e3 })
		line("ingest to stored max, ms", "%.1f", func(f *recordFigures) number { return of(f).Max * 1e3 })
	}
	t.section("flat out")
	phase(func(f *recordFigures) recordPace { return f.FlatOut })
	for i, part := range paces {
		t.section(fmt.Sprintf("at %.0f %% of that", part*100))
		phase(func(f *recordFigures) recordPace {
			if i < len(f.Paced) {
				return f.Paced[i]
			}
			return recordPace{Stored: unknown, NodeCPU: unknown, Written: unknown, Batch: unknown, P50: unknown, P99: unknown, P999: unknown, Max: unknown}
		})
	}
	t.section("the same on the same disk")
	line("COPY of the blocks, samples/s", "%.0f", func(f *recordFigures) number { return f.CopyBlocks })
	line("COPY of a row a sample", "%.0f", func(f *recordFigures) number { return f.CopySamples })
	line("disk, written and synced", "%.0f", func(f *recordFigures) number { return f.Disk })
	line("flat out by COPY of blocks", "%.2f", func(f *recordFigures) number { return f.FlatOut.Stored / f.CopyBlocks })
	line("flat out by COPY of samples", "%.2f", func(f *recordFigures) number { return f.FlatOut.Stored / f.CopySamples })
	line("flat out by the disk", "%.2f", func(f *recordFigures) number { return f.FlatOut.Stored / f.Disk })
	t.flush()
}
