package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// exportBatch is how many samples one POST of these tests has.
const exportBatch = 500

// deposit has the gateway acknowledge samples with the values from to to-1,
// each of a time of its own; noise makes them large.
func (s *site) deposit(from, to int, noise bool) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(uint64(from), 0))
	for from < to {
		var body bytes.Buffer
		for n := from; n < min(from+exportBatch, to); n++ {
			fmt.Fprintf(&body, `,{"n":"m","v":%d,"t":%d}`, n, 1_767_225_600+n)
			if noise {
				fmt.Fprintf(&body, `,{"n":"noise","v":%v,"t":%d}`, r.Float64(), 1_767_225_600+n)
			}
		}
		pack := `[{"bn":"belt-1/"` + "," + body.String()[2:] + "]"
		resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d/v1/samples", s.http), "application/senml+json", strings.NewReader(pack))
		if err != nil {
			s.t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			s.t.Fatalf("POST: %s", resp.Status)
		}
		from += exportBatch
	}
}

// hasOnce fails unless the cloud has the values 0 to n-1 of this gateway, each
// once, and nothing else of anybody.
func (s *site) hasOnce(n int) {
	s.t.Helper()
	seen := make([]int, n)
	rows := 0
	for line := range strings.Lines(string(s.get(s.cloudPort, "/v1/samples?format=csv"))) {
		r := strings.Split(strings.TrimSpace(line), ",")
		if r[0] == "time_unix_ns" {
			continue
		}
		rows++
		v, err := strconv.Atoi(r[5])
		if err != nil || r[1] != "venue-1" || v < 0 || v >= n {
			s.t.Fatalf("the cloud has %q", line)
		}
		seen[v]++
	}
	for v, times := range seen {
		if times != 1 {
			s.t.Fatalf("the cloud has %d %d times (of %d rows)", v, times, rows)
		}
	}
}

// touchline runs a command of the gateway's to its end, and fails the test
// where that fails.
func (s *site) touchline(args ...string) string {
	s.t.Helper()
	out, stderr, status := run(s.t, "touchline", append(args, "--config", s.gatewayConfig)...)
	if status != 0 {
		s.t.Fatalf("touchline %s: status %d: %s", strings.Join(args, " "), status, stderr)
	}
	return out
}

// registerKey tells the cloud the gateway's key, which the gateway prints.
func (s *site) registerKey() (public string) {
	s.t.Helper()
	public = strings.TrimSpace(s.touchline("key"))
	if _, stderr, status := run(s.t, "touchline-cloud", "gateway", "key", "venue-1", public, "--config", s.cloudConfig); status != 0 {
		s.t.Fatalf("gateway key: %s", stderr)
	}
	return public
}

// TestExport_AnotherGatewayCarriesAndTheFirstComesBack: the samples of a venue
// without a line reach the cloud on a stick through the next venue, while
// others of the same epoch stay behind; then the line is there after all.
// Everything is in the cloud once, as the first venue's.
func TestExport_AnotherGatewayCarriesAndTheFirstComesBack(t *testing.T) {
	a := newSite(t, "")
	a.startGateway()
	a.deposit(0, 20_000, false)
	stick := t.TempDir()
	out := a.touchline("buffer", "export", stick) // it names the file itself
	file, _, _ := strings.Cut(out, ":")
	if !strings.HasPrefix(filepath.Base(file), "venue-1-") || !strings.Contains(out, "20000 samples") {
		t.Fatalf("export printed %q", out)
	}
	a.deposit(20_000, 21_000, false) // after the export
	public := a.registerKey()
	a.gateway.kill()

	b := otherSite(t, a, "venue-2")
	a.startCloud()
	b.startGateway()
	if _, stderr, status := run(t, "touchline", "buffer", "import", file, "--config", b.gatewayConfig); status == 0 || !strings.Contains(stderr, "--trust venue-1="+public) {
		t.Fatalf("an export of a stranger: status %d, %s", status, stderr)
	}
	for range 2 {
		if out := b.touchline("buffer", "import", file, "--trust", "venue-1="+public); !strings.Contains(out, "gateway venue-1, 20000 samples") {
			t.Errorf("import printed %q", out)
		}
	}
	waitFor(t, "the archive to be delivered", func() bool {
		var st struct {
			Relay struct{ Waiting, Delivered int }
		}
		if err := json.Unmarshal(b.get(b.http, "/v1/status"), &st); err != nil {
			t.Fatal(err)
		}
		return st.Relay.Delivered > 0 && st.Relay.Waiting == 0
	})
	if left, err := os.ReadDir(filepath.Join(b.gatewayData, "relay")); err != nil || len(left) != 0 {
		t.Errorf("%v is left of what was delivered (%v)", left, err)
	}
	a.hasOnce(20_000)

	a.startGateway() // the line is there
	a.deposit(21_000, 22_000, false)
	a.drained()
	a.hasOnce(22_000)
	b.gateway.terminate()
	a.gateway.terminate()
	v := &verdict{stored: 22_000}
	a.cloud.terminate()
	a.auditFile(v)
	if !v.holds() {
		t.Errorf("%s", v)
	}
	t.Logf("MEASURED export carried by another gateway: 22,000 samples, 20,000 of them by both ways: 0 lost, 0 doubled, 0 kept aside")
}

// otherSite is a second gateway of the same cloud.
func otherSite(t *testing.T, s *site, id string) *site {
	t.Helper()
	o := *s
	o.t, o.gatewayData, o.mqtt, o.http, o.gateway = t, t.TempDir(), freePort(t), freePort(t), nil
	token, stderr, status := run(t, "touchline-cloud", "gateway", "add", id, "--config", s.cloudConfig)
	if status != 0 {
		t.Fatal(stderr)
	}
	conf := t.TempDir()
	writeFile(t, filepath.Join(conf, "token"), token)
	o.gatewayConfig = filepath.Join(conf, "touchline.toml")
	writeFile(t, o.gatewayConfig, fmt.Sprintf("[gateway]\nid = %q\ndata = %q\n[sensors.mqtt]\nlisten = \"127.0.0.1:%d\"\n[sensors.http]\nlisten = \"127.0.0.1:%d\"\n"+
		"[uplink]\nurls = [\"ws://127.0.0.1:%d\"]\ntoken_file = %q\nreconnect_min = \"50ms\"\nreconnect_max = \"200ms\"\n",
		id, o.gatewayData, o.mqtt, o.http, s.cloudPort, filepath.Join(conf, "token")))
	return &o
}

// TestExport_TheCloudTakesAFileIn beside a running cloud, from a gateway that
// does not run, twice, and not from a stranger.
func TestExport_TheCloudTakesAFileIn(t *testing.T) {
	s := newSite(t, "")
	s.startGateway()
	s.deposit(0, 5000, false)
	s.gateway.terminate()
	file := filepath.Join(t.TempDir(), "x.touchline")
	out := s.touchline("buffer", "export", file)
	if !strings.Contains(out, "5000 samples") {
		t.Errorf("export printed %q", out)
	}
	if _, stderr, status := run(t, "touchline", "buffer", "export", file, "--config", s.gatewayConfig); status == 0 || !strings.Contains(stderr, "--force") {
		t.Errorf("onto a file that is there: status %d, %s", status, stderr)
	}
	s.touchline("buffer", "export", file, "--force")
	s.startCloud()
	if _, stderr, status := run(t, "touchline-cloud", "import", file, "--config", s.cloudConfig); status == 0 || !strings.Contains(stderr, "touchline-cloud gateway key venue-1 ed25519:") {
		t.Errorf("without its key: status %d, %s", status, stderr)
	}
	public := s.registerKey()
	for _, want := range []string{"5000 samples stored", "0 samples stored"} {
		out, stderr, status := run(t, "touchline-cloud", "import", file, "--config", s.cloudConfig)
		if status != 0 || !strings.Contains(out, want) || !strings.Contains(out, "0 kept aside") {
			t.Errorf("status %d, %q, %s: want %q", status, out, stderr, want)
		}
	}
	s.hasOnce(5000)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, broken := range map[string][]byte{"cut": data[:len(data)-1], "changed": append(bytes.Clone(data[:1000]), append([]byte{data[1000] ^ 1}, data[1001:]...)...)} {
		path := filepath.Join(t.TempDir(), name)
		writeFile(t, path, string(broken))
		for program, args := range map[string][]string{
			"touchline-cloud": {"import", path, "--config", s.cloudConfig},
			"touchline":       {"buffer", "import", path, "--trust", "venue-1=" + public, "--config", s.gatewayConfig},
		} {
			if _, stderr, status := run(t, program, args...); status == 0 || !strings.Contains(stderr, "archive does not hold at byte") {
				t.Errorf("%s, %s: status %d, %s", program, name, status, stderr)
			}
		}
	}
	s.startGateway() // it still has all of it, and hears that the cloud has
	s.drained()
	s.hasOnce(5000)
}

// TestExport_InterruptedLeavesNoFile: Ctrl-C while the gateway is slow to
// answer, and a disk that is full in the middle.
func TestExport_InterruptedLeavesNoFile(t *testing.T) {
	s := newSite(t, "[buffer]\nfree_reserve = \"0B\"\n")
	s.startGateway()
	s.deposit(0, 40_000, true)
	dir := t.TempDir()

	if err := s.gateway.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	export := start(t, "touchline", "buffer", "export", filepath.Join(dir, "x.touchline"), "--config", s.gatewayConfig)
	waitFor(t, "the export to begin", func() bool {
		entries, err := os.ReadDir(dir)
		return err == nil && len(entries) == 1
	})
	_ = export.cmd.Process.Signal(os.Interrupt)
	if status := export.exit(); status == 0 {
		t.Error("an export that was interrupted ended with status 0")
	}
	if err := s.gateway.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	empty := func(dir, when string) {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), "touchline") {
				t.Errorf("%s: %s is left", when, e.Name())
			}
		}
	}
	empty(dir, "interrupted")
	s.deposit(40_000, 40_500, true) // the gateway goes on
	s.touchline("buffer", "export", filepath.Join(dir, "x.touchline"))

	t.Run("full disk", func(t *testing.T) {
		small := mountDisk(t, &disk{options: "size=400k"})
		_, stderr, status := run(t, "touchline", "buffer", "export", filepath.Join(small.dir, "x.touchline"), "--config", s.gatewayConfig)
		if status == 0 || !strings.Contains(stderr, "bytes free") {
			t.Errorf("status %d: %s", status, stderr)
		}
		empty(small.dir, "full disk")
	})
	t.Run("kept reserve", func(t *testing.T) {
		config, err := os.ReadFile(s.gatewayConfig)
		if err != nil {
			t.Fatal(err)
		}
		greedy := filepath.Join(t.TempDir(), "greedy.toml")
		writeFile(t, greedy, strings.Replace(string(config), `"0B"`, `"1000TiB"`, 1))
		_, stderr, status := run(t, "touchline", "buffer", "export", filepath.Join(s.gatewayData, "x.touchline"), "--config", greedy)
		if status == 0 || !strings.Contains(stderr, "must stay free") {
			t.Errorf("status %d: %s", status, stderr)
		}
		empty(s.gatewayData, "kept reserve")
	})
}

// TestBufferCheck_OnBothSides: the same report of a gateway that runs, through
// a socket whose path is too long for an address, and of one that does not; and
// exit status 1 where something is wrong.
func TestBufferCheck_OnBothSides(t *testing.T) {
	s := newSite(t, "")
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep-", 20), strings.Repeat("deeper-", 10))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	s.moveGateway(deep)
	s.startGateway()
	s.deposit(0, 3000, true)
	type report struct {
		Running  bool
		Samples  int
		Problems []string
		Epochs   []struct{ Ranges [][2]int }
	}
	check := func(want bool) {
		t.Helper()
		var r report
		if err := json.Unmarshal([]byte(s.touchline("buffer", "check", "--json")), &r); err != nil {
			t.Fatal(err)
		}
		if r.Running != want || r.Samples != 6000 || len(r.Problems) != 0 || len(r.Epochs) != 1 || r.Epochs[0].Ranges[0] != [2]int{1, 6000} {
			t.Errorf("%+v, want running %t, 6000 samples, no problem", r, want)
		}
	}
	check(true)
	s.gateway.kill() // its log and its socket are left
	check(false)
	if out := s.touchline("buffer", "check"); !strings.Contains(out, "6000 samples") || !strings.Contains(out, "everything holds") {
		t.Errorf("check printed %q", out)
	}
	s.startGateway() // the dead socket is in nobody's way
	check(true)
	s.gateway.terminate()
	if _, err := os.Stat(filepath.Join(deep, "admin.sock")); err == nil {
		t.Error("the socket is left behind")
	}

	damage(t, filepath.Join(deep, "buffer.db"))
	before, err := os.ReadDir(deep)
	if err != nil {
		t.Fatal(err)
	}
	out, stderr, status := run(t, "touchline", "buffer", "check", "--config", s.gatewayConfig)
	if status != 1 || !strings.Contains(out, "problem: ") || !strings.Contains(stderr, "problems") {
		t.Errorf("damaged: status %d, %q, %s", status, out, stderr)
	}
	if after, err := os.ReadDir(deep); err != nil || len(after) != len(before) {
		t.Errorf("check left %v, before it was %v (%v)", after, before, err)
	}
}

// damage flips bits in the second half of the file, which is data of blocks.
func damage(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := len(data) / 2 &^ 4095; at < len(data); at += 1000 {
		data[at] ^= 1
	}
	writeFile(t, path, string(data))
}

// TestBufferCommands_SayWhatIsMissing and where, and leave nothing behind.
func TestBufferCommands_SayWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"buffer", "check", "--data", dir},
		{"buffer", "check", "--data", filepath.Join(dir, "none")},
		{"buffer", "export", filepath.Join(dir, "x"), "--data", dir},
		{"key", "--data", filepath.Join(dir, "none")},
	} {
		out, err := exec.Command(programPath("touchline"), args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), dir) {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 1 { // a lock file at most
		t.Errorf("%v is left", left)
	}
}
