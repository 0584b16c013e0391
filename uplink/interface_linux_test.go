package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"

	"touchline/internal/netlab"
)

// twoLines is a gateway from which two cables lead to one cloud, which listens
// at an address of neither. The routing table prefers line0.
type twoLines struct {
	t              *testing.T
	gateway, cloud *netlab.Namespace
	at             string // where the cloud listens
	from           chan string
}

const cloudAlone = "10.81.9.9"

func newTwoLines(t *testing.T) *twoLines {
	t.Helper()
	l := &twoLines{t: t, from: make(chan string, 1)}
	for _, n := range []**netlab.Namespace{&l.gateway, &l.cloud} {
		var err error
		if *n, err = netlab.NewNamespace(); errors.Is(err, netlab.ErrRefused) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*n).Close() })
	}
	for i := range 2 {
		net := func(host int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.81.%d.%d/24", i+1, host)) }
		l.check(netlab.Veth(netlab.End{In: l.gateway, Device: fmt.Sprintf("line%d", i), Address: net(1)},
			netlab.End{In: l.cloud, Device: fmt.Sprintf("peer%d", i), Address: net(2)}))
		l.check(l.gateway.Run("ip", "route", "add", cloudAlone+"/32", "via", net(2).Addr().String(), "metric", fmt.Sprint(10*(i+1))))
	}
	l.check(l.cloud.Run("ip", "address", "add", cloudAlone+"/32", "dev", "lo"))
	// Answers come by the line that was asked by, whichever is preferred.
	l.check(l.gateway.Do(func() error {
		for _, name := range []string{"all", "line0", "line1"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0); err != nil {
				return err
			}
		}
		return nil
	}))
	listener, err := l.cloud.Listen(cloudAlone + ":0")
	l.check(err)
	l.at = listener.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, conn)
			l.from <- conn.RemoteAddr().(*net.TCPAddr).IP.String()
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return l
}

func (l *twoLines) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// sent returns how many bytes of IP have left by a line.
func (l *twoLines) sent(line string) (bytes int) {
	l.t.Helper()
	var text []byte
	l.check(l.gateway.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	}))
	for row := range strings.Lines(string(text)) {
		if name, counts, ok := strings.Cut(strings.TrimSpace(row), ":"); ok && name == line {
			_, err := fmt.Sscan(strings.Fields(counts)[8], &bytes)
			l.check(err)
			return bytes
		}
	}
	l.t.Fatalf("there is no %s: %s", line, text)
	return 0
}

const told = 100_000 // bytes: more than neighbour discovery and the like

// tell dials from inside the gateway, sends, and returns where that came from.
func (l *twoLines) tell(dial func(context.Context) (net.Conn, error)) (from string, err error) {
	l.t.Helper()
	err = l.gateway.Do(func() error {
		conn, err := dial(l.t.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(make([]byte, told))
		return err
	})
	if err != nil {
		return "", err
	}
	return <-l.from, nil
}

// TestInterface_PacketsLeaveByTheOneThatIsBound has the other line as the one that the
// system prefers, directly and by a proxy.
func TestInterface_PacketsLeaveByTheOneThatIsBound(t *testing.T) {
	l := newTwoLines(t)
	behind, err := l.cloud.Listen(cloudAlone + ":0")
	l.check(err)
	proxy := netlab.NewRelay(behind, netlab.RelayOptions{Greet: netlab.GreetCONNECT(netlab.Credentials{}), Dial: func(ctx context.Context, target string) (net.Conn, error) {
		return l.cloud.DialContext(ctx, "tcp", target)
	}})
	defer proxy.Close()
	route := func(line, proxy string) func(context.Context) (net.Conn, error) {
		r, err := NewRoute(Network{Interface: line, Proxy: proxy}, nil)
		l.check(err)
		return func(ctx context.Context) (net.Conn, error) { return r.Dial(ctx, &url.URL{Scheme: "ws", Host: l.at}) }
	}
	for _, c := range []struct{ line, proxy, by, from string }{
		{"", "direct", "line0", "10.81.1.1"},
		{"line0", "direct", "line0", "10.81.1.1"},
		{"line1", "direct", "line1", "10.81.2.1"},
		{"line1", "http://" + behind.Addr().String(), "line1", cloudAlone},
	} {
		before := map[string]int{"line0": l.sent("line0"), "line1": l.sent("line1")}
		from, err := l.tell(route(c.line, c.proxy))
		if err != nil || from != c.from {
			t.Fatalf("bound to %q: from %s, %v; want %s", c.line, from, err, c.from)
		}
		for line, was := range before {
			if sent := l.sent(line) - was; (sent >= told) != (line == c.by) {
				t.Errorf("bound to %q, by %s: %d bytes left by %s", c.line, c.proxy, sent, line)
			}
		}
	}
	// Where its line is down nothing leaves by another one, which may be metered.
	l.check(l.gateway.Run("ip", "link", "set", "line1", "down"))
	before := l.sent("line0")
	if from, err := l.tell(route("line1", "direct")); err == nil {
		t.Errorf("line1 is down, and the cloud heard of %s", from)
	}
	if sent := l.sent("line0") - before; sent >= told {
		t.Errorf("line1 is down, and %d bytes left by line0", sent)
	}
}

// TestInterface_ItsAddressIsTheSenderWhereNothingCanBeBound is for systems that
// let us bind to an address only, and route by it.
func TestInterface_ItsAddressIsTheSenderWhereNothingCanBeBound(t *testing.T) {
	l := newTwoLines(t)
	l.check(l.gateway.Run("ip", "rule", "add", "from", "10.81.2.1", "table", "81"))
	l.check(l.gateway.Run("ip", "route", "add", cloudAlone+"/32", "via", "10.81.2.2", "table", "81"))
	before := l.sent("line1")
	from, err := l.tell(func(ctx context.Context) (net.Conn, error) { return dialFrom(ctx, "line1", &net.Dialer{}, l.at) })
	if err != nil || from != "10.81.2.1" {
		t.Fatalf("from %s, %v", from, err)
	}
	if sent := l.sent("line1") - before; sent < told {
		t.Errorf("%d bytes left by line1", sent)
	}
}
