package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSystem_TheProgramInstallsItself is a machine without the package: one
// that a power cut left half installed, the way back from an upgrade, what root
// looks at, what the service's user lays out for root, a claim that another box
// has used, samples that only this box has, and a package beside it.
func TestSystem_TheProgramInstallsItself(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.startCloud()
		address := fmt.Sprintf("ws://127.0.0.1:%d", b.cloudPort)
		for _, which := range []string{"this", "next"} {
			found := must(filepath.Glob(filepath.Join(os.Getenv(systemFiles), which, "touchline_*_linux_*")))
			tool(t, "cp", found[0], filepath.Join(b.root, "root", which))
		}
		refused := func(want string, args ...string) {
			t.Helper()
			if out, err := b.try(args...); err == nil || !strings.Contains(out, want) {
				t.Errorf("%q: %v, want %q:\n%s", args, err, want, out)
			}
		}

		// useradd was cut: there is a user, and no group of his.
		b.do("sh", "-ec", "useradd --system --user-group touchline; sed -i '/^touchline:/d' /etc/group /etc/gshadow")
		used := b.claim()
		if _, stderr, status := run(t, "touchline", "enroll", used, "--data", t.TempDir(), "--cloud", address); status != 0 {
			t.Fatalf("another box: %s", stderr)
		}
		b.venue = "stadium-2" // the other box is the first
		refused("unknown or was used", "/root/this", "install", "--claim", used, "--cloud", address)
		b.do("touchline", "install")

		// Who looks before the first start leaves nothing that keeps it from starting.
		refused("no buffer", "touchline", "buffer", "check")
		b.do("touchline", "install", "--claim", b.claim(), "--cloud", address)
		b.settings("[sensors]\ndedupe_window = \"10m\"\n")
		b.ready()
		c := b.publish(systemCrowd...)
		c.more(t, 500)

		version := func(want string) {
			t.Helper()
			if out := b.do("touchline", "version"); out != want {
				t.Errorf("the version is %s, want %s", out, want)
			}
			b.ready()
			c.more(t, 100)
		}
		this, next := b.do("/root/this", "version"), b.do("/root/next", "version")
		b.do("/root/next", "install", "--start")
		version(next)
		b.do("/usr/local/bin/touchline.previous", "install", "--start")
		version(this)
		b.do("/usr/local/bin/touchline.previous", "install", "--start")
		version(next)
		b.do("/root/this", "install", "--start")

		// The user of the service has root open, and give him, what is root's.
		b.do("ln", "-sf", "/etc/shadow", "/var/lib/touchline/sensors.keys.lock")
		if out, err := b.try("touchline", "sensor", "add", "belt-1"); err == nil {
			t.Errorf("root follows a link out of the folder:\n%s", out)
		}
		if owner := strings.TrimSpace(b.do("stat", "-c", "%U:%G", "/etc/shadow")); owner != "root:shadow" {
			t.Errorf("/etc/shadow belongs to %s", owner)
		}
		b.do("rm", "/var/lib/touchline/sensors.keys.lock")

		b.cloud.terminate()
		c.more(t, 100)
		refused("samples that the cloud has not", "touchline", "uninstall", "--purge")
		if b.property("ActiveState") != "active" {
			t.Error("a purge that was refused stopped the service")
		}
		b.startCloud()

		found := must(filepath.Glob(filepath.Join(os.Getenv(systemFiles), "this", "touchline_*.deb")))
		tool(t, "cp", found[0], filepath.Join(b.root, "root", "touchline.deb"))
		b.do("dpkg", "--force-confold", "--install", "/root/touchline.deb") // settings that no package knows: else it asks
		c.hold(t)
		b.drained()
		refused("apt purge", "/usr/local/bin/touchline", "uninstall", "--purge")
		b.do("/usr/local/bin/touchline", "uninstall")
		if is := b.property("ActiveState") + " " + b.property("UnitFileState"); is != "active enabled" {
			t.Errorf("the package's service is %s", is)
		}
		if from := b.property("FragmentPath"); !strings.Contains(from, "/lib/systemd/system/") {
			t.Errorf("its unit is %s", from)
		}
		b.ready()
		c.release()
		c.more(t, 100)
		t.Logf("MEASURED installed, upgraded, back, and handed to a package: %s", b.settle(c))
	})
}

// TestSystem_AGatewayMoves does what docs/operations.md says of a new box, with
// samples in the buffer, to one whose users have other numbers.
func TestSystem_AGatewayMoves(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.enrolled()
		c := b.publish(systemCrowd...)
		c.more(t, 200)
		b.cloud.terminate()
		c.more(t, 200)
		c.hold(t)
		b.do("touchline", "stop")
		b.do("sh", "-ec", "mkdir /root/old; cp -a /etc/touchline /root/old/etc; cp -a /var/lib/touchline /root/old/data")

		b.do("sh", "-ec", "dpkg --purge touchline; userdel touchline; useradd --system other")
		b.dpkgInstall("this", "touchline")
		b.do("sh", "-ec", "touchline stop; rm -rf /etc/touchline /var/lib/touchline; cp -a /root/old/etc /etc/touchline; cp -a /root/old/data /var/lib/touchline")
		b.do("touchline", "start")
		b.dpkgInstall("next", "touchline") // and asks nothing about settings that came from elsewhere
		b.startCloud()
		b.ready()
		c.release()
		c.more(t, 200)
		t.Logf("MEASURED moved to another box: %s", b.settle(c))
	})
}
