package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"touchline/sensors"
	"touchline/systemd"
)

// A port is one of the listeners, by the name that its socket has at the
// service manager, and the setting that has its address.
type port struct {
	name    string
	setting string
	address string
	most    int // connections open at a time; those above wait in the system's queue; 0: the owner counts
}

// keepAlive finds a dead peer in a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// ports opens the listeners: sockets that the service manager holds for this
// service are taken over, so that nobody is refused between two lives of the
// gateway, and what is opened is given to it for the next life.
type ports struct {
	held []systemd.Socket
	log  *slog.Logger
	list []*listener
}

// open returns the listener of a port.
func (p *ports) open(o port) (*listener, error) {
	l, err := p.inherit(o)
	if err == nil && l == nil {
		l, err = p.bind(o)
	}
	if err != nil {
		return nil, listenError(o.setting, o.address, err)
	}
	opened := &listener{TCPListener: l, port: o, turn: acceptTurn, closed: make(chan struct{})}
	if o.most > 0 {
		opened.places = make(chan struct{}, o.most)
	}
	p.list = append(p.list, opened)
	return opened, nil
}

// inherit returns the socket that was handed to us under the port's name, and
// nil where there is none. A unit's socket is somebody's word about the address,
// as the setting is: where the two differ it is an error, not a guess.
func (p *ports) inherit(o port) (*net.TCPListener, error) {
	var other net.Addr
	for i := range p.held {
		s := &p.held[i]
		if s.Listener == nil {
			continue
		}
		if isOf(s, o) {
			l := s.Listener.(*net.TCPListener)
			s.Listener = nil // it is ours
			return l, nil
		}
		if s.Name == o.name {
			other = s.Listener.Addr()
		}
	}
	if other != nil {
		return nil, fmt.Errorf("the service manager's socket %q listens on %s: write the same into %s and ListenStream= of its unit", o.name, other, o.setting)
	}
	return nil, nil
}

func (p *ports) bind(o port) (*net.TCPListener, error) {
	l, err := (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(context.Background(), "tcp", o.address)
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		panic(fmt.Sprintf("BUG: listening on tcp made a %T", l))
	}
	p.keep(keptName(o.name), tcp)
	return tcp, nil
}

func (p *ports) keep(name string, l *net.TCPListener) {
	if err := systemd.Keep(name, l); err != nil {
		p.log.Warn("the service manager does not keep the socket: sensors are refused while the gateway restarts", "address", l.Addr(), "error", err)
	}
}

// keptName is that of a socket that the gateway gave to the service manager,
// and so knows to be its own.
func keptName(name string) string { return "kept-" + name }

// releasePatience is how long the service manager may take to close sockets: it
// is busy with a boot.
const releasePatience = 10 * time.Second

// release gives back what was inherited and is none of wanted. That comes before
// anything is opened: an address of before keeps one beside it from being bound
// (0.0.0.0:1883 and 127.0.0.1:1883), and what the service manager forgets are all
// sockets of a name, the one of this life included.
func (p *ports) release(wanted []port) {
	var forgotten []string
	for i := range p.held {
		s := &p.held[i]
		if slices.ContainsFunc(wanted, func(o port) bool { return isOf(s, o) || s.Name == o.name }) {
			continue // a unit's that has another address is inherit's to refuse
		}
		p.log.Info("a socket of the service manager is not used: no setting has its name and address", "socket", s.Name, "address", s.Listener.Addr())
		if err := errors.Join(s.Listener.Close(), systemd.Forget(s.Name)); err != nil {
			p.log.Warn("a socket that is not used can't be given back", "socket", s.Name, "error", err)
		}
		s.Listener = nil
		forgotten = append(forgotten, s.Name)
	}
	if len(forgotten) == 0 {
		return
	}
	if err := systemd.Barrier(releasePatience); err != nil {
		p.log.Warn("whether sockets that are not used are closed is not known", "sockets", forgotten, "error", err)
	}
	for i := range p.held { // one of the same name was forgotten with it
		if s := &p.held[i]; s.Listener != nil && slices.Contains(forgotten, s.Name) {
			if l, ok := s.Listener.(*net.TCPListener); ok {
				p.keep(s.Name, l)
			}
		}
	}
}

// close closes what was inherited and not taken, since opening failed: the
// service manager has it still, for the next life.
func (p *ports) close() {
	for i := range p.held {
		if s := &p.held[i]; s.Listener != nil {
			_ = s.Listener.Close() // our copy: an error changes nothing
			s.Listener = nil
		}
	}
}

// isOf says whether a socket is the one that a port wants.
func isOf(s *systemd.Socket, o port) bool {
	if s.Name != o.name && s.Name != keptName(o.name) {
		return false
	}
	l, ok := s.Listener.(*net.TCPListener)
	return ok && sameAddress(o.address, l.Addr().(*net.TCPAddr))
}

// sameAddress says whether a socket is what a setting asks for. Port 0 is any,
// and the address of all interfaces is the same in both families: systemd's
// ListenStream=1883 is [::]:1883.
func sameAddress(setting string, have *net.TCPAddr) bool {
	want, err := net.ResolveTCPAddr("tcp", setting)
	if err != nil {
		return false
	}
	anywhere := func(ip net.IP) bool { return ip == nil || ip.IsUnspecified() }
	return (want.Port == 0 || want.Port == have.Port) &&
		(anywhere(want.IP) && anywhere(have.IP) || want.IP.Equal(have.IP))
}

func listenError(key, address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s: %s is in use by another program: end that one, or choose another port", key, address)
	}
	return fmt.Errorf("%s %s: %w", key, address, err)
}

// acceptTurn is how long a loop waits for a connection before it turns.
const acceptTurn = 5 * time.Second

// A listener is a TCP listener whose loop of Accept can be seen to turn: it
// does so at least every acceptTurn, whether somebody connects or not. What
// makes it stop is a goroutine that does not come back for the next connection.
type listener struct {
	*net.TCPListener
	port
	places chan struct{} // nil: no limit
	turn   time.Duration // acceptTurn; a test has no time for it
	turns  atomic.Uint64
	once   sync.Once
	closed chan struct{}
}

// Accept waits for a connection, and for a place for it.
func (l *listener) Accept() (net.Conn, error) {
	if err := l.place(); err != nil {
		return nil, err
	}
	for {
		l.turns.Add(1)
		if err := l.SetDeadline(time.Now().Add(l.turn)); err != nil {
			l.leave()
			return nil, err
		}
		conn, err := l.AcceptTCP()
		switch {
		case err == nil:
			_ = conn.SetKeepAliveConfig(keepAlive) // an inherited socket has the system's
			return &connection{TCPConn: conn, leave: sync.OnceFunc(l.leave)}, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			l.leave()
			return nil, err
		}
	}
}

// place waits until fewer than the most are open.
func (l *listener) place() error {
	if l.places == nil {
		return nil
	}
	turn := time.NewTicker(l.turn)
	defer turn.Stop()
	for {
		select {
		case l.places <- struct{}{}:
			return nil
		case <-l.closed:
			return net.ErrClosed
		case <-turn.C:
			l.turns.Add(1)
		}
	}
}

func (l *listener) leave() {
	if l.places != nil {
		<-l.places
	}
}

// Close may be called twice. A socket that the service manager keeps goes on
// to take connections, for the next life.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.TCPListener.Close()
}

// A connection gives its place back when it is closed.
type connection struct {
	*net.TCPConn
	leave func()
}

func (c *connection) Close() error {
	defer c.leave()
	return c.TCPConn.Close()
}

// openListeners opens what the settings name.
func (d *Daemon) openListeners(logger *slog.Logger) (err error) {
	s := &d.config.Sensors
	secure, err := sensorTLS(d.config, logger.With("component", "sensors"))
	if err != nil {
		return err
	}
	held, err := systemd.Sockets()
	if err != nil {
		return fmt.Errorf("take sockets of the service manager: %w", err)
	}
	d.ports = ports{held: held, log: d.logger}
	defer d.ports.close()
	most := s.MaxConnections + maxRequests
	wanted := slices.DeleteFunc([]port{
		{"mqtt", "sensors.mqtt.listen", s.MQTT.Listen, 0}, {"mqtts", "sensors.mqtt.tls_listen", s.MQTT.TLSListen, 0},
		{"http", "sensors.http.listen", s.HTTP.Listen, most}, {"https", "sensors.http.tls_listen", s.HTTP.TLSListen, most},
	}, func(o port) bool { return o.address == "" })
	d.ports.release(wanted)
	open := make(map[string]net.Listener, len(wanted))
	for _, o := range wanted {
		l, err := d.ports.open(o)
		if err != nil {
			return err
		}
		open[o.name] = d.access.Guard(l)
	}
	if open["mqtt"] != nil || open["mqtts"] != nil {
		if err := d.openMQTT(open["mqtt"], open["mqtts"], secure, logger); err != nil {
			return err
		}
	}
	d.listener = open["http"]
	if l := open["https"]; l != nil {
		d.secure = tls.NewListener(l, secure)
	}
	if d.listener != nil || d.secure != nil {
		d.samples, err = sensors.NewHTTP(d.httpOptions(), d.intake, logger)
	}
	return err
}
