package uplink

import (
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// A link carries the messages of one session: a WebSocket, or requests where
// none gets through. Session, window and acknowledgements know no difference.
// One goroutine reads and one writes; Cut and Close may be called by any, more
// than once.
type link interface {
	// Begin says who is to be told what is no message. The goroutine in Next,
	// or in a reader of it, calls them.
	Begin(on handlers)
	// Next waits for a message of websocket.TextMessage or BinaryMessage. It
	// fails when the deadline passes, with a *websocket.CloseError when the
	// other side closes, and when the link is cut.
	Next() (kind int, r io.Reader, err error)
	// Deadline ends Next, and reads of its message, at t. It may be called by
	// any goroutine.
	Deadline(t time.Time)
	// Write sends a message. between is called while it is on its way, for
	// pings; by says how long each part may take.
	Write(kind int, data []byte, between func() error, by func() time.Time) error
	// Ping asks for a pong with the same payload.
	Ping(payload []byte, by time.Time) error
	Pong(payload []byte, by time.Time) error
	// SayClose is the last thing that is written.
	SayClose(code int, text string, by time.Time) error
	// Cut ends the link at once; nobody is told.
	Cut()
	// Close frees the link, and returns when what it had started has ended.
	Close()
}

// handlers are told what a link sees besides messages.
type handlers struct {
	ping, pong func(payload string) error
	moving     func() // the network took a part of what is being written
}

// A socket is a link over a WebSocket.
type socket struct{ conn *websocket.Conn }

func (s *socket) Begin(on handlers) {
	s.conn.SetPingHandler(on.ping)
	s.conn.SetPongHandler(on.pong)
	s.conn.SetCloseHandler(func(int, string) error { return nil }) // the writer answers
}

func (s *socket) Next() (int, io.Reader, error) { return s.conn.NextReader() }

func (s *socket) Deadline(t time.Time) { s.conn.SetReadDeadline(t) }

// Write writes data in fragments, each with its own deadline, and lets what is
// due go between them: on a slow link a frame may take longer than a heartbeat.
func (s *socket) Write(kind int, data []byte, between func() error, by func() time.Time) error {
	s.conn.SetWriteDeadline(by())
	w, err := s.conn.NextWriter(kind)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), writeBufferBytes)
		if _, err := w.Write(data[:n]); err != nil { // flushes the fragment before
			return err
		}
		if err := between(); err != nil {
			return err
		}
		s.conn.SetWriteDeadline(by())
		data = data[n:]
	}
	return w.Close()
}

func (s *socket) Ping(payload []byte, by time.Time) error {
	return s.conn.WriteControl(websocket.PingMessage, payload, by)
}

func (s *socket) Pong(payload []byte, by time.Time) error {
	return s.conn.WriteControl(websocket.PongMessage, payload, by)
}

func (s *socket) SayClose(code int, text string, by time.Time) error {
	return s.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, text), by)
}

// Cut closes the TCP connection itself: closing TLS writes a last record, and
// would wait seconds for a dead link to take it. With a proxy that has TLS of its
// own there are two layers.
func (s *socket) Cut() {
	conn := s.conn.NetConn()
	for {
		secure, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = secure.NetConn()
	}
	conn.Close()
}

func (s *socket) Close() { s.conn.Close() }
