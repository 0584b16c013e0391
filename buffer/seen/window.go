// Package seen remembers what was stored a moment ago, so that a repeat of it
// is known: samples by what they are (Window), messages by their names (Keys).
// Both live in memory within a limit, follow the fate of the transaction that
// stores what they remember, and are exact: nothing is taken for a repeat that
// is not one. They hold no resources and start nothing; one goroutine at a
// time may use them.
package seen

import (
	"crypto/sha256"
	"hash/maphash"
	"math"
	"math/bits"
	"math/rand/v2"
	"strings"
	"time"
	"unsafe"

	"touchline"
)

const (
	chunkEntries = 1024 // 24 KiB
	minBuckets   = 1024 // 4 KiB
	entryBytes   = int(unsafe.Sizeof(entry{}))
	chunkBytes   = chunkEntries * entryBytes
	bucketBytes  = 4
	// seriesBytes is what a series takes besides its names: its state, and its
	// place in the map, which is half empty at worst.
	seriesBytes = int(unsafe.Sizeof(series{})) + 2*int(unsafe.Sizeof(seriesKey{})+4)
	textBytes   = int(unsafe.Sizeof(""))

	// MinBytes is the least a window may have: what an idle one takes, and
	// some 2,500 samples.
	MinBytes = 128 << 10

	// maxMarks bounds the steps in which the window moves on: at a window of
	// 10 s they are 2.5 ms long, and commits within one leave it together, by
	// the time of the first.
	maxMarks = 4096
)

// A Window is the samples of the last commits. Two samples are the same if
// sensor, metric, unit, time and value are, the value bit for bit. (A text of
// more than 31 bytes is compared by its SHA-256.)
//
// Samples are entries of a queue in the order of their commits, and are found
// by a table of hashes, whose chains run from an entry to older ones. What
// leaves the queue need not leave the table: a chain ends where its entries
// are gone. Sensors send in the order of time, so most samples are later than
// all of their series and need no look-up; entries are put into the table when
// the first one does. An entry takes 24 bytes and 2 to 8 of the table: 8 MiB hold some
// 290,000 numbers, the last 10 s at 29,000 samples/s.
type Window struct {
	span     int64 // ms
	maxBytes int

	// Entries are numbered as they come, modulo 2^32; a number that comes
	// again after 4 billion finds entries that are not equal, and no harm.
	chunks     []*[chunkEntries]entry // the first one has tail
	tail, head uint32                 // entries in [tail, head)
	committed  uint32                 // entries in [committed, head) are of the commit at hand
	indexed    uint32                 // entries in [tail, indexed) are in the table
	buckets    []uint32               // number of the youngest entry of each chain
	spare      *[chunkEntries]entry

	marks []mark // commits, oldest first

	byKey  map[seriesKey]uint32
	series []series
	free   []uint32 // unused places of series
	last   uint32   // series of the latest sample

	texts     []string // of entries, in their order
	firstText uint64   // number of texts[0]

	bytes     int // of series and texts
	shortened uint64

	seed   maphash.Seed // and k0, k1: secrets of the hash
	k0, k1 uint64
}

// An entry is one sample. value is the bits of a number or a boolean, or the
// number of a text.
type entry struct {
	time   int64
	value  uint64
	series uint32
	older  uint32 // the next entry of the chain
}

// A mark says that the entries before end were committed by at, in running ms.
type mark struct {
	at  int64
	end uint32
}

type seriesKey struct {
	sensor, metric, unit string
	kind                 touchline.Kind
}

type series struct {
	key      seriesKey
	latest   int64  // no entry is later
	entries  uint32 // in the window
	follower uint32 // series of the sample that came next last time
}

// NewWindow returns an empty window that looks back for span, within so many
// bytes: at least MinBytes.
func NewWindow(span time.Duration, maxBytes int) *Window {
	return &Window{
		span: span.Milliseconds(), maxBytes: max(maxBytes, MinBytes),
		buckets: make([]uint32, minBuckets), byKey: make(map[seriesKey]uint32),
		seed: maphash.MakeSeed(), k0: rand.Uint64(), k1: rand.Uint64() | 1,
	}
}

// Span returns how far back the window looks, in ms of running time.
func (w *Window) Span() int64 { return w.span }

// Len returns how many samples are in the window.
func (w *Window) Len() int { return int(w.head - w.tail) }

// Bytes returns what the window takes.
func (w *Window) Bytes() int {
	return w.bytes + len(w.chunks)*chunkBytes + len(w.buckets)*bucketBytes
}

// Shortened returns how many samples had to leave the window before their time
// because there was no more room.
func (w *Window) Shortened() uint64 { return w.shortened }

// Advance lets go of what was committed longer ago than the window looks back,
// at the running time now, in ms.
func (w *Window) Advance(now int64) {
	n := 0
	for n < len(w.marks) && w.marks[n].at < now-w.span {
		w.dropUpTo(w.marks[n].end)
		n++
	}
	if n > 0 {
		w.marks = append(w.marks[:0], w.marks[n:]...)
	}
	w.fitBuckets()
}

// Fresh says whether a sample is not in the window, and puts it there. It
// keeps nothing of s.
func (w *Window) Fresh(s *touchline.Sample) bool {
	id := w.seriesOf(s)
	in := &w.series[id]
	value, text := w.valueOf(s)
	if in.entries > 0 && s.Time <= in.latest && w.has(id, s.Time, value, text) {
		return false
	}
	if in.entries == 0 || s.Time > in.latest {
		in.latest = s.Time
	}
	in.entries++
	if isText(s.Value.Kind()) {
		value = w.firstText + uint64(len(w.texts))
		w.texts = append(w.texts, strings.Clone(text))
		w.bytes += textBytes + len(text)
	}
	w.push(entry{time: s.Time, value: value, series: id})
	w.makeRoom()
	return true
}

// Commit says that what was added since the last call is durable as of the
// running time at, in ms.
func (w *Window) Commit(at int64) {
	if w.committed == w.head {
		return
	}
	w.committed = w.head
	if n := len(w.marks); n > 0 && at-w.marks[n-1].at < max(w.span/maxMarks, 1) {
		w.marks[n-1].end = w.head
		return
	}
	w.marks = append(w.marks, mark{at: at, end: w.head})
}

// TakeBack removes what was added since the last Commit.
func (w *Window) TakeBack() {
	for w.head != w.committed {
		w.head--
		e := w.entry(w.head)
		text := w.textOf(e)
		if w.indexed == w.head+1 {
			w.buckets[w.bucket(e.series, e.time, e.value, text)] = e.older
			w.indexed = w.head
		}
		if isText(w.series[e.series].key.kind) {
			w.bytes -= textBytes + len(text)
			w.texts = w.texts[:len(w.texts)-1]
		}
		w.release(e.series)
		if w.head%chunkEntries == 0 {
			w.putChunk(len(w.chunks) - 1)
		}
	}
}

func isText(k touchline.Kind) bool { return k == touchline.Text || k == touchline.Bytes }

// valueOf returns what an entry has of a value: bits, or a text: shorter ones
// as they are, and of others their SHA-256, which is as long as none of these.
func (w *Window) valueOf(s *touchline.Sample) (value uint64, text string) {
	switch s.Value.Kind() {
	case touchline.Bool:
		if s.Value.Bool() {
			return 1, ""
		}
		return 0, ""
	case touchline.Text, touchline.Bytes:
		text = s.Value.Text()
		if len(text) >= sha256.Size {
			sum := sha256.Sum256([]byte(text))
			text = string(sum[:])
		}
		return 0, text
	}
	return math.Float64bits(s.Value.Float()), ""
}

// bucket returns the place of a chain in the table. What is hashed is chosen
// by whoever sends samples, so the hash has a secret.
func (w *Window) bucket(id uint32, time int64, value uint64, text string) uint32 {
	if isText(w.series[id].key.kind) {
		value = maphash.String(w.seed, text)
	}
	high, low := bits.Mul64(uint64(time)^w.k0, (value+uint64(id)*0x9e3779b97f4a7c15)^w.k1)
	high, low = bits.Mul64(high^low^w.k1, w.k0|1)
	return uint32(high^low) & uint32(len(w.buckets)-1)
}

// has walks the chain in which an entry would be.
func (w *Window) has(id uint32, time int64, value uint64, text string) bool {
	w.index()
	textual := isText(w.series[id].key.kind)
	for n := w.buckets[w.bucket(id, time, value, text)]; n-w.tail < w.head-w.tail; {
		e := w.entry(n)
		if e.time == time && e.series == id {
			if textual && w.texts[e.value-w.firstText] == text || !textual && e.value == value {
				return true
			}
		}
		if e.older-w.tail >= n-w.tail { // what was older is gone
			return false
		}
		n = e.older
	}
	return false
}

// entry returns the entry with a number in [tail, head).
func (w *Window) entry(n uint32) *entry {
	first := w.tail - w.tail%chunkEntries
	return &w.chunks[(n-first)/chunkEntries][n%chunkEntries]
}

// push appends an entry.
func (w *Window) push(e entry) {
	if w.head%chunkEntries == 0 || len(w.chunks) == 0 {
		if w.spare == nil {
			w.spare = new([chunkEntries]entry)
		}
		w.chunks = append(w.chunks, w.spare)
		w.spare = nil
	}
	w.chunks[len(w.chunks)-1][w.head%chunkEntries] = e
	w.head++
}

// putChunk takes a chunk out that has no entries, and keeps one for the next.
func (w *Window) putChunk(i int) {
	w.spare = w.chunks[i]
	w.chunks = append(w.chunks[:i], w.chunks[i+1:]...)
}

// makeRoom lets the table grow with the entries, and the oldest go where the
// window is too large.
func (w *Window) makeRoom() {
	if n := len(w.buckets); w.Len() > 2*n && w.Bytes()+n*bucketBytes <= w.maxBytes {
		w.rebuild(2 * n)
	}
	for w.Bytes() > w.maxBytes && w.Len() > 1 {
		w.shortened++
		w.drop()
	}
	for len(w.marks) > 0 && int32(w.marks[0].end-w.tail) <= 0 {
		w.marks = w.marks[1:]
	}
}

// fitBuckets makes the table smaller when most of its entries are gone.
func (w *Window) fitBuckets() {
	n := len(w.buckets)
	for n > minBuckets && w.Len() < n/8 {
		n /= 2
	}
	if n < len(w.buckets) {
		w.rebuild(n)
	}
}

// rebuild makes another table, which is filled when it is needed.
func (w *Window) rebuild(n int) {
	w.buckets = make([]uint32, n)
	w.indexed = w.tail
}

// index puts the entries into the table that are not there yet: some 100 ns
// each, so that the first look-up after 300,000 samples takes 30 ms.
func (w *Window) index() {
	for n := w.indexed; n != w.head; n++ {
		e := w.entry(n)
		at := w.bucket(e.series, e.time, e.value, w.textOf(e))
		if e.older = w.buckets[at]; e.older-w.tail >= n-w.tail {
			e.older = n // there is none: an entry is not older than itself
		}
		w.buckets[at] = n
	}
	w.indexed = w.head
}

// textOf returns the text of an entry, "" where it is none.
func (w *Window) textOf(e *entry) string {
	if !isText(w.series[e.series].key.kind) {
		return ""
	}
	return w.texts[e.value-w.firstText]
}

func (w *Window) dropUpTo(end uint32) {
	for int32(end-w.tail) > 0 && w.tail != w.head {
		w.drop()
	}
}

// drop lets go of the oldest entry.
func (w *Window) drop() {
	e := w.entry(w.tail)
	if isText(w.series[e.series].key.kind) {
		w.bytes -= textBytes + len(w.texts[0])
		w.texts[0] = ""
		w.texts = w.texts[1:]
		w.firstText++
	}
	w.release(e.series)
	if w.committed == w.tail {
		w.committed++ // it was of the commit at hand
	}
	if w.indexed == w.tail {
		w.indexed++
	}
	w.tail++
	if w.tail%chunkEntries == 0 {
		w.putChunk(0)
	}
}

// seriesOf returns the series of a sample. Sensors send the same metrics in
// the same order again and again, so a guess is mostly right.
func (w *Window) seriesOf(s *touchline.Sample) uint32 {
	kind := s.Value.Kind()
	if int(w.last) < len(w.series) {
		guess := w.series[w.last].follower
		k := &w.series[guess].key
		if k.kind == kind && k.metric == s.Metric && k.sensor == s.Sensor && k.unit == s.Unit && w.series[guess].entries > 0 {
			w.last = guess
			return guess
		}
	}
	key := seriesKey{sensor: s.Sensor, metric: s.Metric, unit: s.Unit, kind: kind}
	id, known := w.byKey[key]
	if !known {
		id = w.addSeries(key)
	}
	if int(w.last) < len(w.series) {
		w.series[w.last].follower = id
	}
	w.last = id
	return id
}

// addSeries makes a series. Its names are parts of one string of their own:
// those of the sample may be parts of a whole payload.
func (w *Window) addSeries(key seriesKey) uint32 {
	names := key.sensor + key.metric + key.unit
	key.sensor = names[:len(key.sensor)]
	key.metric = names[len(key.sensor) : len(key.sensor)+len(key.metric)]
	key.unit = names[len(key.sensor)+len(key.metric):]
	var id uint32
	if n := len(w.free); n > 0 {
		id, w.free = w.free[n-1], w.free[:n-1]
	} else {
		id = uint32(len(w.series))
		w.series = append(w.series, series{})
	}
	w.series[id] = series{key: key}
	w.byKey[key] = id
	w.bytes += seriesBytes + len(names)
	return id
}

// release takes an entry from its series, which is forgotten with the last.
func (w *Window) release(id uint32) {
	s := &w.series[id]
	if s.entries--; s.entries > 0 {
		return
	}
	delete(w.byKey, s.key)
	w.bytes -= seriesBytes + len(s.key.sensor) + len(s.key.metric) + len(s.key.unit)
	*s = series{}
	w.free = append(w.free, id)
}
