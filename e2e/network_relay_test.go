package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"touchline/internal/netlab"
)

// relayTo makes a relay on loopback to an address, its greeting and seed as given.
func relayTo(t *testing.T, address string, o netlab.RelayOptions) *netlab.Relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	r := netlab.NewRelay(l, o)
	t.Cleanup(func() { r.Close() })
	return r
}

// newRelayed makes a site whose uplink goes through a relay; nothing runs.
func newRelayed(t *testing.T, seed uint64) (*site, *netlab.Relay) {
	t.Helper()
	s := newSite(t, "")
	s.tuneNetwork(heartbeat)
	// A block of which the numbers were changed on the way is asked for again
	// by a name that nobody knows: only this time heals it.
	editFile(t, s.gatewayConfig, "reconnect_min", "accept_timeout = \"3s\"\nreconnect_min")
	r := relayTo(t, fmt.Sprintf("127.0.0.1:%d", s.cloudPort), netlab.RelayOptions{Seed: seed})
	s.uplinkTo("ws://" + r.Addr())
	return s, r
}

// TestNetwork_MisbehavingProxyLosesNothing has one thing after another go wrong
// between two that are well, while samples flow.
func TestNetwork_MisbehavingProxyLosesNothing(t *testing.T) {
	t.Parallel()
	both := func(f netlab.Flow) netlab.Faults { return netlab.Faults{Up: f, Down: f} }
	// untilLost holds faults until the session is given up for them.
	untilLost := func(f netlab.Faults) func(*testing.T, *site, *netlab.Relay, *rand.Rand) {
		return func(t *testing.T, s *site, r *netlab.Relay, _ *rand.Rand) {
			session := s.session()
			begin := time.Now()
			r.Set(f)
			s.lost(session)
			found := since(begin)
			r.Set(netlab.Faults{})
			s.sessionAfter(session)
			t.Logf("MEASURED %s: found after %s, replaced after %s, heartbeat %v", t.Name(), found, since(begin), heartbeat)
		}
	}
	for _, tc := range []struct {
		name   string
		rounds int // in the long form
		harm   func(*testing.T, *site, *netlab.Relay, *rand.Rand)
	}{
		{"cut", 200, func(t *testing.T, s *site, r *netlab.Relay, _ *rand.Rand) {
			session := s.session()
			r.Cut()
			s.sessionAfter(session)
		}},
		{"stall upwards", 10, untilLost(netlab.Faults{Up: netlab.Flow{Stall: true}})},
		{"stall downwards", 10, untilLost(netlab.Faults{Down: netlab.Flow{Stall: true}})},
		{"blackhole upwards", 10, untilLost(netlab.Faults{Up: netlab.Flow{Blackhole: true}})},
		{"blackhole downwards", 10, untilLost(netlab.Faults{Down: netlab.Flow{Blackhole: true}})},
		{"one byte a second", 10, untilLost(both(netlab.Flow{BytesPerSecond: 1}))},
		{"slow close", 50, func(t *testing.T, s *site, r *netlab.Relay, _ *rand.Rand) {
			session := s.session()
			r.Set(netlab.Faults{CloseDelay: 300 * time.Millisecond})
			r.CutClients() // the cloud has the old one still when the new one comes
			s.sessionAfter(session)
			r.Set(netlab.Faults{})
		}},
		{"closes in another order", 50, func(t *testing.T, s *site, r *netlab.Relay, _ *rand.Rand) {
			r.Set(netlab.Faults{HoldCloses: true})
			for session, n := s.session(), 0; n < 3; n++ {
				r.CutClients()
				session = s.sessionAfter(session)
			}
			r.ReleaseCloses() // the newest first
			r.Set(netlab.Faults{})
		}},
		{"corrupt upwards", 20, func(t *testing.T, s *site, r *netlab.Relay, random *rand.Rand) {
			corrupt(t, s, r, netlab.Faults{Up: netlab.Flow{CorruptEvery: 500 + random.IntN(5000)}})
		}},
		{"corrupt downwards", 20, func(t *testing.T, s *site, r *netlab.Relay, random *rand.Rand) {
			corrupt(t, s, r, netlab.Faults{Down: netlab.Flow{CorruptEvery: 200 + random.IntN(1000)}})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			seed := networkSeed(t)
			s, r := newRelayed(t, seed)
			s.startCloud()
			s.startGateway()
			c := s.publish(networkCrowd(500)...)
			random := rand.New(rand.NewPCG(seed, 3))
			for range times(1, tc.rounds) {
				c.more(t, 1+random.IntN(200))
				tc.harm(t, s, r, random)
				r.Set(netlab.Faults{})
			}
			c.more(t, 100)
			s.settle(c)
		})
	}
}

// corrupt flips bits until some have been.
func corrupt(t *testing.T, s *site, r *netlab.Relay, f netlab.Faults) {
	t.Helper()
	s.session()
	before := r.Stats().Flipped
	r.Set(f)
	waitFor(t, "bits to be flipped", func() bool { return r.Stats().Flipped > before+10 })
	r.Set(netlab.Faults{})
}

// TestNetwork_RefusedUpgradesAreSaidAndLoseNothing has a proxy that answers the
// upgrade itself, until somebody mends it.
func TestNetwork_RefusedUpgradesAreSaidAndLoseNothing(t *testing.T) {
	t.Parallel()
	for _, status := range []int{http.StatusForbidden, http.StatusUpgradeRequired, http.StatusOK} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, "")
			cloud := fmt.Sprintf("127.0.0.1:%d", s.cloudPort)
			box := relayTo(t, cloud, netlab.RelayOptions{Greet: netlab.GreetRefusingUpgrades(cloud, status)})
			s.uplinkTo("ws://" + box.Addr())
			s.startCloud()
			s.startGateway()
			c := s.publish(networkCrowd(500)...)
			c.more(t, 500)
			waitFor(t, "the refusal to be told", func() bool {
				return strings.Contains(s.status().Uplink.LastError, fmt.Sprintf("server answered %d", status))
			})
			address := box.Addr()
			box.Close()
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			mended := netlab.NewRelay(l, netlab.RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", cloud)
			}})
			t.Cleanup(func() { mended.Close() })
			s.session()
			s.settle(c)
		})
	}
}

// TestNetwork_InterceptedTLSGetsNothing has somebody end TLS on the way with a
// certificate of their own: they get no byte, the gateway says so, and when they
// are gone everything arrives through the honest load balancer.
func TestNetwork_InterceptedTLSGetsNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "")
	cloud := fmt.Sprintf("127.0.0.1:%d", s.cloudPort)
	front := func(a *netlab.Authority) netlab.RelayOptions {
		config, err := a.ServerConfig("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		return netlab.RelayOptions{Greet: netlab.GreetTLS(cloud, config)}
	}
	trusted, err := netlab.NewAuthority("the venue's own")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := netlab.NewAuthority("an inspector's")
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	writeFile(t, roots, string(trusted.PEM()))
	s.beginGateway = func(cmd *exec.Cmd) error {
		cmd.Env = append(cmd.Environ(), "SSL_CERT_FILE="+roots, "SSL_CERT_DIR="+filepath.Dir(roots))
		return cmd.Start()
	}
	balancer := relayTo(t, cloud, front(trusted))
	inspector := relayTo(t, cloud, front(stranger))
	var intercepted atomic.Bool
	intercepted.Store(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	network := netlab.NewRelay(l, netlab.RelayOptions{Dial: func(ctx context.Context, _ string) (net.Conn, error) {
		to := balancer.Addr()
		if intercepted.Load() {
			to = inspector.Addr()
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", to)
	}})
	t.Cleanup(func() { network.Close() })
	s.uplinkTo("wss://" + network.Addr())
	s.startCloud()
	s.startGateway()
	c := s.publish(networkCrowd(500)...)
	c.more(t, 500)
	waitFor(t, "the interception to be told", func() bool {
		return strings.Contains(s.status().Uplink.LastError, "certificate signed by unknown authority")
	})
	if got := inspector.Stats(); got.Greeted > 0 || got.Up > 0 || got.Rejected == 0 {
		t.Errorf("the inspector got %+v", got)
	}
	intercepted.Store(false)
	s.session()
	s.settle(c)
}
