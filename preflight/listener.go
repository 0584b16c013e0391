package preflight

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"
)

// listener looks whether a listener answers, or could.
func (r *Report) listener(ctx context.Context, l Listener, running bool) {
	if !running {
		r.port(l)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	detail, err := l.ask(ctx)
	if err != nil {
		r.fail(l.Setting, fmt.Errorf("%s does not answer: %w", l.Address, err), "look at the gateway's log; a firewall on this machine may be in the way")
		return
	}
	r.ok(l.Setting, "%s answers%s", l.Address, detail)
}

// port looks whether the gateway could listen.
func (r *Report) port(l Listener) {
	listener, err := net.Listen("tcp", l.Address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		r.add(l.Setting, Fail, l.Address+" is in use by another program", "end that one, or choose another port")
	case err != nil:
		r.fail(l.Setting, err, "choose another address")
	default:
		_ = listener.Close()
		r.ok(l.Setting, "%s is free for the gateway, which does not run", l.Address)
	}
}

// here is where a listener is reached from this machine.
func here(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}

// ask speaks the listener's protocol as far as nobody has to be let in.
func (l Listener) ask(ctx context.Context) (detail string, err error) {
	dialer := net.Dialer{}
	conn, err := dialer.DialContext(ctx, "tcp", here(l.Address))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if l.TLS {
		// #nosec G402 -- it asks whether this machine's own listener answers, and tells it nothing
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", fmt.Errorf("TLS: %w", err)
		}
		cert := secure.ConnectionState().PeerCertificates[0]
		if time.Now().After(cert.NotAfter) {
			return "", fmt.Errorf("its certificate ended on %s: `touchline sensor ca` makes a new one", cert.NotAfter.Format(time.DateOnly))
		}
		detail = ", with a certificate until " + cert.NotAfter.Format(time.DateOnly)
		conn = secure
	}
	if l.HTTP {
		return detail, askHTTP(ctx, conn)
	}
	return detail, askMQTT(conn)
}

// askMQTT sends a CONNECT of MQTT 3.1.1 without name or key: a refusal is an
// answer too.
func askMQTT(conn net.Conn) error {
	if _, err := conn.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00")); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("no answer to MQTT: %w", err)
	}
	if answer[0] != 0x20 {
		return errors.New("what answers does not speak MQTT")
	}
	_, _ = conn.Write([]byte{0xe0, 0}) // DISCONNECT
	return nil
}

func askHTTP(ctx context.Context, conn net.Conn) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://gateway/healthz", nil) // TLS is there already
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET /healthz says %s", resp.Status)
	}
	return nil
}
