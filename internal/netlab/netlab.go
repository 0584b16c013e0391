// Package netlab makes networks that misbehave, for tests: network namespaces
// joined by veth pairs or by links in user space (Tunnel), with rates, firewalls
// and address translation (all Linux, as root), and anywhere a Relay that cuts,
// stalls, swallows, slows or corrupts what passes through it, or stands in for a
// proxy. Nothing outside of its own namespaces and loopback is ever touched, and
// whatever was made ends with Close, or with the process at the latest: the
// namespaces have no name, so even a killed test leaves none behind.
package netlab

import (
	"errors"
	"math/rand/v2"
	"time"
)

// ErrRefused says that this machine or this user gets no namespaces. Tests skip
// on it, with its words.
var ErrRefused = errors.New("network namespaces are refused here")

// newRand returns the generator of one direction of something seeded: each draws
// from its own, or the order of two goroutines would decide what a seed means.
func newRand(seed uint64, direction int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(direction)))
}

// transmission returns how long bytes take at bitsPerSecond; 0 is without limit.
func transmission(bytes, bitsPerSecond int) time.Duration {
	if bitsPerSecond <= 0 {
		return 0
	}
	return time.Duration(float64(bytes) * 8 / float64(bitsPerSecond) * float64(time.Second))
}
