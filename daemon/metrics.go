package daemon

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"touchline"
	"touchline/uplink"
)

// metrics returns a registry that renders Status at each scrape.
func (d *Daemon) metrics() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

type collector struct{ d *Daemon }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("touchline_"+name, help, labels, nil)
}

var (
	descBuild = describe("build_info", "1, with the version of this program and of Go.", "version", "goversion")
	descClock = describe("clock_synchronised", "1 while the times that the gateway stamps are those of a synchronised clock.")

	descMessages    = describe("sensor_messages_total", "Messages received from sensors.", "transport")
	descSamples     = describe("sensor_samples_total", "Samples that were made durable.", "transport")
	descConnections = describe("sensor_connections", "Connections of sensors open now.", "transport")
	descSeen        = describe("sensors_seen", "Sensors seen since the start.")
	descRaw         = describe("sensor_raw_messages_total", "Messages kept whole because they were not understood.")
	descRefused     = describe("sensor_refused_messages_total", "Messages refused because the buffer was full.")
	descFailed      = describe("sensor_failed_messages_total", "Messages whose commit failed.")
	descRejected    = describe("sensor_rejected_total", "Messages and connections turned away.", "cause")

	descBufferState   = describe("buffer_state", "1 for the state that the buffer is in.", "state")
	descBufferBlocks  = describe("buffer_blocks", "Blocks held for the cloud.")
	descBufferBytes   = describe("buffer_bytes", "Bytes of blocks held for the cloud.")
	descBufferSamples = describe("buffer_samples", "Samples held for the cloud.")
	descBufferAge     = describe("buffer_oldest_age_seconds", "Running time since the oldest sample held was committed.")
	descKept          = describe("buffer_kept_bytes", "Bytes of blocks that the cloud has stored and that are kept while there is room.")
	descBallast       = describe("buffer_ballast_bytes", "Bytes held to get out of a full disk; 0 while they are given back.")
	descWritten       = describe("disk_written_bytes_total", "Bytes that this process caused to be written to the disk.")
	descAppended      = describe("buffer_appended_samples_total", "Samples committed and synced.")
	descAcked         = describe("buffer_acknowledged_samples_total", "Samples forgotten because the cloud has stored them.")
	descEvicted       = describe("buffer_evicted_samples_total", "Samples given up by policy.", "cause")
	descDamagedBlocks = describe("buffer_damaged_blocks_total", "Blocks found damaged: kept, and not sent.")
	descDamaged       = describe("buffer_damaged_samples_total", "Samples of damaged blocks, told the cloud as lost.")
	descAside         = describe("buffer_set_aside_files", "Databases that could not be used and lie beside the buffer.", "kind")
	descAsideBytes    = describe("buffer_set_aside_bytes", "Bytes on the disk of databases that lie beside the buffer.")
	descRepeats       = describe("repeated_samples_total", "Samples that were sent again and not stored again.", "by")
	descForgotten     = describe("repeat_window_forgotten_early_total", "Samples that left the window of repeats before their time.")
	descKeysForgotten = describe("repeat_keys_forgotten_early_total", "Keys of messages that were forgotten before their time.")
	descCommits       = describe("buffer_commits_total", "Commits, each one sync.")
	descCommitErrors  = describe("buffer_commit_errors_total", "Commits that failed.")
	descMaxBytes      = describe("buffer_max_bytes", "What buffer_bytes may be (buffer.max_bytes).")
	descLastCommit    = describe("buffer_last_commit_seconds", "Time that the last commit took, its sync included.")

	descKeyMade   = describe("key_made_timestamp_seconds", "When the gateway's key was made, in seconds since the Unix epoch.")
	descKeyWaits  = describe("key_unregistered", "1 while a new key is made and not registered at the cloud.")
	descKeyRolled = describe("key_rolled_total", "New keys that took over.")

	descRelayWaiting   = describe("relay_archives", "Archives of other gateways that wait for the cloud.")
	descRelayBytes     = describe("relay_bytes", "Bytes on the disk of archives of other gateways.")
	descRelayDelivered = describe("relay_delivered_archives_total", "Archives of other gateways that the cloud has stored.")

	descUplinkState    = describe("uplink_state", "1 for the state that the uplink is in.", "state")
	descUplinkUp       = describe("uplink_connected", "1 while a session is open.")
	descUplinkUnstored = describe("uplink_unstored_blocks", "Blocks sent in this session that the cloud has not stored.")
	descUplinkSessions = describe("uplink_sessions_total", "Sessions that the cloud welcomed.")
	descUplinkDials    = describe("uplink_dials_total", "Attempts to connect.")
	descUplinkBlocks   = describe("uplink_blocks_sent_total", "Blocks sent, those sent again included.")
	descUplinkResent   = describe("uplink_blocks_resent_total", "Blocks sent again.")
	descUplinkBytes    = describe("uplink_bytes_sent_total", "Bytes of frames sent.")
	descUplinkStored   = describe("uplink_samples_stored_total", "Samples sent that the cloud has stored.")
	descUplinkRTT      = describe("uplink_rtt_seconds", "Smoothed round trip of heartbeats.")
	descUplinkInFlight = describe("uplink_in_flight_bytes", "Block data sent and not yet accepted.")
)

// Describe implements prometheus.Collector; the set of series is not fixed.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.d.Status()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descBuild, 1, touchline.Version, runtime.Version())
	gauge(descClock, truth(s.Clock.State == touchline.ClockSynchronised.String()))
	for name, t := range s.Sensors.Transports {
		counter(descMessages, t.Messages, name)
		counter(descSamples, t.Samples, name)
		gauge(descConnections, float64(t.Connections), name)
	}
	gauge(descSeen, float64(len(s.Sensors.Seen)))
	counter(descRaw, s.Sensors.Raw)
	counter(descRefused, s.Sensors.Refused)
	counter(descFailed, s.Sensors.Failed)
	for cause, n := range s.Sensors.RejectedBy {
		counter(descRejected, n, cause)
	}

	gauge(descBufferState, 1, s.Buffer.State)
	gauge(descBufferBlocks, float64(s.Buffer.Blocks))
	gauge(descBufferBytes, float64(s.Buffer.Bytes))
	gauge(descBufferSamples, float64(s.Buffer.Samples))
	gauge(descBufferAge, s.Buffer.OldestAgeSeconds)
	gauge(descKept, float64(s.Buffer.KeptBytes))
	gauge(descBallast, float64(s.Buffer.BallastBytes))
	if s.Wear != nil {
		counter(descWritten, s.Wear.WrittenBytes)
	}
	counter(descAppended, s.Buffer.Appended)
	counter(descAcked, s.Buffer.Acknowledged)
	for cause, n := range s.Buffer.EvictedBy {
		counter(descEvicted, n, cause)
	}
	counter(descDamagedBlocks, s.Buffer.Damaged)
	counter(descDamaged, s.Buffer.DamagedSamples)
	kinds, asideBytes := map[string]int{"damaged": 0, "foreign": 0, "newer": 0, "taken": 0}, int64(0)
	for _, a := range s.Buffer.Aside {
		kinds[a.Kind]++
		asideBytes += a.Bytes
	}
	for kind, n := range kinds {
		gauge(descAside, float64(n), kind)
	}
	gauge(descAsideBytes, float64(asideBytes))
	for by, n := range s.Buffer.Repeats.Samples {
		counter(descRepeats, n, by)
	}
	counter(descForgotten, s.Buffer.Repeats.ForgottenEarly)
	counter(descKeysForgotten, s.Buffer.Repeats.KeysForgotten)
	counter(descCommits, s.Buffer.Commits)
	counter(descCommitErrors, s.Buffer.CommitErrors)
	gauge(descMaxBytes, float64(c.d.config.Buffer.MaxBytes))
	gauge(descLastCommit, s.Buffer.CommitSeconds)

	if !s.Key.Since.IsZero() {
		gauge(descKeyMade, float64(s.Key.Since.Unix()))
	}
	gauge(descKeyWaits, truth(s.Key.Next != ""))
	counter(descKeyRolled, s.Key.Rolled)

	gauge(descRelayWaiting, float64(s.Relay.Waiting))
	gauge(descRelayBytes, float64(s.Relay.Bytes))
	counter(descRelayDelivered, s.Relay.Delivered)

	gauge(descUplinkState, 1, string(s.Uplink.State))
	gauge(descUplinkUp, truth(s.Uplink.State == uplink.Connected))
	gauge(descUplinkUnstored, float64(s.Uplink.Unstored))
	counter(descUplinkSessions, s.Uplink.Sessions)
	counter(descUplinkDials, s.Uplink.Dials)
	counter(descUplinkBlocks, s.Uplink.Blocks)
	counter(descUplinkResent, s.Uplink.Resent)
	counter(descUplinkBytes, s.Uplink.Bytes)
	counter(descUplinkStored, s.Uplink.Stored)
	gauge(descUplinkRTT, s.Uplink.RTT)
	gauge(descUplinkInFlight, float64(s.Uplink.InFlight.Bytes))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
