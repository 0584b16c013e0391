package cloud_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline/cloud"
	"touchline/config"
)

func TestDefaults_AreCompleteAndMakeAServer(t *testing.T) {
	c, unused, err := cloud.LoadConfig("", nil, nil)
	if err != nil || len(unused) > 0 {
		t.Fatal(err, unused)
	}
	for _, key := range config.Keys(c) {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if !strings.Contains("\n"+string(cloud.Defaults), "\n"+name+" = ") {
			t.Errorf("cloud.toml does not set %s", key)
		}
	}
	if c.Listen != "127.0.0.1:8090" {
		t.Errorf("listen is %s", c.Listen)
	}
	if _, err := cloud.New(c.Options(), newMemory(), nil); err != nil {
		t.Errorf("the defaults make no server: %v", err)
	}
}

// TestLoadConfig_ReportsBadSettings holds that whatever New would refuse is
// refused with its key and line before.
func TestLoadConfig_ReportsBadSettings(t *testing.T) {
	for _, tc := range []struct{ toml, want string }{
		{"listen = \"8090\"", ":1: listen: \"8090\" is no address to listen on"},
		{"data = \"\"", ":1: data: is empty"},
		{"store = \"mysql://host/db\"", ":1: store: is no address of a PostgreSQL database: want postgres://USER@HOST/DATABASE"},
		{"store = \"postgres://u:hunter2@host/db\"", ":1: store: has a password in it"},
		{"store = \"postgres://host/db?password=hunter2\"", ":1: store: has a password in it"},
		{"store = \"postgres://host:hunter2/db\"", ":1: store: is no address"},
		{"store_keep_days = 3", ":1: store_keep_days: is for PostgreSQL, and store is empty"},
		{"store_unsynced = true", ":1: store_unsynced: is for PostgreSQL"},
		{"store_password_file = \"f\"", ":1: store_password_file: is for PostgreSQL"},
		{"store = \"postgres://host/db\"\nstore_keep_days = -1", ":2: store_keep_days: -1 is out of bounds: want 0 to 36500"},
		{"max_gateways = 0", ":1: max_gateways: 0 is out of bounds: want 1 to 100000"},
		{"\nheartbeat = \"1ms\"", ":2: heartbeat: 1ms is out of bounds: want 1s to 10m0s"},
		{"[window]\nbytes = \"1KiB\"", ":2: window.bytes: 1KiB is out of bounds: want 192KiB to 256MiB"},
		{"[window]\nblocks = 5000", ":2: window.blocks: 5000 is out of bounds: want 1 to 1024"},
		{"[window]\nbytes = \"192KiB\"\n[queue]\nbytes = \"512KiB\"", ":4: queue.bytes: 512KiB is out of bounds: want 1MiB to 4GiB"},
		{"[queue]\nnats = \"http://a\"", ":2: queue.nats: is neither empty, \"embedded\" nor a list of addresses"},
		{"[queue]\nnats = \"nats://u:hunter2@a\"", ":2: queue.nats: has a user or a password in it"},
		{"[queue]\nnats = \"nats://a,tls://b\"", "queue.nats_monitors: is empty: want the monitoring addresses"},
		{"[queue]\nnats = \"nats://a\"\nnats_monitors = [\"a:8222\"]", ":3: queue.nats_monitors: has an entry that is no address"},
		{"[queue]\nnats_ca = \"ca.pem\"", "queue.nats: names no cluster"},
		{"[queue]\nnats = \"embedded\"\nreplicas = 3", ":3: queue.replicas: is 3: only a cluster"},
		{"[queue]\nnats = \"nats://a\"\nnats_confirmed = true\nreplicas = 2", ":4: queue.replicas: is 2: want 1, 3 or 5"},
		{"[queue]\nnats = \"embedded\"\nrecord = false", ":3: queue.record: is false: nobody else can record"},
		{"[queue]\nshards = 0", ":2: queue.shards: is 0: want 1 to 64"},
		{"[queue]\nmax_bytes = \"1MiB\"", ":2: queue.max_bytes: is 1MiB: want at least 16MiB"},
		{"[queue]\nmax_age = \"1m\"", ":2: queue.max_age: is 1m0s: want at least 10m"},
		{"[queue]\naccess_for = \"200h\"", ":2: queue.access_for: 200h0m0s is out of bounds"},
		{"[queue]\nrecord_listen = \"8091\"", ":2: queue.record_listen: \"8091\" is no address to listen on"},
		{"[tls]\nclient_ca = \"ca.pem\"", ":2: tls.client_ca: needs tls.cert and tls.key, or tls.client_cert_header"},
		{"[tls]\nclient_cert_header = \"X-SSL-Client-Cert\"", ":2: tls.client_cert_header: needs tls.client_ca, by which the certificates are checked, and trusted_proxies"},
		{"[tls]\nclient_cert_header = \"X SSL\"", ":2: tls.client_cert_header: \"X SSL\" is no name of a header"},
		{"[tls]\nclient_cert_header = \"authorization\"", ":2: tls.client_cert_header: \"authorization\" means something else"},
		{"[limits]\nhello_timeout = \"0s\"", ":2: limits.hello_timeout: 0s is out of bounds: want 100ms to 10m0s"},
		{"[limits]\nanswer_timeout = \"1h\"", ":2: limits.answer_timeout: 1h0m0s is out of bounds: want 100ms to 10m0s"},
		{"[limits]\nmax_header = \"1KiB\"", ":2: limits.max_header: 1KiB is out of bounds: want 4KiB to 1MiB"},
		{"[limits]\nspare_connections = 0", ":2: limits.spare_connections: 0 is out of bounds: want 1 to 100000"},
		{"[balancer]\nagent_listen = \"9777\"", ":2: balancer.agent_listen: \"9777\" is no address to listen on"},
		{"[balancer]\ndrain = \"48h\"", ":2: balancer.drain: 48h0m0s is out of bounds: want 0s to 24h0m0s"},
		{"[balancer]\nmax_age = \"1s\"", ":2: balancer.max_age: 1s is out of bounds: want 1m0s to 8760h0m0s"},
		{"[live]\nbus = \"redis://a\"", ":2: live.bus: is neither empty nor a list of addresses"},
		{"[live]\nbus = \"nats://u:hunter2@a\"", ":2: live.bus: has a user or a password in it"},
		{"[live]\nbus_ca = \"ca.pem\"", "live.bus: is empty"},
		{"[live]\nviewers = -1", ":2: live.viewers: -1 is out of bounds: want 0 to 10000"},
		{"[live]\nseries = 0", ":2: live.series: 0 is out of bounds: want 1 to 1000000"},
		{"[live]\nlookback = \"2h\"", ":2: live.lookback: 2h0m0s is out of bounds: want 0s to 1h0m0s"},
		{"[log]\nlevel = \"loud\"", ":2: log.level: \"loud\" is unknown"},
	} {
		file := filepath.Join(t.TempDir(), "cloud.toml")
		if err := os.WriteFile(file, []byte(tc.toml), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := cloud.LoadConfig(file, nil, nil)
		var all *config.Error
		if !errors.As(err, &all) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: have %v, want %s", tc.toml, err, tc.want)
		}
		if strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%q: the error shows the password: %v", tc.toml, err)
		}
	}
}
