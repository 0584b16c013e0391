package cloud_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"touchline/cloud"
)

// ask returns status and body of a GET.
func ask(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// says wants lines to be among the metrics, by their beginning.
func says(t *testing.T, metrics string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+metrics, "\ntouchline_cloud_"+line) {
			t.Errorf("/metrics has no %q", line)
		}
	}
	if t.Failed() {
		t.Logf("%s", metrics)
	}
}

// A process that only records says what it has recorded, what waits, and how late it
// is; and that it is not ready while it can't.
func TestRecording_ShowsQueueAndLag(t *testing.T) {
	store := newMemory("arena")
	q := openQueue(t, 64<<20)
	n := run(t, prepareQueued(t, options(), store, q))
	g, _ := n.join("arena")
	sent := blocks(t, 20)
	g.send(sent...)
	g.acceptedOnly(sent...)
	g.send(sent[0]) // which the queue knows
	g.acceptedOnly(sent[0])
	_, _, metrics := n.get("/metrics")
	says(t, metrics, "stream_up 1", "stream_blocks 20", "stream_max_bytes 6.7108864e+07", "stream_taken_blocks 0", "queue_duplicates_total 1", "accepted_to_stored_seconds_count 0")
	if strings.Contains(metrics, "stream_oldest_seconds 0\n") {
		t.Error("the oldest of 20 blocks is of no age")
	}

	fails := make(chan struct{})
	store.beforeRecord = func(ctx context.Context, _ []cloud.Delivery) error {
		select {
		case <-fails:
			return nil
		default:
			return fmt.Errorf("%w: it is away", cloud.ErrUnavailable)
		}
	}
	listener, err := cloud.ListenStatus("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, _ := record(t, store, q)
	during(t, "the status", func(ctx context.Context) error { return r.Answer(ctx, listener) })
	url := "http://" + listener.Addr().String()
	eventually(t, "a recorder that can't record is not ready", func() bool {
		status, said := ask(t, url+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(said, "it is away")
	})
	if status, _ := ask(t, url+"/livez"); status != http.StatusOK {
		t.Errorf("/livez says %d", status)
	}
	close(fails)
	g.stored(sent...)
	eventually(t, "the recorder is ready, and the stream empty", func() bool {
		status, _ := ask(t, url+"/readyz")
		_, metrics = ask(t, url+"/metrics")
		return status == http.StatusOK && strings.Contains(metrics, "touchline_cloud_stream_blocks 0\n")
	})
	says(t, metrics, "blocks_stored_total 20", "samples_stored_total 200", "record_errors_total", "queue_refused_total 0", "batch_blocks_count", "record_duration_seconds_count",
		"sample_age_seconds_count", "stream_oldest_seconds 0", "accepted_to_stored_seconds_count 20", "queue_redelivered_total",
		"store_up 1", "stored_lag_seconds_count 20", "batch_samples_count", "batch_bytes_count", "stored_bytes_total") // what docs/monitoring.md says of a recorder
	if strings.Contains(metrics, "touchline_cloud_connections") {
		t.Error("a process without uplinks counts them")
	}
}
