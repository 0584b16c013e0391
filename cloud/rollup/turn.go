package rollup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"touchline"
	"touchline/cloud"
)

// Limits bound one turn, which is one transaction of the store in the end.
type Limits struct {
	Notes   int // taken: each is of one batch that was recorded
	Samples int // read, before the second that goes beyond
	Rows    int // written, likewise
}

// DefaultLimits: 20,000 rows of 150 bytes are 3 MB here, and some tenths of a
// second of a store's writing; a million samples are about a second of reading.
var DefaultLimits = Limits{Notes: 512, Samples: 1 << 20, Rows: 20_000}

// maxJoined is how long a range may be that is read together with others of
// about its time. What is longer was not recorded a moment ago, and waits.
const maxJoined = 3600 // s

// nearby is how far two ranges may be apart that are read together.
const nearby = 60 // s

// A part is a range of one gateway.
type part struct {
	gateway  string
	from, to int64 // both included
	removes  bool
	old      bool // of before Work.SecondsFrom: rows of minutes only
}

// A segment is read by one query.
type segment struct {
	from, to int64
	old      bool
	parts    []part
}

// A turn is the work on some notes.
type turn struct {
	store  Store
	limits Limits
	result Result
	read   int // samples
	places map[place]int
}

// A place is where a row of the result stands, so that of two that were read
// the later one counts.
type place struct {
	series Series
	time   int64
	old    bool
}

// errEnough ends a query where the turn is full.
var errEnough = errors.New("enough for one turn")

// run reads what the work names, the newest first, as far as the limits let
// it. The result has the rest.
func (t *turn) run(ctx context.Context, w Work) error {
	t.result = Result{Turn: w.Turn, Notes: w.Notes, Oldest: w.Oldest}
	t.places = make(map[place]int)
	numbers := make(map[string]int64, len(w.Gateways))
	for number, name := range w.Gateways {
		numbers[name] = number
	}
	var rest []part
	for _, s := range segments(partsOf(w)) {
		if t.full() {
			rest = append(rest, s.parts...)
			continue
		}
		left, err := t.roll(ctx, s)
		if err != nil {
			return err
		}
		rest = append(rest, left...)
	}
	for _, p := range rest {
		t.result.Rest = append(t.result.Rest, Span{numbers[p.gateway], max(p.from, MinSecond), min(p.to, MaxSecond), p.removes})
	}
	return nil
}

func (t *turn) full() bool {
	return t.read >= t.limits.Samples || len(t.result.Seconds)+len(t.result.Minutes) >= t.limits.Rows
}

// partsOf returns the work by gateway: what is of before SecondsFrom apart, and
// in whole minutes.
func partsOf(w Work) []part {
	var spans []Span
	for _, s := range w.Spans {
		if s.Gateway != 0 {
			spans = append(spans, s)
			continue
		}
		for number := range w.Gateways {
			s.Gateway = number
			spans = append(spans, s)
		}
	}
	var parts []part
	for _, s := range union(spans) {
		name, ok := w.Gateways[s.Gateway]
		if !ok {
			continue // a gateway of no store is damage, and nothing of it can be read
		}
		if s.From < w.SecondsFrom {
			old := part{name, MinuteOf(s.From), min(MinuteOf(s.To)+minute, w.SecondsFrom) - 1, s.Removes, true}
			parts = append(parts, old)
		}
		if s.To >= w.SecondsFrom {
			parts = append(parts, part{name, max(s.From, w.SecondsFrom), s.To, s.Removes, false})
		}
	}
	return parts
}

// segments joins parts that are short and of about the same time, the newest
// first; then come those that are long.
func segments(parts []part) []segment {
	long := func(p part) bool { return p.to-p.from >= maxJoined }
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(compareBool(long(a), long(b)), compareBool(a.old, b.old), cmp.Compare(a.from, b.from), cmp.Compare(a.gateway, b.gateway))
	})
	var all []segment
	for _, p := range parts {
		if n := len(all); n > 0 {
			last := &all[n-1]
			joins := last.old == p.old && p.from <= last.to+nearby && long(last.parts[0]) == long(p)
			if joins && (long(p) || max(last.to, p.to)-last.from < maxJoined) {
				last.to = max(last.to, p.to)
				last.parts = append(last.parts, p)
				continue
			}
		}
		all = append(all, segment{p.from, p.to, p.old, []part{p}})
	}
	slices.SortStableFunc(all, func(a, b segment) int {
		return cmp.Or(compareBool(long(a.parts[0]), long(b.parts[0])), cmp.Compare(b.from, a.from))
	})
	return all
}

// roll reads one segment and returns the parts of it that are left.
func (t *turn) roll(ctx context.Context, s segment) (left []part, err error) {
	g := &gathering{turn: t, segment: s, unit: 1, rows: &t.result.Seconds, dirty: make(map[string][]part), open: make(map[Series]*Figures)}
	if s.old {
		g.unit, g.rows = minute, &t.result.Minutes
	}
	only := make(map[string]struct{})
	for _, p := range s.parts {
		only[p.gateway] = struct{}{}
		g.dirty[p.gateway] = append(g.dirty[p.gateway], p)
	}
	q := cloud.Query{}
	if s.from > MinSecond {
		from := s.from * second
		q.From = &from
	}
	if s.to < MaxSecond {
		to := (s.to + 1) * second
		q.To = &to
	}
	if len(only) == 1 {
		q.Gateway = s.parts[0].gateway
	}
	err = t.store.RollupSamples(ctx, q, only, g.add)
	until := int64(math.MaxInt64) // where what is left begins
	switch {
	case errors.Is(err, errEnough):
		until = g.at
	case err != nil && !errors.Is(err, cloud.ErrIncomplete): // a damaged block is reported as it is read, and has no samples
		return nil, fmt.Errorf("read samples: %w", err)
	default:
		g.flush()
	}
	for _, p := range s.parts {
		if p.removes && p.from < until {
			t.result.Clear = append(t.result.Clear, Clearing{p.gateway, p.from, min(p.to, until-1)})
		}
		if p.to >= until {
			p.from = max(p.from, until)
			left = append(left, p)
		}
	}
	return left, nil
}

// A gathering makes rows of a segment's samples, which come in the order of
// time.
type gathering struct {
	turn    *turn
	segment segment
	unit    int64 // s
	rows    *[]Row
	dirty   map[string][]part // by gateway
	begun   bool
	at      int64 // the second or minute that is open
	open    map[Series]*Figures
}

func (g *gathering) add(r cloud.Record) error {
	if at := floor(SecondOf(r.Time), g.unit) * g.unit; !g.begun || at != g.at {
		g.flush()
		g.begun, g.at = true, at
		if g.turn.full() {
			return errEnough
		}
	}
	g.turn.read++
	if !counts(r.Value) {
		return nil
	}
	series := Series{r.Gateway, r.Sensor, r.Metric, r.Unit}
	f := g.open[series]
	if f == nil {
		if touchline.CheckSensor(r.Sensor) != nil || touchline.CheckMetric(r.Metric) != nil || touchline.CheckUnit(r.Unit) != nil {
			return nil // no gateway of ours sends such names, and not every store takes them
		}
		f = &Figures{}
		g.open[series] = f
	}
	f.add(r.Value.Float())
	return nil
}

// flush ends the second or minute that is open. One of a gateway that did not
// change there is as it was.
func (g *gathering) flush() {
	for series, f := range g.open {
		if !slices.ContainsFunc(g.dirty[series.Gateway], func(p part) bool { return p.from <= g.at && g.at <= p.to }) {
			continue
		}
		f.Sum = tame(f.Sum)
		at := place{series, g.at, g.segment.old}
		n, again := g.turn.places[at]
		if !again {
			n = len(*g.rows)
			g.turn.places[at] = n
			*g.rows = append(*g.rows, Row{})
		}
		(*g.rows)[n] = Row{series, g.at, *f}
	}
	clear(g.open)
}
