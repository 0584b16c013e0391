package touchline_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mayImport says which packages of this module each package may import,
// directly. sensors, buffer and uplink never know one another: daemon is the
// only package that knows them all.
var mayImport = map[string][]string{
	"touchline":                     {"touchline/config", "touchline/identity", "touchline/internal/folder"},
	"touchline/config":              {},
	"touchline/credential":          {"touchline", "touchline/internal/filelock", "touchline/internal/folder"},
	"touchline/wire":                {"touchline"},
	"touchline/payload":             {"touchline"},
	"touchline/clock":               {"touchline", "touchline/internal/folder"},
	"touchline/buffer":              {"touchline", "touchline/buffer/seen", "touchline/wire", "touchline/internal/filelock", "touchline/internal/folder"},
	"touchline/buffer/seen":         {"touchline"},
	"touchline/identity":            {"touchline/internal/filelock", "touchline/internal/folder"},
	"touchline/archive":             {"touchline", "touchline/identity", "touchline/internal/folder", "touchline/wire"},
	"touchline/sensors":             {"touchline", "touchline/credential", "touchline/internal/here", "touchline/payload"},
	"touchline/uplink":              {"touchline", "touchline/wire"},
	"touchline/cloud":               {"touchline", "touchline/internal/here", "touchline/config", "touchline/wire", "touchline/payload", "touchline/identity", "touchline/archive", "touchline/credential", "touchline/cloud/tracing"},
	"touchline/cloud/sqlite":        {"touchline/credential", "touchline", "touchline/wire", "touchline/cloud", "touchline/cloud/merge", "touchline/cloud/rollup", "touchline/identity", "touchline/internal/folder"},
	"touchline/cloud/jetstream":     {"touchline", "touchline/wire", "touchline/cloud", "touchline/cloud/tracing"},
	"touchline/cloud/postgres":      {"touchline", "touchline/wire", "touchline/cloud", "touchline/cloud/merge", "touchline/credential", "touchline/identity", "touchline/cloud/rollup"},
	"touchline/cloud/export":        {"touchline", "touchline/cloud", "touchline/payload", "touchline/internal/folder"},
	"touchline/cloud/tracing":       {"touchline"},
	"touchline/cloud/merge":         {"touchline", "touchline/wire", "touchline/cloud"},
	"touchline/cloud/rollup":        {"touchline", "touchline/cloud"},
	"touchline/cloud/recordertest":  {"touchline/credential", "touchline", "touchline/wire", "touchline/cloud", "touchline/cloud/rollup", "touchline/identity"},
	"touchline/systemd":             {},
	"touchline/installer":           {"touchline/systemd", "touchline/internal/folder"},
	"touchline/daemon":              {"touchline", "touchline/config", "touchline/systemd", "touchline/credential", "touchline/wire", "touchline/clock", "touchline/sensors", "touchline/buffer", "touchline/uplink", "touchline/identity", "touchline/archive", "touchline/relay", "touchline/internal/folder"},
	"touchline/relay":               {"touchline", "touchline/wire", "touchline/archive", "touchline/internal/folder"},
	"touchline/simulator":           {"touchline", "touchline/payload"},
	"touchline/cmd/touchline":       {"touchline", "touchline/credential", "touchline/preflight", "touchline/config", "touchline/archive", "touchline/daemon", "touchline/installer", "touchline/simulator", "touchline/systemd"},
	"touchline/cmd/touchline-cloud": {"touchline/credential", "touchline", "touchline/config", "touchline/identity", "touchline/cloud", "touchline/cloud/export", "touchline/cloud/jetstream", "touchline/cloud/postgres", "touchline/cloud/sqlite", "touchline/cloud/rollup", "touchline/wire", "touchline/cloud/tracing", "touchline/systemd"},
	"touchline/cmd/demo":            {"touchline", "touchline/daemon", "touchline/cloud", "touchline/cloud/sqlite", "touchline/simulator", "touchline/cloud/rollup"},
	"touchline/bench":               {"touchline", "touchline/wire", "touchline/cloud/sqlite", "touchline/cloud/postgres", "touchline/internal/pgtest"},
	"touchline/e2e":                 {},
	"touchline/preflight":           {"touchline/internal/folder", "touchline/uplink", "touchline/wire"},
	"touchline/internal/filelock":   {},
	"touchline/internal/folder":     {},
	"touchline/internal/here":       {},
	"touchline/internal/faultvfs":   {},
	"touchline/internal/fuzzall":    {},
	"touchline/internal/manual":     {},
	"touchline/internal/netlab":     {},
	"touchline/internal/otlptest":   {},
	"touchline/internal/pgtest":     {},
	"touchline/internal/testreport": {},
	"touchline/internal/uml":        {},
}

// onlyIn says which libraries a single package wraps.
var onlyIn = map[string][]string{
	"github.com/golang-jwt/jwt/v5":                {"touchline/credential"},
	"github.com/jackc/pgx/v5":                     {"touchline/cloud/postgres", "touchline/internal/pgtest"},
	"github.com/kardianos/service":                {"touchline/installer"},
	"github.com/mattn/go-sqlite3":                 {"touchline/buffer", "touchline/cloud/sqlite", "touchline/internal/faultvfs"},
	"github.com/mochi-mqtt/server/v2":             {"touchline/sensors"},
	"github.com/nats-io/nats.go":                  {"touchline/cloud/jetstream"},
	"github.com/nats-io/nats-server/v2/server":    {"touchline/cloud/jetstream"},
	"github.com/parquet-go/parquet-go":            {"touchline/cloud/export"},
	"go.opentelemetry.io/otel":                    {"touchline/cloud/tracing"},
	"go.opentelemetry.io/otel/sdk/trace":          {"touchline/cloud/tracing"},
	"go.opentelemetry.io/otel/trace":              {"touchline/cloud/tracing"},
	"github.com/pelletier/go-toml/v2":             {"touchline/config"},
	"github.com/klauspost/compress/zstd":          {"touchline/wire"},
	"github.com/coreos/go-systemd/v22/activation": {"touchline/systemd"},
	"github.com/coreos/go-systemd/v22/daemon":     {"touchline/systemd"},
}

func TestLayout_ImportRule(t *testing.T) {
	list := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		allowed, known := mayImport[p.ImportPath]
		if !known {
			t.Errorf("%s is new: say in mayImport what it may import", p.ImportPath)
		}
		for _, imported := range p.Imports {
			if wrappers, ok := onlyIn[imported]; ok && !slices.Contains(wrappers, p.ImportPath) {
				t.Errorf("%s imports %s: only %v may", p.ImportPath, imported, wrappers)
			}
			if (imported == "touchline" || strings.HasPrefix(imported, "touchline/")) && !slices.Contains(allowed, imported) {
				t.Errorf("%s imports %s: it may import %v", p.ImportPath, imported, allowed)
			}
		}
	}
	if seen < len(mayImport)/2 {
		t.Errorf("go list named %d packages only", seen)
	}
}

// What a fuzz target met once is tried by each make test.
func TestLayout_EveryFuzzTargetHasSeeds(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)
	targets := 0
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		for _, found := range declared.FindAllSubmatch(text, -1) {
			targets++
			seeds, err := os.ReadDir(filepath.Join(filepath.Dir(name), "testdata", "fuzz", string(found[1])))
			if err != nil || len(seeds) == 0 {
				t.Errorf("%s of %s has no seeds in testdata/fuzz: run make fuzz, and keep what it finds or write one", found[1], name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if targets < 30 {
		t.Errorf("%d targets were found", targets)
	}
}
