// Package jetstream is a queue between ingest and recording: NATS JetStream,
// embedded in the process or a cluster of its own. What Publish returned for is
// synced (and, with three replicas, on most of three machines); what leaves the queue was
// recorded, or is still with its gateway. A Queue acquires in Open, hears
// notices in Run, and is given back by Close.
//
// No weakness of the queue can lose a sample: the gateway keeps what it was
// only told to be accepted, and the record store's cursor alone decides what is new.
package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"touchline/wire"
)

// A Queue implements cloud.Queue and cloud.Source. Its methods may be called
// concurrently, but for Publish.
type Queue struct {
	opts     Options
	log      *slog.Logger
	embedded *server.Server // nil where the servers are elsewhere
	unlock   func() error   // of its folder
	conn     *nats.Conn
	js       jetstream.JetStream

	duplicates atomic.Uint64 // blocks published that a stream knew

	// Used by Publish only, where the server is embedded.
	config     server.JetStreamConfig
	unanswered int       // batches in a row
	revived    time.Time // last

	notices chan *nats.Msg
	mu      sync.Mutex // covers what follows
	hearers map[string][]*hearer
	closed  bool
}

// Open connects to the queue, starts the server where it is embedded, and makes
// its streams where they are not there. It refuses a queue that would lose what
// it accepted. Close gives all of it back.
func Open(ctx context.Context, opts Options, logger *slog.Logger) (_ *Queue, err error) {
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("queue options: %w", err)
	}
	q := &Queue{opts: opts, log: logger.With("component", "queue"), unlock: func() error { return nil },
		notices: make(chan *nats.Msg, maxNotices), hearers: map[string][]*hearer{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	if opts.Servers == "" {
		if err := q.embed(); err != nil {
			return nil, fmt.Errorf("start the queue in %s: %w", opts.Folder, err)
		}
	}
	if err := q.connect(); err != nil {
		return nil, err
	}
	if err := q.checkServers(ctx); err != nil {
		return nil, err
	}
	for shard := range opts.Shards {
		if err := q.ensureStream(ctx, shard); err != nil {
			return nil, err
		}
	}
	return q, nil
}

func (q *Queue) connect() error {
	options := []nats.Option{
		nats.Name("touchline-cloud"), nats.MaxReconnects(-1), nats.Timeout(q.opts.timeout()),
		nats.ReconnectBufSize(-1), // a publish while away fails, and is tried again with its answer awaited
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				q.log.Warn("the queue's server is away", "error", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { q.log.Info("the queue's server is back", "server", c.ConnectedServerName()) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { q.log.Debug("queue", "error", err) }),
	}
	url := q.opts.Servers
	if q.embedded != nil {
		options = append(options, nats.InProcessServer(q.embedded))
	}
	if q.opts.CredentialsFile != "" {
		options = append(options, nats.UserCredentials(q.opts.CredentialsFile))
	}
	if q.opts.CAFile != "" {
		options = append(options, nats.RootCAs(q.opts.CAFile))
	}
	conn, err := nats.Connect(url, options...)
	if err != nil {
		return fmt.Errorf("connect to the queue at %s: %w", shown(url), err)
	}
	q.conn = conn
	q.js, err = jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(maxPending),
		jetstream.WithPublishAsyncTimeout(publishTimeout), jetstream.WithDefaultTimeout(publishTimeout))
	return err
}

// Names. A stream for each shard, so that a cluster spreads their leaders over
// its machines; a consumer for each stream. All have the record store's id: stored
// in another one says nothing here.
const consumerName = "recorder"

func (o *Options) stream(shard int) string { return fmt.Sprintf("TOUCHLINE_%s_%02d", o.Store, shard) }
func (o *Options) subject(shard int) string {
	return fmt.Sprintf("touchline.blocks.%s.%02d", o.Store, shard)
}
func (o *Options) subjects() string { return "touchline.blocks." + o.Store + ".*" }

// ensureStream makes the stream of a shard, or brings its limits to what the
// settings say, and checks what it is then.
func (q *Queue) ensureStream(ctx context.Context, shard int) error {
	want := jetstream.StreamConfig{
		Name: q.opts.stream(shard), Subjects: []string{q.opts.subject(shard)},
		Description: "Blocks of touchline gateways that wait to be recorded.",
		Storage:     jetstream.FileStorage, Replicas: q.opts.Replicas,
		// A block leaves when its recorder acknowledged it. A full stream refuses what
		// is new, so that gateways wait; it never drops what it accepted.
		Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew,
		MaxBytes: max(q.opts.MaxBytes/int64(q.opts.Shards), 1), MaxAge: q.opts.MaxAge, MaxMsgSize: maxMessage,
		Duplicates: q.opts.Duplicates, Compression: jetstream.NoCompression, AllowAtomicPublish: true,
	}
	stream, err := q.makeStream(ctx, want)
	if err != nil {
		return fmt.Errorf("make stream %s: %w", want.Name, err)
	}
	is := stream.CachedInfo().Config
	var errs []error
	need := func(ok bool, problem string) {
		if !ok {
			errs = append(errs, errors.New(problem))
		}
	}
	need(is.Storage == jetstream.FileStorage, "it keeps blocks in memory only: remove it, and it is made anew with files")
	need(is.Discard == jetstream.DiscardNew, "it drops old blocks when it is full: want discard new")
	need(is.Retention == jetstream.WorkQueuePolicy, "it does not keep blocks until they are recorded: want a work queue")
	need(is.Replicas == q.opts.Replicas, fmt.Sprintf("it has %d replicas: want %d", is.Replicas, q.opts.Replicas))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stream %s: %w", want.Name, err)
	}
	return nil
}

// makeStream asks again while nobody answers, which a cluster that has no leader
// yet, or no more, does: for half a minute.
func (q *Queue) makeStream(ctx context.Context, want jetstream.StreamConfig) (jetstream.Stream, error) {
	for deadline := time.Now().Add(electionPatience); ; {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		stream, err := q.js.CreateOrUpdateStream(asking, want)
		cancel()
		var said *jetstream.APIError
		unavailable := errors.As(err, &said) && said.Code == 503
		if err == nil || errors.As(err, &said) && !unavailable || ctx.Err() != nil || time.Now().After(deadline) {
			return stream, err
		}
		pause(ctx, 100*time.Millisecond)
	}
}

// Close gives the connection and the embedded server back. It may be called
// twice, and on a nil Queue.
func (q *Queue) Close() error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	q.closed = true
	if q.conn != nil {
		q.conn.Close()
	}
	if q.embedded != nil {
		q.embedded.Shutdown()
		q.embedded.WaitForShutdown()
	}
	return q.unlock()
}

const (
	publishTimeout   = 5 * time.Second
	electionPatience = 30 * time.Second

	// maxPending is how many publishes wait for their answers: a batch of ingest
	// is at most 512.
	maxPending = 1024

	// maxMessage holds the largest frame of one block and headers: two gateway ids
	// of at most 128 bytes, a dozen numbers and the headers' names are some 700 bytes.
	maxMessage = wire.MinFrameBytes + 1<<10
)
