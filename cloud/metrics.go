package cloud

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// newRegistry returns what /metrics shows: the Stats of a Server, what it
// stands on, and Go's own numbers of the process.
func newRegistry(stats func() Stats, standing *standing) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		&collector{stats: stats},
		standing,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return registry
}

// A collector renders one copy of Stats for each scrape, so the numbers of a
// scrape agree with each other and with what the command line shows.
type collector struct{ stats func() Stats }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("touchline_cloud_"+name, help, labels, nil)
}

type simple struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Stats) float64
}

func counter(name, help string, value func(*Stats) uint64) simple {
	return simple{desc(name, help), prometheus.CounterValue, func(s *Stats) float64 { return float64(value(s)) }}
}

func gauge(name, help string, value func(*Stats) int) simple {
	return simple{desc(name, help), prometheus.GaugeValue, func(s *Stats) float64 { return float64(value(s)) }}
}

func boolean(name, help string, value func(*Stats) bool) simple {
	return simple{desc(name, help), prometheus.GaugeValue, func(s *Stats) float64 { return truth(value(s)) }}
}

var simples = []simple{
	gauge("connections", "Uplinks that are open.", func(s *Stats) int { return s.Connections }),
	counter("frames_total", "Block frames received.", func(s *Stats) uint64 { return s.Frames }),
	counter("frame_bytes_total", "Bytes of block frames received.", func(s *Stats) uint64 { return s.FrameBytes }),
	counter("blocks_total", "Blocks received, repeats and damaged ones included.", func(s *Stats) uint64 { return s.Blocks }),
	counter("blocks_stored_total", "Blocks committed among the samples, repeats not counted.", func(s *Stats) uint64 { return s.BlocksStored }),
	counter("samples_stored_total", "Samples committed, repeats not counted.", func(s *Stats) uint64 { return s.SamplesStored }),
	counter("block_repeats_total", "Blocks received that were stored already.", func(s *Stats) uint64 { return s.Repeats }),
	counter("blocks_kept_aside_total", "Blocks stored as they are, since they can't be read or contradict what is stored.", func(s *Stats) uint64 { return s.KeptAside }),
	counter("block_resends_total", "Blocks that arrived damaged and were asked for again.", func(s *Stats) uint64 { return s.Resends }),
	counter("lost_samples_announced_total", "Samples that gateways announced as lost; a repeated announcement counts again.", func(s *Stats) uint64 { return s.LostSamples }),
	counter("record_errors_total", "Batches that the record store did not take at once.", func(s *Stats) uint64 { return s.RecordErrors }),
	counter("cloned_hellos_total", "Hellos that showed that two boxes have one gateway's identity.", func(s *Stats) uint64 { return s.Cloned }),
	counter("sessions_overtaken_total", "Sessions that ended since their gateways were at another node.", func(s *Stats) uint64 { return s.Overtaken }),
	counter("address_refused_total", "Connections refused since their address had too many.", func(s *Stats) uint64 { return s.AddressRefused }),
	counter("client_cert_headers_dropped_total", "Requests with tls.client_cert_header that came from no trusted proxy.", func(s *Stats) uint64 { return s.ForeignHeaders }),
	gauge("nodes", "Nodes of this store that take gateways, as this one sees it; itself included.", func(s *Stats) int { return s.Nodes }),
	gauge("connections_max", "Uplinks that may be open (max_gateways).", func(s *Stats) int { return s.MaxConnections }),
	gauge("queue_max_bytes", "Memory that the blocks that wait may have (queue.bytes).", func(s *Stats) int { return s.MaxQueueBytes }),
	{desc("record_lag_seconds", "How long the oldest block that is not recorded has waited; 0 where none waits."), prometheus.GaugeValue,
		func(s *Stats) float64 { return s.Lag.Seconds() }},
	{desc("load_ratio", "How much of what this node can take is taken, by the scarcest of connections, queue and lag: 0 to 1."), prometheus.GaugeValue, (*Stats).Load},
	boolean("draining", "1 while this node sends its gateways to others, to stop.", func(s *Stats) bool { return s.Draining }),
	counter("blocks_accepted_total", "Blocks that the queue holds, or held until they were recorded.", func(s *Stats) uint64 { return s.BlocksAccepted }),
	counter("stored_notices_lost_total", "Sessions in which the record store was asked since a notice that blocks are stored did not come, and had them.", func(s *Stats) uint64 { return s.NoticesLost }),
	counter("queue_refused_total", "Blocks taken out of the queue unrecorded, damaged or refused by the record store; their gateways send them again.", func(s *Stats) uint64 { return s.QueueRefused }),
	gauge("queue_bytes", "Memory of the blocks that wait for the record store.", func(s *Stats) int { return s.QueueBytes }),
	gauge("queue_blocks", "Blocks that wait for the record store.", func(s *Stats) int { return s.QueueBlocks }),
	gauge("window_bytes", "Window that each gateway is offered.", func(s *Stats) int { return s.Window }),
	gauge("queries_running", "Reads of samples that run.", func(s *Stats) int { return s.QueriesRunning }),
	counter("query_rows_total", "Samples sent to readers.", func(s *Stats) uint64 { return s.RowsQueried }),
	gauge("live_viewers", "Viewers of live samples.", func(s *Stats) int { return s.Viewers }),
	counter("live_viewers_refused_total", "Viewers refused since there were too many.", func(s *Stats) uint64 { return s.ViewersRefused }),
	counter("live_samples_sent_total", "Samples sent to viewers, for each of them.", func(s *Stats) uint64 { return s.LiveSent }),
	counter("live_blocks_decoded_total", "Blocks decoded for viewers.", func(s *Stats) uint64 { return s.LiveDecoded }),
	{desc("rollup_lag_seconds", "How long the oldest change of samples has waited for its rows of seconds and minutes; 0 where none waits."), prometheus.GaugeValue,
		func(s *Stats) float64 { return s.Rollups.Lag.Seconds() }},
	counter("rollup_turns_total", "Transactions of rows of seconds and minutes.", func(s *Stats) uint64 { return s.Rollups.Turns }),
	counter("rollup_rows_total", "Rows of seconds and minutes computed.", func(s *Stats) uint64 { return s.Rollups.Rows }),
	counter("rollup_samples_total", "Samples read for rows of seconds and minutes.", func(s *Stats) uint64 { return s.Rollups.Samples }),
	counter("samples_received_total", "Samples of the blocks received, those of repeats included.", func(s *Stats) uint64 { return s.SamplesReceived }),
	counter("stored_bytes_total", "Bytes of the blocks committed among the samples, repeats not counted.", func(s *Stats) uint64 { return s.BytesStored }),
	counter("block_repeats_waiting_total", "Blocks received while a copy of them waited: one of the two is recorded.", func(s *Stats) uint64 { return s.RepeatsWaiting }),
	counter("messages_sent_total", "Messages sent to gateways: acks, windows and the like.", func(s *Stats) uint64 { return s.Messages }),
	counter("message_bytes_sent_total", "Bytes of messages sent to gateways.", func(s *Stats) uint64 { return s.MessageBytes }),
	counter("trace_spans_total", "Spans that ended, of blocks that are followed ([tracing]).", func(s *Stats) uint64 { return s.Spans }),
	counter("trace_spans_exported_total", "Spans that the collector took. The others wait, at most 2,048, or were dropped.", func(s *Stats) uint64 { return s.SpansExported }),
	boolean("store_up", "0 while the last transaction failed or hangs; 1 in a process that records nothing.", func(s *Stats) bool { return !s.StoreDown }),
	boolean("queue_up", "0 while blocks can't be brought into the queue; 1 where there is none.", func(s *Stats) bool { return !s.QueueDown }),
	counter("live_blocks_dropped_total", "Blocks not decoded for viewers, since too many waited.", func(s *Stats) uint64 { return s.LiveDropped }),
}

var (
	handshakesDesc = desc("handshakes_total", "Uplink handshakes by result.", "result")
	sentAwayDesc   = desc("sessions_sent_away_total", "Gateways asked to come anew, at another node: drain, age, imbalance, or outage (of the record store, when they came).", "cause")
	closedDesc     = desc("sessions_closed_total", "Uplinks that ended, by WebSocket close code; 0 is a connection that broke.", "code")
	queriesDesc    = desc("queries_total", "Reads of samples by result.", "result")
	omittedDesc    = desc("live_samples_left_out_total", "Samples that a viewer was not sent: slow viewer, late sample, too many series, or a value above 1 KiB.", "reason")
	batchDesc      = desc("batch_blocks", "Blocks in one transaction.")
	recordDesc     = desc("record_duration_seconds", "Time that one transaction took, sync included.")
	publishDesc    = desc("publish_duration_seconds", "Time that one batch took into the queue, its sync included.")
	helloDesc      = desc("hello_duration_seconds", "From a hello to its welcome: the record store's part of a handshake.")
	rttDesc        = desc("heartbeat_rtt_seconds", "Round trip of heartbeats over WebSockets.")
	samplesDesc    = desc("batch_samples", "Samples in one transaction.")
	bytesDesc      = desc("batch_bytes", "Bytes of blocks in one transaction.")
	acceptedDesc   = desc("accepted_lag_seconds", "From a block's arrival at a node until the queue holds it.")
	storedDesc     = desc("stored_lag_seconds", "From a block's arrival at a node to the end of the transaction that stored it.")
	ageDesc        = desc("sample_age_seconds", "From a sample's time to the end of the transaction that stored it; buckets grow by a quarter.")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range simples {
		ch <- m.desc
	}
	for _, d := range []*prometheus.Desc{handshakesDesc, sentAwayDesc, closedDesc, queriesDesc, omittedDesc, batchDesc, recordDesc, publishDesc, ageDesc,
		helloDesc, rttDesc, samplesDesc, bytesDesc, acceptedDesc, storedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	for _, m := range simples {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&s))
	}
	labelled := func(d *prometheus.Desc, label string, n uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	for result, n := range s.Handshakes {
		labelled(handshakesDesc, result, n)
	}
	for cause, n := range s.SentAway {
		labelled(sentAwayDesc, cause, n)
	}
	for code, n := range s.Closed {
		labelled(closedDesc, strconv.Itoa(code), n)
	}
	labelled(queriesDesc, "complete", s.Queries)
	labelled(queriesDesc, "refused", s.QueriesRefused)
	labelled(queriesDesc, "broken", s.QueriesBroken)
	labelled(omittedDesc, "slow", s.LiveThinned)
	labelled(omittedDesc, "late", s.LiveLate)
	labelled(omittedDesc, "series", s.LiveSeries)
	labelled(omittedDesc, "long", s.LiveLong)
	ch <- constHistogram(batchDesc, s.BatchBlocks)
	ch <- constHistogram(recordDesc, s.RecordSeconds)
	ch <- constHistogram(publishDesc, s.PublishSeconds)
	ch <- constHistogram(ageDesc, s.SampleAge)
	ch <- constHistogram(helloDesc, s.HelloSeconds)
	ch <- constHistogram(rttDesc, s.RTTSeconds)
	ch <- constHistogram(samplesDesc, s.BatchSamples)
	ch <- constHistogram(bytesDesc, s.BatchBytes)
	ch <- constHistogram(acceptedDesc, s.AcceptedLag)
	ch <- constHistogram(storedDesc, s.StoredLag)
}

func constHistogram(d *prometheus.Desc, h Histogram) prometheus.Metric {
	cumulative := make(map[float64]uint64, len(h.Bounds))
	var n uint64
	for i, bound := range h.Bounds {
		n += h.Counts[i]
		cumulative[bound] = n
	}
	return prometheus.MustNewConstHistogram(d, h.Count(), h.Sum, cumulative)
}
