package uplink

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// FuzzToken reads what is in a token file: what it takes can stand in a header,
// and what it refuses is not shown.
func FuzzToken(f *testing.F) {
	for _, text := range []string{"token\n", "", " \r\n", "two words", "tok\x00en", "\ufefftoken", strings.Repeat("x", 5000)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u := &Uplink{opts: Options{Token: func() (string, error) { return text, nil }}}
		token, err := u.credential(t.Context(), nil)
		if err != nil {
			if word := strings.TrimSpace(text); len(word) > 8 && strings.Contains(err.Error(), word) {
				t.Errorf("the error shows it: %v", err)
			}
			return
		}
		r, err := http.NewRequest(http.MethodGet, "http://cloud.test", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		if err := r.Header.Write(new(bytes.Buffer)); err != nil || token == "" || strings.ContainsAny(token, " \r\n\t\x00") {
			t.Errorf("%q is taken: %v", token, err)
		}
	})
}

// FuzzAddress reads an address of the cloud, from the settings or from goaway:
// what it takes can be dialed, and no error or log shows a password.
func FuzzAddress(f *testing.F) {
	for _, text := range []string{"wss://cloud.example.org", "ws://127.0.0.1:8080/", "http://u:secretsecret@h", "https://[::1]:1", "wss://h/path?q#f", "://", "wss://%zz", "wss:h", "wss://h:99999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := parseURL(text)
		if err == nil && (u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" || u.User != nil) {
			t.Errorf("%q is taken as %q", text, u)
		}
		given, bad := url.Parse(text)
		if err != nil && bad == nil && given.User != nil {
			if password, has := given.User.Password(); has && len(password) > 6 && strings.Contains(err.Error(), password) && !strings.Contains(given.Redacted(), password) {
				t.Errorf("the error shows the password: %v", err)
			}
		}
	})
}

// FuzzRetryAfter reads what a server or a proxy says of when to come back.
func FuzzRetryAfter(f *testing.F) {
	for _, text := range []string{"1", "0", "-1", "99999999999999999999", "Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", " 5 ", "1.5"} {
		f.Add(text)
	}
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, text string) {
		if d := retryAfter(http.Header{"Retry-After": {text}}, now); d < 0 || d > maxFloor {
			t.Errorf("%q asks for %s", text, d)
		}
	})
}

// FuzzSession says anything to a session that has sent nothing yet: it goes on
// or ends with an error, and nothing counts as stored.
func FuzzSession(f *testing.F) {
	epoch := touchline.Epoch{0x11, 0x22}
	add := func(messages ...wire.Message) {
		var lines [][]byte
		for _, m := range messages {
			data, err := wire.MarshalMessage(m)
			if err != nil {
				f.Fatal(err)
			}
			lines = append(lines, data)
		}
		f.Add(bytes.Join(lines, []byte("\n")), []byte("12345678"))
	}
	welcome := &wire.Welcome{Store: "s", Session: 1, Window: wire.Window{Bytes: 1 << 20, Blocks: 16}, MaxFrame: wire.MinFrameBytes, Heartbeat: 15_000}
	ranges := []wire.EpochRanges{{Epoch: epoch, Ranges: touchline.Ranges{{First: 1, Last: 20}, {First: 25, Last: touchline.MaxSeq}}}}
	add(welcome, &wire.Ack{Accepted: ranges}, &wire.Ack{Stored: ranges, Lost: []uint64{1, touchline.MaxSeq}})
	add(welcome, &wire.Resend{Epoch: epoch, Ranges: ranges[0].Ranges}, &wire.NewWindow{}, &wire.NewWindow{Window: wire.Window{Bytes: 1, Blocks: 1}})
	add(welcome, &wire.Goaway{Reason: "x\x00", ReconnectAfter: 1 << 62, Address: "ws://h"}, welcome)
	add(&wire.Ack{}, welcome)
	f.Add([]byte(`{"type":"hello"}`), []byte{})

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		upgrader := websocket.Upgrader{}
		if conn, err := upgrader.Upgrade(w, r, nil); err == nil {
			defer conn.Close()
			_, _, _ = conn.ReadMessage() // until the end
		}
	}))
	f.Cleanup(server.Close)
	conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	w := newWorld(f)
	to, err := url.Parse(w.cloud.url())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, said, pong []byte) {
		u, err := New(w.options(), w.source, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		s := newSession(u, &socket{conn}, to)
		s.flights.setWindow(wire.Window{Bytes: 1 << 20, Blocks: 16}, time.Now())
		for line := range bytes.SplitSeq(said, []byte("\n")) {
			if s.take(line) != nil {
				break
			}
			_ = s.onPong(string(pong))
			_ = s.onPong(string(binary.BigEndian.AppendUint64(nil, uint64(len(pong)))))
		}
		if got := u.Stats().Stored; got > 0 { // nothing was sent
			t.Errorf("%d samples are stored", got)
		}
	})
}
