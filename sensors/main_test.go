package sensors

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"touchline"
	"touchline/credential"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is never reached
// by a test that passes.
const patience = 30 * time.Second

// memStore is a Store in memory that can hold, fail and refuse on command.
type memStore struct {
	mu      sync.Mutex
	queue   []append_
	held    bool
	fail    error // of the commits
	refuse  error // of AppendAsync
	refused int   // how often
	samples []touchline.Sample
	keys    []touchline.Key // as they came
	discard bool            // keep no samples: for benchmarks
	failIf  func([]touchline.Sample) error
	reverse bool // answers the latest append first
	changed chan struct{}
	wake    chan struct{}
	end     chan struct{}
	ended   chan struct{}
}

type append_ struct {
	samples []touchline.Sample
	done    func(error)
}

// full is the error of a store that refuses.
type full struct{ after time.Duration }

func (f full) Error() string             { return "the store is full" }
func (f full) RetryAfter() time.Duration { return f.after }

func newStore(t testing.TB) *memStore {
	s := &memStore{
		changed: make(chan struct{}), wake: make(chan struct{}, 1),
		end: make(chan struct{}), ended: make(chan struct{}),
	}
	go s.run()
	t.Cleanup(func() { s.release(); close(s.end); <-s.ended })
	return s
}

func (s *memStore) AppendAsync(ctx context.Context, arrival touchline.Arrival, done func(error)) error {
	samples := arrival.Samples
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		s.refused++
		s.notify()
		return s.refuse
	}
	s.queue = append(s.queue, append_{samples, done})
	if !s.discard {
		s.keys = append(s.keys, arrival.Keys...)
	}
	s.kick()
	s.notify()
	return nil
}

func (s *memStore) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *memStore) notify() {
	if s.discard {
		return
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// run commits in groups, as the buffer does.
func (s *memStore) run() {
	defer close(s.ended)
	var group []append_
	for {
		select {
		case <-s.end:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		if s.held || len(s.queue) == 0 {
			s.mu.Unlock()
			continue
		}
		group, s.queue = s.queue, group[:0]
		errs := make([]error, len(group))
		for i, a := range group {
			errs[i] = s.fail
			if s.failIf != nil {
				errs[i] = s.failIf(a.samples)
			}
			if errs[i] == nil && !s.discard {
				s.samples = append(s.samples, a.samples...)
			}
		}
		if s.reverse {
			slices.Reverse(group)
			slices.Reverse(errs)
		}
		s.notify()
		s.mu.Unlock()
		for i, a := range group {
			a.done(errs[i])
			group[i] = append_{}
		}
	}
}

// hold keeps all commits waiting until release.
func (s *memStore) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
}

func (s *memStore) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = false
	s.kick()
}

func (s *memStore) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *memStore) setRefuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// stored returns a copy of what is durable.
func (s *memStore) stored() []touchline.Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]touchline.Sample(nil), s.samples...)
}

// await waits until ok, which is called with the lock held.
func (s *memStore) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		good, changed := ok(), s.changed
		s.mu.Unlock()
		if good {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited %s for the store: %s", patience, what)
		}
	}
}

func (s *memStore) awaitStored(t testing.TB, n int) []touchline.Sample {
	t.Helper()
	s.await(t, fmt.Sprintf("%d samples stored", n), func() bool { return len(s.samples) >= n })
	return s.stored()
}

// awaitQueued waits until so many appends wait in a held store.
func (s *memStore) awaitQueued(t testing.TB, samples int) {
	t.Helper()
	s.await(t, fmt.Sprintf("%d samples waiting", samples), func() bool {
		n := 0
		for _, a := range s.queue {
			n += len(a.samples)
		}
		return n >= samples
	})
}

var errCommit = errors.New("disk I/O error")

// testLimits are above what a test does.
var testLimits = Limits{PerAddress: 10_000, Handshakes: 100_000, Messages: 10_000_000, Bytes: 1 << 30, Login: patience, Receive: patience, Write: patience}

// openAccess lets in anybody.
func openAccess(t testing.TB) *Access {
	t.Helper()
	keys, err := credential.OpenSensorKeys(filepath.Join(t.TempDir(), credential.SensorKeysFile), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	access, err := NewAccess(AccessOptions{Keys: keys, Rules: Rules{ACL: &credential.ACL{}, Anonymous: true}, PerSensor: 8, Limits: testLimits}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return access
}

func newTestIntake(t testing.TB, store Store) *Intake {
	t.Helper()
	in, err := NewIntake(IntakeOptions{Store: store, Now: systemTime, MaxSensors: 1000, Access: openAccess(t)})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// logBuffer keeps the log of a test.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// eventually polls where there is nothing to wait on.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("waited %s: %s", patience, what)
		}
	}
}

// startMQTT runs a broker until the test ends.
func startMQTT(t testing.TB, in *Intake, change func(*MQTTOptions), logger *slog.Logger) *MQTT {
	t.Helper()
	opts := MQTTOptions{
		Address: "127.0.0.1:0", PayloadBytes: 64 << 10, MaxConnections: 1000, Window: 1024, Patience: 10 * time.Second, Subscribers: 64, SubscriberQueue: 64,
	}
	if change != nil {
		change(&opts)
	}
	m, err := ListenMQTT(opts, in, logger)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	t.Cleanup(func() {
		if s, ok := in.store.(*memStore); ok {
			s.release()
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return m
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// systemTime is the system's clock, of which nothing is known.
func systemTime() (time.Time, *touchline.Clock) { return time.Now(), nil }
