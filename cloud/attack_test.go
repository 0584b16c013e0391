package cloud_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/credential"
	"touchline/wire"
)

// Each of these attacks from outside, and says what the attacker got: nothing.
// What gateways are told, and what tokens hold, is in access_test.go.

// still wants a gateway to be served in the middle of an attack.
func still(t testing.TB, n *node, id string) {
	t.Helper()
	g, _ := n.join(id)
	sent := blocks(t, 1)
	g.send(sent...)
	g.stored(sent...)
	g.conn.Close()
}

// gone wants the other side to end the connection, and returns what it said.
func gone(t testing.TB, conn net.Conn) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(patience))
	said, err := io.ReadAll(conn)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection is still open")
	}
	return string(said)
}

func TestAttack_RequestsThatTrickleOrSwellAreCutOff(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	var wg sync.WaitGroup
	for name, c := range map[string]struct{ sent, want string }{
		"half a request line":            {"GET /v1/upl", ""},
		"headers that never end":         {"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n", ""},
		"headers of 1 MiB":               {"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", "431"},
		"a URL of 1 MiB":                 {"GET /v1/samples?sensor=" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		"an enrolment 500 deep":          {"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2500\r\n\r\n" + strings.Repeat(`{"a":`, 500), "400"},
		"an enrolment in gzip":           {"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 10\r\n\r\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "400"},
		"an enrolment in endless chunks": {"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1000\r\n"+strings.Repeat(" ", 0x1000)+"\r\n", 100), "413"},
		"two lengths of a body":          {"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}", "400"},
		"a body that trickles, unasked":  {"POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx", "413"},
		"an enrolment that trickles":     {"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", "400"},
		"an enrolment of 1 MiB":          {"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n" + strings.Repeat(" ", 1<<20), "413"},
		"frames of a stranger, trickled": {"POST /v1/uplink/frames HTTP/1.1\r\nHost: x\r\nX-Touchline-Session: 00112233445566778899aabbccddeeff\r\nX-Touchline-Sequence: 1\r\nContent-Length: 1000\r\n\r\n", "401"},
		"an archive of a stranger":       {"POST /v1/uplink/archive HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", "401"},
		"a chunked body on a GET":        {"GET /v1/samples HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", "413"},
	} {
		wg.Go(func() {
			conn, err := net.Dial("tcp", n.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			go io.WriteString(conn, c.sent)
			said := gone(t, conn)
			line, _, _ := strings.Cut(said, "\r\n")
			if line == "" {
				line = "nothing: closed"
			}
			t.Logf("MEASURED attack: the cloud, %s -> %s", name, strings.TrimPrefix(line, "HTTP/1.1 "))
			if !strings.Contains(strings.SplitN(said, "\r\n", 2)[0], c.want) || strings.Contains(said, "101 Switching") {
				t.Errorf("%s: the attacker got %.200q, want %q", name, said, c.want)
			}
		})
	}
	still(t, n, "arena")
	wg.Wait()
	still(t, n, "arena")
}

func TestAttack_OneAddressCantTakeAllConnections(t *testing.T) {
	opts := options()
	opts.AddressConnections = 20
	n := start(t, opts, newMemory("arena"))

	for range 50 {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	eventually(t, "30 connections are refused", func() bool { return n.server.Stats().AddressRefused == 30 })
	// Another address is served meanwhile.
	dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, NetDialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext}
	conn, _, err := dialer.Dial("ws://"+n.addr+wire.UplinkPath, header("arena"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestAttack_ConnectionsInARowLeaveNothingBehind(t *testing.T) {
	count := 1000
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		count = 100_000
	}
	n := start(t, options(), newMemory("arena"))
	began := time.Now()
	for i := range count {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 3 {
		case 0:
			io.WriteString(conn, "GET /v1/uplink HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"+
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer guess\r\nX-Touchline-Gateway: arena\r\n\r\n")
			if line, _ := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, "401") {
				t.Fatalf("the attacker got %q", line)
			}
		case 1:
			io.WriteString(conn, "\x16\x03\x01\x02\x00\x01")
		}
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	t.Logf("MEASURED %d connections in a row in %s", count, time.Since(began).Round(time.Millisecond))
	still(t, n, "arena")
	if st := n.server.Stats(); st.Handshakes["unauthorized"] != uint64((count+2)/3) {
		t.Errorf("handshakes are %v", st.Handshakes)
	}
}

// bomb is a zstd frame (RFC 8878) of 1 GiB of zeros in 32 KiB.
func bomb() []byte {
	data := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58} // no content size, a window of 2 MiB
	for i := range 8192 {
		head := uint32(128<<10)<<3 | 1<<1 // an RLE block of 128 KiB
		if i == 8191 {
			head |= 1
		}
		data = append(data, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return data
}

func TestAttack_ACompressedBombIsKeptAsideAsItIs(t *testing.T) {
	store := newMemory("arena")
	n := start(t, options(), store)
	g, _ := n.join("arena")
	e := touchline.NewEpoch()
	real := block(t, touchline.NewEpoch(), 1, readings(5000, 1))
	packed := bomb()
	at := bytes.Index(real.Data, packed[:4])
	if at < 0 {
		t.Fatalf("a block has no zstd frame in it: % x", real.Data[:16])
	}
	b := undecodable(e, 1, string(real.Data[:at])+string(packed))
	g.send(b)
	g.stored(b)
	if len(store.aside) != 1 || len(store.records) != 0 || !strings.Contains(store.aside[0].Problem, "decompress") {
		t.Errorf("the attacker got: %d samples; aside are %+v", len(store.records), store.aside)
	}
	still(t, n, "arena")
}

func TestAttack_APageOfAnotherSiteGetsNothing(t *testing.T) {
	n := start(t, options(), newMemory("arena"))
	for _, origin := range []string{"https://evil.example", "null", "http://127.0.0.1:1"} {
		h := header("arena")
		h.Set("Origin", origin)
		n.refused(h, http.StatusForbidden)
		for _, path := range []string{wire.EnrolPath, wire.RollPath, wire.FramesPath, wire.ArchivePath} {
			if status, _, body := n.postBytes(path, []byte("{}"), http.Header{"Origin": {origin}, "Sec-Fetch-Site": {"cross-site"}}); status != http.StatusForbidden {
				t.Errorf("POST %s from %s: %d %s", path, origin, status, body)
			}
		}
		req, _ := http.NewRequest(http.MethodGet, "http://"+n.addr+"/v1/samples", nil)
		req.Header.Set("Origin", origin)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
		if allow := resp.Header.Get("Access-Control-Allow-Origin"); allow != "" {
			t.Errorf("a page of %s may read: %q", origin, allow)
		}
	}
}

func TestAttack_AQueryIsNoSQL(t *testing.T) {
	store := openSQLite(t, t.TempDir(), "arena")
	n := start(t, options(), store)
	still(t, n, "arena")
	for _, evil := range []string{"x' OR '1'='1", "arena'; DROP TABLE block; --", "arena\x00", "%", "arena%", "_____", "arena\" UNION SELECT token_sha256 FROM gateway --"} {
		for _, name := range []string{"gateway", "sensor", "metric", "from", "to"} {
			status, _, body := n.get("/v1/samples?" + url.Values{name: {evil}}.Encode())
			if status == http.StatusOK && strings.Contains(body, "heart_rate") || status >= 500 {
				t.Errorf("%s=%q: the attacker got %d %.200s", name, evil, status, body)
			}
		}
	}
	still(t, n, "arena")
}

// TestStorm_HandshakesStayBelowTheirRate: many come at once, and are told to
// come again at times that differ.
func TestStorm_HandshakesStayBelowTheirRate(t *testing.T) {
	opts := options()
	opts.Handshakes = 20
	const count = 300
	store := newMemory("arena")
	n := start(t, opts, store)
	began := time.Now()
	var mu sync.Mutex
	told := map[string]int{}
	accepted := 0
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			conn, resp, err := dial(n, header("arena"), wire.Subprotocol)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				conn.Close()
				accepted++
			} else if resp != nil && resp.StatusCode == http.StatusServiceUnavailable {
				told[resp.Header.Get("Retry-After")]++
			} else {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// So many seconds, begun or whole, were at most touched.
	if limit := 20 * (1 + int(time.Since(began)/time.Second)); accepted > limit || accepted < 20 {
		t.Errorf("%d of %d were let in within %s, want 20 to %d", accepted, count, time.Since(began), limit)
	}
	for after, several := range told {
		if after == "" || after == "0" || several > 40 {
			t.Errorf("%d were told to come again after %q seconds: want at most 40 at a time", several, after)
		}
	}
	t.Logf("MEASURED %d of %d were let in within %s, the others told %d different times", accepted, count, time.Since(began).Round(time.Millisecond), len(told))
}

// TestSecrets_AreInNoLog: everything is done with each secret, right and
// wrong, at the most talkative level.
func TestSecrets_AreInNoLog(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&lockedWriter{w: &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	store := openSQLite(t, t.TempDir(), "arena")
	server, err := cloud.New(options(), store, logger)
	if err != nil {
		t.Fatal(err)
	}
	server.SetShutdown(50 * time.Millisecond)
	n := run(t, server)
	b := newBox(t, n)
	code, made := claim(t, store, "north", ""), credential.NewClaim()
	b.enrol(code, "")
	n.enrol(newBox(t, n).enrolment(code, ""))
	n.enrol(newBox(t, n).enrolment(made, ""))
	h := b.header()
	conn, _, err := dial(n, h, wire.Subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	n.refused(h, http.StatusUnauthorized)
	stale := b.token("")
	n.refused(http.Header{"Authorization": {"Bearer " + stale}, wire.HeaderGateway: {b.id}}, http.StatusUnauthorized)
	n.refused(http.Header{"Authorization": {"Bearer a-guessed-token"}, wire.HeaderGateway: {b.id}}, http.StatusUnauthorized)
	swapped := header("arena")
	swapped[wire.HeaderGateway] = []string{b.id}
	n.refused(swapped, http.StatusForbidden)
	c := newCourier(n, "arena")
	c.join()
	key, unknown := addAPIKey(t, store, "reader", credential.ReadSamples, time.Time{}), credential.NewAPIKey()
	for _, k := range []credential.APIKey{key, unknown} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+n.addr+"/metrics", nil)
		req.Header.Set("Authorization", "Bearer "+k.Reveal())
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	n.end()
	if !strings.Contains(log.String(), "enrolled") {
		t.Fatalf("the log says nothing: %s", log.String())
	}
	for name, secret := range map[string]string{
		"claim code": code.Reveal(), "claim code without dashes": strings.ReplaceAll(code.Reveal(), "-", ""), "made up code": made.Reveal(),
		"used token": strings.TrimPrefix(h.Get("Authorization"), "Bearer "), "its signature": h.Get("Authorization")[strings.LastIndex(h.Get("Authorization"), ".")+1:],
		"stale token": stale, "guessed token": "a-guessed-token", "opaque token": token("arena"), "session over HTTP": c.session,
		"API key": key.Reveal(), "unknown API key": unknown.Reveal(), "its secret": strings.Split(unknown.Reveal(), "_")[2],
	} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the %s is in the log", name)
		}
	}
}

func TestTLS_ServesTheCertificateThatIsThereNow(t *testing.T) {
	dir := t.TempDir()
	ca, err := credential.CreateCA(dir, credential.CAOptions{Name: "test", Domains: credential.LocalDomains, Networks: credential.LocalNetworks})
	if err != nil {
		t.Fatal(err)
	}
	issue := func() {
		if err := ca.Issue(dir, []string{"127.0.0.1"}); err != nil {
			t.Fatal(err)
		}
	}
	issue()
	opts := options()
	opts.CertFile = filepath.Join(dir, credential.ServerFile)
	opts.KeyFile = opts.CertFile
	n := start(t, opts, newMemory("arena"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.Certificate())
	serial := func() string {
		conn, err := tls.Dial("tcp", n.addr, &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	dialer := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}, TLSClientConfig: &tls.Config{RootCAs: roots}}
	conn, _, err := dialer.Dial("wss://"+n.addr+wire.UplinkPath, header("arena"))
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, conn: conn, id: "arena"}
	g.say(&wire.Hello{Gateway: "arena", Clock: "set"})
	next[*wire.Welcome](g)
	sent := blocks(t, 2)
	g.send(sent...)
	g.stored(sent...)
	conn.Close()

	if _, err := tls.Dial("tcp", n.addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
	if _, err := tls.Dial("tcp", n.addr, &tls.Config{}); err == nil {
		t.Error("a stranger's roots took the certificate")
	}
	issue()
	eventually(t, "the new certificate is served", func() bool { return serial() != first })
	plain, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	io.WriteString(plain, "GET /v1/samples HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	if said := gone(t, plain); strings.Contains(said, "200 OK") {
		t.Errorf("without TLS: %.100q", said)
	}
}
