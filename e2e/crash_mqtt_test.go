package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// mqttLink speaks MQTT 3.1.1 or 5 as far as a publisher does, with many
// messages in flight. It is written here since client libraries send again
// behind the caller's back, and the ledger must know of each sending.
type mqttLink struct {
	conn     net.Conn
	in       *bufio.Reader
	client   *client
	version  byte
	sessions *mqttSession

	mu     sync.Mutex // covers writing and flying
	flying map[uint16]int
}

// mqttSession is what a QoS 2 sender keeps between connections: the packet ids
// that it has to release. It would lose a message to its old id otherwise.
type mqttSession struct{ releasing map[uint16]struct{} }

const (
	mqttConnack = 2
	mqttPuback  = 4
	mqttPubrec  = 5
	mqttPubcomp = 7
)

func newMQTTDialer(s *site, c *client) func(context.Context) (link, error) {
	session := &mqttSession{releasing: map[uint16]struct{}{}}
	version := byte(4)
	if c.transport == "mqtt5" {
		version = 5
	}
	return func(ctx context.Context) (link, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.mqtt))
		if err != nil {
			return nil, err
		}
		l := &mqttLink{conn: conn, in: bufio.NewReader(conn), client: c, version: version, sessions: session, flying: map[uint16]int{}}
		if err := l.connect(); err != nil {
			conn.Close()
			return nil, err
		}
		return l, nil
	}
}

// connect opens the session: a new one for QoS 1, a kept one where packet ids
// are names and for QoS 2, whose ids are released first (MQTT 5, section 4.4).
func (l *mqttLink) connect() error {
	body := mqttString(nil, "MQTT")
	flags := byte(0)
	if l.client.qos == 1 && !l.client.named {
		flags = 2
	}
	body = append(body, l.version, flags, 0, 0) // no keep-alive
	if l.version == 5 {
		body = append(body, 5, 17, 0, 0, 14, 16) // the session expires after an hour
	}
	if _, err := l.conn.Write(mqttPacket(0x10, mqttString(body, l.client.sensor))); err != nil {
		return err
	}
	kind, body, err := l.read()
	if err != nil {
		return err
	}
	if kind != mqttConnack || len(body) < 2 || body[1] != 0 {
		return fmt.Errorf("CONNECT was answered with packet type %d, % x", kind, body)
	}
	for id := range l.sessions.releasing {
		if err := l.release(id); err != nil {
			return err
		}
	}
	return nil
}

func (l *mqttLink) release(id uint16) error {
	_, err := l.conn.Write([]byte{0x62, 2, byte(id >> 8), byte(id)})
	return err
}

func (l *mqttLink) send(message int, body []byte, dup bool) error {
	id := uint16(message%65535) + 1
	if l.client.named {
		id = uint16(message%60_000) + 5000 // beyond those of a client that takes the lowest free one
	}
	out := mqttString(nil, "sensors/"+l.client.sensor)
	out = append(out, byte(id>>8), byte(id))
	if l.version == 5 {
		out = append(out, 0)
	}
	first := 0x30 | l.client.qos<<1
	if dup {
		first |= 8
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying[id] = message
	_, err := l.conn.Write(mqttPacket(first, append(out, body...)))
	return err
}

func (l *mqttLink) answers() ([]answer, error) {
	for {
		kind, body, err := l.read()
		if err != nil {
			return nil, err
		}
		if kind == 14 { // DISCONNECT; the end of the connection follows
			continue
		}
		if len(body) < 2 {
			return nil, fmt.Errorf("packet type %d has %d bytes", kind, len(body))
		}
		id := binary.BigEndian.Uint16(body)
		reason := byte(0)
		if len(body) > 2 {
			reason = body[2]
		}
		l.mu.Lock()
		message, known := l.flying[id]
		switch {
		case kind == mqttPubcomp:
			delete(l.sessions.releasing, id)
		case kind == mqttPubrec && reason < 0x80:
			l.sessions.releasing[id] = struct{}{}
			err = l.release(id)
		}
		delete(l.flying, id)
		l.mu.Unlock()
		if (kind == mqttPuback || kind == mqttPubrec) && known {
			a := answer{message: message}
			if reason >= 0x80 {
				a.refusal = fmt.Sprintf("mqtt5 %#x", reason)
			}
			return []answer{a}, err
		}
		if err != nil {
			return nil, err
		}
	}
}

func (l *mqttLink) close() { l.conn.Close() }

func (l *mqttLink) read() (kind byte, body []byte, err error) {
	first, err := l.in.ReadByte()
	if err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(l.in) // the same form as MQTT's remaining length
	if err != nil {
		return 0, nil, err
	}
	if n > 1<<16 {
		return 0, nil, errors.New("packet is too long")
	}
	body = make([]byte, n)
	_, err = io.ReadFull(l.in, body)
	return first >> 4, body, err
}

func mqttString(dst []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

func mqttPacket(first byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)
}
