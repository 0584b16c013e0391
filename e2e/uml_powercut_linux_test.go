package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"touchline/internal/uml"
)

// TestUML_PowerCutLosesNothing cuts the power of a machine that runs gateway,
// cloud and clients, at random moments, one time in four while it starts, and
// boots it again on the same disks. What the clients know outlives the cuts,
// and they send again what was not acknowledged. In half of the boots there is
// no cloud, so that what was acknowledged is in the buffer alone. At the end
// each acknowledged sample must be in the cloud, none more often than it was
// sent. TOUCHLINE_CRASH_SEED repeats the choices, though not the scheduling.
func TestUML_PowerCutLosesNothing(t *testing.T) {
	if uml.Inside() {
		v := powerCutInside(t)
		if !v.holds() || v.acked != v.sent {
			t.Errorf("%s", v)
		}
		t.Logf("MEASURED power cuts: %s cuts, seed %s: %s", os.Getenv("GUEST_CUTS"), os.Getenv("GUEST_SEED"), v)
		return
	}
	cutPower(t, 25, "touchline", "")
}

// TestUML_PowerCutAfterFailingDiskLosesNothing lets the gateway's disk fail
// for a while before each cut. What could not be written then counts as
// written to the system, and is in its memory only: a gateway that goes on
// behind it would lose what it acknowledges afterwards.
func TestUML_PowerCutAfterFailingDiskLosesNothing(t *testing.T) {
	if uml.Inside() {
		v := powerCutInside(t)
		if !v.holds() || v.acked != v.sent {
			t.Errorf("%s", v)
		}
		t.Logf("MEASURED power cuts, each after the disk failed: %s cuts, seed %s: %s", os.Getenv("GUEST_CUTS"), os.Getenv("GUEST_SEED"), v)
		return
	}
	cutPower(t, 12, "touchline", "GUEST_FLAKY=1")
}

// TestUML_PowerCutControlFails is the control of the test above: a gateway
// that does not sync its commits must lose samples.
func TestUML_PowerCutControlFails(t *testing.T) {
	if uml.Inside() {
		v := powerCutInside(t)
		if v.lost == 0 {
			t.Errorf("%s cuts, and nothing was lost without syncs: %s", os.Getenv("GUEST_CUTS"), v)
		}
		t.Logf("MEASURED control of power cuts (synchronous=NORMAL): %s cuts, seed %s: %d of %d acknowledged samples lost",
			os.Getenv("GUEST_CUTS"), os.Getenv("GUEST_SEED"), v.lost, v.acked)
		return
	}
	needGuests(t)
	cutPower(t, 6, mutant(t, "touchline", "mutant_sync_normal"), "")
}

// cutPower is the host's side; env is for all guests but the last.
func cutPower(t *testing.T, cuts int, gateway, env string) {
	t.Helper()
	needGuests(t)
	o := guestOptions{shared: t.TempDir(), disks: []string{guestDisk(t, 512), guestDisk(t, 512)}}
	if filepath.IsAbs(gateway) { // where the guest sees it
		tool(t, "cp", gateway, o.shared)
		gateway = "/shared/" + filepath.Base(gateway)
	}
	seed := crashSeed(t)
	t.Logf("TOUCHLINE_CRASH_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	entries := func() int64 {
		info, err := os.Stat(filepath.Join(o.shared, "ledger"))
		if errors.Is(err, fs.ErrNotExist) {
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		return info.Size() / entryBytes
	}
	for i := range cuts {
		o.env = fmt.Sprintf("GUEST_GATEWAY=%s GUEST_CLOUD=%d %s", gateway, random.IntN(2), env)
		g := boot(t, o)
		if i > 0 && random.IntN(4) == 0 {
			// It is up after 2 to 5 s.
			pause(t.Context(), time.Duration(random.Int64N(int64(5*time.Second))))
		} else {
			g.waitSays("PUBLISHING")
			until := entries() + int64(1+random.IntN(4000))
			waitFor(t, "clients to be heard", func() bool { return entries() >= until })
			pause(t.Context(), time.Duration(random.Int64N(int64(20*time.Millisecond))))
		}
		select {
		case <-g.Done():
			t.Fatalf("cut %d: the guest had ended by itself", i)
		default:
			g.Cut()
		}
	}
	o.env = fmt.Sprintf("GUEST_GATEWAY=%s GUEST_CLOUD=1 GUEST_FINISH=1 GUEST_CUTS=%d GUEST_SEED=%d", gateway, cuts, seed)
	boot(t, o).finish()
}

// powerCutInside is the guest's side: it publishes until the power goes, or,
// at the last boot, lets everything come to rest and audits it.
func powerCutInside(t *testing.T) *verdict {
	t.Helper()
	f := newFlakyDisk(t, "/dev/ubda", "/mnt/a")
	mountIn(t, "/dev/ubdb", "/mnt/b")
	s := keptSite(t, os.Getenv("GUEST_GATEWAY"))
	file, err := os.OpenFile("/shared/ledger", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s.ledger = openLedger(t, file)
	if os.Getenv("GUEST_CLOUD") == "1" {
		s.startCloud()
	}
	s.startGateway()
	c := s.publish(
		clientOptions{transport: "mqtt4", qos: 1, samples: 1, window: 32, pace: 2},
		clientOptions{transport: "mqtt5", qos: 1, samples: 2, window: 32, pace: 2},
		clientOptions{transport: "ws", samples: 3, window: 32, pace: 2},
		clientOptions{transport: "http", samples: 5, window: 4, pace: 1},
	)
	c.more(t, 1)
	if os.Getenv("GUEST_FLAKY") != "" {
		failForAWhile(t, f, s, c)
	}
	fmt.Println("PUBLISHING")
	if os.Getenv("GUEST_FINISH") == "" {
		<-t.Context().Done() // the power goes before
	}
	c.more(t, 100)
	c.finish(t)
	s.drained()
	return s.audit(c)
}

// failForAWhile lets the gateway's disk fail until HTTP was refused, and waits
// until samples are acknowledged again.
func failForAWhile(t *testing.T, f *flakyDisk, s *site, c *crowd) {
	t.Helper()
	poster := c.clients[len(c.clients)-1]
	f.fail(errorWrites)
	refused := poster.refused("http 503")
	waitFor(t, "HTTP to refuse", func() bool { return poster.refused("http 503") > refused+2 })
	f.heal()
	if !f.works() {
		s.gateway.expected = true
		s.gateway.kill()
		f.mountAgain()
		s.startGateway()
	}
	c.more(t, 100)
}

// keptSite is a site in a guest whose data outlives the guest: the gateway's
// on the disk at /mnt/a, the cloud's at /mnt/b.
func keptSite(t *testing.T, gateway string) *site {
	t.Helper()
	s := &site{
		venue: "venue-1", t: t, cloudProgram: "touchline-cloud", gatewayProgram: gateway, beginCloud: (*exec.Cmd).Start, beginGateway: (*exec.Cmd).Start,
		cloudPort: 20001, mqtt: 20002, http: 20003,
		gatewayData: "/mnt/a/data", cloudData: "/mnt/b/data",
	}
	conf := t.TempDir()
	s.cloudConfig, s.gatewayConfig = filepath.Join(conf, "cloud.toml"), filepath.Join(conf, "touchline.toml")
	writeFile(t, s.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n", s.cloudPort, s.cloudData))
	const tokenFile = "/shared/token"
	if _, err := os.Stat(tokenFile); errors.Is(err, fs.ErrNotExist) {
		token, stderr, status := run(t, s.cloudProgram, "gateway", "add", "venue-1", "--config", s.cloudConfig)
		if status != 0 {
			t.Fatalf("gateway add: status %d, %s", status, stderr)
		}
		writeFile(t, tokenFile, token)
	}
	s.configureGateway("[buffer]\nfree_reserve = \"1MiB\"\n[sensors]\ndedupe_window = \"10m\"\n", tokenFile)
	return s
}
