package sensors

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// login5 is a CONNECT of MQTT 5 that resumes, with a session expiry in seconds;
// below 0 there is none.
func login5(client string, expiry int64) []byte {
	body := append(appendString(nil, "MQTT"), 5, 0, 0, 60)
	if expiry < 0 {
		body = append(body, 0)
	} else {
		body = append(body, 5, packets.PropSessionExpiryInterval, byte(expiry>>24), byte(expiry>>16), byte(expiry>>8), byte(expiry))
	}
	return packet(0x10, appendString(body, client))
}

// enter sends a CONNECT and returns CONNACK.
func enter(t *testing.T, m *MQTT, version byte, connect []byte) (*rawClient, mqttPacket) {
	t.Helper()
	c := dialRaw(t, m.Addr(), version)
	c.send(t, connect)
	return c, c.expect(t, kConnack)
}

// hears makes sure that a client that has subscribed to sensors/# gets what is
// published.
func hears(t *testing.T, m *MQTT, c *rawClient) {
	t.Helper()
	belt := dialMQTT(t, m.Addr(), 4, "belt")
	belt.publish(t, 1, 1, "sensors/belt/hr", "61")
	belt.expectAck(t, kPuback, 1)
	for {
		if p := c.expect(t, kPublish); strings.HasSuffix(string(p.body), "61") {
			return
		}
	}
}

// slowEnd holds mochi up in the middle of what it does after a connection.
type slowEnd struct {
	mqtt.HookBase
	met   atomic.Bool
	began chan struct{}
	goOn  chan struct{}
}

func (h *slowEnd) ID() string           { return "slow end" }
func (h *slowEnd) Provides(b byte) bool { return b == mqtt.OnUnsubscribed }

func (h *slowEnd) OnUnsubscribed(*mqtt.Client, packets.Packet) {
	if h.met.CompareAndSwap(false, true) {
		close(h.began)
		<-h.goOn
	}
}

// TestMQTT_WhoComesBackAtOnceHearsWhatItSubscribesTo, though mochi is still
// about to forget what it had, by the client id of both connections.
func TestMQTT_WhoComesBackAtOnceHearsWhatItSubscribesTo(t *testing.T) {
	for how, login := range map[string][]byte{
		"3.1.1, the session ends with its connection": connectPacket(4, "display", true),
		"5, the session ends with its connection":     login5("display", -1),
		"5, the session expires":                      login5("display", 1),
	} {
		t.Run(how, func(t *testing.T) {
			version := how[0] - '0'
			if version == 3 {
				version = 4
			}
			m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
			end := &slowEnd{began: make(chan struct{}), goOn: make(chan struct{})}
			if err := m.server.AddHook(end, nil); err != nil {
				t.Fatal(err)
			}
			display, _ := enter(t, m, version, login)
			display.send(t, subscribePacket(version, "sensors/#", 0))
			display.expect(t, kSuback)
			display.send(t, []byte{0xe0, 0}) // DISCONNECT
			<-end.began

			// It comes back. Let in now, it would be forgotten with its last connection.
			back := dialRaw(t, m.Addr(), version)
			back.send(t, login, subscribePacket(version, "sensors/#", 0))
			if err := back.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if p, err := back.read(); err == nil {
				t.Errorf("it got packet type %d before its last session has ended", p.kind)
			}
			if err := back.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
				t.Fatal(err)
			}
			close(end.goOn)
			if p := back.expect(t, kConnack); p.body[0] != 0 || p.body[1] != 0 {
				t.Errorf("CONNACK % x, want a new session", p.body)
			}
			back.expect(t, kSuback)
			hears(t, m, back)
		})
	}
}

// TestMQTT_ClientIDIsHeldByWhoWaitsForTheStore: who comes with it meanwhile is
// sent away, however many, and let in when that has ended.
func TestMQTT_ClientIDIsHeldByWhoWaitsForTheStore(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), func(o *MQTTOptions) { o.Patience = time.Hour }, slog.New(slog.DiscardHandler))
		m.takeoverPatience = 50 * time.Millisecond
		login := loginPacket{client: "display"}.bytes(version)
		waits, _ := enter(t, m, version, login)
		store.setRefuse(full{time.Millisecond})
		waits.send(t, publishPacket(version, 0, 0, "sensors/display/hr", "1"), []byte{0xe0, 0})
		refusals := 0
		store.await(t, "it waits", func() bool { refusals++; return refusals > 5 })

		var together []*rawClient
		for range 3 {
			c := dialRaw(t, m.Addr(), version)
			c.send(t, login)
			together = append(together, c)
		}
		busy := map[byte]byte{4: 3, 5: packets.ErrServerBusy.Code}[version]
		told := 0
		for _, c := range together {
			if p, err := c.read(); err == nil { // the newest one ends the others
				if told++; p.body[1] != busy {
					t.Errorf("CONNACK says %#x, want %#x", p.body[1], busy)
				}
			}
		}
		if told == 0 {
			t.Error("nobody was told that the gateway is busy")
		}
		if _, p := enter(t, m, version, login); p.body[1] != busy {
			t.Errorf("CONNACK says %#x, want %#x", p.body[1], busy)
		}
		store.setRefuse(nil)
		store.awaitStored(t, 1)
		var back *rawClient
		eventually(t, "it is let in", func() bool {
			c, p := enter(t, m, version, login)
			back = c
			return p.body[1] == 0
		})
		back.send(t, subscribePacket(version, "sensors/#", 0))
		back.expect(t, kSuback)
		hears(t, m, back)
	})
}

// TestMQTT_ClientIDIsNotHeldForALargePacket that waits for its place on a
// connection that the client has left.
func TestMQTT_ClientIDIsNotHeldForALargePacket(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	m.packetTimeout = time.Hour
	for range cap(m.large) {
		m.large <- struct{}{}
	}
	login := connectPacket(4, "belt", true)
	waits, _ := enter(t, m, 4, login)
	waits.send(t, publishPacket(4, 1, 1, "sensors/belt/hr", strings.Repeat("x", 20_000))[:100])
	waits.Close()
	if _, p := enter(t, m, 4, login); p.body[1] != 0 {
		t.Errorf("CONNACK says %#x", p.body[1])
	}
	for range cap(m.large) {
		<-m.large
	}
}

// TestMQTT_EndedSessionLeavesNoPacketIDs: what a taken-over connection has sent
// with QoS 2 is nobody's, where its session ended with it. A new message with
// the same packet id was taken for a repetition: acknowledged, and not stored.
func TestMQTT_EndedSessionLeavesNoPacketIDs(t *testing.T) {
	for how, logins := range map[string]struct {
		version      byte
		first, again []byte
	}{
		"5, without expiry":             {5, login5("belt", -1), login5("belt", -1)},
		"3.1.1, clean, then to be kept": {4, connectPacket(4, "belt", true), connectPacket(4, "belt", false)},
		"5, clean start":                {5, login5("belt", 3600), connectPacket(5, "belt", true)},
	} {
		t.Run(how, func(t *testing.T) {
			store := newStore(t)
			m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
			first, _ := enter(t, m, logins.version, logins.first)
			first.publish(t, 2, 1, "sensors/belt/hr", "61")
			first.expectAck(t, kPubrec, 1)
			again, connack := enter(t, m, logins.version, logins.again) // the first one is still open
			if connack.body[0] != 0 {
				t.Error("CONNACK says that the session is there")
			}
			again.publish(t, 2, 1, "sensors/belt/hr", "62")
			again.expectAck(t, kPubrec, 1)
			store.awaitStored(t, 2)
		})
	}
}

// TestMQTT_PacketIDOfAnotherMessageIsNoRepetition: a client that was killed
// between PUBREC and PUBREL, and had its session kept but not its memory, counts
// from 1 again. Its new message was acknowledged, and not stored.
func TestMQTT_PacketIDOfAnotherMessageIsNoRepetition(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		first := dialMQTT(t, m.Addr(), version, "!belt")
		first.publish(t, 2, 1, "sensors/belt/hr", "61")
		first.expectAck(t, kPubrec, 1)
		first.Close()
		again := dialMQTT(t, m.Addr(), version, "!belt")
		for _, send := range []func(*testing.T){
			func(t *testing.T) { again.publish(t, 2, 1, "sensors/belt/hr", "62") },
			func(t *testing.T) { again.publishDup(t, 2, 1, "sensors/belt/hr", "62") }, // that is one
			func(t *testing.T) { again.publish(t, 2, 1, "sensors/belt/rr", "62") },
		} {
			send(t)
			if reason := again.expectAck(t, kPubrec, 1); reason != 0 {
				t.Errorf("PUBREC says %#x", reason)
			}
		}
		again.send(t, packet(0x62, []byte{0, 1})) // PUBREL
		again.expectAck(t, kPubcomp, 1)
		again.publish(t, 2, 1, "sensors/belt/rr", "62") // its id is free
		again.expectAck(t, kPubrec, 1)
		if stored := store.awaitStored(t, 4); len(stored) != 4 {
			t.Errorf("stored are %v", stored)
		}
	})
}

// The commit of a message whose packet id another one has taken is not that one's.
func TestSession_CommitIsOfItsOwnMessage(t *testing.T) {
	const first, second, third = 1, 2, 3 // contents
	want := func(s *session, content uint32, want standing) {
		t.Helper()
		if is := s.begin(7, content); is != want {
			t.Errorf("begin of %d says %d, want %d", content, is, want)
		}
	}
	for _, committed := range []bool{true, false} {
		s := &session{conn: &mqttConn{}}
		want(s, first, unknownID)
		want(s, second, unknownID)
		if now, _ := s.stored(7, first, committed); now != nil {
			t.Error("the first one's commit is answered")
		}
		want(s, second, pendingID)
		if now, repeated := s.stored(7, second, true); now != s.conn || !repeated {
			t.Error("the second one's commit is not answered")
		}
		want(s, second, receivedID)
	}
	s := &session{}
	want(s, first, unknownID)
	want(s, second, unknownID)
	s.withdraw(7) // the second one is refused: its id is free
	s.stored(7, first, true)
	want(s, third, unknownID)
}

// TestMQTT_OnlyWhoAskedIsAnswered: a connection that has not sent a QoS 2 message
// again would take its PUBREC for that of another message with the packet id.
func TestMQTT_OnlyWhoAskedIsAnswered(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		store.hold()
		for n := range 2 { // sends it, sends it again
			c := dialMQTT(t, m.Addr(), version, "!belt")
			if n == 0 {
				c.publish(t, 2, 5, "sensors/belt/hr", "61")
			} else {
				c.publishDup(t, 2, 5, "sensors/belt/hr", "61")
			}
			store.awaitQueued(t, 1)
			c.expectAlive(t)
			c.Close()
		}
		c := dialMQTT(t, m.Addr(), version, "!belt")
		c.expectAlive(t)
		store.release()
		store.awaitStored(t, 1)
		c.publish(t, 1, 6, "sensors/belt/hr", "62") // its answer comes behind any of before
		c.expectAck(t, kPuback, 6)
		c.publishDup(t, 2, 5, "sensors/belt/hr", "61")
		c.expectAck(t, kPubrec, 5)
		if stored := store.stored(); len(stored) != 2 {
			t.Errorf("stored are %v", stored)
		}
	})
}

// TestMQTT_RefusalIsNoSuccessInAnOlderVersion: a client of 3.1.1 can't be told
// that the store is full, so what it sent with 5, and sent again, ends its
// connection.
func TestMQTT_RefusalIsNoSuccessInAnOlderVersion(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	store.hold()
	c, _ := enter(t, m, 5, login5("!belt", 3600))
	c.publish(t, 2, 5, "sensors/belt/hr", "61")
	store.awaitQueued(t, 1)
	c.Close()
	c = dialMQTT(t, m.Addr(), 4, "!belt")
	c.publishDup(t, 2, 5, "sensors/belt/hr", "61")
	c.expectAlive(t)
	store.setFail(full{time.Millisecond})
	store.release()
	c.expectClosed(t)
}

// TestMQTT_WhoUnsubscribesFromWhatIsNotItsOwnSilencesNobody: mochi counts such a
// one, too.
func TestMQTT_WhoUnsubscribesFromWhatIsNotItsOwnSilencesNobody(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
		unsubscribe := func(c *rawClient) {
			body := []byte{0, 1}
			if version == 5 {
				body = append(body, 0)
			}
			body = appendString(appendString(body, "sensors/#"), "sensors/#") // twice counts once
			c.send(t, packet(0xa2, body))
			c.expect(t, kUnsuback)
		}
		display := dialMQTT(t, m.Addr(), version, "display")
		display.send(t, subscribePacket(version, "sensors/#", 0))
		display.expect(t, kSuback)
		other := dialMQTT(t, m.Addr(), version, "other")
		unsubscribe(other)
		hears(t, m, display)
		other.send(t, subscribePacket(version, "sensors/#", 0))
		other.expect(t, kSuback)
		unsubscribe(other)
		hears(t, m, display)
		unsubscribe(display)
		if m.hasSubscribers() {
			t.Error("nobody listens any more, and messages are still passed on")
		}
	})
}

// TestMQTT5_SessionEndsWhenTheClientSaid, within an hour: CONNACK says so, and
// DISCONNECT has the last word.
func TestMQTT5_SessionEndsWhenTheClientSaid(t *testing.T) {
	const forever = 1<<32 - 1
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	capped := string([]byte{packets.PropSessionExpiryInterval, 0, 0, 14, 16})
	for n, test := range []struct {
		asked int64
		goes  []byte // DISCONNECT
		told  bool   // of an hour
		stays bool   // an hour
	}{
		{60, []byte{0xe0, 0}, false, false},
		{forever, []byte{0xe0, 0}, true, true},
		{1, disconnect5(forever), false, true},
		{forever, disconnect5(0), true, false},
	} {
		client := fmt.Sprint("display-", n)
		c, connack := enter(t, m, 5, login5(client, test.asked))
		if told := strings.Contains(string(connack.body), capped); told != test.told {
			t.Errorf("%d: CONNACK tells of an hour: %v, want %v", n, told, test.told)
		}
		began := time.Now()
		c.send(t, test.goes)
		var stays time.Duration
		eventually(t, "it has left", func() bool {
			m.sessions.mu.Lock()
			defer m.sessions.mu.Unlock()
			s := m.sessions.byID[client]
			if s != nil {
				stays = s.until.Sub(began)
			}
			return s == nil || s.owner == nil
		})
		if long := stays > sessionExpiry-time.Minute; long != test.stays || stays > sessionExpiry+patience {
			t.Errorf("%d: the session stays for %s", n, stays)
		}
	}
}

func disconnect5(expiry int64) []byte {
	return packet(0xe0, []byte{0, 5, packets.PropSessionExpiryInterval, byte(expiry >> 24), byte(expiry >> 16), byte(expiry >> 8), byte(expiry)})
}

// stuckLog takes its time for the record of a session that had to be forgotten.
type stuckLog struct {
	slog.Handler
	began, goOn chan struct{}
}

func (l stuckLog) Enabled(context.Context, slog.Level) bool { return true }

func (l stuckLog) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "session forgotten") {
		close(l.began)
		<-l.goOn
	}
	return nil
}

func TestMQTT_LogHoldsNobodyUp(t *testing.T) {
	log := stuckLog{slog.DiscardHandler, make(chan struct{}), make(chan struct{})}
	m := startMQTT(t, newTestIntake(t, newStore(t)), func(o *MQTTOptions) { o.MaxConnections = 3 }, slog.New(log))
	defer close(log.goOn)
	for i := range 4 {
		c, _ := enter(t, m, 5, login5(fmt.Sprint("display-", i), 3600))
		c.send(t, []byte{0xe0, 0})
		c.expectClosed(t)
	}
	<-log.began
	if _, connack := enter(t, m, 5, login5("other", -1)); connack.body[1] != 0 {
		t.Errorf("CONNACK says %#x", connack.body[1])
	}
}
