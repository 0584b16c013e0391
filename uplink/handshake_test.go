package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestDial_RefusalsSayWhatToDoAndWaitLongEnough(t *testing.T) {
	answer := func(status int, header, value, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if header != "" {
				w.Header().Set(header, value)
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
			return true
		}
	}
	raw := func(head string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(conn, head)
				conn.Close()
			}
			return true
		}
	}
	for _, c := range []struct {
		name   string
		refuse func(http.ResponseWriter, *http.Request) bool
		want   []string
		floor  time.Duration // at least this long until the next try
	}{
		{"wrong token", answer(401, "", "", "unknown token\n"), []string{"401 Unauthorized", "check gateway.id and uplink.token_file", `"unknown token"`}, 30 * time.Second},
		{"wrong gateway", answer(403, "", "", ""), []string{"403 Forbidden", "check gateway.id"}, 30 * time.Second},
		{"wrong path", answer(404, "", "", ""), []string{"404", "uplink.urls"}, 0},
		{"too many", answer(429, "Retry-After", "120", "slow down"), []string{"429", "Retry-After 2m0s", "slow down"}, 2 * time.Minute},
		{"overload", answer(503, "Retry-After", "7", ""), []string{"503", "Retry-After 7s"}, 7 * time.Second},
		{"date", answer(503, "Retry-After", "Sat, 01 Jan 2000 00:03:00 GMT", ""), []string{"503", "Retry-After 3m0s"}, 3 * time.Minute},
		{"a year", answer(503, "Retry-After", "31536000", ""), []string{"Retry-After 10m0s"}, 10 * time.Minute},
		{"nonsense", answer(503, "Retry-After", "soon", ""), []string{"503 Service Unavailable"}, 0},
		{"moved", answer(301, "Location", "https://elsewhere.example/", ""), []string{"301", "https://elsewhere.example/", "uplink.urls"}, 0},
		{"web page", answer(200, "", "", strings.Repeat("hello ", 1000)), []string{"200 OK", "hello hello"}, 0},
		{"no HTTP", raw("220 mail.example.org ESMTP\r\n"), []string{"malformed HTTP"}, 0},
		{"hangs up", raw(""), []string{"EOF"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.cloud.refuse = c.refuse
				o := w.options()
				o.BackoffBase, o.BackoffCap = time.Second, time.Minute
				u := w.uplink(o)
				w.start(u)
				synctest.Wait()
				st := u.Stats()
				if st.State != Waiting || len(st.LastError) > 3000 {
					t.Fatalf("%s, with an error of %d bytes", st.State, len(st.LastError))
				}
				for _, want := range c.want {
					if !contains(st.LastError, want) {
						t.Errorf("error %q lacks %q", st.LastError, want)
					}
				}
				wait := st.NextTry.Sub(st.Since)
				if wait < c.floor || wait > c.floor+time.Second {
					t.Errorf("next try in %v, want %v and up to a second more", wait, c.floor)
				}
				time.Sleep(wait)
				synctest.Wait()
				if st := u.Stats(); st.Dials != 2 {
					t.Errorf("%d dials after the wait, want 2", st.Dials)
				}
			})
		})
	}
}

func TestDial_RefusesAnotherSubprotocolAndUnaskedExtensions(t *testing.T) {
	for _, c := range []struct {
		name     string
		upgrader websocket.Upgrader
		refuse   func(w http.ResponseWriter, r *http.Request) bool
		want     string
	}{
		{name: "none", want: `subprotocol ""`},
		{name: "another", upgrader: websocket.Upgrader{Subprotocols: []string{"mqtt"}}, want: `subprotocol ""`},
		{name: "claims another", want: `subprotocol "touchline.v9"`, refuse: func(w http.ResponseWriter, r *http.Request) bool {
			up := websocket.Upgrader{}
			if conn, err := up.Upgrade(w, r, http.Header{"Sec-Websocket-Protocol": {"touchline.v9"}}); err == nil {
				conn.Close()
			}
			return true
		}},
		{name: "extension", want: "not offered", refuse: func(w http.ResponseWriter, r *http.Request) bool {
			// gorilla's server does not let us lie
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return true
			}
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
				"Sec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: %s\r\n"+
				"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n\r\n",
				acceptKey(r.Header.Get("Sec-Websocket-Key")), wire.Subprotocol)
			io.Copy(io.Discard, conn)
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.cloud.upgrader, w.cloud.refuse = c.upgrader, c.refuse
			u := w.uplink(w.options())
			w.start(u)
			awaitStats(t, u, "refused", func(st Stats) bool { return contains(st.LastError, c.want) })
			if n := len(w.cloud.saw().hellos); n != 0 {
				t.Errorf("%d hellos were sent to a server that is no touchline cloud", n)
			}
		})
	}
}

func TestDial_TokenIsReadAfreshAndNeverShown(t *testing.T) {
	w := newWorld(t)
	var token atomic.Value
	token.Store("wrong-token-1234")
	o := w.options()
	o.Token = func() (string, error) { return token.Load().(string), nil }
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "refused", func(st Stats) bool { return contains(st.LastError, "401") })
	token.Store("two words")
	awaitStats(t, u, "bad token", func(st Stats) bool { return contains(st.LastError, "0x20") })
	token.Store(" \n")
	awaitStats(t, u, "empty token", func(st Stats) bool { return contains(st.LastError, "uplink.token_file is empty") })
	token.Store("  secret-token\n")
	awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
	for _, secret := range []string{"wrong-token", "two words", "secret-token"} {
		if contains(w.logs.String(), secret) {
			t.Errorf("the log shows the token %q", secret)
		}
	}
}

func TestDial_UnreadableTokenIsAnError(t *testing.T) {
	w := newWorld(t)
	o := w.options()
	o.Token = func() (string, error) { return "", errors.New("open token: permission denied") }
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "said", func(st Stats) bool { return contains(st.LastError, "uplink.token_file: open token: permission denied") })
	if w.cloud.saw().requests != 0 {
		t.Error("dialed without a token")
	}
}

func TestDial_TLSWithTheSystemsChecks(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewUnstartedServer(w.cloud)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	list := blocks(touchline.NewEpoch(), 1, 10, 5, 1000)
	w.source.add(list...)
	o := w.options()
	o.URLs = []string{server.URL} // https, for wss
	u := w.uplink(o)
	stop := w.start(u)
	awaitStats(t, u, "a certificate that nobody vouches for is refused", func(st Stats) bool {
		return contains(st.LastError, "certificate")
	})
	stop()
	u = w.uplink(o)
	u.route.config = func(host string, _ *x509.CertPool) *tls.Config {
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		return systemTLS(host, roots)
	}
	stop = w.start(u)
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	if st := u.Stats(); !strings.HasPrefix(st.URL, "wss://") {
		t.Errorf("URL %q, want wss", st.URL)
	}
	stop()
	server.CloseClientConnections()
}

func TestDial_ChecksCertificatesAsItIsTold(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewUnstartedServer(w.cloud)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	list := blocks(touchline.NewEpoch(), 1, 10, 5, 1000)
	w.source.add(list...)
	o := w.options()
	o.URLs = []string{server.URL}
	var asked atomic.Value
	o.TLS = func(host string, _ *x509.CertPool) *tls.Config {
		asked.Store(host)
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		return &tls.Config{ServerName: host, RootCAs: roots}
	}
	stop := w.start(w.uplink(o))
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	if asked.Load() != "127.0.0.1" {
		t.Errorf("asked for %v, want the host of the address", asked.Load())
	}
	stop()
	server.CloseClientConnections()
}

func TestDial_TriesTheNextAddressAfterAFailure(t *testing.T) {
	w := newWorld(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	o := w.options()
	o.URLs = []string{"ws://" + dead.Addr().String(), w.cloud.url() + "/nowhere", w.cloud.url()}
	u := w.uplink(o)
	w.start(u)
	awaitStats(t, u, "connected", func(st Stats) bool { return st.State == Connected })
	if st := u.Stats(); st.URL != w.cloud.url()+wire.UplinkPath || st.Dials != 3 {
		t.Errorf("at %s after %d dials, want the third", st.URL, st.Dials)
	}
	w.cloud.dropAll()
	awaitStats(t, u, "again", func(st Stats) bool { return st.Sessions == 2 && st.State == Connected })
	if st := u.Stats(); st.Dials != 4 {
		t.Errorf("%d dials: the address that worked is not the first to be tried again", st.Dials)
	}
}

func TestWelcome_WhatIsWrongWithItEndsTheSession(t *testing.T) {
	text := func(s string) func(*cloudSession) {
		return func(s2 *cloudSession) { s2.write(websocket.TextMessage, []byte(s)) }
	}
	good := func(change func(*wire.Welcome)) func(*cloudSession) {
		return func(s *cloudSession) {
			w := &wire.Welcome{Store: "s", Session: 1, Window: wire.Window{Bytes: 1, Blocks: 1}, MaxFrame: wire.MinFrameBytes, Heartbeat: 1000}
			change(w)
			s.send(w)
		}
	}
	for _, c := range []struct {
		name string
		send func(*cloudSession)
		want string
		code int // that the cloud hears; 0: none
	}{
		{"garbage", text(string(wire.Seal([]byte(`{"type":"welcome","session":"one"}`)))), "broke the protocol", wire.CloseProtocol},
		{"changed on its way", text(`{"type":"welcome","crc":"00000000"}`), "CRC does not hold", wire.CloseProtocol},
		{"without a CRC", text(`{"type":"welcome"}`), "CRC does not hold", wire.CloseProtocol},
		{"not UTF-8", text("{\"type\":\"wel\xffcome\"}"), "not UTF-8", websocket.CloseInvalidFramePayloadData},
		{"binary", func(s *cloudSession) { s.write(websocket.BinaryMessage, []byte{1}) }, "binary message", wire.CloseProtocol},
		{"ack first", func(s *cloudSession) { s.send(&wire.Ack{}) }, "before welcome", wire.CloseProtocol},
		{"small frames", good(func(w *wire.Welcome) { w.MaxFrame = 1000 }), "frames of 1000 bytes", wire.CloseProtocol},
		{"twice", func(s *cloudSession) { good(func(*wire.Welcome) {})(s); good(func(*wire.Welcome) {})(s) }, "second welcome", wire.CloseProtocol},
		{"hello back", func(s *cloudSession) { good(func(*wire.Welcome) {})(s); s.send(&wire.Hello{}) }, "from the cloud", wire.CloseProtocol},
		{"hello back, and talks on", func(s *cloudSession) {
			good(func(*wire.Welcome) {})(s)
			for range 10 {
				s.send(&wire.Hello{})
			}
		}, "from the cloud", wire.CloseProtocol},
		{"too large", func(s *cloudSession) { text(strings.Repeat("x", wire.MaxMessageBytes+1))(s) }, "read limit", 0}, // it is told 1009, and can't hear it while it writes
		{"cut short", func(s *cloudSession) {
			// a text frame of 100 bytes, of which 10 come
			s.conn.NetConn().Write(append([]byte{0x81, 100}, `{"type":"w`...))
			s.conn.Close()
		}, "connection lost", 0},
		{"none", func(*cloudSession) {}, "no welcome within", websocket.ClosePolicyViolation},
		{"closed instead", func(s *cloudSession) {
			s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1008, "who are you"), time.Time{})
		}, "who are you", 1008},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.cloud.session = func(s *cloudSession) bool {
					if _, ok := s.hello(); ok {
						c.send(s)
						s.serve()
					}
					return true
				}
				o := w.options()
				o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
				u := w.uplink(o)
				w.start(u)
				time.Sleep(o.HandshakeTimeout + time.Second)
				synctest.Wait()
				if st := u.Stats(); st.State != Waiting || !contains(st.LastError, c.want) {
					t.Errorf("%s with %q, want an error with %q", st.State, st.LastError, c.want)
				}
				code := 0
				if len(w.cloud.saw().closes) > 0 {
					code = w.cloud.saw().closes[0].Code
				}
				if code != c.code {
					t.Errorf("the cloud heard close code %d, want %d", code, c.code)
				}
			})
		})
	}
}

func TestSession_IgnoresWhatItDoesNotKnow(t *testing.T) {
	w := newWorld(t)
	w.cloud.session = func(s *cloudSession) bool {
		hello, ok := s.hello()
		if !ok {
			return true
		}
		s.write(websocket.TextMessage, wire.Seal([]byte(`{"type":"advertisement","buy":"now"}`)))
		s.welcome(hello)
		s.write(websocket.TextMessage, wire.Seal([]byte(`{"type":"ack","accepted":[],"sponsor":"x","time":"2026-01-01T00:00:00Z"}`)))
		e := touchline.NewEpoch()
		all := []wire.EpochRanges{{Epoch: e, Ranges: touchline.Ranges{{First: 1, Last: 99}}}}
		s.send(&wire.Ack{Accepted: all, Stored: all, Lost: []uint64{1, 2}})
		s.send(&wire.Resend{Epoch: e, Ranges: touchline.Ranges{{First: 1, Last: 99}}})
		s.conn.WriteControl(websocket.PongMessage, []byte("unasked"), time.Time{})
		s.serve()
		return true
	}
	w.source.add(blocks(touchline.NewEpoch(), 1, 10, 5, 1000)...)
	u := w.uplink(w.options())
	stop := w.start(u)
	w.bell.await(t, "delivered", func() bool { return w.source.left() == 0 })
	stop()
	if st := u.Stats(); st.Sessions != 1 || st.LostHeard != 0 {
		t.Errorf("stats %+v, want one session and nothing confirmed", st)
	}
}

// The table of docs/protocol.md: how long each close code keeps us away, the
// first time and, where that differs, the next.
func TestSession_EachCloseCodeHasItsWait(t *testing.T) {
	const refused = 30 * time.Second // half of reconnect_max
	for _, c := range []struct {
		code        int
		least, most time.Duration
		again       time.Duration // least wait after the second in a row
		want        string
	}{
		{1000, 0, time.Second, 0, "closed the session (1000 sorry)"},
		{1001, 0, time.Second, 0, "goes away"},
		{1008, 0, time.Second, 0, "ended the session (1008 sorry)"},
		{1011, 0, time.Second, 0, "closed the session (1011 sorry)"},
		{1012, 0, 6 * time.Second, 0, "restarts"},
		{1013, 10 * time.Second, 61 * time.Second, 10 * time.Second, "overloaded"},
		{4400, refused, refused + time.Second, refused, "we broke the protocol"},
		{4401, 0, 0, refused, "check gateway.id and uplink.token_file"},
		{4403, refused, refused + time.Second, refused, "does not let this gateway in"},
		{4408, 0, time.Second, 0, "4408"},
		{4409, 10 * time.Second, 11 * time.Second, 20 * time.Second, "used by another box too"},
		{4413, refused, refused + time.Second, refused, "we broke the protocol"},
		{4426, 10 * time.Minute, 10*time.Minute + time.Second, 10 * time.Minute, "needs an update"},
		{4429, 10 * time.Second, 61 * time.Second, 10 * time.Second, "too many sessions"},
		{4477, refused, refused + time.Second, refused, "closed the session (4477 sorry)"},
	} {
		t.Run(fmt.Sprint(c.code), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.cloud.session = func(s *cloudSession) bool {
					if hello, ok := s.hello(); ok && s.welcome(hello) {
						s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(c.code, "sorry"), time.Time{})
						s.serve()
					}
					return true
				}
				o := w.options()
				o.BackoffBase, o.BackoffCap = time.Second, time.Minute
				u := w.uplink(o)
				began := time.Now()
				w.start(u)
				synctest.Wait()
				st := u.Stats()
				wait := st.NextTry.Sub(began)
				if c.most == 0 {
					if st.Dials != 2 {
						t.Fatalf("%d dials, want a second one at once", st.Dials)
					}
				} else if st.State != Waiting || wait < c.least || wait > c.most {
					t.Errorf("%s, next try in %v, want %v to %v", st.State, wait, c.least, c.most)
				}
				if !contains(st.LastError, c.want) {
					t.Errorf("error %q lacks %q", st.LastError, c.want)
				}
				for u.Stats().Dials < 2 {
					time.Sleep(time.Millisecond)
				}
				synctest.Wait()
				if wait := time.Until(u.Stats().NextTry); wait < c.again-time.Millisecond {
					t.Errorf("after the second: next try in %v, want at least %v", wait, c.again)
				}
			})
		})
	}
}

func TestNew_ReportsAllThatIsWrong(t *testing.T) {
	o := Defaults()
	o.URLs = []string{"ftp://cloud", "wss://user:hunter2@cloud", "ws://", "ws://cloud/#x", "ws://cl oud", "://hunter2"}
	o.Gateway = "no spaces"
	o.Heartbeat = 0
	o.BackoffCap = time.Millisecond
	_, err := New(o, newMemSource(t, &bell{}), nil)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`begins with "ftp"`, "uplink.token_file", "no host", "fragment", "gateway id", "uplink.heartbeat", "uplink.backoff_cap", "software"} {
		if !contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if contains(err.Error(), "hunter2") {
		t.Errorf("error shows a password:\n%v", err)
	}
}

func TestParseURL_Forms(t *testing.T) {
	for in, want := range map[string]string{
		"ws://127.0.0.1:8090":            "ws://127.0.0.1:8090/v1/uplink",
		"ws://[::1]:8090/":               "ws://[::1]:8090/v1/uplink",
		"wss://cloud.example.org":        "wss://cloud.example.org/v1/uplink",
		"http://cloud:80":                "ws://cloud:80/v1/uplink",
		"https://cloud/venue/uplink":     "wss://cloud/venue/uplink",
		"wss://cloud/v1/uplink?region=x": "wss://cloud/v1/uplink?region=x",
	} {
		u, err := parseURL(in)
		if err != nil || u.String() != want {
			t.Errorf("parseURL(%q) = %v, %v; want %s", in, u, err, want)
		}
	}
	u, _ := parseURL("wss://cloud/?key=hunter2")
	if got := shown(u); contains(got, "hunter2") {
		t.Errorf("shown as %s", got)
	}
}

// Run ends whatever it is doing.
func TestRun_EndsPromptlyInEveryState(t *testing.T) {
	var release chan struct{}
	hold := func(s *cloudSession) { <-release }
	for _, c := range []struct {
		name  string
		setup func(w *world, o *Options) (dial dialFunc)
		ready func(w *world, u *Uplink) bool
		grace time.Duration
	}{
		{name: "dialing", setup: func(w *world, o *Options) dialFunc {
			return func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}, ready: func(w *world, u *Uplink) bool { return u.Stats().Dials == 1 }},
		{name: "handshake", setup: func(w *world, o *Options) dialFunc {
			w.cloud.refuse = func(http.ResponseWriter, *http.Request) bool { <-release; return true }
			return nil
		}, ready: func(w *world, u *Uplink) bool { return w.cloud.saw().requests == 1 }},
		{name: "hello", setup: func(w *world, o *Options) dialFunc {
			w.cloud.session = func(s *cloudSession) bool { s.hello(); hold(s); return true }
			return nil
		}, ready: func(w *world, u *Uplink) bool { return len(w.cloud.saw().hellos) == 1 }, grace: closeGrace},
		{name: "idle", ready: func(w *world, u *Uplink) bool { return u.Stats().State == Connected && w.source.idle() }},
		{name: "blocked write", setup: func(w *world, o *Options) dialFunc {
			w.source.add(blocks(touchline.NewEpoch(), 1, 50, 1, 100<<10)...)
			w.cloud.session = func(s *cloudSession) bool {
				if hello, ok := s.hello(); ok && s.welcome(hello) {
					s.conn.NextReader() // the first ping and the block's begin
					hold(s)
				}
				return true
			}
			return nil
		}, ready: func(w *world, u *Uplink) bool { return u.Stats().InFlight.Blocks > 0 }, grace: closeGrace},
		{name: "patient", setup: func(w *world, o *Options) dialFunc {
			w.source.add(blocks(touchline.NewEpoch(), 1, 5, 1, 1000)...)
			w.cloud.block = func(*cloudSession, *wire.FrameBlock) verdict { return silent }
			return nil
		}, ready: func(w *world, u *Uplink) bool { return u.Stats().InFlight.Blocks == 5 }},
		{name: "backoff", setup: func(w *world, o *Options) dialFunc {
			o.BackoffBase, o.BackoffCap = time.Hour, time.Hour
			w.cloud.refuse = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
			return nil
		}, ready: func(w *world, u *Uplink) bool { return u.Stats().State == Waiting }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &bell{limit: time.Hour}
				w := &world{t: t, bell: b, source: newMemSource(t, b), logs: &logBuffer{}}
				w.cloud = newPipeCloud(t, b)
				release = make(chan struct{})
				t.Cleanup(func() { close(release) })
				o := w.options()
				o.Heartbeat, w.cloud.heartbeat = time.Hour, time.Hour
				var dial dialFunc
				if c.setup != nil {
					dial = c.setup(w, &o)
				}
				u := w.uplink(o)
				if dial != nil {
					u.route.dial = dial
				}
				stop := w.start(u)
				synctest.Wait()
				if !c.ready(w, u) {
					t.Fatalf("not in the state wanted: %+v", u.Stats())
				}
				began := time.Now()
				stop()
				if took := time.Since(began); took > c.grace {
					t.Errorf("Run ended after %v, want %v at most", took, c.grace)
				}
				if st := u.Stats().State; st != Stopped {
					t.Errorf("state %s", st)
				}
			})
		})
	}
}
