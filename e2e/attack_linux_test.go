package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A fort is a site that lets in who has a key: belt-17 is the sensor that must
// be served whatever happens, and the attacker has stolen the key of belt-18.
type fort struct {
	*site
	key, stolen      string
	mqttTLS, httpTLS int
}

func newFort(t *testing.T) *fort {
	t.Helper()
	f := &fort{mqttTLS: freePort(t), httpTLS: freePort(t)}
	f.site = newSite(t, "[sensors]\nallow_anonymous = false\n")
	editFile(t, f.gatewayConfig, "[sensors.mqtt]\n", fmt.Sprintf("[sensors.mqtt]\ntls_listen = \"127.0.0.1:%d\"\n", f.mqttTLS))
	editFile(t, f.gatewayConfig, "[sensors.http]\n", fmt.Sprintf("[sensors.http]\ntls_listen = \"127.0.0.1:%d\"\n", f.httpTLS))
	f.touchline("sensor", "ca", "127.0.0.1")
	f.key = strings.TrimSpace(f.touchline("sensor", "add", "belt-17"))
	f.stolen = strings.TrimSpace(f.touchline("sensor", "add", "belt-18"))
	f.startCloud()
	f.startGateway()
	return f
}

// serve sends samples as belt-17 over HTTP and MQTT until the returned
// function is called: each must be acknowledged. It returns how many were.
func (f *fort) serve() (stop func() (samples int, slowest time.Duration)) {
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	var count atomic.Int64
	var slowest [2]time.Duration
	for i, send := range []func() error{f.postOne, f.publishOne} {
		both.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				if err := send(); err != nil {
					f.t.Errorf("belt-17 was not served: %v", err)
					return
				}
				slowest[i] = max(slowest[i], time.Since(began))
				count.Add(1)
				pause(ctx, 20*time.Millisecond)
			}
		})
	}
	return func() (int, time.Duration) {
		cancel()
		both.Wait()
		return int(count.Load()), max(slowest[0], slowest[1])
	}
}

// postOne sends a sample on a connection of its own.
func (f *fort) postOne() error {
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/v1/samples", f.http), strings.NewReader(`{"hr":142}`))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth("belt-17", f.key)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("POST: %s", resp.Status)
	}
	return nil
}

// publishOne connects, publishes at QoS 1 and waits for its PUBACK.
func (f *fort) publishOne() error {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.mqtt))
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	message := append(mqttString(nil, "sensors/belt-17/hr"), 0, 1)
	if _, err := conn.Write(append(mqttConnect("honest", "belt-17", f.key), mqttPacket(0x32, append(message, "142"...))...)); err != nil {
		return err
	}
	answer := make([]byte, 8) // CONNACK and PUBACK
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("PUBLISH: %w after % x", err, answer)
	}
	if answer[3] != 0 || answer[4] != 0x40 {
		return fmt.Errorf("PUBLISH: answered % x", answer)
	}
	return nil
}

// mqttConnect is a CONNECT of MQTT 3.1.1 with a clean session.
func mqttConnect(client, user, password string) []byte {
	flags := byte(2)
	body := mqttString(nil, client)
	if user != "" {
		flags |= 0xc0
		body = mqttString(mqttString(body, user), password)
	}
	return mqttPacket(0x10, append(append(mqttString(nil, "MQTT"), 4, flags, 0, 60), body...))
}

// An attack is tried from outside. attack returns what the attacker got, which
// want (a regular expression) matches.
type attack struct {
	what, want string
	attack     func(f *fort) string
	long       bool // it takes half a minute, and is for the long form
}

// try makes all attacks at the same time, beside a sensor that is served, and
// prints what each got.
func (f *fort) try(attacks []attack) {
	f.t.Helper()
	for range 20 { // what the first ones make is not the attacker's
		if err := errors.Join(f.postOne(), f.publishOne()); err != nil {
			f.t.Fatal(err)
		}
	}
	usage := f.watch()
	stop := f.serve()
	var all sync.WaitGroup
	got := make([]string, len(attacks))
	for i, a := range attacks {
		if a.long && !long() {
			got[i] = "not tried: it takes half a minute (TOUCHLINE_TEST_LONG=1)"
			continue
		}
		all.Go(func() {
			if got[i] = a.attack(f); !regexp.MustCompile(a.want).MatchString(got[i]) {
				f.t.Errorf("%s: the attacker got %q, want %q", a.what, got[i], a.want)
			}
		})
	}
	all.Wait()
	served, slowest := stop()
	for i, a := range attacks {
		f.t.Logf("MEASURED attack: %s -> %s", a.what, got[i])
	}
	before, most := usage()
	f.t.Logf("MEASURED %d attacks at a time: belt-17 had %d samples taken meanwhile, the slowest after %s; memory %d MiB before, %d MiB at most",
		len(attacks), served, slowest.Round(time.Millisecond), before>>20, most>>20)
	if served == 0 {
		f.t.Error("belt-17 was not served")
	}
	// Large MQTT packets have 64 MiB, large bodies 48 MiB; a Go heap grows to
	// twice of what it holds.
	if most-before > 256<<20 {
		f.t.Errorf("memory went from %d to %d MiB", before>>20, most>>20)
	}
}

// watch looks at the gateway's memory until the returned function is called.
func (f *fort) watch() (usage func() (before, most int)) {
	pid := f.gateway.cmd.Process.Pid
	before := resident(f.t, pid)
	most := before
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			most = max(most, resident(f.t, pid))
			pause(ctx, 20*time.Millisecond)
		}
	})
	return func() (int, int) {
		cancel()
		done.Wait()
		return before, most
	}
}

// resident returns the memory of a process in bytes.
func resident(t *testing.T, pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Error(err)
		return 0
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Error(err)
	}
	return pages * os.Getpagesize()
}

// A blow is what an attacker sends on one connection.
type blow struct {
	upgrade string        // a request that has to be answered before head
	head    string        // at once
	again   string        // after that, over and over, until the connection ends
	every   time.Duration // between two of them
	deaf    bool          // never reads
	halfway bool          // closes its sending side after head
}

// strike sends a blow and returns what came back, up to the end of the
// connection, which the other side has to make.
func (b blow) strike(f *fort, port int) string {
	began := time.Now()
	var dialer net.Dialer
	if b.deaf {
		dialer.Control = smallWindow
	}
	conn, err := dialer.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(began.Add(patience))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var sent atomic.Int64
	var writing sync.WaitGroup
	send := func() error {
		n, err := io.WriteString(conn, b.head)
		sent.Add(int64(n))
		if b.halfway {
			return conn.(*net.TCPConn).CloseWrite()
		}
		for err == nil && b.again != "" && ctx.Err() == nil {
			n, err = io.WriteString(conn, b.again)
			sent.Add(int64(n))
			if b.every > 0 {
				pause(ctx, b.every)
			}
		}
		return err
	}
	if b.upgrade != "" {
		if got := b.shake(conn); got != "" {
			return got + after(began)
		}
	}
	if b.deaf {
		if err := send(); errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Sprintf("an open connection after %s", patience)
		}
		return "nothing: closed" + after(began)
	}
	writing.Go(func() { _ = send() })
	said, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	cancel()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Sprintf("an open connection after %s, and %.80q", patience, said)
	}
	conn.Close()
	writing.Wait()
	return summary(said) + after(began)
}

// smallWindow makes a socket take 4 KiB that nobody reads, and no more. After
// connecting it would be too late: the window was offered.
func smallWindow(_, _ string, c syscall.RawConn) (err error) {
	controlErr := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
	return errors.Join(err, controlErr)
}

// shake sends the upgrade, and returns what came in place of a stream.
func (b blow) shake(conn net.Conn) string {
	if _, err := io.WriteString(conn, b.upgrade); err != nil {
		return err.Error()
	}
	var said []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(said), "\r\n\r\n"); said = append(said, one[0]) {
		if _, err := conn.Read(one); err != nil {
			return summary(said)
		}
	}
	switch head := string(said); {
	case strings.Contains(head, "Sec-WebSocket-Extensions"):
		return "an extension: " + head
	case strings.HasPrefix(head, "HTTP/1.1 101 "):
		return ""
	}
	rest, _ := io.ReadAll(conn)
	return summary(append(said, rest...))
}

// after says how long something took, roughly: whole seconds.
func after(began time.Time) string {
	return fmt.Sprintf(" (%.0f s)", time.Since(began).Seconds())
}

// summary says in short what a connection was answered.
func summary(said []byte) string {
	switch {
	case len(said) == 0:
		return "nothing: closed"
	case said[0] == 0x20 && len(said) == 4:
		return fmt.Sprintf("CONNACK 0x%02x, closed", said[3])
	case said[0] == 0x88 || said[0] == 0x89 || said[0] == 0x81: // a close frame, a ping, an answer
		return "closed with " + closeCode(said)
	case !bytes.HasPrefix(said, []byte("HTTP/1.")):
		return fmt.Sprintf("% x", said[:min(len(said), 16)])
	}
	head, body, _ := strings.Cut(string(said), "\r\n\r\n")
	line, _, _ := strings.Cut(head[len("HTTP/1.1 "):], "\r\n")
	var problem struct{ Detail string }
	if json.NewDecoder(strings.NewReader(body)).Decode(&problem) == nil {
		line += ": " + problem.Detail
	}
	return line
}

// closeCode finds the close frame in what a server said (RFC 6455).
func closeCode(said []byte) string {
	r := bufio.NewReader(strings.NewReader(string(said)))
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return "no word"
		}
		length := uint64(head[1])
		switch length {
		case 126:
			var n [2]byte
			_, _ = io.ReadFull(r, n[:])
			length = uint64(binary.BigEndian.Uint16(n[:]))
		case 127:
			var n [8]byte
			_, _ = io.ReadFull(r, n[:])
			length = binary.BigEndian.Uint64(n[:])
		}
		body := make([]byte, min(length, 1<<16))
		_, _ = io.ReadFull(r, body)
		if head[0] == 0x88 && len(body) >= 2 {
			return fmt.Sprintf("%d %s", binary.BigEndian.Uint16(body), body[2:])
		}
	}
}
