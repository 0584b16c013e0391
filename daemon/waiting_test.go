package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"touchline"
)

// TestWaiting_IsWhatNobodyElseHas: what a purge would delete for good is also
// in databases that were set aside.
func TestWaiting_IsWhatNobodyElseHas(t *testing.T) {
	salvaged := `{"state": "salvaged"}`
	for name, test := range map[string]struct {
		files       map[string]string
		aside, left []string
	}{
		"nothing":           {},
		"salvaged":          {files: map[string]string{"buffer.db.damaged-20261122T120000Z": "", "buffer.db.damaged-20261122T120000Z.json": salvaged}},
		"taken":             {files: map[string]string{"buffer.db.taken-20261122T120000Z": "", "buffer.db.taken-20261122T120000Z.json": salvaged}},
		"another program's": {files: map[string]string{"buffer.db.foreign-20261122T120000Z": ""}},
		"a damaged one, of which a part had no room": {
			files: map[string]string{"buffer.db.damaged-20261122T120000Z": "", "buffer.db.damaged-20261122T120000Z.json": `{"state": "partly salvaged"}`},
			left:  []string{"buffer.db.damaged-20261122T120000Z"},
		},
		"newer ones, two of one second of a clock that begins anew with each boot": {
			files: map[string]string{
				"buffer.db.newer-9999-20261122T120000Z": "", "buffer.db.newer-9999-20261122T120000Z-wal": "", "buffer.db.newer-9999-20261122T120000Z.json": "{}",
				"buffer.db.newer-9999-20261122T120000Z-2": "",
			},
			aside: []string{"buffer.db.newer-9999-20261122T120000Z", "buffer.db.newer-9999-20261122T120000Z-2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			c, _, err := touchline.LoadConfig("", nil, map[string]string{"gateway.data": dir})
			if err != nil {
				t.Fatal(err)
			}
			f, err := OpenFolder(c)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w, err := f.Waiting(t.Context())
			if err != nil || !slices.Equal(w.Aside, test.aside) || !slices.Equal(w.Left, test.left) || w.Nothing() != (len(test.aside)+len(test.left) == 0) {
				t.Errorf("%+v, %v: want %q and %q", w, err, test.aside, test.left)
			}
		})
	}
}
