package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"touchline/internal/uml"
)

// TestUML_FailingDiskAcknowledgesNothing lets the gateway's disk answer each
// write, or each request, with an I/O error for a while, under a real file
// system. Meanwhile nothing may be acknowledged, HTTP must say 503, the status
// must say that the disk fails; the cloud is away in half of the rounds. When
// the disk works again the gateway goes on by itself where the file system
// does; where that has given up, it is mounted again under a new gateway. A
// disk that drops writes and says that it wrote them is not tried: nobody
// can promise anything on it.
func TestUML_FailingDiskAcknowledgesNothing(t *testing.T) {
	if !uml.Inside() {
		needGuests(t)
		seed := crashSeed(t)
		t.Logf("TOUCHLINE_CRASH_SEED=%d", seed)
		boot(t, guestOptions{shared: t.TempDir(), disks: []string{guestDisk(t, 256)}, env: fmt.Sprintf("TOUCHLINE_CRASH_SEED=%d", seed)}).finish()
		return
	}
	const rounds = 12
	seed := crashSeed(t)
	f := newFlakyDisk(t, "/dev/ubda", "/mnt/a")
	s := newSite(t, "[buffer]\nfree_reserve = \"1MiB\"\n")
	s.moveGateway(filepath.Join(f.dir, "data"))
	s.startCloud()
	s.startGateway()
	c := s.publish(
		clientOptions{transport: "mqtt5", qos: 1, samples: 1, window: 16, pace: 1},
		clientOptions{transport: "mqtt5", qos: 2, samples: 1, window: 16, pace: 1},
		clientOptions{transport: "ws", samples: 2, window: 16, pace: 1},
		clientOptions{transport: "http", samples: 2, window: 4, pace: 1},
	)
	poster := c.clients[len(c.clients)-1]
	random := rand.New(rand.NewPCG(seed, 0))
	var alone, again, ended int
	for round := range rounds {
		c.more(t, 1+random.IntN(500))
		if round%2 == 1 {
			s.cloud.kill()
		}
		kind := []string{errorWrites, errorAll}[random.IntN(2)]
		f.fail(kind)
		refused := poster.refused("http 503")
		waitFor(t, "HTTP to refuse, or the gateway to end", func() bool {
			return poster.refused("http 503") > refused+2 || !s.gateway.running()
		})
		if s.gateway.running() {
			waitFor(t, "the status to say error", func() bool {
				st, err := s.tryStatus()
				return err == nil && st.Buffer.State == "error" && st.Buffer.LastError != "" || !s.gateway.running()
			})
		}
		before := c.count()
		refused = poster.refused("http 503")
		waitFor(t, "HTTP to refuse again, or the gateway to end", func() bool {
			return poster.refused("http 503") > refused+2 || !s.gateway.running()
		})
		if n := c.count() - before; n > 0 {
			t.Errorf("round %d (%q): %d samples were acknowledged while the disk failed", round, kind, n)
		}
		f.heal()
		switch {
		case !s.gateway.running():
			if status := s.gateway.exit(); status != 1 {
				t.Errorf("round %d (%q): the gateway ended with status %d:\n%s", round, kind, status, tail(s.gateway.log.String(), 4<<10))
			}
			ended++
			s.gateway.expected = true
			f.mountAgain()
			s.startGateway()
		case f.works() && servesAgain(t, f, c):
			alone++
		default:
			again++
			s.gateway.expected = true
			if random.IntN(2) == 0 {
				s.gateway.kill()
			} else {
				s.gateway.terminate()
			}
			f.mountAgain()
			s.startGateway()
		}
		if !s.cloud.running() {
			s.startCloud()
		}
		c.more(t, 100)
		waitFor(t, "the status to say ok", func() bool { return s.status().Buffer.State == "ok" })
	}
	c.finish(t)
	s.drained()
	v := s.audit(c)
	if !v.holds() || v.acked != v.sent {
		t.Errorf("seed %d: %s", seed, v)
	}
	t.Logf("MEASURED failing disk, seed %d: %d times, 503 each time; went on by itself %d times, after the file system was mounted again %d times, the gateway ended %d times: %s",
		seed, rounds, alone, again, ended, v)
	s.gateway.terminate()
	f.unmount()
}

// servesAgain waits until samples are acknowledged, and returns false where the
// file system gives up first: what failed before the disk was well may only be
// noticed after.
func servesAgain(t *testing.T, f *flakyDisk, c *crowd) (serves bool) {
	t.Helper()
	before := c.count()
	waitFor(t, "samples to be acknowledged, or the file system to give up", func() bool {
		serves = f.works()
		return !serves || c.count() >= before+100
	})
	return serves
}

// A flakyDisk is a device in a guest that can be told to fail.
type flakyDisk struct {
	t           *testing.T
	device, dir string
	sectors     string
}

func newFlakyDisk(t *testing.T, device, dir string) *flakyDisk {
	t.Helper()
	f := &flakyDisk{t: t, device: device, dir: dir, sectors: strings.TrimSpace(tool(t, "blockdev", "--getsz", device))}
	createDevice(t, "flaky", f.sound())
	f.mount()
	return f
}

func (f *flakyDisk) sound() string { return fmt.Sprintf("0 %s linear %s 0", f.sectors, f.device) }

// Features of dm-flakey.
const (
	errorWrites = "1 error_writes"
	errorAll    = ""
)

// fail lets requests fail until heal, as the features say.
func (f *flakyDisk) fail(features string) {
	f.t.Helper()
	const upSeconds, downSeconds = 0, 3600
	f.load(strings.TrimSpace(fmt.Sprintf("0 %s flakey %s 0 %d %d %s", f.sectors, f.device, upSeconds, downSeconds, features)))
}

func (f *flakyDisk) heal() { f.load(f.sound()) }

func (f *flakyDisk) load(table string) {
	f.t.Helper()
	// The file system is not asked to write out what it has before.
	deviceMapper(f.t, "suspend", "--nolockfs", "flaky")
	deviceMapper(f.t, "load", "flaky", "--table", table)
	deviceMapper(f.t, "resume", "flaky")
}

// works says whether the file system still writes.
func (f *flakyDisk) works() bool {
	probe, err := os.Create(filepath.Join(f.dir, "probe"))
	if err != nil {
		return false
	}
	defer probe.Close()
	if _, err := probe.WriteString(time.Now().String()); err != nil {
		return false
	}
	return probe.Sync() == nil
}

func (f *flakyDisk) mount() {
	f.t.Helper()
	mountIn(f.t, "/dev/mapper/flaky", f.dir)
}

func (f *flakyDisk) unmount() {
	f.t.Helper()
	tool(f.t, "umount", f.dir)
}

func (f *flakyDisk) mountAgain() {
	f.t.Helper()
	f.unmount()
	f.mount()
}
