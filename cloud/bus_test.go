package cloud_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"touchline/cloud"
	"touchline/cloud/jetstream"
	"touchline/wire"
)

// A natsServer is one with JetStream, on the loopback interface.
func natsServer(t *testing.T) (address string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(),
		SyncAlways: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the nats-server does not get ready")
	}
	return s.ClientURL()
}

// openBus opens a bus of a process and runs it.
func openBus(t *testing.T, address string) *jetstream.Bus {
	t.Helper()
	b, err := jetstream.OpenBus(jetstream.BusOptions{Servers: address, Store: "memory"}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	during(t, "the bus", b.Run)
	return b
}

// openQueueOf opens a cluster's queue, as each process does.
func openQueueOf(t *testing.T, address string) *jetstream.Queue {
	t.Helper()
	q, err := jetstream.Open(t.Context(), jetstream.Options{
		Servers: address, Confirmed: true, Store: "memory", Shards: 2, Replicas: 1, MaxBytes: 64 << 20, MaxAge: time.Hour,
		Duplicates: 2 * time.Minute, AckWait: 2 * time.Second,
	}, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	during(t, "the queue", q.Run)
	return q
}

// Two nodes and viewers at both, with what is recorded by the nodes, by one of
// them out of the queue, or by a process of its own: each viewer sees the gateways of
// both, and each sample once.
func TestBus_AViewerAtOneNodeSeesTheGatewaysOfAll(t *testing.T) {
	for _, who := range []string{"each node, without a queue", "one node, behind a queue", "a process of its own"} {
		t.Run(who, func(t *testing.T) {
			store, address := newMemory("a", "b"), natsServer(t)
			var nodes []*node
			for i := range 2 {
				opts := options()
				opts.Bus = openBus(t, address)
				var queue cloud.Queue // none
				var q *jetstream.Queue
				if who != "each node, without a queue" {
					q = openQueueOf(t, address)
					queue = q
				}
				s := prepareQueued(t, opts, store, queue)
				nodes = append(nodes, run(t, s))
				if i == 1 && who == "one node, behind a queue" {
					during(t, "the recording", s.Recording(q).Run)
				}
			}
			if who == "a process of its own" {
				r := cloud.NewRecording(store, openQueueOf(t, address), cloud.RecordingOptions{QueueBytes: 64 << 20, Bus: openBus(t, address)}, logger(t))
				during(t, "the recording", r.Run)
			}

			viewers := []*spectator{nodes[0].watch(""), nodes[1].watch("")}
			for _, v := range viewers {
				v.snapshot()
			}
			now := time.Now().UnixNano()
			want := []string{}
			for i, id := range []string{"a", "b"} {
				s := nodes[i].sender(id)
				for n := range 5 {
					s.store(wire.Lane(n%2), of(3, now+int64(n)*1e9, "belt"))
					for k := range 3 {
						want = append(want, fmt.Sprint(id, " ", now+int64(n)*1e9-int64(2-k)*1e6))
					}
				}
			}
			for i, v := range viewers {
				var seen []string
				for len(seen) < len(want) {
					for _, x := range v.next().Samples {
						seen = append(seen, fmt.Sprint(x.Gateway, " ", x.Time.UnixNano()))
					}
				}
				slices.Sort(seen)
				slices.Sort(want)
				if !slices.Equal(seen, want) {
					t.Errorf("the viewer at node %d saw\n%v, want\n%v", i, seen, want)
				}
			}
		})
	}
}
