//go:build unix

package systemd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Keep gives the service manager a copy of a listener's socket, which it hands
// to the next process of this service, whatever ends this one
// (FileDescriptorStoreMax=, sd_pid_notify_with_fds(3)). Who connects between
// the two lives waits in the system's queue.
func Keep(name string, l *net.TCPListener) error {
	if !Watched() {
		return nil
	}
	var sent error
	raw, err := l.SyscallConn()
	if err == nil { // by Control, since File().Fd() would make the socket block for us, too
		err = raw.Control(func(fd uintptr) { sent = send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, int(fd)) })
	}
	if err := errors.Join(err, sent); err != nil {
		return fmt.Errorf("keep socket %s at the service manager: %w", name, err)
	}
	return nil
}

// Barrier returns when the service manager has done what it was told before
// (sd_notify_barrier(3)): it closes what it is given. An error says that it has
// not within patience.
func Barrier(patience time.Duration) error {
	if !Watched() {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("wait for the service manager: %w", err) }
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	err = send("BARRIER=1", int(w.Fd()))
	if err := errors.Join(err, w.Close(), r.SetReadDeadline(time.Now().Add(patience))); err != nil {
		return fail(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fail(err)
	}
	return nil
}

// send sends assignments with a file, by hand, since WriteMsgUnix wants no
// socket that is connected.
func send(assignments string, fd int) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return err
	}
	manager, err := conn.SyscallConn()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	var sent error
	err = manager.Write(func(to uintptr) bool {
		sent = syscall.Sendmsg(int(to), []byte(assignments), syscall.UnixRights(fd), nil, 0)
		return !errors.Is(sent, syscall.EAGAIN)
	})
	return errors.Join(err, sent, conn.Close())
}
