package systemd

import (
	"errors"
	"fmt"
	"net"

	"github.com/coreos/go-systemd/v22/activation"
)

// A Socket is a listener that the service manager holds: of a unit
// (FileDescriptorName=), or one that Keep gave to it.
type Socket struct {
	Name     string
	Listener net.Listener
}

// Sockets returns those that were handed to this process: once, the second call
// returns none. What is no listener is closed.
func Sockets() ([]Socket, error) {
	var sockets []Socket
	var errs []error
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s is no listener: %w", f.Name(), err))
		} else {
			sockets = append(sockets, Socket{Name: f.Name(), Listener: l})
		}
		errs = append(errs, f.Close())
	}
	if err := errors.Join(errs...); err != nil {
		for _, s := range sockets {
			err = errors.Join(err, s.Listener.Close())
		}
		return nil, err
	}
	return sockets, nil
}

// Forget has the service manager close all that Keep gave to it under a name.
func Forget(name string) error { return Notify("FDSTOREREMOVE=1", "FDNAME="+name) }
