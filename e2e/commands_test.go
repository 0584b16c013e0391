package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommands_RefuseBadInput holds what each mistake says: what is wrong,
// where, and what to do.
func TestCommands_RefuseBadInput(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		writeFile(t, path, text)
		return path
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	free := fmt.Sprintf("[sensors.mqtt]\nlisten = \"127.0.0.1:%d\"\n[sensors.http]\nlisten = \"127.0.0.1:%d\"\n", freePort(t), freePort(t))
	taken := func(table string) string {
		return strings.Replace(free, table+"]\nlisten = \"127.0.0.1:", fmt.Sprintf("%s]\nlisten = \"%s\" #", table, busy.Addr()), 1)
	}
	notAFolder := file("not-a-folder", "")

	for _, tc := range []struct {
		name    string
		program string
		args    []string
		want    []string
	}{
		{"unknown key", "touchline", []string{"check", "--config", file("a.toml", "[sensors.mqtt]\nlissen = \"x\"")},
			[]string{"a.toml:2: sensors.mqtt.lissen: unknown key", `did you mean "listen"?`}},
		{"two mistakes", "touchline", []string{"run", "--config", file("b.toml", "[buffer]\nmax_age = \"soon\"\nwhen_full = \"x\"\nmax_bytes = 3")},
			[]string{"b.toml:2: buffer.max_age", "b.toml:4: buffer.max_bytes"}},
		{"missing file", "touchline", []string{"run", "--config", filepath.Join(dir, "none.toml")}, []string{"none.toml", "no such file"}},
		{"mqtt port in use", "touchline", []string{"run", "--data", filepath.Join(dir, "d1"), "--config", file("c.toml", taken("sensors.mqtt"))},
			[]string{"sensors.mqtt.listen", busy.Addr().String(), "in use"}},
		{"http port in use", "touchline", []string{"run", "--data", filepath.Join(dir, "d2"), "--config", file("d.toml", taken("sensors.http"))},
			[]string{"sensors.http.listen", busy.Addr().String(), "in use"}},
		{"data is no folder", "touchline", []string{"run", "--data", notAFolder, "--config", file("e.toml", free)}, []string{"gateway.data", notAFolder}},
		{"data below a file", "touchline", []string{"run", "--data", filepath.Join(notAFolder, "x"), "--config", file("f.toml", free)}, []string{"gateway.data", notAFolder}},
		{"token file missing", "touchline", []string{"run", "--data", filepath.Join(dir, "d3"), "--config", file("g.toml", free+"[uplink]\nurls = [\"ws://127.0.0.1:1\"]\ntoken_file = \""+filepath.Join(dir, "none")+"\"")},
			[]string{"uplink.token_file", filepath.Join(dir, "none")}},
		{"check: token file missing", "touchline", []string{"check", "--config", file("k.toml", "[uplink]\nurls = [\"ws://127.0.0.1:1\"]\ntoken_file = \""+filepath.Join(dir, "none")+"\"")},
			[]string{"uplink.token_file", filepath.Join(dir, "none")}},
		{"check: broker's topic filter", "touchline", []string{"check", "--config", file("l.toml", "[[sensors.broker]]\nurl = \"mqtt://h:1883\"\ntopics = [\"a/#/b\"]")},
			[]string{"sensors.broker[0]", "a/#/b"}},
		{"unknown command", "touchline", []string{"rnu"}, []string{`unknown command "rnu"`}},
		{"unknown flag", "touchline", []string{"run", "--datta", "x"}, []string{"unknown flag: --datta"}},
		{"no command", "touchline", nil, []string{"touchline run"}},
		{"status of nobody", "touchline", []string{"status", "--config", file("h.toml", free)}, []string{"no gateway answers", "touchline run"}},
		{"simulate to nowhere", "touchline", []string{"simulate", "--to", "ftp://x"}, []string{"ftp://x", "mqtt://HOST:PORT"}},
		{"simulate nothing", "touchline", []string{"simulate"}, []string{"--to"}},
		{"recording missing", "touchline", []string{"simulate", "--to", "mqtt://127.0.0.1:1", "--recording", filepath.Join(dir, "none.csv")}, []string{"none.csv"}},
		{"recording malformed", "touchline", []string{"simulate", "--to", "mqtt://127.0.0.1:1", "--recording", file("bad.csv", "time_unix_ns,sensor,metric,unit,value\n1,a,b,c,x\n")}, []string{"bad.csv", "2"}},
		{"cloud: unknown key", "touchline-cloud", []string{"check", "--config", file("i.toml", "lissten = \"x\"")}, []string{"i.toml:1: lissten: unknown key"}},
		{"cloud: port in use", "touchline-cloud", []string{"run", "--data", filepath.Join(dir, "d4"), "--config", file("j.toml", fmt.Sprintf("listen = %q", busy.Addr()))},
			[]string{"listen", busy.Addr().String(), "in use"}},
		{"cloud: data is no folder", "touchline-cloud", []string{"gateway", "add", "x", "--data", notAFolder}, []string{notAFolder}},
		{"cloud: bad gateway id", "touchline-cloud", []string{"gateway", "add", "a b", "--data", filepath.Join(dir, "d5")}, []string{`"a b"`}},
		{"cloud: gateway without id", "touchline-cloud", []string{"gateway", "add", "--data", filepath.Join(dir, "d5")}, []string{"gateway add ID"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stdout, stderr, status := run(t, tc.program, tc.args...)
			if status == 0 || stdout != "" && tc.name != "no command" {
				t.Errorf("status %d, standard output %q; want an error on standard error", status, stdout)
			}
			for _, want := range tc.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("want %q in\n%s", want, stderr)
				}
			}
		})
	}
}

func TestRun_SecondGatewayOnOneFolderEnds(t *testing.T) {
	s := newSite(t, "")
	s.startGateway()
	other := filepath.Join(t.TempDir(), "other.toml")
	writeFile(t, other, fmt.Sprintf("[sensors.mqtt]\nlisten = \"127.0.0.1:%d\"\n[sensors.http]\nlisten = \"\"\n", freePort(t)))
	_, stderr, status := run(t, "touchline", "run", "--config", other, "--data", s.gatewayData)
	if status == 0 || !strings.Contains(stderr, s.gatewayData) || !strings.Contains(stderr, "another") {
		t.Errorf("status %d: %s", status, stderr)
	}
	if !s.gateway.running() {
		t.Error("the first gateway ended as well")
	}
}

func TestRun_SIGTERMEndsWithStatus0(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	waitFor(t, "the uplink", func() bool { return s.status().Uplink.State == "connected" })
	if status := s.gateway.terminate(); status != 0 {
		t.Errorf("gateway ended with %d", status)
	}
	if status := s.cloud.terminate(); status != 0 {
		t.Errorf("cloud ended with %d", status)
	}
}

// TestGatewayAdd_TakesEffectBesideARunningCloud starts a gateway whose token
// the running cloud does not know, adds it, and sees it connect.
func TestGatewayAdd_TakesEffectBesideARunningCloud(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	token, stderr, status := run(t, "touchline-cloud", "gateway", "add", "venue-2", "--config", s.cloudConfig)
	if status != 0 || len(token) < 32 || strings.Count(token, "\n") != 1 || strings.Contains(stderr, strings.TrimSpace(token)) {
		t.Fatalf("status %d, %q, %q", status, token, stderr)
	}
	file := filepath.Join(t.TempDir(), "token")
	writeFile(t, file, token)
	config, err := os.ReadFile(s.gatewayConfig)
	if err != nil {
		t.Fatal(err)
	}
	second := strings.NewReplacer(`id = "venue-1"`, `id = "venue-2"`).Replace(string(config))
	second = second[:strings.Index(second, "token_file")] + fmt.Sprintf("token_file = %q\n", file)
	writeFile(t, s.gatewayConfig, second)
	s.startGateway()
	waitFor(t, "the new gateway to connect", func() bool { return s.status().Uplink.State == "connected" })
	if _, stderr, status := run(t, "touchline-cloud", "gateway", "add", "venue-2", "--config", s.cloudConfig); status == 0 || !strings.Contains(stderr, "venue-2") {
		t.Errorf("adding it twice: status %d, %s", status, stderr)
	}
	list, _, _ := run(t, "touchline-cloud", "gateway", "list", "--config", s.cloudConfig)
	if !strings.Contains(list, "venue-1") || !strings.Contains(list, "venue-2") {
		t.Errorf("gateway list printed\n%s", list)
	}
}

func TestStatus_SaysWhatAPersonNeeds(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	waitFor(t, "the uplink", func() bool { return s.status().Uplink.State == "connected" })
	simulate := start(t, "touchline", "simulate", "--to", s.address("mqtt"), "--players", "3", "--rate", "20", "--for", "1s")
	if status := simulate.exit(); status != 0 {
		t.Fatalf("simulate: %s", simulate.log)
	}
	s.drained()
	out, stderr, status := run(t, "touchline", "status", "--config", s.gatewayConfig)
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	for _, want := range []string{"venue-1", "connected", "3 seen", "samples/s", "buffer", "acknowledged", "evicted", "rejected", "round trip"} {
		if !strings.Contains(out, want) {
			t.Errorf("missing %q in\n%s", want, out)
		}
	}
}

// TestRun_WithoutUplinkJustBuffers runs the embedded defaults on other ports.
func TestRun_WithoutUplinkJustBuffers(t *testing.T) {
	s := newSite(t, "")
	writeFile(t, s.gatewayConfig, fmt.Sprintf("[gateway]\nid = \"alone\"\ndata = %q\n[sensors.mqtt]\nlisten = \"127.0.0.1:%d\"\n[sensors.http]\nlisten = \"127.0.0.1:%d\"\n", s.gatewayData, s.mqtt, s.http))
	s.startGateway()
	simulate := start(t, "touchline", "simulate", "--to", s.address("http"), "--players", "2", "--rate", "20", "--for", "1s")
	if status := simulate.exit(); status != 0 {
		t.Fatalf("simulate: %s", simulate.log)
	}
	before := s.status()
	if before.Buffer.Samples == 0 || before.Uplink.State != "off" {
		t.Fatalf("status %+v", before)
	}
	s.gateway.kill()
	s.startGateway()
	if after := s.status(); after.Buffer.Samples != before.Buffer.Samples {
		t.Errorf("%d samples buffered, %d before the kill", after.Buffer.Samples, before.Buffer.Samples)
	}
}

// TestUplink_WrongTokenKeepsSamplesAndSaysSo gives the gateway a token that
// the cloud does not know: samples are taken, nothing is lost, the status
// says what to do, and a right token in the same file is enough to mend it.
func TestUplink_WrongTokenKeepsSamplesAndSaysSo(t *testing.T) {
	s := newSite(t, "")
	config, err := os.ReadFile(s.gatewayConfig)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(config), "token_file = \"")
	tokenFile, _, _ := strings.Cut(rest, "\"")
	right, err := os.ReadFile(tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, tokenFile, "wrong\n")
	s.startCloud()
	s.startGateway()
	simulate := start(t, "touchline", "simulate", "--to", s.address("ws"), "--players", "2", "--rate", "20", "--for", "1s")
	if status := simulate.exit(); status != 0 {
		t.Fatalf("simulate: %s", simulate.log)
	}
	var out string
	waitFor(t, "the status to name the token", func() bool {
		out, _, _ = run(t, "touchline", "status", "--config", s.gatewayConfig)
		return strings.Contains(out, "401") && strings.Contains(out, "token_file")
	})
	if strings.Contains(out, "wrong") {
		t.Errorf("the status shows the token:\n%s", out)
	}
	if s.status().Buffer.Samples == 0 {
		t.Error("nothing is buffered")
	}
	writeFile(t, tokenFile, string(right))
	s.drained()
}
