package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/wire"
)

// A session is a gateway's uplink as the load needs it: hello and welcome are
// done. One goroutine may read and one write; pings are answered by who reads.
type session struct {
	conn    *websocket.Conn
	welcome *wire.Welcome
}

// A call says who calls whom.
type call struct {
	address string // of the node
	gateway string
	token   string
	epoch   touchline.Epoch // that blocks will be of; zero where none will come
	local   net.IP          // address to call from; nil is any
	buffer  int             // bytes, for reading and for writing
}

// loadBuffers are shared by all sessions.
var loadBuffers sync.Pool

// open begins a session.
func (c call) open(ctx context.Context) (*session, error) {
	local := net.Dialer{Timeout: ackTimeout}
	if c.local != nil {
		local.LocalAddr = &net.TCPAddr{IP: c.local}
	}
	dialer := websocket.Dialer{NetDialContext: local.DialContext, HandshakeTimeout: ackTimeout, Subprotocols: []string{wire.Subprotocol},
		ReadBufferSize: c.buffer, WriteBufferSize: c.buffer, WriteBufferPool: &loadBuffers}
	conn, resp, err := dialer.DialContext(ctx, "ws://"+c.address+wire.UplinkPath,
		http.Header{"Authorization": {"Bearer " + c.token}, wire.HeaderGateway: {c.gateway}})
	if err != nil {
		if resp != nil {
			err = fmt.Errorf("%w: %s", err, resp.Status)
		}
		return nil, fmt.Errorf("dial as %s: %w", c.gateway, err)
	}
	s := &session{conn: conn}
	if err := s.greet(c); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet as %s: %w", c.gateway, err)
	}
	return s, nil
}

func (s *session) greet(c call) error {
	hello := &wire.Hello{Gateway: c.gateway, Software: "touchline-bench", Epochs: []wire.Held{}, Clock: "synchronised", Epoch: c.epoch}
	if c.epoch != (touchline.Epoch{}) {
		hello.Epochs = append(hello.Epochs, wire.Held{Epoch: c.epoch, Oldest: 1, Next: 1})
	}
	data, err := wire.MarshalMessage(hello)
	if err != nil {
		return err
	}
	if err := s.conn.WriteMessage(websocket.TextMessage, data); err != nil {
		return err
	}
	s.conn.SetReadDeadline(time.Now().Add(ackTimeout))
	m, err := s.hear()
	if err != nil {
		return err
	}
	welcome, ok := m.(*wire.Welcome)
	if !ok {
		return fmt.Errorf("the first message is a %T", m)
	}
	s.welcome = welcome
	return s.conn.SetReadDeadline(time.Time{})
}

// hear returns the next control message.
func (s *session) hear() (wire.Message, error) {
	kind, data, err := s.conn.ReadMessage()
	if err != nil {
		return nil, err
	}
	if kind != websocket.TextMessage {
		return nil, fmt.Errorf("a message of kind %d came from the cloud", kind)
	}
	return wire.ParseMessage(data)
}
