package jetstream

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"touchline/cloud"
	"touchline/cloud/postgres"
	"touchline/cloud/recordertest"
	"touchline/cloud/sqlite"
	"touchline/internal/pgtest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		os.Exit(runChild())
	}
	code := pgtest.Main(m)
	// A nats-server of a cluster that is stopped while it makes a stream leaves that
	// stream's store open, and the clock of all stores with it.
	if err := goleak.Find(goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1")); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

func options(folder string) Options {
	return Options{Folder: folder, Store: "store-1", Shards: 1, Replicas: 1, MaxBytes: 64 << 20, MaxAge: 72 * time.Hour,
		Duplicates: 2 * time.Minute, AckWait: 2 * time.Second}
}

func openQueue(t testing.TB, opts Options) *Queue {
	t.Helper()
	q, err := Open(t.Context(), opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return q
}

// A way is a record store behind a queue: Record returns when what it was given
// went into the queue, came out of it, and is recorded.
type way struct {
	recordertest.Store
	pipe *pipe
}

// A pipe is a queue whose deliveries go to who published them.
type pipe struct {
	queue *Queue

	publishing sync.Mutex // one at a time
	mu         sync.Mutex // covers wanted
	wanted     map[string][]chan cloud.Delivery
}

// describe says all that a message has of a delivery.
func describe(d cloud.Delivery) string {
	return fmt.Sprint(d.Gateway, d.Session, d.Block, d.Received.UnixNano())
}

func (p *pipe) take(_ context.Context, d cloud.Delivery, t cloud.Ticket) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := describe(d)
	if list := p.wanted[name]; len(list) > 0 { // who waits for what is not in here waits in vain, and says so
		list[0] <- d
		p.wanted[name] = list[1:]
	}
	t.Done()
	return nil
}

func (w *way) Record(ctx context.Context, batch []cloud.Delivery) ([]cloud.Outcome, error) {
	arrivals := make([]chan cloud.Delivery, len(batch))
	w.pipe.mu.Lock()
	for i, d := range batch {
		name := describe(d)
		arrivals[i] = make(chan cloud.Delivery, 1)
		w.pipe.wanted[name] = append(w.pipe.wanted[name], arrivals[i])
	}
	w.pipe.mu.Unlock()
	if err := w.publish(ctx, batch); err != nil {
		return nil, err
	}
	arrived := make([]cloud.Delivery, len(batch))
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for i, sent := range batch {
		select {
		case d := <-arrivals[i]:
			d.Samples, d.Clock, d.Problem = sent.Samples, sent.Clock, sent.Problem
			arrived[i] = d
		case <-timer.C:
			return nil, fmt.Errorf("%d of %d blocks came out of the queue; this one did not: %+v", i, len(batch), sent)
		}
	}
	return w.Store.Record(ctx, arrived)
}

func (w *way) publish(ctx context.Context, batch []cloud.Delivery) error {
	w.pipe.publishing.Lock()
	defer w.pipe.publishing.Unlock()
	for part := range slices.Chunk(batch, 512) { // as ingest does
		if err := w.pipe.queue.Publish(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// The queue has no say in what is recorded: a store behind one is what it was.
func TestQueue_SQLiteBehindItConforms(t *testing.T) {
	dir := memoryDir(t)
	conforms(t, func(t *testing.T) (recordertest.Store, error) {
		return sqlite.Open(t.Context(), filepath.Join(dir, t.Name()), slog.New(slog.DiscardHandler))
	})
}

func TestQueue_PostgreSQLBehindItConforms(t *testing.T) {
	server := pgtest.Shared(t)
	template := server.Database(t)
	made, err := postgres.Open(t.Context(), postgres.Options{URL: template}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Close(); err != nil {
		t.Fatal(err)
	}
	databases := map[string]string{}
	conforms(t, func(t *testing.T) (recordertest.Store, error) {
		if databases[t.Name()] == "" { // one test opens its store several times
			databases[t.Name()] = server.Clone(t, template)
		}
		return postgres.Open(t.Context(), postgres.Options{URL: databases[t.Name()]}, slog.New(slog.DiscardHandler))
	})
}

// conforms runs the suite on a record store behind a queue.
func conforms(t *testing.T, open func(*testing.T) (recordertest.Store, error)) {
	dir := memoryDir(t) // what survives a kill is another test
	opts := options(filepath.Join(dir, "queue"))
	opts.Duplicates = 0 // so that the store's cursor sees each repeat
	opts.Shards = 2
	p := &pipe{queue: openQueue(t, opts), wanted: map[string][]chan cloud.Delivery{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.queue.Take(ctx, p.take); err != nil {
			t.Errorf("Take: %v", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	recordertest.Run(t, func(t *testing.T) recordertest.Store {
		store, err := open(t)
		if err != nil {
			t.Fatal(err)
		}
		return &way{store, p}
	})
}

// memoryDir returns a folder that a sync costs nothing in, where there is one.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "touchline-queue-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
