package sensors

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// brokerDialer opens the connection of one session. ctx ends the dialling, and
// close the connection.
type brokerDialer struct {
	ctx context.Context
	tls func(host string) *tls.Config

	mu   sync.Mutex // covers conn
	conn net.Conn
}

func (d *brokerDialer) open(u *url.URL, o paho.ClientOptions) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, brokerTimeout)
	defer cancel()
	var conn net.Conn
	var err error
	switch u.Scheme {
	case "mqtt", "tcp":
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	case "mqtts", "ssl", "tls":
		conn, err = (&tls.Dialer{Config: d.tls(u.Hostname())}).DialContext(ctx, "tcp", u.Host)
	case "ws", "wss":
		plain := *u
		plain.User = nil // gorilla refuses it; the password is MQTT's
		conn, err = paho.NewWebsocket(plain.String(), d.tls(u.Hostname()), brokerTimeout, o.HTTPHeaders, o.WebsocketOptions)
	default:
		panic("BUG: scheme " + u.Scheme + " was let in")
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", u.Redacted(), err)
	}
	live := &liveConn{Conn: conn, r: bufio.NewReaderSize(conn, 16<<10)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = live
	return live, nil
}

// close ends the connection if there is one. It may be called twice.
func (d *brokerDialer) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		_ = d.conn.Close() // an error would be that it is closed
	}
}

// liveConn finds a dead peer by itself. paho notices a missing PINGRESP, but
// its ping waits behind a write that is stuck. Here every read has a deadline
// that an answered ping keeps away, and every write has one of its own. It
// also buffers what is read, of which paho takes single bytes.
type liveConn struct {
	net.Conn
	r *bufio.Reader

	mu       sync.Mutex // covers deadline
	deadline time.Time  // paho's, for the handshake
}

// Read returns what is buffered, or waits for more.
func (c *liveConn) Read(p []byte) (int, error) {
	if c.r.Buffered() == 0 {
		c.mu.Lock()
		deadline := c.deadline
		c.mu.Unlock()
		if deadline.IsZero() {
			deadline = time.Now().Add(brokerKeepalive + brokerPingTimeout)
		}
		if err := c.Conn.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
	}
	return c.r.Read(p)
}

func (c *liveConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(brokerTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// SetDeadline is called before and after the handshake.
func (c *liveConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

// SetWriteDeadline is paho's; Write knows better.
func (c *liveConn) SetWriteDeadline(time.Time) error { return nil }
