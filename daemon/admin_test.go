package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline"
	"touchline/archive"
	"touchline/daemon"
)

func post(t *testing.T, d *daemon.Daemon, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+d.HTTPAddr()+"/v1/samples?sensor=belt-1", "application/json", strings.NewReader(body))
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatal(err, resp)
	}
	resp.Body.Close()
}

func openFolder(t *testing.T, c touchline.Config) *daemon.Folder {
	t.Helper()
	f, err := daemon.OpenFolder(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func anybody(archive.Header) error { return nil }

// TestFolder_TheSameThroughAGatewayAndWithout: key, report and export.
func TestFolder_TheSameThroughAGatewayAndWithout(t *testing.T) {
	c := settings(t, nil)
	d, err := daemon.Open(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	post(t, d, `{"heart_rate":142,"x":1.5}`)

	look := func(running bool) (key string) {
		t.Helper()
		f := openFolder(t, c)
		defer f.Close()
		report, err := f.Check(t.Context())
		if err != nil || f.Running() != running || report.Running != running || report.Samples != 2 || !report.OK() {
			t.Errorf("running %t: %v %+v", running, err, report)
		}
		var out bytes.Buffer
		summary, err := f.Export(t.Context(), false, &out)
		if err != nil || summary.Samples != 2 {
			t.Fatalf("running %t: %v %+v", running, err, summary)
		}
		h, again, err := archive.Verify(&out, anybody)
		if err != nil || again.Samples != 2 || h.Gateway != "g1" {
			t.Errorf("running %t: %v %+v %+v", running, err, h, again)
		}
		public, err := f.Key()
		if err != nil || public != h.Key {
			t.Errorf("signed with %s, the key is %s (%v)", h.Key, public, err)
		}
		return public.String()
	}
	first := look(true)
	if info, err := os.Stat(filepath.Join(c.Gateway.Data, daemon.AdminSocket)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v, want mode 0600", info, err)
	}
	cancel()
	if err := errors.Join(<-ended, d.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	if second := look(false); second != first {
		t.Errorf("the key was %s and is %s", first, second)
	}
}

// TestFolder_ImportAsksForTrust through a gateway and without.
func TestFolder_ImportAsksForTrust(t *testing.T) {
	from := settings(t, map[string]string{"gateway.id": "arena"})
	a := run(t, from)
	post(t, a, `{"heart_rate":142}`)
	f := openFolder(t, from)
	var out bytes.Buffer
	if _, err := f.Export(t.Context(), true, &out); err != nil {
		t.Fatal(err)
	}
	key, err := f.Key()
	if err != nil {
		t.Fatal(err)
	}
	for _, running := range []bool{true, false} {
		c := settings(t, map[string]string{"gateway.id": "gym"})
		if running {
			run(t, c)
		}
		carrier := openFolder(t, c)
		for _, trusted := range [][]string{nil, {"gym=" + key.String()}, {"arena"}, {"arena=" + strings.Repeat("x", 50)}} {
			if _, err := carrier.Import(t.Context(), trusted, bytes.NewReader(out.Bytes())); err == nil {
				t.Errorf("taken in with the trust %v", trusted)
			}
		}
		if _, err := carrier.Import(t.Context(), []string{"arena=" + key.String()}, bytes.NewReader(out.Bytes()[:out.Len()-9])); err == nil {
			t.Error("a part was taken in")
		}
		for _, known := range []bool{false, true} {
			taken, err := carrier.Import(t.Context(), []string{"arena=" + key.String()}, bytes.NewReader(out.Bytes()))
			if err != nil || taken.Known != known || taken.Header.Gateway != "arena" {
				t.Errorf("running %t: %v %+v", running, err, taken)
			}
		}
	}
}

// TestAdmin_AnExportThatIsNotReadEndsWithTheGateway: a command that hangs does
// not keep the gateway from stopping.
func TestAdmin_AnExportThatIsNotReadEndsWithTheGateway(t *testing.T) {
	c := settings(t, nil)
	run(t, c) // the clean-up ends it, and fails where it does not end
	conn, err := net.Dial("unix", filepath.Join(c.Gateway.Data, daemon.AdminSocket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "POST /import HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc"); err != nil {
		t.Fatal(err)
	}
}

// TestAdmin_StatusWaitsForNoCommand: what is wanted most while something goes
// on has a place of its own.
func TestAdmin_StatusWaitsForNoCommand(t *testing.T) {
	c := settings(t, nil)
	run(t, c)
	for range 2 { // commands that don't end
		conn, err := net.Dial("unix", filepath.Join(c.Gateway.Data, daemon.AdminSocket))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, "POST /import HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		// The body is asked for by the command itself.
		if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(answer, "100 Continue") {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	f := openFolder(t, c)
	if _, err := f.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "other commands are running") {
		t.Fatalf("a third command: %v", err)
	}
	if status, err := f.Status(t.Context()); err != nil || status.Gateway != "g1" {
		t.Errorf("status of %q: %v", status.Gateway, err)
	}
}

// TestOpen_GoesOnWithoutASocket: a folder in the socket's place keeps nobody
// from running.
func TestOpen_GoesOnWithoutASocket(t *testing.T) {
	c := settings(t, nil)
	if err := os.MkdirAll(filepath.Join(c.Gateway.Data, daemon.AdminSocket, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	post(t, run(t, c), `{"x":1}`)
}

func TestPeer_OwnUserAndRootOnly(t *testing.T) {
	me := uint32(os.Geteuid())
	for uid, want := range map[uint32]bool{me: true, 0: true, me + 1000: false} {
		if err := daemon.PeerAllowed(uid, nil); (err == nil) != want {
			t.Errorf("user %d: %v, want allowed %t", uid, err, want)
		}
	}
	if daemon.PeerAllowed(me, errors.New("unknown")) == nil {
		t.Error("a peer that is not known may")
	}
	// What the system says of a connection of our own.
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if uid, err := daemon.PeerOf(server); err != nil || uid != me {
		t.Errorf("the peer is %d (%v), want %d", uid, err, me)
	}
	if _, err := daemon.PeerOf(&net.TCPConn{}); err == nil {
		t.Error("a TCP connection has a user")
	}
}

// TestKeys_OfARunningGateway: a key that was made after the start is shown too.
func TestKeys_OfARunningGateway(t *testing.T) {
	c := settings(t, nil)
	run(t, c)
	f := openFolder(t, c)
	if keys, err := f.Keys(t.Context()); err != nil || keys.Thumbprint != "" {
		t.Errorf("before there is a key: %+v, %v", keys, err)
	}
	if _, err := f.Key(); err != nil { // makes it
		t.Fatal(err)
	}
	if keys, err := f.Keys(t.Context()); err != nil || keys.Thumbprint == "" || keys.Since.IsZero() {
		t.Errorf("after: %+v, %v", keys, err)
	}
}
