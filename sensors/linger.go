package sensors

import (
	"io"
	"net"
	"time"
)

// How long and how much a peer may go on talking after it was told to stop.
const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

// linger makes sure that the last words reach the peer. A socket that is closed
// with unread data in it is reset, and the peer then loses what it has not read
// yet (RFC 1122, section 4.2.2.13). So the sending side is closed first, and
// what still comes is thrown away. The caller closes conn afterwards.
func linger(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, lingerBytes)
}
