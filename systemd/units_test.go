package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"touchline/systemd"
)

// mostExposed is what `systemd-analyze security` may say of a unit, in tenths.
const mostExposed = "15"

// units writes the units and their drop-ins into a folder, as they are but for
// the programs, of which there is none here.
func units(t *testing.T) (files []string) {
	t.Helper()
	for name, text := range map[string]string{"touchline": systemd.Gateway, "touchline-cloud": systemd.Cloud} {
		dir := t.TempDir()
		file := filepath.Join(dir, name+".service")
		before, after, found := strings.Cut(text, "ExecStart="+name+" ")
		if !found {
			t.Fatalf("%s.service does not start %s", name, name)
		}
		if err := os.WriteFile(file, []byte(before+"ExecStart=/bin/true "+after), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return files
}

func analyze(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not there: .ci/setup test installs it (Debian package systemd)")
	}
	out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestUnits_AreUnderstood(t *testing.T) {
	for _, file := range units(t) {
		if out := analyze(t, "verify", "--man=no", file); strings.Contains(out, filepath.Base(file)) {
			t.Errorf("systemd warns:\n%s", out)
		}
	}
}

func TestUnits_AreConfined(t *testing.T) {
	for _, file := range units(t) {
		out := analyze(t, "security", "--offline=true", "--threshold="+mostExposed, file)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Logf("MEASURED %s", strings.TrimPrefix(lines[len(lines)-1], "→ "))
	}
}

// TestUnits_TheGatewayWaitsForNobody: what takes part in a start is what may hold
// it up, for minutes (systemd-networkd-wait-online) or for ever
// (systemd-time-wait-sync), where the venue's line is down as it boots.
func TestUnits_TheGatewayWaitsForNobody(t *testing.T) {
	for line := range strings.Lines(systemd.Gateway) {
		key, units, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "After", "Wants", "Requires", "BindsTo", "Requisite":
			if units != "network.target" {
				t.Errorf("it waits for %s=%s", key, units)
			}
		}
	}
}

// TestDropIns_AreUnderstood lays each over its unit.
func TestDropIns_AreUnderstood(t *testing.T) {
	names, err := filepath.Glob("drop-ins/*.conf")
	if err != nil || len(names) == 0 {
		t.Fatal(err, names)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range units(t) {
			cloud := strings.HasPrefix(filepath.Base(name), "cloud-")
			if cloud != strings.Contains(file, "cloud") {
				continue
			}
			if err := os.Mkdir(file+".d", 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(file+".d", filepath.Base(name)), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if out := analyze(t, "verify", "--man=no", file); strings.Contains(out, filepath.Base(name)) {
				t.Errorf("systemd warns of %s:\n%s", name, out)
			}
		}
	}
}

func TestStatus_IsOneLine(t *testing.T) {
	got := systemd.Status("%s", "a\nb\x1b[2J\xff"+strings.Repeat("é", 400))
	if strings.ContainsAny(got, "\n\x1b") || len(got) > 320 || !strings.HasPrefix(got, "STATUS=a b [2J\ufffdé") || !strings.HasSuffix(got, "…") {
		t.Errorf("%q", got)
	}
}
