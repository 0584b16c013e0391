package sensors

import (
	"errors"
	"hash/maphash"
	"sync"
	"time"
)

// sessions are those of the embedded broker, by client id: connected ones, and
// at most maxAway whose client may come back.
//
// mochi keeps what it knows of a client by its id, and so forgets it: two
// connections of one id must not be with it at a time. One that comes claims
// the id, waits until mochi is through with the one before, and begins.
type sessions struct {
	maxAway int
	maxSubs int
	forget  func(id string) // has mochi forget an absent client, which can't come back meanwhile

	mu   sync.Mutex // covers byID, the owners in it, and claims
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
	until time.Time // when it ends, while the client is away
	over  bool      // it ended with its connection, and another one has claimed the id
	sub   bool      // it has subscribed, so that copies may wait for it

	mu   sync.Mutex
	ids  naming
	conn *mqttConn // takes acknowledgements; set after CONNACK
	// QoS 2, made with the first such message: 8 KiB each.
	pending  *idSet              // handed to the store
	received *idSet              // durable, PUBREC is due or sent, PUBREL has not come
	repeated map[uint16]struct{} // of pending: sent again, so that somebody waits on conn
	content  map[uint16]uint32   // contentOf the messages of both, of at most maxContents
}

// maxContents is as many messages as an MQTT 5 client may have under way.
const maxContents = 1024

// claim is how a connection stands to its client id. sessions.mu covers it.
type claim struct {
	before *mqttConn     // who had the id, until that one is gone
	begun  bool          // it has the session
	gone   bool          // mochi is through with it
	lost   chan struct{} // closed when another connection has claimed the id
}

var (
	errHeld      = errors.New("an older connection of the client id still waits for the store: come again later")
	errTakenOver = errors.New("a newer connection has the client id")
	errNoPlace   = errors.New("too many subscribers are connected")
)

func newSessions(maxAway, maxSubs int, forget func(id string)) *sessions {
	return &sessions{maxAway: maxAway, maxSubs: maxSubs, forget: forget, byID: make(map[string]*session)}
}

// claim makes c the owner of its client id. It returns the connection that had
// it, if there is one, and whether that one's session has begun.
func (ss *sessions) claim(id string, c *mqttConn) (older *mqttConn, begun bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.byID[id]
	if s == nil {
		s = &session{}
		ss.byID[id] = s
	} else if s.owner == nil {
		ss.away--
	} else {
		older, begun = s.owner, s.owner.claim.begun
		select {
		case <-older.claim.lost: // who claimed it gave up
		default:
			close(older.claim.lost)
		}
	}
	s.owner, c.claim.before = c, older
	return older, begun
}

// waitsFor returns a connection that c has to wait for, or nil. What one that
// claimed before waits for itself is c's to wait for, too.
func (ss *sessions) waitsFor(c *mqttConn) *mqttConn {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for c.claim.before != nil && c.claim.before.claim.gone {
		c.claim.before = c.claim.before.claim.before
	}
	return c.claim.before
}

// giveUp ends a claim whose time is up: the id is left to the connection that
// has the session and does not end. It returns false where there is none: then
// who is in the way just waits as c does, and in vain.
func (ss *sessions) giveUp(id string, c *mqttConn) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	has := c.claim.before
	for has != nil && (has.claim.gone || !has.claim.begun) {
		has = has.claim.before
	}
	if s := ss.byID[id]; has != nil && s != nil && s.owner == c {
		s.owner = has
	}
	return has != nil
}

// begin gives c the session that it has claimed, once nobody is in the way:
// with clean, or where the one before ended with its connection, a new one.
func (ss *sessions) begin(id string, c *mqttConn, clean bool) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.byID[id]
	if s == nil || s.owner != c {
		return errTakenOver
	}
	if clean || s.over {
		ss.remove(id)
		s = &session{owner: c}
		ss.byID[id] = s
	}
	c.session, c.claim.begun = s, true
	return nil
}

// detach ends what c has of its client id, when mochi is through with it. A
// session that stays waits so long for its client; of too many that do, the
// longest absent one is forgotten, whose client id is returned.
func (ss *sessions) detach(id string, c *mqttConn, stays time.Duration) (forgotten string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	c.claim.gone = true
	s := ss.byID[id]
	switch {
	case s == nil: // it has claimed nothing
		return ""
	case s.owner != c: // another connection has the id by now
		s.over = s.over || stays == 0 && s == c.session
		return ""
	case stays == 0:
		ss.remove(id)
		return ""
	}
	ss.turn++
	ss.away++
	s.owner, s.left, s.until = nil, ss.turn, time.Now().Add(stays)
	if ss.away <= ss.maxAway {
		return ""
	}
	return ss.forgetLongest(func(*session) bool { return true })
}

// forgetLongest ends the session that is away longest of those that match, and
// returns its client id, or "". It looks at some thousand entries, and only in a
// full house.
func (ss *sessions) forgetLongest(match func(*session) bool) (forgotten string) {
	lowest := ss.turn + 1
	for id, s := range ss.byID {
		if s.owner == nil && s.left < lowest && match(s) {
			forgotten, lowest = id, s.left
		}
	}
	if lowest > ss.turn {
		return ""
	}
	ss.end(forgotten)
	return forgotten
}

// end ends the session of an absent client.
func (ss *sessions) end(id string) {
	ss.remove(id)
	ss.away--
	ss.forget(id)
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
// returned. With an error nothing may be subscribed to: errTakenOver, errNoPlace.
func (ss *sessions) subscribe(id string, c *mqttConn) (forgotten string, err error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.byID[id]
	switch {
	case s == nil || s.owner != c:
		return "", errTakenOver
	case s.sub:
		return "", nil
	case ss.subs >= ss.maxSubs:
		if forgotten = ss.forgetLongest(func(s *session) bool { return s.sub }); forgotten == "" {
			return "", errNoPlace
		}
	}
	s.sub = true
	ss.subs++
	return forgotten, nil
}

// expire ends the sessions whose client stayed away too long.
func (ss *sessions) expire(now time.Time) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for id, s := range ss.byID {
		if s.owner == nil && now.After(s.until) {
			ss.end(id)
		}
	}
}

// connected lets c take the session's acknowledgements. Nobody has asked for one
// on it yet: one too many would be taken for that of the id's next message.
func (s *session) connected(c *mqttConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = c
	clear(s.repeated)
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
// then it is a repetition and must not be stored again. With another content it
// is none: a client that has lost its memory before PUBREL counts from 1 again.
func (s *session) begin(id uint16, content uint32) standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.content[id]
	switch other := known && was != content; {
	case other:
		s.received.remove(id)
	case s.received.has(id):
		return receivedID
	case s.pending.has(id):
		s.repeated[id] = struct{}{}
		return pendingID
	}
	if s.pending == nil {
		s.pending, s.received = new(idSet), new(idSet)
		s.repeated, s.content = make(map[uint16]struct{}), make(map[uint16]uint32)
	}
	s.pending.add(id)
	if known || len(s.content) < maxContents {
		s.content[id] = content
	}
	return unknownID
}

// contents is the seed of contentOf.
var contents = maphash.MakeSeed()

// contentOf tells the messages of a packet id apart.
func contentOf(topic string, payload []byte) uint32 {
	var h maphash.Hash
	h.SetSeed(contents)
	_, _ = h.WriteString(topic) // it never fails
	_ = h.WriteByte(0)
	_, _ = h.Write(payload)
	return uint32(h.Sum64())
}

// withdraw forgets a message that begin let in, and that is refused. Of one that
// had the id before, nothing is known from then on.
func (s *session) withdraw(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.remove(id)
	delete(s.repeated, id)
	delete(s.content, id)
}

// stored notes that the message is durable, or with false that it is not known
// to be. It returns the connection that the client has by now, and whether the
// client has sent the message again. Of a message whose id another one has, or
// had, taken meanwhile nobody wants to hear: it must not pass for that one.
func (s *session) stored(id uint16, content uint32, ok bool) (now *mqttConn, repeated bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is, known := s.content[id]; !s.pending.has(id) || known && is != content {
		return nil, false
	}
	s.pending.remove(id)
	if ok {
		s.received.add(id)
	} else {
		delete(s.content, id)
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
		delete(s.content, id)
		return receivedID
	}
	return unknownID
}

// idSet is a set of packet ids. A nil idSet is empty.
type idSet [1 << 16 / 64]uint64

func (s *idSet) has(id uint16) bool { return s != nil && s[id/64]&(1<<(id%64)) != 0 }
func (s *idSet) add(id uint16)      { s[id/64] |= 1 << (id % 64) }
func (s *idSet) remove(id uint16)   { s[id/64] &^= 1 << (id % 64) }
