package cloud

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"touchline/credential"
	"touchline/wire"
)

// A viewer is one reader of GET /v1/live.
type viewer struct {
	query    Query // its sensor and metric; its gateway is in gateways
	venue    string
	gateways map[string]struct{} // nil is all; covered by live.mu
	cut      func()              // ends its connection under whoever writes to it
	wake     chan struct{}       // holds one: there is something to take

	mu   sync.Mutex // covers flow
	flow *conflater
}

// wants says whether the viewer wants a series of a gateway that it wants.
func (v *viewer) wants(key seriesKey) bool {
	return (v.query.Sensor == "" || v.query.Sensor == key.sensor) && (v.query.Metric == "" || v.query.Metric == key.metric)
}

// add has the viewer see what it wants of runs. It does not wait.
func (v *viewer) add(runs []run, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range runs {
		if v.wants(r.key) {
			v.flow.add(r, now)
		}
	}
	if v.flow.held > 0 {
		v.signal()
	}
}

func (v *viewer) room() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.flow.room()
}

func (v *viewer) signal() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// take returns what is next, at most n rows and in the memory of rows, what was
// left out since the last take, and whether there is more.
func (v *viewer) take(rows []row, n int) (next []row, left omitted, more bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	next = v.flow.take(rows[:0], n, time.Now())
	return next, v.flow.takeOmitted(), v.flow.held > 0
}

// A stage is how a viewer is shown something: one goroutine writes to it. An
// error ends the viewer.
type stage interface {
	// show sends a message, in JSON on one line, and waits until the connection took it.
	show(kind string, message []byte) error
	// beat sends what shows that this side lives.
	beat() error
}

const (
	// A message has at most messageRows samples, about 80 KB, and the next one
	// comes livePace later: a viewer gets some 10,000 samples a second, is thinned
	// beyond that, and costs no more than 3 ms of each second. Nobody's eyes
	// or chart follow more.
	messageRows = 512
	livePace    = 50 * time.Millisecond
	// snapshotTime bounds the query of a snapshot, which is cut off then.
	snapshotTime = 5 * time.Second
)

// A showing is a viewer's connection.
type showing struct {
	server  *Server
	viewer  *viewer
	stage   stage
	request *http.Request
	rows    []row
	message []byte
}

// run shows the latest that is known and then what comes, until ctx is done or
// the viewer is gone. It returns a farewell where there is something to say.
func (p *showing) run(ctx context.Context) error {
	complete := p.remember(ctx)
	if err := p.snapshot(complete); err != nil {
		return err
	}
	beat := time.NewTicker(p.server.opts.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return farewell{code: websocket.CloseGoingAway, reason: "this node stops"}
		case <-beat.C:
			if err := p.look(ctx); err != nil {
				return err
			}
			if err := p.stage.beat(); err != nil {
				return err
			}
		case <-p.viewer.wake:
			more, err := p.next("samples", messageRows, "")
			if err != nil {
				return err
			}
			pause(ctx, livePace)
			if more {
				p.viewer.signal()
			}
		}
	}
}

// remember asks the record store for the latest values. The viewer has entered
// before, so what is committed meanwhile comes by the bus: nothing is between.
// It says whether all was read.
func (p *showing) remember(ctx context.Context) (complete bool) {
	s, v := p.server, p.viewer
	v.mu.Lock()
	v.flow.thin = true
	v.mu.Unlock()
	if s.opts.LiveLookback == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, min(snapshotTime, s.opts.Heartbeat))
	defer cancel()
	select {
	case s.reader.slots <- struct{}{}:
		defer func() { <-s.reader.slots }()
	case <-ctx.Done():
		return false
	}
	now := time.Now()
	from := now.Add(-s.opts.LiveLookback).UnixNano()
	for _, gateway := range s.live.gatewaysOf(v) {
		q := Query{Gateway: gateway, Sensor: v.query.Sensor, Metric: v.query.Metric, From: &from}
		err := s.store.Samples(ctx, q, func(r Record) error {
			if shown, ok := show(r, now); ok {
				v.add([]run{newRun(seriesKey{r.Gateway, r.Sensor, r.Metric}, []row{shown})}, now)
			}
			return nil
		})
		if err != nil {
			s.log.Debug("the snapshot of a viewer is not complete", "remote", p.request.RemoteAddr, "error", err)
			return false
		}
	}
	return true
}

// gatewaysOf returns what a viewer wants, "" for all.
func (l *live) gatewaysOf(v *viewer) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.gateways == nil {
		return []string{""}
	}
	list := make([]string, 0, len(v.gateways))
	for gateway := range v.gateways {
		list = append(list, gateway)
	}
	return list
}

// snapshot sends what waits now, as the latest that is known.
func (p *showing) snapshot(complete bool) error {
	v := p.viewer
	v.mu.Lock()
	left := v.flow.held
	v.flow.omitted = omitted{series: v.flow.omitted.series}
	v.mu.Unlock()
	for ; left > messageRows; left -= messageRows {
		if _, err := p.next("snapshot", messageRows, ""); err != nil {
			return err
		}
	}
	more, err := p.next("snapshot", left, `,"last":true,"complete":`+strconv.FormatBool(complete))
	if more {
		v.signal()
	}
	return err
}

// next sends a message of at most n samples, and says whether more wait. Of a
// snapshot there is a last message even without samples.
func (p *showing) next(kind string, n int, members string) (more bool, err error) {
	rows, left, more := p.viewer.take(p.rows, n)
	p.rows = rows
	stats := p.server.stats
	stats.liveThinned.Add(left.thinned)
	stats.liveLate.Add(left.late)
	stats.liveSeries.Add(left.series)
	if len(rows) == 0 && members == "" {
		return more, nil
	}
	p.message = appendLive(p.message[:0], kind, rows, left)
	p.message = append(append(p.message, members...), '}')
	if err := p.stage.show(kind, p.message); err != nil {
		return false, err
	}
	stats.liveSent.Add(uint64(len(rows)))
	clear(rows)
	return more, nil
}

// appendLive appends a message without its end: each sample is an object as in
// GET /v1/samples?format=json, with its lane where that is the backlog.
func appendLive(dst []byte, kind string, rows []row, left omitted) []byte {
	dst = append(append(append(dst, `{"type":"`...), kind...), `","samples":[`...)
	for i := range rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst, _ = appendJSON(dst, &rows[i].Record) // JSON has a form for everything
		if rows[i].backlog {
			dst = append(appendMember(dst[:len(dst)-1], "lane", wire.Backlog.String()), '}')
		}
	}
	dst = append(dst, ']')
	for _, of := range [...]struct {
		name string
		n    uint64
	}{{"thinned", left.thinned}, {"late", left.late}, {"left_out", left.series}} {
		if of.n > 0 {
			dst = append(append(append(dst, `,"`...), of.name...), `":`...)
			dst = strconv.AppendUint(dst, of.n, 10)
		}
	}
	return dst
}

// look sees, each heartbeat, whether the viewer's key still counts, and which
// gateways its venue has now. Where the store does not answer, all stays.
func (p *showing) look(ctx context.Context) error {
	s, v := p.server, p.viewer
	ctx, cancel := context.WithTimeout(ctx, s.ingest.timing.ask)
	defer cancel()
	if text, ok := bearer(p.request); ok {
		given, err := credential.ParseAPIKey(text)
		if err != nil {
			panic("BUG: a viewer's key was read before: " + err.Error())
		}
		known, err := s.store.APIKey(ctx, given.ID())
		if keyIsOver(known, err, given, time.Now()) {
			return farewell{code: wire.CloseUnauthorized, reason: "the API key is revoked or over"}
		}
	}
	if v.venue != "" {
		gateways, err := venueGateways(ctx, s.store, v.venue)
		if err != nil {
			s.log.Debug("the gateways of a venue are not known anew", "error", err)
			return nil
		}
		s.live.want(v, narrow(gateways, v.query.Gateway))
	}
	return nil
}

// narrow leaves of the gateways of a venue the one that was asked for, if any.
func narrow(gateways map[string]struct{}, one string) map[string]struct{} {
	if one == "" {
		return gateways
	}
	if _, ok := gateways[one]; !ok {
		return map[string]struct{}{}
	}
	return map[string]struct{}{one: {}}
}

// String says what the viewer asked for, for logs.
func (v *viewer) String() string {
	return fmt.Sprintf("venue=%s gateway=%s sensor=%s metric=%s", v.venue, v.query.Gateway, v.query.Sensor, v.query.Metric)
}
