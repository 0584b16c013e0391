package sensors

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline/credential"
)

// A venue is a gateway with keys for belt-17, belt-18 and the display, and
// somebody on its network who wants something else.
type venue struct {
	access *Access
	keys   *credential.SensorKeys
	store  *memStore
	in     *Intake
	log    logBuffer
	key    map[string]string // of each sensor
}

// newVenue lets only sensors with a key in, unless change says otherwise.
func newVenue(t *testing.T, change func(*AccessOptions)) *venue {
	t.Helper()
	v := &venue{store: newStore(t), key: map[string]string{}}
	var err error
	if v.keys, err = credential.OpenSensorKeys(filepath.Join(t.TempDir(), credential.SensorKeysFile), v.log.logger()); err != nil {
		t.Fatal(err)
	}
	for _, sensor := range []string{"belt-17", "belt-18", "display", "receiver", "gone"} {
		key, err := v.keys.Add(sensor, "")
		if err != nil {
			t.Fatal(err)
		}
		v.key[sensor] = key.Reveal()
	}
	if err := v.keys.Revoke("gone"); err != nil {
		t.Fatal(err)
	}
	acl, err := credential.NewACL([]credential.Rule{
		{Sensor: "+", Subscribe: []string{"sensors/{sensor}/#"}},
		{Sensor: "display", Subscribe: []string{"sensors/+/hr"}, Status: true},
		{Sensor: "receiver", PublishAs: []string{"belt-*"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := AccessOptions{Keys: v.keys, Rules: Rules{ACL: acl}, PerSensor: 3, Limits: testLimits}
	if change != nil {
		change(&o)
	}
	if v.access, err = NewAccess(o, v.log.logger()); err != nil {
		t.Fatal(err)
	}
	if v.in, err = NewIntake(IntakeOptions{Store: v.store, Now: systemTime, MaxSensors: 1000, Access: v.access}); err != nil {
		t.Fatal(err)
	}
	// Whatever a test does, its secrets are in no log.
	t.Cleanup(func() {
		for sensor, key := range v.key {
			if strings.Contains(v.log.String(), key) || strings.Contains(v.log.String(), basic(sensor, key)) {
				t.Errorf("the key of %s is in the log:\n%s", sensor, v.log.String())
			}
		}
		if strings.Contains(v.log.String(), "guessed") {
			t.Errorf("what was guessed is in the log:\n%s", v.log.String())
		}
	})
	return v
}

// gotNothing is what each attacker got.
func (v *venue) gotNothing(t *testing.T) {
	t.Helper()
	if got := v.store.stored(); len(got) > 0 {
		t.Errorf("the attacker had %d samples stored: %+v", len(got), got[0])
	}
}

func basic(sensor, key string) string {
	return base64.StdEncoding.EncodeToString([]byte(sensor + ":" + key))
}

// A login is what CONNECT says.
type loginPacket struct {
	client, user, password string
	will, willPayload      string // topic
	keep                   bool   // the session
}

func (l loginPacket) bytes(version byte) []byte {
	flags := byte(2)
	if l.keep {
		flags = 0
	}
	if l.will != "" {
		flags |= 4
	}
	if l.user != "" {
		flags |= 0x80
	}
	if l.password != "" {
		flags |= 0x40
	}
	body := append(appendString(nil, "MQTT"), version, flags, 0, 60)
	if version == 5 {
		body = append(body, 0)
	}
	body = appendString(body, l.client)
	if l.will != "" {
		if version == 5 {
			body = append(body, 0)
		}
		body = appendString(appendString(body, l.will), l.willPayload)
	}
	if l.user != "" {
		body = appendString(body, l.user)
	}
	if l.password != "" {
		body = appendString(body, l.password)
	}
	return packet(0x10, body)
}

// try sends CONNECT and returns the broker's code.
func (l loginPacket) try(t *testing.T, addr net.Addr, version byte) (*rawClient, mqttPacket) {
	t.Helper()
	c := dialRaw(t, addr, version)
	c.send(t, l.bytes(version))
	return c, c.expect(t, kConnack)
}

func (v *venue) connect(t *testing.T, addr net.Addr, version byte, sensor string) *rawClient {
	t.Helper()
	c, answer := loginPacket{client: "c-" + sensor, user: sensor, password: v.key[sensor]}.try(t, addr, version)
	if answer.body[1] != 0 {
		t.Fatalf("%s with its key: CONNACK says %#x", sensor, answer.body[1])
	}
	return c
}

func TestAttack_MQTTWithoutTheKeyNobodyComesIn(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		v := newVenue(t, nil)
		m := startMQTT(t, v.in, nil, v.log.logger())
		for name, l := range map[string]loginPacket{
			"nothing":               {client: "belt-17"},
			"no password":           {client: "x", user: "belt-17"},
			"guessed":               {client: "x", user: "belt-17", password: "guessed"},
			"another one's":         {client: "x", user: "belt-17", password: v.key["belt-18"]},
			"a part of it":          {client: "x", user: "belt-17", password: v.key["belt-17"][:47]},
			"more than it":          {client: "x", user: "belt-17", password: v.key["belt-17"] + "x"},
			"huge":                  {client: "x", user: "belt-17", password: strings.Repeat("guessed", 300)},
			"unknown":               {client: "x", user: "belt-99", password: "guessed"},
			"revoked":               {client: "x", user: "gone", password: v.key["gone"]},
			"bad name":              {client: "x", user: "a/b", password: "guessed"},
			"all sensors":           {client: "x", user: "+", password: "guessed"},
			"the hash":              {client: "x", user: "belt-17", password: fmt.Sprintf("%x", v.keys.List()[0].Hash)},
			"will of another":       {client: "x", user: "belt-18", password: v.key["belt-18"], will: "sensors/belt-17", willPayload: "1"},
			"will names another":    {client: "x", user: "belt-18", password: v.key["belt-18"], will: "sensors/belt-18", willPayload: `[{"bn":"belt-17/","n":"hr","v":1}]`},
			"will to the broker":    {client: "x", user: "belt-18", password: v.key["belt-18"], will: "$SYS/x", willPayload: "1"},
			"will of no sensor":     {client: "x", user: "belt-18", password: v.key["belt-18"], will: "#", willPayload: "1"},
			"will behind wrong key": {client: "x", user: "belt-17", password: "guessed", will: "sensors/belt-17", willPayload: "1"},
		} {
			c, answer := l.try(t, m.Addr(), version)
			if code := answer.body[1]; code == 0 {
				t.Errorf("%s: came in", name)
			}
			_, _ = c.Write(publishPacket(version, 0, 0, "sensors/belt-17/hr", "1")) // it may be closed already
			c.Close()
		}
		eventually(t, "all to be counted", func() bool {
			r := v.in.Stats().Rejected
			return r[CauseAccess]+r[CauseProtocol] >= 17
		})
		v.gotNothing(t)
	})
}

func TestAttack_MQTTASensorPublishesAndHearsItsOwnOnly(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		v := newVenue(t, nil)
		m := startMQTT(t, v.in, nil, v.log.logger())
		for name, message := range map[string][2]string{
			"another topic":       {"sensors/belt-17/hr", "1"},
			"a new sensor":        {"sensors/belt-99", "1"},
			"base name":           {"sensors/belt-18", `[{"bn":"belt-17/","n":"hr","v":1}]`},
			"name":                {"sensors/belt-18", `[{"n":"belt-17/hr","v":1}]`},
			"name behind its own": {"sensors/belt-18", `[{"bn":"belt-18/","n":"hr","v":1},{"bn":"belt-17/","n":"hr","v":1}]`},
			"beginning of a name": {"sensors/belt-1", "1"},
		} {
			for _, qos := range []byte{0, 1, 2} {
				c := v.connect(t, m.Addr(), version, "belt-18")
				c.publish(t, qos, 7, message[0], message[1])
				if version == 5 && qos > 0 {
					if reason := c.expectAck(t, kPuback+qos-1, 7); reason != 0x87 {
						t.Errorf("%s, QoS %d: reason %#x, want 0x87", name, qos, reason)
					}
					c.expectAlive(t)
				} else {
					c.expectClosed(t)
				}
				c.Close()
				eventually(t, "the connection to be forgotten", func() bool { return v.connections() == 0 })
			}
		}
		v.gotNothing(t)

		c := v.connect(t, m.Addr(), version, "belt-18")
		for _, filter := range []string{"#", "+/#", "sensors/#", "sensors/+/hr", "sensors/belt-17", "sensors/belt-17/hr", "sensors/+", "$SYS/#", "$SYS/broker/uptime", "$share/g/sensors/#", "sensors/belt-1/#"} {
			c.send(t, subscribePacket(version, filter, 0))
			if p := c.expect(t, kSuback); p.body[len(p.body)-1] < 0x80 {
				t.Errorf("subscription to %s was granted", filter)
			}
		}
		c.send(t, subscribePacket(version, "sensors/belt-18/#", 0))
		if p := c.expect(t, kSuback); p.body[len(p.body)-1] != 0 {
			t.Errorf("subscription to its own: %#x", p.body[len(p.body)-1])
		}
		display := v.connect(t, m.Addr(), version, "display")
		display.send(t, subscribePacket(version, "sensors/+/hr", 0))
		if p := display.expect(t, kSuback); p.body[len(p.body)-1] != 0 {
			t.Errorf("the display's subscription: %#x", p.body[len(p.body)-1])
		}
		other := v.connect(t, m.Addr(), version, "belt-17")
		other.publish(t, 1, 1, "sensors/belt-17/hr", "142")
		other.expectAck(t, kPuback, 1)
		if p := display.expect(t, kPublish); !strings.Contains(string(p.body), "142") {
			t.Errorf("the display got %q", p.body)
		}
		c.expectAlive(t) // and nothing else came
	})
}

// connections are those of sensors with a key.
func (v *venue) connections() int {
	v.access.mu.Lock()
	defer v.access.mu.Unlock()
	return len(v.access.guests)
}

func TestMQTT_AReceiverPublishesForItsBelts(t *testing.T) {
	v := newVenue(t, nil)
	m := startMQTT(t, v.in, nil, v.log.logger())
	c := v.connect(t, m.Addr(), 5, "receiver")
	c.publish(t, 1, 1, "sensors/belt-17/hr", "1")
	c.publish(t, 1, 2, "sensors/receiver", `[{"bn":"belt-98/","n":"hr","v":1},{"bn":"belt-99/","n":"hr","v":1}]`)
	c.publish(t, 1, 3, "sensors/scale-1/kg", "1")
	for id, want := range []byte{0, 0, 0x87} {
		if reason := c.expectAck(t, kPuback, uint16(id+1)); reason != want {
			t.Errorf("message %d: reason %#x, want %#x", id+1, reason, want)
		}
	}
	if n := len(v.store.stored()); n != 3 {
		t.Errorf("%d samples are stored, want 3", n)
	}
}

// TestAttack_MQTTAClientIDIsItsOwnersAlone: to take the client id of another
// one is an old way to shut it out, and to get its session.
func TestAttack_MQTTAClientIDIsItsOwnersAlone(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		v := newVenue(t, func(o *AccessOptions) { o.Rules.Anonymous = true })
		m := startMQTT(t, v.in, nil, v.log.logger())
		victim, _ := loginPacket{client: "c", user: "belt-17", password: v.key["belt-17"], keep: true}.try(t, m.Addr(), version)
		victim.send(t, subscribePacket(version, "sensors/belt-17/#", 0))
		victim.expect(t, kSuback)
		for _, l := range []loginPacket{
			{client: "c", user: "belt-18", password: v.key["belt-18"], keep: true},
			{client: "c", keep: true},
			{client: "belt-17/c", keep: true},
		} {
			c, answer := l.try(t, m.Addr(), version)
			if answer.body[1] != 0 || answer.body[0]&1 != 0 {
				t.Errorf("%q: CONNACK % x: want in, and no session", l.user, answer.body)
			}
			c.Close()
		}
		victim.expectAlive(t)
	})
}

// TestAccess_AKeyTakesTheNameFromThoseWithoutOne also where anonymous sensors
// are let in: a venue moves over belt by belt.
func TestAccess_AKeyTakesTheNameFromThoseWithoutOne(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Rules.Anonymous = true })
	m := startMQTT(t, v.in, nil, v.log.logger())
	server := startHTTP(t, v.in, nil, v.log.logger())
	c := dialMQTT(t, m.Addr(), 5, "anybody")
	for id, sensor := range []string{"belt-17", "gone", "belt-99"} {
		want := byte(0x87)
		if sensor == "belt-99" {
			want = 0
		}
		c.publish(t, 1, uint16(id+1), "sensors/"+sensor+"/hr", "1")
		if reason := c.expectAck(t, kPuback, uint16(id+1)); reason != want {
			t.Errorf("%s without a key: reason %#x, want %#x", sensor, reason, want)
		}
	}
	if r, _ := post(t, server.URL+SamplesPath, "application/senml+json", `[{"bn":"belt-17/","n":"hr","v":1}]`); r.StatusCode != http.StatusForbidden {
		t.Errorf("POST for belt-17: %s", r.Status)
	}
	if r, _ := post(t, server.URL+SamplesPath, "application/senml+json", `[{"bn":"belt-98/","n":"hr","v":1}]`); r.StatusCode != http.StatusNoContent {
		t.Errorf("POST for belt-98: %s", r.Status)
	}
	// A key that is made now counts on connections that are open.
	stream := dialStream(t, server.URL, "?sensor=belt-99", nil)
	sendText(t, stream, `{"hr":1}`)
	expectAcked(t, stream, 1)
	if _, err := v.keys.Add("belt-99", ""); err != nil {
		t.Fatal(err)
	}
	v.access.review()
	c.publish(t, 1, 9, "sensors/belt-99/hr", "2")
	if reason := c.expectAck(t, kPuback, 9); reason != 0x87 {
		t.Errorf("belt-99 after it got a key: reason %#x", reason)
	}
	sendText(t, stream, `{"hr":2}`)
	if a := readAnswer(t, stream); a.Error == nil || !strings.Contains(a.Error.Detail, "has a key") {
		t.Errorf("the stream after it got a key: %+v", a)
	}
	if n := len(v.store.stored()); n != 3 {
		t.Errorf("%d samples are stored, want 3", n)
	}
	if _, answer := (loginPacket{client: "x", user: "belt-17", password: "guessed"}).try(t, m.Addr(), 5); answer.body[1] == 0 {
		t.Error("a wrong key came in as anonymous")
	}
}

func TestAccess_RevokedSensorsAreDisconnected(t *testing.T) {
	v := newVenue(t, nil)
	m := startMQTT(t, v.in, nil, v.log.logger())
	server := startHTTP(t, v.in, nil, v.log.logger())
	c, other := v.connect(t, m.Addr(), 5, "belt-17"), v.connect(t, m.Addr(), 5, "belt-18")
	stream := dialStream(t, server.URL, "", http.Header{"Authorization": {"Bearer " + v.key["belt-17"]}})
	sendText(t, stream, `{"hr":1}`)
	expectAcked(t, stream, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- v.access.Run(ctx) }()
	if err := v.keys.Revoke("belt-17"); err != nil {
		t.Fatal(err)
	}
	c.expectClosed(t)
	if code := expectClose(t, stream); code != websocket.ClosePolicyViolation {
		t.Errorf("the stream's close code is %d", code)
	}
	other.expectAlive(t)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if _, answer := (loginPacket{client: "x", user: "belt-17", password: v.key["belt-17"]}).try(t, m.Addr(), 5); answer.body[1] == 0 {
		t.Error("a revoked sensor came in again")
	}
}

func TestAccess_WillOfWhoMayNotStayIsDropped(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Rules.Anonymous = true })
	m := startMQTT(t, v.in, nil, v.log.logger())
	display := dialMQTT(t, m.Addr(), 5, "tablet")
	display.send(t, subscribePacket(5, "sensors/#", 0))
	display.expect(t, kSuback)
	leave := func(l loginPacket) *rawClient {
		c, answer := l.try(t, m.Addr(), 5)
		if answer.body[1] != 0 {
			t.Fatalf("CONNACK says %#x", answer.body[1])
		}
		return c
	}
	stolen := leave(loginPacket{client: "a", user: "belt-17", password: v.key["belt-17"], will: "sensors/belt-17/hr", willPayload: "1"})
	stranger := leave(loginPacket{client: "b", will: "sensors/belt-99/hr", willPayload: "2"})
	honest := leave(loginPacket{client: "c", user: "belt-18", password: v.key["belt-18"], will: "sensors/belt-18/hr", willPayload: "3"})
	if err := v.keys.Revoke("belt-17"); err != nil {
		t.Fatal(err)
	}
	if _, err := v.keys.Add("belt-99", ""); err != nil {
		t.Fatal(err)
	}
	v.access.review()
	stolen.expectClosed(t)
	stranger.Close()
	eventually(t, "two wills are dropped", func() bool { return v.in.Stats().Rejected[CauseAccess] >= 3 }) // with one connection
	honest.Close()
	if got := v.store.awaitStored(t, 1); len(got) != 1 || got[0].Sensor != "belt-18" {
		t.Errorf("stored are %+v: want the will of belt-18 alone", got)
	}
	if p := display.expect(t, kPublish); !strings.Contains(string(p.body), "belt-18") {
		t.Errorf("the tablet heard %q", p.body)
	}
}

func TestAccess_UnknownSensorsWaitForAPerson(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Rules.Hold = true })
	m := startMQTT(t, v.in, nil, v.log.logger())
	server := startHTTP(t, v.in, nil, v.log.logger())
	v.key["belt-30"] = "a-vendors-own-password"
	l := loginPacket{client: "x", user: "belt-30", password: v.key["belt-30"]}
	_, answer := l.try(t, m.Addr(), 5)
	if answer.body[1] != 0x87 {
		t.Errorf("a sensor that waits: CONNACK %q", answer.body)
	}
	if err := v.keys.Admit("belt-30"); err != nil {
		t.Fatal(err)
	}
	if _, answer := l.try(t, m.Addr(), 5); answer.body[1] != 0 {
		t.Errorf("an admitted sensor: CONNACK %q", answer.body)
	}
	if r, p := v.post(t, server, "belt-30", "wrong-password", `{"hr":1}`); r.StatusCode != http.StatusUnauthorized || p.Type != "urn:touchline:problem:key" {
		t.Errorf("a wrong key: %s %+v", r.Status, p)
	}
	// One that shows nothing is known by its client id, or by the query. At most
	// one a second is held, so that strangers can't fill the list quickly.
	eventually(t, "a sensor without a key to be listed", func() bool {
		_, answer := loginPacket{client: "belt-31"}.try(t, m.Addr(), 4)
		return answer.body[1] == 5 // not authorized
	})
	if err := v.keys.Admit("belt-31"); err == nil {
		t.Error("a sensor without a key was admitted with none")
	}
	before := len(v.keys.List())
	if _, answer := (loginPacket{}).try(t, m.Addr(), 4); answer.body[1] == 0 || len(v.keys.List()) != before {
		t.Errorf("one without any name: CONNACK %q, %d sensors listed", answer.body, len(v.keys.List()))
	}
	v.gotNothing(t)
}

func (v *venue) post(t *testing.T, server *httptest.Server, sensor, key, body string) (*http.Response, problem) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+SamplesPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if sensor != "" {
		request.SetBasicAuth(sensor, key)
	} else if key != "" {
		request.Header.Set("Authorization", "Bearer "+key)
	}
	return doProblem(t, request)
}

func doProblem(t *testing.T, request *http.Request) (*http.Response, problem) {
	t.Helper()
	r, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p problem
	if len(text) > 0 {
		if err := json.Unmarshal(text, &p); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	}
	return r, p
}

func TestAttack_HTTPWithoutTheKeyNothingIsTaken(t *testing.T) {
	v := newVenue(t, nil)
	server := startHTTP(t, v.in, nil, v.log.logger())
	const mine, others = `{"hr":1}`, `[{"bn":"belt-17/","n":"hr","v":1}]`
	for name, c := range map[string]struct {
		header, path, body string
		want               int
	}{
		"nothing":               {"", "", mine, 401},
		"wrong key":             {"Basic " + basic("belt-18", "guessed"), "", mine, 401},
		"another one's key":     {"Basic " + basic("belt-17", v.key["belt-18"]), "", mine, 401},
		"revoked":               {"Basic " + basic("gone", v.key["gone"]), "", mine, 401},
		"revoked bearer":        {"Bearer " + v.key["gone"], "", mine, 401},
		"wrong bearer":          {"Bearer guessed", "", mine, 401},
		"empty bearer":          {"Bearer ", "", mine, 401},
		"no name":               {"Basic " + basic("", v.key["belt-18"]), "", mine, 401},
		"another scheme":        {"Digest guessed", "", mine, 401},
		"not base64":            {"Basic guessed!", "", mine, 401},
		"key in the query":      {"", "?key=guessed&access_token=guessed", mine, 401},
		"another one's payload": {"Basic " + basic("belt-18", v.key["belt-18"]), "", others, 403},
		"bearer, another one's": {"Bearer " + v.key["belt-18"], "", others, 403},
		"another one's query":   {"Bearer " + v.key["belt-18"], "?sensor=belt-17", mine, 403},
		"behind its own":        {"Bearer " + v.key["belt-18"], "", `[{"bn":"belt-18/","n":"hr","v":1},{"bn":"belt-17/","n":"hr","v":1}]`, 403},
	} {
		for _, upgrade := range []bool{false, true} {
			path, method := SamplesPath, http.MethodPost
			if upgrade {
				path, method = StreamPath, http.MethodGet
			}
			if upgrade && c.want == 403 && c.path == "" {
				continue // its payload is refused later
			}
			request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/json")
			if upgrade {
				request.Header.Set("Upgrade", "websocket")
				request.Header.Set("Connection", "Upgrade")
				request.Header.Set("Sec-WebSocket-Version", "13")
				request.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
			}
			if c.header != "" {
				request.Header.Set("Authorization", c.header)
			}
			r, p := doProblem(t, request)
			if r.StatusCode != c.want {
				t.Errorf("%s, stream %v: %s %+v, want %d", name, upgrade, r.Status, p, c.want)
			}
			if c.want == 401 && len(r.Header.Values("WWW-Authenticate")) != 2 {
				t.Errorf("%s: no challenge", name)
			}
		}
	}
	v.gotNothing(t)

	// With the key, by each way; a payload that names nobody is the sensor's.
	if r, p := v.post(t, server, "belt-18", v.key["belt-18"], mine); r.StatusCode != http.StatusNoContent {
		t.Errorf("Basic: %s %+v", r.Status, p)
	}
	if r, p := v.post(t, server, "", v.key["belt-18"], mine); r.StatusCode != http.StatusNoContent {
		t.Errorf("Bearer: %s %+v", r.Status, p)
	}
	stream := dialStream(t, server.URL, "", http.Header{"Authorization": {"Bearer " + v.key["belt-18"]}})
	sendText(t, stream, others)
	if a := readAnswer(t, stream); a.Error == nil || a.Error.Message != 1 {
		t.Errorf("another one's payload in a stream: %+v", a)
	}
	sendText(t, stream, mine)
	expectAcked(t, stream, 2)
	for _, s := range v.store.stored() {
		if s.Sensor != "belt-18" {
			t.Errorf("stored for %s", s.Sensor)
		}
	}
	if n := len(v.store.stored()); n != 3 {
		t.Errorf("%d samples are stored, want 3", n)
	}
}

// TestAttack_APageFromElsewhereGetsNoStream: a browser would send the visitor's
// Basic credentials with it.
func TestAttack_APageFromElsewhereGetsNoStream(t *testing.T) {
	v := newVenue(t, nil)
	server := startHTTP(t, v.in, nil, v.log.logger())
	for _, origin := range []string{"https://evil.example", "null", "http://127.0.0.1.evil.example", server.URL + ".evil.example", "http://127.0.0.1:1"} {
		header := http.Header{"Origin": {origin}, "Authorization": {"Basic " + basic("belt-17", v.key["belt-17"])}}
		conn, r, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(server.URL, "http")+StreamPath, header)
		if err == nil {
			conn.Close()
		}
		if err == nil || r == nil || r.StatusCode != http.StatusForbidden {
			t.Errorf("origin %s: %v %v", origin, err, r)
		}
	}
	v.gotNothing(t)
}

func TestAttack_SlowAndSilentConnectionsEndWithoutALogin(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Limits.Login = 50 * time.Millisecond })
	m := startMQTT(t, v.in, nil, v.log.logger())
	connect := loginPacket{client: "x", user: "belt-17", password: v.key["belt-17"]}.bytes(5)
	for name, sent := range map[string][]byte{
		"silent": nil, "one byte": connect[:1], "all but one": connect[:len(connect)-1],
		"huge length": {0x10, 0xff, 0xff, 0xff, 0x7f}, "not MQTT": []byte("GET / HTTP/1.1\r\n"),
	} {
		c := dialRaw(t, m.Addr(), 5)
		_, _ = c.Write(sent)
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: got an answer", name)
		}
		c.Close()
	}
	v.gotNothing(t)
}

func TestAttack_OneAddressDoesNotTakeAllConnections(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Limits.PerAddress = 10 })
	m := startMQTT(t, v.in, nil, v.log.logger())
	sensor := v.connect(t, m.Addr(), 5, "belt-17")
	for range 200 {
		if conn, err := net.Dial("tcp", m.Addr().String()); err == nil { // or it was reset already
			defer conn.Close()
		}
	}
	// 9 of them are let in, the others are reset.
	eventually(t, "the others to be turned away", func() bool { return v.access.turnedAway.Load() == 191 })
	sensor.publish(t, 1, 1, "sensors/belt-17/hr", "1")
	sensor.expectAck(t, kPuback, 1)
	if v.in.Stats().Rejected[CauseLimit] < 191 {
		t.Errorf("counted: %d", v.in.Stats().Rejected[CauseLimit])
	}
	// Another address of the same network is not its neighbour's prisoner.
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
	conn, err := dialer.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	other := dialRawOn(conn)
	other.send(t, loginPacket{client: "y", user: "belt-18", password: v.key["belt-18"]}.bytes(5))
	if p := other.expect(t, kConnack); p.body[1] != 0 {
		t.Errorf("CONNACK says %#x", p.body[1])
	}
}

func TestAttack_OneSensorHasFewConnections(t *testing.T) {
	both(t, func(t *testing.T, version byte) {
		v := newVenue(t, nil) // 3
		m := startMQTT(t, v.in, nil, v.log.logger())
		var open []*rawClient
		for i := range 3 {
			c, answer := loginPacket{client: fmt.Sprint(i), user: "belt-17", password: v.key["belt-17"]}.try(t, m.Addr(), version)
			if answer.body[1] != 0 {
				t.Fatalf("connection %d: %#x", i, answer.body[1])
			}
			open = append(open, c)
		}
		l := loginPacket{client: "one more", user: "belt-17", password: v.key["belt-17"]}
		if _, answer := l.try(t, m.Addr(), version); answer.body[1] == 0 {
			t.Error("a fourth connection came in")
		}
		open[0].Close()
		eventually(t, "a place to be free", func() bool {
			_, answer := l.try(t, m.Addr(), version)
			return answer.body[1] == 0
		})
	})
}

func TestStatus_IsForThisMachineAndForThoseWhoMay(t *testing.T) {
	v := newVenue(t, nil)
	h, err := NewHTTP(HTTPOptions{BodyBytes: 1 << 20, MessageBytes: 64 << 10, MaxRequests: 1, MaxStreams: 1, Window: 1, PingInterval: time.Second}, v.in, v.log.logger())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	guarded := h.ForStatus(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	for _, c := range []struct {
		remote, host, header, value, sensor, proto string
		want                                       int
	}{
		{remote: "127.0.0.1:5", want: 200}, {remote: "[::1]:5", want: 200}, {want: 401},
		{remote: "127.0.0.1:5", host: "localhost:8080", want: 200}, {remote: "[::1]:5", host: "[::1]:8080", want: 200},
		{remote: "127.0.0.1:5", host: "0.0.0.0:8080", want: 200},
		{remote: "127.0.0.1:5", header: "X-Forwarded-For", value: "192.168.0.9", want: 401},
		{remote: "127.0.0.1:5", header: "X-Real-IP", value: "192.168.0.9", want: 401},
		{remote: "127.0.0.1:5", header: "Forwarded", value: "for=192.168.0.9", want: 401},
		{remote: "127.0.0.1:5", header: "Via", value: "1.1 proxy", want: 401},
		{remote: "127.0.0.1:5", header: "X-Forwarded-Proto", value: "https", want: 401},
		{remote: "127.0.0.1:5", host: "127.0.0.1:8080", proto: "HTTP/1.0", want: 401}, // nginx as it comes
		{remote: "127.0.0.1:5", host: "192.168.0.5", want: 401},                       // HAProxy as it comes, asked by address
		{remote: "127.0.0.1:5", host: "rebound.example:8080", want: 401},
		{remote: "127.0.0.1:5", header: "Sec-Fetch-Site", value: "cross-site", want: 401},
		{remote: "192.168.0.9:5", want: 401}, {remote: "192.168.0.9:5", host: "127.0.0.1", want: 401},
		{remote: "192.168.0.9:5", sensor: "belt-17", want: 401}, {remote: "192.168.0.9:5", sensor: "display", want: 200},
		{remote: "192.168.0.9:5", host: "gateway.local", sensor: "display", want: 200},
	} {
		r := httptest.NewRequest(http.MethodGet, "/v1/status", nil)
		r.RemoteAddr, r.Host = c.remote, c.host
		if c.proto != "" {
			r.Proto, r.ProtoMajor, r.ProtoMinor = c.proto, 1, 0
		}
		if c.header != "" {
			r.Header.Set(c.header, c.value)
		}
		if c.sensor != "" {
			r.SetBasicAuth(c.sensor, v.key[c.sensor])
		}
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%+v: %d", c, w.Code)
		}
	}
}

func TestNewAccess_SaysWhatIsMissing(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	keys := newVenue(t, nil).keys
	good := AccessOptions{Keys: keys, Rules: Rules{ACL: &credential.ACL{}}, PerSensor: 1, Limits: testLimits}
	for want, change := range map[string]func(*AccessOptions){
		"keys are not given":      func(o *AccessOptions) { o.Keys = nil },
		"nobody is held":          func(o *AccessOptions) { o.Rules.Anonymous, o.Rules.Hold = true, true },
		"connections of a sensor": func(o *AccessOptions) { o.PerSensor = 0 },
		"limits are":              func(o *AccessOptions) { o.Limits.Messages = 0 },
	} {
		o := good
		change(&o)
		if _, err := NewAccess(o, logger); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
}
