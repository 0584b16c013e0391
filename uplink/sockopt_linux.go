package uplink

import (
	"syscall"
	"time"
)

// From linux/tcp.h; package syscall lacks them.
const (
	tcpUserTimeout  = 18
	tcpNotSentLowat = 25
)

// notSentBytes bounds what the kernel takes from us and has not sent yet. By
// default that is megabytes: on a link of 256 kbit/s a ping would queue behind
// a minute of blocks, and a new sample too.
const notSentBytes = 64 << 10

// tuneSocket makes the kernel give up on data that stays unacknowledged for
// dead, and keeps its send queue short. Both help and neither is needed: the
// heartbeat finds a dead link alone, so a kernel without them is no error.
func tuneSocket(raw syscall.RawConn, dead time.Duration) error {
	return raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(dead.Milliseconds()))
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, notSentBytes)
	})
}

// bindToInterface makes the socket use an interface alone. Linux before 5.7
// lets root only.
func bindToInterface(raw syscall.RawConn, name string) (err error) {
	outer := raw.Control(func(fd uintptr) {
		err = syscall.SetsockoptString(int(fd), syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, name)
	})
	if outer != nil {
		return outer
	}
	return err
}
