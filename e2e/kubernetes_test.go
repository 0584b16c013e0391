package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"touchline/cloud"
)

// kubernetes is where the manifests are.
var kubernetes = filepath.Join("..", "deploy", "kubernetes")

// settingsOf returns what a manifest has under cloud.toml.
func settingsOf(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(kubernetes, file))
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "\n  cloud.toml: |\n")
	if !found {
		t.Fatalf("%s has no cloud.toml", file)
	}
	var out strings.Builder
	for line := range strings.Lines(block) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "    ") {
			break
		}
		out.WriteString(strings.TrimPrefix(line, "    "))
	}
	return out.String()
}

// The settings in the manifests are taken by the program, and a pod is given the
// time that they let a node drain.
func TestKubernetes_SettingsAreTheProgramsOwn(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(kubernetes, "base", "nodes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`\n      terminationGracePeriodSeconds: (\d+)\n`).FindSubmatch(text)
	if match == nil {
		t.Fatal("nodes.yaml says nothing of terminationGracePeriodSeconds")
	}
	grace, err := time.ParseDuration(string(match[1]) + "s")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"base/config.yaml", "queue/config.yaml"} {
		settings := filepath.Join(t.TempDir(), "cloud.toml")
		writeFile(t, settings, settingsOf(t, file))
		out, stderr, status := run(t, "touchline-cloud", "check", "--config", settings)
		if status != 0 || !strings.Contains(out, "settings are fine") || !strings.Contains(out, "0.0.0.0:8090") {
			t.Errorf("%s: touchline-cloud check: status %d\n%s%s", file, status, out, stderr)
		}
		c, _, err := cloud.LoadConfig(settings, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		o := c.Options()
		if drains := o.DrainDelay + o.Drain + 20*time.Second; drains >= grace || o.DrainDelay == 0 || o.Drain == 0 {
			t.Errorf("%s: a node drains in %s, and its pod is killed after %s", file, drains, grace)
		}
		if o.ShedAbove == 0 {
			t.Errorf("%s: nodes that are added get no share", file)
		}
		if queue := strings.HasPrefix(file, "queue/"); queue != (c.Queue.NATS != "") || queue && (c.Queue.Record || c.Queue.Replicas != 3) {
			t.Errorf("%s: queue %+v", file, c.Queue)
		}
	}
}

// The manifests are built and validated against what Kubernetes publishes, and so
// are some that have a fault, since a check that finds nothing says nothing.
func TestKubernetes_ManifestsAreAsPublished(t *testing.T) {
	if !long() {
		t.Skip("TOUCHLINE_TEST_LONG is not set: this downloads 18 MB and compiles Kubernetes' types for a minute; the settings in the manifests are tested by TestKubernetes_Settings…")
	}
	program := filepath.Join(t.TempDir(), "manifests")
	build := exec.Command("go", "build", "-C", filepath.Join("..", ".ci", "manifests"), "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	check := func(root string) (string, error) {
		out, err := exec.Command(program, filepath.Join(root, "base"), filepath.Join(root, "queue")).CombinedOutput()
		return string(out), err
	}
	out, err := check(kubernetes)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("MEASURED %s", out)

	for name, fault := range map[string]struct{ file, old, new, says string }{
		"a field that is none":       {"base/nodes.yaml", "minReadySeconds:", "minReadySecond:", "minReadySecond"},
		"a field in another place":   {"base/nodes.yaml", "      terminationGracePeriodSeconds: 120", "      replicas: 3", "replicas"},
		"a text for a number":        {"base/autoscaler.yaml", "maxReplicas: 10", "maxReplicas: ten", "maxReplicas"},
		"a field that must be":       {"base/autoscaler.yaml", "  maxReplicas: 10\n", "", "maxReplicas"},
		"a selector of nothing":      {"base/service.yaml", "  selector:\n    app.kubernetes.io/name: touchline-cloud\n", "  selector:\n    app.kubernetes.io/name: touchline\n", "selects the pods of 0"},
		"a port that is not there":   {"base/service.yaml", "port: 80\n      targetPort: http\n", "port: 80\n      targetPort: web\n", "port web"},
		"a probe of no port":         {"base/nodes.yaml", "path: /readyz\n              port: http", "path: /readyz\n              port: web", "port web"},
		"a volume that is not there": {"queue/nodes.yaml", "            - name: queue\n", "            - name: nats\n", "nats"},
		"a settings file of no map":  {"base/nodes.yaml", "subPath: cloud.toml", "subPath: clouds.toml", "clouds.toml"},
		"a scaler of nothing":        {"base/autoscaler.yaml", "    name: touchline-cloud\n  #", "    name: touchline\n  #", "is not there"},
		"a pod that is root":         {"base/nodes.yaml", "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.CopyFS(root, os.DirFS(kubernetes)); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(root, fault.file)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Count(string(text), fault.old) == 0 {
				t.Fatalf("%s does not have %q", fault.file, fault.old)
			}
			writeFile(t, file, strings.Replace(string(text), fault.old, fault.new, 1))
			if out, err := check(root); err == nil || !strings.Contains(out, fault.says) {
				t.Error(fmt.Sprintf("%v, and does not say %q:\n", err, fault.says), out)
			}
		})
	}
}
