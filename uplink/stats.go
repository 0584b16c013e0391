package uplink

import (
	"sync/atomic"
	"time"

	"touchline/wire"
)

// State says what the uplink is doing.
type State string

// The states of an uplink.
const (
	Stopped    State = "stopped"    // Run was not called or has returned
	Connecting State = "connecting" // dialing, or waiting for welcome
	Connected  State = "connected"  // welcome
	Waiting    State = "waiting"    // until NextTry
	// StoreChanged is Waiting for a person: the cloud has another record store
	// than the one known, and what it says of what is stored means nothing
	// here. See Uplink.AcceptStore.
	StoreChanged State = "store-changed"
)

// Stats is a copy of what the uplink knows about itself. Counts are since New.
type Stats struct {
	State     State     `json:"state"`
	Since     time.Time `json:"since"`                   // of State
	URL       string    `json:"url,omitempty"`           // in use or tried last, without credentials
	NextTry   time.Time `json:"next_try,omitzero"`       // while Waiting
	LastError string    `json:"last_error"`              // why the last session or dial ended; "" once a session is stable
	Store     string    `json:"store,omitempty"`         // id of the record store that is delivered to
	Offered   string    `json:"offered_store,omitempty"` // the other one, while StoreChanged
	Requests  bool      `json:"by_requests"`             // HTTPS requests take the place of a WebSocket
	Session   uint64    `json:"session,omitempty"`       // as the cloud numbers them; the last one
	RTT       float64   `json:"rtt_seconds"`             // smoothed, of the current or last session
	RTTWorst  float64   `json:"rtt_worst_seconds"`       // of the current or last session
	Heartbeat float64   `json:"heartbeat_seconds"`       // as agreed in the current session
	Window    Window    `json:"window"`                  // as the cloud gave it
	InFlight  Window    `json:"in_flight"`               // sent and not yet accepted
	// BacklogFrom is when the backlog goes on, where it waits for its hours or
	// for max_rate.
	BacklogFrom *time.Time `json:"backlog_from,omitempty"`
	Unstored    int        `json:"unstored_blocks"` // sent in this session and not yet stored
	Dials       uint64     `json:"dials"`           // begun
	Sessions    uint64     `json:"sessions"`        // those that were welcome
	Blocks      uint64     `json:"blocks_sent"`     // each time that one was sent
	Samples     uint64     `json:"samples_sent"`    // in those
	Bytes       uint64     `json:"bytes_sent"`      // of frames
	Resent      uint64     `json:"blocks_resent"`   // of Blocks, those sent before by this process
	Stored      uint64     `json:"samples_stored"`  // of those sent by this process, each once
	Damaged     uint64     `json:"blocks_damaged"`  // read from the buffer with a wrong CRC, and not sent
	LostSaid    uint64     `json:"lost_announced"`  // messages about lost samples, repeats included
	LostHeard   uint64     `json:"lost_confirmed"`  // confirmed by the cloud
	ClockSaid   uint64     `json:"clock_announced"` // messages about the clock, repeats included
}

// Window is wire.Window; named here so that readers of Stats need no wire.
type Window = wire.Window

// counters are what Stats counts, for all goroutines of a session.
type counters struct {
	dials, sessions, blocks, samples, bytes, resent, stored, damaged, lostSaid, lostHeard, clockSaid atomic.Uint64
}

// Stats returns a copy; it may be called at any time by any goroutine.
func (u *Uplink) Stats() Stats {
	u.mu.Lock()
	st, s := u.status, u.session
	u.mu.Unlock()
	if s != nil {
		s.report(&st)
	}
	st.Dials = u.count.dials.Load()
	st.Sessions = u.count.sessions.Load()
	st.Blocks = u.count.blocks.Load()
	st.Samples = u.count.samples.Load()
	st.Bytes = u.count.bytes.Load()
	st.Resent = u.count.resent.Load()
	st.Stored = u.count.stored.Load()
	st.Damaged = u.count.damaged.Load()
	st.LostSaid = u.count.lostSaid.Load()
	st.LostHeard = u.count.lostHeard.Load()
	st.ClockSaid = u.count.clockSaid.Load()
	return st
}

// report fills in what the session knows.
func (s *session) report(st *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.RTT = s.rtt.Seconds()
	st.RTTWorst = s.rttWorst.Seconds()
	if s.ended {
		return // the rest is of a living session
	}
	st.Heartbeat = s.interval.Seconds()
	st.Window = s.flights.window
	st.InFlight = Window{Bytes: s.flights.bytes, Blocks: s.flights.blocks}
	st.Unstored = s.flights.unstored
	if at := s.paced; s.welcome != nil && at.Before(never) && at.After(time.Now().Add(time.Minute)) {
		st.BacklogFrom = &at
	}
}
