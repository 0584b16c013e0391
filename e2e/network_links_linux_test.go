package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"touchline/internal/netlab"
)

// TestNetwork_BadLinksDeliverAllOnce sends over links that are far or lossy or
// slow, or all of it.
func TestNetwork_BadLinksDeliverAllOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name       string
		conditions netlab.Conditions
		blob       int // bytes in each of the larger messages
		heartbeat  time.Duration
	}{
		{"loss 5 percent", netlab.Conditions{Delay: 5 * time.Millisecond, Loss: 0.05}, 500, 5 * time.Second},
		{"delay 300 ms", netlab.Conditions{Delay: 300 * time.Millisecond, Jitter: 30 * time.Millisecond}, 500, 5 * time.Second},
		// 100 messages of 500 bytes a second are 400 kbit/s: more than there is.
		{"256 kbit per second", netlab.Conditions{Delay: 20 * time.Millisecond, BitsPerSecond: 256_000}, 500, 15 * time.Second},
		{"all of it, and reordered", netlab.Conditions{Delay: 150 * time.Millisecond, Jitter: 50 * time.Millisecond,
			Loss: 0.05, Reorder: 0.05, BitsPerSecond: 1_000_000}, 200, 15 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newVenue(t, tc.heartbeat)
			link := v.tunnel(networkSeed(t), tc.conditions)
			v.run()
			begin := time.Now()
			v.session()
			c := v.publish(networkCrowd(tc.blob)...)
			c.more(t, times(2000, 50_000))
			acknowledged := since(begin)
			v.settle(c)
			forth, back := link.Stats()
			t.Logf("MEASURED %s: acknowledged to sensors in %s, stored in the cloud in %s; packets there %+v, back %+v",
				t.Name(), acknowledged, since(begin), forth, back)
		})
	}
}

// TestNetwork_BlackholeIsFoundAndReplaced swallows the packets of the session
// that is open, without a reset, one way or both, while nothing is sent and
// while a large block is; a new connection is let through.
func TestNetwork_BlackholeIsFoundAndReplaced(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		up      bool // what the gateway sends
		down    bool // what it would hear
		writing bool
		long    bool // for the long form only
	}{
		{name: "both ways, idle", up: true, down: true},
		{name: "upwards, while writing", up: true, writing: true},
		{name: "downwards, while writing", down: true, writing: true},
		{name: "upwards, idle", up: true, long: true},
		{name: "downwards, idle", down: true, long: true},
		{name: "both ways, while writing", up: true, down: true, writing: true, long: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.long && !long() {
				t.Skip("in the long form only")
			}
			t.Parallel()
			v := newVenue(t, heartbeat)
			// A frame of 128 KiB takes this link 500 ms, less than a heartbeat.
			v.tunnel(networkSeed(t), netlab.Conditions{Delay: 10 * time.Millisecond, BitsPerSecond: 2_000_000})
			v.run()
			v.session()
			c := v.publish(networkCrowd(3000)...) // 300 kB/s where 250 fit: always writing
			var found, replaced []float64
			for range times(1, 20) {
				c.more(t, 1000)
				if !tc.writing {
					c.hold(t)
					v.drained()
				}
				session, port := v.sessionPort()
				if tc.up {
					check(t, v.cloudNet.Drop(netlab.Input, fmt.Sprintf("tcp sport %d", port)))
				}
				if tc.down {
					check(t, v.cloudNet.Drop(netlab.Output, fmt.Sprintf("tcp dport %d", port)))
				}
				begin := time.Now()
				v.lost(session)
				found = append(found, time.Since(begin).Seconds())
				v.sessionAfter(session)
				replaced = append(replaced, time.Since(begin).Seconds())
				check(t, v.cloudNet.Heal())
				c.release()
			}
			slices.Sort(found)
			slices.Sort(replaced)
			t.Logf("MEASURED blackhole %s, heartbeat %v, %d times: found after %.1f s (median) and %.1f s (worst), replaced after %.1f s and %.1f s",
				tc.name, heartbeat, len(found), quantile(found, 0.5), quantile(found, 1), quantile(replaced, 0.5), quantile(replaced, 1))
			c.more(t, 100)
			v.settle(c)
		})
	}
}

// TestNetwork_NATThatForgetsLosesNothing has a router that forgets idle flows.
// While the heartbeat is shorter than its memory, a silent session lives; when
// the router starts anew, what comes next goes over a new session.
func TestNetwork_NATThatForgetsLosesNothing(t *testing.T) {
	t.Parallel()
	memory, interval := 2*time.Second, heartbeat
	if long() {
		memory, interval = 30*time.Second, 15*time.Second
	}
	v := newVenue(t, interval)
	router := newNamespace(t)
	lan := netlab.End{In: router, Device: "lan", Address: netip.MustParsePrefix("198.18.1.1/30")}
	wan := netlab.End{In: router, Device: "wan", Address: v.gatewayEnd().Address}
	check(t, netlab.Veth(netlab.End{In: v.gatewayNet, Device: "wan", Address: netip.MustParsePrefix("198.18.1.2/30")}, lan))
	check(t, netlab.Veth(wan, v.cloudEnd()))
	check(t, v.gatewayNet.Route(netip.MustParsePrefix(cloudNetwork), lan.Address.Addr()))
	check(t, router.NAT(wan.Device, memory))
	v.run()
	first := v.session()
	c := v.publish(networkCrowd(100)...)
	c.more(t, 500)
	c.hold(t)
	v.drained()

	pause(t.Context(), 2*memory) // silence is what is tested
	if st := v.status(); st.Uplink.State != "connected" || st.Uplink.Session != first {
		t.Errorf("after %v of silence with a heartbeat of %v: session %d, %s, %s; it was %d",
			2*memory, interval, st.Uplink.Session, st.Uplink.State, st.Uplink.LastError, first)
	}

	check(t, router.Forget())
	begin := time.Now()
	c.release()
	c.more(t, 500)
	t.Logf("MEASURED NAT that forgets: session %d replaced by %d after %s, heartbeat %v", first, v.sessionAfter(first), since(begin), interval)
	v.settle(c)
}

// TestNetwork_FlappingLinkLosesNothing cuts the link again and again, one way or
// both, for shorter and longer than a heartbeat takes to notice.
func TestNetwork_FlappingLinkLosesNothing(t *testing.T) {
	t.Parallel()
	v := newVenue(t, heartbeat)
	seed := networkSeed(t)
	link := v.tunnel(seed, netlab.Conditions{Delay: 5 * time.Millisecond, Loss: 0.01})
	v.run()
	v.session()
	c := v.publish(networkCrowd(500)...)
	random := rand.New(rand.NewPCG(seed, 2))
	for range times(5, 100) {
		c.more(t, 1+random.IntN(500))
		way := 1 + random.IntN(3)
		link.Cut(way&1 != 0, way&2 != 0)
		pause(t.Context(), time.Duration(random.Int64N(int64(2*heartbeat))))
		link.Cut(false, false)
		if random.IntN(2) == 0 {
			v.session()
		}
	}
	v.settle(c)
}
