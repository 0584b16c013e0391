package main

import (
	"errors"
	"net"
	"sync"
)

// nullBroker acknowledges and forgets, in this process: what the load can do
// at most, so that one sees whether it bounds what is measured.
type nullBroker struct {
	listener net.Listener
	ended    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func startNullBroker() (*nullBroker, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &nullBroker{listener: listener, conns: map[net.Conn]struct{}{}}
	b.ended.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			b.conns[conn] = struct{}{}
			b.mu.Unlock()
			b.ended.Go(func() {
				serveNull(conn)
				conn.Close()
				b.mu.Lock()
				delete(b.conns, conn)
				b.mu.Unlock()
			})
		}
	})
	return b, nil
}

func (b *nullBroker) address() string { return b.listener.Addr().String() }

func (b *nullBroker) close() {
	b.listener.Close()
	b.mu.Lock()
	for conn := range b.conns {
		conn.Close()
	}
	b.mu.Unlock()
	b.ended.Wait()
}

func serveNull(conn net.Conn) {
	in, out := make([]byte, 0, 16<<10), []byte(nil)
	for {
		n, err := conn.Read(in[len(in):cap(in)])
		if err != nil {
			return
		}
		in = in[:len(in)+n]
		rest := in
		out = out[:0]
		for {
			kind, body, after, err := cutPacket(rest)
			if errors.Is(err, errShort) {
				break
			}
			if err != nil {
				return
			}
			rest = after
			switch kind {
			case typeConnect:
				out = append(out, typeConnack<<4, 2, 0, 0)
			case typePublish:
				id, _, err := cutPublish(body)
				if err != nil {
					return
				}
				out = appendPuback(out, id)
			}
		}
		in = in[:copy(in, rest)]
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}
