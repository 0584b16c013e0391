package cloud

import (
	"io"
	"time"

	"github.com/gorilla/websocket"
)

// A link carries the messages of one session: a WebSocket, or HTTP where one
// can't be had (frames.go). One goroutine reads and one writes.
type link interface {
	// read returns the next text or binary message, to be read to its end before
	// the next call. The error of a deadline that passed is a net.Error.
	read() (kind int, r io.Reader, err error)
	// write sends a message; of its own kinds a link leaves out what it needs not.
	write(kind int, data []byte, deadline time.Time) error
	// allow sets the deadline of read; one that is past ends it at once.
	allow(until time.Time) error
	// part waits a moment for the other side's end, behind a close frame.
	part(patience time.Duration)
	// cut closes the link under both goroutines; it may be called twice.
	cut()
}

// A socket is the link over a WebSocket.
type socket struct{ conn *websocket.Conn }

// newSocket makes s be heard of and answered through conn.
func newSocket(conn *websocket.Conn, s *session) socket {
	conn.SetReadLimit(int64(s.in.opts.MaxFrameBytes))
	conn.SetPingHandler(func(data string) error {
		s.out.setPong(data)
		return s.heard()
	})
	conn.SetPongHandler(func(data string) error {
		s.answered(data)
		return s.heard()
	})
	conn.SetCloseHandler(func(int, string) error { return nil }) // the writer answers it
	return socket{conn}
}

func (l socket) read() (int, io.Reader, error) { return l.conn.NextReader() }
func (l socket) allow(until time.Time) error   { return l.conn.SetReadDeadline(until) }
func (l socket) cut()                          { l.conn.NetConn().Close() }

// write sends control frames as it does messages: WriteControl, which may be
// called beside a message that is being written, would need a timer for that.
func (l socket) write(kind int, data []byte, deadline time.Time) error {
	if err := l.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	return l.conn.WriteMessage(kind, data)
}

// lingerBytes is what is read and thrown away behind a close frame: the largest
// window and frame, and then some.
const lingerBytes = 64 << 20

// part reads what the other side had sent already. Without it the system would
// answer that with a reset, which overtakes the close frame and hides its reason.
func (l socket) part(patience time.Duration) {
	conn := l.conn.NetConn()
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	if conn.SetReadDeadline(time.Now().Add(patience)) == nil {
		io.Copy(io.Discard, io.LimitReader(conn, lingerBytes))
	}
}
