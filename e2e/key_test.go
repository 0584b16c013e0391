package e2e

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A keyhole is a proxy in front of the cloud that stops at a key roll, so that
// something can be ended right there.
type keyhole struct {
	url     string
	stop    chan keyMoment // what the next roll is stopped at
	arrived chan struct{}  // it is there
	goOn    chan struct{}
}

// A keyMoment is a place on the way of a key roll.
type keyMoment string

const (
	keyUnheard  keyMoment = "before the cloud has it"
	keyUnsaid   keyMoment = "when the cloud has it, and its answer is lost"
	keyAnswered keyMoment = "within milliseconds of the answer"
)

var keyMoments = []keyMoment{keyUnheard, keyUnsaid, keyAnswered}

func newKeyhole(t *testing.T, cloudPort int) *keyhole {
	t.Helper()
	k := &keyhole{stop: make(chan keyMoment, 1), arrived: make(chan struct{}, 1), goOn: make(chan struct{}, 1)}
	cloud := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", cloudPort)})
	cloud.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/key" {
			cloud.ServeHTTP(w, r)
			return
		}
		select {
		case moment := <-k.stop:
			k.hold(w, r, moment, cloud)
		default:
			cloud.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = cloud.ErrorLog
	server.Start()
	t.Cleanup(server.Close)
	k.url = "ws" + strings.TrimPrefix(server.URL, "http")
	return k
}

func (k *keyhole) hold(w http.ResponseWriter, r *http.Request, moment keyMoment, cloud http.Handler) {
	answer := httptest.NewRecorder()
	if moment != keyUnheard {
		cloud.ServeHTTP(answer, r)
	}
	if moment == keyAnswered {
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
		k.arrived <- struct{}{}
		return
	}
	k.arrived <- struct{}{}
	<-k.goOn
	panic(http.ErrAbortHandler) // nobody hears an answer
}

// keyStatus is what the gateway says of its keys.
type keyStatus struct {
	Thumbprint, Next, Old string
	LastError             string `json:"last_error"`
}

func (s *site) keyStatus() keyStatus {
	s.t.Helper()
	var st struct{ Key keyStatus }
	if err := json.Unmarshal(s.get(s.http, "/v1/status"), &st); err != nil {
		s.t.Fatal(err)
	}
	return st.Key
}

// enroll registers the gateway by a claim code, in place of its token.
func (s *site) enroll(cloud string) {
	s.t.Helper()
	code, stderr, status := run(s.t, s.cloudProgram, "gateway", "claim", "--venue", "stadium", "--gateway", "venue-1", "--config", s.cloudConfig)
	if status != 0 {
		s.t.Fatalf("gateway claim: %s", stderr)
	}
	token := filepath.Join(filepath.Dir(s.gatewayConfig), "token")
	editFile(s.t, s.gatewayConfig, fmt.Sprintf("token_file = %q", token), "token_file = \"\"")
	editFile(s.t, s.gatewayConfig, fmt.Sprintf("\"ws://127.0.0.1:%d\"", s.cloudPort), fmt.Sprintf("%q", cloud))
	s.touchline("enroll", strings.TrimSpace(code))
}

// cloudKeys are the thumbprints that count for the gateway, as an operator
// sees them.
func (s *site) cloudKeys() string {
	s.t.Helper()
	list, stderr, status := run(s.t, s.cloudProgram, "gateway", "list", "--config", s.cloudConfig)
	if status != 0 {
		s.t.Fatalf("gateway list: %s", stderr)
	}
	for line := range strings.Lines(list) {
		if strings.HasPrefix(line, "venue-1 ") {
			return line
		}
	}
	s.t.Fatalf("gateway list has no venue-1:\n%s", list)
	return ""
}

// TestKeyRoll_KilledInTheMiddle: a gateway that publishes rolls its key again
// and again, and is killed at each moment of it, sometimes with the cloud. It
// comes back with a key that the cloud takes, ends the roll with the key that
// it began with, and every sample is there once.
func TestKeyRoll_KilledInTheMiddle(t *testing.T) {
	rounds := 2 * len(keyMoments)
	if long() {
		rounds = 40 * len(keyMoments)
	}
	seed := crashSeed(t)
	random := rand.New(rand.NewPCG(seed, 1))
	s := newSite(t, "")
	s.startCloud()
	hole := newKeyhole(t, s.cloudPort)
	s.enroll(hole.url)
	s.startGateway()
	crowd := s.publish(everyDoor[:2]...)
	killed := map[keyMoment]int{}
	clouds, used := 0, []string{s.keyStatus().Thumbprint}
	for i := range rounds {
		moment := keyMoments[i%len(keyMoments)]
		waitFor(t, "the uplink to be there", func() bool { st, err := s.tryStatus(); return err == nil && st.Uplink.State == "connected" })
		crowd.more(t, 1+random.IntN(200))
		hole.stop <- moment
		command := start(t, "touchline", "key", "roll", "--config", s.gatewayConfig)
		command.expected = true
		select {
		case <-hole.arrived:
		case <-time.After(patience):
			t.Fatalf("seed %d: no roll came in %s: %s", seed, patience, command.log)
		}
		if moment == keyAnswered {
			pause(t.Context(), time.Duration(random.Int64N(int64(4*time.Millisecond))))
		}
		s.gateway.expected = true
		s.gateway.kill()
		killed[moment]++
		if random.IntN(3) == 0 {
			s.cloud.expected = true
			s.cloud.kill()
			clouds++
		}
		if moment != keyAnswered {
			hole.goOn <- struct{}{}
		}
		command.exit()
		if !s.cloud.running() {
			s.startCloud()
		}
		s.startGateway()
		waitFor(t, fmt.Sprintf("the roll to be ended that was killed %s, seed %d", moment, seed), func() bool { return s.keyStatus().Next == "" })
		k := s.keyStatus()
		if k.Thumbprint == used[len(used)-1] || k.Old != used[len(used)-1] {
			t.Fatalf("seed %d: killed %s, and the key is %s, the old one %q, want another than %s and that", seed, moment, k.Thumbprint, k.Old, used[len(used)-1])
		}
		used = append(used, k.Thumbprint)
		if list := s.cloudKeys(); !strings.Contains(list, k.Thumbprint) || !strings.Contains(list, k.Old) || i > 0 && strings.Contains(list, used[i-1]) {
			t.Fatalf("seed %d: killed %s, the gateway has the key %s, and the cloud lists %s", seed, moment, k.Thumbprint, list)
		}
	}
	// One that nothing disturbs: the session that is open stays.
	waitFor(t, "the uplink to be there", func() bool { st, err := s.tryStatus(); return err == nil && st.Uplink.State == "connected" })
	session := s.status().Uplink.Session
	public := strings.TrimSpace(s.touchline("key", "roll"))
	if st := s.status().Uplink; st.Session != session || st.State != "connected" {
		t.Errorf("the roll ended session %d: %+v", session, st)
	}
	shown, said, status := run(t, "touchline", "key", "--config", s.gatewayConfig)
	if k := s.keyStatus(); status != 0 || strings.TrimSpace(shown) != public || !strings.Contains(said, k.Thumbprint) || !strings.Contains(s.cloudKeys(), k.Thumbprint) {
		t.Errorf("touchline key: %d %q %q, want %s", status, shown, said, public)
	}
	for _, name := range []string{"gateway.key", "gateway.key.old"} {
		text, err := os.ReadFile(filepath.Join(s.gatewayData, name))
		if err != nil {
			t.Fatal(err)
		}
		if secret := strings.Split(string(text), "\n")[1]; strings.Contains(s.gateway.log.String(), secret) || strings.Contains(s.cloud.log.String(), secret) {
			t.Errorf("%s is in a log", name)
		}
	}
	crowd.finish(t)
	s.drained()
	v := s.audit(crowd)
	if !v.holds() || v.acked != v.sent {
		t.Errorf("seed %d: %s", seed, v)
	}
	t.Logf("MEASURED key rolls, seed %d: %d, the gateway killed %v, with it the cloud %d times: each ended with the key that it began with; %s", seed, rounds+1, killed, clouds, v)
}

// TestKeyRoll_AnExportSignedBeforeItIsTaken: a stick that was written, and
// carried away, before the gateway had another key. The roll is one of a
// stopped gateway, and begins while the cloud is away.
func TestKeyRoll_AnExportSignedBeforeItIsTaken(t *testing.T) {
	s := newSite(t, "")
	s.startCloud()
	s.enroll(fmt.Sprintf("ws://127.0.0.1:%d", s.cloudPort))
	s.cloud.terminate()
	s.startGateway()
	s.deposit(0, 3000, false)
	stick := filepath.Join(t.TempDir(), "north.tla")
	s.touchline("buffer", "export", stick)
	s.gateway.terminate()
	before := strings.TrimSpace(s.touchline("key"))

	if _, said, status := run(t, "touchline", "key", "roll", "--config", s.gatewayConfig); status != 1 || !strings.Contains(said, "ask the cloud") {
		t.Errorf("a roll without a cloud: status %d, %s", status, said)
	}
	shown, said, _ := run(t, "touchline", "key", "--config", s.gatewayConfig)
	if strings.TrimSpace(shown) != before || !strings.Contains(said, "next ") {
		t.Errorf("after it, touchline key says %q and %q, want %s and one that is next", shown, said, before)
	}
	s.startCloud()
	after := strings.TrimSpace(s.touchline("key", "roll"))
	if after == before || strings.TrimSpace(s.touchline("key")) != after {
		t.Errorf("the key is %s, was %s", after, before)
	}
	for range 2 {
		if out, stderr, status := run(t, "touchline-cloud", "import", stick, "--config", s.cloudConfig); status != 0 {
			t.Fatalf("import: status %d, %q, %s", status, out, stderr)
		}
	}
	s.hasOnce(3000)
	s.startGateway() // and it speaks
	s.deposit(3000, 4000, false)
	s.drained()
	s.hasOnce(4000)
}
