package daemon

import "net"

// SpareRequests is how many connections HTTP takes beyond max_connections.
const SpareRequests = maxRequests

// PeerAllowed says whether a user may use the admin socket.
func PeerAllowed(uid uint32, err error) error { return peer{uid, err}.allowed() }

// PeerOf says which user is at the other end.
func PeerOf(c net.Conn) (uint32, error) {
	p := peerOf(c)
	return p.uid, p.err
}
