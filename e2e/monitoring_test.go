package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// needProgram returns the path of a program that .ci/setup installs.
func needProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not here: .ci/setup test installs it", name)
	}
	return path
}

// promtool runs Prometheus's own judge on input, in a folder, and returns what
// it says and whether it agrees.
func promtool(t *testing.T, dir, input string, args ...string) (said string, ok bool) {
	t.Helper()
	cmd := exec.Command(needProgram(t, "promtool"), args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// repository is the folder of the files that are handed out with the programs.
const repository = ".."

// A metric is what /metrics says of one.
type metric struct{ kind, help string }

// scraped reads the metrics of a page in Prometheus's text format.
func scraped(page string) map[string]metric {
	list := map[string]metric{}
	for line := range strings.Lines(page) {
		part := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(part) != 4 || part[0] != "#" {
			continue
		}
		m := list[part[2]]
		switch part[1] {
		case "HELP":
			m.help = part[3]
		case "TYPE":
			m.kind = part[3]
		}
		list[part[2]] = m
	}
	return list
}

// A watched is a gateway and its node, which have done something, and a node that has
// what the first one has not: TLS, and a queue.
type watched struct {
	*site
	pages map[string]string // /metrics by whose
	all   map[string]metric
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{site: newSite(t, ""), pages: map[string]string{}, all: map[string]metric{}}
	w.registerKey()
	w.startCloud()
	w.startGateway()
	w.deposit(0, 300, false)
	w.drained()
	w.gateway.terminate() // a session that ended
	w.startGateway()
	w.deposit(300, 600, false)
	w.drained()

	port, dir := freePort(t), t.TempDir()
	certificate, key := filepath.Join(dir, "certificate.pem"), filepath.Join(dir, "key.pem")
	certificateText, keyText := selfSigned(t, "node.test")
	writeFile(t, certificate, certificateText)
	writeFile(t, key, keyText)
	writeFile(t, filepath.Join(dir, "cloud.toml"), fmt.Sprintf("listen = \"127.0.0.1:%d\"\ndata = %q\n[tls]\ncert = %q\nkey = %q\n[queue]\nnats = \"embedded\"\n",
		port, filepath.Join(dir, "data"), certificate, key))
	other := start(t, "touchline-cloud", "run", "--config", filepath.Join(dir, "cloud.toml"))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	waitFor(t, "the node with TLS and a queue to answer", func() bool {
		if !other.running() {
			t.Fatalf("it ended with status %d", other.exit())
		}
		resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/metrics", port))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		w.pages["the node with TLS and a queue"] = string(page)
		return err == nil && resp.StatusCode == http.StatusOK
	})
	w.pages["the node"] = string(w.get(w.cloudPort, "/metrics"))
	w.pages["the gateway"] = string(w.get(w.http, "/metrics"))
	for _, page := range w.pages {
		maps.Copy(w.all, scraped(page))
	}
	return w
}

// knownLabels are those that metrics of this product may have. Each has few
// values, whatever the number of gateways, sensors and sessions.
var knownLabels = []string{"by", "cause", "code", "goversion", "kind", "le", "quantile", "reason", "result", "state", "transport", "version"}

// TestMonitoring_SaysWhatIs holds what is handed out for monitoring, the list
// of metrics, the dashboards and the alerts, against what real programs say.
func TestMonitoring_SaysWhatIs(t *testing.T) {
	t.Parallel()
	needProgram(t, "promtool")
	w := newWatched(t)
	t.Run("metrics are named by the rules", w.namedByTheRules)
	t.Run("docs list the metrics", w.listed)
	t.Run("dashboards are whole", w.dashboards)
	t.Run("Prometheus answers every question", w.answered)
}

func (w *watched) namedByTheRules(t *testing.T) {
	label := regexp.MustCompile(`[{,]([a-zA-Z_]+)="`)
	for whose, page := range w.pages {
		if said, ok := promtool(t, t.TempDir(), page, "check", "metrics"); !ok || said != "" {
			t.Errorf("promtool check metrics of %s: %s", whose, said)
		}
		series := 0
		for line := range strings.Lines(page) {
			if !strings.HasPrefix(line, "touchline_") {
				continue
			}
			series++
			for _, found := range label.FindAllStringSubmatch(line, -1) {
				if !slices.Contains(knownLabels, found[1]) {
					t.Errorf("%s: %s has the label %s: say in knownLabels that it has few values, or leave it out", whose, strings.Fields(line)[0], found[1])
				}
			}
		}
		if strings.Contains(page, "venue-1") {
			t.Errorf("the gateway's id is on /metrics of %s", whose)
		}
		t.Logf("MEASURED metrics of %s: %d families, %d series of touchline", whose, len(scraped(page)), series)
	}
}

// listed wants a line of docs/monitoring.md for each metric, and none for others.
func (w *watched) listed(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "docs", "monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(touchline_[a-z_]+)` .*$").FindAllStringSubmatch(string(text), -1) {
		if said[row[1]] != "" {
			t.Errorf("docs/monitoring.md lists %s twice", row[1])
		}
		said[row[1]] = row[0]
	}
	for _, name := range slices.Sorted(maps.Keys(w.all)) {
		if !strings.HasPrefix(name, "touchline_") {
			continue
		}
		want := fmt.Sprintf("| `%s` | %s | %s |", name, w.all[name].kind, w.all[name].help)
		if said[name] != want {
			t.Errorf("docs/monitoring.md: want the line\n%s\nit has %q", want, said[name])
		}
		delete(said, name)
	}
	for name := range said {
		t.Errorf("docs/monitoring.md lists %s, which nothing has", name)
	}
}

// A dashboard is what a test needs of Grafana's JSON.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID      int
		Type    string
		Title   string
		GridPos struct{ H, W, X, Y int }
		Targets []struct {
			Expr       string
			Datasource struct{ UID string }
		}
	}
	Templating struct {
		List []struct {
			Name  string
			Query any
		}
	}
}

func readDashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repository, "deploy", "grafana", "*.json"))
	if err != nil || len(files) < 3 {
		t.Fatalf("deploy/grafana has %d dashboards: %v", len(files), err)
	}
	list := map[string]dashboard{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(data, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		list[filepath.Base(file)] = d
	}
	return list
}

// ofMetrics says whether a dashboard asks Prometheus.
func (d *dashboard) ofMetrics() bool {
	return slices.ContainsFunc(d.Templating.List, func(v struct {
		Name  string
		Query any
	}) bool {
		return v.Query == "prometheus"
	})
}

// dashboards wants of each that Grafana can lay it out, and that what it asks for
// is there.
func (w *watched) dashboards(t *testing.T) {
	seen, panels := map[string]string{}, 0
	for file, d := range readDashboards(t) {
		if d.UID == "" || d.Title == "" || seen[d.UID] != "" {
			t.Errorf("%s has the uid %q and the title %q; %q has that uid too", file, d.UID, d.Title, seen[d.UID])
		}
		seen[d.UID] = file
		if !d.ofMetrics() {
			continue
		}
		type cell struct{ x, y int }
		ids, taken := map[int]bool{}, map[cell]string{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.ID == 0 || p.Title == "" {
				t.Errorf("%s: the panel %q has the id %d, which others have too, or no title", file, p.Title, p.ID)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[cell{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: the panel %q lies over %q, or beyond the edge", file, p.Title, other)
					}
					taken[cell{x, y}] = p.Title
				}
			}
			if panels++; p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: the panel %q asks for nothing", file, p.Title)
			}
			for _, target := range p.Targets {
				if target.Datasource.UID != "${datasource}" {
					t.Errorf("%s: the panel %q asks the data source %q: want ${datasource}", file, p.Title, target.Datasource.UID)
				}
				for _, name := range w.foreign(target.Expr) {
					t.Errorf("%s: the panel %q asks for %s, which nothing has", file, p.Title, name)
				}
			}
		}
	}
	for name, expr := range alertRules(t) {
		for _, foreign := range w.foreign(expr) {
			t.Errorf("the alert %s asks for %s, which nothing has", name, foreign)
		}
	}
	if panels < 60 {
		t.Errorf("%d panels were found", panels)
	}
}

// foreign returns the metrics of a question that no program has.
func (w *watched) foreign(expr string) (list []string) {
	for _, name := range regexp.MustCompile(`\b(touchline|process|go)_[a-z_]+`).FindAllString(expr, -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			if m, ok := w.all[strings.TrimSuffix(name, suffix)]; ok && m.kind == "histogram" {
				base = strings.TrimSuffix(name, suffix)
			}
		}
		if _, ok := w.all[base]; !ok {
			list = append(list, name)
		}
	}
	return list
}

// alertRules returns the expressions of deploy/prometheus/alerts.yml by name.
func alertRules(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "deploy", "prometheus", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]string{}
	for _, found := range regexp.MustCompile(`(?s)- alert: (\w+)\n +expr: (.*?)\n +(?:for|labels):`).FindAllStringSubmatch(string(text), -1) {
		rules[found[1]] = found[2]
	}
	if n := strings.Count(string(text), "- alert:"); n != len(rules) || n < 10 {
		t.Fatalf("%d alerts were read of %d", len(rules), n)
	}
	return rules
}

// mayBeEmpty are questions whose answer is nothing where all is well, or where
// the node that is scraped has no queue (docs/monitoring.md is held against one that has).
var mayBeEmpty = regexp.MustCompile(`deriv\(|touchline_cloud_stream_`)

// answered has a Prometheus, with the configuration that is handed out, scrape
// the node and the gateway, and asks it all that dashboards ask.
func (w *watched) answered(t *testing.T) {
	program := needProgram(t, "prometheus")
	dir := t.TempDir()
	folder := filepath.Join(repository, "deploy", "prometheus")
	for _, name := range []string{"prometheus.yml", "alerts.yml"} {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, name), string(text))
	}
	settings := filepath.Join(dir, "prometheus.yml")
	editFile(t, settings, `"node-1:8090", "node-2:8090", "node-3:8090"`, fmt.Sprintf(`"127.0.0.1:%d"`, w.cloudPort))
	editFile(t, settings, "127.0.0.1:8080", fmt.Sprintf("127.0.0.1:%d", w.http))
	editFile(t, settings, "scrape_interval: 15s", "scrape_interval: 1s\n  scrape_timeout: 1s")
	editFile(t, settings, "evaluation_interval: 15s", "evaluation_interval: 1s")
	key, stderr, status := run(t, "touchline-cloud", "key", "add", "prometheus", "--scope", "read:status", "--config", w.cloudConfig)
	if status != 0 {
		t.Fatal(stderr)
	}
	writeFile(t, filepath.Join(dir, "cloud.key"), strings.TrimSpace(key))
	if said, ok := promtool(t, dir, "", "check", "config", "prometheus.yml"); !ok {
		t.Fatal(said)
	}
	port := freePort(t)
	server := start(t, program, "--config.file="+settings, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--log.level=warn",
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port))
	query := func(expr string) (results int, problem string) {
		var answer struct {
			Status, Error string
			Data          struct{ Result []any }
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/api/v1/query?query=%s", port, url.QueryEscape(expr)))
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return 0, err.Error()
		}
		return len(answer.Data.Result), answer.Error
	}
	const rates = "10m" // whatever the scrapes of a busy machine are apart
	waitFor(t, "Prometheus to have scraped both for some times", func() bool {
		if !server.running() {
			t.Fatalf("prometheus ended with status %d", server.exit())
		}
		n, _ := query("count_over_time((up == 1)[" + rates + ":1s]) > 3")
		return n == 2
	})
	variables := strings.NewReplacer("$__rate_interval", rates, `"$instance"`, `".*"`)
	asked := 0
	for file, d := range readDashboards(t) {
		if !d.ofMetrics() {
			continue
		}
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				asked++
				n, problem := query(variables.Replace(target.Expr))
				if problem != "" || n == 0 && !mayBeEmpty.MatchString(target.Expr) {
					t.Errorf("%s: the panel %q asks %s: %d results %s", file, p.Title, target.Expr, n, problem)
				}
			}
		}
	}
	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	waitFor(t, "the alerts to have been looked at", func() bool {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/api/v1/rules", port))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&rules); err != nil {
			return false
		}
		for _, group := range rules.Data.Groups {
			for _, r := range group.Rules {
				if r.Health == "unknown" {
					return false
				}
			}
		}
		return len(rules.Data.Groups) > 1
	})
	for _, group := range rules.Data.Groups {
		for _, r := range group.Rules {
			if asked++; r.Health != "ok" {
				t.Errorf("the alert %s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
	}
	t.Logf("MEASURED monitoring: a Prometheus answered %d questions of dashboards and alerts", asked)
}

// TestMonitoring_AlertsGoOff runs the tests of the alerts, and wants one of each, and
// a place in the docs that says what to do.
func TestMonitoring_AlertsGoOff(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(repository, "deploy", "prometheus")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		if said, ok := promtool(t, folder, "", args...); !ok {
			t.Errorf("promtool %s: %s", strings.Join(args, " "), said)
		}
	}
	tests, err := os.ReadFile(filepath.Join(folder, "alerts_test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile(filepath.Join(repository, "docs", "monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for name := range alertRules(t) {
		if !regexp.MustCompile(`(alertname="` + name + `", alertstate="firing"|alertname: ` + name + `\n)`).Match(tests) {
			t.Errorf("alerts_test.yml does not show that %s goes off", name)
		}
		if !strings.Contains(string(docs), "### "+name+"\n") || !strings.Contains(string(text), "docs/monitoring.md#"+strings.ToLower(name)+"\n") {
			t.Errorf("%s and docs/monitoring.md don't lead to each other", name)
		}
	}
	if n := strings.Count(string(text), "description:"); n != len(alertRules(t)) {
		t.Errorf("%d alerts say what to do, of %d", n, len(alertRules(t)))
	}
}
