package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Every alarm says in docs/operations.md what to do, and no other is there.
func TestOperations_HasEveryAlarm(t *testing.T) {
	alerts, err := os.ReadFile("../deploy/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, found := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(string(alerts), -1) {
		names[found[1]] = true
		if n := strings.Count(string(doc), "\n| `"+found[1]+"` |"); n != 1 {
			t.Errorf("docs/operations.md has %d lines for %s", n, found[1])
		}
	}
	for _, found := range regexp.MustCompile("(?m)^\\| `(Touchline\\w+)` \\|").FindAllStringSubmatch(string(doc), -1) {
		if !names[found[1]] {
			t.Errorf("docs/operations.md has %s, which alerts.yml has not", found[1])
		}
	}
	if len(names) < 20 {
		t.Errorf("%d alarms were found", len(names))
	}
}
