package sensors

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"touchline"
)

// mosquitto is a site's own broker: a process with persistence on a port of
// its own, which can be stopped and started again.
type mosquitto struct {
	port int
	conf string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

func startMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	need(t, "mosquitto")
	l := listenTCP(t)
	m := &mosquitto{port: l.Addr().(*net.TCPAddr).Port, conf: filepath.Join(t.TempDir(), "mosquitto.conf")}
	l.Close()
	conf := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nmax_queued_messages 0\nmax_inflight_messages 20\n", m.port, filepath.Dir(m.conf))
	if os.Getuid() == 0 {
		conf += "user root\n"
	}
	if err := os.WriteFile(m.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start(t)
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *mosquitto) start(t *testing.T) {
	t.Helper()
	m.out.Reset()
	m.cmd = exec.Command("mosquitto", "-c", m.conf)
	m.cmd.Stdout, m.cmd.Stderr = &m.out, &m.out
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mosquitto listens", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (m *mosquitto) stop() {
	_ = m.cmd.Process.Signal(os.Interrupt)
	_ = m.cmd.Wait()
}

func (m *mosquitto) url() string { return fmt.Sprintf("mqtt://127.0.0.1:%d", m.port) }

// publisher connects a client to the broker.
func (m *mosquitto) publisher(t *testing.T) paho.Client {
	t.Helper()
	c := paho.NewClient(paho.NewClientOptions().AddBroker(m.url()).SetClientID("publisher").SetAutoReconnect(false))
	if token := c.Connect(); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
	t.Cleanup(func() { c.Disconnect(100) })
	return c
}

func publishWait(t *testing.T, c paho.Client, topic string, retained bool, payload string) {
	t.Helper()
	if token := c.Publish(topic, 1, retained, payload); token.Wait() && token.Error() != nil {
		t.Fatal(token.Error())
	}
}

func brokerOptions(url string) BrokerOptions {
	return BrokerOptions{
		URL: url, Topics: []string{"sensors/#", "building/#"}, ClientID: "touchline-test",
		PayloadBytes: 64 << 10, Window: 100, MaxBackoff: 200 * time.Millisecond,
	}
}

// runBroker runs a client until the test ends or stop is called, and waits
// until it is connected.
func runBroker(t *testing.T, opts BrokerOptions, in *Intake, logger *slog.Logger) (stop func()) {
	t.Helper()
	b, err := NewBroker(opts, in, logger)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() {
		in.store.(*memStore).release()
		cancel()
		<-ran
	}
	t.Cleanup(stop)
	awaitBroker(t, in)
	return stop
}

func awaitBroker(t *testing.T, in *Intake) {
	t.Helper()
	eventually(t, "connected to the broker", func() bool { return in.Stats().Transports[TransportBroker].Connections == 1 })
}

func TestBroker_TakesWhatTheSitesBrokerHas(t *testing.T) {
	m := startMosquitto(t)
	store := newStore(t)
	in := newTestIntake(t, store)
	publisher := m.publisher(t)
	publishWait(t, publisher, "sensors/old/hr", true, "1") // retained before anybody subscribed
	runBroker(t, brokerOptions(m.url()), in, slog.New(slog.DiscardHandler))
	publishWait(t, publisher, "sensors/belt/hr", false, "142")
	publishWait(t, publisher, "building/hall/temperature", false, `{"c":21.5}`)
	publishWait(t, publisher, "sensors/belt/hr", false, "not a number")
	publishWait(t, publisher, "sensors/belt/note", false, `"`+strings.Repeat("x", 65<<10)+`"`)
	publishWait(t, publisher, "sensors/belt/hr", false, "143")
	got := store.awaitStored(t, 4)
	want := []touchline.Sample{
		{Sensor: "belt", Metric: "hr", Value: touchline.NumberValue(142)},
		{Sensor: "~building.hall.temperature", Metric: "c", Value: touchline.NumberValue(21.5)},
		{Sensor: "belt", Metric: "_raw", Value: touchline.BytesValue("not a number")},
		{Sensor: "belt", Metric: "hr", Value: touchline.NumberValue(143)},
	}
	for i := range want {
		got[i].Time, want[i].Stamped = 0, true
		if got[i] != want[i] {
			t.Errorf("sample %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	eventually(t, "all counted", func() bool {
		s := in.Stats()
		return s.Rejected[CauseRetained] == 1 && s.Rejected[CauseTooLarge] == 1 && s.Transports[TransportBroker].Raw == 1 && s.Transports[TransportBroker].Samples == 4
	})
}

// Whoever reaches the site's broker can't speak for a sensor that has a key, by
// topic or by a name in a payload; and nothing is lost for it.
func TestBroker_SpeaksForNoSensorWithAKey(t *testing.T) {
	m := startMosquitto(t)
	store := newStore(t)
	in := newTestIntake(t, store)
	if _, err := in.access.opts.Keys.Add("belt", ""); err != nil {
		t.Fatal(err)
	}
	runBroker(t, brokerOptions(m.url()), in, slog.New(slog.DiscardHandler))
	publisher := m.publisher(t)
	publishWait(t, publisher, "sensors/belt/hr", false, "142")
	publishWait(t, publisher, "building/hall", false, `[{"bn":"belt/","n":"hr","v":143},{"bn":"other/","n":"hr","v":144}]`)
	publishWait(t, publisher, "sensors/belt/hr", false, "not a number")
	want := []touchline.Sample{
		{Sensor: "~sensors.belt", Metric: "hr", Value: touchline.NumberValue(142)},
		{Sensor: "~sensors.belt", Metric: "hr", Value: touchline.NumberValue(143)},
		{Sensor: "other", Metric: "hr", Value: touchline.NumberValue(144)},
		{Sensor: "~sensors.belt", Metric: "_raw", Value: touchline.BytesValue("not a number")},
	}
	got := store.awaitStored(t, len(want))
	for i := range want {
		got[i].Time, want[i].Stamped = 0, true
		if got[i] != want[i] {
			t.Errorf("sample %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestBroker_AcknowledgesAfterTheCommitOnly(t *testing.T) {
	m := startMosquitto(t)
	store := newStore(t)
	in := newTestIntake(t, store)
	runBroker(t, brokerOptions(m.url()), in, slog.New(slog.DiscardHandler))
	store.hold()
	publisher := m.publisher(t)
	for i := range 50 {
		publishWait(t, publisher, "sensors/belt/i", false, fmt.Sprint(i))
	}
	// mosquitto sends 20 messages, and more only for acknowledgements.
	store.awaitQueued(t, 20)
	store.mu.Lock()
	n := len(store.queue)
	store.mu.Unlock()
	if n != 20 {
		t.Errorf("%d messages came while none was committed: the broker was answered early", n)
	}
	store.release()
	for i, s := range store.awaitStored(t, 50) {
		if s.Value.Float() != float64(i) {
			t.Fatalf("sample %d is %+v", i, s)
		}
	}
}

func TestBroker_FailedCommitIsDeliveredAgain(t *testing.T) {
	m := startMosquitto(t)
	store := newStore(t)
	in := newTestIntake(t, store)
	runBroker(t, brokerOptions(m.url()), in, slog.New(slog.DiscardHandler))
	store.setFail(errCommit)
	publishWait(t, m.publisher(t), "sensors/belt/hr", false, "142")
	eventually(t, "the commit failed", func() bool { return in.Stats().Transports[TransportBroker].Failed > 0 })
	store.setFail(nil)
	if got := store.awaitStored(t, 1)[0]; got.Value.Float() != 142 {
		t.Errorf("stored is %+v", got)
	}
}

func TestBroker_SessionOutlivesTheGateway(t *testing.T) {
	m := startMosquitto(t)
	store := newStore(t)
	in := newTestIntake(t, store)
	stop := runBroker(t, brokerOptions(m.url()), in, slog.New(slog.DiscardHandler))
	publisher := m.publisher(t)
	publishWait(t, publisher, "sensors/belt/i", false, "0")
	store.awaitStored(t, 1)
	stop()
	for i := 1; i < 10; i++ {
		publishWait(t, publisher, "sensors/belt/i", false, fmt.Sprint(i))
	}
	runBroker(t, brokerOptions(m.url()), in, slog.New(slog.DiscardHandler))
	publishWait(t, publisher, "sensors/belt/i", false, "10")
	got := store.awaitStored(t, 11)
	for i, s := range got {
		if s.Value.Float() != float64(i) {
			t.Fatalf("sample %d is %+v", i, s)
		}
	}
	if len(got) != 11 {
		t.Errorf("%d samples are stored, want 11: a polite end must not repeat", len(got))
	}
}

func TestBroker_ConnectsAgainWhenTheBrokerIsBack(t *testing.T) {
	m := startMosquitto(t)
	store := newStore(t)
	in := newTestIntake(t, store)
	var log logBuffer
	runBroker(t, brokerOptions(m.url()), in, log.logger())
	m.stop()
	eventually(t, "loss noticed", func() bool { return in.Stats().Transports[TransportBroker].Connections == 0 })
	m.start(t)
	awaitBroker(t, in)
	publishWait(t, m.publisher(t), "sensors/belt/hr", false, "142")
	store.awaitStored(t, 1)
	if !strings.Contains(log.String(), "no session with the site's broker") {
		t.Errorf("the log is silent about the loss:\n%s", &log)
	}
}

func TestBroker_EndsWhileTheBrokerIsMute(t *testing.T) {
	l := listenTCP(t) // accepts, and never says CONNACK
	defer l.Close()
	b, err := NewBroker(brokerOptions("mqtt://"+l.Addr().String()), newTestIntake(t, newStore(t)), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestNewBroker_SaysWhatIsWrong(t *testing.T) {
	good := brokerOptions("mqtt://site:1883")
	for _, tc := range []struct {
		change func(*BrokerOptions)
		want   string
	}{
		{func(o *BrokerOptions) { o.URL = "http://site:80" }, `scheme "http"`},
		{func(o *BrokerOptions) { o.URL = "mqtt://" }, "use mqtt://host:1883"},
		{func(o *BrokerOptions) { o.URL = "mqtt://user:secret@site" }, "use mqtt://host:1883"},
		{func(o *BrokerOptions) { o.Topics = nil }, "topics are empty"},
		{func(o *BrokerOptions) { o.Topics = []string{"a/#/b"} }, `"a/#/b"`},
		{func(o *BrokerOptions) { o.Topics = []string{"a/b+"} }, `"a/b+"`},
		{func(o *BrokerOptions) { o.ClientID = "" }, "client id is empty"},
		{func(o *BrokerOptions) { o.Window = 0 }, "window"},
		{func(o *BrokerOptions) { o.PayloadBytes = 0 }, "payload bytes"},
		{func(o *BrokerOptions) { o.MaxBackoff = 0 }, "max backoff"},
	} {
		o := good
		tc.change(&o)
		_, err := NewBroker(o, nil, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("the error is %v, want one with %q and without the password", err, tc.want)
		}
	}
}

func TestForeignTopic_NeverTakesTwoTopicsForOneSensor(t *testing.T) {
	long := strings.Repeat("ö", 100)
	seen := map[string]string{}
	for _, topic := range []string{
		"sensors/belt", "sensors/belt/hr", "a/b", "a.b", "a/b.c", "a.b/c", "a//b", "a..b", "/a", "a/", "a%2Eb", "a", "",
		"sensors/a/b/c", "sensors/", "x\x01y", "x%01y", "bad\xff", "bad%FF", long, long + "1", long + "2", strings.Repeat("/", 300), "a~b",
		"sensors/a.b", "sensors/a", "sensors/.", "sensors/a%2Eb", "belt", "/belt", "sensors/~a.b", "~a.b", "~a/b", "sensors/~", "/",
		"sensors/~a.b/hr", "sensors/a.b/hr",
	} {
		sensor, metric := foreignTopic(topic)
		if err := touchline.CheckSensor(sensor); err != nil {
			t.Errorf("%q: %v", topic, err)
		}
		if again, _ := foreignTopic("sensors/" + sensor); topic != "sensors/"+sensor && metric == "" && again == sensor {
			t.Errorf("%q and %q are both sensor %q", topic, "sensors/"+sensor, sensor)
		}
		key := sensor + "\x00" + metric
		if other, ok := seen[key]; ok {
			t.Errorf("%q and %q are both sensor %q", topic, other, sensor)
		}
		seen[key] = topic
	}
	if sensor, metric := foreignTopic("building/hall/temperature"); sensor != "~building.hall.temperature" || metric != "" {
		t.Errorf("got %q %q", sensor, metric)
	}
	if sensor, metric := foreignTopic("sensors/court.1/hr"); sensor != "court.1" || metric != "hr" {
		t.Errorf("got %q %q", sensor, metric)
	}
	if sensor, metric := foreignTopic("sensors/belt/hr"); sensor != "belt" || metric != "hr" {
		t.Errorf("got %q %q", sensor, metric)
	}
}
