package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// A line is the cable between gateway and cloud: it passes on what one sends
// to the other, until it is cut, and again after it was mended.
type line struct {
	to       string
	listener net.Listener

	mu    sync.Mutex // covers what follows
	cut   bool
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// newLine listens on a free port for connections to the given address.
func newLine(to string) (*line, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &line{to: to, listener: listener, conns: map[net.Conn]struct{}{}}, nil
}

func (l *line) address() string { return l.listener.Addr().String() }

// run passes on until ctx ends.
func (l *line) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		l.listener.Close()
		l.set(true)
	})
	defer stop()
	defer l.wg.Wait()
	for {
		near, err := l.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		far, err := net.Dial("tcp", l.to)
		if err != nil {
			near.Close()
			continue
		}
		l.pass(near, far)
	}
}

// pass copies both ways until either side ends or the line is cut.
func (l *line) pass(near, far net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		near.Close()
		far.Close()
		return
	}
	l.conns[near], l.conns[far] = struct{}{}, struct{}{}
	forward := func(to, from net.Conn) {
		defer l.wg.Done()
		_, _ = io.Copy(to, from) // whatever ended it, both ends go
		to.Close()
		from.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, to)
		delete(l.conns, from)
	}
	l.wg.Add(2)
	go forward(far, near)
	go forward(near, far)
}

// set cuts the line, or mends it.
func (l *line) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for c := range l.conns {
			c.Close()
		}
	}
}

// toggle cuts a line that is whole and mends one that is cut; it returns
// whether it is cut now.
func (l *line) toggle() bool {
	l.mu.Lock()
	cut := !l.cut
	l.mu.Unlock()
	l.set(cut)
	return cut
}
