//go:build unix

package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// Keep gives the service manager a copy of a listener's socket, which it hands
// to the next process of this service, whatever ends this one
// (FileDescriptorStoreMax=, sd_pid_notify_with_fds(3)). Who connects between
// the two lives waits in the system's queue.
func Keep(name string, l *net.TCPListener) error {
	if !Watched() {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("keep socket %s at the service manager: %w", name, err) }
	raw, err := l.SyscallConn()
	if err != nil {
		return fail(err)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return fail(err)
	}
	manager, err := conn.SyscallConn()
	if err != nil {
		return fail(errors.Join(err, conn.Close()))
	}
	var sent error
	message := []byte("FDSTORE=1\nFDPOLL=0\nFDNAME=" + name)
	// By Control, since File().Fd() would make the socket block for us, too; and
	// by hand, since WriteMsgUnix wants no socket that is connected.
	err = raw.Control(func(fd uintptr) {
		err := manager.Write(func(to uintptr) bool {
			sent = syscall.Sendmsg(int(to), message, syscall.UnixRights(int(fd)), nil, 0)
			return !errors.Is(sent, syscall.EAGAIN)
		})
		sent = errors.Join(err, sent)
	})
	if err := errors.Join(err, sent, conn.Close()); err != nil {
		return fail(err)
	}
	return nil
}
