package netlab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must happen and is never waited for otherwise.
const patience = time.Minute

// check fails on an error, and skips where that says that the system refuses.
func check(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrRefused) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func mustListen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// An echo answers with what it hears, and notes the order in which its
// connections end.
type echo struct {
	net.Listener
	ended chan int
	done  sync.WaitGroup
}

func serveEcho(t *testing.T, l net.Listener) *echo {
	t.Helper()
	e := &echo{Listener: l, ended: make(chan int, 100)}
	var mu sync.Mutex // covers conns
	var conns []net.Conn
	e.done.Go(func() {
		for number := 0; ; number++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			e.done.Go(func() {
				_, _ = io.Copy(conn, conn)
				conn.Close()
				e.ended <- number
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, conn := range conns { // some networks here never say that the client is gone
			conn.Close()
		}
		mu.Unlock()
		e.done.Wait()
	})
	return e
}

// startRelay makes a relay to address; opts.Dial is filled in.
func startRelay(t *testing.T, address string, o RelayOptions) *Relay {
	t.Helper()
	o.Dial = func(ctx context.Context, target string) (net.Conn, error) {
		if target == "" {
			target = address
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", target)
	}
	r := NewRelay(mustListen(t), o)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func mustDial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// mustEcho says text, and hears it back.
func mustEcho(t *testing.T, conn io.ReadWriter, text string) {
	t.Helper()
	if got, err := hear(conn, text); err != nil || got != text {
		t.Fatalf("said %q, heard %q, %v", text, got, err)
	}
}

func hear(conn io.ReadWriter, text string) (string, error) {
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	got := make([]byte, len(text))
	n, err := io.ReadFull(conn, got)
	return string(got[:n]), err
}

// expectSilence says text, and hears nothing for as long as an echo would
// usually take a thousand times over. A busy machine can only make it pass.
func expectSilence(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	got, err := hear(conn, text)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("heard %q, %v: want silence", got, err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
}

func TestRelay_PassesBytesAndEndsBothWays(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	r := startRelay(t, e.Addr().String(), RelayOptions{})
	conn := mustDial(t, r.Addr())
	text := strings.Repeat("all of it, in order. ", 100_000)
	go func() {
		_, _ = io.WriteString(conn, text)
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != text {
		t.Fatalf("heard %d bytes of %d, %v", len(got), len(text), err)
	}
	if s := r.Stats(); s.Up != uint64(len(text)) || s.Down != s.Up || s.Accepted != 1 || s.Dialed != 1 {
		t.Errorf("counts: %+v", s)
	}
}

func TestRelay_CutResetsBothSides(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	r := startRelay(t, e.Addr().String(), RelayOptions{})
	conn := mustDial(t, r.Addr())
	mustEcho(t, conn, "x")
	if n := r.Cut(); n != 1 {
		t.Errorf("cut %d connections", n)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client: %v", err)
	}
	<-e.ended
	mustEcho(t, mustDial(t, r.Addr()), "the next connection is whole")
}

func TestRelay_StallKeepsBytesAndBlackholeDoesNot(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	r := startRelay(t, e.Addr().String(), RelayOptions{})
	conn := mustDial(t, r.Addr())
	mustEcho(t, conn, "before")
	r.Set(Faults{Up: Flow{Stall: true}})
	expectSilence(t, conn, "during")
	r.Set(Faults{})
	mustEcho2(t, conn, "during", "after")

	r.Set(Faults{Down: Flow{Blackhole: true}})
	expectSilence(t, conn, "one way")
	r.Set(Faults{})
	expectSilence(t, conn, "a connection that lost bytes stays lost")
	mustEcho(t, mustDial(t, r.Addr()), "a new one does not")
	if s := r.Stats(); s.Swallowed < uint64(len("one way")) {
		t.Errorf("counts: %+v", s)
	}
}

// mustEcho2 hears what was said before as well.
func mustEcho2(t *testing.T, conn io.ReadWriter, before, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(before)+len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != before+text {
		t.Fatalf("heard %q, %v", got, err)
	}
}

func TestRelay_IsAsSlowAsItIsTold(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	r := startRelay(t, e.Addr().String(), RelayOptions{})
	conn := mustDial(t, r.Addr())
	r.Set(Faults{Up: Flow{BytesPerSecond: 100}})
	begin := time.Now()
	mustEcho(t, conn, strings.Repeat("x", 50))
	// 5 pieces of 10 bytes, with 100 ms behind each but the last.
	if took := time.Since(begin); took < 390*time.Millisecond {
		t.Errorf("50 bytes at 100 a second took %v", took)
	}
	r.Set(Faults{Up: Flow{BytesPerSecond: 1}})
	expectSilence(t, conn, "xy") // x leaves at once, y a second later: both don't come
}

func TestRelay_CorruptsBySeed(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	text := strings.Repeat("0", 10_000)
	flips := func(seed uint64) (at []int) {
		r := startRelay(t, e.Addr().String(), RelayOptions{Seed: seed})
		r.Set(Faults{Down: Flow{CorruptEvery: 1000}})
		got, err := hear(mustDial(t, r.Addr()), text)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i] != text[i] {
				at = append(at, i)
			}
		}
		if s := r.Stats(); s.Flipped < len(at) {
			t.Errorf("%d flips were counted, %d seen", s.Flipped, len(at))
		}
		return at
	}
	first := flips(1)
	if len(first) < 3 || !slices.Equal(first, flips(1)) || slices.Equal(first, flips(2)) {
		t.Errorf("flips with seed 1: %v, again %v, with seed 2: %v", first, flips(1), flips(2))
	}
}

func TestRelay_HeldClosesArriveWhenReleased(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	r := startRelay(t, e.Addr().String(), RelayOptions{})
	for range 3 {
		mustEcho(t, mustDial(t, r.Addr()), "x") // in turn, so that the numbers are known
	}
	r.Set(Faults{HoldCloses: true})
	if n := r.CutClients(); n != 3 {
		t.Fatalf("cut %d", n)
	}
	for deadline := time.Now().Add(patience); r.Held() < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 3 ends are held", r.Held())
		}
	}
	if n := r.ReleaseCloses(); n != 3 {
		t.Fatalf("released %d", n)
	}
	// They left newest first; which of the server's goroutines hears of its end
	// first is the scheduler's.
	ended := []int{<-e.ended, <-e.ended, <-e.ended}
	slices.Sort(ended)
	if !slices.Equal(ended, []int{0, 1, 2}) {
		t.Errorf("the server saw the ends of %v", ended)
	}
}

func TestGreetCONNECT_AsksForCredentials(t *testing.T) {
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "reached") })}
	authority, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	config, err := authority.ServerConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	l := mustListen(t)
	go func() { _ = web.Serve(tls.NewListener(l, config)) }()
	defer web.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM())

	get := func(r *Relay, user *url.Userinfo) (string, error) {
		transport := &http.Transport{
			Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: r.Addr(), User: user}),
			TLSClientConfig: &tls.Config{RootCAs: roots},
		}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + l.Addr().String())
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	free := startRelay(t, "", RelayOptions{Greet: GreetCONNECT(Credentials{})})
	if got, err := get(free, nil); got != "reached" {
		t.Errorf("without credentials: %q, %v", got, err)
	}
	guarded := startRelay(t, "", RelayOptions{Greet: GreetCONNECT(Credentials{"u", "p"})})
	if got, err := get(guarded, url.UserPassword("u", "p")); got != "reached" {
		t.Errorf("with credentials: %q, %v", got, err)
	}
	for _, user := range []*url.Userinfo{nil, url.UserPassword("u", "wrong")} {
		if got, err := get(guarded, user); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
			t.Errorf("as %v: %q, %v", user, got, err)
		}
	}
	check(t, guarded.Close()) // it counts a rejection when the client has gone
	if s := guarded.Stats(); s.Greeted != 1 || s.Rejected != 2 {
		t.Errorf("counts: %+v", s)
	}
}

func TestGreetSOCKS_AsksForCredentials(t *testing.T) {
	e := serveEcho(t, mustListen(t))
	dial := func(r *Relay, auth *proxy.Auth) error {
		d, err := proxy.SOCKS5("tcp", r.Addr(), auth, nil)
		if err != nil {
			return err
		}
		conn, err := d.Dial("tcp", e.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		mustEcho(t, conn, "through")
		return nil
	}
	if err := dial(startRelay(t, "", RelayOptions{Greet: GreetSOCKS(Credentials{})}), nil); err != nil {
		t.Errorf("without credentials: %v", err)
	}
	guarded := startRelay(t, "", RelayOptions{Greet: GreetSOCKS(Credentials{"u", "p"})})
	if err := dial(guarded, &proxy.Auth{User: "u", Password: "p"}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	if dial(guarded, nil) == nil || dial(guarded, &proxy.Auth{User: "u", Password: "wrong"}) == nil {
		t.Error("a wrong password, or none, passed")
	}
}

func TestGreetRefusingUpgrades_LetsOtherRequestsThrough(t *testing.T) {
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "reached with %s", body)
	})}
	l := mustListen(t)
	go func() { _ = web.Serve(l) }()
	defer web.Close()
	for _, status := range []int{http.StatusForbidden, http.StatusUpgradeRequired, http.StatusOK} {
		r := startRelay(t, l.Addr().String(), RelayOptions{Greet: GreetRefusingUpgrades(l.Addr().String(), status)})
		conn := mustDial(t, r.Addr())
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != status {
			t.Errorf("upgrade: %v, %v, want %d", resp, err, status)
		}
		conn.Close()
		resp, err = http.Post("http://"+r.Addr(), "text/plain", bytes.NewReader([]byte("a body")))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "reached with a body" {
			t.Errorf("POST: %q, %v", body, err)
		}
		http.DefaultClient.CloseIdleConnections()
	}
}
