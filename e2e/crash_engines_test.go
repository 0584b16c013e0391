package e2e

import (
	"testing"

	"touchline/internal/pgtest"
)

// TestCrash_OnEachEngine is TestCrash_NothingAcknowledgedIsLost, which has the
// cloud on SQLite, for the other things that a cloud records with. PostgreSQL is
// killed as well, while gateway and cloud live or before the next of them is.
func TestCrash_OnEachEngine(t *testing.T) {
	kills := 10
	if long() {
		kills = 500
	}
	for _, e := range engines[1:] {
		t.Run(e.name, func(t *testing.T) {
			s, server := newSiteOn(t, e, "")
			s.startCloud()
			s.startGateway()
			c := s.publish(
				clientOptions{transport: "mqtt5", qos: 2, samples: 2, window: 32, pace: 4},
				clientOptions{transport: "ws", samples: 5, window: 32, pace: 4},
				clientOptions{transport: "http", samples: 10, window: 8, pace: 2},
				clientOptions{transport: "http", samples: 10, window: 8, pace: 2, bare: true, named: true},
			)
			k := newKiller(s, c, crashSeed(t))
			servers := 0
			for k.total() < kills || k.gateway == 0 || k.cloud == 0 || server != nil && servers == 0 {
				k.strike()
				if server != nil && k.rand.IntN(3) == 0 {
					servers++
					k.crashServer(server)
				}
			}
			v := k.conclude()
			if !v.holds() || v.acked != v.sent {
				t.Errorf("seed %d: %s", k.seed, v)
			}
			t.Logf("MEASURED crash harness, %s, seed %d: %d kills (gateway %d, cloud %d, in pairs %d; of these while starting %d), %d of PostgreSQL: %s",
				e.name, k.seed, k.total(), k.gateway, k.cloud, k.pairs, k.starting, servers, v)
		})
	}
}

// crashServer kills PostgreSQL and starts it again. A cloud needs it to start, so
// it waits until that has.
func (k *killer) crashServer(server *pgtest.Server) {
	k.t.Helper()
	k.waitReady(k.cloudProgram, k.site.cloud, k.cloudPort)
	server.Crash(k.t)
	k.crowd.more(k.t, 1+k.rand.IntN(500))
	k.linger()
	server.Resume(k.t)
}
