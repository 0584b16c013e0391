package sensors

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"touchline"
	"touchline/payload"
)

func TestNewIntake_SaysWhatIsMissing(t *testing.T) {
	store := newStore(t)
	for want, o := range map[string]IntakeOptions{
		"no store":    {Now: systemTime, MaxSensors: 1, Access: openAccess(t)},
		"no clock":    {Store: store, MaxSensors: 1, Access: openAccess(t)},
		"no access":   {Store: store, Now: systemTime, MaxSensors: 1},
		"max sensors": {Store: store, Now: systemTime, Access: openAccess(t)},
	} {
		if _, err := NewIntake(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
}

func TestRegistry_ForgetsTheLongestSilentSensor(t *testing.T) {
	r := newRegistry(3)
	var one, others seenCache
	say := func(c *seenCache, name string, at int64) {
		r.add(TransportHTTP, c, []touchline.Sample{{Sensor: name}, {Sensor: name}}, at)
	}
	say(&one, "a", 1)
	say(&others, "b", 2)
	say(&others, "c", 3)
	say(&one, "a", 4) // a speaks again, without touching the heap
	say(&others, "d", 5)
	names := func() string {
		var all []string
		for _, s := range r.list() {
			all = append(all, fmt.Sprintf("%s:%d@%d", s.Name, s.Samples, s.LastSeen.UnixNano()))
		}
		return strings.Join(all, " ")
	}
	if got := names(); got != "a:4@4 c:2@3 d:2@5" {
		t.Errorf("remembered are %s", got)
	}
	say(&others, "e", 6)
	say(&others, "f", 7) // now a is gone too
	say(&one, "a", 8)    // and its connection notices
	if got := names(); got != "a:2@8 e:2@6 f:2@7" {
		t.Errorf("remembered are %s", got)
	}
	if got := r.forgotten.Load(); got != 4 {
		t.Errorf("%d are forgotten, want 4", got)
	}
}

// reverseStore answers in the wrong order.
type reverseStore struct{ waiting []func(error) }

func (s *reverseStore) AppendAsync(_ context.Context, _ touchline.Arrival, done func(error)) error {
	s.waiting = append(s.waiting, done)
	return nil
}

func TestFlow_AnswersInOrderWhateverTheStoreDoes(t *testing.T) {
	var store reverseStore
	var f flow[int]
	var p pool[int]
	var got []int
	f.init(&store, 100, 1<<20, func() {
		for {
			taken := f.take(nil)
			if len(taken) == 0 {
				return
			}
			for _, b := range taken {
				got = append(got, b.answers...)
			}
			f.release(taken)
		}
	})
	for i := range 5 {
		b := p.get(&f)
		b.samples = append(b.samples, touchline.Sample{Sensor: "a"})
		b.answers = append(b.answers, i)
		b.count(10, 0)
		f.push(b)
		if err := f.submit(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	for i := len(store.waiting) - 1; i >= 0; i-- {
		if len(got) > 0 {
			t.Fatalf("answered %v before the first was", got)
		}
		store.waiting[i](nil)
	}
	if !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
		t.Errorf("answered in the order %v", got)
	}
	if f.messages != 0 || f.bytes != 0 || !f.idle() {
		t.Errorf("%d messages and %d bytes are left", f.messages, f.bytes)
	}
}

func TestFlow_CountsWhatSamplesTake(t *testing.T) {
	var f flow[int]
	var p pool[int]
	b := p.get(&f)
	data := []byte(`{"a":1,"b":2}`)
	b.count(len(data), 0)
	if err := b.decode(payload.NewDecoder(), payload.Auto, payload.Source{Sensor: "s", Now: 1}, data); err != nil {
		t.Fatal(err)
	}
	if want := len(data) + 2*sampleBytes; b.bytes != want {
		t.Errorf("the batch counts %d bytes, want %d", b.bytes, want)
	}
}

func TestLimitedLog_LeavesOutAndSaysSo(t *testing.T) {
	var log logBuffer
	l := newLimitedLog(log.logger())
	for range 1000 {
		l.warn("first", slog.Int("x", 1))
		l.warn("second")
	}
	l.last["first"].at = time.Now().Add(-2 * logInterval)
	l.warn("first")
	if got := strings.Count(log.String(), "\n"); got != 3 {
		t.Errorf("%d lines, want 3:\n%s", got, &log)
	}
	if !strings.Contains(log.String(), "left_out=999") {
		t.Errorf("the log does not say how much it left out:\n%s", &log)
	}
}

func TestMQTT_WithoutConnectTheConnectionEnds(t *testing.T) {
	in := newTestIntake(t, newStore(t))
	m, err := ListenMQTT(MQTTOptions{Address: "127.0.0.1:0", PayloadBytes: 1, MaxConnections: 1, Window: 1, Patience: 1, Subscribers: 64, SubscriberQueue: 64}, in, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	m.connectTimeout = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	dialRaw(t, m.Addr(), 4).expectClosed(t)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestMQTT_WaitForTheStoreIsNotTheSensorsSilence(t *testing.T) {
	store := newStore(t)
	m, err := ListenMQTT(MQTTOptions{Address: "127.0.0.1:0", PayloadBytes: 100, MaxConnections: 1, Window: 9, Patience: time.Hour, Subscribers: 64, SubscriberQueue: 64},
		newTestIntake(t, store), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	client, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := m.listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := newMQTTConn(m, conn)
	const keepalive = 500 * time.Millisecond
	began := time.Now()
	_ = c.SetDeadline(began.Add(keepalive))
	c.read(c.batch(), route{"sensors/a/b", "a", "b"}, arrived{&packets.Packet{Payload: []byte("1")}, 1})
	store.setRefuse(full{time.Millisecond})
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	store.await(t, "the deadline passes while the store is full", func() bool { return time.Since(began) > keepalive })
	store.setRefuse(nil)
	store.awaitStored(t, 1)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil {
		t.Errorf("the sensor was cut off: %v", err)
	}
	c.flow.drain()
}

func FuzzForeignTopic(f *testing.F) {
	for _, topic := range []string{"sensors/a/b", "a/b/c", "", "a.b%~", "\xff\x00", strings.Repeat("ä/", 100)} {
		f.Add(topic)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		sensor, metric := foreignTopic(topic)
		if err := touchline.CheckSensor(sensor); err != nil {
			t.Errorf("%q: %v", topic, err)
		}
		if metric != "" {
			if err := touchline.CheckMetric(metric); err != nil {
				t.Errorf("%q: %v", topic, err)
			}
		}
	})
}

func FuzzDecodeJSON(f *testing.F) {
	for _, body := range []string{`{"a":1}`, `[{"a":1},{"t":5,"b":"x"}]`, `[{"n":"s/m","v":1}]`, `[{"n":"m","vv":1}]`, `[[]]`, `[`, ` `, `[{}]`, `[{"a":{"b":[1,2]}}]`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		src := payload.Source{Sensor: "s", Now: 1}
		samples, err := decodeJSON(payload.NewDecoder(), src, body)
		if err != nil && samples != nil {
			t.Errorf("%d samples beside the error %v", len(samples), err)
		}
		if err == nil && len(samples) == 0 {
			t.Error("neither samples nor an error")
		}
		for _, s := range samples {
			if err := touchline.CheckSensor(s.Sensor); err != nil {
				t.Error(err)
			}
		}
	})
}
