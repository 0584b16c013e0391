package sensors

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// willPacket is a CONNECT with a will, and on MQTT 5 with a session that never
// expires and a will delay.
func willPacket(version byte, id, payload string, delay uint32) []byte {
	body := append(appendString(nil, "MQTT"), version, 0x04, 0, 60)
	if version == 5 {
		body = append(body, 5, 17, 0xff, 0xff, 0xff, 0xff)
	}
	body = appendString(body, id)
	if version == 5 {
		body = binary.BigEndian.AppendUint32(append(body, 5, 24), delay)
	}
	return packet(0x10, appendString(appendString(body, "sensors/"+id+"/state"), payload))
}

func TestMQTT5_DelayedWillIsStoredAtOnceAndNotKept(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	display := dialMQTT(t, m.Addr(), 5, "display")
	display.send(t, subscribePacket(5, "sensors/#", 0))
	display.expect(t, kSuback)
	const n = 20
	for i := range n {
		c := dialRaw(t, m.Addr(), 5)
		c.send(t, willPacket(5, fmt.Sprint("belt-", i), `"gone"`, 0xffffffff))
		c.expect(t, kConnack)
		c.Close()
	}
	if got := store.awaitStored(t, n); len(got) != n {
		t.Errorf("%d wills are stored, want %d", len(got), n)
	}
	for range n {
		display.expect(t, kPublish)
	}
	eventually(t, "wills of absent clients forgotten", func() bool {
		m.sessions.mu.Lock()
		defer m.sessions.mu.Unlock()
		return m.sessions.away == n
	})
	for id, cl := range m.server.Clients.GetAll() {
		if id != "display" && cl.Properties.Will.Payload != nil {
			t.Errorf("the will of %s is kept after it was sent", id)
		}
	}
}

func TestMQTT_LargeWillIsRefused(t *testing.T) {
	for version, code := range map[byte]byte{4: 5, 5: 0x95} {
		store := newStore(t)
		var log logBuffer
		m := startMQTT(t, newTestIntake(t, store), nil, log.logger())
		c := dialRaw(t, m.Addr(), version)
		c.send(t, willPacket(version, "good", strings.Repeat("x", maxWillBytes), 0))
		if p := c.expect(t, kConnack); p.body[1] != 0 {
			t.Fatalf("CONNACK of a will of %d bytes says %#x", maxWillBytes, p.body[1])
		}
		c.Close()
		store.awaitStored(t, 1)
		for _, size := range []int{maxWillBytes + 1, 64000} {
			c = dialRaw(t, m.Addr(), version)
			c.send(t, willPacket(version, "bad", strings.Repeat("x", size), 0))
			if p := c.expect(t, kConnack); p.body[1] != code {
				t.Errorf("CONNACK of version %d says %#x to a will of %d bytes, want %#x", version, p.body[1], size, code)
			}
			c.expectClosed(t)
		}
		eventually(t, "logged", func() bool { return strings.Contains(log.String(), fmt.Sprint("at most ", maxWillBytes)) })
		if got := len(store.stored()); got != 1 {
			t.Errorf("%d wills are stored, want 1", got)
		}
	}
}

func TestMQTT5_LargeConnectIsRefused(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	c := dialRaw(t, m.Addr(), 5)
	body := append(appendString(nil, "MQTT"), 5, 0x82, 0, 60, 0)
	c.send(t, packet(0x10, appendString(appendString(body, "belt"), strings.Repeat("x", maxConnectBytes)))) // as a user name
	if p := c.expect(t, kConnack); p.body[1] != 0x95 {
		t.Errorf("CONNACK says %#x, want 0x95", p.body[1])
	}
	c.expectClosed(t)
}

func TestMQTT_LargeMessageIsStoredAndNotPassedOn(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		in := newTestIntake(t, store)
		m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
		display := dialMQTT(t, m.Addr(), version, "display")
		display.send(t, subscribePacket(version, "sensors/#", 0))
		display.expect(t, kSuback)
		belt := dialMQTT(t, m.Addr(), version, "belt")
		belt.publish(t, 1, 1, "sensors/belt/large", strings.Repeat("x", maxLiveBytes))
		belt.expectAck(t, kPuback, 1)
		belt.publish(t, 1, 2, "sensors/belt/hr", "142")
		belt.expectAck(t, kPuback, 2)
		if p := display.expect(t, kPublish); !strings.HasSuffix(string(p.body), "142") {
			t.Errorf("the display got %.60q", p.body)
		}
		if got := len(store.stored()); got != 2 {
			t.Errorf("%d samples are stored, want 2", got)
		}
		if got := in.Stats().Dropped; got != 1 {
			t.Errorf("%d copies are counted as dropped, want 1", got)
		}
	})
}

func TestMQTT_SubscribersAreBoundedAndAbsentOnesGiveWay(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		in := newTestIntake(t, newStore(t))
		m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
		subscribe := func(c *rawClient) bool {
			c.send(t, subscribePacket(version, "sensors/#", 0))
			p := c.expect(t, kSuback)
			return p.body[len(p.body)-1] == 0
		}
		var first *rawClient
		for i := range m.opts.Subscribers {
			c := dialMQTT(t, m.Addr(), version, fmt.Sprint("!display-", i))
			if i == 0 {
				first = c
			}
			if !subscribe(c) {
				t.Fatalf("subscriber %d is refused", i)
			}
		}
		late := dialMQTT(t, m.Addr(), version, "late")
		if subscribe(late) {
			t.Fatal("a subscriber above the limit is let in")
		}
		if in.Stats().Rejected[CauseLimit] == 0 {
			t.Error("the refusal is not counted")
		}
		if !subscribe(first) {
			t.Error("a subscriber can't renew what it has")
		}
		first.Close() // its session stays
		eventually(t, "first is away", func() bool {
			m.sessions.mu.Lock()
			defer m.sessions.mu.Unlock()
			return m.sessions.away == 1
		})
		if !subscribe(late) {
			t.Error("an absent subscriber keeps the place of one that is here")
		}
		if _, ok := m.server.Clients.Get("!display-0"); ok {
			t.Error("mochi remembers who had to give way")
		}
		if got := len(m.server.Topics.Subscribers("sensors/x").Subscriptions); got != m.opts.Subscribers {
			t.Errorf("mochi has %d subscribers, want %d", got, m.opts.Subscribers)
		}
		late.send(t, []byte{0xe0, 0}) // a session that ends gives its place back
		late.expectClosed(t)
		if version == 4 {
			again := dialMQTT(t, m.Addr(), version, "again")
			eventually(t, "the place is free", func() bool { return subscribe(again) })
		}
	})
}

func TestMQTT_StalledPacketEndsItsConnection(t *testing.T) {
	for _, part := range []int{1, 2, 100, 60_000} {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		m.packetTimeout = 50 * time.Millisecond
		idle := dialMQTT(t, m.Addr(), 4, "idle")
		c := dialMQTT(t, m.Addr(), 4, "stalled")
		whole := publishPacket(4, 1, 2, "sensors/a/x", strings.Repeat("x", 64000))
		c.send(t, publishPacket(4, 1, 1, "sensors/a/x", "1"), whole[:part])
		c.expectAck(t, kPuback, 1)
		c.expectClosed(t)
		idle.expectAlive(t) // silence between packets is the keepalive's business
	}
}

func TestMQTT_LargePacketsAreBoundedAndSmallOnesPass(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
	if places := cap(m.large); places < 2 || places*2*(m.opts.PayloadBytes+packetOverhead) > largePacketsBytes {
		t.Fatalf("there are %d places for large packets", places)
	}
	whole := publishPacket(4, 1, 7, "sensors/a/x", strings.Repeat("x", 64000))
	held := make([]*rawClient, cap(m.large))
	for i := range held {
		held[i] = dialMQTT(t, m.Addr(), 4, fmt.Sprint("stalled-", i))
		held[i].send(t, whole[:5000])
	}
	eventually(t, "all places are taken", func() bool { return len(m.large) == cap(m.large) })
	small := dialMQTT(t, m.Addr(), 4, "small")
	small.publish(t, 1, 1, "sensors/b/x", "1")
	small.expectAck(t, kPuback, 1)
	waits := dialMQTT(t, m.Addr(), 4, "waits")
	waits.send(t, publishPacket(4, 1, 6, "sensors/a/x", "1"), whole)
	held[0].send(t, whole[5000:])
	held[0].expectAck(t, kPuback, 7)
	waits.expectAck(t, kPuback, 6)
	waits.expectAck(t, kPuback, 7)
	for _, c := range held[1:] {
		c.Close()
	}
	eventually(t, "all places are free", func() bool { return len(m.large) == 0 })
	if got := len(store.stored()); got != 4 {
		t.Errorf("%d samples are stored, want 4", got)
	}
}

func TestMQTT_LargePacketWithoutPlaceEndsItsConnection(t *testing.T) {
	in := newTestIntake(t, newStore(t))
	m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
	both(t, func(t *testing.T, version byte) {
		c := dialMQTT(t, m.Addr(), version, "late")
		m.packetTimeout = 50 * time.Millisecond
		for range cap(m.large) {
			m.large <- struct{}{}
		}
		before := in.Stats().Rejected[CauseLimit]
		go c.Write(publishPacket(version, 1, 1, "sensors/a/x", strings.Repeat("x", 64000))) // the broker may close before it has read all
		if reason := c.expectClosed(t); version == 5 && reason != 0x97 {
			t.Errorf("DISCONNECT has reason %#x, want 0x97", reason)
		}
		eventually(t, "counted", func() bool { return in.Stats().Rejected[CauseLimit] > before })
		for range cap(m.large) {
			<-m.large
		}
	})
}

func TestMQTT_CloseEndsWaitForAPlace(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "late")
	for range cap(m.large) {
		m.large <- struct{}{}
	}
	whole := publishPacket(4, 1, 1, "sensors/a/x", strings.Repeat("x", 64000))
	c.send(t, publishPacket(4, 1, 9, "sensors/a/x", "1"), whole[:5000])
	closed := make(chan error)
	go func() { closed <- m.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("Close waits for a large packet's place")
	}
}

func TestFrames_FollowsPacketsHoweverTheyAreCut(t *testing.T) {
	var all []byte
	sizes := []int{0, 1, 127, 128, 16383, 16384, 70000, 0}
	ends := map[int]bool{0: true}
	for _, n := range sizes {
		all = append(all, packet(0x30, make([]byte, n))...)
		ends[len(all)] = true
	}
	for _, step := range []int{1, 2, 3, 5, 127, 4096, len(all)} {
		var f frames
		largest := 0
		for rest := all; len(rest) > 0; {
			n := min(step, len(rest))
			f.read(rest[:n])
			if rest = rest[n:]; f.whole() != ends[len(all)-len(rest)] {
				t.Fatalf("steps of %d: after %d bytes whole is %v", step, len(all)-len(rest), f.whole())
			}
			largest = max(largest, f.size())
		}
		if step < 1000 && largest != 70000 {
			t.Errorf("steps of %d: the largest packet has %d bytes, want 70000", step, largest)
		}
	}
	var f frames
	f.read([]byte("\x30\xff\xff\xff\xff\xff\xff\xff")) // mochi ends this; it must only not panic
}
