package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"touchline/internal/otlptest"
)

// TestTracing_FollowsABlockThroughTheQueue: a node with a queue, a recorder and
// a collector, which then goes away, and nobody waits for it.
func TestTracing_FollowsABlockThroughTheQueue(t *testing.T) {
	t.Parallel()
	collector := otlptest.New(t)
	s := newSite(t, "")
	settings, err := os.ReadFile(s.cloudConfig)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, s.cloudConfig, string(settings)+fmt.Sprintf("[queue]\nnats = \"embedded\"\n[tracing]\nendpoint = %q\nratio = 1.0\n[log]\nformat = \"json\"\n", collector.Endpoint()))
	s.startCloud()
	s.startGateway()
	s.deposit(0, 300, false)
	s.drained()

	// One trace has the stages of both, and the recorder's below the node's block.
	want := []string{"block", "receive", "publish", "accepted", "record", "commit", "ack"}
	var trace map[string]otlptest.Span
	waitFor(t, "a trace with all stages", func() bool {
		for _, root := range collector.Spans("block") {
			trace = map[string]otlptest.Span{}
			for _, span := range collector.Spans(want...) {
				if string(span.TraceId) == string(root.TraceId) {
					trace[span.Name] = span
				}
			}
			if len(trace) == len(want) {
				return true
			}
		}
		return false
	})
	for name, parent := range map[string]string{"receive": "block", "publish": "block", "accepted": "block", "ack": "block", "record": "block", "commit": "record"} {
		if string(trace[name].ParentSpanId) != string(trace[parent].SpanId) {
			t.Errorf("the span %s is not below %s", name, parent)
		}
	}
	if gateway := trace["block"].Label("touchline.gateway"); gateway != s.venue {
		t.Errorf("the block is of the gateway %v", gateway)
	}

	collector.Stop()
	s.deposit(300, 900, false)
	s.drained()
	s.hasOnce(900)
	if status := s.cloud.terminate(); status != 0 {
		t.Errorf("the cloud ended with status %d", status)
	}
	if log := s.cloud.log.String(); strings.Count(log, "takes no traces") > 1 || collector.Bad() != 0 {
		t.Errorf("%d requests were bad; the log is %s", collector.Bad(), log)
	}
}
