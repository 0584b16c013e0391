package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestClients_MosquittoCurlAndWscat publishes through programs that others
// wrote, and finds each sample in the cloud.
func TestClients_MosquittoCurlAndWscat(t *testing.T) {
	need(t, "mosquitto_pub", "mosquitto_sub", "stdbuf", "curl", "wscat")
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	mqtt, http := fmt.Sprint(s.mqtt), fmt.Sprintf("http://127.0.0.1:%d", s.http)

	tablet, heard := s.subscribe("sensors/#")
	tool(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", mqtt, "-q", "1", "-t", "sensors/belt-7/heart_rate", "-m", "142")
	tool(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", mqtt, "-q", "2", "-V", "mqttv5", "-t", "sensors/belt-8", "-m", `{"t":1700000000000000001,"heart_rate":150.5,"on":true}`)
	tool(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", mqtt, "-q", "0", "-t", "sensors/belt-9", "-m", `[{"bn":"belt-9/","bt":1700000000.000000002,"n":"cadence","u":"1/min","v":88}]`)
	waitFor(t, "the subscriber to hear three messages", func() bool { return strings.Count(heard.String(), "\nsensors/belt-") == 3 })
	_ = tablet.Process.Kill()

	code := tool(t, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-H", "Content-Type: application/senml+json",
		"-d", `[{"bn":"tracker-1/","bt":1700000001,"n":"x","u":"m","v":52.31},{"n":"y","u":"m","v":31.22}]`, http+"/v1/samples")
	if code != "204" {
		t.Errorf("curl got %s, want 204", code)
	}
	code = tool(t, "curl", "-s", "-w", " %{http_code} %{content_type}", "-X", "POST", "-H", "Content-Type: application/senml+json", "-d", `[{"n":`, http+"/v1/samples")
	if !strings.HasSuffix(code, " 400 application/problem+json") {
		t.Errorf("curl got %s, want 400 and a problem document", code)
	}
	if answer := wscat(t, fmt.Sprintf("ws://127.0.0.1:%d/v1/samples/stream?sensor=imu-3", s.http), `{"t":1700000002000000000,"gyro_x":-10.671}`); !strings.Contains(answer, `{"acked":1}`) {
		t.Errorf("wscat got %q, want {\"acked\":1}", answer)
	}

	waitFor(t, "all samples to be stored", func() bool {
		return strings.Count(string(s.get(s.cloudPort, "/v1/samples?format=csv")), "\n") == 1+7
	})
	all := string(s.get(s.cloudPort, "/v1/samples"))
	for _, want := range []string{
		",venue-1,belt-7,heart_rate,,142,",
		"1700000000000000001,venue-1,belt-8,heart_rate,,150.5,\n",
		"1700000000000000001,venue-1,belt-8,on,,true,\n",
		"1700000000000000002,venue-1,belt-9,cadence,1/min,88,\n",
		"1700000001000000000,venue-1,tracker-1,x,m,52.31,\n",
		"1700000001000000000,venue-1,tracker-1,y,m,31.22,\n",
		"1700000002000000000,venue-1,imu-3,gyro_x,,-10.671,\n",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("missing %q in\n%s", want, all)
		}
	}
}

// subscribe runs mosquitto_sub, a coach's tablet, and returns once it is
// subscribed.
func (s *site) subscribe(filter string) (*exec.Cmd, *logBuffer) {
	s.t.Helper()
	heard := &logBuffer{}
	// Into a pipe it would keep what it has to say for its end.
	cmd := exec.Command("stdbuf", "-oL", "mosquitto_sub", "-d", "-v", "-h", "127.0.0.1", "-p", fmt.Sprint(s.mqtt), "-t", filter)
	cmd.Stdout, cmd.Stderr = heard, heard
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	waitFor(s.t, "mosquitto_sub to subscribe", func() bool { return strings.Contains(heard.String(), "Subscribed") })
	return cmd, heard
}

// wscat sends one message with the program of that name (Debian's node-ws)
// and returns what it printed.
func wscat(t *testing.T, url, message string) string {
	t.Helper()
	cmd := exec.Command("wscat", "-c", url, "-x", message, "-w", "1")
	// Debian's own node looks there by itself; others need to be told.
	cmd.Env = append(os.Environ(), "NODE_PATH=/usr/share/nodejs")
	if _, err := cmd.StdinPipe(); err != nil { // held open: wscat ends at the end of its input
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("wscat: %v: %s", err, out)
	}
	return string(out)
}

// tool runs a program of the machine and returns what it printed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// need skips the test, and says so, where a program is missing.
func need(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed: run .ci/setup", name)
		}
	}
}
