package config_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"touchline/config"
)

type settings struct {
	Name  string          `toml:"name"`
	Depth config.Size     `toml:"depth"`
	Wait  config.Duration `toml:"wait"`
	Share float64         `toml:"share"`
	Count int             `toml:"count"`
	Table struct {
		On   bool     `toml:"on"`
		List []string `toml:"list"`
	} `toml:"table"`
	Each []struct {
		URL string `toml:"url"`
	} `toml:"each"`
}

const defaults = `
name = "default"
depth = "1KiB"
wait = "1s"
share = 0.5
count = 3
[table]
on = false
list = ["a"]
`

func load(t *testing.T, file string, environ []string, flags map[string]string) (settings, []string, error) {
	t.Helper()
	var s settings
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "f.toml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unused, err := config.Load(&s, config.Sources{
		Defaults: []byte(defaults), File: path, EnvPrefix: "TL", Environ: environ, Flags: flags,
	})
	return s, unused, err
}

func TestLoad_FlagBeforeEnvironmentBeforeFileBeforeDefault(t *testing.T) {
	file := "name = \"file\"\ndepth = \"2KiB\"\nwait = \"2s\"\n"
	environ := []string{"TL_NAME=env", "TL_DEPTH=3KiB", "TL_TABLE_LIST=x, y", "PATH=/bin"}
	s, unused, err := load(t, file, environ, map[string]string{"name": "flag"})
	if err != nil || len(unused) > 0 {
		t.Fatal(err, unused)
	}
	if s.Name != "flag" || s.Depth != 3<<10 || s.Wait != config.Duration(2*time.Second) || s.Count != 3 || s.Share != 0.5 {
		t.Errorf("have %+v", s)
	}
	if !slices.Equal(s.Table.List, []string{"x", "y"}) {
		t.Errorf("list %q", s.Table.List)
	}
}

func TestLoad_AListReplacesTheListBelow(t *testing.T) {
	s, _, err := load(t, "table.list = []\n[[each]]\nurl = \"1\"\n[[each]]\nurl = \"2\"\n", nil, nil)
	if err != nil || len(s.Table.List) != 0 || len(s.Each) != 2 || s.Each[1].URL != "2" {
		t.Errorf("have %+v, %v", s, err)
	}
}

func TestLoad_NamesUnusedVariables(t *testing.T) {
	_, unused, err := load(t, "", []string{"TL_NMAE=x"}, nil)
	if err != nil || !slices.Equal(unused, []string{"TL_NMAE"}) {
		t.Errorf("have %v, %v", unused, err)
	}
}

func TestLoad_PlacesProblems(t *testing.T) {
	for _, tc := range []struct {
		file string
		line int
		key  string
	}{
		{"\n\nnope = 1", 3, "nope"},
		{"table = { on = true,\n lost = 2 }", 2, "table.lost"},
		{"table = 3", 1, "table"},
		{"[table]\nlist = \"a\"", 2, "table.list"},
		{"[table]\nlist = [\n1]", 2, "table.list[0]"},
		{"[[each]]\n[[each]]\nurl = 1.5", 3, "each[1].url"},
		{"table.on = 1", 1, "table.on"},
		{"share = nan", 1, "share"},
		{"name = \"a\"\nname = \"b\"", 2, ""},
	} {
		_, _, err := load(t, tc.file, nil, nil)
		var all *config.Error
		if !errors.As(err, &all) || len(all.Problems) != 1 {
			t.Errorf("%q: have %v, want one problem", tc.file, err)
			continue
		}
		p := all.Problems[0]
		// The decoder names no line for some syntax errors inside lists.
		if p.Key != tc.key || (p.Line != tc.line && p.Key != "table.list[0]") {
			t.Errorf("%q: have %s, want line %d key %s", tc.file, p, tc.line, tc.key)
		}
	}
}

func TestUnits_RoundTrip(t *testing.T) {
	for _, s := range []string{"0s", "250ms", "1h30m0s", "7d"} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(s)); err != nil || d.String() != s {
			t.Errorf("%q became %q, %v", s, d, err)
		}
	}
	for _, s := range []string{"0B", "1000B", "64KiB", "10GiB", "3TiB"} {
		var z config.Size
		if err := z.UnmarshalText([]byte(s)); err != nil || z.String() != s {
			t.Errorf("%q became %q, %v", s, z, err)
		}
	}
	for _, s := range []string{"", "-1s", "1", "x", "1.5d", "99999d"} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("duration %q passed as %s", s, d)
		}
	}
	for _, s := range []string{"", "-1", "1.5GiB", "KiB", "9223372036854775807GiB"} {
		var z config.Size
		if err := z.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("size %q passed as %s", s, z)
		}
	}
}

// An int is smaller than the largest size on boards of 32 bits.
func TestSize_IsAnIntThatFits(t *testing.T) {
	for _, size := range []config.Size{0, 8 << 10, math.MaxInt32, 4 << 30, 1 << 40} {
		if got := size.Int(); int64(got) != min(int64(size), math.MaxInt) {
			t.Errorf("%s becomes %d", size, got)
		}
	}
}
