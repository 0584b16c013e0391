package sensors

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"touchline"
)

// both runs a test with MQTT 3.1.1 and MQTT 5.
func both(t *testing.T, f func(t *testing.T, version byte)) {
	t.Run("3.1.1", func(t *testing.T) { f(t, 4) })
	t.Run("5", func(t *testing.T) { f(t, 5) })
}

func TestMQTT_AcknowledgesAfterTheCommitInOrder(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		c := dialMQTT(t, m.Addr(), version, "belt")
		store.hold()
		for id := uint16(1); id <= 20; id++ {
			c.publish(t, 1+byte(id%2), id, "sensors/belt/heart_rate", fmt.Sprint(100+id))
			store.awaitQueued(t, int(id)) // each is taken although none before is acknowledged
		}
		c.expectAlive(t) // and nothing was said about any of them
		store.release()
		for id := uint16(1); id <= 20; id++ {
			kind := byte(kPuback)
			if id%2 == 1 {
				kind = kPubrec
			}
			if reason := c.expectAck(t, kind, id); reason != 0 {
				t.Fatalf("packet %d has reason %#x", id, reason)
			}
		}
		for i, s := range store.awaitStored(t, 20) {
			want := touchline.Sample{Sensor: "belt", Metric: "heart_rate", Time: s.Time, Stamped: true, Value: touchline.NumberValue(float64(101 + i))}
			if s != want {
				t.Fatalf("sample %d is %+v, want %+v", i, s, want)
			}
		}
	})
}

func TestMQTT_AcknowledgementsOfABatchLeaveInOneWrite(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "belt")
	const n = 50
	var packets [][]byte
	for id := uint16(1); id <= n; id++ {
		packets = append(packets, publishPacket(4, 1, id, "sensors/belt/hr", "1"))
	}
	c.send(t, packets...) // 29 bytes each: one read of the broker takes them all
	buf := make([]byte, 4*n+1)
	got, err := c.Conn.Read(buf)
	if err != nil || got != 4*n {
		t.Fatalf("the first read has %d bytes, %v; want all %d acknowledgements", got, err, n)
	}
}

func TestMQTT_WindowBoundsWhatIsInFlight(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), func(o *MQTTOptions) { o.Window = 4 }, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "belt")
	store.hold()
	for id := uint16(1); id <= 12; id++ {
		c.publish(t, 1, id, "sensors/belt/hr", fmt.Sprint(id))
	}
	store.awaitQueued(t, 4)
	other := dialMQTT(t, m.Addr(), 4, "other") // is not held up
	other.publish(t, 0, 0, "sensors/other/hr", "1")
	store.awaitQueued(t, 5)
	store.mu.Lock()
	n := 0
	for _, a := range store.queue {
		n += len(a.samples)
	}
	store.mu.Unlock()
	if n != 5 {
		t.Fatalf("%d samples were taken with a window of 4 and one of the other connection", n)
	}
	store.release()
	for id := uint16(1); id <= 12; id++ {
		c.expectAck(t, kPuback, id)
	}
}

func TestMQTT_FailedCommitIsNotAcknowledgedAndEndsTheConnection(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		in := newTestIntake(t, store)
		m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
		c := dialMQTT(t, m.Addr(), version, "!belt")
		store.setFail(errCommit)
		c.send(t, publishPacket(version, 1, 1, "sensors/belt/hr", "1"), publishPacket(version, 2, 2, "sensors/belt/hr", "2"))
		c.expectClosed(t) // fails on any acknowledgement
		store.setFail(nil)

		c = dialMQTT(t, m.Addr(), version, "!belt")
		c.send(t, publishPacket(version, 1, 1, "sensors/belt/hr", "1"), publishPacket(version, 2, 2, "sensors/belt/hr", "2"))
		c.expectAck(t, kPuback, 1)
		c.expectAck(t, kPubrec, 2)
		if got := len(store.stored()); got != 2 {
			t.Fatalf("%d samples are stored, want 2", got)
		}
		if s := in.Stats().Transports[TransportMQTT]; s.Failed != 2 || s.Samples != 2 || s.Messages != 4 {
			t.Fatalf("stats are %+v", s)
		}
	})
}

func TestMQTT_NothingIsAcknowledgedAfterAFailedCommit(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		store.reverse = true // so that all three answers are there at once
		store.failIf = func(samples []touchline.Sample) error {
			if samples[0].Value.Float() == 2 {
				return errCommit
			}
			return nil
		}
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		c := dialMQTT(t, m.Addr(), version, "belt")
		store.hold()
		for id := uint16(1); id <= 3; id++ {
			c.publish(t, 1, id, "sensors/belt/hr", fmt.Sprint(id))
			store.awaitQueued(t, int(id))
		}
		store.release()
		c.expectAck(t, kPuback, 1)
		c.expectClosed(t) // fails on an acknowledgement of 2 or 3
		if got := len(store.stored()); got != 2 {
			t.Errorf("%d samples are stored, want 2", got)
		}
	})
}

func TestMQTT_FailedCommitOfARepeatedQoS2MessageEndsTheNewConnection(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	publish := publishPacket(4, 2, 7, "sensors/belt/hr", "1")
	c := dialMQTT(t, m.Addr(), 4, "!belt")
	store.hold()
	store.setFail(errCommit)
	c.send(t, publish)
	store.awaitQueued(t, 1)
	c.Close()
	c = dialMQTT(t, m.Addr(), 4, "!belt")
	c.send(t, publish)
	c.expectAlive(t)
	store.release()
	c.expectClosed(t) // or it would wait for PUBREC for ever
	store.setFail(nil)
	c = dialMQTT(t, m.Addr(), 4, "!belt")
	c.send(t, publish)
	c.expectAck(t, kPubrec, 7)
	if got := len(store.stored()); got != 1 {
		t.Errorf("%d samples are stored, want 1", got)
	}
}

func TestMQTT5_FullStoreIsToldQuotaExceeded(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 5, "belt")
	store.setRefuse(full{time.Minute})
	c.send(t, publishPacket(5, 1, 1, "sensors/belt/hr", "1"), publishPacket(5, 2, 2, "sensors/belt/hr", "2"))
	if r := c.expectAck(t, kPuback, 1); r != 0x97 {
		t.Fatalf("PUBACK has reason %#x, want 0x97", r)
	}
	if r := c.expectAck(t, kPubrec, 2); r != 0x97 {
		t.Fatalf("PUBREC has reason %#x, want 0x97", r)
	}
	store.setRefuse(nil)
	c.publish(t, 2, 2, "sensors/belt/hr", "2") // the id is free again
	if r := c.expectAck(t, kPubrec, 2); r != 0 {
		t.Fatalf("PUBREC has reason %#x, want success", r)
	}
	if got := len(store.stored()); got != 1 {
		t.Fatalf("%d samples are stored, want 1", got)
	}
	eventually(t, "two refused messages counted", func() bool { return in.Stats().Transports[TransportMQTT].Refused == 2 })
}

func TestMQTT311_FullStoreWithholdsPuback(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	m := startMQTT(t, in, func(o *MQTTOptions) { o.Patience = time.Hour }, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "belt")
	refusals := 0
	store.setRefuse(full{time.Millisecond})
	c.publish(t, 1, 1, "sensors/belt/hr", "1")
	store.await(t, "asked again and again", func() bool { refusals++; return refusals > 5 })
	store.setRefuse(nil)
	c.expectAck(t, kPuback, 1)
	if got := len(store.stored()); got != 1 {
		t.Fatalf("%d samples are stored, want 1", got)
	}
}

func TestMQTT311_FullStoreEndsTheConnectionWhenPatienceDoes(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), func(o *MQTTOptions) { o.Patience = 20 * time.Millisecond }, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "belt")
	store.setRefuse(full{time.Minute})
	c.publish(t, 1, 1, "sensors/belt/hr", "1")
	c.expectClosed(t)
}

func TestMQTT_QoS2IsStoredOnce(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		again := publishPacket(version, 2, 7, "sensors/belt/hr", "1")
		dup := append([]byte(nil), again...)
		dup[0] |= 8

		c := dialMQTT(t, m.Addr(), version, "!belt")
		store.hold()
		c.send(t, again)
		store.awaitQueued(t, 1)
		c.Close() // the connection is lost while the commit runs
		c = dialMQTT(t, m.Addr(), version, "!belt")
		c.send(t, dup)
		c.expectAlive(t)
		store.release()
		if r := c.expectAck(t, kPubrec, 7); r != 0 {
			t.Fatalf("PUBREC has reason %#x", r)
		}
		c.Close() // and again before PUBREL
		c = dialMQTT(t, m.Addr(), version, "!belt")
		c.send(t, dup)
		if r := c.expectAck(t, kPubrec, 7); r != 0 {
			t.Fatalf("PUBREC of the repetition has reason %#x", r)
		}
		c.send(t, []byte{0x62, 2, 0, 7})
		if r := c.expectAck(t, kPubcomp, 7); r != 0 {
			t.Fatalf("PUBCOMP has reason %#x", r)
		}
		if got := len(store.stored()); got != 1 {
			t.Fatalf("%d samples are stored, want 1", got)
		}
		c.send(t, []byte{0x62, 2, 0, 7}) // a repeated PUBREL is answered too
		want := byte(0)
		if version == 5 {
			want = 0x92
		}
		if r := c.expectAck(t, kPubcomp, 7); r != want {
			t.Fatalf("second PUBCOMP has reason %#x, want %#x", r, want)
		}
		c.send(t, again) // the id is free for another message
		c.expectAck(t, kPubrec, 7)
		store.awaitStored(t, 2)
	})
}

func TestMQTT_PubrelBeforePubrecEndsTheConnection(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "belt")
	c.send(t, publishPacket(4, 2, 1, "sensors/belt/hr", "1"), []byte{0x62, 2, 0, 1}) // in one read of the broker
	c.expectAck(t, kPubrec, 1)                                                       // what was sent before is still answered
	c.expectClosed(t)
}

func TestMQTT_SecondConnectionOfAClientIDEndsTheFirst(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		var log logBuffer
		m := startMQTT(t, newTestIntake(t, store), nil, log.logger())
		first := dialMQTT(t, m.Addr(), version, "twin")
		second := dialMQTT(t, m.Addr(), version, "twin")
		want := byte(0)
		if version == 5 {
			want = 0x8e
		}
		if r := first.expectClosed(t); r != want {
			t.Fatalf("the first connection ended with reason %#x, want %#x", r, want)
		}
		second.send(t, subscribePacket(version, "sensors/#", 0))
		second.expect(t, kSuback)
		second.publish(t, 1, 1, "sensors/twin/hr", "1")
		second.expectAck(t, kPuback, 1)
		second.expect(t, kPublish) // the newer one is the one that mochi knows
		if !strings.Contains(log.String(), "client=twin") {
			t.Fatalf("the log does not name the client:\n%s", &log)
		}
	})
}

func TestMQTT_TakenMessagesOfADisconnectingClientAreStored(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := dialRaw(t, m.Addr(), 4)
	c.send(t, connectPacket(4, "brief", true), publishPacket(4, 0, 0, "sensors/brief/hr", "1"), []byte{0xe0, 0})
	store.awaitStored(t, 1)
}

func TestMQTT_WillIsStoredAndPassedOn(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	display := dialMQTT(t, m.Addr(), 4, "display")
	display.send(t, subscribePacket(4, "sensors/belt/state", 0))
	display.expect(t, kSuback)
	c := dialRaw(t, m.Addr(), 4)
	body := append(appendString(nil, "MQTT"), 4, 0x06, 0, 60)
	body = appendString(appendString(appendString(body, "belt"), "sensors/belt/state"), `"gone"`)
	c.send(t, packet(0x10, body))
	c.expect(t, kConnack)
	c.Close()
	got := store.awaitStored(t, 1)[0]
	if got.Sensor != "belt" || got.Metric != "state" || got.Value != touchline.TextValue("gone") {
		t.Fatalf("the will is stored as %+v", got)
	}
	if p := display.expect(t, kPublish); !strings.HasSuffix(string(p.body), `"gone"`) {
		t.Fatalf("the display got %q", p.body)
	}
}

func TestMQTT5_TopicAliasesWork(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 5, "belt")
	alias := func(id uint16, topic, payload string) []byte {
		body := append(appendString(nil, topic), byte(id>>8), byte(id), 3, 35, 0, 1)
		return packet(0x32, append(body, payload...))
	}
	c.send(t, alias(1, "sensors/belt/hr", "1"), alias(2, "", "2"))
	c.expectAck(t, kPuback, 1)
	c.expectAck(t, kPuback, 2)
	for i, s := range store.awaitStored(t, 2) {
		if s.Sensor != "belt" || s.Metric != "hr" || s.Value.Float() != float64(i+1) {
			t.Fatalf("sample %d is %+v", i, s)
		}
	}
	c = dialMQTT(t, m.Addr(), 5, "belt2")
	c.send(t, alias(1, "", "1"))
	if r := c.expectClosed(t); r != 0x94 {
		t.Fatalf("an alias that was never set ended the connection with %#x, want 0x94", r)
	}
}

func TestMQTT_EndsPolitely(t *testing.T) {
	store := newStore(t)
	m, err := ListenMQTT(MQTTOptions{Address: "127.0.0.1:0", PayloadBytes: 1024, MaxConnections: 10, Window: 10, Patience: time.Second, Subscribers: 64, SubscriberQueue: 64},
		newTestIntake(t, store), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	c4, c5, waiting := dialMQTT(t, m.Addr(), 4, "a"), dialMQTT(t, m.Addr(), 5, "b"), dialMQTT(t, m.Addr(), 5, "c")
	mute := dialRaw(t, m.Addr(), 4) // never says CONNECT
	store.hold()
	waiting.publish(t, 1, 1, "sensors/c/hr", "1")
	store.awaitQueued(t, 1)
	cancel()
	c4.expectClosed(t)
	mute.expectClosed(t)
	if r := c5.expectClosed(t); r != 0x8b {
		t.Fatalf("MQTT 5 client was told %#x, want 0x8b (server shutting down)", r)
	}
	select {
	case <-ran:
		t.Fatal("Run returned before the store had answered")
	default:
	}
	store.release()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
}

func TestListenMQTT_SaysWhatIsWrong(t *testing.T) {
	in := newTestIntake(t, newStore(t))
	_, err := ListenMQTT(MQTTOptions{Window: 70000}, in, slog.New(slog.DiscardHandler))
	for _, want := range []string{"address", "payload bytes", "max connections", "window is 70000", "patience"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("the error is %v, which does not say %q", err, want)
		}
	}
	m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
	_, err = ListenMQTT(MQTTOptions{Address: m.Addr().String(), PayloadBytes: 1, MaxConnections: 1, Window: 1, Patience: 1, Subscribers: 64, SubscriberQueue: 64}, in, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), m.Addr().String()) {
		t.Fatalf("a port in use gives %v, which does not name it", err)
	}
}
