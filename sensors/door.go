package sensors

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits bound what one peer may cost, whoever it is. Every field is required.
type Limits struct {
	PerAddress int           // open connections of an address at a time, over all listeners
	Handshakes int           // new connections of an address in a second
	Messages   int           // of a connection in a second; faster ones are slowed down
	Bytes      int           // the same
	Login      time.Duration // from accept to the end of CONNECT or of a request's header
	Receive    time.Duration // for a packet that has begun, or the body of a request, to arrive whole
	Write      time.Duration // for a peer to take one write; then its connection is closed
}

// maxPeers bounds the addresses that are remembered, at some 100 bytes each.
// Only those with connections open, or of the last second, are.
const maxPeers = 1 << 16

// ipv6Site is what one customer of a provider has at least: all of it counts
// as one address.
const ipv6Site = 64

// A door is where connections come in.
type door struct {
	limits Limits

	mu    sync.Mutex // covers peers
	peers map[netip.Addr]*peer
}

// A peer is an address with connections.
type peer struct {
	open  int
	fresh pace
}

// enter notes a connection of an address, or says that it is one too many.
func (d *door) enter(addr netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[addr]
	if p == nil {
		if len(d.peers) >= maxPeers && !d.sweep() {
			return false
		}
		p = &peer{fresh: pace{perSecond: d.limits.Handshakes}}
		d.peers[addr] = p
	}
	if p.open >= d.limits.PerAddress || p.fresh.over() {
		return false
	}
	p.open++
	return true
}

// leave notes the end of a connection.
func (d *door) leave(addr netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[addr]
	if p.open--; p.open == 0 && (p.fresh.idle() || len(d.peers) > maxPeers/2) {
		delete(d.peers, addr)
	}
}

// sweep forgets addresses that are through, and says whether there is room.
func (d *door) sweep() bool {
	for addr, p := range d.peers {
		if p.open == 0 && p.fresh.idle() {
			delete(d.peers, addr)
		}
	}
	return len(d.peers) < maxPeers
}

// peerOf returns what counts as the address of a connection.
func peerOf(conn net.Conn) netip.Addr {
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{} // a socket of this machine
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	if addr.Is6() {
		site, _ := addr.Prefix(ipv6Site) // fails for more than 128 bits only
		return site.Addr()
	}
	return addr
}

// A pace is how much is left of a second's allowance. It looks at the clock
// only when that is used up.
type pace struct {
	perSecond int
	left      int
	began     time.Time
}

// take uses n of the allowance, and returns how long to wait for it.
func (p *pace) take(n int) time.Duration {
	if p.left -= n; p.left >= 0 {
		return 0
	}
	now := time.Now()
	next := p.began.Add(time.Second)
	if next.Before(now) {
		next = now
	}
	p.began, p.left = next, p.perSecond-min(n, p.perSecond)
	return next.Sub(now)
}

// over uses one of the allowance, or says that there is none.
func (p *pace) over() bool {
	if p.left == 0 {
		now := time.Now()
		if now.Sub(p.began) < time.Second {
			return true
		}
		p.began, p.left = now, p.perSecond
	}
	p.left--
	return false
}

func (p *pace) idle() bool { return time.Since(p.began) >= time.Second }

// Guard returns a listener that turns away what is above the limits, before a
// byte of it is read, and slows down what is faster.
func (a *Access) Guard(l net.Listener) net.Listener { return &guardedListener{l, a} }

type guardedListener struct {
	net.Listener
	access *Access
}

// Accept never returns a connection that is above the limits: it is reset, so
// that nothing of it stays here either.
func (l *guardedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		addr := peerOf(conn)
		if l.access.door.enter(addr) {
			return &guardedConn{
				Conn: conn, door: &l.access.door, addr: addr, closed: make(chan struct{}),
				bytes: pace{perSecond: l.access.opts.Limits.Bytes}, messages: pace{perSecond: l.access.opts.Limits.Messages},
			}, nil
		}
		if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
		l.access.turnedAway.Add(1)
		l.access.trouble.warn("connection refused: its address has too many, or makes them too fast", slog.String("address", addr.String()),
			slog.Int("connections_per_address", l.access.opts.Limits.PerAddress), slog.Int("handshakes_per_second", l.access.opts.Limits.Handshakes))
	}
}

// guardedConn is a connection that counts. Read is for one goroutine at a time.
type guardedConn struct {
	net.Conn
	door     *door
	addr     netip.Addr
	bytes    pace // of the goroutine that reads
	messages pace // of the same
	once     sync.Once
	closed   chan struct{}
}

// Read slows down who sends faster than allowed.
func (c *guardedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if wait := c.bytes.take(n); wait > 0 && n > 0 {
		c.wait(wait)
	}
	return n, err
}

// wait sleeps, but no longer than the connection lives.
func (c *guardedConn) wait(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.closed:
	}
}

func (c *guardedConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.door.leave(c.addr)
	})
	return c.Conn.Close()
}

// CloseWrite is for linger.
func (c *guardedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return net.ErrClosed
}

// guarded returns the guardedConn that conn is, or that is below its TLS; nil
// where there is none.
func guarded(conn net.Conn) *guardedConn {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	g, _ := conn.(*guardedConn)
	return g
}

type connKey struct{}

// ConnContext is for http.Server: requests know which connection they came by.
func (a *Access) ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, guarded(conn))
}

// pacePost counts a request as a message.
func pacePost(ctx context.Context) {
	if c, _ := ctx.Value(connKey{}).(*guardedConn); c != nil {
		if wait := c.messages.take(1); wait > 0 {
			c.wait(wait)
		}
	}
}
