//go:build !linux

package uplink

import (
	"errors"
	"syscall"
	"time"
)

// tuneSocket does nothing where the options don't exist; the heartbeat finds a
// dead link all the same.
func tuneSocket(syscall.RawConn, time.Duration) error { return nil }

// bindToInterface is for systems that have a way to; here the interface's
// address has to do.
func bindToInterface(syscall.RawConn, string) error { return errors.ErrUnsupported }
