package uplink

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
)

// Network says how the cloud is reached, and how it shows that it is the cloud.
type Network struct {
	// Proxy is the address of an HTTP (CONNECT) or SOCKS5 proxy, "direct" for
	// none, and empty for that of the environment. It may hold a user and
	// password, which are never shown.
	Proxy string
	// Interface is the network interface that is used; empty is any.
	Interface string
	// CAFile has the roots (PEM) that are trusted in place of the system's. It
	// is read at each dial, like the other files.
	CAFile string
	// Pins are SHA-256 of a public key (SubjectPublicKeyInfo), base64. Where
	// there are any, the cloud's certificate must be of one of those keys;
	// without CAFile that is all that is asked of it.
	Pins []string
	// CertFile and KeyFile (PEM) show the cloud, or what stands before it, who
	// we are.
	CertFile, KeyFile string
}

func (n *Network) validate() error {
	var problems []error
	if _, err := chooseProxy(n.Proxy); err != nil {
		problems = append(problems, err)
	}
	if (n.CertFile == "") != (n.KeyFile == "") {
		problems = append(problems, errors.New("uplink.client_cert and uplink.client_key: one of them is empty; name both, or neither"))
	}
	_, err := n.roots()
	problems = append(problems, err, n.amend(&tls.Config{}))
	// That the interface is not there is no error: a modem may be plugged in
	// later. The dials say so until then.
	return errors.Join(problems...)
}

// roots reads CAFile; nil stands for the system's roots.
func (n *Network) roots() (*x509.CertPool, error) {
	if n.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(n.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read uplink.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("uplink.ca_file %s has no certificate: want PEM, -----BEGIN CERTIFICATE-----", n.CAFile)
	}
	return pool, nil
}

// amend puts pins and our own certificate into c, with the files as they are
// now.
func (n *Network) amend(c *tls.Config) error {
	if n.CertFile != "" && n.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(n.CertFile, n.KeyFile)
		if err != nil {
			return fmt.Errorf("read uplink.client_cert: %w", err)
		}
		// Shown to whoever asks for one, also where it is none of those that the
		// server says it takes: its refusal is clearer than that of none.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if len(n.Pins) == 0 {
		return nil
	}
	pins := make([][]byte, len(n.Pins))
	for i, p := range n.Pins {
		var err error
		if pins[i], err = base64.StdEncoding.DecodeString(p); err != nil || len(pins[i]) != sha256.Size {
			return fmt.Errorf("uplink.pin %.60q: want the SHA-256 of a public key in base64, 44 characters", p)
		}
	}
	// The pinned key alone says who it is, unless roots are named as well; the
	// name in a certificate, and how long it counts, are for those who sign.
	verify := c.VerifyConnection
	if n.CAFile == "" {
		c.InsecureSkipVerify, verify = true, nil // #nosec G402 -- the pinned key is compared below, at each handshake
	}
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if verify != nil {
			if err := verify(state); err != nil {
				return err
			}
		}
		return checkPin(pins, state)
	}
	return nil
}

// checkPin is called for each handshake, resumed ones included. That the other
// side has the key was shown by the handshake itself.
func checkPin(pins [][]byte, state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("server showed no certificate")
	}
	sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
	for _, pin := range pins {
		if subtle.ConstantTimeCompare(pin, sum[:]) == 1 {
			return nil
		}
	}
	return &PinError{Key: base64.StdEncoding.EncodeToString(sum[:])}
}

// A PinError says that a server has a key that is not in uplink.pin.
type PinError struct {
	Key string // as uplink.pin would have it
}

func (e *PinError) Error() string {
	return fmt.Sprintf("server's key is not in uplink.pin: it is %s; is the connection intercepted?", e.Key)
}

// RefusedOurCertificate says whether an error is the other side's word (an
// alert of TLS) that it does not take our client certificate, or wants one. In
// TLS 1.3 it comes after the handshake, where the first answer should be.
func RefusedOurCertificate(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate")
}

// An InterfaceError says that uplink.interface is not there.
type InterfaceError struct{ Name string }

func (e *InterfaceError) Error() string {
	return fmt.Sprintf("uplink.interface %q: there is no such network interface now", e.Name)
}

// errNotBound is a socket that the system does not let us bind to an interface.
var errNotBound = errors.New("the socket can't be bound to the interface")

// netDialer returns what opens our TCP connections. Names are looked up at each
// dial.
func netDialer(o *Options) dialFunc {
	tune := func(_, _ string, raw syscall.RawConn) error { return tuneSocket(raw, 2*o.Heartbeat) }
	name := o.Network.Interface
	if name == "" {
		return (&net.Dialer{Timeout: o.HandshakeTimeout, Control: tune}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil, &InterfaceError{Name: name}
		}
		d := &net.Dialer{Timeout: o.HandshakeTimeout, Control: func(network, address string, raw syscall.RawConn) error {
			if bindToInterface(raw, name) != nil {
				return errNotBound
			}
			return tune(network, address, raw)
		}}
		conn, err := d.DialContext(ctx, network, addr)
		if !errors.Is(err, errNotBound) {
			return conn, err
		}
		d.Control = tune
		return dialFrom(ctx, name, d, addr)
	}
}

// dialFrom dials from an address of the interface, which leads by it where the
// system routes by source.
func dialFrom(ctx context.Context, name string, d *net.Dialer, addr string) (net.Conn, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("uplink.interface %q: %w", name, err)
	}
	list, err := dev.Addrs()
	if err != nil {
		return nil, fmt.Errorf("uplink.interface %q: %w", name, err)
	}
	problems := []error{fmt.Errorf("uplink.interface %q: no address of it reaches the cloud", name)}
	for _, a := range list {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.IsLinkLocalUnicast() {
			continue
		}
		from := *d
		from.LocalAddr = &net.TCPAddr{IP: ip.IP}
		conn, err := from.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn, nil
		}
		problems = append(problems, err)
	}
	return nil, errors.Join(problems...)
}
