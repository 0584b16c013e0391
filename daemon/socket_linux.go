package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// maxSocketPath is what the address of a Unix socket holds (sun_path, 108
// bytes with the zero at its end).
const maxSocketPath = 107

// inFolder calls do with a path that is short enough for the address of a
// socket: the folder is named by a descriptor where its own name is too long.
func inFolder(path string, do func(short string) error) error {
	if len(path) <= maxSocketPath {
		return do(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

// peerOf asks the system who is at the other end (unix(7), SO_PEERCRED).
func peerOf(c net.Conn) peer {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return peer{err: errors.New("it is no Unix socket")}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var p peer
	err = raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		if cred, p.err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); p.err == nil {
			p.uid = cred.Uid
		}
	})
	p.err = errors.Join(p.err, err)
	return p
}
