package config_test

import (
	"slices"
	"testing"

	"touchline/config"
)

func TestChanged_NamesWhatDiffers(t *testing.T) {
	type table struct {
		Name string `toml:"name"`
	}
	type settings struct {
		Size config.Size     `toml:"size"`
		Wait config.Duration `toml:"wait"`
		Deep struct {
			List []string `toml:"list"`
			Same int      `toml:"same"`
		} `toml:"deep"`
		Tables []table `toml:"tables"`
	}
	var a, b settings
	b.Deep.List, b.Tables = []string{}, []table{} // none is none
	if keys := config.Changed(a, b); len(keys) > 0 {
		t.Errorf("equal settings differ in %v", keys)
	}
	b.Wait, b.Deep.List, b.Tables = 1, []string{"x"}, []table{{"y"}}
	if keys, want := config.Changed(a, b), []string{"wait", "deep.list", "tables"}; !slices.Equal(keys, want) {
		t.Errorf("have %v, want %v", keys, want)
	}
}
