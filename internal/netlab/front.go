package netlab

import (
	"bufio"
	"bytes"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// greeting bounds how long a client may take to say what it wants, and
// maxRequestBytes how much it may say.
const (
	greeting        = 10 * time.Second
	maxRequestBytes = 64 << 10
)

// Credentials are what a proxy asks for. The zero value asks for nothing.
type Credentials struct{ User, Password string }

// GreetCONNECT makes a relay an HTTP proxy that does CONNECT and nothing else
// (RFC 9110, section 9.3.6), with Basic authentication (RFC 7617) if want asks.
func GreetCONNECT(want Credentials) func(net.Conn) (string, net.Conn, error) {
	return func(client net.Conn) (string, net.Conn, error) {
		head, err := readHead(client)
		if err != nil {
			return "", nil, err
		}
		switch {
		case head.request.Method != http.MethodConnect:
			return refuse(client, http.StatusMethodNotAllowed, nil)
		case want != Credentials{} && !want.match(head.request.Header.Get("Proxy-Authorization")):
			return refuse(client, http.StatusProxyAuthRequired, http.Header{"Proxy-Authenticate": {`Basic realm="netlab"`}})
		}
		if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
			return "", nil, err
		}
		return head.request.Host, &prefixed{client, head.rest}, nil
	}
}

func (c Credentials) match(header string) bool {
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Password))
	return subtle.ConstantTimeCompare([]byte(want), []byte(header)) == 1
}

// GreetRefusingUpgrades makes a relay a middlebox that lets HTTP through to
// target and answers each connection that begins with a WebSocket upgrade with
// status: 403 or 426 refuse it, 200 eats it.
func GreetRefusingUpgrades(target string, status int) func(net.Conn) (string, net.Conn, error) {
	return func(client net.Conn) (string, net.Conn, error) {
		head, err := readHead(client)
		if err != nil {
			return "", nil, err
		}
		if strings.EqualFold(head.request.Header.Get("Upgrade"), "websocket") {
			return refuse(client, status, nil)
		}
		return target, &prefixed{client, append(head.bytes, head.rest...)}, nil
	}
}

// GreetTLS makes a relay one that ends TLS, with what config has: an honest load
// balancer, or one that inspects.
func GreetTLS(target string, config *tls.Config) func(net.Conn) (string, net.Conn, error) {
	return func(client net.Conn) (string, net.Conn, error) {
		conn := tls.Server(client, config)
		if err := conn.SetDeadline(time.Now().Add(greeting)); err != nil {
			return "", nil, err
		}
		if err := conn.Handshake(); err != nil {
			return "", nil, err
		}
		return target, conn, conn.SetDeadline(time.Time{})
	}
}

// GreetSOCKS makes a relay a SOCKS5 proxy (RFC 1928) that does CONNECT, with
// user and password (RFC 1929) if want asks.
func GreetSOCKS(want Credentials) func(net.Conn) (string, net.Conn, error) {
	return func(client net.Conn) (string, net.Conn, error) {
		if err := client.SetDeadline(time.Now().Add(greeting)); err != nil {
			return "", nil, err
		}
		if err := socksMethod(client, want); err != nil {
			return "", nil, err
		}
		target, err := socksTarget(client)
		if err != nil {
			return "", nil, err
		}
		// Succeeded, bound to 0.0.0.0:0.
		if _, err := client.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
			return "", nil, err
		}
		return target, client, client.SetDeadline(time.Time{})
	}
}

const (
	socksNone     = 0
	socksPassword = 2
	socksRefused  = 0xff
)

// socksMethod agrees on how to authenticate, and does it.
func socksMethod(client net.Conn, want Credentials) error {
	methods, err := readCounted(client, 5)
	if err != nil {
		return err
	}
	method := byte(socksNone)
	if want != (Credentials{}) {
		method = socksPassword
	}
	if !bytes.Contains(methods, []byte{method}) {
		_, _ = client.Write([]byte{5, socksRefused})
		return fmt.Errorf("SOCKS client offers the methods %v, not %d", methods, method)
	}
	if _, err := client.Write([]byte{5, method}); err != nil || method == socksNone {
		return err
	}
	user, err := readCounted(client, 1)
	if err != nil {
		return err
	}
	password, err := readCounted(client, -1)
	if err != nil {
		return err
	}
	if string(user) != want.User || string(password) != want.Password {
		_, _ = client.Write([]byte{1, 1})
		return errors.New("SOCKS client has another user or password")
	}
	_, err = client.Write([]byte{1, 0})
	return err
}

// socksTarget reads the request.
func socksTarget(client io.Reader) (string, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(client, head); err != nil {
		return "", err
	}
	if head[0] != 5 || head[1] != 1 {
		return "", fmt.Errorf("SOCKS request %v: want CONNECT of version 5", head)
	}
	host := ""
	switch head[3] {
	case 1, 4:
		raw := make([]byte, map[byte]int{1: 4, 4: 16}[head[3]])
		if _, err := io.ReadFull(client, raw); err != nil {
			return "", err
		}
		address, _ := netip.AddrFromSlice(raw)
		host = address.String()
	case 3:
		name, err := readCounted(client, -1)
		if err != nil {
			return "", err
		}
		host = string(name)
	default:
		return "", fmt.Errorf("SOCKS request for an address of type %d", head[3])
	}
	port := make([]byte, 2)
	if _, err := io.ReadFull(client, port); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(port)))), nil
}

// readCounted reads a version, unless that is below 0, a length, and as many bytes.
func readCounted(r io.Reader, version int) ([]byte, error) {
	var b [1]byte
	if version >= 0 {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		if int(b[0]) != version {
			return nil, fmt.Errorf("SOCKS version %d: want %d", b[0], version)
		}
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	data := make([]byte, b[0])
	_, err := io.ReadFull(r, data)
	return data, err
}

// A head is the beginning of an HTTP connection.
type head struct {
	request *http.Request
	bytes   []byte // the request's line and header
	rest    []byte // what was read behind it
}

// readHead reads the first request, without its body.
func readHead(client net.Conn) (*head, error) {
	if err := client.SetReadDeadline(time.Now().Add(greeting)); err != nil {
		return nil, err
	}
	var got []byte
	buf := make([]byte, 4<<10)
	for {
		if i := bytes.Index(got, []byte("\r\n\r\n")); i >= 0 {
			i += 4
			request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(got[:i])))
			if err != nil {
				return nil, err
			}
			return &head{request, got[:i:i], got[i:]}, client.SetReadDeadline(time.Time{})
		}
		if len(got) > maxRequestBytes {
			return nil, errors.New("the head of a request is too large")
		}
		n, err := client.Read(buf)
		if got = append(got, buf[:n]...); err != nil {
			return nil, err
		}
	}
}

// refuse answers a request and ends the connection.
func refuse(client net.Conn, status int, header http.Header) (string, net.Conn, error) {
	body := "netlab: " + http.StatusText(status) + "\n"
	answer := http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: header, Close: true,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
	if err := answer.Write(client); err != nil {
		return "", nil, err
	}
	end(client)
	// The client's end is waited for: a reset would overtake the answer.
	_ = client.SetReadDeadline(time.Now().Add(greeting))
	_, _ = io.Copy(io.Discard, client)
	return "", nil, fmt.Errorf("refused with %d", status)
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.prefix)
	p.prefix = p.prefix[n:]
	return n, nil
}

// CloseWrite ends our half.
func (p *prefixed) CloseWrite() error {
	end(p.Conn)
	return nil
}
