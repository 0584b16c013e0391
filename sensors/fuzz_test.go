package sensors

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"path/filepath"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/payload"
)

// mqttSeeds are conversations, good and bad ones.
func mqttSeeds() [][]byte {
	publish := func(first byte, id uint16, properties []byte, topic, text string) []byte {
		body := appendString(nil, topic)
		if first&6 != 0 {
			body = append(body, byte(id>>8), byte(id))
		}
		return packet(first, append(append(body, properties...), text...))
	}
	return [][]byte{
		publish(0x32, 1, nil, "sensors/belt/x", "1.5"),
		publish(0x32, 1, []byte{0}, "sensors/belt/x", "1.5"),
		publish(0x3d, 2, []byte{3, 0x23, 0, 1}, "sensors/belt", `{"t":1,"x":[1,{"y":2}]}`),
		append(publish(0x34, 3, []byte{0}, "sensors/belt", `[{"n":"x","v":1}]`), packet(0x62, []byte{0, 3})...),
		packet(0x82, append([]byte{0, 9, 0}, append(appendString(nil, "sensors/#"), 1)...)),
		packet(0xa2, append([]byte{0, 9, 0}, appendString(nil, "sensors/#")...)),
		packet(0xc0, nil), packet(0xe0, nil), packet(0xe0, []byte{4, 0}), packet(0xf0, []byte{0x18, 0}),
		{0x30, 0xff, 0xff, 0xff, 0x7f}, {0x30, 0xff, 0xff, 0xff, 0xff, 0xff}, {0x32, 2, 0, 9},
		connectPacket(4, "again", true), connectPacket(5, "", false),
	}
}

// FuzzFrames holds what follows the packets of a connection against a plain
// reading of all bytes at once, however these come in.
func FuzzFrames(f *testing.F) {
	for i, seed := range mqttSeeds() {
		f.Add(append(seed, mqttSeeds()[len(mqttSeeds())-1-i]...), uint8(i))
	}
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		body, whole, well := lastFrame(data)
		if !well {
			return // mochi ends the connection there
		}
		var got frames
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+int(step))
			got.read(rest[:n])
			rest = rest[n:]
		}
		if got.whole() != whole || !whole && got.size() != body {
			t.Fatalf("whole = %v with a body of %d, want %v, %d", got.whole(), got.size(), whole, body)
		}
	})
}

// lastFrame reads packets (MQTT 5, section 2.1) up to the end: how large the
// body of the last is, as far as that is known, whether it is all there, and
// whether all lengths are well formed.
func lastFrame(data []byte) (body int, whole, well bool) {
	for len(data) > 0 {
		length, digits := 0, 0
		for {
			if 1+digits == len(data) {
				return 0, false, true
			}
			b := data[1+digits]
			length |= int(b&0x7f) << (7 * digits)
			if digits++; b < 0x80 {
				break
			}
			if digits == 4 {
				return 0, false, false
			}
		}
		if data = data[1+digits:]; len(data) < length {
			return length, false, true
		}
		data = data[length:]
	}
	return 0, true, true
}

// FuzzMQTTConnection says anything to the broker, before and after a CONNECT:
// the connection ends, and nothing else does.
func FuzzMQTTConnection(f *testing.F) {
	for i, seed := range mqttSeeds() {
		f.Add(seed, byte(4+i%2), true)
		f.Add(seed, byte(4), false)
	}
	store := newStore(f)
	store.discard = true
	listener, path := listenUnix(f)
	m, err := ListenMQTT(MQTTOptions{Address: "127.0.0.1:0", PayloadBytes: 64 << 10, MaxConnections: 1000, Window: 1024, Patience: 10 * time.Second, Subscribers: 64, SubscriberQueue: 64},
		newTestIntake(f, store), slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	m.listener.Close()
	m.listener = listener
	ran := make(chan error, 1)
	go func() { ran <- m.Run(context.Background()) }()
	f.Cleanup(func() {
		if err := errors.Join(m.Close(), <-ran); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, data []byte, version byte, connected bool) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if connected {
			data = append(connectPacket(4+version%2, "belt", version&4 != 0), data...)
		}
		wrote := make(chan struct{})
		go func() {
			defer close(wrote)
			_, _ = conn.Write(data) // an error, if the broker has heard enough
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		_, err = io.Copy(io.Discard, conn)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("the connection is open %s after its end", patience)
		}
		<-wrote
	})
}

// FuzzSource reads names from a query: what it takes is good.
func FuzzSource(f *testing.F) {
	for _, query := range []string{"", "sensor=belt&metric=x", "sensor=", "sensor=%ff", "sensor=a/b", "metric=%00", "sensor=a;metric=b", "sensor=a&sensor=b", "metric=_raw", "%"} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodPost, SamplesPath, nil)
		r.URL.RawQuery = query
		src, p := source(r, 1)
		if p != nil {
			return
		}
		if r.URL.Query().Has("sensor") && touchline.CheckSensor(src.Sensor) != nil || r.URL.Query().Has("metric") && touchline.CheckMetric(src.Metric) != nil {
			t.Errorf("%q gives %+v", query, src)
		}
	})
}

// FuzzPost sends any headers, query and body: an answer comes, and 204 only
// with samples.
func FuzzPost(f *testing.F) {
	for _, c := range [][4]string{
		{"sensor=belt", "application/json", "", `{"x":1}`},
		{"sensor=belt&metric=x", "text/plain; charset=utf-8", "", "1.5"},
		{"", "application/senml+json", "https://elsewhere.example", `[{"n":"belt/x","v":1}]`},
		{"", "application/senml+cbor", "null", "\x81\xa2\x00\x61x\x02\x01"},
		{"sensor=%zz", "", "http://127.0.0.1", ""}, {"", "APPLICATION/JSON;;", "", "[[[["},
	} {
		f.Add(c[0], c[1], c[2], []byte(c[3]))
	}
	store := newStore(f)
	store.discard = true
	h := fuzzHTTP(f, newTestIntake(f, store))
	f.Fuzz(func(t *testing.T, query, contentType, origin string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, SamplesPath, bytes.NewReader(body))
		r.URL.RawQuery = query
		for key, value := range map[string]string{"Content-Type": contentType, "Origin": origin} {
			if value != "" {
				r.Header[textproto.CanonicalMIMEHeaderKey(key)] = []string{value}
			}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch {
		case w.Code == http.StatusNoContent && w.Body.Len() > 0, w.Code != http.StatusNoContent && (w.Code < 400 || w.Code >= 500):
			t.Errorf("status %d: %s", w.Code, w.Body)
		}
	})
}

func fuzzHTTP(f *testing.F, in *Intake) *HTTP {
	f.Helper()
	h, err := NewHTTP(HTTPOptions{BodyBytes: 1 << 20, MessageBytes: 64 << 10, MaxRequests: 100, MaxStreams: 100, Window: 1024, PingInterval: 10 * time.Second},
		in, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := h.Close(); err != nil {
			f.Error(err)
		}
	})
	return h
}

// listenUnix listens where thousands of connections a second use up no ports.
func listenUnix(f *testing.F) (listener net.Listener, path string) {
	f.Helper()
	path = filepath.Join(f.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		f.Fatal(err)
	}
	return listener, path
}

// FuzzStreamMessage sends any message over a WebSocket: it is answered, or the
// stream is closed and says why, and the next one is served.
func FuzzStreamMessage(f *testing.F) {
	for _, text := range []string{`{"x":1}`, `[{"n":"x","v":1}]`, "1.5", "", "\xff", "\x81\xa2\x00\x61x\x02\x01", `{"x":`} {
		f.Add([]byte(text), true)
		f.Add([]byte(text), false)
	}
	store := newStore(f)
	store.discard = true
	h := fuzzHTTP(f, newTestIntake(f, store))
	listener, path := listenUnix(f)
	server := &http.Server{Handler: h}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	f.Cleanup(func() {
		server.Close()
		<-served
	})
	dialer := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	var conn *websocket.Conn // lives as long as the messages let it
	f.Cleanup(func() {
		if conn != nil {
			conn.Close()
		}
	})
	number := uint64(0)
	f.Fuzz(func(t *testing.T, data []byte, text bool) {
		if conn == nil {
			var err error
			if conn, _, err = dialer.Dial("ws://gateway"+StreamPath+"?sensor=belt", nil); err != nil {
				t.Fatal(err)
			}
			number = 0
		}
		kind := websocket.BinaryMessage
		if text {
			kind = websocket.TextMessage
		}
		number++
		err := errors.Join(conn.SetReadDeadline(time.Now().Add(patience)), conn.WriteMessage(kind, data))
		for acked := uint64(0); err == nil && acked < number; {
			var answer struct{ Acked uint64 }
			if err = conn.ReadJSON(&answer); answer.Acked > number {
				t.Fatalf("message %d of %d is acknowledged", answer.Acked, number)
			}
			acked = answer.Acked
		}
		if err == nil {
			return
		}
		conn.Close()
		conn = nil
		if !websocket.IsCloseError(err, websocket.CloseInvalidFramePayloadData, websocket.CloseMessageTooBig) {
			t.Fatalf("the stream ended: %v", err)
		}
	})
}

// FuzzForeignMessage decodes what a broker of the site hands over, whose topics are
// anybody's.
func FuzzForeignMessage(f *testing.F) {
	f.Add("sensors/belt/x", []byte("1.5"))
	f.Add("\xff\x00//", []byte{0xff})
	f.Fuzz(func(t *testing.T, topic string, data []byte) {
		sensor, metric := foreignTopic(topic)
		samples, err := payload.NewDecoder().Decode(nil, payload.Auto, payload.Source{Sensor: sensor, Metric: metric, Now: 1}, data)
		if (err == nil) != (len(samples) > 0) {
			t.Fatalf("%d samples, %v", len(samples), err)
		}
		for _, s := range samples {
			if err := errors.Join(touchline.CheckSensor(s.Sensor), touchline.CheckMetric(s.Metric), touchline.CheckUnit(s.Unit)); err != nil {
				t.Error(err)
			}
		}
	})
}
