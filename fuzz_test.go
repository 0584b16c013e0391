package touchline_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"touchline"
	"touchline/config"
)

// FuzzLoadConfig reads any file as the gateway's: settings that are within
// their bounds, or problems.
func FuzzLoadConfig(f *testing.F) {
	f.Add(touchline.Defaults)
	for _, text := range []string{
		"[uplink]\nurls = [\"wss://h\"]\ntoken_file = \"x\"", "[buffer]\nmax_bytes = \"1B\"", "[[sensors.brokers]]\nurl = \"mqtt://h\"", "[sensors.mqtt]\nlisten = \":0\"",
		"[gateway]\nid = \"\\u0000\"", "[log]\nlevel = 5", "[uplink]\nproxy = \"socks5://h:1\"",
	} {
		f.Add([]byte(text))
	}
	path := filepath.Join(f.TempDir(), "touchline.toml")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, _, err := touchline.LoadConfig(path, nil, nil)
		var bad *config.Error
		if err != nil && !errors.As(err, &bad) && !strings.Contains(err.Error(), "host name") {
			t.Fatalf("%v", err)
		}
		if err == nil && touchline.CheckGateway(c.Gateway.ID) != nil {
			t.Errorf("gateway %q is taken", c.Gateway.ID)
		}
	})
}

// FuzzNames holds what each check of a name promises to those who store and
// print it.
func FuzzNames(f *testing.F) {
	for _, name := range []string{"belt-7", "", "a/b", "\x00", "\u202e", "ä", "\xff", strings.Repeat("x", 300), "_raw", "~x", " x"} {
		f.Add(name, int64(1_700_000_000_000_000_000))
	}
	f.Fuzz(func(t *testing.T, name string, at int64) {
		for _, check := range []func(string) error{touchline.CheckSensor, touchline.CheckMetric, touchline.CheckUnit, touchline.CheckGateway} {
			err := check(name)
			if err == nil && (!utf8.ValidString(name) || len(name) > touchline.MaxNameBytes || strings.ContainsAny(name, "\x00\n\r\x1b")) {
				t.Errorf("%q is taken", name)
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		}
		_ = touchline.CheckTime(at, time.Unix(1_700_000_000, 0))
		if e, err := touchline.ParseEpoch(name); err == nil && e.String() != strings.ToLower(name) {
			t.Errorf("epoch %q is %s", name, e)
		}
	})
}
