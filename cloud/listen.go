package cloud

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"touchline/credential"
)

// limitConnections returns a listener that accepts from inner while fewer
// than n of its connections are open. Those that come then wait in the system's
// queue, so a flood costs neither memory nor file descriptors.
func limitConnections(inner net.Listener, n int) net.Listener {
	return &limitedListener{Listener: inner, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots  chan struct{} // one element for each open connection
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return onClose(conn, func() { <-l.slots }), nil
}

// Close implements net.Listener.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// onClose returns conn, and calls release once when that is closed. Several
// limits wrap a connection once: each layer would take 48 bytes of the stack on
// which an idle session is parked.
func onClose(conn net.Conn, release func()) net.Conn {
	limited, ok := conn.(*limitedConn)
	if !ok {
		return &limitedConn{Conn: conn, release: release}
	}
	before := limited.release
	limited.release = func() {
		before()
		release()
	}
	return limited
}

type limitedConn struct {
	net.Conn
	closed  sync.Once
	release func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.closed.Do(c.release)
	return c.Conn.Close()
}

// CloseWrite ends this side's half where the connection has halves.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// limitAddresses returns a listener that closes connections of an address
// (IPv6: of a /64) that has max open already. Those that except names have no limit.
func limitAddresses(inner net.Listener, max int, except func(netip.Addr) bool, refused func()) net.Listener {
	return &addressListener{Listener: inner, max: max, except: except, refused: refused, open: map[string]int{}}
}

type addressListener struct {
	net.Listener
	max     int
	except  func(netip.Addr) bool
	refused func()

	mu   sync.Mutex // covers what follows
	open map[string]int
}

// Accept implements net.Listener.
func (l *addressListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := peer(conn.RemoteAddr().String())
		if l.except(addr) {
			return conn, nil
		}
		name := network(addr)
		if l.enter(name) {
			return onClose(conn, func() { l.leave(name) }), nil
		}
		l.refused()
		conn.Close()
	}
}

func (l *addressListener) enter(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[name] >= l.max {
		return false
	}
	l.open[name]++
	return true
}

func (l *addressListener) leave(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[name]--; l.open[name] == 0 {
		delete(l.open, name)
	}
}

// listenTLS returns a listener that speaks TLS 1.2 or newer, with a
// certificate that is read again when its files change, and asks for a client
// certificate of clients, if there are any.
func listenTLS(inner net.Listener, o *Options, clients *x509.CertPool, logger *slog.Logger) (net.Listener, *credential.CertificateFile, error) {
	files, err := credential.OpenCertificateFile(o.CertFile, o.KeyFile, logger)
	if err != nil {
		return nil, nil, err
	}
	settings := credential.ServerTLS(files)
	settings.NextProtos = []string{"http/1.1"} // a WebSocket is an upgrade of it
	if clients != nil {
		settings.ClientCAs, settings.ClientAuth = clients, tls.RequestClientCert // mutual checks it
	}
	return tls.NewListener(inner, settings), files, nil
}
