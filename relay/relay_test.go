package relay_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"touchline"
	"touchline/archive"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/identity"
	"touchline/relay"
	"touchline/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

// arena is the gateway whose archives these tests carry; gym carries them.
var arena = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func trusted(h archive.Header) error {
	if h.Gateway != "arena" || h.Key != identity.Public(arena) {
		return errors.New("who is that?")
	}
	return nil
}

// anArchive has blocks of 5 samples each; enough of them make several segments.
func anArchive(t testing.TB, epoch byte, blocks int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := archive.NewWriter(&out, arena, archive.Header{Gateway: "arena"})
	if err != nil {
		t.Fatal(err)
	}
	encoder := wire.NewEncoder()
	for n := range blocks {
		samples := make([]touchline.Sample, 5)
		for i := range samples {
			v := 5*n + i
			samples[i] = touchline.Sample{Sensor: "belt", Metric: "m", Time: 1_780_000_000_000_000_000 + int64(v)*1e9, Value: touchline.NumberValue(float64(v))}
		}
		e, err := encoder.Encode(nil, samples)
		if err != nil {
			t.Fatal(err)
		}
		b := wire.Block{Epoch: touchline.Epoch{epoch}, First: uint64(5*n + 1), Count: 5, Data: e.Data}
		b.CRC = b.Sum()
		if err := w.Blocks([]wire.Block{b}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.End(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// aCloud is a real one; it ends with the test.
func aCloud(t *testing.T) (*sqlite.Store, string) {
	t.Helper()
	store, err := sqlite.Open(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"arena", "gym"} {
		if err := store.AddGateway(t.Context(), id, sha256.Sum256([]byte("token of "+id))); err != nil {
			t.Fatal(err)
		}
	}
	server, err := cloud.New(cloud.Options{
		Listen: "127.0.0.1:0", MaxGateways: 10, WindowBytes: 1 << 20, WindowBlocks: 256,
		MaxFrameBytes: wire.MinFrameBytes, QueueBytes: 8 << 20, Heartbeat: 15 * time.Second, MaxQueries: 4,
		Handshakes: 1000, GatewayHandshakes: 1000, AddressConnections: 1000, SpareConnections: 100, MaxHeaderBytes: 8 << 10,
		Timeouts: cloud.Timeouts{Login: time.Minute, Hello: time.Minute, Frames: time.Minute, Archive: time.Minute, Write: time.Minute, Answer: time.Minute, Idle: time.Minute},
	}, store, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, server.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return store, "ws://" + server.Addr().String()
}

func options(dir string, urls ...string) relay.Options {
	return relay.Options{
		Dir: filepath.Join(dir, "relay"), URLs: urls, Gateway: "gym", Software: "touchline/test",
		Credential: func(string) (string, error) { return "token of gym\n", nil }, BackoffBase: time.Millisecond, BackoffCap: 20 * time.Millisecond,
		Client: &http.Client{Transport: &http.Transport{}},
	}
}

// start runs a relay until the test ends or stop is called.
func start(t *testing.T, opts relay.Options) (r *relay.Relay, stop func()) {
	t.Helper()
	r, err := relay.New(opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

func waitFor(t *testing.T, what string, ready func() bool) {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

func take(t *testing.T, r *relay.Relay, data []byte) relay.Taken {
	t.Helper()
	taken, err := r.Take(t.Context(), bytes.NewReader(data), trusted)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

// has fails unless the store has n samples of the arena, each once.
func has(t *testing.T, store *sqlite.Store, n int) {
	t.Helper()
	seen := make(map[int]int)
	err := store.Samples(t.Context(), cloud.Query{}, func(r cloud.Record) error {
		seen[int(r.Value.Float())]++
		if r.Gateway != "arena" {
			t.Errorf("the store has %+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for v := range n {
		if seen[v] != 1 {
			t.Fatalf("%d is there %d times", v, seen[v])
		}
	}
	if len(seen) != n {
		t.Fatalf("%d samples, want %d", len(seen), n)
	}
}

func files(t *testing.T, opts relay.Options) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(opts.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRelay_DeliversAndForgets(t *testing.T) {
	store, at := aCloud(t)
	if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
		t.Fatal(err)
	}
	opts := options(t.TempDir(), "ws://127.0.0.1:1", at) // the first address is dead
	data := anArchive(t, 1, 3000)
	// Taken in while no relay runs, as the command does on a stopped gateway.
	for _, known := range []bool{false, true} {
		taken, err := relay.Take(t.Context(), opts, bytes.NewReader(data), trusted)
		if err != nil || taken.Known != known || taken.Header.Gateway != "arena" || taken.Summary.Samples != 15_000 {
			t.Fatalf("%v %+v", err, taken)
		}
	}
	r, stop := start(t, opts)
	take(t, r, anArchive(t, 1, 4000)) // with the same blocks, and more
	waitFor(t, "both archives to be delivered", func() bool { return r.Stats().Delivered == 2 })
	stop()
	if s := r.Stats(); s.Waiting != 0 || s.Bytes != 0 || s.LastError != "" || s.Segments < 6 {
		t.Errorf("%+v", s)
	}
	if left := files(t, opts); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	has(t, store, 20_000)
}

// TestRelay_WaitsForTheKey: the cloud refuses until an operator has told it
// whose key that is; nothing is lost meanwhile, and the status says what to do.
func TestRelay_WaitsForTheKey(t *testing.T) {
	store, at := aCloud(t)
	opts := options(t.TempDir(), at)
	r, _ := start(t, opts)
	take(t, r, anArchive(t, 1, 10))
	waitFor(t, "the refusal", func() bool {
		return strings.Contains(r.Stats().LastError, "touchline-cloud gateway key arena "+identity.Public(arena).String())
	})
	if s := r.Stats(); s.Waiting != 1 || s.Bytes == 0 || s.Delivered != 0 {
		t.Errorf("%+v", s)
	}
	if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the delivery", func() bool { return r.Stats().Delivered == 1 })
	has(t, store, 50)
}

// TestRelay_GoesOnWhereItWas after a line that breaks and a restart: answers
// are swallowed, and the relay is ended in the middle.
func TestRelay_GoesOnWhereItWas(t *testing.T) {
	store, at := aCloud(t)
	if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(strings.Replace(at, "ws", "http", 1))
	if err != nil {
		t.Fatal(err)
	}
	var posts, limit atomic.Int64
	limit.Store(5)
	proxy := httputil.NewSingleHostReverseProxy(target)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	proxy.Transport = transport
	proxy.ModifyResponse = func(*http.Response) error {
		if n := posts.Add(1); n%3 == 0 || n > limit.Load() {
			panic(http.ErrAbortHandler) // the cloud has it, and nobody hears
		}
		return nil
	}
	line := httptest.NewServer(proxy)
	defer line.Close()

	opts := options(t.TempDir(), strings.Replace(line.URL, "http", "ws", 1))
	opts.Store = func() (string, error) { return store.ID(), nil }
	r, stop := start(t, opts)
	take(t, r, anArchive(t, 1, 10_240)) // 10 segments of 1,024 blocks
	waitFor(t, "the line to be gone", func() bool { return posts.Load() > limit.Load() })
	stop()
	sent := r.Stats().Segments
	if sent == 0 || sent >= 10 || len(files(t, opts)) != 2 {
		t.Fatalf("%d segments, %v", sent, files(t, opts))
	}
	limit.Store(1 << 40)
	again, _ := start(t, opts)
	waitFor(t, "the delivery", func() bool { return again.Stats().Delivered == 1 })
	if s := again.Stats(); s.Segments != 10-sent {
		t.Errorf("%d segments were sent after the restart, %d before: want 10 together", s.Segments, sent)
	}
	if left := files(t, opts); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
	has(t, store, 51_200)
}

// TestRelay_KeepsWhatAnotherStoreTook: stored in a cloud that this gateway does
// not deliver to is not stored, until a person agrees.
func TestRelay_KeepsWhatAnotherStoreTook(t *testing.T) {
	store, at := aCloud(t)
	if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
		t.Fatal(err)
	}
	var known atomic.Value
	known.Store("another")
	opts := options(t.TempDir(), at)
	opts.Store = func() (string, error) { return known.Load().(string), nil }
	r, stop := start(t, opts)
	take(t, r, anArchive(t, 1, 3000))
	waitFor(t, "the refusal", func() bool { return strings.Contains(r.Stats().LastError, "accept-store") })
	if s := r.Stats(); s.Delivered != 0 || s.Waiting != 1 || s.Segments != 0 {
		t.Errorf("%+v", s)
	}
	known.Store(store.ID())
	waitFor(t, "the delivery", func() bool { return r.Stats().Delivered == 1 })
	stop()
	has(t, store, 15_000)
}

// TestRelay_OldNotesSkipNothing: an archive that is taken in again is sent from
// its beginning, whatever a crash left of the first time; and so is one of
// which a note speaks of another store.
func TestRelay_OldNotesSkipNothing(t *testing.T) {
	for name, note := range map[string]string{"of the first time": "99 %s\n", "of another store": "99 another\n", "of nobody": "99\n"} {
		t.Run(name, func(t *testing.T) {
			store, at := aCloud(t)
			if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
				t.Fatal(err)
			}
			opts := options(t.TempDir(), at)
			opts.Store = func() (string, error) { return store.ID(), nil }
			data := anArchive(t, 1, 3000)
			if _, err := relay.Take(t.Context(), opts, bytes.NewReader(data), trusted); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(opts.Dir, files(t, opts)[0])
			if err := os.WriteFile(path+".sent", []byte(strings.ReplaceAll(note, "%s", store.ID())), 0o600); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(note, "%s") { // it was delivered, and its note outlived it
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if _, err := relay.Take(t.Context(), opts, bytes.NewReader(data), trusted); err != nil {
					t.Fatal(err)
				}
			}
			r, stop := start(t, opts)
			waitFor(t, "the delivery", func() bool { return r.Stats().Delivered == 1 })
			stop()
			has(t, store, 15_000)
		})
	}
}

// TestRelay_SignsWithANonceWhereItIsAsked: a gateway whose clock is off carries,
// too.
func TestRelay_SignsWithANonceWhereItIsAsked(t *testing.T) {
	store, at := aCloud(t)
	if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	if err := store.AddGatewayKey(t.Context(), "gym", identity.Public(key)); err != nil {
		t.Fatal(err)
	}
	var without, with atomic.Int64
	opts := options(t.TempDir(), at)
	opts.Credential = func(nonce string) (string, error) {
		if nonce == "" {
			without.Add(1)
			return "from a clock that is off", nil
		}
		with.Add(1)
		token, err := credential.NewToken(credential.TokenRequest{Gateway: "gym", Key: key, Audience: wire.Audience, Nonce: nonce})
		return token.Reveal(), err
	}
	r, stop := start(t, opts)
	take(t, r, anArchive(t, 1, 10))
	waitFor(t, "the delivery", func() bool { return r.Stats().Delivered == 1 })
	stop()
	if without.Load() != 1 || with.Load() != 1 {
		t.Errorf("%d credentials without a nonce and %d with one, want one of each", without.Load(), with.Load())
	}
	has(t, store, 50)
}

// TestTake_AllOrNothing: what does not hold leaves no trace.
func TestTake_AllOrNothing(t *testing.T) {
	opts := options(t.TempDir())
	good := anArchive(t, 1, 2000)
	changed := bytes.Clone(good)
	changed[len(changed)-100] ^= 1
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx   context.Context
		data  io.Reader
		trust archive.Trust
		opts  relay.Options
	}{
		"cut":         {t.Context(), bytes.NewReader(good[:len(good)-1]), trusted, opts},
		"changed":     {t.Context(), bytes.NewReader(changed), trusted, opts},
		"not trusted": {t.Context(), bytes.NewReader(good), func(archive.Header) error { return errors.New("no") }, opts},
		"cancelled":   {cancelled, bytes.NewReader(good), trusted, opts},
		"no room":     {t.Context(), bytes.NewReader(good), trusted, relay.Options{Dir: opts.Dir, FreeReserve: 1 << 60}},
	} {
		if taken, err := relay.Take(tc.ctx, tc.opts, tc.data, tc.trust); err == nil {
			t.Errorf("%s: taken %+v", name, taken)
		}
		if left := files(t, opts); len(left) != 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

func TestTidy_RemovesWhatACrashLeft(t *testing.T) {
	opts := options(t.TempDir())
	if _, err := relay.Take(t.Context(), opts, bytes.NewReader(anArchive(t, 1, 10)), trusted); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(opts.Dir, ".incoming-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := relay.New(opts, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Tidy(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, opts); len(left) != 1 || r.Stats().Waiting != 1 {
		t.Errorf("%v is left, want the archive", left)
	}
}

// TestRelay_SetsDamageAside: a file that rots while it waits is kept, named,
// and in nobody's way.
func TestRelay_SetsDamageAside(t *testing.T) {
	store, at := aCloud(t)
	if err := store.AddGatewayKey(t.Context(), "arena", identity.Public(arena)); err != nil {
		t.Fatal(err)
	}
	opts := options(t.TempDir(), at)
	if _, err := relay.Take(t.Context(), opts, bytes.NewReader(anArchive(t, 1, 10)), trusted); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(opts.Dir, files(t, opts)[0])
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, stop := start(t, opts)
	take(t, r, anArchive(t, 2, 8))
	waitFor(t, "the sound one to be delivered", func() bool { return r.Stats().Delivered == 1 })
	stop()
	if left := files(t, opts); len(left) != 1 || left[0] != filepath.Base(path)+".damaged" {
		t.Errorf("%v is left, want the damaged one under that name", left)
	}
	has(t, store, 40)
}

// TestRelay_TrustsNoStrangeAnswer: a captive portal says 200 to everything, and
// a redirect does not get the token.
func TestRelay_TrustsNoStrangeAnswer(t *testing.T) {
	var stolen atomic.Int64
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			stolen.Add(1)
		}
	}))
	defer thief.Close()
	var asked atomic.Int64
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != wire.ArchivePath && r.URL.Path != wire.NoncePath {
			t.Errorf("asked for %s", r.URL.Path)
		}
		if asked.Add(1)%2 == 0 {
			http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
			return
		}
		_, _ = io.WriteString(w, "<html>Welcome to our network!</html>")
	}))
	defer portal.Close()
	opts := options(t.TempDir(), portal.URL)
	r, stop := start(t, opts)
	take(t, r, anArchive(t, 1, 10))
	waitFor(t, "some tries", func() bool { return asked.Load() >= 4 })
	stop()
	if s := r.Stats(); s.Delivered != 0 || s.Waiting != 1 || s.Segments != 0 || stolen.Load() != 0 {
		t.Errorf("%+v, %d tokens went elsewhere", s, stolen.Load())
	}
}
