package cloud

import (
	"maps"
	"math"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"touchline"
)

// Stats is what a Server has done since it was made. /metrics, the command
// line and tests read the same numbers.
type Stats struct {
	Connections int // uplinks open now
	Handshakes  map[string]uint64
	Closed      map[int]uint64 // sessions that ended, by WebSocket close code; 0 is a connection that broke

	Frames, FrameBytes uint64            // of blocks, as they arrived
	Blocks             uint64            // that arrived, repeats and damaged ones included
	BlocksAccepted     uint64            // held by the queue, where there is one
	BlocksStored       uint64            // recorded among the samples
	SamplesStored      uint64            // in BlocksStored
	Repeats            uint64            // blocks that were stored already
	KeptAside          uint64            // blocks stored, but not among the samples
	Resends            uint64            // blocks that arrived damaged and were asked for again
	Cloned             uint64            // hellos that showed that two boxes have one identity
	AddressRefused     uint64            // connections of an address that had too many
	ForeignHeaders     uint64            // requests with tls.client_cert_header that no trusted proxy sent
	Overtaken          uint64            // sessions ended since their gateways were at another node
	SentAway           map[string]uint64 // gateways asked to go to another node, by cause: drain, age, imbalance
	LostSamples        uint64            // that gateways announced as lost; a repeated announcement counts again
	RecordErrors       uint64            // batches that the record store did not take at once

	QueueBytes, QueueBlocks int // waiting for the record store, or being recorded
	Window                  int // bytes offered to each gateway now

	// What an autoscaler and a load balancer go by.
	MaxConnections, MaxQueueBytes int
	Lag                           time.Duration // how long the oldest block in the queue has waited
	Draining                      bool          // it is to stop, and sends its gateways away
	Nodes                         int           // that take gateways, this one included, as the store has it

	QueriesRunning             int
	Queries, QueriesRefused    uint64 // answered in full; refused because too many ran
	QueriesBroken, RowsQueried uint64 // cut off by an error; rows sent

	Viewers                  int    // of GET /v1/live, here now
	ViewersRefused           uint64 // since there were too many
	LiveSent, LiveThinned    uint64 // samples sent to viewers; left out since a viewer was slow
	LiveLate, LiveSeries     uint64 // left out: not newer than what the viewer had; of series above its limit
	LiveLong                 uint64 // left out: longer than 1 KiB
	LiveDecoded, LiveDropped uint64 // blocks decoded for viewers; not decoded since too many waited

	Rollups RollupStats

	BatchBlocks   Histogram // blocks in one transaction
	RecordSeconds Histogram // one transaction

	PublishSeconds Histogram // one batch into the queue, its sync included
	NoticesLost    uint64    // times that the record store had what no notice had told of
	QueueRefused   uint64    // blocks taken out of the queue unrecorded; their gateways send them again
	SampleAge      Histogram // seconds from a sample's time to the end of its commit

	Stages
}

// Results of a handshake, as the metric's label has them.
const (
	handshakeAccepted     = "accepted"
	handshakeUnauthorized = "unauthorized" // no token, or none that is known
	handshakeForbidden    = "forbidden"    // another gateway's token, or a foreign origin
	handshakeMalformed    = "malformed"    // no WebSocket upgrade, or no touchline.v1
	handshakeTooMany      = "too_many"     // above a rate; told when to come again
	handshakeUnavailable  = "unavailable"  // full, stopping, or without its record store
)

// counters is where a Server counts. The zero value is not ready; see
// newCounters.
type counters struct {
	frames, frameBytes, blocks            atomic.Uint64
	blocksStored, samplesStored           atomic.Uint64
	repeats, keptAside, resends           atomic.Uint64
	lostSamples, recordErrors             atomic.Uint64
	cloned, addressRefused                atomic.Uint64
	foreignHeaders, overtaken             atomic.Uint64
	blocksAccepted, noticesLost           atomic.Uint64
	queueRefused                          atomic.Uint64
	sentAway                              [causes]atomic.Uint64
	queriesRunning                        atomic.Int64
	queries, queriesRefused               atomic.Uint64
	queriesBroken, rowsQueried            atomic.Uint64
	viewersRefused, liveSent, liveThinned atomic.Uint64
	liveLate, liveSeries, liveLong        atomic.Uint64
	liveDecoded, liveDropped              atomic.Uint64
	batchBlocks, recordSeconds, sampleAge *histogram
	publishSeconds                        *histogram
	queue                                 *queueStats
	stages

	mu         sync.Mutex // covers the maps; both have a fixed, small set of keys
	handshakes map[string]uint64
	closed     map[int]uint64
}

func newCounters() *counters {
	return &counters{
		// 1 to 512 blocks by powers of two.
		batchBlocks: newHistogram(exponential(1, 2, 10)),
		// 250 µs (a fast disk's sync) to 8 s.
		recordSeconds:  newHistogram(exponential(0.00025, 2, 16)),
		sampleAge:      newHistogram(ageBounds()),
		publishSeconds: newHistogram(exponential(0.00025, 2, 16)),
		queue:          newQueueStats(),
		stages:         newStages(),
		handshakes: map[string]uint64{handshakeAccepted: 0, handshakeUnauthorized: 0,
			handshakeForbidden: 0, handshakeMalformed: 0, handshakeUnavailable: 0, handshakeTooMany: 0},
		closed: map[int]uint64{},
	}
}

func (c *counters) handshake(result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handshakes[result]++
}

// sessionClosed counts the end of a session. A gateway may close with any of
// 2,000 codes: those that neither RFC 6455 nor touchline.v1 has count as 1008,
// so that the metric's labels stay few.
func (c *counters) sessionClosed(code int) {
	if !(code == 0 || code >= 1000 && code <= 1015 || code >= 4400 && code <= 4429) {
		code = 1008
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed[code]++
}

func (c *counters) fill(s *Stats) {
	c.mu.Lock()
	s.Handshakes = maps.Clone(c.handshakes)
	s.Closed = maps.Clone(c.closed)
	c.mu.Unlock()
	s.Frames, s.FrameBytes, s.Blocks = c.frames.Load(), c.frameBytes.Load(), c.blocks.Load()
	s.BlocksStored, s.SamplesStored = c.blocksStored.Load(), c.samplesStored.Load()
	s.Repeats, s.KeptAside, s.Resends = c.repeats.Load(), c.keptAside.Load(), c.resends.Load()
	s.LostSamples, s.RecordErrors = c.lostSamples.Load(), c.recordErrors.Load()
	s.Cloned, s.AddressRefused = c.cloned.Load(), c.addressRefused.Load()
	s.ForeignHeaders, s.Overtaken = c.foreignHeaders.Load(), c.overtaken.Load()
	s.SentAway = make(map[string]uint64, causes)
	for why := range causes {
		s.SentAway[why.String()] = c.sentAway[why].Load()
	}
	s.QueriesRunning = int(c.queriesRunning.Load())
	s.Queries, s.QueriesRefused = c.queries.Load(), c.queriesRefused.Load()
	s.QueriesBroken, s.RowsQueried = c.queriesBroken.Load(), c.rowsQueried.Load()
	s.ViewersRefused = c.viewersRefused.Load()
	s.LiveSent, s.LiveThinned, s.LiveLate = c.liveSent.Load(), c.liveThinned.Load(), c.liveLate.Load()
	s.LiveSeries, s.LiveLong = c.liveSeries.Load(), c.liveLong.Load()
	s.LiveDecoded, s.LiveDropped = c.liveDecoded.Load(), c.liveDropped.Load()
	s.BatchBlocks, s.RecordSeconds = c.batchBlocks.snapshot(), c.recordSeconds.snapshot()
	s.SampleAge, s.PublishSeconds = c.sampleAge.snapshot(), c.publishSeconds.snapshot()
	c.stages.fill(s)
	s.BlocksAccepted, s.NoticesLost, s.QueueRefused = c.blocksAccepted.Load(), c.noticesLost.Load(), c.queueRefused.Load()
}

// A Histogram is a copy of counts by upper bound. Counts has one element
// more than Bounds, for what lies above the last, and is not cumulative.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64
}

// Count returns the number of observations.
func (h Histogram) Count() uint64 {
	var n uint64
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Quantile returns the upper bound of the bucket that holds the q-quantile,
// +Inf where that is the last, and NaN where nothing was observed.
func (h Histogram) Quantile(q float64) float64 {
	total := h.Count()
	if total == 0 {
		return math.NaN()
	}
	rank := uint64(math.Ceil(q * float64(total)))
	var seen uint64
	for i, c := range h.Counts {
		if seen += c; seen >= rank && c > 0 && i < len(h.Bounds) {
			return h.Bounds[i]
		}
	}
	return math.Inf(1)
}

// histogram counts observations. It is safe for concurrent use.
type histogram struct {
	bounds []float64 // ascending; a value equal to a bound belongs below it

	mu     sync.Mutex // covers what follows
	counts []uint64
	sum    float64
}

func newHistogram(bounds []float64) *histogram {
	return &histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(v float64) {
	i := sort.SearchFloat64s(h.bounds, v)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[i]++
	h.sum += v
}

// add adds counts that were made elsewhere, bucket by bucket.
func (h *histogram) add(counts []uint64, sum float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, n := range counts {
		h.counts[i] += n
	}
	h.sum += sum
}

func (h *histogram) snapshot() Histogram {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Histogram{Bounds: h.bounds, Counts: append([]uint64(nil), h.counts...), Sum: h.sum}
}

func exponential(first, factor float64, n int) []float64 {
	bounds := make([]float64, n)
	for i := range bounds {
		bounds[i] = first
		first *= factor
	}
	return bounds
}

// The bounds of a sample's age: 1 ms × 1.25^i up to the first at or above
// 60 s. ln(60000) / ln(1.25) = 49.3, so there are 51 of them, and a quantile
// read from the histogram is at most 25 % above the truth.
const ageBuckets = 51

func ageBounds() []float64 { return exponential(0.001, 1.25, ageBuckets) }

var ageBoundsNs = func() (ns [ageBuckets]uint64) {
	for i, b := range ageBounds() {
		ns[i] = uint64(math.Round(b * 1e9))
	}
	return ns
}()

// ages counts samples by age, without a lock and for one batch: half a
// million samples a second pass here, so each costs a comparison or two (the
// samples of a block are of about one age) and none an atomic operation.
type ages struct {
	counts [ageBuckets + 1]uint64
	sum    float64
}

func (a *ages) observe(now int64, samples []touchline.Sample) {
	at, lower, upper := 0, uint64(0), uint64(0) // the bucket of the sample before
	for i := range samples {
		var age uint64
		if t := samples[i].Time; t < now { // a sensor's clock may be ahead: that is an age of zero
			age = uint64(now) - uint64(t) // right for any two int64
		}
		if age > upper || age <= lower && at > 0 {
			at = sort.Search(ageBuckets, func(i int) bool { return age <= ageBoundsNs[i] })
			lower, upper = 0, math.MaxUint64
			if at > 0 {
				lower = ageBoundsNs[at-1]
			}
			if at < ageBuckets {
				upper = ageBoundsNs[at]
			}
		}
		a.counts[at]++
		a.sum += float64(age) / 1e9
	}
}

// RollupStats are what keeping rows of seconds and minutes has come to on this
// node.
type RollupStats struct {
	Turns   uint64
	Samples uint64        // read
	Rows    uint64        // computed
	Lag     time.Duration // since the oldest change that rows don't show yet, on any node
}
