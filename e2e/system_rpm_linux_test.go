package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The machine is the Debian of the other tests, with rpm beside dpkg: of a
// distribution that lives by RPM, what counts here is what rpm does with the
// package's files and scripts, and systemd, which is the same everywhere.

const gatewaySettings = "etc/touchline/touchline.toml"

// rpm gives it a package of .ci/system: "this" version or the "next".
func (b *box) rpm(mode, version, name string) string {
	b.t.Helper()
	found, err := filepath.Glob(filepath.Join(os.Getenv(systemFiles), version, name+"-[0-9]*.rpm"))
	if err != nil || len(found) != 1 {
		b.t.Fatalf("%d packages of %s in %s: %v", len(found), name, version, err)
	}
	tool(b.t, "cp", found[0], filepath.Join(b.root, "root", name+".rpm"))
	// What it depends on came with dpkg, and so rpm does not know of it.
	args := []string{"rpm", mode, "--nodeps", "/root/" + name + ".rpm"}
	if mode == "--upgrade" {
		args = append(args, "--oldpackage")
	}
	return b.do(args...)
}

// is holds the service against what a person wants of it.
func (b *box) is(active, enabled string) {
	b.t.Helper()
	if is := b.property("ActiveState"); is != active {
		b.t.Errorf("the service is %s, want %s", is, active)
	}
	if is, _ := b.try("systemctl", "is-enabled", "touchline"); strings.TrimSpace(is) != enabled {
		b.t.Errorf("the service is %s, want %s", strings.TrimSpace(is), enabled)
	}
}

func (b *box) settingsFile() string {
	b.t.Helper()
	return string(must(os.ReadFile(filepath.Join(b.root, gatewaySettings))))
}

// TestSystem_TheRPMLivesAsTheDEBDoes installs the gateway with rpm, upgrades it
// there and back under load, removes it and has it come back: no sensor is
// refused by an upgrade, nothing that was acknowledged is lost, and settings
// and data stay.
func TestSystem_TheRPMLivesAsTheDEBDoes(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.startCloud()
		before := b.named()
		b.rpm("--install", "this", "touchline")
		b.is("active", "enabled")
		if out := b.do("id", "touchline"); !strings.Contains(out, "(touchline)") {
			t.Errorf("its user is %s", out)
		}
		b.do("rpm", "--verify", "--nodeps", "touchline") // nothing of it was changed by its own scripts
		b.enrol()
		edited := b.settingsFile()
		c := b.publish(systemCrowd...)
		c.more(t, 500)

		for _, to := range []string{"next", "this", "next"} {
			version := b.do("touchline", "version")
			enough, begin := b.knock(), time.Now()
			b.rpm("--upgrade", to, "touchline")
			took := lasted(begin)
			b.ready()
			c.more(t, 500)
			knocks, refused := enough()
			if refused > 0 || knocks == 0 {
				t.Errorf("to the %s version: %d of %d sensors that connected were refused", to, refused, knocks)
			}
			if b.do("touchline", "version") == version {
				t.Errorf("it is still %s", version)
			}
			if exe := tool(t, "readlink", "/proc/"+b.hostPID(b.property("MainPID"))+"/exe"); exe != "/usr/bin/touchline\n" {
				t.Errorf("what runs is %s, and not the program that is installed", exe)
			}
			b.is("active", "enabled")
			if b.settingsFile() != edited {
				t.Error("settings that were edited are others after an upgrade")
			}
			t.Logf("MEASURED upgrade under load to the %s version: rpm took %s, %d sensors connected meanwhile, %d refused", to, took, knocks, refused)
		}

		c.hold(t)
		said := b.do("rpm", "--erase", "touchline")
		if !strings.Contains(said, "/"+gatewaySettings+" stays where it was") {
			t.Errorf("a removal says\n%s", said)
		}
		if out, err := b.try("systemctl", "cat", "touchline"); err == nil {
			t.Errorf("systemd still knows\n%s", out)
		}
		if out := b.do("systemctl", "list-units", "--all", "--no-legend", "touchline*"); strings.TrimSpace(out) != "" {
			t.Errorf("systemd still lists %s", out)
		}
		if b.settingsFile() != edited {
			t.Error("a removal changes the settings")
		}
		kept := slices.DeleteFunc(b.named(), func(path string) bool {
			return slices.Contains(before, path) || path == "/etc/touchline" || path == "/"+gatewaySettings || strings.HasPrefix(path, "/var/lib/touchline")
		})
		if len(kept) > 0 {
			t.Errorf("a removal leaves %q", kept)
		}

		said = b.rpm("--install", "this", "touchline") // comes back without a claim
		if b.settingsFile() != edited || !strings.Contains(said, ".rpmnew") {
			t.Errorf("settings are\n%s\nafter it came back, which said\n%s", b.settingsFile(), said)
		}
		b.is("active", "enabled")
		b.ready()
		c.release()
		c.more(t, 500)
		t.Logf("MEASURED by rpm: three upgrades under load, a removal and a return: %s", b.settle(c))
	})
}

// TestSystem_TheRPMDoesWhatPeopleSaid: what a person masked, disabled or
// stopped stays so, and what does not start says how to go back.
func TestSystem_TheRPMDoesWhatPeopleSaid(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.do("systemctl", "mask", "touchline")
		if said := b.rpm("--install", "this", "touchline"); strings.Contains(said, "did not start") {
			t.Errorf("that a masked service does not start is no failure:\n%s", said)
		}
		b.is("inactive", "masked")
		b.do("systemctl", "unmask", "touchline")
		b.do("systemctl", "start", "touchline")
		b.is("active", "disabled")
		pid := b.property("MainPID")
		b.rpm("--upgrade", "next", "touchline") // it runs, and is not wanted at the next boot
		b.is("active", "disabled")
		if b.property("MainPID") == pid {
			t.Error("the version before goes on running after an upgrade")
		}
		b.do("systemctl", "stop", "touchline")
		b.rpm("--upgrade", "this", "touchline")
		b.is("inactive", "disabled")
		b.do("systemctl", "enable", "touchline")
		b.rpm("--upgrade", "next", "touchline")
		b.is("inactive", "enabled")
		b.do("systemctl", "start", "touchline")

		name, good := filepath.Join(b.root, gatewaySettings), b.settingsFile()
		if err := os.WriteFile(name, []byte(good+"[no_such_table]\n"), 0o644); err != nil { // #nosec G306 -- as the package has it
			t.Fatal(err)
		}
		said := b.rpm("--upgrade", "this", "touchline")
		for _, want := range []string{"touchline: it did not start", "journalctl -u touchline", "rpm -U --oldpackage"} {
			if !strings.Contains(said, want) {
				t.Errorf("a failed start says\n%s\nwant %q", said, want)
			}
		}
		b.do("rpm", "--erase", "touchline") // while systemd tries
		if out := b.do("systemctl", "list-units", "--all", "--no-legend", "touchline*"); strings.TrimSpace(out) != "" {
			t.Errorf("what could not start is still listed after it was removed: %s", out)
		}
		if err := os.WriteFile(name, []byte(good), 0o644); err != nil { // #nosec G306 -- as the package has it
			t.Fatal(err)
		}
		b.rpm("--install", "next", "touchline")
		b.ready()
		b.is("active", "enabled")
	})
}

// TestSystem_TheCloudsRPMStarts: the node's package has the same scripts.
func TestSystem_TheCloudsRPMStarts(t *testing.T) {
	systemTest(t, func(t *testing.T) {
		b := newBox(t)
		b.rpm("--install", "this", "touchline-cloud")
		state := func(what string) string {
			return strings.TrimSpace(b.do("systemctl", "show", "--property", what, "--value", "touchline-cloud"))
		}
		if state("ActiveState") != "active" || state("UnitFileState") != "enabled" {
			t.Errorf("the service is %s and %s", state("ActiveState"), state("UnitFileState"))
		}
		version := b.do("touchline-cloud", "version")
		b.rpm("--upgrade", "next", "touchline-cloud")
		if state("ActiveState") != "active" || b.do("touchline-cloud", "version") == version {
			t.Errorf("after an upgrade from %s the service is %s", version, state("ActiveState"))
		}
		b.do("rpm", "--erase", "touchline-cloud")
		if state("LoadState") != "not-found" {
			t.Errorf("a removed service is %s", state("LoadState"))
		}
		if _, err := os.Stat(filepath.Join(b.root, "var/lib/touchline-cloud/cloud.db")); err != nil {
			t.Errorf("a removal takes the store: %v", err)
		}
	})
}
