package cloud

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
)

// endless is a listener to which somebody connects at any time.
type endless struct{ accepted int }

func (e *endless) Accept() (net.Conn, error) {
	e.accepted++
	conn, _ := net.Pipe()
	return conn, nil
}
func (*endless) Close() error   { return nil }
func (*endless) Addr() net.Addr { return &net.TCPAddr{} }

func TestLimitConnections_AcceptsNoMoreThanTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &endless{}
		listener := limitConnections(inner, 2)
		conns := make(chan net.Conn, 10)
		ended := make(chan error, 1)
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					ended <- err
					return
				}
				conns <- conn
			}
		}()
		expect := func(n int) {
			t.Helper()
			synctest.Wait()
			if inner.accepted != n {
				t.Errorf("%d connections accepted, want %d", inner.accepted, n)
			}
		}
		expect(2)
		first := <-conns
		first.Close()
		expect(3)
		first.Close() // gives back no second place
		expect(3)
		listener.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept ended with %v", err)
		}
	})
}
