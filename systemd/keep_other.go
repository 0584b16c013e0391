//go:build !unix

package systemd

import "net"

// Keep does nothing where there is no systemd.
func Keep(string, *net.TCPListener) error { return nil }
