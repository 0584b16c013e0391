package jetstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/recordertest"
)

// freePorts returns ports of the loopback interface that nobody has now.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// A servers is a NATS cluster on the loopback interface.
type servers struct {
	t       *testing.T
	options []*server.Options
	running []*server.Server
}

func startServers(t *testing.T, n int, syncs bool) *servers {
	t.Helper()
	ports := freePorts(t, 3*n)
	c := &servers{t: t, running: make([]*server.Server, n)}
	for i := range n {
		o := &server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: ports[i], HTTPHost: "127.0.0.1", HTTPPort: ports[n+i],
			JetStream: true, StoreDir: t.TempDir(), SyncAlways: syncs, NoSigs: true, NoLog: true,
			JetStreamMaxMemory: 16 << 20, JetStreamMaxStore: 1 << 30,
		}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "venues", Host: "127.0.0.1", Port: ports[2*n+i]}
			for k := range n {
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[2*n+k])})
			}
		}
		c.options = append(c.options, o)
	}
	for i := range n {
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range n {
			c.stop(i)
		}
	})
	for _, s := range c.running {
		if !s.ReadyForConnections(patience) {
			t.Fatal("a nats-server does not get ready")
		}
	}
	return c
}

func (c *servers) start(i int) {
	c.t.Helper()
	s, err := server.NewServer(c.options[i].Clone())
	if err != nil {
		c.t.Fatal(err)
	}
	c.running[i] = s
	s.Start()
}

func (c *servers) stop(i int) {
	c.running[i].Shutdown()
	c.running[i].WaitForShutdown()
}

func (c *servers) queue() Options {
	o := options("")
	var list []string
	for _, s := range c.options {
		list = append(list, fmt.Sprintf("nats://127.0.0.1:%d", s.Port))
		o.Monitors = append(o.Monitors, fmt.Sprintf("http://127.0.0.1:%d", s.HTTPPort))
	}
	o.Servers, o.Replicas = strings.Join(list, ","), len(list)
	return o
}

// refused wants Open to fail and say so.
func refused(t *testing.T, opts Options, says string) {
	t.Helper()
	q, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err == nil {
		err = q.Close()
		t.Fatalf("the queue was opened (Close: %v): want an error with %q", err, says)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("the error is %q: want it to say %q", err, says)
	}
}

func TestOpen_RefusesWhatWouldLoseBlocks(t *testing.T) {
	lax := startServers(t, 1, false)
	opts := lax.queue()
	refused(t, opts, "sync_interval: always")
	opts.Monitors = []string{fmt.Sprintf("http://127.0.0.1:%d", lax.options[0].Port)} // that is no monitor
	refused(t, opts, "nats_monitors")
	opts.Monitors = nil
	refused(t, opts, "nats_confirmed")

	opts = startServers(t, 1, true).queue()
	conn, err := nats.Connect(opts.Servers)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: opts.stream(0), Subjects: []string{opts.subject(0)}, Storage: jetstream.MemoryStorage, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, opts, opts.stream(0))
	if err := js.DeleteStream(t.Context(), opts.stream(0)); err != nil {
		t.Fatal(err)
	}
	openQueue(t, opts) // with nothing to say against it
	for version, ok := range map[string]bool{"2.15.0": true, "2.16.1-beta": true, "3.0.0": true, "2.14.9": false, "1.99.0": false, "": false, "x.y.z": false} {
		if err := checkVersion(version); (err == nil) != ok {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestOpen_OneProcessHasTheEmbeddedQueue(t *testing.T) {
	opts := options(t.TempDir())
	q := openQueue(t, opts)
	refused(t, opts, "another touchline-cloud")
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	openQueue(t, opts)
}

// What is stored in one record store says nothing of another: two clouds on one
// cluster see nothing of each other.
func TestQueue_IsOfOneRecordStore(t *testing.T) {
	opts := startServers(t, 1, true).queue()
	one := openQueue(t, opts)
	opts.Store = "store-2"
	other := openQueue(t, opts)
	if err := one.Publish(t.Context(), []cloud.Delivery{delivery(t, 1), delivery(t, 2)}); err != nil {
		t.Fatal(err)
	}
	mine, _, err := one.Waiting(t.Context())
	theirs, _, otherErr := other.Waiting(t.Context())
	if err != nil || otherErr != nil || mine != 2 || theirs != 0 {
		t.Errorf("one holds %d %v, the other %d %v: want 2 and 0", mine, err, theirs, otherErr)
	}
	opts.Store = "a.b"
	refused(t, opts, "Store is")
}

// delivery makes a block of one of many gateways.
func delivery(t *testing.T, n int) cloud.Delivery {
	return recordertest.NewDelivery(t, fmt.Sprint("gateway-", n%40), touchline.Epoch{byte(n % 40)}, uint64(1+10*n), recordertest.Series("belt", int64(n), 10, 10))
}

// One server of three is gone at any time, under load: blocks are accepted
// all the while, and each comes out again. So do those of a queue that had more shards.
func TestQueue_ClusterGoesOnWithoutAnyOneServer(t *testing.T) {
	c := startServers(t, 3, true)
	opts := c.queue()
	opts.Shards = 3
	q := openQueue(t, opts)
	published := map[string]bool{}
	publish := func(from, to int) {
		t.Helper()
		var batch []cloud.Delivery
		for n := from; n < to; n++ {
			batch = append(batch, delivery(t, n))
			published[describe(batch[len(batch)-1])] = true
		}
		for deadline := time.Now().Add(patience); ; pause(t.Context(), 20*time.Millisecond) { // as ingest does
			err := q.Publish(t.Context(), batch)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("Publish: %v", err)
			}
		}
	}
	rounds := 1
	if os.Getenv("TOUCHLINE_TEST_LONG") != "" {
		rounds = 3
	}
	for round := range rounds {
		publish(200*round, 200*round+60)
		c.stop(round % 3)
		publish(200*round+60, 200*round+200)
		c.start(round % 3)
	}

	opts.Shards = 1
	fewer := openQueue(t, opts)
	var mu sync.Mutex
	came := map[string]bool{}
	all := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		err := fewer.Take(ctx, func(_ context.Context, d cloud.Delivery, ticket cloud.Ticket) error {
			mu.Lock()
			defer mu.Unlock()
			before := len(came)
			came[describe(d)] = true
			if len(came) == len(published) && before < len(came) {
				close(all)
			}
			ticket.Done()
			return nil
		})
		if err != nil {
			t.Errorf("Take: %v", err)
		}
	})
	select {
	case <-all:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	for name := range published {
		if !came[name] {
			t.Fatalf("%d blocks of %d came out; one that did not is %.100s", len(came), len(published), name)
		}
	}
}
