package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSystem_ABoxIsLeftAlone is what a gateway meets that nobody looks after:
// it is installed and enrolled, killed, hangs, and the machine starts anew.
// Each time it goes on by itself, and the cloud has all that sensors were told.
func TestSystem_ABoxIsLeftAlone(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.enrolled()
		c := b.publish(systemCrowd...)
		c.more(t, 500)
		b.statusReadsWell()
		// Commands are about the gateway that is installed.
		if out := b.do("touchline", "preflight"); !strings.Contains(out, fmt.Sprint(b.cloudPort)) {
			t.Errorf("preflight looks elsewhere:\n%s", out)
		}
		if out := b.do("touchline", "buffer", "check"); !strings.Contains(out, "/var/lib/touchline") {
			t.Errorf("buffer check looks elsewhere:\n%s", out)
		}

		for range 5 {
			restarts, begin := b.property("NRestarts"), time.Now()
			b.signal("KILL")
			waitFor(t, "another start", func() bool { return b.property("NRestarts") != restarts })
			b.ready()
			t.Logf("MEASURED killed with SIGKILL, serves again after %s; 3 s are promised", lasted(begin))
			c.more(t, 500)
		}

		pid, begin := b.signal("STOP"), time.Now()
		waitFor(t, "the watchdog", func() bool { return b.property("MainPID") != pid })
		b.ready()
		t.Logf("MEASURED hung, serves again after %s", lasted(begin))
		journal := b.do("journalctl", "--unit", "touchline", "--no-pager", "--output", "cat")
		if !strings.Contains(journal, "Watchdog timeout") || !strings.Contains(journal, "goroutine ") {
			t.Errorf("the journal does not say where it hung:\n%s", tail(journal, 4<<10))
		}
		c.more(t, 500)
		trouble := b.do("journalctl", "--unit", "touchline", "--priority", "warning", "--no-pager", "--output", "cat")
		if strings.Contains(trouble, "level=INFO") || !strings.Contains(journal, "level=INFO") {
			t.Errorf("journalctl --priority warning shows\n%s", tail(trouble, 4<<10))
		}

		b.do("systemctl", "reboot")
		if status := b.machine.exit(); status != 133 { // systemd-nspawn(1): its machine wants to start again
			t.Errorf("the container ended with status %d", status)
		}
		begin = time.Now()
		b.boot()
		b.ready()
		t.Logf("MEASURED machine switched on, gateway serves after %s", lasted(begin))
		c.more(t, 500)
		t.Logf("MEASURED five kills, a hang and a reboot: %s", b.settle(c))
		if n, err := strconv.Atoi(b.property("NRestarts")); err != nil || n != 0 {
			t.Errorf("since the reboot it was restarted %d times, %v", n, err)
		}
	})
}

// statusReadsWell holds `systemctl status` against what a person wants of it.
func (b *box) statusReadsWell() {
	b.t.Helper()
	line := regexp.MustCompile(`Status: "4 sensors \(\d+ connections\), \d+ samples/s; .*; cloud connected, round trip \d+ ms"`)
	var status string
	waitFor(b.t, "a status of sensors and cloud", func() bool {
		status = b.do("systemctl", "status", "touchline", "--no-pager")
		return line.MatchString(status)
	})
	for _, want := range []string{
		"touchline.service - touchline edge gateway",
		"Loaded: loaded (/lib/systemd/system/touchline.service; enabled;",
		"Active: active (running) since ",
	} {
		if !strings.Contains(status, want) {
			b.t.Errorf("no %q in\n%s", want, status)
		}
	}
	if b.property("NFileDescriptorStore") != "2" {
		b.t.Errorf("systemd keeps %s sockets, want 2", b.property("NFileDescriptorStore"))
	}
	b.t.Logf("MEASURED systemctl status: %s", line.FindString(status))
}

// TestSystem_AnUpgradeRefusesNobody goes to the next version and back while
// sensors send and others connect.
func TestSystem_AnUpgradeRefusesNobody(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.enrolled()
		c := b.publish(systemCrowd...)
		c.more(t, 500)
		for _, to := range []string{"next", "this", "next"} {
			before := b.do("touchline", "version")
			enough, begin := b.knock(), time.Now()
			b.dpkgInstall(to, "touchline")
			took := lasted(begin)
			b.ready()
			c.more(t, 500)
			knocks, refused := enough()
			if refused > 0 || knocks == 0 {
				t.Errorf("to the %s version: %d of %d sensors that connected were refused", to, refused, knocks)
			}
			if after := b.do("touchline", "version"); after == before {
				t.Errorf("it is still %s", after)
			}
			if pid := b.property("MainPID"); tool(t, "readlink", "/proc/"+b.hostPID(pid)+"/exe") != "/usr/bin/touchline\n" {
				t.Error("the program that runs is not the one that is installed")
			}
			t.Logf("MEASURED upgrade under load to the %s version: dpkg took %s, %d sensors connected meanwhile, %d refused", to, took, knocks, refused)
		}
		t.Logf("MEASURED three upgrades under load: %s", b.settle(c))
	})
}

// hostPID is the number that a process of the machine has outside.
func (b *box) hostPID(pid string) string {
	b.t.Helper()
	for _, name := range must(filepath.Glob("/proc/[0-9]*/status")) {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(text)) {
			if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if all := strings.Fields(numbers); len(all) > 1 && all[len(all)-1] == pid && strings.Contains(string(text), "Name:\ttouchline\n") {
					return all[0]
				}
			}
		}
	}
	b.t.Fatalf("process %s is not there", pid)
	return ""
}

func must[T any](v T, err error) T {
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return v
}

// TestSystem_PackagesDoWhatPeopleSaid: what a person stopped or disabled stays
// so over an upgrade; what does not start says how to go back, and goes back;
// what was removed comes back as it was; and a purge leaves nothing.
func TestSystem_PackagesDoWhatPeopleSaid(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		before := b.named()
		b.enrolled()
		active := func(want string) {
			t.Helper()
			if is := b.property("ActiveState"); is != want {
				t.Errorf("the service is %s, want %s", is, want)
			}
		}

		b.do("systemctl", "disable", "--now", "touchline")
		b.dpkgInstall("next", "touchline")
		active("inactive")
		if out, err := b.try("systemctl", "is-enabled", "touchline"); err == nil {
			t.Errorf("a disabled service is %s after an upgrade", out)
		}
		b.do("systemctl", "enable", "touchline")
		b.dpkgInstall("this", "touchline")
		active("inactive")
		b.do("touchline", "start") // which knows the package's unit
		active("active")

		good := must(os.ReadFile(filepath.Join(b.root, "etc/touchline/touchline.toml")))
		if err := os.WriteFile(filepath.Join(b.root, "etc/touchline/touchline.toml"), append(slices.Clone(good), "[no_such_table]\n"...), 0o644); err != nil {
			t.Fatal(err)
		}
		said := b.dpkgInstall("next", "touchline")
		for _, want := range []string{"touchline: it did not start", "journalctl -u touchline", "dpkg -i touchline_" + b.version("this") + "_"} {
			if !strings.Contains(said, want) {
				t.Errorf("a failed start says\n%s\nwant %q", said, want)
			}
		}
		if err := os.WriteFile(filepath.Join(b.root, "etc/touchline/touchline.toml"), good, 0o644); err != nil {
			t.Fatal(err)
		}
		b.dpkgInstall("this", "touchline") // as it said, while systemd tries the other
		b.ready()
		b.do("/var/lib/dpkg/info/touchline.prerm", "remove") // as dpkg calls them for a removal
		active("inactive")
		b.do("/var/lib/dpkg/info/touchline.postinst", "abort-remove") // that is called off
		active("active")

		c := b.publish(systemCrowd...)
		c.more(t, 500)
		c.hold(t)
		if out, err := b.try("touchline", "uninstall"); err == nil || !strings.Contains(out, "apt remove touchline") {
			t.Errorf("uninstall beside a package says %q, %v", out, err)
		}
		b.do("dpkg", "--remove", "touchline")
		if out, err := b.try("systemctl", "is-active", "touchline"); err == nil {
			t.Errorf("a removed service is %s", out)
		}
		for _, kept := range []string{"etc/touchline/touchline.toml", "var/lib/touchline/buffer.db"} {
			if _, err := os.Stat(filepath.Join(b.root, kept)); err != nil {
				t.Errorf("removing it took more than the program: %v", err)
			}
		}
		b.do("chown", "-R", "4321:4321", "/var/lib/touchline") // as on the card of another box
		b.dpkgInstall("this", "touchline")
		c.release()
		c.more(t, 500)
		t.Logf("MEASURED upgrades of a stopped gateway, a failed one, removal and return: %s", b.settle(c))

		b.do("dpkg", "--purge", "touchline")
		if left := slices.DeleteFunc(b.named(), func(path string) bool { return slices.Contains(before, path) }); len(left) > 0 {
			t.Errorf("a purge leaves %q", left)
		}
		if out, err := b.try("systemctl", "cat", "touchline"); err == nil {
			t.Errorf("systemd still knows\n%s", out)
		}
	})
}

func (b *box) version(which string) string {
	found := must(filepath.Glob(filepath.Join(os.Getenv(systemFiles), which, "touchline_*.deb")))
	return strings.Split(filepath.Base(found[0]), "_")[1]
}

// named are the paths of the machine that have the product's name in them, but
// the journal's and the package that was put there.
func (b *box) named() (paths []string) {
	b.t.Helper()
	err := filepath.WalkDir(b.root, func(path string, e fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, b.root)
		switch {
		case err != nil:
			return err
		case name == "/proc" || name == "/sys" || name == "/dev" || name == "/run" || name == "/tmp" || name == "/root":
			return fs.SkipDir
		case strings.Contains(name, "touchline"):
			paths = append(paths, name)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return paths
}

// TestSystem_FullDiskRefusesAndGoesOn lets an outage of the cloud fill the
// disk: sensors are refused, a person is told, a restart changes nothing, and
// the cloud gets all that was acknowledged when it is back.
func TestSystem_FullDiskRefusesAndGoesOn(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.dpkgInstall("this", "touchline")
		b.do("systemctl", "stop", "touchline")
		b.do("rm", "-rf", "/var/lib/touchline")
		b.do("install", "-d", "-m", "0700", "-o", "touchline", "-g", "touchline", "/var/lib/touchline")
		b.do("mount", "-t", "tmpfs", "-o", "mode=0700,uid=touchline,gid=touchline,size=48m", "tmpfs", "/var/lib/touchline")
		b.enrolled()
		b.settings("[buffer]\nwhen_full = \"refuse\"\nfree_reserve = \"20MiB\"\n")
		b.ready()
		b.cloud.terminate()
		c := b.publish(bulk...)
		waitFor(t, "every door to refuse", c.everyDoorRefused)
		waitFor(t, "systemctl status to say so", func() bool {
			return strings.Contains(b.do("systemctl", "status", "touchline", "--no-pager"), `Status: "BUFFER FULL: sensors are refused; `)
		})
		held := b.status().Buffer.Samples
		b.signal("KILL")
		waitFor(t, "the gateway to be back, and full", func() bool {
			st, err := b.tryStatus()
			return err == nil && st.Buffer.State == "full"
		})
		b.startCloud()
		waitFor(t, "the disk to have room", func() bool { return b.status().Buffer.State == "ok" })
		c.more(t, 100)
		t.Logf("MEASURED full disk of 48 MiB, killed while full with %d samples: %s", held, b.settle(c))
	})
}

// TestSystem_TheCloudIsAService installs a node from its package: it finds its
// settings where its unit looks for them, and lives over upgrades, too.
func TestSystem_TheCloudIsAService(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		port := strconv.Itoa(b.packagedCloud())
		code := strings.Fields(b.do("touchline-cloud", "gateway", "claim", "--venue", "stadium"))[0]
		b.dpkgInstall("this", "touchline")
		b.do("touchline", "install", "--claim", code, "--cloud", "ws://127.0.0.1:"+port)
		b.settings("[sensors]\ndedupe_window = \"10m\"\n")
		b.ready()
		c := b.publish(systemCrowd...)
		c.more(t, 500)
		b.dpkgInstall("next", "touchline-cloud")
		b.waitReady("touchline-cloud", b.machine, b.cloudPort)
		c.more(t, 500)
		c.finish(t)
		b.drained()
		v := &verdict{by: map[string]uint64{}}
		b.tally(c, v)
		if !v.holds() || v.acked != v.sent || v.acked == 0 {
			t.Error(v)
		}
		t.Logf("MEASURED cloud from a package, upgraded under load: %s", v)
		status := b.do("systemctl", "status", "touchline-cloud", "--no-pager")
		if !strings.Contains(status, "Active: active (running)") || !strings.Contains(status, `Status: "`) {
			t.Errorf("its status is\n%s", status)
		}
		b.do("dpkg", "--purge", "touchline-cloud")
		for _, gone := range []string{"etc/touchline-cloud", "var/lib/touchline-cloud"} {
			if _, err := os.Stat(filepath.Join(b.root, gone)); !os.IsNotExist(err) {
				t.Errorf("a purge leaves /%s", gone)
			}
		}
	})
}

// TestSystem_PackagesAreDebians: lintian finds no error in them.
func TestSystem_PackagesAreDebians(t *testing.T) {
	files := os.Getenv(systemFiles)
	if files == "" {
		t.Skip("`make test-system` makes packages, and runs it")
	}
	need(t, "lintian")
	debs := must(filepath.Glob(filepath.Join(files, "this", "*.deb")))
	if len(debs) != 2 {
		t.Fatalf("packages are %q, want two", debs)
	}
	if out, err := exec.Command("lintian", append([]string{"--fail-on", "error", "--tag-display-limit", "0"}, debs...)...).CombinedOutput(); err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}
