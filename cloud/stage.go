package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"touchline/credential"
)

// livePath is where viewers come.
const livePath = "/v1/live"

// serveLive answers GET /v1/live: over a WebSocket, or with an event stream to
// who asks for no upgrade. It returns when the viewer is gone.
func (s *Server) serveLive(w http.ResponseWriter, r *http.Request) {
	v, err := s.parseViewer(r.URL.RawQuery)
	if err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	upgrade := websocket.IsWebSocketUpgrade(r)
	if !upgrade && !acceptsEvents(r) {
		problem(w, http.StatusNotAcceptable, "samples are shown live over a WebSocket, or as text/event-stream: send Accept: text/event-stream, as EventSource does")
		return
	}
	if v.venue != "" {
		gateways, err := venueGateways(r.Context(), s.store, v.venue)
		switch {
		case err != nil:
			s.log.Error("find the gateways of a viewer", "error", err)
			w.Header().Set("Retry-After", "5")
			problem(w, http.StatusServiceUnavailable, "the gateways of the venue can't be read now")
			return
		case len(gateways) == 0:
			problem(w, http.StatusNotFound, fmt.Sprintf("no gateway is of the venue %.128q: GET /v1/gateways has the venue of each", v.venue))
			return
		}
		if v.gateways = narrow(gateways, v.query.Gateway); len(v.gateways) == 0 {
			problem(w, http.StatusNotFound, fmt.Sprintf("the gateway %s is not of the venue %.128q", v.query.Gateway, v.venue))
			return
		}
	}
	if !upgrade && r.Method == http.MethodHead {
		eventHeader(w)
		return
	}
	ctx, cancel := context.WithCancel(r.Context()) // which ends with the node
	defer cancel()
	cutting, cut := context.WithCancel(context.Background())
	defer cut()
	v.cut = cut
	if err := s.live.enter(v); err != nil {
		s.stats.viewersRefused.Add(1)
		w.Header().Set("Retry-After", "10")
		problem(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	defer s.live.leave(v)
	p := &showing{server: s, viewer: v, request: r}
	began := time.Now()
	if upgrade {
		err = s.showSocket(ctx, cutting, w, p)
	} else {
		err = s.showEvents(ctx, w, p)
	}
	s.log.Debug("a viewer left", "remote", s.ingest.from.shown(r), "filter", v.String(), "after", time.Since(began).Round(time.Second), "reason", err)
}

// parseViewer reads the parameters of GET /v1/live, with the rules and words
// of parseQuery.
func (s *Server) parseViewer(raw string) (*viewer, error) {
	v := &viewer{wake: make(chan struct{}, 1), flow: newConflater(s.opts.ViewerSeries)}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	known := []string{"venue", "gateway", "sensor", "metric"}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		list := values[name]
		switch {
		case name == "from" || name == "to" || name == "format":
			return nil, fmt.Errorf("parameter %s is for /v1/samples: here the latest values come first and then what is recorded from now on, as JSON", name)
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("parameter %.40q is unknown: there are %s", name, strings.Join(known, ", "))
		case len(list) > 1:
			return nil, fmt.Errorf("parameter %s is there %d times: give it once", name, len(list))
		case list[0] == "":
			continue
		case name == "venue":
			v.venue = list[0]
			continue
		}
		if err := setParameter(&v.query, nil, name, list[0]); err != nil {
			return nil, fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	if v.query.Gateway != "" {
		v.gateways = map[string]struct{}{v.query.Gateway: {}}
	}
	return v, nil
}

// acceptsEvents says whether an event stream is an answer that is asked for.
func acceptsEvents(r *http.Request) bool {
	accept := r.Header.Values("Accept")
	if len(accept) == 0 {
		return true
	}
	for one := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, _, _ := strings.Cut(one, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/event-stream", "text/*", "*/*":
			return true
		}
	}
	return false
}

// An eventStage is server-sent events (WHATWG HTML, section 9.2).
type eventStage struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	buf     []byte
}

func eventHeader(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would collect 4 KiB first
}

// showEvents shows p as an event stream. Who comes back after its end has a
// snapshot again, so events have no ids.
func (s *Server) showEvents(ctx context.Context, w http.ResponseWriter, p *showing) error {
	eventHeader(w)
	st := &eventStage{w: w, control: http.NewResponseController(w), timeout: s.reader.timeout}
	if err := st.write([]byte("retry: 2000\n\n")); err != nil {
		return err
	}
	p.stage = st
	err := p.run(ctx)
	var f farewell
	if errors.As(err, &f) {
		_ = st.write([]byte(": " + f.reason + "\n\n")) // for people
	}
	return err
}

func (st *eventStage) show(kind string, message []byte) error {
	st.buf = append(append(append(st.buf[:0], "event: "...), kind...), "\ndata: "...)
	st.buf = append(append(st.buf, message...), "\n\n"...)
	return st.write(st.buf)
}

func (st *eventStage) beat() error { return st.write([]byte(": alive\n\n")) }

func (st *eventStage) write(data []byte) error {
	if err := st.control.SetWriteDeadline(time.Now().Add(st.timeout)); err != nil {
		return err
	}
	if _, err := st.w.Write(data); err != nil {
		return err
	}
	return st.control.Flush()
}

// A socketStage is a WebSocket, a text message each.
type socketStage struct {
	conn    *websocket.Conn
	timeout time.Duration
}

func (st socketStage) show(_ string, message []byte) error {
	if err := st.conn.SetWriteDeadline(time.Now().Add(st.timeout)); err != nil {
		return err
	}
	return st.conn.WriteMessage(websocket.TextMessage, message)
}

func (st socketStage) beat() error {
	return st.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(st.timeout))
}

// maxViewerBytes is what a viewer may say at a time; it is read and ignored.
const maxViewerBytes = 512

// showSocket shows p over a WebSocket, until ctx is done; cutting ends it under
// a write that does not get through. A viewer who did not answer a ping for
// two heartbeats is gone.
func (s *Server) showSocket(ctx, cutting context.Context, w http.ResponseWriter, p *showing) error {
	upgrader := s.ingest.upgrader
	upgrader.Subprotocols = nil
	conn, err := upgrader.Upgrade(w, p.request, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, gone := context.WithCancel(ctx)
	defer gone()
	defer context.AfterFunc(cutting, func() { conn.NetConn().Close() })()
	heard := func(string) error { return conn.SetReadDeadline(time.Now().Add(2 * s.opts.Heartbeat)) }
	conn.SetReadLimit(maxViewerBytes)
	conn.SetPongHandler(heard)
	if err := heard(""); err != nil {
		return err
	}
	read := make(chan error, 1)
	go func() {
		defer gone()
		for {
			if _, _, err := conn.NextReader(); err != nil {
				read <- err
				return
			}
		}
	}()
	p.stage = socketStage{conn, s.reader.timeout}
	err = p.run(ctx)
	var f farewell
	if errors.As(err, &f) {
		until := time.Now().Add(s.ingest.timing.linger)
		_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(f.code, f.reason), until)
		_ = conn.NetConn().SetReadDeadline(until) // for the other side's close
	} else {
		conn.NetConn().Close()
	}
	if left := <-read; ctx.Err() != nil && p.request.Context().Err() == nil {
		return left // it was the viewer who ended it
	}
	return err
}

// keyIsOver says whether a key that was shown counts no more. A store that does
// not answer takes nothing away.
func keyIsOver(known APIKey, err error, given credential.APIKey, now time.Time) bool {
	if err != nil {
		return errors.Is(err, ErrUnknownKey)
	}
	return !given.Matches(known.Hash) || !known.Counts(now) || !known.Scopes.Allow(credential.ReadLive)
}
