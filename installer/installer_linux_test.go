package installer

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"touchline/systemd"
)

// image installs into the file system of an image, whose services nobody asks.
func image(t *testing.T) (Installer, *bytes.Buffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may install")
	}
	out := &bytes.Buffer{}
	return Installer{Out: out, Root: t.TempDir()}, out
}

// files are what is in a folder: names, modes, and texts of all but programs.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		text := "a program"
		if e.Type()&fs.ModeSymlink != 0 {
			text, err = os.Readlink(path)
		} else if !strings.Contains(path, "/bin/") {
			var data []byte
			data, err = os.ReadFile(path)
			text = string(data)
		}
		all[strings.TrimPrefix(path, dir)] = info.Mode().String() + " " + text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameFiles(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestInstall_CanBeRepeated(t *testing.T) {
	i, out := image(t)
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	first := files(t, i.Root)
	if got := first["/etc/systemd/system/touchline.service"]; got != "-rw-r--r-- "+systemd.Gateway {
		t.Errorf("the unit is not that of the repository: %q", got)
	}
	for _, name := range []string{"/usr/local/bin/touchline", "/etc/touchline/touchline.toml", "/usr/lib/sysusers.d/touchline.conf", "/etc/systemd/system/multi-user.target.wants/touchline.service"} {
		if first[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
	out.Reset()
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	if second := files(t, i.Root); !sameFiles(first, second) || strings.Contains(out.String(), "done") {
		t.Errorf("the second time something was done:\n%s", out)
	}
}

func TestInstall_DryRunShowsTheDifferenceAndChangesNothing(t *testing.T) {
	i, out := image(t)
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	unit := i.Place().Unit
	if err := os.WriteFile(unit, []byte(strings.Replace(systemd.Gateway, "WatchdogSec=30", "WatchdogSec=99", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	before := files(t, i.Root)
	out.Reset()
	dry := i
	dry.DryRun = true
	if err := dry.Install(Options{Cloud: []string{"wss://cloud.example"}}); err != nil {
		t.Fatal(err)
	}
	if !sameFiles(before, files(t, i.Root)) {
		t.Error("a dry run changed something")
	}
	for _, want := range []string{"would change " + unit + ":\n  - WatchdogSec=99\n  + WatchdogSec=30\n", `  + urls = ["wss://cloud.example"]`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it says\n%s\nwant\n%s", out, want)
		}
	}
	if err := dry.Uninstall(Removal{Purge: true}); err != nil || !sameFiles(before, files(t, i.Root)) {
		t.Errorf("a dry run of uninstall changed something: %v", err)
	}
}

// A configuration that a person has touched in any way stays as it is; one that
// nobody has may be made anew.
func TestInstall_KeepsAnEditedConfiguration(t *testing.T) {
	i, _ := image(t)
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	config := i.Place().Config
	if edited, err := i.Configured(); err != nil || edited {
		t.Errorf("as installed it counts as edited: %v %v", edited, err)
	}
	if err := i.Install(Options{Cloud: []string{"wss://a.example", "wss://b.example"}, CA: []byte("roots"), Extra: "[log]\nlevel = \"debug\""}); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(config)
	if err != nil || !strings.Contains(string(fresh), "[uplink]\nurls = [\"wss://a.example\", \"wss://b.example\"]\nca_file = \"/etc/touchline/cloud-ca.pem\"\n\n[log]\n") {
		t.Errorf("%v\n%s", err, fresh)
	}
	if err := i.Install(Options{}); err != nil { // an upgrade
		t.Fatal(err)
	}
	if now, err := os.ReadFile(config); err != nil || string(now) != string(fresh) {
		t.Errorf("an upgrade forgot what was installed: %v\n%s", err, now)
	}
	for what, edit := range map[string]string{
		"a line more": string(fresh) + "x = 1\n", "a line within": strings.Replace(string(fresh), "[uplink]", "[uplink] # mine", 1),
		"without its end": string(fresh[:len(fresh)/2]), "empty": "",
	} {
		if err := os.WriteFile(config, []byte(edit), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := i.Install(Options{Cloud: []string{"wss://c.example"}}); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(config); err != nil || string(now) != edit {
			t.Errorf("%s: the file was changed: %v", what, err)
		}
	}
}

func TestUninstall_KeepsTheDataUnlessPurged(t *testing.T) {
	i, _ := image(t)
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	buffer := filepath.Join(i.Place().Data, "buffer.db")
	if err := os.MkdirAll(filepath.Dir(buffer), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(buffer, []byte("samples"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // twice is fine
		if err := i.Uninstall(Removal{}); err != nil {
			t.Fatal(err)
		}
	}
	left := files(t, i.Root)
	if left["/var/lib/touchline/buffer.db"] == "" || left["/etc/touchline/touchline.toml"] == "" {
		t.Errorf("what was to be kept is gone: %v", left)
	}
	if left["/etc/systemd/system/touchline.service"] != "" || left["/usr/local/bin/touchline"] != "" {
		t.Errorf("what was to be removed is there: %v", left)
	}
	for range 2 {
		if err := i.Uninstall(Removal{Purge: true}); err != nil {
			t.Fatal(err)
		}
	}
	if left := files(t, i.Root); len(left) > 0 {
		t.Errorf("after a purge there is %v", left)
	}
}

// An upgrade keeps the program that was there.
func TestInstall_KeepsTheProgramBefore(t *testing.T) {
	i, out := image(t)
	p := i.Place()
	if err := os.MkdirAll(filepath.Dir(p.Program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Program, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	if old, err := os.ReadFile(p.previous()); err != nil || string(old) != "old" {
		t.Errorf("the program before is %q, %v\n%s", old, err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want, err := fileSum(self)
	if err != nil {
		t.Fatal(err)
	}
	if have, err := fileSum(p.Program); err != nil || have != want {
		t.Errorf("the program is another one: %v", err)
	}
}

func TestInstall_WithoutSystemdSaysSo(t *testing.T) {
	if exists("/run/systemd/system") {
		t.Skip("this machine runs systemd")
	}
	for what, do := range map[string]func(Installer) error{"install": func(i Installer) error { return i.Install(Options{}) }, "start": func(i Installer) error { return i.Start(t.Context()) }, "uninstall": func(i Installer) error { return i.Uninstall(Removal{Purge: true}) }} {
		if err := do(Installer{Out: &bytes.Buffer{}}); err != ErrNoSystemd {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Who looks no longer is not kept: what was asked for is done by then.
func TestPause_EndsWhenNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := pause(t.Context(), time.Second); err != nil || time.Since(began) != time.Second {
			t.Errorf("it waited for %v, %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := pause(ctx, time.Hour); err != errUnwatched || time.Since(began) != 2*time.Second {
			t.Errorf("after a cancel it ended %v after it began, with %v", time.Since(began)-time.Second, err)
		}
	})
}

// The configuration of the package is what Install takes for its own: one that
// nobody has edited gets the cloud's address, and dpkg asks nobody about it.
func TestFirstConfig_IsThePackages(t *testing.T) {
	text, err := os.ReadFile("../packages/touchline.toml")
	if err != nil {
		t.Fatal(err)
	}
	if want := (Installer{}).FirstConfig(Options{}); string(text) != want {
		t.Errorf("packages/touchline.toml is\n%s\nwant\n%s", text, want)
	}
}

// The way back is the program that was kept, called by its own name.
func TestInstall_TheProgramBeforeGoesBack(t *testing.T) {
	dir := t.TempDir()
	to, previous := filepath.Join(dir, "touchline"), filepath.Join(dir, "touchline.previous")
	hold := func(when, now, before string) {
		t.Helper()
		have, errA := os.ReadFile(to)
		kept, errB := os.ReadFile(previous)
		if string(have) != now || string(kept) != before {
			t.Errorf("%s: the program is %q (%v), the one before %q (%v)", when, have, errA, kept, errB)
		}
	}
	fresh := filepath.Join(t.TempDir(), "touchline-new")
	for file, text := range map[string]string{to: "old", fresh: "new"} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct{ when, from, now, before string }{
		{"upgraded", fresh, "new", "old"},
		{"gone back", previous, "old", "new"},
		{"upgraded again", previous, "new", "old"},
	} {
		if err := (copied{from: step.from, to: to, previous: previous}).do(); err != nil {
			t.Fatal(err)
		}
		hold(step.when, step.now, step.before)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("there is %v, %v", left, err)
	}
}

// What a killed installation left of a file is not there after the next.
func TestInstall_TidiesUpAfterOneThatWasKilled(t *testing.T) {
	i, _ := image(t)
	p := i.Place()
	for _, path := range []string{p.Program, p.Config, p.Unit} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".123.part", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	for name := range files(t, i.Root) {
		if strings.HasSuffix(name, ".part") {
			t.Errorf("%s is left", name)
		}
	}
}

// A card's links mean something else on the machine that writes the card.
func TestInstall_WritesNothingOutsideAnImage(t *testing.T) {
	for _, link := range []string{"etc/touchline", "var/lib/touchline", "usr/local/bin", "etc/systemd"} {
		i, _ := image(t)
		outside := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(i.Root, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(i.Root, link)); err != nil {
			t.Fatal(err)
		}
		if err := i.Install(Options{}); err == nil || !strings.Contains(err.Error(), link) {
			t.Errorf("%s: %v", link, err)
		}
		if err := i.Uninstall(Removal{Purge: true}); err == nil {
			t.Errorf("%s: uninstall follows it", link)
		}
		if left := files(t, outside); len(left) > 0 {
			t.Errorf("%s: outside there is %v", link, left)
		}
	}
	i, _ := image(t)
	if err := os.MkdirAll(filepath.Join(i.Root, "data/touchline"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(i.Root, "var/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../data/touchline", filepath.Join(i.Root, "var/lib/touchline")); err != nil {
		t.Fatal(err)
	}
	if err := i.Install(Options{}); err != nil {
		t.Errorf("a link within: %v", err)
	}
}

// Data that was moved to another disk is data: who purges is told, and it goes.
func TestUninstall_PurgesWhereTheDataIs(t *testing.T) {
	i, out := image(t)
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(i.Root, "srv/ssd")
	for _, dir := range []string{disk, filepath.Dir(i.Place().Data)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(disk, "gateway.key"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../srv/ssd", i.Place().Data); err != nil {
		t.Fatal(err)
	}
	if err := i.Uninstall(Removal{Purge: true}); err != nil {
		t.Fatal(err)
	}
	if left := files(t, i.Root); len(left) > 0 || !strings.Contains(out.String(), disk) {
		t.Errorf("after a purge there is %v; it said\n%s", left, out)
	}
}

// What is found out once the service has ended keeps all that there is.
func TestUninstall_RemovesNothingWhereTheCheckFails(t *testing.T) {
	i, _ := image(t)
	if err := i.Install(Options{}); err != nil {
		t.Fatal(err)
	}
	before := files(t, i.Root)
	waits := errors.New("samples wait")
	if err := i.Uninstall(Removal{Purge: true, Check: func() error { return waits }}); !errors.Is(err, waits) {
		t.Errorf("uninstall: %v", err)
	}
	if !sameFiles(before, files(t, i.Root)) {
		t.Error("something is gone")
	}
}

// A table of TOML stands once: what a site needs in [uplink], such as its
// proxy, is in the same as the cloud's addresses.
func TestFirstConfig_HasOneTableForTheUplink(t *testing.T) {
	o := Options{Cloud: []string{"wss://a.example"}, CA: []byte("roots"), Extra: "[sensors]\nmax_payload = \"1KiB\"\n\n[uplink] # of the site\nproxy = \"http://p:1\"\n\n[log]\nlevel = \"debug\""}
	text := (Installer{}).FirstConfig(o)
	want := "[sensors]\nmax_payload = \"1KiB\"\n\n[uplink] # of the site\nurls = [\"wss://a.example\"]\nca_file = \"/etc/touchline/cloud-ca.pem\"\nproxy = \"http://p:1\"\n\n[log]\n"
	if !strings.Contains(text, want) || strings.Count(text, "[uplink]") != 1 {
		t.Errorf("it is\n%s\nwant\n%s", text, want)
	}
}
