package sensors

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// dialHTTP returns a bare connection to a handler.
func dialHTTP(t *testing.T, url string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestLimits_WhatTricklesIsCutOff(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Limits.Receive = 50 * time.Millisecond })
	c := v.connect(t, startMQTT(t, v.in, nil, v.log.logger()).Addr(), 5, "belt-17")
	c.send(t, publishPacket(5, 1, 1, "sensors/belt-17/hr", "142")[:9])
	c.expectClosed(t)

	conn := dialHTTP(t, startHTTP(t, v.in, nil, v.log.logger()).URL)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{", SamplesPath, v.key["belt-17"])
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if said, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(said), "HTTP/1.1 400") {
		t.Errorf("a body that trickles: %q, %v", said, err)
	}
	v.gotNothing(t)
}

// Who asks and asks and never reads is cut off, when all that lies between holds
// no more: some megabytes.
func TestLimits_WhoDoesNotReadIsCutOff(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Limits.Write = 50 * time.Millisecond })
	m := startMQTT(t, v.in, nil, v.log.logger())
	server := startHTTP(t, v.in, nil, v.log.logger())
	stream := dialStream(t, server.URL, "", http.Header{"Authorization": {"Bearer " + v.key["belt-17"]}})
	for name, c := range map[string]struct {
		conn    net.Conn
		request []byte // a short one with a long answer
	}{
		"mqtt":   {v.connect(t, m.Addr(), 5, "belt-17").Conn, publishPacket(5, 1, 1, "x", "1")},
		"http":   {dialHTTP(t, server.URL), []byte("GET /x HTTP/1.1\r\nHost: x\r\n\r\n")},
		"stream": {stream.NetConn(), []byte{0x81, 0x81, 0, 0, 0, 0, '{'}},
	} {
		_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
		requests := []byte(strings.Repeat(string(c.request), 500))
		for {
			if _, err := c.conn.Write(requests); err == nil {
				continue
			} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				t.Errorf("%s: the connection is still open", name)
			}
			break
		}
	}
	v.gotNothing(t)
}

// What does not fit the queue of a subscriber that does not read is dropped,
// and counted.
func TestLimits_SubscribersAndTheirQueueAreSettings(t *testing.T) {
	v := newVenue(t, func(o *AccessOptions) { o.Rules.Anonymous = true })
	m := startMQTT(t, v.in, func(o *MQTTOptions) { o.Subscribers, o.SubscriberQueue = 1, 1 }, v.log.logger())
	display, other := dialMQTT(t, m.Addr(), 4, "display"), dialMQTT(t, m.Addr(), 4, "other")
	display.send(t, subscribePacket(4, "sensors/#", 0))
	if p := display.expect(t, kSuback); p.body[len(p.body)-1] != 0 {
		t.Errorf("the first subscriber got %#x", p.body[len(p.body)-1])
	}
	other.send(t, subscribePacket(4, "sensors/#", 0))
	if p := other.expect(t, kSuback); p.body[len(p.body)-1] < 0x80 {
		t.Error("a second subscriber was let in")
	}
	payload := `"` + strings.Repeat("x", 12<<10) + `"`
	sent := 0
	for ; v.in.Stats().Dropped == 0; sent++ {
		other.publish(t, 1, 1, "sensors/belt-99/note", payload)
		other.expectAck(t, kPuback, 1)
	}
	if got := len(v.store.stored()); got != sent {
		t.Errorf("%d samples are stored, want %d", got, sent)
	}
}

// However large a body may be, those under way hold about as much.
func TestLimits_LargeBodiesShareTheirMemory(t *testing.T) {
	in := newTestIntake(t, newStore(t))
	for body, want := range map[int]int{1 << 20: 8, 16 << 20: 1, 4 << 20: 2} {
		h, err := NewHTTP(HTTPOptions{BodyBytes: body, MessageBytes: 1, MaxRequests: 1, MaxStreams: 1, Window: 1, PingInterval: time.Second}, in, (&logBuffer{}).logger())
		if err != nil {
			t.Fatal(err)
		}
		if got := cap(h.large); got != want {
			t.Errorf("%d bodies of %d bytes at a time, want %d", got, body, want)
		}
		h.Close()
	}
}
