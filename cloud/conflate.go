package cloud

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
	"time"

	"touchline"
)

// A conflater is what a viewer has not been sent yet. Each series moves forward
// in it only: a sample that is not newer than one that was taken in is left out,
// whenever it comes. Where the viewer keeps up it is sent every sample, in
// the order in which they were recorded; where it does not, what waits is
// thinned to the latest sample of each series. It is not safe for concurrent use.
//
// Its memory is bounded by counts: maxSeries tracks at some 500 bytes with
// their names, and rows of the weight maxWeight, which viewers share in the usual
// case: 152 bytes each, and up to 128 of text for each unit of weight. 4,096
// and 16,384 are 2 MB and 2.5 MB, where all are texts 4.6 MB; thinned to one row
// of each series it is 0.6 MB, and with the longest texts 5 MB.
type conflater struct {
	maxSeries, maxWeight int

	tracks  map[seriesKey]*track
	swept   time.Time
	runs    []waitingRun // while all is kept: in the order of arrival
	queue   []*track     // while thin: those whose latest waits, each once
	held    int          // rows that wait
	weight  int          // of runs
	thin    bool
	since   time.Time // when it was thinned last
	omitted omitted
}

// A seriesKey names a series: what has one latest value.
type seriesKey struct{ gateway, sensor, metric string }

// A track is one series of a viewer.
type track struct {
	newest  moment // of all that was taken in
	heard   time.Time
	waiting int // rows
	latest  row // what waits, while thin
}

// A waitingRun weighs what it was added with until all of it is taken.
type waitingRun struct {
	track  *track
	rows   []row
	weight int
}

// omitted counts samples that a viewer was not sent.
type omitted struct {
	thinned uint64 // since it was slow
	late    uint64 // older than what it had
	series  uint64 // of series above its limit
}

// A row is a sample on its way to viewers.
type row struct {
	Record
	backlog bool // it came in the lane of that name
	ahead   bool // its time had not come when it was received
}

// A moment is a place in the order of a series: by time, ties as queries
// have them. It depends on the sample alone and not on when it arrives. A
// time that had not come yet is behind all others, since a sensor's clock that
// was ahead and is set right would else look still until its wrong time comes.
type moment struct {
	right bool // its time had come
	time  int64
	epoch touchline.Epoch
	seq   uint64
}

func (r *row) moment() moment { return moment{!r.ahead, r.Time, r.Epoch, r.Seq} }

func (m moment) compare(o moment) int {
	switch {
	case m.right != o.right && o.right:
		return -1
	case m.right != o.right:
		return 1
	case m.time != o.time:
		return cmp.Compare(m.time, o.time)
	case m.epoch != o.epoch:
		return bytes.Compare(m.epoch[:], o.epoch[:])
	}
	return cmp.Compare(m.seq, o.seq)
}

// A run is what one block has of one series, its moments rising. It is shared
// by viewers, who don't change it.
type run struct {
	key     seriesKey
	rows    []row // at least one
	weight  int
	skipped int // older ones that are left out since no viewer has room for them
}

// newRun makes a run of rows, in any order.
func newRun(key seriesKey, rows []row) run {
	r := run{key: key, rows: rows}
	r.sort()
	return r
}

// sort puts the rows into the order of their moments, in which most come, and
// weighs them.
func (r *run) sort() {
	by := func(a, b row) int { return a.moment().compare(b.moment()) }
	if !slices.IsSortedFunc(r.rows, by) {
		slices.SortFunc(r.rows, by)
	}
	r.weight = 0
	for i := range r.rows {
		r.weight += 1 + len(r.rows[i].Value.Text())/128
	}
}

func newConflater(maxSeries int) *conflater {
	return &conflater{maxSeries: maxSeries, maxWeight: weightPerSeries * maxSeries, tracks: map[seriesKey]*track{}}
}

const (
	// weightPerSeries lets a viewer with few series have a block of 10,000
	// samples whole: 4 × 4,096 rows.
	weightPerSeries = 4
	// A series that was silent for so long makes room for a new one where the
	// limit is reached: phones draw a new name at each start.
	forgetAfter = 5 * time.Minute
	// thinFor is how long all stays thin once it had to be, so that a viewer who is
	// too slow sees steady steps and not bursts.
	thinFor    = time.Second
	sweepEvery = time.Second // going over 4,096 tracks takes 0.1 ms
)

// add takes in what is new of r.
func (c *conflater) add(r run, now time.Time) {
	t := c.track(r.key, now)
	if t == nil {
		c.omitted.series += uint64(len(r.rows) + r.skipped)
		return
	}
	old := sort.Search(len(r.rows), func(i int) bool { return r.rows[i].moment().compare(t.newest) > 0 })
	c.omitted.late += uint64(old)
	rows := r.rows[old:]
	if len(rows) == 0 {
		c.omitted.late += uint64(r.skipped)
		return
	}
	c.omitted.thinned += uint64(r.skipped)
	t.newest, t.heard = rows[len(rows)-1].moment(), now
	if !c.thin && c.weight+r.weight > c.maxWeight {
		c.thinOut()
		c.since = now
	}
	if c.thin {
		c.replace(t, rows)
		return
	}
	if old > 0 {
		rows = slices.Clone(rows) // or the others would be held, and not counted
	}
	c.runs = append(c.runs, waitingRun{t, rows, r.weight})
	c.weight += r.weight
	c.held += len(rows)
	t.waiting += len(rows)
}

// track returns the track of a series, or nil where there is no room.
func (c *conflater) track(key seriesKey, now time.Time) *track {
	t := c.tracks[key]
	if t != nil {
		return t
	}
	if len(c.tracks) >= c.maxSeries {
		c.sweep(now)
		if len(c.tracks) >= c.maxSeries {
			return nil
		}
	}
	t = &track{newest: moment{time: -1 << 63}, heard: now}
	c.tracks[key] = t
	return t
}

func (c *conflater) sweep(now time.Time) {
	if now.Sub(c.swept) < sweepEvery {
		return
	}
	c.swept = now
	for key, t := range c.tracks {
		if t.waiting == 0 && now.Sub(t.heard) >= forgetAfter {
			delete(c.tracks, key)
		}
	}
}

// room returns the weight that can be added until all is thinned.
func (c *conflater) room() int {
	if c.thin {
		return 0
	}
	return c.maxWeight - c.weight
}

// thinOut keeps of what waits the latest of each series, until all is taken.
func (c *conflater) thinOut() {
	runs := c.runs
	c.runs, c.held, c.weight, c.thin = nil, 0, 0, true
	for _, r := range runs {
		r.track.waiting = 0
	}
	for _, r := range runs {
		c.replace(r.track, r.rows)
	}
}

// replace has the last of rows wait in the place of what waits of the track.
func (c *conflater) replace(t *track, rows []row) {
	c.omitted.thinned += uint64(len(rows) - 1 + t.waiting)
	if t.waiting == 0 {
		c.queue = append(c.queue, t)
		c.held++
	}
	t.waiting, t.latest = 1, rows[len(rows)-1]
}

// take appends to dst up to n rows of those that wait longest, and forgets them.
func (c *conflater) take(dst []row, n int, now time.Time) []row {
	for ; n > 0 && len(c.queue) > 0; n-- {
		t := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		dst = append(dst, t.latest)
		t.waiting, t.latest = 0, row{}
		c.held--
	}
	for n > 0 && len(c.runs) > 0 {
		r := &c.runs[0]
		some := r.rows[:min(n, len(r.rows))]
		dst = append(dst, some...)
		r.track.waiting -= len(some)
		c.held -= len(some)
		n -= len(some)
		if r.rows = r.rows[len(some):]; len(r.rows) == 0 {
			c.weight -= r.weight
			c.runs[0] = waitingRun{}
			c.runs = c.runs[1:]
		}
	}
	if c.held == 0 {
		c.runs, c.queue = nil, nil
		c.thin = c.thin && now.Sub(c.since) < thinFor
	}
	return dst
}

// takeOmitted returns what was left out since it was last called.
func (c *conflater) takeOmitted() omitted {
	o := c.omitted
	c.omitted = omitted{}
	return o
}
