package sensors

import (
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"touchline"
)

func TestMQTT_BadInputEndsOnlyItsOwnConnection(t *testing.T) {
	long := strings.Repeat("x", 129)
	topic := func(topic string) func(byte) []byte {
		return func(version byte) []byte { return publishPacket(version, 0, 0, topic, "1") }
	}
	bytes := func(s string) func(byte) []byte { return func(byte) []byte { return []byte(s) } }
	for _, tc := range []struct {
		name   string
		send   func(version byte) []byte
		reason byte // of MQTT 5's DISCONNECT; 0 where mochi closes without one
		cause  Cause
		log    string
	}{
		{"foreign topic", topic("home/kitchen"), 0x90, CauseTopic, "home/kitchen"},
		{"no sensor", topic("sensors/"), 0x90, CauseTopic, "sensor name is empty"},
		{"too many levels", topic("sensors/a/b/c"), 0x90, CauseTopic, "more than three levels"},
		{"long sensor", topic("sensors/" + long), 0x90, CauseTopic, "at most 128"},
		{"long metric", topic("sensors/a/" + long), 0x90, CauseTopic, "at most 128"},
		{"control character", topic("sensors/a\x01b"), 0x90, CauseTopic, "control character"},
		{"system topic", topic("$SYS/broker/uptime"), 0x90, CauseTopic, "$SYS"},
		{"wildcard", topic("sensors/+"), 0x82, CauseProtocol, "wildcards"},
		{"NUL in topic", topic("sensors/a\x00b"), 0, CauseProtocol, "utf-8"},
		{"invalid UTF-8 in topic", topic("sensors/\xff\xfe"), 0, CauseProtocol, "utf-8"},
		{"large packet", func(version byte) []byte {
			return publishPacket(version, 0, 0, "sensors/a", strings.Repeat("x", 80<<10))
		}, 0, CauseTooLarge, "65536"},
		{"large payload", func(version byte) []byte {
			return publishPacket(version, 0, 0, "sensors/a", strings.Repeat("x", 65<<10))
		}, 0x95, CauseTooLarge, "65536"},
		{"reserved type", bytes("\x00\x00"), 0, CauseProtocol, ""},
		{"QoS 3", bytes("\x36\x05\x00\x01a\x00\x01"), 0, CauseProtocol, "qos"},
		{"packet id 0", func(version byte) []byte { return publishPacket(version, 1, 0, "sensors/a", "1") }, 0x82, CauseProtocol, "packet id"},
		{"endless length", bytes("\x30\xff\xff\xff\xff\xff\xff"), 0, CauseProtocol, ""},
		{"topic beyond the packet", bytes("\x30\x04\xff\xffab"), 0, CauseProtocol, ""},
		{"second CONNECT", func(version byte) []byte { return connectPacket(version, "bad", true) }, 0x82, CauseProtocol, "second connect"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			both(t, func(t *testing.T, version byte) {
				store := newStore(t)
				in := newTestIntake(t, store)
				var log logBuffer
				m := startMQTT(t, in, nil, log.logger())
				good := dialMQTT(t, m.Addr(), 4, "good")
				bad := dialMQTT(t, m.Addr(), version, "bad")
				// What came before in the same breath is stored and acknowledged.
				bad.send(t, publishPacket(version, 1, 9, "sensors/bad/hr", "9"))
				bad.expectAck(t, kPuback, 9)
				go bad.Write(tc.send(version)) // the broker may close before it has read all
				reason := bad.expectClosed(t)
				if version == 5 && reason != tc.reason {
					t.Errorf("DISCONNECT has reason %#x, want %#x", reason, tc.reason)
				}
				good.publish(t, 1, 1, "sensors/good/hr", "1")
				good.expectAck(t, kPuback, 1)
				if got := len(store.stored()); got != 2 {
					t.Errorf("%d samples are stored, want 2", got)
				}
				if tc.log == "" {
					return
				}
				eventually(t, "a log line with "+tc.log, func() bool {
					return strings.Contains(log.String(), tc.log) && strings.Contains(log.String(), "client=bad")
				})
				eventually(t, "counted as "+tc.cause.String(), func() bool { return in.Stats().Rejected[tc.cause] > 0 })
			})
		})
	}
}

func TestMQTT5_BadTopicIsToldAndTheConnectionGoesOn(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 5, "belt")
	c.send(t,
		publishPacket(5, 1, 1, "sensors/belt/hr", "1"),
		publishPacket(5, 1, 2, "home/kitchen", "2"),
		publishPacket(5, 2, 3, "home/kitchen", "3"),
		publishPacket(5, 1, 4, "sensors/belt/hr", "4"))
	c.expectAck(t, kPuback, 1)
	p := c.expect(t, kPuback)
	if p.id() != 2 || p.reason() != 0x90 || !strings.Contains(string(p.body), "sensors/<sensor>") {
		t.Fatalf("PUBACK is %q: want reason 0x90 and a word on what is allowed", p.body)
	}
	if r := c.expectAck(t, kPubrec, 3); r != 0x90 {
		t.Fatalf("PUBREC has reason %#x, want 0x90", r)
	}
	c.expectAck(t, kPuback, 4)
	if got := len(store.stored()); got != 2 {
		t.Fatalf("%d samples are stored, want 2", got)
	}
}

func TestMQTT311_GoodMessagesBeforeABadOneAreAcknowledged(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "belt")
	c.send(t, publishPacket(4, 1, 1, "sensors/belt/hr", "1"), publishPacket(4, 1, 2, "home/kitchen", "2"))
	c.expectAck(t, kPuback, 1) // or the sensor would send it again for ever
	c.expectClosed(t)
}

func TestMQTT5_LastWordReachesAClientThatGoesOnTalking(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 5, "belt")
	packets := [][]byte{publishPacket(5, 0, 0, "home/kitchen", "1")}
	for range 100 { // left unread, it would reset the connection
		packets = append(packets, publishPacket(5, 0, 0, "home/kitchen", strings.Repeat("x", 1000)))
	}
	c.send(t, packets...)
	if p := c.expect(t, kDisconnect); p.body[0] != 0x90 {
		t.Errorf("DISCONNECT has reason %#x, want 0x90", p.body[0])
	}
	if _, err := c.read(); err != io.EOF {
		t.Errorf("then the connection ended with %v, want EOF", err)
	}
}

func TestMQTT_UndecodablePayloadIsKeptWholeAndAcknowledged(t *testing.T) {
	past, ahead := `{"t":-1,"hr":1}`, fmt.Sprintf(`{"t":%d,"hr":1}`, time.Now().AddDate(101, 0, 0).UnixNano())
	for _, payload := range []string{"{", "", "\x00\xff garbage", `{"t":"yesterday","hr":1}`, past, ahead, `[{"n":"a/b","v":1},{"n":"+/x","v":1}]`} {
		both(t, func(t *testing.T, version byte) {
			store := newStore(t)
			in := newTestIntake(t, store)
			m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
			c := dialMQTT(t, m.Addr(), version, "belt")
			c.publish(t, 1, 1, "sensors/belt/hr", payload)
			if r := c.expectAck(t, kPuback, 1); r != 0 {
				t.Fatalf("PUBACK has reason %#x", r)
			}
			got := store.stored()
			if len(got) != 1 || got[0].Sensor != "belt" || got[0].Metric != touchline.MetricRaw || got[0].Value != touchline.BytesValue(payload) {
				t.Fatalf("%q is stored as %+v", payload, got)
			}
			eventually(t, "counted", func() bool { return in.Stats().Transports[TransportMQTT].Raw == 1 })
		})
	}
}

func TestMQTT_FirstPacketMustBeConnect(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	for _, first := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00", "\x30\x03\x00\x01a", "\x10\x02\x00\x04", "\x10\xff\xff\xff\x7f"} {
		c := dialRaw(t, m.Addr(), 4)
		c.send(t, []byte(first))
		c.expectClosed(t)
	}
}

func TestMQTT_RefusesBadConnects(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	will := func(version byte, topic string) []byte {
		body := append(appendString(nil, "MQTT"), version, 0x06, 0, 60)
		if version == 5 {
			body = append(body, 0)
		}
		body = appendString(body, "belt")
		if version == 5 {
			body = append(body, 0)
		}
		return packet(0x10, appendString(appendString(body, topic), "1"))
	}
	for _, tc := range []struct {
		name    string
		version byte
		connect []byte
		code    byte
	}{
		{"long client id", 4, connectPacket(4, strings.Repeat("x", 300), true), 2},
		{"long client id", 5, connectPacket(5, strings.Repeat("x", 300), true), 0x85},
		{"will on a foreign topic", 4, will(4, "home/kitchen"), 5},
		{"will on a foreign topic", 5, will(5, "home/kitchen"), 0x90},
	} {
		c := dialRaw(t, m.Addr(), tc.version)
		c.send(t, tc.connect)
		if p := c.expect(t, kConnack); p.body[1] != tc.code {
			t.Errorf("%s: CONNACK of version %d says %#x, want %#x", tc.name, tc.version, p.body[1], tc.code)
		}
		c.expectClosed(t)
	}
}

func TestMQTT_TooManyConnectionsAreTold(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), func(o *MQTTOptions) { o.MaxConnections = 2 }, slog.New(slog.DiscardHandler))
	dialMQTT(t, m.Addr(), 4, "a")
	dialMQTT(t, m.Addr(), 4, "b")
	c := dialRaw(t, m.Addr(), 5)
	c.send(t, connectPacket(5, "c", true))
	if p := c.expect(t, kConnack); p.body[1] != 0x89 {
		t.Fatalf("CONNACK says %#x, want 0x89 (server busy)", p.body[1])
	}
	c.expectClosed(t)
}

func TestMQTT_SessionsOfAbsentClientsAreBounded(t *testing.T) {
	const limit = 5
	m := startMQTT(t, newTestIntake(t, newStore(t)), func(o *MQTTOptions) { o.MaxConnections = limit }, slog.New(slog.DiscardHandler))
	for i := range 50 {
		both(t, func(t *testing.T, version byte) {
			c := dialMQTT(t, m.Addr(), version, fmt.Sprintf("!random-%d-%d", version, i))
			c.send(t, subscribePacket(version, "sensors/#", 0))
			c.expect(t, kSuback)
			c.send(t, []byte{0xe0, 0})
			c.expectClosed(t)
		})
	}
	eventually(t, "sessions forgotten", func() bool {
		m.sessions.mu.Lock()
		defer m.sessions.mu.Unlock()
		return len(m.sessions.byID) == limit && m.sessions.away == limit
	})
	if got := m.server.Clients.Len(); got > limit {
		t.Errorf("mochi remembers %d clients", got)
	}
	if got := len(m.server.Topics.Subscribers("sensors/x").Subscriptions); got > limit {
		t.Errorf("mochi remembers %d subscriptions", got)
	}
}

func TestMQTT_ExpiredSessionLeavesNothingBehind(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	c := dialRaw(t, m.Addr(), 5)
	body := append(appendString(nil, "MQTT"), 5, 0, 0, 60, 5, 17, 0, 0, 0, 1) // expires a second after its end
	c.send(t, packet(0x10, appendString(body, "brief")))
	c.expect(t, kConnack)
	c.send(t, subscribePacket(5, "sensors/#", 0))
	c.expect(t, kSuback)
	c.Close()
	eventually(t, "session, client and subscription are gone", func() bool {
		m.sessions.mu.Lock()
		defer m.sessions.mu.Unlock()
		return len(m.sessions.byID) == 0 && m.sessions.away == 0 && m.server.Clients.Len() == 0 &&
			len(m.server.Topics.Subscribers("sensors/x").Subscriptions) == 0
	})
}

func TestMQTT_GarbageCostsNeitherMemoryNorOthersSamples(t *testing.T) {
	store := newStore(t)
	store.discard = true // what is stored is the disk's memory
	in := newTestIntake(t, store)
	var log logBuffer
	m := startMQTT(t, in, nil, log.logger())
	good := dialMQTT(t, m.Addr(), 4, "good")
	bad := dialMQTT(t, m.Addr(), 4, "bad")
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	const n = 10_000
	flood := func(round int) {
		go func() {
			for i := range n {
				garbage := fmt.Sprintf(`[{"n":"sensor-%d-%d/x","v":1},{"n":"`, round, i)
				if _, err := bad.Write(publishPacket(4, 1, uint16(i%1000+1), fmt.Sprintf("sensors/junk-%d-%d", round, i), garbage)); err != nil {
					return // the test has failed already
				}
			}
		}()
		for i := range n {
			bad.expectAck(t, kPuback, uint16(i%1000+1))
			if i%100 == 0 {
				good.publish(t, 1, 1, "sensors/good/hr", "1")
				good.expectAck(t, kPuback, 1)
			}
		}
	}
	flood(0) // fills the registry of sensors, the routes and the pools
	before := heap()
	for round := 1; round <= 3; round++ {
		flood(round)
	}
	if after := heap(); after > before+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes over %d bad messages", before, after, 3*n)
	}
	if lines := strings.Count(log.String(), "\n"); lines > 100 {
		t.Errorf("%d lines were logged", lines)
	}
	s := in.Stats()
	if len(s.Sensors) > 1000 || s.Transports[TransportMQTT].Raw != 4*n {
		t.Errorf("%d sensors are remembered and %d messages kept raw", len(s.Sensors), s.Transports[TransportMQTT].Raw)
	}
	good.Close()
	if _, err := good.Read(make([]byte, 1)); err == io.EOF {
		t.Error("the good connection was closed")
	}
}
