package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestAttack_ConnectionsInARowLeaveNothingBehind opens very many connections
// to each listener, from several addresses, and does something useless with
// each. Afterwards descriptors, goroutines and memory are where they were.
func TestAttack_ConnectionsInARowLeaveNothingBehind(t *testing.T) {
	count := 2000
	if long() {
		count = 100_000
	}
	f := newFort(t)
	const upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer guess\r\n\r\n"
	for _, target := range []struct {
		name, login string // a login that fails, and is answered
		port        int
		of          *program
		metrics     int
	}{
		{"the cloud", "GET /v1/uplink HTTP/1.1\r\nHost: x\r\nX-Touchline-Gateway: venue-1\r\nSec-WebSocket-Protocol: touchline.v1\r\n" + upgrade, f.cloudPort, f.cloud, f.cloudPort},
		{"the gateway's MQTT", string(mqttConnect("x", "belt-17", "guess")), f.mqtt, f.gateway, f.http},
		{"the gateway's HTTP", "POST /v1/samples HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nAuthorization: Bearer guess\r\n\r\n{}", f.http, f.gateway, f.http},
		{"the gateway's WebSocket", "GET /v1/samples/stream HTTP/1.1\r\nHost: x\r\n" + upgrade, f.http, f.gateway, f.http},
	} {
		for range 20 {
			if err := f.postOne(); err != nil {
				t.Fatal(err)
			}
		}
		flood(t, target.port, 1000, target.login) // pools, of readers of the store for one, have their size after these
		before := f.footprint(target.of, target.metrics)
		stop := f.serve()
		began := time.Now()
		answered := flood(t, target.port, count, target.login)
		took := time.Since(began)
		served, slowest := stop()
		if answered == 0 || served == 0 {
			t.Errorf("%s: %d logins were answered, belt-17 was served %d times", target.name, answered, served)
		}
		var now footprint
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s: %s before, %s at last", target.name, before, now)
			}
		})
		waitFor(t, "descriptors and goroutines of "+target.name+" to be where they were", func() bool {
			now = f.footprint(target.of, target.metrics)
			// A few come and go: a connection that is being served, a timer.
			return now.descriptors <= before.descriptors+5 && now.goroutines <= before.goroutines+10
		})
		t.Logf("MEASURED attack: %d connections in a row to %s in %.1f s -> %d logins refused, the others nothing; before %s, after %s; belt-17 had %d samples taken meanwhile, the slowest after %s",
			count, target.name, took.Seconds(), answered, before, now, served, slowest.Round(time.Millisecond))
		// A heap that has grown is given back slowly.
		if now.memory > before.memory+128*mib {
			t.Errorf("%s: memory was %d MiB and is %d MiB", target.name, before.memory/mib, now.memory/mib)
		}
	}
	f.drained()
}

// flood makes connections one after the other, four at a time, and breaks each
// off: at once, in the middle of a login, after rubbish, or after the answer to
// a login that fails. It returns how many were answered.
func flood(t *testing.T, port, count int, login string) int {
	var next, answered atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := next.Add(1); i <= int64(count); i = next.Add(1) {
				// An address has 28,000 ports for one destination.
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, byte(1+i%16))}}
				conn, err := dialer.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				if err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
				_ = conn.SetDeadline(time.Now().Add(patience))
				switch i / 16 % 4 {
				case 0:
					_, _ = io.WriteString(conn, login)
					if _, err := bufio.NewReader(conn).ReadByte(); err == nil { // or it was one too many in this second
						answered.Add(1)
					}
				case 1:
					_, _ = io.WriteString(conn, login[:len(login)/2])
				case 2:
					_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01")
				}
				_ = conn.(*net.TCPConn).SetLinger(0) // reset: no TIME_WAIT
				conn.Close()
			}
		})
	}
	all.Wait()
	return int(answered.Load())
}

// A footprint is what a process has.
type footprint struct{ descriptors, goroutines, memory int }

func (p footprint) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d MiB", p.descriptors, p.goroutines, p.memory/mib)
}

func (s *site) footprint(of *program, metrics int) (p footprint) {
	s.t.Helper()
	pid := of.cmd.Process.Pid
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	p.descriptors, p.memory = len(open), resident(s.t, pid)
	for line := range strings.Lines(string(s.get(metrics, "/metrics"))) {
		if _, err := fmt.Sscanf(line, "go_goroutines %d", &p.goroutines); err == nil {
			return p
		}
	}
	s.t.Fatal("/metrics has no go_goroutines")
	return p
}
