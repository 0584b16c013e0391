package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Namespace is a network of its own, with a loopback that is up and nothing
// else. Its methods may be called by any goroutine.
type Namespace struct {
	file *os.File // holds it; sockets and processes inside do as well
	once sync.Once
}

// NewNamespace makes one. The error is ErrRefused where the system does not
// allow it, or where the programs that set it up (ip, tc, nft) are missing.
func NewNamespace() (*Namespace, error) {
	for _, program := range []string{"ip", "tc", "nft"} {
		if _, err := find(program); err != nil {
			return nil, fmt.Errorf("%w: %w; .ci/setup test installs it", ErrRefused, err)
		}
	}
	n := &Namespace{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("%w: unshare: %w", ErrRefused, err)
		}
		var err error
		n.file, err = os.Open(threadNet)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.Run("ip", "link", "set", "lo", "up"); err != nil {
		n.Close()
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return n, nil
}

// Close lets go of the namespace, which the system removes, with its devices,
// once no process and no socket is in it. It may be called twice.
func (n *Namespace) Close() (err error) {
	n.once.Do(func() { err = n.file.Close() })
	return err
}

// Do calls f on a thread that is inside the namespace: sockets that f opens and
// processes that it starts are there for good. f must do that itself, not in
// another goroutine.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// Start starts cmd inside.
func (n *Namespace) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Run runs a program inside to its end. The error has what it said.
func (n *Namespace) Run(program string, args ...string) error {
	return n.feed("", program, args...)
}

// feed is Run with a standard input.
func (n *Namespace) feed(input, program string, args ...string) error {
	path, err := find(program)
	if err != nil {
		return err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = strings.NewReader(input)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := n.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// Listen listens inside, at an IP address and port.
func (n *Namespace) Listen(address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// DialContext dials from inside, to an IP address and port.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if host, _, err := net.SplitHostPort(address); err != nil || net.ParseIP(host) == nil {
		// Names would be resolved by other goroutines, on threads outside.
		return nil, fmt.Errorf("dial %q from a namespace: want an IP address and a port", address)
	}
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Expose makes 127.0.0.1:port of the namespace reachable at the same address
// outside of it, until the relay is closed.
func (n *Namespace) Expose(port int) (*Relay, error) {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return NewRelay(l, RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		return n.DialContext(ctx, "tcp", address)
	}}), nil
}

// path returns a name of the namespace that other processes can open.
func (n *Namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// sysctl sets a setting of the namespace's network.
func (n *Namespace) sysctl(name, value string) error {
	return n.Do(func() error {
		err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: this kernel has no %s", ErrRefused, name)
		}
		return err
	})
}

// threadNet is the network of the calling thread; /proc/self/ns/net is that of
// the first thread.
const threadNet = "/proc/thread-self/ns/net"

// onThread calls f on a thread of which it may change the network. If it can't
// be put back, the thread ends instead of going on with other goroutines.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(threadNet)
		if err != nil {
			result <- fmt.Errorf("%w: %w", ErrRefused, err)
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// find looks beyond PATH, which for users who are not root often lacks sbin.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if syscall.Access(dir+program, 1) == nil {
			return dir + program, nil
		}
	}
	return "", err
}
