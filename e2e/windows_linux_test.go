package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The gateway for Windows is run by wine, which is no Windows: what is seen
// here is that the program starts, reads settings, knows where it would be
// installed, and keeps samples in files with names of Windows. The service
// control manager and the event log are not seen.

// windowsProgram names the .exe that `make windows` builds.
const windowsProgram = "TOUCHLINE_TEST_WINDOWS"

// A wine is a Windows of its own, without anything but what it brings.
type wine struct {
	t       *testing.T
	program string // of wine
	prefix  string // has drive_c
	exe     string
}

// newWine makes a Windows, or says why there is none.
func newWine(t *testing.T) *wine {
	t.Helper()
	exe := os.Getenv(windowsProgram)
	if exe == "" {
		t.Skip("runs the gateway for Windows: `make windows` builds it, and runs this where wine is")
	}
	w := &wine{t: t, exe: exe, prefix: filepath.Join(t.TempDir(), "wine")}
	for _, name := range []string{"wine64", "/usr/lib/wine/wine64"} { // Debian's wine64 alone is in no PATH
		if path, err := exec.LookPath(name); err == nil {
			w.program = path
			break
		}
	}
	if w.program == "" {
		t.Skip("wine is missing (Debian, amd64: wine64; `.ci/setup windows` installs it)")
	}
	need(t, "x86_64-w64-mingw32-gcc")
	t.Cleanup(func() {
		// Its server stays for a while behind the last program, and with it
		// this folder in use.
		cmd := w.command(filepath.Join(filepath.Dir(w.program), "wineserver"), "--kill", "--wait")
		_ = cmd.Run()
	})
	tool := w.command(w.program, "wineboot", "--init")
	if out, err := tool.CombinedOutput(); err != nil {
		t.Fatalf("wineboot: %v: %s", err, out)
	}
	w.randomNumbers()
	return w
}

// randomNumbers gives wine the library from which Go's programs take their
// first random numbers, which wine lacks before version 9.
func (w *wine) randomNumbers() {
	w.t.Helper()
	lib := filepath.Join(w.prefix, "drive_c/windows/system32/bcryptprimitives.dll")
	if _, err := os.Stat(lib); err == nil {
		return
	}
	source := filepath.Join(w.t.TempDir(), "prng.c")
	writeFile(w.t, source, `#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG); /* RtlGenRandom */
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size)
{
	return SystemFunction036(data, (ULONG)size);
}
`)
	tool(w.t, "x86_64-w64-mingw32-gcc", "-shared", "-O2", "-o", lib, source, "-ladvapi32")
}

// command is one of wine's Windows.
func (w *wine) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = w.prefix
	if _, err := os.Stat(w.prefix); err != nil { // it is not made yet
		cmd.Dir = filepath.Dir(w.prefix)
	}
	ours := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TOUCHLINE_") }) // no setting of a gateway's
	cmd.Env = append(ours, "WINEPREFIX="+w.prefix, "WINEDEBUG=-all", "HOME="+filepath.Dir(w.prefix), "DISPLAY=",
		"WINEDLLOVERRIDES=bcryptprimitives=n,b;mscoree=;mshtml=;winemenubuilder.exe=d")
	return cmd
}

// run runs the gateway's program to its end.
func (w *wine) run(args ...string) (out string, status int) {
	w.t.Helper()
	cmd := w.command(w.program, append([]string{w.exe}, args...)...)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// file writes a file into its drive C and returns the name that it has there.
func (w *wine) file(name, text string) string {
	w.t.Helper()
	writeFile(w.t, filepath.Join(w.prefix, "drive_c", name), text)
	return `C:\` + name
}

// files are the paths of its drive C, but those that programs use and leave in
// the folder for that.
func (w *wine) files() (paths []string) {
	w.t.Helper()
	err := filepath.WalkDir(filepath.Join(w.prefix, "drive_c"), func(path string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() && e.Name() == "Temp" {
			return fs.SkipDir
		}
		paths = append(paths, path)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return paths
}

// TestWindows_SaysWhatItWouldDo asks the program for its version, for two sets
// of settings, and what an installation would be, which changes nothing.
func TestWindows_SaysWhatItWouldDo(t *testing.T) {
	w := newWine(t)
	if out, status := w.run("version"); status != 0 || !strings.HasPrefix(out, "touchline ") {
		t.Errorf("version: status %d, %q", status, out)
	}
	good := w.file("good.toml", "[gateway]\nid = \"venue-1\"\ndata = 'C:\\touchline data'\n")
	if out, status := w.run("check", "--config", good); status != 0 || !strings.Contains(out, `venue-1, data in C:\touchline data`) || !strings.Contains(out, "settings are fine") {
		t.Errorf("good settings: status %d, %q", status, out)
	}
	wrong := w.file("wrong.toml", "[sensors]\nmax_payload = \"soon\"\n")
	if out, status := w.run("check", "--config", wrong); status != 1 || !strings.Contains(out, `wrong.toml:2: sensors.max_payload: "soon" is no size`) {
		t.Errorf("wrong settings: status %d, %q", status, out)
	}
	if out, status := w.run("check", "--config", `C:\none.toml`); status != 1 || !strings.Contains(out, "none.toml") {
		t.Errorf("no settings: status %d, %q", status, out)
	}

	before := w.files()
	out, status := w.run("install", "--dry-run", "--cloud", "wss://cloud.example.org")
	if status != 0 {
		t.Errorf("install --dry-run: status %d", status)
	}
	for _, want := range []string{
		`would create folder C:\ProgramData\touchline\data`, `touchline.exe to C:\Program Files\touchline\touchline.exe`,
		`would write C:\ProgramData\touchline\config\touchline.toml`, "would register the service touchline",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("install --dry-run does not say %q:\n%s", want, out)
		}
	}
	if after := w.files(); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("install --dry-run has changed\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	t.Logf("MEASURED install --dry-run in wine:\n%s", out)
}

// TestWindows_KeepsSamples runs the gateway, with a buffer in a folder of
// Windows: it takes samples over HTTP and MQTT, is killed, and a cloud that is
// there only then gets each of them.
func TestWindows_KeepsSamples(t *testing.T) {
	w := newWine(t)
	s := newSite(t, "")
	tokenFile := w.file("token", string(must(os.ReadFile(filepath.Join(filepath.Dir(s.gatewayConfig), "token")))))
	s.gatewayData = `C:\touchline data`
	s.configureGateway("[sensors]\ndedupe_window = \"10m\"\n", tokenFile)
	s.gatewayProgram = w.program
	s.gatewayConfig = w.file("touchline.toml", string(must(os.ReadFile(s.gatewayConfig))))
	begin := func() {
		s.gateway = startBy(t, func(c *exec.Cmd) error {
			windows := w.command(w.program)
			c.Dir, c.Env = windows.Dir, windows.Env
			return c.Start()
		}, w.program, w.exe, "run", "--config", s.gatewayConfig)
		s.waitReady("touchline", s.gateway, s.http)
	}
	begin()
	c := s.publish(everyDoor...)
	c.more(t, 300)
	for range 2 {
		s.gateway.kill()
		begin()
		c.more(t, 300)
	}
	held := s.status().Buffer.Samples
	s.startCloud()
	c.more(t, 300)
	c.finish(t)
	s.drained()
	v := s.audit(c)
	if !v.holds() || v.acked != v.sent || v.acked == 0 || v.epochs < 3 {
		t.Error(v)
	}
	for _, name := range []string{"buffer.db", "buffer.lock"} {
		if _, err := os.Stat(filepath.Join(w.prefix, "drive_c/touchline data", name)); err != nil {
			t.Error(err)
		}
	}
	t.Logf("MEASURED gateway for Windows in wine, killed twice with %d samples that waited: %s", held, v)
	out, status := w.run("simulate", "--to", s.address("mqtt"), "--players", "2", "--rate", "5", "--for", "2s")
	if status != 0 {
		t.Errorf("simulate: status %d, %s", status, out)
	}
}
