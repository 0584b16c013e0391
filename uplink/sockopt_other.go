//go:build !linux

package uplink

import (
	"syscall"
	"time"
)

// tuneSocket does nothing where the options don't exist; the heartbeat finds a
// dead link all the same.
func tuneSocket(syscall.RawConn, time.Duration) error { return nil }
