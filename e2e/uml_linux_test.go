package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"touchline/internal/uml"
)

// A test that needs a kernel of its own has two sides. On the host it starts
// guests, cuts their power and looks at their disks; in the guest the same
// test function runs again, from the same source, with the programs, clients
// and audit that all tests here use. uml.Inside tells the sides apart.

// guestLimit is what a guest may live at most, should this process be killed.
const guestLimit = 30 * time.Minute

// guestRoot is made once; it has this test and the programs, without -race,
// which a guest has no address space for.
var guestRoot = sync.OnceValues(func() (string, error) {
	test := filepath.Join(bin, "e2e.test")
	build := exec.Command("go", "test", "-c", "-o", test, "touchline/e2e")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test for guests: %w\n%s", err, out)
	}
	root := filepath.Join(bin, "guest")
	return root, uml.NewRoot(root, test, programPath("touchline"), programPath("touchline-cloud"))
})

// A guest runs the test's other side, again and again on the same disks.
type guest struct {
	*uml.Guest
	t      *testing.T
	output *logBuffer
}

// guestOptions: what a guest is given of the host.
type guestOptions struct {
	shared string // its /shared, which outlives it
	disks  []string
	env    string // assignments for sh
}

// needGuests skips the test, with the reason, where no guest can run, or where
// its minutes are not to be taken.
func needGuests(t *testing.T) {
	t.Helper()
	if !long() {
		t.Skip("starts kernels, for minutes: TOUCHLINE_TEST_LONG=1 (make test-long) runs it")
	}
	if why := uml.Missing(); why != "" {
		t.Skip(why)
	}
}

// boot starts a guest, in which this test runs.
func boot(t *testing.T, o guestOptions) *guest {
	t.Helper()
	root, err := guestRoot()
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, output: &logBuffer{}}
	g.Guest, err = uml.Start(uml.Options{
		Root: root, Shared: o.shared, Disks: o.disks, Output: g.output, Limit: guestLimit,
		Command: fmt.Sprintf("cd /tmp; export TOUCHLINE_TEST_PROGRAMS=/bin TOUCHLINE_TEST_LONG=%s %s; exec e2e.test -test.run '^%s$' -test.v -test.timeout %s",
			os.Getenv("TOUCHLINE_TEST_LONG"), o.env, t.Name(), guestLimit),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Cut()
		if t.Failed() {
			t.Logf("output of the guest (last 16 KiB):\n%s", tail(g.text(), 16<<10))
		}
	})
	return g
}

func (g *guest) text() string { return strings.ReplaceAll(g.output.String(), "\r", "") }

// waitSays waits until the guest's side has said so.
func (g *guest) waitSays(what string) {
	g.t.Helper()
	waitFor(g.t, "the guest to say "+what, func() bool {
		select {
		case <-g.Done():
			g.t.Fatalf("the guest ended before it said %q", what)
		default:
		}
		return strings.Contains(g.output.String(), what)
	})
}

// finish waits for the guest's side to end by itself, and hands on what it
// measured. A guest's side that did not run is a failure.
func (g *guest) finish() {
	g.t.Helper()
	status, err := g.Wait()
	if err != nil {
		g.t.Fatal(err)
	}
	text := g.text()
	if status != 0 || !strings.Contains(text, "--- PASS: "+g.t.Name()) {
		g.t.Fatalf("the guest's side failed, status %d", status)
	}
	for line := range strings.Lines(text) {
		if _, note, ok := strings.Cut(line, "MEASURED "); ok {
			g.t.Logf("MEASURED in a kernel of its own, %s", strings.TrimSpace(note))
		}
	}
}

// guestDisk makes a disk for a guest, with an ext4 on it.
func guestDisk(t *testing.T, mib int) string {
	t.Helper()
	return ext4(t, mib, 4096)
}

// mountIn mounts a device in the guest.
func mountIn(t *testing.T, device, dir string) {
	t.Helper()
	tool(t, "mount", "-t", "ext4", device, dir)
}

// deviceMapper runs dmsetup in the guest, where there is no udev.
func deviceMapper(t *testing.T, args ...string) {
	t.Helper()
	tool(t, "dmsetup", append([]string{"--noudevsync", "--noudevrules"}, args...)...)
}

// createDevice makes /dev/mapper/name in the guest.
func createDevice(t *testing.T, name, table string) {
	t.Helper()
	deviceMapper(t, "create", name, "--table", table)
	deviceMapper(t, "mknodes")
}
