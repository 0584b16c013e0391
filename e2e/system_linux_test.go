package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests have a Debian whose first process is systemd, in which the
// gateway is what a technician gets: the package, installed by dpkg, enrolled
// with one line. They have two sides: the first process makes namespaces for
// network, mounts and cgroups, and runs the same test in them again. There the
// cloud, the sensors and the audit are this process's, and the machine is a
// container that shares their loopback.

const (
	// systemFiles names the folder that .ci/system made.
	systemFiles = "TOUCHLINE_TEST_SYSTEM"
	// systemInside says that this is the second side, and the number of the first.
	systemInside = "TOUCHLINE_TEST_SYSTEM_INSIDE"
)

// systemTest runs inside in namespaces of its own, or says why it can't.
func systemTest(t *testing.T, inside func(*testing.T)) {
	if os.Getenv(systemInside) != "" {
		inside(t)
		return
	}
	switch files := os.Getenv(systemFiles); {
	case files == "":
		t.Skip("boots a Debian, and installs packages in it, for minutes: `make test-system` runs it")
	case os.Geteuid() != 0:
		t.Skip("only root may boot a container")
	}
	need(t, "systemd-nspawn", "nsenter", "unshare", "ip", "lintian")
	// A container wants a hierarchy of cgroups that has no version 1 in it. With
	// processes of their own nothing of it outlives this one.
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", `
		ip link set lo up
		umount -R /sys/fs/cgroup
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		exec "$0" "$@"`, os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "30m")
	cmd.Env = append(os.Environ(), systemInside+"="+strconv.Itoa(os.Getpid()), "TOUCHLINE_TEST_PROGRAMS="+bin)
	// The kernel sends it as the thread ends that began it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	passed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "--- PASS: "+t.Name()) {
			passed = true
		}
		t.Log(strings.TrimSpace(lines.Text()))
	}
	if err := cmd.Wait(); err != nil || !passed {
		t.Fatalf("the side in the namespaces failed: %v", err)
	}
}

// A box is the machine of a venue.
type box struct {
	*site
	root    string
	boots   *serviceManager // hears the container
	machine *program
	cgroup  string
	leader  string // process id of its systemd
}

// Defaults of config.toml, which the package's settings leave as they are.
const (
	boxMQTT = 1883
	boxHTTP = 8080
)

// newBox unpacks a Debian, and makes a cloud for it, which does not run yet.
func newBox(t *testing.T) *box {
	t.Helper()
	b := &box{root: t.TempDir(), boots: newServiceManager(t), cgroup: "/sys/fs/cgroup/touchline-test-" + os.Getenv(systemInside)}
	tool(t, "tar", "-C", b.root, "-xf", filepath.Join(os.Getenv(systemFiles), "debian.tar"))
	conf := t.TempDir()
	b.site = &site{
		t: t, venue: "stadium-1", cloudProgram: "touchline-cloud", beginCloud: (*exec.Cmd).Start,
		cloudData: t.TempDir(), cloudPort: freePort(t), mqtt: boxMQTT, http: boxHTTP,
		cloudConfig: filepath.Join(conf, "cloud.toml"),
	}
	writeFile(t, b.cloudConfig, fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n", b.cloudPort, b.cloudData))
	t.Cleanup(func() {
		if b.machine == nil {
			return
		}
		if t.Failed() {
			out, _ := b.try("journalctl", "--no-pager", "--lines", "60", "--output", "short-precise")
			t.Logf("the journal's end:\n%s", out)
		}
		// As its first process dies, the kernel ends what else is in it.
		_ = exec.Command("kill", "-KILL", b.leader).Run()
		b.machine.kill()
		waitFor(t, "the container to leave nothing behind", func() bool {
			_ = exec.Command("find", b.cgroup, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run()
			_, err := os.Stat(b.cgroup)
			return os.IsNotExist(err)
		})
	})
	b.boot()
	return b
}

// boot starts the machine and waits until it has come up.
func (b *box) boot() {
	b.t.Helper()
	from, begin := len(b.boots.all()), time.Now()
	b.machine = startBy(b.t, func(c *exec.Cmd) error {
		c.Env = append(os.Environ(), "NOTIFY_SOCKET="+b.boots.path, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
		return c.Start()
	}, "/bin/sh", "-ec", `mkdir -p "$0"; echo $$ >"$0/cgroup.procs"; exec systemd-nspawn "$@"`, b.cgroup,
		"--register=no", "--keep-unit", "--notify-ready=yes", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
		"--console=pipe", "--machine=venue", "--boot", "--directory="+b.root)
	b.machine.expected = true // the journal explains what failed
	waitFor(b.t, "the machine to come up", func() bool {
		if !b.machine.running() {
			b.t.Fatalf("the container ended with status %d:\n%s", b.machine.exit(), b.machine.log)
		}
		return b.boots.heard(from, "READY=1")
	})
	for _, word := range b.boots.all()[from:] {
		if pid, ok := strings.CutPrefix(word, "X_NSPAWN_LEADER_PID="); ok {
			b.leader = pid
		}
	}
	b.t.Logf("MEASURED Debian with systemd is up after %s", lasted(begin))
}

// command is one in the machine, as root.
func (b *box) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", b.leader, "--all", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd.Dir = "/"
	return cmd
}

func (b *box) try(args ...string) (string, error) {
	out, err := b.command(args...).CombinedOutput()
	return string(out), err
}

func (b *box) do(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Fatalf("%q: %v: %s", args, err, out)
	}
	return out
}

// dpkgInstall installs a package of .ci/system: "this" version or the "next".
func (b *box) dpkgInstall(version, name string) string {
	b.t.Helper()
	found, err := filepath.Glob(filepath.Join(os.Getenv(systemFiles), version, name+"_*.deb"))
	if err != nil || len(found) != 1 {
		b.t.Fatalf("%d packages of %s in %s: %v", len(found), name, version, err)
	}
	tool(b.t, "cp", found[0], filepath.Join(b.root, "root", name+".deb"))
	return b.do("dpkg", "--install", "/root/"+name+".deb")
}

// enrolled installs the gateway, and enrols it with a claim, in one line each.
func (b *box) enrolled() {
	b.t.Helper()
	if b.cloud == nil {
		b.startCloud()
	}
	b.dpkgInstall("this", "touchline")
	b.enrol()
}

// enrol gives a claim to the gateway that is installed.
func (b *box) enrol() {
	b.t.Helper()
	code, stderr, status := run(b.t, "touchline-cloud", "gateway", "claim", "--config", b.cloudConfig, "--venue", "stadium")
	if status != 0 {
		b.t.Fatalf("claim: %s", stderr)
	}
	said := b.do("touchline", "install", "--claim", strings.TrimSpace(code), "--cloud", fmt.Sprintf("ws://127.0.0.1:%d", b.cloudPort))
	if !strings.Contains(said, "enrolled as stadium-1, of the venue stadium") || !strings.Contains(said, "restarted touchline") {
		b.t.Errorf("the one line says\n%s", said)
	}
	// A busy machine may let the default pass before a client sends again.
	b.settings("[sensors]\ndedupe_window = \"10m\"\n")
	b.ready()
	waitFor(b.t, "a session", func() bool { st, err := b.tryStatus(); return err == nil && st.Uplink.State == "connected" })
}

// settings edits the package's settings, as a person does.
func (b *box) settings(text string) {
	b.t.Helper()
	name := filepath.Join(b.root, "etc/touchline/touchline.toml")
	old, err := os.ReadFile(name)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(name, append(old, text...), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.do("systemctl", "restart", "touchline")
}

// ready waits until the gateway serves.
func (b *box) ready() {
	b.t.Helper()
	b.waitReady("touchline", b.machine, b.http)
}

// property of the service, as `systemctl show` has it.
func (b *box) property(name string) string {
	b.t.Helper()
	return strings.TrimSpace(b.do("systemctl", "show", "--property", name, "--value", "touchline"))
}

// signal sends one to the gateway's process.
func (b *box) signal(name string) (pid string) {
	b.t.Helper()
	pid = b.property("MainPID")
	b.do("kill", "-"+name, pid)
	return pid
}

// settle ends the clients and holds the cloud against what they were told.
func (b *box) settle(c *crowd) *verdict {
	b.t.Helper()
	c.finish(b.t)
	b.drained()
	v := b.audit(c)
	if !v.holds() || v.acked != v.sent || v.acked == 0 {
		b.t.Error(v)
	}
	return v
}

// knock connects to the gateway's ports, again and again, as sensors do that
// are switched on, until the function it returns is called. That says how
// often, and how often nobody was there.
func (b *box) knock() func() (knocks, refused int) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var knocks, refused int
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; pause(ctx, 2*time.Millisecond) {
			for _, port := range []int{b.mqtt, b.http} {
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
				knocks++
				if err == nil {
					conn.Close()
				} else if errors.Is(err, syscall.ECONNREFUSED) {
					refused++
				}
			}
		}
	}()
	b.t.Cleanup(cancel)
	return func() (int, int) {
		cancel()
		<-done
		return knocks, refused
	}
}

// systemCrowd leaves the machine room for what else is measured.
var systemCrowd = []clientOptions{
	{transport: "mqtt4", qos: 1, samples: 1, window: 32, pace: 2},
	{transport: "mqtt5", qos: 2, samples: 2, window: 32, pace: 2},
	{transport: "ws", samples: 5, window: 32, pace: 2},
	{transport: "http", samples: 10, window: 8, pace: 1},
}

// lasted is the time since then, to what a measurement is worth.
func lasted(begin time.Time) time.Duration { return time.Since(begin).Round(10 * time.Millisecond) }
