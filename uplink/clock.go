package uplink

import (
	"time"

	"touchline"
	"touchline/wire"
)

// maxClocksOpen bounds the clock messages that wait for confirmation.
const maxClocksOpen = 64

// announceClocks puts into the outbox what is to be said of clocks: what was
// never said in this session, and what is not confirmed within StoreTimeout.
func (s *session) announceClocks(now time.Time) {
	if s.u.opts.Corrections == nil {
		return
	}
	list := s.u.opts.Corrections.Clocks()
	s.mu.Lock()
	defer s.mu.Unlock()
	open := make(map[touchline.Clock]time.Time, len(list))
	for _, c := range list[:min(len(list), maxClocksOpen)] {
		at, ok := s.ledger.clocks[c]
		if !ok || now.Sub(at) >= s.u.opts.StoreTimeout {
			if !s.sayClock(c) {
				continue
			}
			at = now
		}
		open[c] = at
	}
	s.ledger.clocks = open
	wake(s.wakeWriter)
}

// sayClock puts one message into the outbox, if it has room. The caller holds
// s.mu.
func (s *session) sayClock(c touchline.Clock) bool {
	if len(s.outbox.messages) >= maxMessages {
		return false
	}
	data, err := wire.MarshalMessage(wire.NewClock(c))
	if err != nil {
		s.log.Error("a clock can't be told", "boot", c.Boot, "error", err)
		return false
	}
	s.outbox.messages = append(s.outbox.messages, data)
	s.u.count.clockSaid.Add(1)
	return true
}

// takeClock hands on what an ack says of time: the cloud's, and which of our
// corrections it has.
func (s *session) takeClock(a *wire.Ack, rtt time.Duration) {
	if clock := s.u.opts.Clock; clock != nil && rtt > 0 {
		clock.Overheard(a.Time, rtt)
	}
	if c := s.u.opts.Corrections; c != nil && len(a.Clock) > 0 {
		c.ConfirmClocks(a.Clock)
		s.announceClocks(time.Now()) // there may be more than fitted
	}
}
