package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"touchline/internal/netlab"
)

// A tap is a proxy that keeps what the gateway says to the cloud.
type tap struct {
	*netlab.Relay
	mu   sync.Mutex // covers said
	said bytes.Buffer
}

type tappedConn struct {
	net.Conn
	tap *tap
}

func (c tappedConn) Write(p []byte) (int, error) {
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.tap.said.Write(p)
	return c.Conn.Write(p)
}

func newTap(t *testing.T, want netlab.Credentials) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{}
	p.Relay = netlab.NewRelay(l, netlab.RelayOptions{Greet: netlab.GreetCONNECT(want), Dial: func(ctx context.Context, target string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
		return tappedConn{conn, p}, err
	}})
	t.Cleanup(func() { p.Close() })
	return p
}

// tokens returns the bearer tokens that passed.
func (p *tap) tokens() (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, found := range regexp.MustCompile(`Authorization: Bearer (\S+)`).FindAllStringSubmatch(p.said.String(), -1) {
		list = append(list, found[1])
	}
	return list
}

// A hunt looks for secrets where they must not be.
type hunt struct {
	t       *testing.T
	secrets map[string]string // by what they are
	places  map[string]string // what is written where
	guarded int               // files that are for their owner alone
	found   int
}

// seen notes what somebody can read.
func (h *hunt) seen(place, text string) { h.places[place] += text + "\n" }

// process notes what each user of the machine can see of a process.
func (h *hunt) process(name string, p *program) {
	h.t.Helper()
	for _, file := range []string{"cmdline", "environ"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.cmd.Process.Pid, file))
		if err != nil {
			h.t.Fatal(err)
		}
		h.seen(file+" of "+name, string(text))
	}
}

// folder notes all files of a folder, and wants those with a key or a hash to
// be for their owner alone.
func (h *hunt) folder(name, dir string) (files int) {
	h.t.Helper()
	guarded := regexp.MustCompile(`PRIVATE KEY|sha256:|SQLite format 3`)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		files++
		h.seen("the file "+entry.Name()+" of "+name, string(data))
		if !guarded.Match(data) {
			return nil
		}
		h.guarded++
		if info.Mode().Perm()&0o077 != 0 {
			h.t.Errorf("%s of %s has mode %o", entry.Name(), name, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return files
}

// find fails the test for each secret that is anywhere.
func (h *hunt) find() {
	h.t.Helper()
	for what, secret := range h.secrets {
		if len(secret) < 8 {
			h.t.Fatalf("the %s is %q: that can be anywhere", what, secret)
		}
		for place, text := range h.places {
			if strings.Contains(text, secret) {
				h.found++
				h.t.Errorf("the %s is in %s", what, place)
			}
		}
	}
}

// command runs a program that is no service, with input; its output is seen,
// unless it is what prints a secret by order.
func (h *hunt) command(input string, prints bool, name string, args ...string) string {
	h.t.Helper()
	cmd := exec.Command(programPath(name), args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errOut
	_ = cmd.Run() // some are to fail
	h.seen("what "+name+" "+args[0]+" says", errOut.String())
	if !prints {
		h.seen("what "+name+" "+args[0]+" says", out.String())
	}
	return strings.TrimSpace(out.String())
}

// TestSecrets_AreNowhere runs the whole product, at its most talkative, with
// secrets of each kind, right and wrong, through all that can go wrong with
// them, and then looks for them in everything that is written.
func TestSecrets_AreNowhere(t *testing.T) {
	s := newSite(t, "[log]\nlevel = \"debug\"\n")
	cloudConfig, err := os.ReadFile(s.cloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.cloudConfig, string(cloudConfig)+"[log]\nlevel = \"debug\"\n")
	guard := netlab.Credentials{User: "venue", Password: "proxy-password-4711"}
	proxy := newTap(t, guard)
	passwordFile := filepath.Join(filepath.Dir(s.gatewayConfig), "proxy-password")
	writeFile(t, passwordFile, "venue:wrong-password-4712\n")
	editFile(t, s.gatewayConfig, "[uplink]\n", fmt.Sprintf("[uplink]\nproxy = \"http://%s\"\nproxy_password_file = %q\n", proxy.Addr(), passwordFile))
	h := &hunt{t: t, places: map[string]string{}, secrets: map[string]string{
		"proxy's password": guard.Password, "wrong password of the proxy": "wrong-password-4712",
		"proxy's Basic":       base64.StdEncoding.EncodeToString([]byte("venue:" + guard.Password)),
		"wrong Basic":         base64.StdEncoding.EncodeToString([]byte("venue:wrong-password-4712")),
		"guessed sensor key":  "guessed-sensor-key-4713",
		"guessed API key":     "tlck_guessed_api_key_4714",
		"key in a query":      "query-key-4715",
		"guessed claim code":  "GUES-SEDC-LAIM-4716",
		"guessed token":       "guessed-token-4717",
		"guessed JWT":         "eyJhbGciOiJFZERTQSJ9.eyJndWVzc2VkIjo0NzE4fQ.Z3Vlc3NlZDQ3MTg",
		"guessed JWT's claim": "eyJndWVzc2VkIjo0NzE4fQ",
	}}
	cloud := func(prints bool, args ...string) string {
		return h.command("", prints, "touchline-cloud", append(args, "--config", s.cloudConfig)...)
	}
	gateway := func(input string, prints bool, args ...string) string {
		return h.command(input, prints, "touchline", append(args, "--config", s.gatewayConfig)...)
	}
	key := func(what, secret string) string {
		h.secrets[what] = secret
		return secret
	}
	sensorKey := key("sensor's key", gateway("", true, "sensor", "add", "belt-17"))
	key("key that was renewed", gateway("", true, "sensor", "add", "belt-18"))
	renewed := key("renewed key", gateway("", true, "sensor", "renew", "belt-18"))
	code := key("claim code", cloud(true, "gateway", "claim", "--venue", "north", "--gateway", "venue-1"))
	key("claim code without dashes", strings.ReplaceAll(code, "-", ""))
	unused := key("unused claim code", cloud(true, "gateway", "claim", "--venue", "north"))
	token := key("another gateway's token", cloud(true, "gateway", "add", "venue-2"))
	apiKey := key("API key", cloud(true, "key", "add", "reader", "--scope", "read"))
	key("API key's random part", strings.Split(apiKey, "_")[2])

	s.startCloud()
	tokenFile := filepath.Join(filepath.Dir(s.gatewayConfig), "token")
	text, err := os.ReadFile(tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	key("gateway's own token", strings.TrimSpace(string(text)))

	// The proxy refuses, then the cloud does: a wrong token, another one's.
	s.startGateway()
	said := func(what string) {
		t.Helper()
		waitFor(t, "the gateway to be told "+what, func() bool { return strings.Contains(s.status().Uplink.LastError, what) })
		h.seen("the status of the gateway", string(s.get(s.http, "/v1/status")))
		h.seen("the metrics of the gateway", string(s.get(s.http, "/metrics")))
		h.seen("touchline status", gateway("", false, "status"))
		h.process("the gateway", s.gateway)
		h.process("the cloud", s.cloud)
	}
	restart := func() {
		h.seen("the log of the gateway", s.gateway.log.String())
		s.gateway.terminate()
		s.startGateway()
	}
	said("407")
	writeFile(t, passwordFile, "venue:"+guard.Password+"\n")
	writeFile(t, tokenFile, h.secrets["guessed token"])
	restart()
	said("401")
	writeFile(t, tokenFile, token)
	restart()
	said("403")

	// Codes: one that was never made, one with a slip, the right one, again.
	for _, c := range []string{h.secrets["guessed claim code"], unused[:len(unused)-1], code, code} {
		gateway(c, false, "enroll", "-")
	}
	s.gateway.terminate()
	h.seen("the log of the gateway", s.gateway.log.String())
	editFile(t, s.gatewayConfig, fmt.Sprintf("token_file = %q\n", tokenFile), "")
	s.startGateway()
	waitFor(t, "a session", func() bool { return s.status().Uplink.State == "connected" })
	proxy.Cut()
	waitFor(t, "another session", func() bool { st := s.status(); return st.Uplink.State == "connected" && st.Uplink.Sessions >= 2 })
	url := fmt.Sprintf("http://127.0.0.1:%d", s.http)
	for _, secret := range []string{sensorKey, h.secrets["guessed sensor key"]} {
		for _, sensor := range []string{"belt-17", "belt-18", "belt-19"} {
			sensorPost(t, http.DefaultClient, url, sensor, secret)
		}
		blow{head: string(mqttConnect("x", "belt-17", secret)), halfway: true}.strike(nil, s.mqtt)
	}
	sensorPost(t, http.DefaultClient, url, "belt-18", renewed)
	ask := func(port int, path, authorization string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		req.Header.Set("X-Touchline-Gateway", "venue-1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body bytes.Buffer
		_, _ = body.ReadFrom(resp.Body)
		h.seen("the answer to GET "+strings.SplitN(path, "?", 2)[0], fmt.Sprint(resp.Header, body.String()))
	}
	ask(s.http, "/v1/samples/stream?access_token="+h.secrets["key in a query"], "Bearer "+h.secrets["guessed sensor key"])
	ask(s.http, "/v1/status?key="+h.secrets["key in a query"], "Basic "+h.secrets["wrong Basic"])
	for _, bearer := range []string{apiKey, h.secrets["guessed API key"], h.secrets["guessed JWT"], sensorKey, token} {
		for _, path := range []string{"/v1/samples", "/v1/gateways", "/metrics", "/v1/uplink", "/v1/samples?key=" + h.secrets["key in a query"]} {
			ask(s.cloudPort, path, "Bearer "+bearer)
		}
	}
	passed := proxy.tokens()
	for i, jwt := range passed {
		parts := strings.Split(jwt, ".")
		key(fmt.Sprintf("token %d that passed", i), jwt)
		if len(parts) == 3 {
			key(fmt.Sprintf("signature %d that passed", i), parts[2])
			ask(s.cloudPort, "/v1/uplink", "Bearer "+jwt) // a replay
		}
	}
	if len(passed) < 4 {
		t.Errorf("%d tokens passed the proxy: two wrong ones and two signed ones at least were meant to", len(passed))
	}
	said("") // all again
	for _, args := range [][]string{{"gateway", "list"}, {"key", "list"}, {"check"}} {
		h.seen("touchline-cloud "+strings.Join(args, " "), cloud(false, args...))
	}
	for _, args := range [][]string{{"sensor", "list"}, {"check"}, {"preflight"}, {"buffer", "check"}} {
		h.seen("touchline "+strings.Join(args, " "), gateway("", false, args...))
	}
	s.drained()
	s.gateway.terminate()
	s.cloud.terminate()
	h.seen("the log of the gateway", s.gateway.log.String())
	h.seen("the log of the cloud", s.cloud.log.String())
	files := h.folder("the gateway", s.gatewayData) + h.folder("the cloud", s.cloudData)
	for place, needs := range map[string]string{"the log of the gateway": "level=DEBUG", "the log of the cloud": "an uplink came with"} {
		if !strings.Contains(h.places[place], needs) {
			t.Errorf("%s says nothing of what was tried: %q is missing", place, needs)
		}
	}
	if h.guarded < 4 {
		t.Errorf("%d files have a key, hashes or a database: keys, sensors, buffer and store were meant to be there", h.guarded)
	}
	h.find()
	t.Logf("MEASURED attack: reads all that is written, for %d secrets, right and wrong, in %d places (logs, answers, status, metrics, command lines, environments, %d files) -> found %d", len(h.secrets), len(h.places), files, h.found)
}
