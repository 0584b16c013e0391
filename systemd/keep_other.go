//go:build !unix

package systemd

import (
	"net"
	"time"
)

// Keep does nothing where there is no systemd.
func Keep(string, *net.TCPListener) error { return nil }

// Barrier does nothing where there is no systemd.
func Barrier(time.Duration) error { return nil }
