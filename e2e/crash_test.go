package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// TestCrash_NothingAcknowledgedIsLost publishes through every transport while
// the gateway, the cloud or both are killed at random moments, restarted, and
// sometimes killed again while they start. At the end each acknowledged
// sample must be in the cloud, and once, however often its client sent it;
// only where it has neither a time nor a name may a repeat be another sample.
// TOUCHLINE_CRASH_SEED repeats the kills of an earlier run, though not its
// scheduling.
func TestCrash_NothingAcknowledgedIsLost(t *testing.T) {
	kills := 100
	if long() {
		kills = 2000
	}
	s := newSite(t, "")
	s.startCloud()
	s.startGateway()
	c := s.publish(
		clientOptions{transport: "mqtt4", qos: 1, samples: 1, window: 32, pace: 4},
		clientOptions{transport: "mqtt4", qos: 2, samples: 1, window: 32, pace: 4},
		clientOptions{transport: "mqtt5", qos: 1, samples: 2, window: 32, pace: 4},
		clientOptions{transport: "mqtt5", qos: 2, samples: 2, window: 32, pace: 4},
		clientOptions{transport: "ws", samples: 5, window: 32, pace: 4},
		clientOptions{transport: "http", samples: 10, window: 8, pace: 2},
		clientOptions{transport: "mqtt4", qos: 1, samples: 1, window: 32, pace: 4, bare: true, named: true},
		clientOptions{transport: "mqtt5", qos: 2, samples: 2, window: 32, pace: 4, bare: true, named: true},
		clientOptions{transport: "http", samples: 10, window: 8, pace: 2, bare: true, named: true},
		clientOptions{transport: "mqtt4", qos: 1, samples: 1, window: 32, pace: 4, bare: true},
	)
	k := newKiller(s, c, crashSeed(t))
	for k.total() < kills {
		k.strike()
	}
	v := k.conclude()
	if !v.holds() || v.acked != v.sent {
		t.Errorf("seed %d: %s", k.seed, v)
	}
	if v.epochs < 2 {
		t.Errorf("%d epochs: the gateway was never started again", v.epochs)
	}
	t.Logf("MEASURED crash harness, seed %d: %d kills (gateway %d, cloud %d, in pairs %d; of these while starting %d): %s",
		k.seed, k.total(), k.gateway, k.cloud, k.pairs, k.starting, v)
}

// crashSeed returns the seed of TOUCHLINE_CRASH_SEED, else a new one.
func crashSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("TOUCHLINE_CRASH_SEED")
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("TOUCHLINE_CRASH_SEED: %v", err)
	}
	return seed
}

// A killer ends the programs of a site with SIGKILL and starts them again.
type killer struct {
	*site
	crowd *crowd
	seed  uint64
	rand  *rand.Rand

	gateway, cloud, pairs, starting int // kills; pairs and starting are among the first two
}

func newKiller(s *site, c *crowd, seed uint64) *killer {
	return &killer{site: s, crowd: c, seed: seed, rand: rand.New(rand.NewPCG(seed, 0))}
}

func (k *killer) total() int { return k.gateway + k.cloud }

// strike waits until clients have heard acknowledgements, then a little, then
// kills, and starts again what it killed.
func (k *killer) strike() {
	k.t.Helper()
	if k.rand.IntN(2) == 0 {
		waitFor(k.t, "the uplink to be back", func() bool { return k.site.gateway.running() && k.connected() })
	}
	k.crowd.more(k.t, 1+k.rand.IntN(500))
	k.linger()
	switch k.rand.IntN(3) {
	case 0:
		k.killGateway()
	case 1:
		k.killCloud()
		if k.rand.IntN(2) == 0 { // a backlog, and a gateway that is killed with it
			k.crowd.more(k.t, 1+k.rand.IntN(500))
			k.killGateway()
		}
	case 2:
		k.pairs++
		first, second := k.killGateway, k.killCloud
		if k.rand.IntN(2) == 0 {
			first, second = second, first
		}
		first()
		k.linger()
		second()
	}
	k.revive()
}

// revive starts what is not running, and kills one time in four what has just
// begun to start.
func (k *killer) revive() {
	k.t.Helper()
	for !k.site.gateway.running() || !k.site.cloud.running() {
		if !k.site.cloud.running() {
			k.site.cloud = start(k.t, k.cloudProgram, "run", "--config", k.cloudConfig)
		}
		if !k.site.gateway.running() {
			k.site.gateway = start(k.t, k.gatewayProgram, "run", "--config", k.gatewayConfig)
		}
		if k.rand.IntN(4) > 0 {
			return
		}
		pause(k.t.Context(), time.Duration(k.rand.IntN(60))*time.Millisecond)
		k.starting++
		if k.rand.IntN(2) == 0 {
			k.killGateway()
		} else {
			k.killCloud()
		}
	}
}

// linger waits not at all, for up to 3 ms (about a commit) or up to 50 ms.
func (k *killer) linger() {
	most := []time.Duration{0, 3 * time.Millisecond, 50 * time.Millisecond}[k.rand.IntN(3)]
	if most > 0 {
		pause(k.t.Context(), time.Duration(k.rand.Int64N(int64(most))))
	}
}

func (k *killer) killGateway() {
	k.t.Helper()
	k.gateway++
	k.end(k.site.gateway)
}

func (k *killer) killCloud() {
	k.t.Helper()
	k.cloud++
	k.end(k.site.cloud)
}

// end kills a program that must have lived until now.
func (k *killer) end(p *program) {
	k.t.Helper()
	if !p.running() {
		k.t.Fatalf("seed %d: %s ended by itself with status %d:\n%s", k.seed, p.name, p.exit(), tail(p.log.String(), 4<<10))
	}
	p.expected = true
	p.kill()
}

// connected asks the gateway, which may be starting still.
func (k *killer) connected() bool {
	st, err := k.tryStatus()
	return err == nil && st.Uplink.State == "connected"
}

// conclude lets everything come to rest, and audits it.
func (k *killer) conclude() *verdict {
	k.t.Helper()
	k.waitReady("touchline-cloud", k.site.cloud, k.cloudPort)
	k.waitReady("touchline", k.site.gateway, k.http)
	k.crowd.finish(k.t)
	k.drained()
	return k.audit(k.crowd)
}
