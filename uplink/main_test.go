package uplink

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"touchline"
	"touchline/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// long is far more than anything here takes, even on a busy machine; a test
// that waits this long has failed.
const long = 30 * time.Second

// A bell tells waiters that something changed.
type bell struct {
	mu    sync.Mutex
	c     chan struct{}
	limit time.Duration // of await; 0 is long
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

// await waits until cond holds; it looks each time that the bell rings.
func (b *bell) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := cmp.Or(b.limit, long)
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		c := b.next()
		if cond() {
			return
		}
		select {
		case <-c:
		case <-deadline.C:
			t.Fatalf("%s: not after %v", what, limit)
		}
	}
}

// awaitStats polls for what no bell tells.
func awaitStats(t testing.TB, u *Uplink, what string, cond func(Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !cond(u.Stats()) {
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("%s: not after %v: %+v", what, long, u.Stats())
		}
	}
}

// A world is an uplink between a source and a test cloud.
type world struct {
	t      testing.TB
	bell   *bell
	source *memSource
	cloud  *testCloud
	logs   *logBuffer
}

func newWorld(t testing.TB) *world {
	b := &bell{}
	w := &world{t: t, bell: b, source: newMemSource(t, b), logs: &logBuffer{}}
	w.cloud = newTestCloud(t, b)
	w.source.mayAck = w.cloud.hasStored
	return w
}

// inBubble runs f in a world with a clock of its own (testing/synctest) and a
// network in memory, so that time is exact and costs nothing.
func inBubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bell{limit: 100 * time.Hour}
		w := &world{t: t, bell: b, source: newMemSource(t, b), logs: &logBuffer{}}
		w.cloud = newPipeCloud(t, b)
		w.source.mayAck = w.cloud.hasStored
		f(t, w)
	})
}

// options are fast enough for tests; heartbeats are slow unless a test is
// about them, so that a busy machine breaks nothing.
func (w *world) options() Options {
	o := Defaults()
	o.URLs = []string{w.cloud.url()}
	o.Gateway = "venue-1"
	o.Software = "touchline/test"
	o.Token = func() (string, error) { return "secret-token\n", nil }
	o.BackoffBase, o.BackoffCap = time.Millisecond, 8*time.Millisecond
	return o
}

func (w *world) uplink(o Options) *Uplink {
	w.t.Helper()
	var handler slog.Handler = slog.DiscardHandler
	if w.logs != nil {
		handler = slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	u, err := New(o, w.source, slog.New(handler))
	if err != nil {
		w.t.Fatal(err)
	}
	if w.cloud.pipes != nil {
		u.route.dial = w.cloud.pipes.dial
	}
	u.minHeartbeat = time.Millisecond
	return u
}

// start runs u and returns what ends it and waits for that.
func (w *world) start(u *Uplink) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					w.t.Errorf("Run returned %v, want nil", err)
				}
			case <-time.After(long):
				panic("Run did not end")
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

// A logBuffer is a log that tests can search.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > 1<<20 {
		l.buf.Reset()
	}
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// blocks makes n blocks of count samples each, of about size bytes of data
// that can't be compressed.
func blocks(epoch touchline.Epoch, first uint64, n, count, size int) []wire.Block {
	rnd := rand.NewChaCha8([32]byte(append(epoch[:], epoch[:]...)))
	out := make([]wire.Block, n)
	for i := range out {
		b := &out[i]
		*b = wire.Block{Epoch: epoch, First: first, Count: uint32(count), Data: make([]byte, size)}
		rnd.Read(b.Data)
		b.CRC = b.Sum()
		first += uint64(count)
	}
	return out
}

// pipes is a network in memory, for tests with a clock of their own.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	// wrap changes the gateway's end of a connection, if set.
	wrap func(net.Conn) net.Conn
	// server changes the cloud's end, if set.
	server func(net.Conn) net.Conn
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	if p.server != nil {
		theirs = p.server(theirs)
	}
	select {
	case p.conns <- theirs:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.done:
		return nil, io.ErrClosedPipe
	}
	if p.wrap != nil {
		ours = p.wrap(ours)
	}
	return ours, nil
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, os.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "cloud.test:80" }
