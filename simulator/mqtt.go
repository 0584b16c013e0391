package simulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

// connectTimeout bounds the making of a connection, handshake included.
const connectTimeout = 5 * time.Second

// mqttLink is one MQTT 3.1.1 connection at QoS 1, with a clean session: what
// is not acknowledged is the courier's business, not the client library's.
type mqttLink struct {
	client mqtt.Client
	topic  string
	conn   *gatedConn
	sent   chan mqttSending // for the pump, in order
	acked  chan uint64
	pumped chan struct{} // closed when the pump has ended
	unbind func() bool   // lets go of the context
}

type mqttSending struct {
	id    uint64
	token mqtt.Token
}

func dialMQTT(ctx context.Context, address, sensor string) (link, error) {
	l := &mqttLink{
		topic:  "sensors/" + sensor,
		sent:   make(chan mqttSending, maxWindow),
		acked:  make(chan uint64, maxWindow),
		pumped: make(chan struct{}),
	}
	options := mqtt.NewClientOptions().
		AddBroker("mqtt://" + address). // a name for errors: open below connects
		SetClientID(sensor).
		SetProtocolVersion(4).
		SetCleanSession(true).
		SetAutoReconnect(false).
		SetConnectTimeout(connectTimeout).
		// The library's ping would end a connection whose peer is only
		// slow, and what was in flight would be sent twice. TCP keep-alive
		// finds a dead peer (15 s idle, then 9 probes 15 s apart).
		SetKeepAlive(0).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { l.lost(err) }).
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", address)
			if err != nil {
				return nil, err
			}
			l.conn = &gatedConn{Conn: conn, lost: make(chan struct{})}
			l.unbind = context.AfterFunc(ctx, func() { l.conn.fail(context.Cause(ctx)) })
			return l.conn, nil
		})
	l.client = mqtt.NewClient(options)
	token := l.client.Connect()
	<-token.Done() // within twice connectTimeout; at once when ctx ends, which closes the connection
	if err := token.Error(); err != nil {
		if l.conn != nil {
			l.unbind()
			l.conn.fail(err)
		}
		return nil, mqttDialError(err)
	}
	go l.pump()
	return l, nil
}

// mqttDialError tells the refusals that will come again from the failures
// that may pass.
func mqttDialError(err error) error {
	for _, final := range []error{
		packets.ErrorRefusedBadProtocolVersion,
		packets.ErrorRefusedIDRejected,
		packets.ErrorRefusedBadUsernameOrPassword,
		packets.ErrorRefusedNotAuthorised,
	} {
		if errors.Is(err, final) {
			return refused("connect: %v", err)
		}
	}
	return fmt.Errorf("connect: %w", err)
}

// Send publishes one message. It blocks while the peer does not read; the end
// of the context that the link was dialled with frees it.
func (l *mqttLink) Send(_ context.Context, id uint64, body []byte) error {
	l.conn.gate.Lock()
	defer l.conn.gate.Unlock()
	select {
	case <-l.conn.lost:
		return fmt.Errorf("publish: %w: %w", errNotSent, l.conn.err)
	default:
	}
	token := l.client.Publish(l.topic, 1, false, body)
	l.sent <- mqttSending{id, token} // has room: at most maxWindow are unacknowledged
	select {
	case <-token.Done():
		if err := token.Error(); err != nil { // the library gave up; the next message must not overtake this one
			l.conn.fail(err)
			return fmt.Errorf("publish: %w", err)
		}
	default:
	}
	return nil
}

func (l *mqttLink) Acked() <-chan uint64 { return l.acked }

func (l *mqttLink) Err() error { return fmt.Errorf("mqtt connection: %w", l.conn.err) }

// Close says DISCONNECT (MQTT 3.1.1, section 3.14) where the peer still
// listens. The library's own Disconnect races with the loss of a connection;
// ending the connection below it leaves one way for it to end.
func (l *mqttLink) Close() {
	l.unbind()
	select {
	case <-l.conn.lost:
	default:
		_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = l.conn.Write([]byte{0xe0, 0})
	}
	l.conn.fail(net.ErrClosed)
	<-l.pumped
}

// lost is called by the library when the connection has ended and each of its
// tokens is complete: those that were not acknowledged have an error.
func (l *mqttLink) lost(err error) {
	l.conn.fail(err)
	l.conn.gate.Lock() // no Send is under way, and the next one sees the loss
	close(l.sent)
	l.conn.gate.Unlock()
}

// pump turns completed tokens into acknowledgements, in order.
func (l *mqttLink) pump() {
	defer close(l.pumped)
	defer close(l.acked)
	for s := range l.sent {
		<-s.token.Done()
		if s.token.Error() == nil {
			l.acked <- s.id // has room for a whole window
		}
	}
}

// gatedConn is the connection below the client library. The library blocks a
// Publish for up to 30 s, and may never complete its token, when the
// connection is lost in the middle of it. So it learns of a loss only when no
// Publish is under way, and from Read alone.
type gatedConn struct {
	net.Conn
	gate sync.Mutex // held during a Publish
	once sync.Once
	err  error // why it was lost; set before lost is closed
	lost chan struct{}
}

// fail ends the connection; the first cause stays.
func (c *gatedConn) fail(cause error) {
	c.once.Do(func() {
		c.err = cause
		close(c.lost)
		c.Conn.Close()
	})
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.fail(err)
		c.gate.Lock() // a Publish under way comes to its end, since writing has
		err = errLost
		c.gate.Unlock()
	}
	return n, err
}

// errLost is what Read says of any loss. The library overlooks an error whose
// text is that of net.ErrClosed.
var errLost = errors.New("connection lost")

func (c *gatedConn) Write(p []byte) (int, error) {
	if _, err := c.Conn.Write(p); err != nil {
		c.fail(err) // Read reports it
	}
	return len(p), nil
}
