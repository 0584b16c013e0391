package touchline_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline"
	"touchline/config"
)

func TestDefaults_AreComplete(t *testing.T) {
	c, unused, err := touchline.LoadConfig("", nil, map[string]string{"gateway.id": "g1"})
	if err != nil || len(unused) > 0 {
		t.Fatalf("defaults: %v, unused %v", err, unused)
	}
	for _, key := range config.Keys(c) {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !strings.Contains("\n"+string(touchline.Defaults), "\n"+name+" = ") {
			t.Errorf("config.toml does not set %s", key)
		}
	}
	if c.Sensors.MQTT.Listen != "127.0.0.1:1883" || c.Sensors.HTTP.Listen != "127.0.0.1:8080" {
		t.Errorf("listeners %q %q", c.Sensors.MQTT.Listen, c.Sensors.HTTP.Listen)
	}
}

func TestDefaults_BrokerExampleWorks(t *testing.T) {
	var example strings.Builder
	inside := false
	for _, line := range strings.Split(string(touchline.Defaults), "\n") {
		inside = inside && strings.HasPrefix(line, "# ") || strings.HasPrefix(line, "# [[sensors.broker]]")
		if inside {
			example.WriteString(strings.TrimPrefix(line, "# ") + "\n")
		}
	}
	c, _, err := touchline.LoadConfig(write(t, example.String()), nil, map[string]string{"gateway.id": "g1"})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Sensors.Broker) != 1 || c.Sensors.Broker[0].Topics[0] != "sensors/#" {
		t.Errorf("broker: %+v", c.Sensors.Broker)
	}
}

// TestLoadConfig_ReportsBadSettings holds the message of each mistake.
func TestLoadConfig_ReportsBadSettings(t *testing.T) {
	for _, tc := range []struct{ name, toml, want string }{
		{"unknown key", "[buffer]\nmax_byte = \"1GiB\"", `:2: buffer.max_byte: unknown key (did you mean "max_bytes"?)`},
		{"unknown table", "[bufer]\n", `:1: bufer: unknown key (did you mean "buffer"?)`},
		{"bad duration", "[buffer]\n\ncommit_interval = \"5 minutes\"", `:3: buffer.commit_interval: "5 minutes" is no duration: write a number with a unit`},
		{"duration without unit", "[buffer]\nmax_age = 7", `:2: buffer.max_age: want a quoted value such as "10s", have 7`},
		{"bad size", "buffer.max_bytes = \"lots\"", `:1: buffer.max_bytes: "lots" is no size`},
		{"wrong type", "[sensors]\nallow_anonymous = \"yes\"", `:2: sensors.allow_anonymous: want true or false, have the string "yes"`},
		{"syntax", "[sensors\n", `:1`},
		{"beyond loopback", "[sensors.mqtt]\nlisten = \"0.0.0.0:1883\"", `:2: sensors.mqtt.listen: 0.0.0.0:1883 is reachable from the network`},
		{"no port", "[sensors.http]\nlisten = \"127.0.0.1\"", `:2: sensors.http.listen: "127.0.0.1" is no address to listen on`},
		{"proxy with password", "[uplink]\nproxy = \"http://u:pw@proxy:1\"", `:2: uplink.proxy: has a user or password in it: put them into the file of uplink.proxy_password_file`},
		{"no proxy", "[uplink]\nproxy = \"proxy:3128\"", `:2: uplink.proxy: is no address of a proxy`},
		{"half a certificate", "[uplink]\nclient_cert = \"c.pem\"", `:2: uplink.client_cert: and uplink.client_key go together`},
		{"bad hours", "[uplink]\nbacklog_hours = \"23-7\"", `:2: uplink.backlog_hours: "23-7" are no hours`},
		{"bad order", "[uplink]\nbacklog_order = \"random\"", `:2: uplink.backlog_order: "random" is unknown`},
		{"bad share", "[uplink]\nbacklog_share = 0", `:2: uplink.backlog_share: 0 is out of bounds`},
		{"little rate", "[uplink]\nmax_rate = \"1KiB\"", `:2: uplink.max_rate: 1KiB is too little`},
		{"bad policy", "[buffer]\nwhen_full = \"panic\"", `:2: buffer.when_full: "panic" is unknown`},
		{"nobody to hold", "[sensors]\nunknown = \"hold\"", `sensors.unknown: "hold" has nobody to hold while sensors.allow_anonymous is true`},
		{"unknown unknown", "[sensors]\nunknown = \"accept\"", `sensors.unknown: "accept" is unknown: want "refuse" or "hold"`},
		{"tls beyond loopback", "[sensors.mqtt]\ntls_listen = \"0.0.0.0:8883\"", `sensors.mqtt.tls_listen: 0.0.0.0:8883 is reachable from the network while sensors.allow_anonymous is true`},
		{"half a certificate", "[sensors.tls]\ncert_file = \"c.pem\"", `sensors.tls.cert_file: and key_file go together`},
		{"no connection", "[sensors.limits]\nconnections_per_address = 0", `sensors.limits.connections_per_address: 0 is out of bounds: want 1 to 100000`},
		{"no time to log in", "[sensors.limits]\nlogin_timeout = \"0s\"", `sensors.limits.login_timeout: 0s is out of bounds: want 100ms to 1m`},
		{"no time to send", "[sensors.limits]\nreceive_timeout = \"1ms\"", `:2: sensors.limits.receive_timeout: 1ms is out of bounds: want 100ms to 10m`},
		{"patience without end", "[sensors.limits]\nwrite_timeout = \"1h\"", `:2: sensors.limits.write_timeout: 1h0m0s is out of bounds`},
		{"idle for a day", "[sensors.limits]\nidle_timeout = \"1d\"", `:2: sensors.limits.idle_timeout: 1d is out of bounds: want 100ms to 1h`},
		{"no subscriber", "[sensors.limits]\nsubscribers = 0", `:2: sensors.limits.subscribers: 0 is out of bounds: want 1 to 10000`},
		{"copies without end", "[sensors.limits]\nsubscribers = 1000\nsubscriber_queue = 1000", `:3: sensors.limits.subscriber_queue: 1000 copies of up to 17KiB for each of 1000 subscribers are 16601MiB: want at most 1024MiB`},
		{"a body that can't arrive", "[sensors.limits]\nbytes_per_second = \"4KiB\"", `sensors.http.max_body: 1MiB can't arrive within sensors.limits.receive_timeout (30s) at sensors.limits.bytes_per_second (4KiB): raise one of these, or lower this to 120KiB`},
		{"header", "[sensors.http]\nmax_header = \"1KiB\"", `sensors.http.max_header: 1KiB is out of bounds`},
		{"http url", "[uplink]\ntoken_file = \"t\"\nurls = [\"ftp://c.example\"]", `:3: uplink.urls: "ftp://c.example" is no address of a cloud`},
		{"password in url", "[uplink]\ntoken_file = \"t\"\nurls = [\"wss://a:b@c.example\"]", `has a user or password in it`},
		{"gateway id", "[gateway]\nid = \"stadium 1\"", `:2: gateway.id: gateway id "stadium 1" has ' '`},
		{"broker without url", "[[sensors.broker]]\ntopics = [\"a/#\"]\n[[sensors.broker]]\nurl = \"x\"\ntopics = [\"a/#\"]", `:4: sensors.broker[1].url: "x" is no broker address`},
		{"broker twice", "[[sensors.broker]]\nurl = \"mqtt://h:1\"\ntopics = [\"a/#\"]\n[[sensors.broker]]\nurl = \"mqtt://h:1\"\ntopics = [\"b/#\"]", `sensors.broker[1].client_id: sensors.broker[0] has the same url`},
		{"broker unknown key", "[[sensors.broker]]\nurl = \"mqtt://h:1\"\ntopic = [\"a/#\"]", `:3: sensors.broker[0].topic: unknown key (did you mean "topics"?)`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := touchline.LoadConfig(write(t, tc.toml), nil, map[string]string{"gateway.id": "g1"})
			if tc.name == "gateway id" {
				_, _, err = touchline.LoadConfig(write(t, tc.toml), nil, nil)
			}
			var all *config.Error
			if !errors.As(err, &all) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("have %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestLoadConfig_ReportsAllAtOnce(t *testing.T) {
	file := write(t, "[buffer]\nmax_bytes = \"x\"\nwhat = 1\n[log]\nlevel = 3\n")
	_, _, err := touchline.LoadConfig(file, []string{"TOUCHLINE_BUFFER_MAX_AGE=soon"}, nil)
	var all *config.Error
	if !errors.As(err, &all) || len(all.Problems) != 4 {
		t.Fatalf("want 4 problems, have %v", err)
	}
}

func TestLoadConfig_InsecureAllowsTheNetwork(t *testing.T) {
	file := write(t, "[sensors]\ninsecure = true\n[sensors.mqtt]\nlisten = \"0.0.0.0:1883\"\n")
	if _, _, err := touchline.LoadConfig(file, nil, map[string]string{"gateway.id": "g1"}); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "touchline.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
