package sensors

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

func TestMQTT_SubscribersGetWhatIsDurable(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		store := newStore(t)
		m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
		display := dialMQTT(t, m.Addr(), version, "display")
		display.send(t, subscribePacket(version, "sensors/+/hr", 1))
		if p := display.expect(t, kSuback); p.body[len(p.body)-1] != 0 {
			t.Fatalf("SUBACK grants QoS %d, want 0", p.body[len(p.body)-1])
		}
		belt := dialMQTT(t, m.Addr(), version, "belt")
		store.hold()
		for qos := byte(0); qos <= 2; qos++ {
			belt.publish(t, qos, uint16(qos), "sensors/belt/hr", fmt.Sprint(qos))
			store.awaitQueued(t, int(qos)+1)
		}
		display.expectAlive(t) // and nothing is shown that could still be lost
		store.release()
		for qos := 0; qos <= 2; qos++ {
			if p := display.expect(t, kPublish); !strings.HasSuffix(string(p.body), fmt.Sprint(qos)) || p.flags != 0 {
				t.Fatalf("the display got %q with flags %#x, want message %d at QoS 0", p.body, p.flags, qos)
			}
		}
	})
}

func TestMQTT_SubscribersDoNotGetWhatWasNotStored(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	display := dialMQTT(t, m.Addr(), 4, "display")
	display.send(t, subscribePacket(4, "#", 0))
	display.expect(t, kSuback)
	belt := dialMQTT(t, m.Addr(), 4, "belt")
	store.setFail(errCommit)
	belt.publish(t, 1, 1, "sensors/belt/hr", "1")
	belt.expectClosed(t)
	display.expectAlive(t)
}

func TestMQTT_RetainedMessageIsForLaterSubscribers(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	belt := dialMQTT(t, m.Addr(), 4, "belt")
	publish := func(id uint16, payload string) {
		p := publishPacket(4, 1, id, "sensors/belt/hr", payload)
		p[0] |= 1
		belt.send(t, p)
		belt.expectAck(t, kPuback, id)
		belt.expectAlive(t)
	}
	subscribe := func() *rawClient {
		display := dialMQTT(t, m.Addr(), 4, "display")
		display.send(t, subscribePacket(4, "sensors/#", 0))
		display.expect(t, kSuback)
		return display
	}
	publish(1, "142")
	eventually(t, "retained", func() bool { return m.server.Topics.Retained.Len() == 1 })
	if p := subscribe().expect(t, kPublish); !strings.HasSuffix(string(p.body), "142") || p.flags != 1 {
		t.Fatalf("a later subscriber got %q with flags %#x", p.body, p.flags)
	}
	publish(2, "") // forget it; this is no sample
	eventually(t, "forgotten", func() bool { return m.server.Topics.Retained.Len() == 0 })
	subscribe().expectAlive(t)
	if got := len(store.stored()); got != 1 {
		t.Fatalf("%d samples are stored, want 1", got)
	}
}

func TestMQTT_RetainedMessagesAreBounded(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	belt := dialMQTT(t, m.Addr(), 4, "belt")
	for i := range maxRetained + 100 {
		p := publishPacket(4, 1, uint16(i+1), fmt.Sprintf("sensors/belt-%d", i), "1")
		if i == 0 {
			p = publishPacket(4, 1, 1, "sensors/large", strings.Repeat("x", maxRetainedBytes+1))
		}
		p[0] |= 1
		belt.send(t, p)
		belt.expectAck(t, kPuback, uint16(i+1))
	}
	store.awaitStored(t, maxRetained+100)
	belt.expectAlive(t)
	eventually(t, "retained as many as may be", func() bool { return m.server.Topics.Retained.Len() == maxRetained })
	if _, ok := m.server.Topics.Retained.Get("sensors/large"); ok {
		t.Fatal("a large message is retained")
	}
}

func TestMQTT_SubscriptionsAreBounded(t *testing.T) {
	m := startMQTT(t, newTestIntake(t, newStore(t)), nil, slog.New(slog.DiscardHandler))
	c := dialMQTT(t, m.Addr(), 4, "display")
	granted := func(filter string) bool {
		c.send(t, subscribePacket(4, filter, 1))
		p := c.expect(t, kSuback)
		return p.body[len(p.body)-1] == 0
	}
	for _, filter := range []string{"$SYS/#", "$share/group/sensors/#", "sensors/" + strings.Repeat("x", 600)} {
		if granted(filter) {
			t.Errorf("%.40s is granted", filter)
		}
	}
	for i := range maxSubscriptions {
		if !granted(fmt.Sprintf("sensors/%d", i)) {
			t.Errorf("subscription %d is refused", i)
		}
	}
	if granted("sensors/more") {
		t.Error("a subscription above the limit is granted")
	}
	if !granted("sensors/0") {
		t.Error("a subscription that is held already is refused")
	}
}

func TestMQTT_SlowSubscriberHoldsNobodyUp(t *testing.T) {
	store := newStore(t)
	in := newTestIntake(t, store)
	m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
	display := dialMQTT(t, m.Addr(), 4, "display")
	display.send(t, subscribePacket(4, "sensors/#", 2))
	display.expect(t, kSuback)
	_ = display.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	// From now on it reads nothing: 6,000 messages of 3 KiB are more than
	// sockets and queue hold.
	belt := dialMQTT(t, m.Addr(), 4, "belt")
	payload := `"` + strings.Repeat("x", 3<<10) + `"`
	for i := range 6000 {
		belt.publish(t, 1, uint16(i+1), "sensors/belt/note", payload)
		belt.expectAck(t, kPuback, uint16(i+1))
	}
	if got := len(store.stored()); got != 6000 {
		t.Fatalf("%d samples are stored, want 6000", got)
	}
	eventually(t, "dropped copies counted", func() bool { return in.Stats().Dropped > 0 })
}

func TestMQTT_WorksWithPaho(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + m.Addr().String()).SetClientID("paho").SetOrderMatters(true))
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	defer c.Disconnect(250)
	const n = 2000
	var tokens []paho.Token
	for i := range n {
		tokens = append(tokens, c.Publish(fmt.Sprintf("sensors/paho-%d", i%3), byte(i%3), false, fmt.Sprintf(`{"t":%d,"i":%d}`, i+1, i)))
	}
	for _, token := range tokens {
		if token.Wait(); token.Error() != nil {
			t.Fatal(token.Error())
		}
	}
	seen := map[float64]bool{}
	for _, s := range store.awaitStored(t, n) {
		if seen[s.Value.Float()] || s.Time != int64(s.Value.Float())+1 {
			t.Fatalf("sample %+v is stored twice or with a wrong time", s)
		}
		seen[s.Value.Float()] = true
	}
}

func TestMQTT_PahoSendsAgainWhatWasNotAcknowledged(t *testing.T) {
	store := newStore(t)
	m := startMQTT(t, newTestIntake(t, store), nil, slog.New(slog.DiscardHandler))
	store.setFail(errCommit)
	lost := make(chan struct{})
	var once sync.Once
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + m.Addr().String()).SetClientID("paho").
		SetCleanSession(false).SetMaxReconnectInterval(10 * time.Millisecond).
		SetConnectionLostHandler(func(paho.Client, error) { once.Do(func() { close(lost) }) }))
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	defer c.Disconnect(250)
	c.Publish("sensors/paho/hr", 1, false, "142")
	<-lost
	if len(store.stored()) != 0 {
		t.Fatal("a failed commit stored something")
	}
	store.setFail(nil)
	// paho ends the token as it resumes; that the message came is what counts.
	if got := store.awaitStored(t, 1); got[0].Value.Float() != 142 {
		t.Fatalf("stored is %+v", got)
	}
}

// need skips a test whose program is not installed.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("%s is not installed: %v", program, err)
	}
	return path
}

func TestMQTT_WorksWithMosquittoPubAndSub(t *testing.T) {
	pub, sub := need(t, "mosquitto_pub"), need(t, "mosquitto_sub")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			store := newStore(t)
			in := newTestIntake(t, store)
			m := startMQTT(t, in, nil, slog.New(slog.DiscardHandler))
			port := fmt.Sprint(m.Addr().(*net.TCPAddr).Port)
			listen := exec.Command(sub, "-h", "127.0.0.1", "-p", port, "-V", version, "-q", "1", "-t", "sensors/#", "-v", "-C", "3")
			out, err := listen.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			listen.Stderr = &stderr
			if err := listen.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listen.Process.Kill() }) // where the test fails before its end
			eventually(t, "mosquitto_sub subscribed", m.hasSubscribers)
			for qos := range 3 {
				cmd := exec.Command(pub, "-h", "127.0.0.1", "-p", port, "-V", version, "-q", fmt.Sprint(qos), "-t", "sensors/belt/hr", "-m", fmt.Sprint(140+qos))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("mosquitto_pub: %v\n%s", err, out)
				}
				store.awaitStored(t, qos+1) // QoS 0 waits for nothing, so wait for it here
			}
			lines := bufio.NewScanner(out)
			for qos := range 3 {
				if want := fmt.Sprintf("sensors/belt/hr %d", 140+qos); !lines.Scan() || lines.Text() != want {
					t.Fatalf("mosquitto_sub printed %q, want %q", lines.Text(), want)
				}
			}
			if err := listen.Wait(); err != nil {
				t.Fatalf("mosquitto_sub: %v\n%s", err, &stderr)
			}
		})
	}
}
