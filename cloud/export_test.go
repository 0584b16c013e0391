package cloud

import "time"

// SetPoll shortens how long a link over HTTP may be silent beside two heartbeats.
func (s *Server) SetPoll(d time.Duration) { s.ingest.timing.poll = d }

// SetShutdown shortens how long each stage of stopping may take.
func (s *Server) SetShutdown(d time.Duration) {
	s.ingest.timing.shutdown, s.ingest.timing.linger = d, d
}

// SetLeave shortens how long a gateway that was sent away may stay.
func (s *Server) SetLeave(d time.Duration) { s.ingest.timing.leave = d }

// SetRetry shortens the pauses between attempts to record.
func (s *Server) SetRetry(least, most time.Duration) {
	for _, t := range []*timing{&s.ingest.timing, &s.batcher.timing} {
		t.retryMin, t.retryMax = least, most
	}
}

// SetLoad shortens how long blocks may wait until gateways get a smaller window,
// and none.
func (s *Server) SetLoad(lags, stands time.Duration) {
	t := &s.batcher.timing
	t.look, t.lags, t.stands = min(lags, stands)/4, lags, stands
}

// SetReask shortens how long a notice of what is stored may take.
func (s *Server) SetReask(least, most time.Duration) {
	s.ingest.timing.reask, s.ingest.timing.reaskMax = least, most
}

// SetRetry shortens the pauses between attempts to record.
func (r *Recording) SetRetry(least, most time.Duration) {
	r.batcher.timing.retryMin, r.batcher.timing.retryMax = least, most
}

// ParseQuery is what GET /v1/samples makes of its parameters.
func ParseQuery(raw string) (Query, error) {
	q, _, err := parseQuery(raw)
	return q, err
}

// LiveHeld returns the most that any viewer holds now: series, rows that wait,
// and their weight.
func (s *Server) LiveHeld() (series, rows, weight int) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	for v := range s.live.viewers {
		v.mu.Lock()
		series, rows, weight = max(series, len(v.flow.tracks)), max(rows, v.flow.held), max(weight, v.flow.weight)
		v.mu.Unlock()
	}
	return series, rows, weight
}

// SetOwner changes how often a node looks whose gateways are at another one.
func (s *Server) SetOwner(d time.Duration) { s.ingest.timing.owner = d }

// SetAnnounce changes how often a node says how it is.
func (s *Server) SetAnnounce(d time.Duration) { s.ingest.timing.announce = d }

// SetShed changes how often a node looks whether it has more than its share.
func (s *Server) SetShed(d time.Duration) { s.ingest.timing.shed = d }

// Shed takes a step of balance as if it was that late.
func (s *Server) Shed(now time.Time) { s.shedder.look(now, s.nodes.peers(time.Now())) }

// SetAsk shortens how long the record store may take to answer, and the time
// between looks whether it is there.
func (s *Server) SetAsk(ask, look time.Duration) {
	s.ingest.timing.ask, s.ingest.timing.access = ask, look
}

// Away says whether the record store is away, as far as the server has noticed.
func (s *Server) Away() bool { return s.ingest.outage.away.Load() }
