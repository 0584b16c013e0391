package sensors

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"
)

// acceptor gives mochi its connections. mochi's own listeners neither bound
// the time to CONNECT nor wait for the goroutines they start.
type acceptor struct {
	m      *MQTT
	id     string
	secure bool
}

func (a *acceptor) Init(*slog.Logger) error { return nil }
func (a *acceptor) ID() string              { return a.id }
func (a *acceptor) Address() string         { return a.listener().Addr().String() }
func (a *acceptor) Protocol() string        { return "tcp" }

func (a *acceptor) listener() net.Listener {
	if a.secure {
		return a.m.secure
	}
	return a.m.listener
}

// Serve accepts until the listener is closed.
func (a *acceptor) Serve(establish listeners.EstablishFn) {
	m := a.m
	for {
		conn, err := a.listener().Accept()
		switch {
		case err == nil:
			if a.secure {
				conn = tls.Server(conn, m.opts.TLS) // the handshake comes with the first read, and within the time for CONNECT
			}
			m.serve(conn, establish)
		case errors.Is(err, net.ErrClosed):
			return
		default: // out of file descriptors, most likely: the others go on
			m.trouble.warn("can't accept a connection", slog.Any("error", err))
			select {
			case <-m.ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// serve starts the goroutine of one connection.
func (m *MQTT) serve(conn net.Conn, establish listeners.EstablishFn) {
	c := newMQTTConn(m, conn)
	m.mu.Lock()
	if m.closed || len(m.conns) >= m.opts.MaxConnections+handshakeHeadroom {
		closed := m.closed
		m.mu.Unlock()
		_ = conn.Close()
		if !closed {
			m.intake.reject(CauseLimit)
			m.trouble.warn("mqtt connection refused: too many are open", slog.String("remote", conn.RemoteAddr().String()),
				slog.Int("max_connections", m.opts.MaxConnections))
		}
		return
	}
	m.conns[c] = struct{}{}
	m.wg.Add(1)
	m.mu.Unlock()
	m.intake.counters[TransportMQTT].connections.Add(1)
	go func() {
		defer m.wg.Done()
		err := establish("mqtt", c)
		c.ended(err)
		m.mu.Lock()
		delete(m.conns, c)
		m.mu.Unlock()
		m.intake.counters[TransportMQTT].connections.Add(-1)
	}()
}

// Close is called by mochi's server as it ends, once for each acceptor.
func (a *acceptor) Close(listeners.CloseFn) {
	_ = a.m.closeListeners() // an error would be that of a listener that is gone already
	a.m.mu.Lock()
	for c := range a.m.conns {
		c.shutDown()
	}
	a.m.mu.Unlock()
	a.m.wg.Wait()
}

// expected says whether err is how connections usually end.
func expected(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}
