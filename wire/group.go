package wire

import "touchline"

// A grouping sorts samples into series, in order of first appearance, and the
// samples of a series keep their order. Sensors send the same metrics in the
// same order again and again, so each step is a guess that is mostly right: the
// series that came after the one before last time; else the sensor, and within
// it the series, that did. The maps behind them are for the first time and for
// what has no pattern.
type grouping struct {
	sensors, metrics, units names
	perSensor               []sensorEntry
	series                  []series
	byKey                   map[seriesKey]int32 // series of sensors with more than maxChain
	of                      []int32             // per sample: its series
	minTime, maxTime        int64

	// Filled by arrange, in column order.
	perm   []int32 // which sample it is
	times  []int64
	floats []float64 // 0 for other kinds
}

// A series is what one (sensor, metric, unit) has in the block, apart for what
// the sensor gave a time and what the gateway stamped.
type series struct {
	sensorName, metricName, unitName string

	sensor, metric, unit int32
	follower             int32 // series of the sample that came next last time
	after, afterToo      int32 // series of the sensor that followed last, and another that did before
	sibling              int32 // series of the sensor that was seen first after this one; -1: none
	count                int32
	start                int32 // in column order
	kind                 touchline.Kind
	mixed                bool
	stamped              bool
}

type sensorEntry struct {
	first, newest, last int32 // series; -1: none
	count               int32
	follower            int32 // sensor that followed last time
}

type seriesKey struct {
	sensor, metric, unit int32
	stamped              bool
}

// maxChain is how many series of a sensor are compared one by one before the
// map is asked.
const maxChain = 16

// names numbers strings in order of first appearance.
type names struct {
	list []string
	ids  map[string]int32
	next []int32 // which followed this one last time
	last int32
}

func (n *names) reset() {
	clear(n.list) // the samples' strings are not ours to keep
	clear(n.ids)
	n.list, n.next, n.last = n.list[:0], n.next[:0], 0
}

// id returns the number of s.
func (n *names) id(s string) int32 {
	if len(n.list) > 0 {
		if guess := n.next[n.last]; n.list[guess] == s {
			n.last = guess
			return guess
		}
	}
	id, ok := n.ids[s]
	if !ok {
		if n.ids == nil {
			n.ids = make(map[string]int32)
		}
		id = int32(len(n.list))
		n.ids[s] = id
		n.list = append(n.list, s)
		n.next = append(n.next, id)
	}
	if len(n.list) > 0 {
		n.next[n.last] = id
	}
	n.last = id
	return id
}

func (g *grouping) reset() {
	g.sensors.reset()
	g.metrics.reset()
	g.units.reset()
	clear(g.byKey)
	clear(g.series)
	g.perSensor, g.series, g.of = g.perSensor[:0], g.series[:0], g.of[:0]
	g.minTime, g.maxTime = 0, 0
}

// The most that a sample and a series can take of the raw block: 78 bits each
// for time and value and as many for the kind and length of a text in a mixed
// column; and twelve numbers of at most ten bytes with the lengths of names.
const (
	maxSampleRawBytes = 40
	maxSeriesRawBytes = 160
)

// add groups a prefix of samples that surely fits maxBytes, and returns its
// length: at least one sample if there is one.
func (g *grouping) add(samples []touchline.Sample, maxBytes int) int {
	g.reset()
	if cap(g.of) < len(samples) {
		g.of = make([]int32, 0, len(samples))
	}
	if len(samples) == 0 {
		return 0
	}
	g.minTime, g.maxTime = samples[0].Time, samples[0].Time
	at := int32(-1)
	for i := range samples {
		s := &samples[i]
		ownBytes := len(s.Value.Text()) + maxSampleRawBytes
		seriesBytes := len(s.Sensor) + len(s.Metric) + len(s.Unit) + maxSeriesRawBytes
		if i > 0 && ownBytes+seriesBytes > maxBytes {
			return i
		}
		maxBytes -= ownBytes
		at = g.find(s, at)
		g.of = append(g.of, at)
		entry := &g.series[at]
		if kind := s.Value.Kind(); entry.count == 0 {
			entry.kind = kind
			maxBytes -= seriesBytes
		} else if kind != entry.kind {
			entry.mixed = true
		}
		entry.count++
		g.minTime, g.maxTime = min(g.minTime, s.Time), max(g.maxTime, s.Time)
	}
	return len(samples)
}

// find returns the sample's series, with before being that of the sample
// before it; -1 for the first.
func (g *grouping) find(s *touchline.Sample, before int32) int32 {
	if before < 0 {
		return g.findInSensor(s, g.sensor(s, 0))
	}
	last := &g.series[before]
	if guess := &g.series[last.follower]; guess.sensorName == s.Sensor && guess.is(s) {
		g.perSensor[guess.sensor].last = last.follower
		return last.follower
	}
	at := g.findInSensor(s, g.sensor(s, last.sensor))
	g.series[before].follower = at
	return at
}

// sensor returns the number of the sample's sensor, with last being that of
// the sample before.
func (g *grouping) sensor(s *touchline.Sample, last int32) int32 {
	if len(g.perSensor) > 0 {
		if g.sensors.list[last] == s.Sensor {
			return last
		}
		if guess := g.perSensor[last].follower; g.sensors.list[guess] == s.Sensor {
			return guess
		}
	}
	id := g.sensors.id(s.Sensor)
	if int(id) == len(g.perSensor) {
		g.perSensor = append(g.perSensor, sensorEntry{first: -1, newest: -1, last: -1, follower: id})
	}
	g.perSensor[last].follower = id
	return id
}

// findInSensor returns the sample's series among those of its sensor.
func (g *grouping) findInSensor(s *touchline.Sample, sensor int32) int32 {
	entry := &g.perSensor[sensor]
	at := entry.last
	if at >= 0 {
		last := &g.series[at]
		switch {
		case g.series[last.after].is(s):
			at = last.after
		case g.series[last.afterToo].is(s):
			at = last.afterToo
			last.after, last.afterToo = at, last.after
		case !last.is(s):
			at = g.lookUp(s, sensor)
			last = &g.series[entry.last] // lookUp may have moved it
			last.after, last.afterToo = at, last.after
		}
	} else {
		at = g.lookUp(s, sensor)
	}
	entry.last = at
	return at
}

func (r *series) is(s *touchline.Sample) bool {
	return r.metricName == s.Metric && r.unitName == s.Unit && r.stamped == s.Stamped
}

// lookUp finds or makes a series.
func (g *grouping) lookUp(s *touchline.Sample, sensor int32) int32 {
	entry := &g.perSensor[sensor]
	at := entry.first
	for i := 0; at >= 0 && i < maxChain; i++ {
		if g.series[at].is(s) {
			return at
		}
		at = g.series[at].sibling
	}
	key := seriesKey{sensor, g.metrics.id(s.Metric), g.units.id(s.Unit), s.Stamped}
	if at >= 0 {
		if known, ok := g.byKey[key]; ok {
			return known
		}
	}
	at = int32(len(g.series))
	if entry.first < 0 {
		entry.first = at
	} else {
		g.series[entry.newest].sibling = at
	}
	entry.newest = at
	entry.count++
	if entry.count > maxChain {
		if g.byKey == nil {
			g.byKey = make(map[seriesKey]int32)
		}
		g.byKey[key] = at
	}
	g.series = append(g.series, series{
		sensorName: s.Sensor, metricName: s.Metric, unitName: s.Unit,
		sensor: key.sensor, metric: key.metric, unit: key.unit, follower: at,
		after: entry.first, afterToo: entry.first, sibling: -1, stamped: s.Stamped,
	})
	return at
}

// arrange fills the columns from the samples that were added, and the start of
// each series in them.
func (g *grouping) arrange(samples []touchline.Sample) {
	at := int32(0)
	for i := range g.series {
		g.series[i].start = at
		at += g.series[i].count
	}
	n := len(g.of)
	if cap(g.perm) < n {
		g.perm, g.times, g.floats = make([]int32, n), make([]int64, n), make([]float64, n)
	}
	g.perm, g.times, g.floats = g.perm[:n], g.times[:n], g.floats[:n]
	for i, of := range g.of {
		to := g.series[of].start
		g.series[of].start = to + 1
		g.perm[to] = int32(i)
		g.times[to] = samples[i].Time
		g.floats[to] = samples[i].Value.Float()
	}
	for i := range g.series {
		g.series[i].start -= g.series[i].count
	}
}
