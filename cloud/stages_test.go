package cloud_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"touchline/cloud"
)

func TestStages_CountEachOnce(t *testing.T) {
	store := newMemory("arena")
	var down atomic.Bool
	store.beforeRecord = func(context.Context, []cloud.Delivery) error {
		if down.Load() {
			return errors.Join(cloud.ErrUnavailable, errors.New("no space"))
		}
		return nil
	}
	down.Store(true)
	opts := options()
	opts.Data, opts.StoreUnsynced = t.TempDir(), true
	server := prepare(t, opts, store)
	server.SetRetry(time.Millisecond, 5*time.Millisecond)
	n := run(t, server)
	g, _ := n.join("arena")
	sent := blocks(t, 3)
	g.send(sent...)
	eventually(t, "the record store fails, and that is seen", func() bool { return server.Stats().StoreDown })
	g.send(sent[1]) // while the first copy waits
	eventually(t, "the repeat is dropped", func() bool { return server.Stats().RepeatsWaiting == 1 })
	if _, _, page := n.get("/metrics"); !strings.Contains(page, "\ntouchline_cloud_store_up 0\n") || !strings.Contains(page, "\ntouchline_cloud_queue_up 1\n") {
		t.Error("/metrics does not say that the record store is down, and the queue that is not there is not")
	}
	down.Store(false)
	g.stored(sent...)
	g.send(sent[2]) // and after it is stored
	g.stored(sent[2])

	var data uint64
	for _, b := range sent {
		data += uint64(len(b.Data))
	}
	st := server.Stats()
	if st.SamplesReceived != 50 || st.SamplesStored != 30 || st.BytesStored != data || st.Repeats != 1 || st.RepeatsWaiting != 1 || st.StoreDown || st.QueueDown {
		t.Errorf("of 5 blocks with 10 samples, one sent twice while it waited and one when it was stored, the stats are %+v", st)
	}
	if st.HelloSeconds.Count() != 1 || st.StoredLag.Count() != 4 || st.AcceptedLag.Count() != 0 {
		t.Errorf("%d hellos, %d blocks stored, %d accepted: want 1, 4, 0", st.HelloSeconds.Count(), st.StoredLag.Count(), st.AcceptedLag.Count())
	}
	if transactions := st.BatchBlocks.Count(); st.BatchSamples.Sum != 40 || st.BatchBlocks.Sum != 4 || st.BatchBytes.Count() != transactions || st.BatchSamples.Count() != transactions {
		t.Errorf("batches are %+v, %+v, %+v", st.BatchBlocks, st.BatchSamples, st.BatchBytes)
	}
	if st.Messages == 0 || st.MessageBytes < 10*st.Messages {
		t.Errorf("%d messages of %d bytes were sent", st.Messages, st.MessageBytes)
	}
	_, _, page := n.get("/metrics")
	for _, line := range []string{"touchline_cloud_store_up 1", "touchline_cloud_store_unsynced 1", "touchline_cloud_samples_received_total 50",
		"touchline_cloud_block_repeats_waiting_total 1", "touchline_cloud_data_size_bytes ", "touchline_cloud_data_free_bytes ", `touchline_cloud_build_info{`} {
		if !strings.Contains(page, "\n"+line) {
			t.Errorf("/metrics has no %q", line)
		}
	}
	if strings.Contains(page, "certificate_expiry") || strings.Contains(page, "arena") {
		t.Error("/metrics has a certificate that is not there, or a gateway's id")
	}
}

func TestStages_HeartbeatsAreTimed(t *testing.T) {
	opts := options()
	opts.Heartbeat = 200 * time.Millisecond
	n := start(t, opts, newMemory("arena"))
	for deadline := time.Now().Add(patience); n.server.Stats().RTTSeconds.Count() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no heartbeat was timed")
		}
		// Its pongs are gorilla's, as it reads. On a busy machine two heartbeats may
		// pass in silence, and end the session: then there is another one.
		g, _ := n.join("arena")
		if err := g.conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _, _ = g.conn.ReadMessage()
		g.conn.Close()
	}
	if rtt := n.server.Stats().RTTSeconds; rtt.Sum <= 0 || rtt.Sum > patience.Seconds()*float64(rtt.Count()) {
		t.Errorf("round trips are %+v", rtt)
	}
}
