package sensors

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// manyConnections is for sensors whose last connection may not be gone yet.
func manyConnections(o *AccessOptions) { o.PerSensor = 100 }

// leave publishes a retained message and waits until it is retained.
func leave(t *testing.T, m *MQTT, c *rawClient, topic, payload string) {
	t.Helper()
	p := publishPacket(c.version, 1, 1, topic, payload)
	p[0] |= 1
	c.send(t, p)
	if reason := c.expectAck(t, kPuback, 1); reason != 0 {
		t.Fatalf("PUBLISH to %s: reason %#x", topic, reason)
	}
	eventually(t, "the message to be retained", func() bool {
		pk, ok := m.server.Topics.Retained.Get(topic)
		return ok && string(pk.Payload) == payload
	})
	c.expectAlive(t)
}

// sees subscribes, and returns the topics and payloads that are there already.
func (v *venue) sees(t *testing.T, m *MQTT, sensor, filter string) []string {
	t.Helper()
	l := loginPacket{client: "looks"}
	if sensor != "" {
		l.user, l.password = sensor, v.key[sensor]
	}
	c, answer := l.try(t, m.Addr(), 4)
	if answer.body[1] != 0 {
		t.Fatalf("%s: CONNACK says %#x", sensor, answer.body[1])
	}
	defer c.Close()
	c.send(t, subscribePacket(4, filter, 0))
	if p := c.expect(t, kSuback); p.body[len(p.body)-1] != 0 {
		t.Fatalf("%s: subscription to %s: %#x", sensor, filter, p.body[len(p.body)-1])
	}
	// Once PINGREQ is answered, what is retained is in the subscriber's queue, and
	// the mark comes behind it.
	c.send(t, []byte{0xc0, 0})
	var seen []string
	for {
		p, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if p.kind == kPingresp {
			break
		}
		seen = addOnce(seen, messageOf(p))
	}
	owner := strings.Split(filter+"/#", "/")[1]
	if strings.ContainsAny(owner, "+#") {
		owner = "belt-18"
	}
	mark, _ := loginPacket{client: "mark", user: owner, password: v.key[owner]}.try(t, m.Addr(), 4)
	defer mark.Close()
	mark.publish(t, 0, 0, "sensors/"+owner+"/hr", "-1")
	for {
		text := messageOf(c.expect(t, kPublish))
		if strings.HasSuffix(text, " -1") {
			return seen
		}
		seen = addOnce(seen, text)
	}
}

// addOnce adds a message that is not there yet: what was retained just now may
// come twice, as what is retained and as what is new.
func addOnce(seen []string, message string) []string {
	if slices.Contains(seen, message) {
		return seen
	}
	return append(seen, message)
}

// suback reads SUBACK, behind a mark that came for an earlier subscription of
// the same session.
func suback(t *testing.T, c *rawClient) mqttPacket {
	t.Helper()
	for {
		p, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if p.kind == kSuback {
			return p
		}
		if p.kind != kPublish || !strings.HasSuffix(string(p.body), "-1") {
			t.Fatalf("got packet type %d % x before SUBACK", p.kind, p.body)
		}
	}
}

// messageOf returns topic and payload of a PUBLISH in MQTT 3.1.1, QoS 0.
func messageOf(p mqttPacket) string {
	n := 2 + int(p.id())
	return fmt.Sprintf("%s %s", p.body[2:n], p.body[n:])
}

// TestAttack_WhatAStrangerLeftIsNotTheWordOfWhoGetsTheName: retained messages
// outlive their connection, and a name may get a key meanwhile.
func TestAttack_WhatAStrangerLeftIsNotTheWordOfWhoGetsTheName(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		v := newVenue(t, func(o *AccessOptions) { manyConnections(o); o.Rules.Anonymous = true })
		m := startMQTT(t, v.in, nil, v.log.logger())
		stranger, answer := loginPacket{client: "stranger"}.try(t, m.Addr(), version)
		if answer.body[1] != 0 {
			t.Fatalf("CONNACK says %#x", answer.body[1])
		}
		leave(t, m, stranger, "sensors/belt-99/hr", "255")
		leave(t, m, stranger, "sensors/belt-98", `[{"bn":"belt-97/","n":"hr","v":254}]`)
		leave(t, m, stranger, "sensors/belt-96/hr", "80")
		dying, _ := loginPacket{client: "dying", will: "sensors/belt-99/last", willPayload: "253"}.try(t, m.Addr(), version)
		if seen := v.sees(t, m, "display", "sensors/+/hr"); len(seen) != 2 {
			t.Fatalf("before anybody has a key, the display sees %q: want two", seen)
		}
		for _, sensor := range []string{"belt-99", "belt-97"} {
			key, err := v.keys.Add(sensor, "")
			if err != nil {
				t.Fatal(err)
			}
			v.key[sensor] = key.Reveal()
		}
		v.access.review()
		before := v.in.Stats().Rejected[CauseAccess]
		dying.Close()
		eventually(t, "the will to be dropped", func() bool { return v.in.Stats().Rejected[CauseAccess] > before })
		for _, who := range []string{"", "display"} {
			filter := "sensors/#"
			if who == "display" {
				filter = "sensors/+/hr"
			}
			if seen := v.sees(t, m, who, filter); len(seen) != 1 || seen[0] != "sensors/belt-96/hr 80" {
				t.Errorf("%q sees %q: want what is of belt-96 alone", who, seen)
			}
		}
		// The sensor itself is heard, and sees nothing of the stranger's.
		if seen := v.sees(t, m, "belt-99", "sensors/belt-99/#"); len(seen) != 0 {
			t.Errorf("belt-99 sees %q under its name", seen)
		}
		leave(t, m, v.connect(t, m.Addr(), version, "belt-99"), "sensors/belt-99/hr", "61")
		if seen := v.sees(t, m, "display", "sensors/+/hr"); !strings.Contains(fmt.Sprint(seen), "sensors/belt-99/hr 61") || len(seen) != 2 {
			t.Errorf("the display sees %q: want belt-99's own word and belt-96's", seen)
		}
		for _, s := range v.store.stored() {
			if s.Metric == "last" {
				t.Errorf("the stranger's will is stored: %+v", s)
			}
		}
	})
}

// TestAttack_WhatARevokedKeyLeftGoesWithIt: who had stolen it must not go on
// speaking.
func TestAttack_WhatARevokedKeyLeftGoesWithIt(t *testing.T) {
	v := newVenue(t, manyConnections)
	m := startMQTT(t, v.in, nil, v.log.logger())
	leave(t, m, v.connect(t, m.Addr(), 5, "belt-17"), "sensors/belt-17/hr", "255")
	leave(t, m, v.connect(t, m.Addr(), 5, "belt-18"), "sensors/belt-18/hr", "62")
	leave(t, m, v.connect(t, m.Addr(), 5, "receiver"), "sensors/belt-30/hr", "63")
	for _, sensor := range []string{"belt-17", "receiver"} {
		if err := v.keys.Revoke(sensor); err != nil {
			t.Fatal(err)
		}
	}
	if seen := v.sees(t, m, "display", "sensors/+/hr"); len(seen) != 1 || seen[0] != "sensors/belt-18/hr 62" {
		t.Errorf("the display sees %q: want what is of belt-18 alone", seen)
	}
}

// TestAttack_ASubscriberSeesWhatItMay of what is retained, and of what comes,
// also with filters that are wider than its rule, in a session that goes on,
// and with a rule for another one.
func TestAttack_ASubscriberSeesWhatItMay(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		v := newVenue(t, manyConnections)
		m := startMQTT(t, v.in, nil, v.log.logger())
		belt := v.connect(t, m.Addr(), version, "belt-17")
		leave(t, m, belt, "sensors/belt-17/hr", "61")
		leave(t, m, belt, "sensors/belt-17/position", "7")
		for filter, granted := range map[string]bool{
			"#": false, "sensors/#": false, "sensors/+/+": false, "+/+/hr": false, "sensors/belt-17/hr": false, "sensors/+/hr": false,
			"sensors/belt-18/#": true, "sensors/belt-18/+": true, "sensors/belt-18/hr": true,
		} {
			c, _ := loginPacket{client: "c", user: "belt-18", password: v.key["belt-18"], keep: true}.try(t, m.Addr(), version)
			c.send(t, subscribePacket(version, filter, 0))
			if p := suback(t, c); (p.body[len(p.body)-1] < 0x80) != granted {
				t.Errorf("%s: SUBACK says %#x", filter, p.body[len(p.body)-1])
			}
			c.Close()
			if granted {
				if seen := v.sees(t, m, "belt-18", filter); len(seen) != 0 {
					t.Errorf("%s: belt-18 sees %q", filter, seen)
				}
			}
		}
		seen := v.sees(t, m, "display", "sensors/+/hr")
		if len(seen) != 1 || seen[0] != "sensors/belt-17/hr 61" {
			t.Errorf("the display sees %q: want the heart rate of belt-17 alone", seen)
		}
	})
}

// TestAttack_ASubscriptionEndsWithItsRule: a session keeps its subscriptions
// while its client is away, and its sensor's key may be another one's by then.
func TestAttack_ASubscriptionEndsWithItsRule(t *testing.T) {
	v := newVenue(t, manyConnections)
	m := startMQTT(t, v.in, nil, v.log.logger())
	l := loginPacket{client: "tablet", user: "display", password: v.key["display"], keep: true}
	c, _ := l.try(t, m.Addr(), 4)
	c.send(t, subscribePacket(4, "sensors/+/hr", 0))
	c.expect(t, kSuback)
	if err := v.keys.Revoke("display"); err != nil {
		t.Fatal(err)
	}
	v.access.review()
	c.expectClosed(t)
	belt := v.connect(t, m.Addr(), 5, "belt-17")
	belt.publish(t, 1, 1, "sensors/belt-17/hr", "61")
	belt.expectAck(t, kPuback, 1)
	belt.expectAlive(t)
	for _, again := range []loginPacket{l, {client: "tablet", user: "belt-18", password: v.key["belt-18"], keep: true}} {
		c, answer := again.try(t, m.Addr(), 4)
		if again.user == "display" {
			if answer.body[1] == 0 {
				t.Error("the revoked display came in")
			}
			continue
		}
		if answer.body[0]&1 != 0 {
			t.Error("belt-18 has the display's session")
		}
		c.expectAlive(t)
	}
}
