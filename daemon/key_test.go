package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"touchline"
	"touchline/cloud"
	"touchline/cloud/sqlite"
	"touchline/credential"
	"touchline/identity"
	"touchline/wire"
)

// A registrar is a cloud with one gateway, "north", which has enrolled from dir.
type registrar struct {
	t      *testing.T
	data   string
	store  *sqlite.Store
	addr   string
	config touchline.Config // of the gateway
	stop   func()
}

func newRegistrar(t *testing.T) *registrar {
	t.Helper()
	r := &registrar{t: t, data: t.TempDir(), addr: "127.0.0.1:0"}
	r.start()
	claim := credential.NewClaim()
	err := r.store.AddClaim(t.Context(), cloud.Claim{Hash: claim.Hash(), Venue: "stadium", Gateway: "north", Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	r.config, _, err = touchline.LoadConfig("", nil, map[string]string{
		"gateway.id": "north", "gateway.data": t.TempDir(), "uplink.urls": "ws://" + r.addr,
		"sensors.mqtt.listen": "127.0.0.1:0", "sensors.http.listen": "127.0.0.1:0",
		"uplink.reconnect_min": "20ms", "uplink.reconnect_max": "100ms",
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &Folder{config: r.config}
	if _, err := f.Enrol(t.Context(), EnrolOptions{Code: claim.Reveal(), Cloud: "ws://" + r.addr, Gateway: "north"}); err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs the cloud until stop, or the end of the test.
func (r *registrar) start() {
	r.t.Helper()
	store, err := sqlite.Open(r.t.Context(), r.data, slog.New(slog.DiscardHandler))
	if err != nil {
		r.t.Fatal(err)
	}
	c, _, err := cloud.LoadConfig("", nil, map[string]string{"listen": r.addr})
	if err != nil {
		r.t.Fatal(err)
	}
	server, err := cloud.New(c.Options(), store, slog.New(slog.DiscardHandler))
	if err == nil {
		err = server.Listen()
	}
	if err != nil {
		r.t.Fatal(errors.Join(err, store.Close()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	r.store, r.addr = store, server.Addr().String()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, store.Close()); err != nil {
			r.t.Errorf("stop the cloud: %v", err)
		}
	})
	r.t.Cleanup(r.stop)
}

// speaks says whether the cloud takes the gateway's handshake, as its uplink
// would make it now.
func (r *registrar) speaks() bool {
	r.t.Helper()
	client, err := keyClient(EnrolOptions{Cloud: "ws://" + r.addr}, r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	var nonce wire.Nonce
	if err := enrolAsk(r.t.Context(), client, http.MethodGet, "http://"+r.addr+wire.NoncePath, nil, &nonce); err != nil {
		r.t.Fatal(err)
	}
	token, err := mint(r.config, nonce.Nonce)
	if err != nil {
		r.t.Fatal(err)
	}
	h := http.Header{"Authorization": {"Bearer " + token}, wire.HeaderGateway: {r.config.Gateway.ID}}
	d := websocket.Dialer{Subprotocols: []string{wire.Subprotocol}}
	conn, resp, err := d.Dial("ws://"+r.addr+wire.UplinkPath, h)
	if err == nil {
		conn.Close()
		return true
	}
	if resp == nil || resp.StatusCode != http.StatusUnauthorized {
		r.t.Fatalf("handshake: %v %+v", err, resp)
	}
	return false
}

// endOld makes the overlap of the last roll be over.
func (r *registrar) endOld() {
	r.t.Helper()
	err := r.store.RollKeys(r.t.Context(), "north", func(known []credential.GatewayKey) ([]credential.GatewayKey, error) {
		return known[len(known)-1:], nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// newest is the thumbprint of the key that may sign the next roll.
func (r *registrar) newest() string {
	r.t.Helper()
	keys, err := r.store.HandshakeKeys(r.t.Context(), "north")
	if err != nil || len(keys) == 0 {
		r.t.Fatalf("keys: %v %v", keys, err)
	}
	return credential.Thumbprint(keys[len(keys)-1].Public)
}

// roller is a gateway's, without the rest of it.
func (r *registrar) roller(log *slog.Logger) *roller {
	return &roller{config: r.config, log: log, one: make(chan struct{}, 1), now: time.Now,
		change: func() <-chan struct{} { return nil }, online: func() bool { return false }}
}

func thumb(t *testing.T, load func(string) (ed25519.PrivateKey, error), dir string) string {
	t.Helper()
	key, err := load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return credential.Thumbprint(credential.PublicKey(key))
}

// TestRollKey_CutAtAnyStep walks the steps of a roll and stops after each, as a
// power cut would. The gateway that is started then speaks, has one key, and it
// is the cloud's newest; also where it was away until the old key had ended.
func TestRollKey_CutAtAnyStep(t *testing.T) {
	steps := []struct {
		name string
		do   func(t *testing.T, r *registrar)
	}{
		{"nothing is done", func(*testing.T, *registrar) {}},
		{"the new key is on disk", func(t *testing.T, r *registrar) {
			if _, err := identity.MakeNext(r.config.Gateway.Data); err != nil {
				t.Fatal(err)
			}
		}},
		{"the cloud has it, its answer is lost", func(t *testing.T, r *registrar) {
			key, _ := identity.Load(r.config.Gateway.Data)
			next, _ := identity.LoadNext(r.config.Gateway.Data)
			if _, err := declare(t.Context(), r.config, key, next); err != nil {
				t.Fatal(err)
			}
		}},
		{"the old key is kept", func(t *testing.T, r *registrar) {
			text, err := os.ReadFile(filepath.Join(r.config.Gateway.Data, identity.FileName))
			if err == nil {
				err = os.WriteFile(filepath.Join(r.config.Gateway.Data, identity.OldFile), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"the new key is in use", func(t *testing.T, r *registrar) {
			if err := identity.Promote(r.config.Gateway.Data); err != nil {
				t.Fatal(err)
			}
		}},
	}
	const told, done = 2, 4 // by their place in steps
	for last := range steps {
		for _, over := range []bool{false, true} {
			if over && last < told {
				continue // there is no overlap
			}
			name := steps[last].name
			if over {
				name += ", and a week passes"
			}
			t.Run(name, func(t *testing.T) {
				r := newRegistrar(t)
				dir := r.config.Gateway.Data
				first := thumb(t, identity.Load, dir)
				for _, step := range steps[:last+1] {
					step.do(t, r)
				}
				begun := thumb(t, identity.LoadNext, dir)
				if last == done {
					begun = thumb(t, identity.Load, dir)
				}
				if over {
					r.endOld()
				}
				if speaks := r.speaks(); speaks == (over && last < done) {
					t.Errorf("before it is started again, it speaks: %t", speaks)
				}
				r.roller(slog.New(slog.DiscardHandler)).step(t.Context())
				now := thumb(t, identity.Load, dir)
				if !r.speaks() || now != r.newest() || thumb(t, identity.LoadNext, dir) != "" {
					t.Errorf("after it is started again, it speaks: %t, by %s, and the cloud's newest key is %s", r.speaks(), now, r.newest())
				}
				if want := map[bool]string{true: first, false: begun}[begun == ""]; now != want {
					t.Errorf("the key is %s, want %s", now, want)
				}
				// It has lost nothing: it rolls on from there.
				rolled, err := rollKey(t.Context(), r.config, time.Now())
				if err != nil || r.newest() != credential.Thumbprint(rolled.Key[:]) || !r.speaks() {
					t.Errorf("the next roll: %v", err)
				}
			})
		}
	}
}

// A fault is a proxy that does something else than the cloud, until it is mended.
type fault struct {
	act    atomic.Pointer[http.HandlerFunc] // nil: mended
	rolls  atomic.Int64
	tokens sync.Map // seen
}

func (r *registrar) behind(f *fault) {
	r.t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.addr})
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if token, ok := strings.CutPrefix(q.Header.Get("Authorization"), "Bearer "); ok {
			f.tokens.Store(token, true)
		}
		if q.URL.Path == wire.RollPath {
			f.rolls.Add(1)
			if act := f.act.Load(); act != nil {
				(*act)(w, q)
				return
			}
		}
		proxy.ServeHTTP(w, q)
	}))
	r.t.Cleanup(front.Close)
	r.config.Uplink.URLs = []string{"ws" + strings.TrimPrefix(front.URL, "http")}
}

// TestRoller_AFailureLeavesTheKeyInUse: whatever answers, the gateway speaks on
// with the key that it had, says why, shows no secret, and ends the roll with
// the same new key once the cloud takes it.
func TestRoller_AFailureLeavesTheKeyInUse(t *testing.T) {
	text := func(status int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.Header().Set("Retry-After", "7200")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}
	}
	for _, c := range []struct {
		name, want string
		act        http.HandlerFunc
	}{
		{"an older cloud", "older than this gateway", http.NotFound},
		{"a cloud that refuses", "signed by the newest key", text(403, "application/problem+json", `{"detail":"must be signed by the newest key"}`)},
		{"a cloud that is busy", "503", text(503, "text/plain", "later")},
		{"a cloud that knows no key of it", "touchline enroll", text(401, "application/problem+json", `{"detail":"no"}`)},
		{"a captive portal", "no touchline cloud", text(200, "text/html", "<html>pay here</html>")},
		{"another gateway's answer", "no touchline cloud", text(200, "application/json", `{"gateway":"south"}`)},
		{"a line that breaks", "ask the cloud", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, f := newRegistrar(t), &fault{}
			r.behind(f)
			f.act.Store(&c.act)
			dir := r.config.Gateway.Data
			before, err := os.ReadFile(filepath.Join(dir, identity.FileName))
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			roller := r.roller(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			_, err = roller.roll(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want one with %q", err, c.want)
			}
			after, readErr := os.ReadFile(filepath.Join(dir, identity.FileName))
			if readErr != nil || !bytes.Equal(before, after) || !r.speaks() {
				t.Errorf("the key in use has changed, or does not count: %v", readErr)
			}
			s := roller.look()
			next := thumb(t, identity.LoadNext, dir)
			if s.LastError != err.Error() || s.Next != next || next == "" || !s.NextTry.After(time.Now()) {
				t.Errorf("status: %+v", s)
			}
			if asked := time.Until(s.NextTry); strings.Contains(c.name, "busy") && asked < time.Hour {
				t.Errorf("the next try is in %s, and the cloud asked for two hours", asked)
			}
			tries := f.rolls.Load()
			if roller.step(t.Context()); f.rolls.Load() != tries {
				t.Error("it tried again at once")
			}
			shown := log.String() + s.LastError
			for _, name := range []string{identity.FileName, identity.NextFile} {
				key, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || strings.Contains(shown, strings.Split(string(key), "\n")[1]) {
					t.Errorf("%s is shown: %v", name, err)
				}
			}
			f.tokens.Range(func(token, _ any) bool {
				if strings.Contains(shown, token.(string)) {
					t.Error("a token is shown")
				}
				return true
			})

			f.act.Store(nil)
			roller.mu.Lock()
			roller.tryAt = time.Time{} // its time has come
			roller.mu.Unlock()
			roller.step(t.Context())
			if s := roller.look(); s.Thumbprint != next || s.Next != "" || s.LastError != "" || s.Rolled != 1 || r.newest() != next || !r.speaks() {
				t.Errorf("after the cloud was mended: %+v, the cloud has %s", s, r.newest())
			}
		})
	}
}

// TestRollKey_ManyAtOnceMakeOneChain: commands on a stopped gateway.
func TestRollKey_ManyAtOnceMakeOneChain(t *testing.T) {
	r := newRegistrar(t)
	var rolled atomic.Int64
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			_, err := rollKey(t.Context(), r.config, time.Now())
			if err == nil {
				rolled.Add(1)
			} else if !errors.Is(err, identity.ErrRolling) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if rolled.Load() == 0 || r.newest() != thumb(t, identity.Load, r.config.Gateway.Data) || !r.speaks() {
		t.Errorf("%d rolls, the cloud's newest key is %s", rolled.Load(), r.newest())
	}
}

// TestRoller_TellsACloudThatWasRestored: its backup is older than the roll. The
// old key, which it knows, brings the new one again; and a second roll that was
// begun meanwhile is ended.
func TestRoller_TellsACloudThatWasRestored(t *testing.T) {
	for _, begun := range []bool{false, true} {
		r := newRegistrar(t)
		dir := r.config.Gateway.Data
		r.stop()
		backup := t.TempDir()
		if err := os.CopyFS(backup, os.DirFS(r.data)); err != nil {
			t.Fatal(err)
		}
		r.start()
		if _, err := rollKey(t.Context(), r.config, time.Now()); err != nil {
			t.Fatal(err)
		}
		if begun {
			if _, err := identity.MakeNext(dir); err != nil {
				t.Fatal(err)
			}
		}
		r.stop()
		r.data = backup
		r.start()
		if r.speaks() {
			t.Fatal("the restored cloud knows the new key")
		}
		roller := r.roller(slog.New(slog.DiscardHandler))
		for range 2 { // offline, and still so
			roller.step(t.Context())
		}
		if s := roller.look(); !r.speaks() || r.newest() != s.Thumbprint || s.Next != "" || !begun && s.Repeated != 1 {
			t.Errorf("a roll was begun: %t. The restored cloud's newest key is %s, status %+v", begun, r.newest(), s)
		}
	}
}

// TestRoller_RollsByItself: the whole gateway, with a key that is too old. Its
// session stays.
func TestRoller_RollsByItself(t *testing.T) {
	r := newRegistrar(t)
	dir := r.config.Gateway.Data
	first := thumb(t, identity.Load, dir)
	if err := identity.Date(dir, identity.FileName, time.Now().Add(-48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	r.config.Uplink.KeyMaxAge = 24 * 3600e9
	d, err := Open(t.Context(), r.config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d.out.get().roller.spread = 0
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-ended, d.Close()); err != nil {
			t.Error(err)
		}
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	for s := d.Status(); s.Key.Rolled == 0 || s.Uplink.Sessions == 0; s = d.Status() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("no roll: %+v, clock %+v", s.Key, s.Clock)
		}
	}
	s := d.Status()
	if s.Key.Thumbprint == first || s.Key.Thumbprint != r.newest() || s.Key.Old != first || s.Key.OldEnds.IsZero() || s.Uplink.Sessions != 1 {
		t.Errorf("status: %+v, %d sessions", s.Key, s.Uplink.Sessions)
	}
	if age := time.Since(s.Key.Since); age > 24*time.Hour || s.Key.Due.Before(time.Now()) {
		t.Errorf("the new key is %s old, and due at %s", age, s.Key.Due)
	}
}

// TestRoller_Schedule: when a key is due, and when it is not.
func TestRoller_Schedule(t *testing.T) {
	r := newRegistrar(t)
	dir := r.config.Gateway.Data
	now := time.Now().Add(1000 * 24 * time.Hour)
	made := now.AddDate(0, 0, -300)
	const year = 365 * 24 * time.Hour
	roller := r.roller(slog.New(slog.DiscardHandler))
	roller.now = func() time.Time { return now }
	redate := func(at time.Time) {
		t.Helper()
		if err := identity.Date(dir, identity.FileName, at); err != nil {
			t.Fatal(err)
		}
	}
	redate(made)
	due := roller.look().Due
	if due.After(made.Add(year)) || due.Before(made.Add(year-year/rollShare)) || roller.look().Due != due {
		t.Errorf("made %s, it is due %s", made, due)
	}
	key := thumb(t, identity.Load, dir)
	stays := func(why string) {
		t.Helper()
		if roller.step(t.Context()); thumb(t, identity.Load, dir) != key || thumb(t, identity.LoadNext, dir) != "" {
			t.Fatalf("the key was rolled: %s", why)
		}
	}
	stays("it is young")
	now = due
	roller.config.Uplink.KeyMaxAge = 0
	stays("uplink.key_max_age is 0s")
	roller.config.Uplink.KeyMaxAge = r.config.Uplink.KeyMaxAge
	roller.config.Uplink.TokenFile = "token"
	stays("the gateway speaks by a token")
	roller.config.Uplink.TokenFile = ""
	roller.now = func() time.Time { return time.Time{} }
	stays("nobody knows what time it is")
	roller.now = func() time.Time { return now }
	redate(time.Unix(1000, 0))
	stays("it was made while nobody knew what time it was")
	if s := roller.look(); s.Since.Sub(now).Abs() > time.Second {
		t.Errorf("it was made at %s by its date now, want %s", s.Since, now)
	}
	redate(made)
	roller.spread = time.Hour
	if roller.apart(); roller.untilTry() <= 0 {
		t.Error("keys that are due at once are not kept apart")
	}
	stays("its turn has not come")
	roller.tryAt = time.Time{}
	if roller.step(t.Context()); thumb(t, identity.Load, dir) == key || roller.look().Rolled != 1 {
		t.Errorf("it is due, and was not rolled: %+v", roller.look())
	}
	// A week later the old key goes.
	if thumb(t, identity.LoadOld, dir) != key {
		t.Error("the old key is not kept")
	}
	if err := identity.Date(dir, identity.OldFile, now.Add(-credential.RollOverlap)); err != nil {
		t.Fatal(err)
	}
	if roller.step(t.Context()); thumb(t, identity.LoadOld, dir) != "" {
		t.Error("the old key is kept for ever")
	}
}
