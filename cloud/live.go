package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"touchline"
	"touchline/wire"
)

// live shows viewers what is recorded. The batcher publishes a block on the bus
// once it is committed; from there on nothing waits for a viewer: what can't be
// decoded in time, or sent in time, is left out of what is shown. A node
// without viewers does not follow the bus and decodes nothing, and one that has
// some decodes what is of a gateway that one of them wants, once for all.
type live struct {
	opts  Options
	bus   Bus
	stats *counters
	log   *slog.Logger
	wake  chan struct{} // holds one: the queue is not empty

	following sync.Mutex // covers unfollow; taken before mu, and not by deliver
	unfollow  func()     // nil while nobody views

	mu      sync.Mutex // covers what follows
	viewers map[*viewer]struct{}
	wanted  interest
	queue   []Recorded
	bytes   int // of queue
	closed  bool
	wg      sync.WaitGroup // of viewers; none is added once closed

	// Used by run only.
	decoder *wire.Decoder
	arena   []touchline.Sample
}

// An interest is what viewers want together.
type interest struct {
	all      bool
	gateways map[string]struct{}
}

func (w *interest) has(gateway string) bool {
	_, ok := w.gateways[gateway]
	return ok || w.all
}

const (
	// maxLiveQueue bounds the blocks that wait to be decoded for viewers. 8 MiB
	// are some four million samples, half a second of decoding. Above it the
	// oldest go: what is behind them is newer.
	maxLiveQueue = 8 << 20
	// maxLiveText is the longest text or bytes value that is shown. It bounds a
	// viewer's rows: 4,096 series of 1 KiB each are 4 MiB once thinned.
	maxLiveText = 1024
	// aheadAfter is how much later than its receipt a sample's time may be: more
	// than what clocks that are set differ by.
	aheadAfter = time.Minute
)

func newLive(opts Options, stats *counters, logger *slog.Logger) *live {
	l := &live{opts: opts, bus: opts.Bus, stats: stats, log: logger, wake: make(chan struct{}, 1),
		viewers: map[*viewer]struct{}{}, decoder: wire.NewDecoder()}
	if l.bus == nil {
		l.bus = NewLocalBus()
	}
	return l
}

var (
	errViewers     = errors.New("as many viewers as may be at a time (live.viewers) are here; try again later, or at another node")
	errViewersStop = errors.New("this node stops; another one has what it shows")
)

// enter lets a viewer in, who must leave.
func (l *live) enter(v *viewer) error {
	l.following.Lock()
	defer l.following.Unlock()
	l.mu.Lock()
	full, closed := len(l.viewers) >= l.opts.MaxViewers, l.closed
	l.mu.Unlock()
	switch {
	case closed:
		return errViewersStop
	case full:
		return errViewers
	}
	if l.unfollow == nil {
		unfollow, err := l.bus.Follow(l.deliver)
		if err != nil {
			l.log.Error("follow the bus", "error", err)
			return errors.New("the bus between nodes can't be followed now")
		}
		l.unfollow = unfollow
	}
	l.mu.Lock()
	if closed = l.closed; !closed { // meanwhile; close may have waited for all already
		l.viewers[v] = struct{}{}
		l.weigh()
		l.wg.Add(1)
	}
	none := len(l.viewers) == 0
	l.mu.Unlock()
	if none {
		l.unfollow()
		l.unfollow = nil
	}
	if closed {
		return errViewersStop
	}
	return nil
}

func (l *live) leave(v *viewer) {
	l.following.Lock()
	defer l.following.Unlock()
	l.mu.Lock()
	delete(l.viewers, v)
	l.weigh()
	none := len(l.viewers) == 0
	l.mu.Unlock()
	if none {
		l.unfollow()
		l.unfollow = nil
		l.mu.Lock()
		l.queue, l.bytes = nil, 0
		l.mu.Unlock()
	}
	l.wg.Done()
}

// want changes the gateways of a viewer who asked for a venue.
func (l *live) want(v *viewer, gateways map[string]struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v.gateways = gateways
	l.weigh()
}

// weigh brings wanted up to date. l.mu is held.
func (l *live) weigh() {
	l.wanted = interest{gateways: map[string]struct{}{}}
	for v := range l.viewers {
		l.wanted.all = l.wanted.all || v.gateways == nil
		for gateway := range v.gateways {
			l.wanted.gateways[gateway] = struct{}{}
		}
	}
}

// close waits until all viewers have left, who are on their way, and cuts
// those off who have not after patience. Nobody enters any more.
func (l *live) close(patience time.Duration) {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	timer := time.AfterFunc(patience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for v := range l.viewers {
			v.cut()
		}
	})
	defer timer.Stop()
	l.wg.Wait()
}

func (l *live) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.viewers)
}

// publishTo returns what takes to the bus what became of a batch in its
// transaction. A repeat is told too: its first commit may have been one that
// returned an error.
func publishTo(bus Bus) func([]Delivery, []Outcome) {
	return func(deliveries []Delivery, outcomes []Outcome) {
		recorded := make([]Recorded, 0, len(deliveries))
		for i := range deliveries {
			if d := &deliveries[i]; !outcomes[i].KeptAside && d.Problem == "" {
				recorded = append(recorded, Recorded{Gateway: d.Gateway, Lane: d.Lane, Received: d.Received, Block: d.Block})
			}
		}
		if len(recorded) > 0 {
			bus.Publish(recorded)
		}
	}
}

// deliver queues what viewers want of recorded.
func (l *live) deliver(recorded []Recorded) {
	l.mu.Lock()
	dropped := 0
	for _, r := range recorded {
		if l.wanted.has(r.Gateway) {
			l.queue = append(l.queue, r)
			l.bytes += len(r.Block.Data) + blockOverhead
		}
	}
	for ; l.bytes > maxLiveQueue; dropped++ {
		l.bytes -= len(l.queue[dropped].Block.Data) + blockOverhead
	}
	clear(l.queue[:dropped])
	l.queue = l.queue[dropped:]
	l.mu.Unlock()
	l.stats.liveDropped.Add(uint64(dropped))
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run decodes what is queued and hands it to viewers until stop is done.
func (l *live) run(stop context.Context) {
	for {
		select {
		case <-stop.Done():
			return
		case <-l.wake:
		}
		for r, ok := l.next(); ok && stop.Err() == nil; r, ok = l.next() {
			l.pass(&r)
		}
	}
}

func (l *live) next() (r Recorded, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.queue = nil
		return r, false
	}
	r = l.queue[0]
	l.queue[0] = Recorded{}
	l.queue = l.queue[1:]
	l.bytes -= len(r.Block.Data) + blockOverhead
	return r, true
}

// pass shows a block to those who want its gateway.
func (l *live) pass(r *Recorded) {
	var audience []*viewer
	l.mu.Lock()
	for v := range l.viewers {
		if _, ok := v.gateways[r.Gateway]; ok || v.gateways == nil {
			audience = append(audience, v)
		}
	}
	l.mu.Unlock()
	if len(audience) == 0 {
		return // they left
	}
	samples, err := l.decoder.Decode(l.arena[:0], r.Block.Data)
	if err != nil { // it was decoded when it was recorded, perhaps by a newer node
		l.log.Debug("a recorded block can't be shown", "gateway", r.Gateway, "epoch", r.Block.Epoch, "first", r.Block.First, "error", err)
		return
	}
	l.stats.liveDecoded.Add(1)
	l.arena = samples
	runs := l.runs(r, audience)
	clear(l.arena) // lets go of names and texts
	now := time.Now()
	for _, v := range audience {
		v.add(runs, now)
	}
}

// runs returns the samples of the arena by series, without the series that
// nobody of audience wants, and of a series only the latest where nobody has
// room for more: those who are slow must not cost ingest the time of making
// what they will not see. Runs share nothing with the arena but names.
func (l *live) runs(r *Recorded, audience []*viewer) []run {
	room := 0
	for _, v := range audience {
		room = max(room, v.room())
	}
	var list []run
	at := make(map[seriesKey]int) // in list
	for from, to := 0, 0; from < len(l.arena); from = to {
		first := &l.arena[from]
		for to = from + 1; to < len(l.arena) && l.arena[to].Sensor == first.Sensor && l.arena[to].Metric == first.Metric; {
			to++
		}
		key := seriesKey{r.Gateway, first.Sensor, first.Metric}
		if !wantedBy(audience, key) {
			continue
		}
		i, ok := at[key]
		if !ok { // a series of two units, or stamped in part, comes twice
			i = len(list)
			at[key] = i
			list = append(list, run{key: key})
		}
		if to-from > room {
			list[i].skipped += to - from - 1
			l.latest(&list[i], r, from, to)
			continue
		}
		room -= to - from
		list[i].rows = slices.Grow(list[i].rows, to-from)
		for n := from; n < to; n++ {
			if shown, ok := l.row(r, n); ok {
				list[i].rows = append(list[i].rows, shown)
			}
		}
	}
	for i := range list {
		list[i].sort()
	}
	return slices.DeleteFunc(list, func(r run) bool { return len(r.rows) == 0 })
}

// latest appends to a run the latest of the samples from to to of the arena, by
// its moment: all are of one epoch, and their numbers rise.
func (l *live) latest(list *run, r *Recorded, from, to int) {
	comes := r.Received.Add(aheadAfter).UnixNano()
	latest := -1
	for n := from; n < to; n++ {
		if len(l.arena[n].Value.Text()) > maxLiveText {
			continue
		}
		at, was := l.arena[n].Time, int64(0)
		if latest >= 0 {
			was = l.arena[latest].Time
		}
		if latest < 0 || at > comes == (was > comes) && at >= was || at <= comes && was > comes {
			latest = n
		}
	}
	if latest < 0 {
		l.stats.liveLong.Add(uint64(to - from))
		list.skipped -= to - from - 1
		return
	}
	if shown, ok := l.row(r, latest); ok {
		list.rows = append(list.rows, shown)
	}
}

// row makes a row of the n-th sample of the arena, unless it is too long.
func (l *live) row(r *Recorded, n int) (row, bool) {
	record := Record{Sample: l.arena[n], Gateway: r.Gateway, Epoch: r.Block.Epoch, Seq: r.Block.First + uint64(n)}
	record.Clock = Correction{}.Note(l.decoder.Attributes().Clock, record.Stamped)
	shown, ok := show(record, r.Received)
	if !ok {
		l.stats.liveLong.Add(1)
	}
	shown.backlog = r.Lane == wire.Backlog
	return shown, ok
}

func wantedBy(audience []*viewer, key seriesKey) bool {
	for _, v := range audience {
		if v.wants(key) {
			return true
		}
	}
	return false
}

// show makes a row of a record that was received then, unless it is too long.
func show(r Record, received time.Time) (row, bool) {
	if text := r.Value.Text(); len(text) > maxLiveText {
		return row{}, false
	} else if text != "" { // of a block's texts it would hold all
		own := touchline.TextValue(strings.Clone(text))
		if r.Value.Kind() == touchline.Bytes {
			own = touchline.BytesValue(own.Text())
		}
		r.Value = own
	}
	return row{Record: r, ahead: r.Time > received.Add(aheadAfter).UnixNano()}, true
}

// venueGateways returns the gateways of a venue, none where it is unknown.
func venueGateways(ctx context.Context, archive Archive, venue string) (map[string]struct{}, error) {
	known, err := archive.Gateways(ctx)
	if err != nil {
		return nil, fmt.Errorf("list gateways of venue %s: %w", venue, err)
	}
	gateways := map[string]struct{}{}
	for i := range known {
		if known[i].Venue == venue {
			gateways[known[i].ID] = struct{}{}
		}
	}
	return gateways, nil
}
