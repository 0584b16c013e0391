package netlab

import (
	"crypto/tls"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// A pair is one connection of a relay: the client's, and the one dialed for it.
type pair struct {
	relay  *Relay
	number int
	client net.Conn // as accepted
	done   chan struct{}

	mu       sync.Mutex // covers what follows
	server   net.Conn   // nil before it is dialed
	isReset  bool
	released chan struct{} // closed by release
	waiting  int           // directions that hold back an end
}

func newPair(r *Relay, client net.Conn, number int) *pair {
	return &pair{relay: r, number: number, client: client, done: make(chan struct{}), released: make(chan struct{})}
}

// run lives as long as the connection.
func (p *pair) run() {
	defer close(p.done)
	defer p.reset()
	target, client := "", p.client
	if greet := p.relay.opts.Greet; greet != nil {
		var err error
		if target, client, err = greet(p.client); err != nil {
			p.relay.count(func(s *RelayStats) { s.Rejected++ })
			end(p.client)
			return
		}
		p.relay.count(func(s *RelayStats) { s.Greeted++ })
	}
	server, err := p.relay.opts.Dial(p.relay.ctx, target)
	if err != nil || !p.dialed(server) {
		return
	}
	p.relay.count(func(s *RelayStats) { s.Dialed++ })
	var both sync.WaitGroup
	both.Go(func() { p.newPump(client, server, 0).run() })
	both.Go(func() { p.newPump(server, client, 1).run() })
	both.Wait()
	client.Close()
	server.Close()
}

// dialed notes the server's connection; false means that it is late.
func (p *pair) dialed(server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = server
	if p.isReset {
		abort(server)
	}
	return !p.isReset
}

// reset ends both connections at once, and whoever waits.
func (p *pair) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isReset {
		return
	}
	p.isReset = true
	p.open()
	abort(p.client)
	if p.server != nil {
		abort(p.server)
	}
}

// release passes on an end that is held back, and waits for what follows.
func (p *pair) release() bool {
	p.mu.Lock()
	held := p.waiting > 0
	if held {
		p.open()
	}
	p.mu.Unlock()
	if held {
		<-p.done
	}
	return held
}

// open closes released, once. The caller holds p.mu.
func (p *pair) open() {
	select {
	case <-p.released:
	default:
		close(p.released)
	}
}

func (p *pair) wait(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting += n
}

// A pump carries one direction.
type pump struct {
	*pair
	from, to  net.Conn
	direction int // 0 is up
	rand      *rand.Rand
	swallows  bool // something has vanished: what follows would be nonsense
	flipIn    int  // bytes until the next flipped bit; 0 is not drawn yet
}

func (p *pair) newPump(from, to net.Conn, direction int) *pump {
	return &pump{pair: p, from: from, to: to, direction: direction, rand: newRand(p.relay.opts.Seed, 2*p.number+direction)}
}

func (p *pump) run() {
	buf := make([]byte, 32<<10)
	for {
		n, err := p.from.Read(buf)
		if n > 0 && p.pass(buf[:n]) != nil {
			if f, _ := p.relay.current(); !f.HoldCloses {
				p.reset()
				return
			}
			p.swallows = true // the sender must not learn that nobody is there
		}
		if err != nil {
			p.end()
			return
		}
	}
}

// flow returns the faults of this direction.
func (p *pump) flow() (Flow, <-chan struct{}) {
	f, changed := p.relay.current()
	if p.direction == 0 {
		return f.Up, changed
	}
	return f.Down, changed
}

// pass hands data on as the faults of the moment say.
func (p *pump) pass(data []byte) error {
	for len(data) > 0 {
		f, changed := p.flow()
		if f.Stall {
			select {
			case <-changed:
			case <-p.released: // reset
				return net.ErrClosed
			}
			continue
		}
		if p.swallows = p.swallows || f.Blackhole; p.swallows {
			p.relay.count(func(s *RelayStats) { s.Swallowed += uint64(len(data)) })
			return nil
		}
		piece := data
		if f.BytesPerSecond > 0 { // ten times a second, or a byte at a time
			piece = data[:min(len(data), max(1, f.BytesPerSecond/10))]
		}
		p.corrupt(piece, f.CorruptEvery)
		if _, err := p.to.Write(piece); err != nil {
			return err
		}
		p.countPassed(len(piece))
		data = data[len(piece):]
		if f.BytesPerSecond > 0 {
			p.sleep(transmission(len(piece), 8*f.BytesPerSecond), changed)
		}
	}
	return nil
}

func (p *pump) countPassed(n int) {
	p.relay.count(func(s *RelayStats) {
		if p.direction == 0 {
			s.Up += uint64(n)
		} else {
			s.Down += uint64(n)
		}
	})
}

// corrupt flips one bit in about every bytes.
func (p *pump) corrupt(data []byte, every int) {
	if every <= 0 {
		p.flipIn = 0
		return
	}
	for {
		if p.flipIn == 0 {
			p.flipIn = 1 + p.rand.IntN(2*every)
		}
		if p.flipIn > len(data) {
			p.flipIn -= len(data)
			return
		}
		data[p.flipIn-1] ^= 1 << p.rand.IntN(8)
		p.relay.count(func(s *RelayStats) { s.Flipped++ })
		data, p.flipIn = data[p.flipIn:], 0
	}
}

// end passes on that from has ended, when the faults allow it.
func (p *pump) end() {
	p.wait(1)
	defer p.wait(-1)
	for {
		f, changed := p.relay.current()
		flow, _ := p.flow()
		if !f.HoldCloses && !flow.Stall && !flow.Blackhole && !p.swallows {
			if f.CloseDelay > 0 {
				p.sleep(f.CloseDelay, nil)
			}
			break
		}
		select {
		case <-changed:
			if p.swallows {
				f, _ := p.flow()
				if !f.Blackhole { // what vanished can't be made up for
					p.reset()
					return
				}
			}
			continue
		case <-p.released:
		}
		break
	}
	end(p.to)
}

// sleep waits for d, or until the faults change or the pair is reset.
func (p *pump) sleep(d time.Duration, changed <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-p.released:
	}
}

// end closes the writing half of a connection, or all of it.
func end(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	c.Close()
}

// abort closes a connection with a reset.
func abort(c net.Conn) {
	for {
		switch inner := c.(type) {
		case *tls.Conn:
			c = inner.NetConn()
			continue
		case *prefixed:
			c = inner.Conn
			continue
		case *net.TCPConn:
			_ = inner.SetLinger(0)
		}
		c.Close()
		return
	}
}
