package main

import (
	"strings"
	"testing"
)

func TestReport_CountsAndShows(t *testing.T) {
	const in = `{"Action":"output","Package":"p","Test":"A","Output":"=== RUN A\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    x_test.go:1: MEASURED 3 kills\n"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Test":"B","Output":"    x_test.go:2: needs mosquitto\n"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	var out strings.Builder
	if !report(strings.NewReader(in), &out) {
		t.Error("reported a failure")
	}
	for _, want := range []string{"3 kills\n", "skipped p B: x_test.go:2: needs mosquitto\n", "ok  \tp\t0.1s\n", "1 passed, 0 failed, 1 skipped\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("missing %q in\n%s", want, out.String())
		}
	}
}

func TestReport_FailsForAFailedTestABrokenBuildAndNoTests(t *testing.T) {
	for _, in := range []string{
		`{"Action":"output","Package":"p","Test":"A","Output":"boom\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"A"}`,
		`{"Action":"build-output","ImportPath":"p","Output":"x.go:1: syntax\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
		"",
	} {
		var out strings.Builder
		if report(strings.NewReader(in), &out) {
			t.Errorf("passed:\n%s", in)
		}
	}
}
