package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"touchline/config"
)

// FuzzLoad reads any file and any value of a variable: settings, or problems
// that name their place.
func FuzzLoad(f *testing.F) {
	for _, text := range []string{
		defaults, "", "name = 1", "depth = \"1ZiB\"", "[table]\nlist = [1, \"a\"]", "[[each]]\nurl = \"x\"\n[[each]]\nurl = 2", "each = 1", "table = []",
		"nam = 1", "a.b.c = 1", "\x00", "name = \"\xff\"", "wait = 1979-05-27", "share = inf", "count = 9223372036854775808", "[table]\n[table]", "\"\" = 1", "'a.b' = 1",
	} {
		f.Add([]byte(text), "5")
	}
	path := filepath.Join(f.TempDir(), "f.toml")
	f.Fuzz(func(t *testing.T, text []byte, value string) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		var s settings
		environ := []string{"X_COUNT=" + value, "X_DEPTH=" + value, "X_TABLE_LIST=" + value, "X_NO=" + value}
		unused, err := config.Load(&s, config.Sources{Defaults: []byte(defaults), File: path, EnvPrefix: "X", Environ: environ})
		if len(unused) != 1 {
			t.Errorf("unused are %q", unused)
		}
		var bad *config.Error
		if err != nil && (!errors.As(err, &bad) || len(bad.Problems) == 0) {
			t.Fatalf("%v", err)
		}
		if bad == nil {
			return
		}
		for _, p := range bad.Problems {
			if p.Text == "" || p.Source == "" || p.Source == path && p.Line < 1 || p.Line > 1+strings.Count(string(text), "\n") {
				t.Errorf("problem %+v", p)
			}
		}
	})
}

// FuzzUnits reads durations and sizes: what is taken is written in a form that
// is read again as the same.
func FuzzUnits(f *testing.F) {
	for _, text := range []string{"0", "1h30m", "7d", "65535d", "-1s", "64KiB", "500 MB", "1TiB", "9223372036854775807B", "1.5h", "9223372036s", "0d", "d", "B"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var d, dAgain config.Duration
		if d.UnmarshalText([]byte(text)) == nil {
			if err := dAgain.UnmarshalText([]byte(d.String())); err != nil || d < 0 || d != dAgain {
				t.Errorf("%q is %d, written as %s: %d, %v", text, d, d, dAgain, err)
			}
		}
		var z, zAgain config.Size
		if z.UnmarshalText([]byte(text)) == nil {
			if err := zAgain.UnmarshalText([]byte(z.String())); err != nil || z < 0 || z != zAgain {
				t.Errorf("%q is %d, written as %s: %d, %v", text, z, z, zAgain, err)
			}
		}
	})
}
