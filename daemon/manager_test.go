package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"touchline"
	"touchline/uplink"
)

// TestLoop_WhichStallIsAHang goes through the clock by hand.
func TestLoop_WhichStallIsAHang(t *testing.T) {
	for _, tc := range []struct {
		name    string
		disk    time.Duration // that keeps the loop
		running bool
		turns   bool // between the two looks
		after   time.Duration
		hangs   bool
	}{
		{"it turns", 0, true, true, time.Hour, false},
		{"it is late", 0, true, false, loopPatience, false},
		{"it hangs", 0, true, false, loopPatience + time.Second, true},
		{"a card collects its garbage", time.Minute, true, false, time.Minute, false},
		{"the disk does not come back", time.Hour, true, false, diskPatience + time.Second, true},
		{"it is switched off", 0, false, false, time.Hour, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			turns := uint64(7)
			l := loop{patient: loopPatience, seen: func() (uint64, time.Duration, bool) { return turns, tc.disk, tc.running }}
			now := time.Now()
			if l.look(now) != 0 {
				t.Fatal("it hangs at the first look")
			}
			if tc.turns {
				turns++
			}
			if hangs := l.look(now.Add(tc.after)) > 0; hangs != tc.hangs {
				t.Errorf("hangs: %v, want %v", hangs, tc.hangs)
			}
			turns++
			if l.look(now.Add(tc.after+time.Second)) > 0 {
				t.Error("it hangs after it went on")
			}
		})
	}
}

// TestLine_SaysWhatKeepsSensorsWaiting: what a person sees while nobody is
// acknowledged says why.
func TestLine_SaysWhatKeepsSensorsWaiting(t *testing.T) {
	for _, tc := range []struct {
		state   string
		stalled time.Duration
		want    string
	}{
		{"ok", 0, ""},
		{"ok", time.Second, ""}, // a slow card
		{"ok", 40 * time.Second, "DISK: it has not answered for 40s, and sensors wait for it"},
		{"error", 0, "DISK: no such device"},
		{"error", time.Minute, "DISK: no such device"},
		{"full", 0, "BUFFER FULL: sensors are refused"},
		{"full", time.Minute, "DISK: it has not answered for 1m0s, and sensors wait for it"},
	} {
		if got := bufferTrouble(&BufferStatus{State: tc.state, LastError: "no such device"}, tc.stalled); got != tc.want {
			t.Errorf("%s, stalled for %s: %q, want %q", tc.state, tc.stalled, got, tc.want)
		}
	}
	if got := (&Daemon{}).cloudLine(&UplinkStatus{State: uplink.Connecting}); got != "cloud not connected yet" {
		t.Errorf("before the first try: %q", got)
	}
}

// TestManager_SaysNothingForALoopThatHangs lets a real loop of Accept not come
// back: the sign of life stops, and comes back with it.
func TestManager_SaysNothingForALoopThatHangs(t *testing.T) {
	heard := notifySocket(t)
	ports := ports{log: slog.New(slog.DiscardHandler)}
	l, err := ports.open(port{name: "mqtt", setting: "sensors.mqtt.listen", address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	l.turn = time.Millisecond
	m := &manager{status: func() string { return "fine" }, log: slog.New(slog.DiscardHandler), every: time.Millisecond, loops: []*loop{{
		name: "the listener", patient: 100 * time.Millisecond,
		seen: func() (uint64, time.Duration, bool) { return l.turns.Load(), 0, true },
	}}}
	busy, free := make(chan struct{}), make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
			close(busy)
			<-free // the defect
		}
	}()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.run(ctx) }()
	await(t, heard, "READY=1\nSTATUS=fine")
	await(t, heard, "WATCHDOG=1")
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	<-busy
	await(t, heard, "STATUS=HANGS: the listener does not go on")
	quiet := time.NewTimer(100 * time.Millisecond) // a hundred looks
	defer quiet.Stop()
	for hangs := true; hangs; {
		select {
		case text := <-heard:
			if strings.Contains(text, "WATCHDOG=1") {
				t.Error("a sign of life while the listener hangs")
			}
		case <-quiet.C:
			hangs = false
		}
	}
	close(free)
	await(t, heard, "WATCHDOG=1\nSTATUS=fine")
	stop()
	await(t, heard, "STOPPING=1")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-ended
}

// TestManager_EveryLoopTurns: the counters are those of the loops themselves.
func TestManager_EveryLoopTurns(t *testing.T) {
	c, _, err := touchline.LoadConfig("", nil, map[string]string{
		"gateway.id": "g1", "gateway.data": t.TempDir(), "sensors.mqtt.listen": "127.0.0.1:0", "sensors.http.listen": "127.0.0.1:0",
		"uplink.urls": "ws://127.0.0.1:1", "uplink.reconnect_max": "1s",
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Uplink.TokenFile = filepath.Join(c.Gateway.Data, "token")
	if err := os.WriteFile(c.Uplink.TokenFile, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range d.ports.list {
		l.turn = 10 * time.Millisecond
	}
	if len(d.manager.loops) != 4 { // commit, two listeners, uplink
		t.Errorf("%d loops are looked at", len(d.manager.loops))
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, l := range d.manager.loops {
		for first, _, _ := l.seen(); ; {
			if now, _, running := l.seen(); running && now >= first+3 {
				break
			}
			select {
			case <-tick.C:
			case <-deadline.C:
				t.Fatalf("%s does not turn", l.name)
			}
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// notifySocket is the service manager's ear.
func notifySocket(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	heard, ended, over := make(chan string), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		text := make([]byte, 4<<10)
		for {
			n, err := conn.Read(text)
			if err != nil {
				return
			}
			select {
			case heard <- string(text[:n]):
			case <-over:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(over)
		conn.Close()
		<-ended
	})
	return heard
}

// await reads what is heard until it begins with want.
func await(t *testing.T, heard <-chan string, want string) {
	t.Helper()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	for {
		select {
		case text := <-heard:
			if strings.HasPrefix(text, want) {
				return
			}
		case <-deadline.C:
			t.Fatalf("waited for %q", want)
		}
	}
}
