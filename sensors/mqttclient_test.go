package sensors

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// rawClient speaks MQTT byte by byte, so that tests can say what no library
// would, and so that benchmarks measure the broker and not the client.
type rawClient struct {
	net.Conn
	r       *bufio.Reader
	version byte
}

// mqttPacket is one as it came.
type mqttPacket struct {
	kind, flags byte
	body        []byte
}

func (p mqttPacket) id() uint16 {
	if len(p.body) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(p.body)
}

// reason returns the reason code of an acknowledgement.
func (p mqttPacket) reason() byte {
	if len(p.body) < 3 {
		return 0
	}
	return p.body[2]
}

const (
	kConnack    = 2
	kPublish    = 3
	kPuback     = 4
	kPubrec     = 5
	kPubrel     = 6
	kPubcomp    = 7
	kSuback     = 9
	kUnsuback   = 11
	kPingresp   = 13
	kDisconnect = 14
)

func appendString(dst []byte, s string) []byte {
	dst = append(dst, byte(len(s)>>8), byte(len(s)))
	return append(dst, s...)
}

func packet(first byte, body []byte) []byte {
	out := []byte{first}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n > 0 {
			out = append(out, b|0x80)
			continue
		}
		out = append(out, b)
		break
	}
	return append(out, body...)
}

func connectPacket(version byte, id string, clean bool) []byte {
	body := appendString(nil, "MQTT")
	flags := byte(0)
	if clean {
		flags = 2
	}
	body = append(body, version, flags, 0, 60)
	if version == 5 {
		body = append(body, 5, 17, 0, 0, 14, 16) // session expiry: an hour
	}
	return packet(0x10, appendString(body, id))
}

func publishPacket(version, qos byte, id uint16, topic, payload string) []byte {
	body := appendString(nil, topic)
	if qos > 0 {
		body = append(body, byte(id>>8), byte(id))
	}
	if version == 5 {
		body = append(body, 0)
	}
	return packet(0x30|qos<<1, append(body, payload...))
}

func subscribePacket(version byte, filter string, qos byte) []byte {
	body := []byte{0, 1}
	if version == 5 {
		body = append(body, 0)
	}
	return packet(0x82, append(appendString(body, filter), qos))
}

func dialRaw(t testing.TB, addr net.Addr, version byte) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := dialRawOn(conn)
	c.version = version
	return c
}

// dialRawOn speaks MQTT 5 on a connection.
func dialRawOn(conn net.Conn) *rawClient {
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	return &rawClient{Conn: conn, r: bufio.NewReaderSize(conn, 16<<10), version: 5}
}

// dialMQTT connects and reads CONNACK. An id that begins with ! keeps its
// session.
func dialMQTT(t testing.TB, addr net.Addr, version byte, id string) *rawClient {
	t.Helper()
	c := dialRaw(t, addr, version)
	clean := true
	if id[0] == '!' {
		clean = false
	}
	c.send(t, connectPacket(version, id, clean))
	if p := c.expect(t, kConnack); p.body[1] != 0 {
		t.Fatalf("CONNACK says %#x", p.body[1])
	}
	return c
}

func (c *rawClient) send(t testing.TB, packets ...[]byte) {
	t.Helper()
	var all []byte
	for _, p := range packets {
		all = append(all, p...)
	}
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
}

func (c *rawClient) publish(t testing.TB, qos byte, id uint16, topic, payload string) {
	t.Helper()
	c.send(t, publishPacket(c.version, qos, id, topic, payload))
}

func (c *rawClient) read() (mqttPacket, error) {
	first, err := c.r.ReadByte()
	if err != nil {
		return mqttPacket{}, err
	}
	n, err := binary.ReadUvarint(c.r)
	if err != nil {
		return mqttPacket{}, err
	}
	body := make([]byte, n)
	_, err = io.ReadFull(c.r, body)
	return mqttPacket{first >> 4, first & 15, body}, err
}

func (c *rawClient) expect(t testing.TB, kind byte) mqttPacket {
	t.Helper()
	p, err := c.read()
	if err != nil {
		t.Fatalf("waiting for packet type %d: %v", kind, err)
	}
	if p.kind != kind {
		t.Fatalf("got packet type %d % x, want %d", p.kind, p.body, kind)
	}
	return p
}

// expectAck reads an acknowledgement and returns its reason code.
func (c *rawClient) expectAck(t testing.TB, kind byte, id uint16) byte {
	t.Helper()
	p := c.expect(t, kind)
	if p.id() != id {
		t.Fatalf("got acknowledgement %d of packet id %d, want %d", p.kind, p.id(), id)
	}
	return p.reason()
}

// expectAlive makes sure that the broker has processed all before, and that
// it had nothing else to say.
func (c *rawClient) expectAlive(t testing.TB) {
	t.Helper()
	c.send(t, []byte{0xc0, 0})
	c.expect(t, kPingresp)
}

// expectClosed reads until the broker closes, and returns the reason code of a
// DISCONNECT if one came, or 0.
func (c *rawClient) expectClosed(t testing.TB) byte {
	t.Helper()
	var reason byte
	for {
		p, err := c.read()
		if err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				t.Fatal("the broker did not close the connection")
			}
			c.Close() // as a client does; the broker waits for it a while
			return reason
		}
		if p.kind != kDisconnect {
			t.Fatalf("got packet type %d % x, want the end of the connection", p.kind, p.body)
		}
		if len(p.body) > 0 {
			reason = p.body[0]
		}
	}
}
