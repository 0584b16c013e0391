package merge

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"touchline"
	"touchline/cloud"
)

// Limits bound the memory of one query.
type Limits struct {
	Samples   int // held at most, before the block that goes beyond
	TextBytes int // of text and bytes values, likewise
}

// DefaultLimits: a held sample takes 136 bytes and its place in the order 32. With one block
// of 65,536 samples on top that is 27 MB; text adds 16 MiB and one block's 4
// MiB; the decoded block itself 6 + 4 MB. Around 50 MiB, and in the usual
// case (few values that are text) half of it.
var DefaultLimits = Limits{Samples: 131_072, TextBytes: 16 << 20}

// firstDue is how many samples are held before any is yielded, at first: few
// enough to be sorted in the processor's cache. Where many blocks overlap in
// time and yielding frees little, it doubles up to the limit.
const firstDue = 16_384

// A selection holds the samples that are the next to be yielded: of all that
// were added, those behind the last one yielded and before bound.
type selection struct {
	limits    Limits
	held      []held
	textBytes int
	dueAt     int     // 0 means firstDue
	order     []place // kept for its memory
	names     names

	last    key // of the last sample yielded
	started bool
	bound   key // lowest key that was given up, to be found by the next pass
	bounded bool
}

type held struct {
	sample touchline.Sample
	note   cloud.Note
	source *source
	seq    uint64

	replacedBy uint64 // the mask that hides it; 0: none
}

// A key is a place in the order of a query's samples.
type key struct {
	time   int64
	source *source
	seq    uint64
}

// A place is where a held sample stands. It is apart from the sample, so that
// sorting moves 32 bytes and not 136, and has the whole key, since ties in
// time are the rule: all metrics of a sensor are measured at once.
type place struct {
	key
	index int
}

func (h *held) key() key { return key{h.sample.Time, h.source, h.seq} }

func (k key) compare(other key) int {
	if k.time != other.time {
		return cmp.Compare(k.time, other.time)
	}
	if k.source != other.source {
		if c := strings.Compare(k.source.gateway, other.source.gateway); c != 0 {
			return c
		}
		if c := bytes.Compare(k.source.epoch[:], other.source.epoch[:]); c != 0 {
			return c
		}
	}
	return cmp.Compare(k.seq, other.seq)
}

// add holds the sample unless it was yielded already or given up.
func (s *selection) add(h held) {
	k := h.key()
	if s.started && k.compare(s.last) <= 0 || s.bounded && k.compare(s.bound) >= 0 {
		return
	}
	s.names.own(&h.sample)
	s.textBytes += len(h.sample.Value.Text())
	s.held = append(s.held, h)
}

// due says whether it is time to yield what can be yielded.
func (s *selection) due() bool {
	return len(s.held) >= max(s.dueAt, min(firstDue, s.limits.Samples)) || s.textBytes >= s.limits.TextBytes
}

// endsBefore says whether a block whose oldest sample has this time can add
// nothing in this pass.
func (s *selection) endsBefore(time int64) bool { return s.bounded && time > s.bound.time }

// yieldBefore yields what is older than time, in order.
func (s *selection) yieldBefore(time int64, yield func(cloud.Record) error) error {
	order := s.sorted(func(h *held) bool { return h.sample.Time < time })
	if err := s.yield(order, yield); err != nil {
		return err
	}
	s.held = slices.DeleteFunc(s.held, func(h held) bool { return h.sample.Time < time })
	s.weigh()
	return nil
}

// yieldAll yields all that is held and begins the next pass.
func (s *selection) yieldAll(yield func(cloud.Record) error) error {
	if err := s.yield(s.sorted(func(*held) bool { return true }), yield); err != nil {
		return err
	}
	clear(s.held)
	s.held, s.textBytes, s.bounded = s.held[:0], 0, false
	return nil
}

func (s *selection) yield(order []place, yield func(cloud.Record) error) error {
	for _, p := range order {
		h := &s.held[p.index]
		record := cloud.Record{Sample: h.sample, Clock: h.note, Gateway: h.source.gateway, Received: h.source.received, Epoch: h.source.epoch, Seq: h.seq, ReplacedBy: h.replacedBy}
		if err := yield(record); err != nil {
			return err
		}
	}
	if n := len(order); n > 0 {
		s.last, s.started = order[n-1].key, true
	}
	return nil
}

// makeRoom sees to it that the next block fits, after yieldBefore: it holds
// more from now on, and at the limit gives up the upper half of what is held.
func (s *selection) makeRoom() {
	if len(s.held) > s.dueAt/2 {
		s.dueAt = min(max(2*s.dueAt, firstDue), s.limits.Samples)
	}
	if len(s.held) >= s.limits.Samples/4*3 || s.textBytes >= s.limits.TextBytes/4*3 {
		s.cut()
	}
}

// cut keeps the lower half of what is held, and at least one sample: more
// blocks overlap in time than a query's memory holds.
func (s *selection) cut() {
	order := s.sorted(func(*held) bool { return true })
	keep := make([]held, 0, s.limits.Samples/2+1)
	text := 0
	for _, p := range order {
		h := s.held[p.index]
		text += len(h.sample.Value.Text())
		if len(keep) > 0 && (len(keep) >= s.limits.Samples/2 || text > s.limits.TextBytes/2) {
			s.bound, s.bounded = h.key(), true
			break
		}
		keep = append(keep, h)
	}
	clear(s.held)
	s.held = append(s.held[:0], keep...)
	s.weigh()
}

// sorted returns the places of the held samples that match, in order. It is
// valid until the next call.
func (s *selection) sorted(match func(*held) bool) []place {
	s.order = s.order[:0]
	for i := range s.held {
		if h := &s.held[i]; match(h) {
			s.order = append(s.order, place{h.key(), i})
		}
	}
	slices.SortFunc(s.order, func(a, b place) int { return a.compare(b.key) })
	return s.order
}

func (s *selection) weigh() {
	s.textBytes = 0
	for i := range s.held {
		s.textBytes += len(s.held[i].sample.Value.Text())
	}
}

// names makes strings the selection's own, so that a held sample keeps
// nothing of its block alive.
type names struct {
	known map[string]string
	bytes int
	last  [3]string // sensor, metric and unit of the sample before
}

// maxNamesBytes bounds the names that are remembered; then it begins anew.
const maxNamesBytes = 1 << 20

func (n *names) own(s *touchline.Sample) {
	switch s.Value.Kind() {
	case touchline.Text:
		s.Value = touchline.TextValue(strings.Clone(s.Value.Text()))
	case touchline.Bytes:
		s.Value = touchline.BytesValue(strings.Clone(s.Value.Text()))
	}
	// Blocks have their samples in runs of one series.
	for i, name := range [...]*string{&s.Sensor, &s.Metric, &s.Unit} {
		if *name != n.last[i] {
			n.last[i] = n.name(*name)
		}
		*name = n.last[i]
	}
}

func (n *names) name(name string) string {
	if known, ok := n.known[name]; ok {
		return known
	}
	if n.known == nil || n.bytes > maxNamesBytes {
		n.known, n.bytes = make(map[string]string), 0
	}
	name = strings.Clone(name)
	n.known[name] = name
	n.bytes += len(name)
	return name
}
