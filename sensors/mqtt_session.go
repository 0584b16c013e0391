package sensors

import "sync"

// sessions are those of the embedded broker, by client id: connected ones, and
// at most maxAway whose client may come back.
type sessions struct {
	maxAway int
	maxSubs int

	mu   sync.Mutex // covers byID and the owners in it
	byID map[string]*session
	away int
	subs int    // sessions that have subscribed
	turn uint64 // of leaving; the session with the lowest turn is away longest
}

// session is what is remembered of one client id: which connection has it, and
// for QoS 2 which packet ids the client may not use for another message yet.
type session struct {
	owner *mqttConn // nil while the client is away
	left  uint64    // its turn
	sub   bool      // it has subscribed, so that copies may wait for it

	mu   sync.Mutex
	ids  naming
	conn *mqttConn // takes acknowledgements; set after CONNACK
	// QoS 2, made with the first such message: 8 KiB each.
	pending  *idSet              // handed to the store
	received *idSet              // durable, PUBREC is due or sent, PUBREL has not come
	repeated map[uint16]struct{} // of pending: sent again, so that somebody waits on conn
}

func newSessions(maxAway, maxSubs int) *sessions {
	return &sessions{maxAway: maxAway, maxSubs: maxSubs, byID: make(map[string]*session)}
}

// attach makes c the owner of its client id's session, and returns the
// connection that had it. With clean the session is a new one.
func (ss *sessions) attach(id string, c *mqttConn, clean bool) (s *session, older *mqttConn) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s = ss.byID[id]
	if s != nil {
		older = s.owner
		if older == nil {
			ss.away--
		}
	}
	if s == nil || clean {
		ss.remove(id)
		s = &session{}
		ss.byID[id] = s
	}
	s.owner = c
	return s, older
}

// detach ends c's ownership, and the session too if it expires now. It returns
// the client id that had to be forgotten because too many are away, or "".
func (ss *sessions) detach(id string, c *mqttConn, expire bool) (forgotten string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.byID[id]
	if s == nil || s.owner != c {
		return "" // another connection has the id by now
	}
	s.owner = nil
	if expire {
		ss.remove(id)
		return ""
	}
	ss.turn++
	ss.away++
	s.left = ss.turn
	if ss.away <= ss.maxAway {
		return ""
	}
	return ss.forget(func(*session) bool { return true })
}

// forget ends the session that is away longest of those that match, and
// returns its client id, or "". It looks at some thousand entries, and only in
// a full house.
func (ss *sessions) forget(match func(*session) bool) (forgotten string) {
	lowest := ss.turn + 1
	for id, s := range ss.byID {
		if s.owner == nil && s.left < lowest && match(s) {
			forgotten, lowest = id, s.left
		}
	}
	if lowest > ss.turn {
		return ""
	}
	ss.remove(forgotten)
	ss.away--
	return forgotten
}

// remove deletes a session, if there is one, with its place as a subscriber.
func (ss *sessions) remove(id string) {
	if s := ss.byID[id]; s != nil && s.sub {
		ss.subs--
	}
	delete(ss.byID, id)
}

// subscribe gives c's session its place among the subscribers, which it keeps
// as long as it lives: what waits for a client waits with its session. For it
// the longest absent subscriber may have to be forgotten, whose client id is
// returned. Without a place nothing may be subscribed to.
func (ss *sessions) subscribe(id string, c *mqttConn) (forgotten string, ok bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.byID[id]
	switch {
	case s == nil || s.owner != c: // another connection has the id by now
		return "", false
	case s.sub:
		return "", true
	case ss.subs >= ss.maxSubs:
		if forgotten = ss.forget(func(s *session) bool { return s.sub }); forgotten == "" {
			return "", false
		}
	}
	s.sub = true
	ss.subs++
	return forgotten, true
}

// expire forgets the session of a client that stayed away.
func (ss *sessions) expire(id string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.byID[id]; s != nil && s.owner == nil {
		ss.remove(id)
		ss.away--
	}
}

// connected lets c take the session's acknowledgements.
func (s *session) connected(c *mqttConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = c
}

// names says whether a packet id names its message.
func (s *session) names(id uint16, dup bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids.names(id, dup)
}

// standing says what is known of a QoS 2 packet id.
type standing uint8

const (
	unknownID standing = iota
	pendingID
	receivedID
)

// begin notes a QoS 2 message that goes to the store, unless its id is known:
// then it is a repetition and must not be stored again.
func (s *session) begin(id uint16) standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.received.has(id):
		return receivedID
	case s.pending.has(id):
		s.repeated[id] = struct{}{}
		return pendingID
	}
	if s.pending == nil {
		s.pending, s.received, s.repeated = new(idSet), new(idSet), make(map[uint16]struct{})
	}
	s.pending.add(id)
	return unknownID
}

// withdraw forgets a message that begin let in, and that is refused.
func (s *session) withdraw(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.remove(id)
	delete(s.repeated, id)
}

// stored notes that the message is durable, or with false that it is not known
// to be. It returns the connection that the client has by now, and whether the
// client has sent the message again.
func (s *session) stored(id uint16, ok bool) (now *mqttConn, repeated bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.remove(id)
	if ok {
		s.received.add(id)
	}
	_, repeated = s.repeated[id]
	delete(s.repeated, id)
	return s.conn, repeated
}

// end frees an id on PUBREL and returns what it was.
func (s *session) end(id uint16) standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.pending.has(id):
		return pendingID
	case s.received.has(id):
		s.received.remove(id)
		return receivedID
	}
	return unknownID
}

// idSet is a set of packet ids. A nil idSet is empty.
type idSet [1 << 16 / 64]uint64

func (s *idSet) has(id uint16) bool { return s != nil && s[id/64]&(1<<(id%64)) != 0 }
func (s *idSet) add(id uint16)      { s[id/64] |= 1 << (id % 64) }
func (s *idSet) remove(id uint16)   { s[id/64] &^= 1 << (id % 64) }
